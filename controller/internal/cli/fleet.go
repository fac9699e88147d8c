package cli

import (
	"context"
	"errors"
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
)

func agents(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "agents",
		Short: "Show the servers of the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var org string
	ls := &cobra.Command{
		Use:   "list",
		Short: "List every known server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				return listAgents(ctx, c, cmd.OutOrStdout(), o.format, org)
			})
		},
	}
	ls.Flags().StringVar(&org, "organisation", "", "only this organisation")
	c.AddCommand(ls, revokeAgent(o), reenrollAgent(o), &cobra.Command{
		Use:   "show AGENT",
		Short: "Show one server: facts, connection, warnings, every mitigation with its evidence",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.GetAgent(ctx, &stopgapv1.GetAgentRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return showAgent(cmd.OutOrStdout(), r, o.format)
			})
		},
	})
	return c
}

func listAgents(ctx context.Context, c stopgapv1.FleetServiceClient, w io.Writer, f clirun.Format, org string) error {
	st, err := c.ListAgents(ctx, &stopgapv1.ListAgentsRequest{Organisation: org})
	if err != nil {
		return err
	}
	l := clirun.Listing{Header: []string{"NAME", "ID", "ORGANISATION", "BUILD", "ROLES", "CONNECTION", "LAST SEEN", "POLICY", "WARNINGS"}}
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return l.Print(w, f)
		}
		if err != nil {
			return err
		}
		a := r.GetAgent()
		var codes []string
		if a.GetRevoked() != "" {
			codes = append(codes, "REVOKED")
		}
		for _, h := range a.GetHealth() {
			codes = append(codes, h.GetCode())
		}
		l.Messages = append(l.Messages, proto.Message(a))
		l.Rows = append(l.Rows, []string{a.GetName(), short(a.GetId()), a.GetFacts().GetOrganisation(), a.GetFacts().GetExchangeBuild(),
			roles(a.GetFacts().GetRoles()), presence(a.GetPresence()), lastSeen(a), fmt.Sprint(a.GetPolicyVersion()), strings.Join(codes, " ")})
	}
}

func lastSeen(a *stopgapv1.Agent) string {
	if a.GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
		return "now"
	}
	return when(a.GetLastSeen())
}

func showAgent(w io.Writer, r *stopgapv1.GetAgentResponse, f clirun.Format) error {
	a := r.GetAgent()
	l := clirun.Listing{Header: []string{"MITIGATION", "STATE", "RECORDED", "REASON"}, Messages: []proto.Message{r}}
	for _, rec := range r.GetOutcomes() {
		x := rec.GetOutcome()
		l.Rows = append(l.Rows, []string{mitigation.Ref(x.GetMitigation(), x.GetRevision()), outcome.Name(x.GetState()),
			when(rec.GetRecordedAt()), x.GetReason()})
	}
	if f != clirun.Table {
		return l.Print(w, f)
	}
	p := clirun.Printable
	fmt.Fprintf(w, "%s (%s)\n  organisation %s, Exchange %s, %s, %s\n  URL Rewrite  %s\n  connection   %s, last seen %s\n  agent        %s, policy version %d\n",
		p(a.GetName()), a.GetId(), p(a.GetFacts().GetOrganisation()), p(a.GetFacts().GetExchangeBuild()), roles(a.GetFacts().GetRoles()), p(a.GetFacts().GetOs()),
		p(a.GetFacts().GetUrlRewrite()), presence(a.GetPresence()), lastSeen(a), p(a.GetAgentVersion()), a.GetPolicyVersion())
	if len(a.GetLabels()) > 0 {
		fmt.Fprintf(w, "  labels       %s\n", p(labelText(a.GetLabels())))
	}
	if a.GetCertificateExpires() != nil {
		fmt.Fprintf(w, "  certificate  valid until %s\n", when(a.GetCertificateExpires()))
	}
	if a.GetRevoked() != "" {
		fmt.Fprintf(w, "  REVOKED      %s\n", p(a.GetRevoked()))
	}
	if a.GetRefusedError() != "" {
		fmt.Fprintf(w, "  refused      the policy update with timestamp %d: %s\n", a.GetRefusedVersion(), p(a.GetRefusedError()))
	}
	for _, h := range a.GetHealth() {
		fmt.Fprintf(w, "  warning      %s since %s: %s\n", p(h.GetCode()), when(h.GetSince()), p(h.GetText()))
	}
	fmt.Fprintln(w)
	if err := l.Print(w, f); err != nil {
		return err
	}
	for _, x := range r.GetExplanations() {
		fmt.Fprintf(w, "  why %s:\n", p(x.GetMitigation()))
		for _, s := range x.GetSteps() {
			fmt.Fprintf(w, "    %s\n", p(s))
		}
	}
	for _, rec := range r.GetOutcomes() {
		for _, e := range rec.GetOutcome().GetEvidence() {
			fmt.Fprintf(w, "  read back for %s: %s: %s", p(rec.GetOutcome().GetMitigation()), p(e.GetSubject()), p(e.GetFound()))
			if len(e.GetSha256()) > 0 {
				fmt.Fprintf(w, " (sha256 %.12x)", e.GetSha256())
			}
			fmt.Fprintln(w)
		}
	}
	return nil
}

func eachOutcome(ctx context.Context, c stopgapv1.FleetServiceClient, r *stopgapv1.ListOutcomesRequest, f func(*stopgapv1.ListOutcomesResponse) error) error {
	st, err := c.ListOutcomes(ctx, r)
	if err != nil {
		return err
	}
	for {
		x, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(x); err != nil {
			return err
		}
	}
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
				return listOutcomes(ctx, c, cmd.OutOrStdout(), o.format, &stopgapv1.ListOutcomesRequest{Mitigation: id, States: want})
			})
		},
	}
	c.Flags().StringVar(&id, "mitigation", "", "only this mitigation")
	c.Flags().StringSliceVar(&states, "state", nil, "only these states, for example failed,conflict,partial")
	return c
}

func listOutcomes(ctx context.Context, c stopgapv1.FleetServiceClient, w io.Writer, f clirun.Format,
	r *stopgapv1.ListOutcomesRequest,
) error {
	l := clirun.Listing{Header: outcomeHeader}
	err := eachOutcome(ctx, c, r, func(r *stopgapv1.ListOutcomesResponse) error {
		l.Rows, l.Messages = append(l.Rows, row(r.GetRecord())), append(l.Messages, r.GetRecord())
		return nil
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
			_, err = client.ListMitigations(cctx, &stopgapv1.ListMitigationsRequest{})
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
				if c := status.Code(err); after == from && c != codes.Unavailable || c == codes.OutOfRange || c == codes.PermissionDenied || c == codes.Unauthenticated {
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
	st, err := c.Watch(ctx, &stopgapv1.WatchRequest{AfterRevision: *after})
	if err != nil {
		return err
	}
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		*after = r.GetRevision()
		if f == clirun.Table {
			x := row(r.GetOutcome())
			fmt.Fprintf(w, "%s  %-14s %-18s %-15s %s\n", time.Now().Format(time.TimeOnly), clirun.Printable(x[0]), clirun.Printable(x[2]), x[3], clirun.Printable(x[6]))
			continue
		}
		l := clirun.Listing{Rows: [][]string{row(r.GetOutcome())}, Messages: []proto.Message{r.GetOutcome()}}
		if err := l.PrintRow(w, f); err != nil {
			return err
		}
	}
}
