package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/pages"
)

func rolloutCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "rollout",
		Short: "How releases reach the fleet: plan, watch, stop, go back",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(rolloutPlan(o), rolloutStart(o), rolloutList(o), rolloutShow(o),
		rolloutVerb(o, "pause", "Release nobody else until `resume`; failures still halt it", pauseRollout, false),
		rolloutVerb(o, "resume", "Go on after `pause`", resumeRollout, false),
		rolloutVerb(o, "approve", "Let the next wave begin", approveRollout, false),
		rolloutVerb(o, "halt", "Stop for good: who has it keeps it, or goes back where the strategy says onHalt revert", haltRollout, true),
		rolloutVerb(o, "revert", "Take it back from everybody who got it by this rollout, as far as signed policy permits", revertRollout, true),
		rolloutVerb(o, "finish-now", "Break the glass: release the rest at once, whatever failed", finishRollout, true))
	return c
}

func parseItems(args []string) ([]*stopgapv1.MitigationRef, error) {
	var out []*stopgapv1.MitigationRef
	for _, a := range args {
		id, rev, err := mitigation.ParseRef(a)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", clirun.ErrUsage, err)
		}
		out = append(out, &stopgapv1.MitigationRef{MitigationId: id, Revision: rev})
	}
	return out, nil
}

func refs(items []*stopgapv1.MitigationRef) string {
	var out []string
	for _, it := range items {
		out = append(out, mitigation.Ref(it.GetMitigationId(), it.GetRevision()))
	}
	return strings.Join(out, " ")
}

func rolloutPlan(o *options) *cobra.Command {
	var strategy string
	c := &cobra.Command{
		Use:   "plan ID@REV...",
		Short: "Show which server would be in which wave; nothing moves",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			items, err := parseItems(args)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				var r *stopgapv1.PlanRolloutResponse
				var members []*stopgapv1.RolloutMember
				err := pages.Each(func(token string) (string, error) {
					var err error
					r, err = c.PlanRollout(ctx, &stopgapv1.PlanRolloutRequest{Mitigations: items, Strategy: strategy, PageSize: pages.Size,
						PageToken: token})
					members = append(members, r.GetMembers()...)
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				if s := r.GetStrategy(); o.format == clirun.Table {
					fmt.Fprintf(cmd.OutOrStdout(), "%s with strategy %s, %d waves, on halt: %s; planned now it would be %s\n\n", refs(items),
						clirun.Printable(s.GetName()), len(s.GetWaves()), onHaltText(s.GetOnHalt()), r.GetRolloutId())
				}
				return memberListing(members).Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
	c.Flags().StringVar(&strategy, "strategy", "", "strategy (default: the fleet's)")
	return c
}

func memberListing(all []*stopgapv1.RolloutMember) clirun.Listing {
	l := clirun.Listing{Header: []string{"WAVE", "SERVER", "STATE", "SINCE", "REASON"}}
	for _, m := range all {
		since := ""
		if m.GetSince() != nil {
			since = when(m.GetSince())
		}
		l.Rows = append(l.Rows, []string{fmt.Sprint(m.GetWave()), m.GetAgentName(), memberState(m.GetState()), since, m.GetReason()})
		l.Messages = append(l.Messages, m)
	}
	return l
}

func rolloutStart(o *options) *cobra.Command {
	var strategy string
	var planOnly bool
	c := &cobra.Command{
		Use:   "start ID@REV... | R1",
		Short: "Start a rollout of revisions in policy, or one that was planned",
		Long:  "A rollout supersedes those of older revisions of the same mitigations; servers change from one revision to the other in one step.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !strings.Contains(args[0], "@") {
				return actOn(cmd, o, args[0], "", startRollout)
			}
			items, err := parseItems(args)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.CreateRollout(ctx, &stopgapv1.CreateRolloutRequest{Mitigations: items, Strategy: strategy, PlanOnly: planOnly})
				if err != nil {
					return err
				}
				sayRollout(cmd.OutOrStdout(), r.GetRollout())
				return nil
			})
		},
	}
	c.Flags().StringVar(&strategy, "strategy", "", "strategy (default: the fleet's)")
	c.Flags().BoolVar(&planOnly, "plan-only", false, "make it and don't start it")
	return c
}

func sayRollout(w io.Writer, x *stopgapv1.Rollout) {
	fmt.Fprintf(w, "%s %s (%s): %s: %s\n", x.GetId(), refs(x.GetMitigations()), clirun.Printable(x.GetStrategy().GetName()),
		phaseText(x.GetPhase()),
		clirun.Printable(x.GetReason()))
}

func actOn(cmd *cobra.Command, o *options, id, reason string, do rolloutCall) error {
	return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
		r, err := do(ctx, c, id, reason)
		if err != nil {
			return err
		}
		sayRollout(cmd.OutOrStdout(), r.GetRollout())
		return nil
	})
}

func rolloutVerb(o *options, verb, short string, do rolloutCall, destructive bool) *cobra.Command {
	var reason string
	var yes bool
	c := &cobra.Command{
		Use:   verb + " R1",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if destructive && !yes {
				return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
					r, err := c.GetRollout(ctx, &stopgapv1.GetRolloutRequest{RolloutId: args[0]})
					if err != nil {
						return err
					}
					return fmt.Errorf("%s is %s, %s; say --yes to %s it", args[0], phaseText(r.GetRollout().GetPhase()), touches(r.GetRollout(), verb),
						verb)
				})
			}
			return actOn(cmd, o, args[0], reason, do)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody and in the audit log")
	if destructive {
		c.Flags().BoolVar(&yes, "yes", false, "do it, having read what it touches")
		_ = c.MarkFlagRequired("reason")
	}
	return c
}

// touches says how many servers a verb is about.
func touches(x *stopgapv1.Rollout, verb string) string {
	if len(x.GetProgress()) == 0 {
		return "released to everybody"
	}
	have, wait := uint32(0), uint32(0)
	for _, w := range x.GetProgress() {
		for _, n := range w.GetCounts() {
			if n.GetState() == stopgapv1.MemberState_MEMBER_STATE_WAITING {
				wait += n.GetCount()
			} else {
				have += n.GetCount()
			}
		}
	}
	if verb == "finish-now" {
		return fmt.Sprintf("and %d servers that wait would get it within seconds", wait)
	}
	if verb == "halt" && x.GetStrategy().GetOnHalt() != stopgapv1.OnHalt_ON_HALT_REVERT {
		return fmt.Sprintf("and the %d servers that wait would not get it; who has it keeps it", wait)
	}
	return fmt.Sprintf("and %d servers that it was released to would lose it within seconds, as far as signed policy permits", have)
}

func rolloutList(o *options) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List rollouts, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"ID", "REVISIONS", "STRATEGY", "PHASE", "WAVE", "SINCE", "REASON"}}
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListRollouts(ctx, &stopgapv1.ListRolloutsRequest{PageSize: pages.Size, PageToken: token})
					for _, x := range r.GetRollouts() {
						if x.GetPhase() == stopgapv1.RolloutPhase_ROLLOUT_PHASE_SUPERSEDED && !all {
							continue
						}
						l.Rows = append(l.Rows, []string{x.GetId(), refs(x.GetMitigations()), x.GetStrategy().GetName(), phaseText(x.GetPhase()),
							fmt.Sprintf("%d/%d", x.GetWave(), len(x.GetStrategy().GetWaves())), when(x.GetSince()), x.GetReason()})
						l.Messages = append(l.Messages, x)
					}
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "superseded ones too")
	return c
}
