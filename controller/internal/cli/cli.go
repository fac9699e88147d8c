// Package cli is the commands of stopgap, the operators' program. Commands that need no controller are in files that import
// only proto and shared.
package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Main runs stopgap.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return clirun.Main(ctx, root(), args, stdout, stderr)
}

// options are the flags that reach a controller.
type options struct {
	controller, credentials, serverName string
	format                              clirun.Format
}

func root() *cobra.Command {
	o := &options{format: clirun.Table}
	c := &cobra.Command{
		Use:     "stopgap",
		Short:   "Publishes mitigations to a fleet of Exchange servers and shows what became of them",
		Version: shared.Version,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := c.PersistentFlags()
	f.StringVar(&o.controller, "controller", os.Getenv("STOPGAP_CONTROLLER"), "controller address, host:port (or STOPGAP_CONTROLLER)")
	f.StringVar(&o.credentials, "credentials", os.Getenv("STOPGAP_CREDENTIALS"), "directory of ca.pem, cert.pem, key.pem (or STOPGAP_CREDENTIALS)")
	f.StringVar(&o.serverName, "server-name", "", "name in the controller's certificate, if it is not that of the address")
	f.VarP(&o.format, "output", "o", "table, json, csv or yaml")
	c.AddCommand(mitigations(o), rewrite(o), simulation(o), keys(), policies(), sign(), bundles(), publish(o), release(o), hold(o), revert(o),
		agents(o), tokens(o), outcomes(o), watch(o), recheck(o), auditLog(o), rolloutCmd(o), strategyCmd(o), fleetCmd(o), blockCmd(o),
		unblockCmd(o))
	return c
}

// callTimeout bounds a call that is not a watch.
const callTimeout = time.Minute

// dial connects to the controller.
func (o *options) dial() (stopgapv1.FleetServiceClient, func() error, error) {
	if o.controller == "" || o.credentials == "" {
		return nil, nil, fmt.Errorf("%w: --controller and --credentials are needed (or STOPGAP_CONTROLLER and STOPGAP_CREDENTIALS)", clirun.ErrUsage)
	}
	if _, _, err := net.SplitHostPort(o.controller); err != nil {
		return nil, nil, fmt.Errorf("%w: --controller %q is not host:port", clirun.ErrUsage, o.controller)
	}
	creds, err := trust.LoadCredentials(o.credentials)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient(o.controller, transport.DialOptions(trust.ClientTLS(creds, o.serverName))...)
	if err != nil {
		return nil, nil, err
	}
	return stopgapv1.NewFleetServiceClient(conn), conn.Close, nil
}

func (o *options) with(cmd *cobra.Command, f func(ctx context.Context, c stopgapv1.FleetServiceClient) error) error {
	client, closeConn, err := o.dial()
	if err != nil {
		return err
	}
	defer func() { _ = closeConn() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
	defer cancel()
	return f(ctx, client)
}

// enumName is a value of an enum for people, without the prefix of its enum. One of a newer controller is shown with its number.
func enumName(v protoreflect.Enum, prefix string) string {
	d := v.Descriptor().Values().ByNumber(v.Number())
	if d == nil {
		return fmt.Sprintf("UNKNOWN(%d)", v.Number())
	}
	return strings.TrimPrefix(string(d.Name()), prefix)
}

func presence(p stopgapv1.Presence) string { return enumName(p, "PRESENCE_") }

func roles(rs []stopgapv1.Role) string {
	names := make([]string, len(rs))
	for i, r := range rs {
		names[i] = strings.ToLower(enumName(r, "ROLE_"))
	}
	return strings.Join(names, ",")
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	return t.AsTime().Local().Format(time.DateTime)
}

func short(id string) string { return id[:min(len(id), 12)] }

func countApplied(ctx context.Context, c stopgapv1.FleetServiceClient, id string, rev uint32) (int, error) {
	n := 0
	f := &stopgapv1.OutcomeFilter{MitigationIds: []string{id}, States: outcome.Which(func(m outcome.Meaning) bool { return m.Applied })}
	err := eachOutcome(ctx, c, f, func(r *stopgapv1.OutcomeRecord) {
		if r.GetOutcome().GetRevision() == rev {
			n++
		}
	})
	return n, err
}

func recheck(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "recheck [AGENT]",
		Short: "Ask connected servers (or one) to look at themselves now",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.Recheck(ctx, &stopgapv1.RecheckRequest{Agent: strings.Join(args, "")})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%d connected servers were asked\n", r.GetAsked())
				}
				return err
			})
		},
	}
}
