package cli

import (
	"context"
	"fmt"
	"sort"

	"github.com/spf13/cobra"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/policydir"
)

func publish(o *options) *cobra.Command {
	var strategy string
	var planOnly bool
	c := &cobra.Command{
		Use:   "publish [DIR]",
		Short: "Hand a signed policy directory to the controller, which verifies it before it stores it",
		Long: "The directory is checked here and again by the controller. Each revision that is new is released by a rollout with the strategy\n" +
			"given, or the fleet's (`stopgap strategy list`); on a new fleet that is emergency: everybody at once.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := defaultDir()
			if len(args) == 1 {
				dir = args[0]
			}
			d, err := policydir.Open(dir)
			if err != nil {
				return err
			}
			files, err := d.Files()
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := send(ctx, c, files, strategy, planOnly)
				if err != nil {
					return fmt.Errorf("nothing was published: %w", err)
				}
				say(cmd, r.GetChanges())
				fmt.Fprintf(cmd.OutOrStdout(), "policy version %d, root %d\n", r.GetPolicyVersion(), r.GetRootVersion())
				if r.GetAgentsAhead() > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %d servers hold a newer policy (up to version %d) and ignore this one; publish the newest policy directory\n",
						r.GetAgentsAhead(), r.GetNewestAgentPolicyVersion())
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&strategy, "strategy", "", "strategy for what is new (default: the fleet's)")
	c.Flags().BoolVar(&planOnly, "plan-only", false, "make rollouts and don't start them: `stopgap rollout start` does")
	return c
}

func send(
	ctx context.Context, c stopgapv1.FleetServiceClient, files map[string][]byte, strategy string, planOnly bool,
) (*stopgapv1.PublishResponse, error) {
	st, err := c.Publish(ctx)
	if err != nil {
		return nil, err
	}
	paths := make([]string, 0, len(files))
	for p := range files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		if err := st.Send(&stopgapv1.PublishRequest{Path: p, Content: files[p], Strategy: strategy, PlanOnly: planOnly}); err != nil {
			break // the status comes with CloseAndRecv
		}
	}
	return st.CloseAndRecv()
}

// releaseCall is one call that decides about a revision.
type releaseCall func(ctx context.Context, c stopgapv1.FleetServiceClient, m *stopgapv1.MitigationRef, reason string) (released, error)

// released is what every such call answers.
type released interface {
	GetAppliedOn() uint32
}

func setRelease(o *options, use, short, done string, do releaseCall, removes bool) *cobra.Command {
	var reason string
	var yes bool
	c := &cobra.Command{
		Use:   use + " ID@REV",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, rev, err := mitigation.ParseRef(args[0])
			if err != nil {
				return fmt.Errorf("%w: %w", clirun.ErrUsage, err)
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				if removes && !yes {
					n, err := countApplied(ctx, c, id, rev)
					if err != nil {
						return err
					}
					return fmt.Errorf("%s is applied on %d servers, which would lose it within seconds as far as signed policy permits; "+
						"say --yes to ask for it", args[0], n)
				}
				r, err := do(ctx, c, &stopgapv1.MitigationRef{MitigationId: id, Revision: rev}, reason)
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s; applied on %d servers by their last report\n", args[0], done, r.GetAppliedOn())
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody and in the audit log")
	if removes {
		c.Flags().BoolVar(&yes, "yes", false, "ask for it, having read how many servers may lose it")
		_ = c.MarkFlagRequired("reason")
	}
	return c
}

func release(o *options) *cobra.Command {
	return setRelease(o, "release", "Release a revision again that was held back or taken off", "is released",
		func(ctx context.Context, c stopgapv1.FleetServiceClient, m *stopgapv1.MitigationRef, reason string) (released, error) {
			return c.ReleaseMitigation(ctx, &stopgapv1.ReleaseMitigationRequest{Mitigation: m, Reason: reason})
		}, false)
}

func hold(o *options) *cobra.Command {
	return setRelease(o, "hold", "Hold a revision back: servers that have it keep it, others don't get it", "is held back",
		func(ctx context.Context, c stopgapv1.FleetServiceClient, m *stopgapv1.MitigationRef, reason string) (released, error) {
			return c.HoldMitigation(ctx, &stopgapv1.HoldMitigationRequest{Mitigation: m, Reason: reason})
		}, false)
}

func revert(o *options) *cobra.Command {
	return setRelease(o, "revert",
		"Ask servers to take a revision off, or go back to the one before; they do as far as signed policy permits the controller", "is to be taken off",
		func(ctx context.Context, c stopgapv1.FleetServiceClient, m *stopgapv1.MitigationRef, reason string) (released, error) {
			return c.RevertMitigation(ctx, &stopgapv1.RevertMitigationRequest{Mitigation: m, Reason: reason})
		}, true)
}
