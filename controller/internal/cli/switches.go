package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/pages"
)

// flip is one call that stops new applications or allows them again, of one mitigation or of all.
type flip func(ctx context.Context, c stopgapv1.FleetServiceClient, mitigation string, where *stopgapv1.Scope, reason string) (flipped,
	error)

// flipped is what every such call answers.
type flipped interface {
	GetScope() *stopgapv1.Scope
	GetServers() uint32
}

func pauseFleet(ctx context.Context, c stopgapv1.FleetServiceClient, _ string, where *stopgapv1.Scope, reason string) (flipped, error) {
	return c.PauseFleet(ctx, &stopgapv1.PauseFleetRequest{Scope: where, Reason: reason})
}

func resumeFleet(ctx context.Context, c stopgapv1.FleetServiceClient, _ string, where *stopgapv1.Scope, reason string) (flipped, error) {
	return c.ResumeFleet(ctx, &stopgapv1.ResumeFleetRequest{Scope: where, Reason: reason})
}

func withhold(ctx context.Context, c stopgapv1.FleetServiceClient, id string, where *stopgapv1.Scope, reason string) (flipped, error) {
	return c.WithholdMitigation(ctx, &stopgapv1.WithholdMitigationRequest{MitigationId: id, Scope: where, Reason: reason})
}

func allow(ctx context.Context, c stopgapv1.FleetServiceClient, id string, where *stopgapv1.Scope, reason string) (flipped, error) {
	return c.AllowMitigation(ctx, &stopgapv1.AllowMitigationRequest{MitigationId: id, Scope: where, Reason: reason})
}

// scopeOf reads the flags of a scope; with neither it is the whole fleet.
func scopeOf(label, server string) (*stopgapv1.Scope, error) {
	switch {
	case label != "" && server != "":
		return nil, fmt.Errorf("a label or a server, not both")
	case label != "":
		k, v, ok := strings.Cut(label, "=")
		if !ok || k == "" || v == "" {
			return nil, fmt.Errorf("label %q is not KEY=VALUE", label)
		}
		return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_LABEL, LabelKey: k, LabelValue: v}, nil
	case server != "":
		return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_AGENT, Agent: server}, nil
	}
	return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_FLEET}, nil
}

// scopeText is a scope for people.
func scopeText(s *stopgapv1.Scope) string {
	switch s.GetKind() {
	case stopgapv1.ScopeKind_SCOPE_KIND_FLEET:
		return "fleet"
	case stopgapv1.ScopeKind_SCOPE_KIND_LABEL:
		return "label " + s.GetLabelKey() + "=" + s.GetLabelValue()
	case stopgapv1.ScopeKind_SCOPE_KIND_AGENT:
		return "agent " + cmp.Or(s.GetAgentName(), s.GetAgent())
	default:
		return strings.ToLower(enumName(s.GetKind(), "SCOPE_KIND_"))
	}
}

// fleetCmd switches new applications off and on for everything.
func fleetCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "fleet",
		Short: "Switch new applications off and on, for the fleet, a label or a server",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(switchCmd(o, "disable", "Apply nothing new; what is applied stays and is repaired", pauseFleet, true, false),
		switchCmd(o, "enable", "Apply what is released again", resumeFleet, false, false), switchList(o))
	return c
}

func switchCmd(o *options, use, short string, do flip, off, one bool) *cobra.Command {
	var label, server, reason string
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			where, err := scopeOf(label, server)
			if err != nil {
				return err
			}
			id, what := "", "everything"
			if one {
				id, what = args[0], args[0]
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := do(ctx, c, id, where, reason)
				if err == nil {
					word := "may be applied again"
					if off {
						word = "is not applied any more where it is not yet"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s, %d servers; what is applied stays\n", what, word, clirun.Printable(scopeText(r.GetScope())),
						r.GetServers())
				}
				return err
			})
		},
	}
	if one {
		c.Use, c.Args = use+" ID", cobra.ExactArgs(1)
	}
	c.Flags().StringVar(&label, "label", "", "only servers with this label, KEY=VALUE")
	c.Flags().StringVar(&server, "agent", "", "only this server")
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody and in the audit log")
	return c
}

func switchList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "switches",
		Short: "List what is switched off or blocked, in the order in which it counts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"SCOPE", "MITIGATION", "SINCE", "BY", "REASON"}}
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListSwitches(ctx, &stopgapv1.ListSwitchesRequest{PageSize: pages.Size, PageToken: token})
					for _, x := range r.GetSwitches() {
						what := cmp.Or(x.GetMitigationId(), "everything")
						l.Rows = append(l.Rows, []string{scopeText(x.GetScope()), what, when(x.GetSince()), actorText(x.GetSetBy()), x.GetReason()})
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
}

func blockCmd(o *options) *cobra.Command {
	return switchCmd(o, "block", "Never newly apply a mitigation, on the fleet, a label or a server; what is applied stays", withhold, true,
		true)
}

func unblockCmd(o *options) *cobra.Command {
	return switchCmd(o, "unblock", "Take a block away", allow, false, true)
}
