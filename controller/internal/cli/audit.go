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

// actorText is an actor for people: "operator ben".
func actorText(a *stopgapv1.Actor) string {
	if a.GetKind() == stopgapv1.ActorKind_ACTOR_KIND_UNSPECIFIED {
		return a.GetName()
	}
	return strings.TrimSpace(strings.ToLower(enumName(a.GetKind(), "ACTOR_KIND_")) + " " + a.GetName())
}

// entryActor is who an audit entry names.
func entryActor(e *stopgapv1.AuditEntry) string {
	// A controller of before actors had two fields sends one.
	return cmp.Or(actorText(&stopgapv1.Actor{Kind: e.GetActorKind(), Name: e.GetActorName()}), e.GetActor())
}

func auditLog(o *options) *cobra.Command {
	var after uint64
	c := &cobra.Command{
		Use:   "audit",
		Short: "Show who decided, and what was refused; exit code 1 when the log's hash chain is broken",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"NR", "WHEN", "WHO", "WHAT", "ON", "DETAIL"}}
				broken := uint64(0)
				f := &stopgapv1.AuditFilter{AfterSequence: after}
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListAudit(ctx, &stopgapv1.ListAuditRequest{Filter: f, PageSize: pages.Size, PageToken: token})
					for _, e := range r.GetEntries() {
						l.Messages = append(l.Messages, e)
						l.Rows = append(l.Rows, []string{fmt.Sprint(e.GetSequence()), when(e.GetTime()), entryActor(e), e.GetAction(), e.GetSubject(),
							e.GetDetail()})
					}
					broken = r.GetBrokenAtSequence()
					if err == nil && !r.GetChainHolds() {
						broken = max(broken, 1)
					}
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				if err := l.Print(cmd.OutOrStdout(), o.format); err != nil {
					return err
				}
				if broken > 0 {
					return fmt.Errorf("the log was altered: its hash chain breaks at entry %d", broken)
				}
				return nil
			})
		},
	}
	c.Flags().Uint64Var(&after, "after", 0, "only entries after this number")
	return c
}
