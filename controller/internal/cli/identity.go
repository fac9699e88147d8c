package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/pages"
)

func labelText(m map[string]string) string {
	var parts []string
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	sort.Strings(parts)
	return strings.Join(parts, ",")
}

func tokens(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Make, list and take back enrolment tokens",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var ttl time.Duration
	var uses uint32
	var labels map[string]string
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a token and print it, once: the controller keeps only its hash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.CreateToken(ctx, &stopgapv1.CreateTokenRequest{Ttl: durationpb.New(ttl), Uses: uses, Labels: labels})
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), r.GetTokenSecret())
				fmt.Fprintf(cmd.ErrOrStderr(), "token %s: %d uses until %s; on the server: stopgap-agent enroll --controller %s --token-file FILE\n",
					r.GetToken().GetId(), r.GetToken().GetUsesLeft(), when(r.GetToken().GetExpiresAt()), o.controller)
				return nil
			})
		},
	}
	create.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long it can be used: 1m to 720h")
	create.Flags().Uint32Var(&uses, "uses", 1, "how many agents can enrol with it")
	create.Flags().StringToStringVar(&labels, "labels", nil, "labels for its agents, key=value,...; agents can't choose their own")
	c.AddCommand(create, &cobra.Command{
		Use:   "list",
		Short: "List the tokens that can still be used",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"TOKEN", "USES LEFT", "UNTIL", "LABELS", "FOR", "MADE BY"}}
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListTokens(ctx, &stopgapv1.ListTokensRequest{PageSize: pages.Size, PageToken: token})
					for _, t := range r.GetTokens() {
						who := "new agents"
						if t.GetAgentId() != "" {
							who = short(t.GetAgentId())
						}
						l.Messages = append(l.Messages, t)
						l.Rows = append(l.Rows, []string{t.GetId(), fmt.Sprint(t.GetUsesLeft()), when(t.GetExpiresAt()), labelText(t.GetLabels()), who,
							actorText(t.GetCreatedBy())})
					}
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}, &cobra.Command{
		Use:   "revoke TOKEN",
		Short: "Take a token back; agents that enrolled with it stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				_, err := c.RevokeToken(ctx, &stopgapv1.RevokeTokenRequest{TokenId: args[0]})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "token %s was taken back\n", args[0])
				}
				return err
			})
		},
	})
	return c
}

func revokeAgent(o *options) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "revoke AGENT",
		Short: "Close an agent's stream at once and refuse its certificate from then on; what is applied on its server stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.RevokeAgent(ctx, &stopgapv1.RevokeAgentRequest{Agent: args[0], Reason: reason})
				if err != nil {
					return err
				}
				stream := "it was not connected"
				if r.GetWasConnected() {
					stream = "its stream was closed"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "agent %s is revoked; %s; what is applied on its server stays\n", r.GetAgentId(), stream)
				return nil
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	_ = c.MarkFlagRequired("reason")
	return c
}

func reenrollAgent(o *options) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "reenroll AGENT",
		Short: "Refuse an agent's present key and print a token bound to its id, for the right machine to enrol again with",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.ReenrollAgent(ctx, &stopgapv1.ReenrollAgentRequest{Agent: args[0], Ttl: durationpb.New(ttl)})
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), r.GetTokenSecret())
				fmt.Fprintf(cmd.ErrOrStderr(), "agent %s: its key is refused from now on; on its server: "+
					"stopgap-agent enroll --again --controller %s --token-file FILE\n", r.GetAgentId(), o.controller)
				return nil
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token can be used")
	return c
}
