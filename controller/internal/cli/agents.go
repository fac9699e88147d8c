package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/pages"
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
				r, err := c.GetAgent(ctx, &stopgapv1.GetAgentRequest{Agent: args[0]})
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
	filter := &stopgapv1.AgentFilter{}
	if org != "" {
		filter.Organisations = []string{org}
	}
	l := clirun.Listing{Header: []string{"NAME", "ID", "ORGANISATION", "BUILD", "ROLES", "CONNECTION", "LAST SEEN", "POLICY", "WARNINGS"}}
	err := pages.Each(func(token string) (string, error) {
		r, err := c.ListAgents(ctx, &stopgapv1.ListAgentsRequest{Filter: filter, PageSize: pages.Size, PageToken: token})
		for _, a := range r.GetAgents() {
			var codes []string
			if a.GetRevocation() != nil {
				codes = append(codes, "REVOKED")
			}
			for _, h := range a.GetHealth() {
				codes = append(codes, h.GetCode())
			}
			l.Messages = append(l.Messages, a)
			l.Rows = append(l.Rows, []string{a.GetName(), short(a.GetId()), a.GetFacts().GetOrganisation(), a.GetFacts().GetExchangeBuild(),
				roles(a.GetFacts().GetRoles()), presence(a.GetPresence()), lastSeen(a), fmt.Sprint(a.GetPolicyVersion()), strings.Join(codes, " ")})
		}
		return r.GetNextPageToken(), err
	})
	if err != nil {
		return err
	}
	return l.Print(w, f)
}

func lastSeen(a *stopgapv1.Agent) string {
	if a.GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
		return "now"
	}
	return when(a.GetLastSeenAt())
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
	fmt.Fprintf(w, "%s (%s)\n  organisation %s, Exchange %s, %s, %s\n  URL Rewrite  %s\n  connection   %s, last seen %s\n"+
		"  agent        %s, policy version %d\n",
		p(a.GetName()), a.GetId(), p(a.GetFacts().GetOrganisation()), p(a.GetFacts().GetExchangeBuild()), roles(a.GetFacts().GetRoles()), p(a.GetFacts().GetOs()),
		p(a.GetFacts().GetUrlRewrite()), presence(a.GetPresence()), lastSeen(a), p(a.GetAgentVersion()), a.GetPolicyVersion())
	if len(a.GetLabels()) > 0 {
		fmt.Fprintf(w, "  labels       %s\n", p(labelText(a.GetLabels())))
	}
	if a.GetCertificateExpiresAt() != nil {
		fmt.Fprintf(w, "  certificate  valid until %s\n", when(a.GetCertificateExpiresAt()))
	}
	if v := a.GetRevocation(); v != nil {
		fmt.Fprintf(w, "  REVOKED      since %s by %s: %s\n", v.GetRevokedAt().AsTime().Format(time.RFC3339), p(actorText(v.GetRevokedBy())),
			p(v.GetReason()))
	}
	if u := a.GetRefusedUpdate(); u != nil {
		fmt.Fprintf(w, "  refused      the policy update with timestamp %d: %s\n", u.GetTimestampVersion(), p(u.GetError()))
	}
	for _, h := range a.GetHealth() {
		fmt.Fprintf(w, "  warning      %s since %s: %s\n", p(h.GetCode()), when(h.GetSince()), p(h.GetText()))
	}
	fmt.Fprintln(w)
	if err := l.Print(w, f); err != nil {
		return err
	}
	for _, x := range r.GetExplanations() {
		fmt.Fprintf(w, "  why %s:\n", p(x.GetMitigationId()))
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
