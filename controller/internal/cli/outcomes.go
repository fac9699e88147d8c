package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/pages"
)

func eachOutcome(
	ctx context.Context, c stopgapv1.FleetServiceClient, filter *stopgapv1.OutcomeFilter, f func(*stopgapv1.OutcomeRecord),
) error {
	return pages.Each(func(token string) (string, error) {
		r, err := c.ListOutcomes(ctx, &stopgapv1.ListOutcomesRequest{Filter: filter, PageSize: pages.Size, PageToken: token})
		for _, rec := range r.GetOutcomes() {
			f(rec)
		}
		return r.GetNextPageToken(), err
	})
}

func parseStates(in []string) ([]stopgapv1.OutcomeState, error) {
	var out []stopgapv1.OutcomeState
	for _, s := range in {
		v, err := outcome.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", clirun.ErrUsage, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func row(r *stopgapv1.OutcomeRecord) []string {
	x := r.GetOutcome()
	name := r.GetAgentName()
	if name == "" {
		name = short(r.GetAgentId())
	}
	return []string{name, r.GetOrganisation(), mitigation.Ref(x.GetMitigation(), x.GetRevision()), outcome.Name(x.GetState()), x.GetCode(),
		when(r.GetRecordedAt()), x.GetReason()}
}

var outcomeHeader = []string{"SERVER", "ORGANISATION", "MITIGATION", "STATE", "CODE", "RECORDED", "REASON"}

func outcomes(o *options) *cobra.Command {
	var id string
	var states []string
	c := &cobra.Command{
		Use:   "outcomes",
		Short: "List what became of each mitigation on each server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := parseStates(states)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				filter := &stopgapv1.OutcomeFilter{States: want}
				if id != "" {
					filter.MitigationIds = []string{id}
				}
				return listOutcomes(ctx, c, cmd.OutOrStdout(), o.format, filter)
			})
		},
	}
	c.Flags().StringVar(&id, "mitigation", "", "only this mitigation")
	c.Flags().StringSliceVar(&states, "state", nil, "only these states, for example failed,conflict,partial")
	return c
}

func listOutcomes(
	ctx context.Context, c stopgapv1.FleetServiceClient, w io.Writer, f clirun.Format, filter *stopgapv1.OutcomeFilter,
) error {
	l := clirun.Listing{Header: outcomeHeader}
	err := eachOutcome(ctx, c, filter, func(r *stopgapv1.OutcomeRecord) {
		l.Rows, l.Messages = append(l.Rows, row(r)), append(l.Messages, r)
	})
	if err != nil {
		return err
	}
	return l.Print(w, f)
}

// watchRetry is the pause before a broken watch goes on where it was.
const watchRetry = 2 * time.Second

func watch(o *options) *cobra.Command {
	var from uint64
	c := &cobra.Command{
		Use:   "watch",
		Short: "Show outcomes as they are recorded, until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, closeConn, err := o.dial()
			if err != nil {
				return err
			}
			defer func() { _ = closeConn() }()
			w := cmd.OutOrStdout()
			// What is wrong from the start is said once; what breaks later is tried again.
			cctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			_, err = client.ListMitigations(cctx, &stopgapv1.ListMitigationsRequest{PageSize: 1})
			cancel()
			if err != nil {
				return err
			}
			if o.format == clirun.CSV {
				fmt.Fprintln(w, strings.Join(outcomeHeader, ","))
			}
			after := from
			for {
				err := watchOnce(cmd.Context(), client, &after, w, o.format)
				if cmd.Context().Err() != nil {
					return nil
				}
				if c := status.Code(err); after == from && c != codes.Unavailable || c == codes.OutOfRange || c == codes.PermissionDenied ||
					c == codes.Unauthenticated {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "connection lost (%s); going on after revision %d\n", clirun.Printable(clirun.Text(err)), after)
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(watchRetry):
				}
			}
		},
	}
	c.Flags().Uint64Var(&from, "after", 0, "begin after this revision (default: with what comes next)")
	return c
}

func watchOnce(ctx context.Context, c stopgapv1.FleetServiceClient, after *uint64, w io.Writer, f clirun.Format) error {
	st, err := c.Watch(ctx, &stopgapv1.WatchRequest{AfterStoreRevision: *after})
	if err != nil {
		return err
	}
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		*after = r.GetStoreRevision()
		if f == clirun.Table {
			x := row(r.GetOutcome())
			fmt.Fprintf(w, "%s  %-14s %-18s %-15s %s\n", time.Now().Format(time.TimeOnly), clirun.Printable(x[0]), clirun.Printable(x[2]), x[3],
				clirun.Printable(x[6]))
			continue
		}
		l := clirun.Listing{Rows: [][]string{row(r.GetOutcome())}, Messages: []proto.Message{r.GetOutcome()}}
		if err := l.PrintRow(w, f); err != nil {
			return err
		}
	}
}
