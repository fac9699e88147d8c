// Package cli is the commands of stopgap-agent.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/localapi"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Main runs stopgap-agent.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return clirun.Main(ctx, root(stderr), args, stdout, stderr)
}

// defaultHost is this machine, where it is one that can be looked after.
func defaultHost() string {
	if runtime.GOOS == "windows" {
		return "windows"
	}
	return ""
}

// hostFlag adds --host; it must be given where there is no default.
func hostFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "host", defaultHost(), "server to look after: windows, or lab:DIR")
	if defaultHost() == "" {
		_ = c.MarkFlagRequired("host")
	}
}

type options struct {
	state string
	host  string
}

func root(stderr io.Writer) *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:     "stopgap-agent",
		Short:   "Looks after one Exchange server: applies mitigations, proves them, takes them off again",
		Version: shared.Version,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.PersistentFlags().StringVar(&o.state, "state", defaultState(), "state directory: journal, UNDO.txt, local API")
	c.AddCommand(run(o, stderr), enroll(o), status(o), block(o), unblock(o), freeze(o, "disable", true), freeze(o, "enable", false), apply(o, stderr), revert(o, stderr), panicRevert(o, stderr),
		install(o), uninstall(o, stderr), check(o))
	return c
}

func enroll(o *options) *cobra.Command {
	cfg := agent.EnrollConfig{}
	var tokenFile string
	c := &cobra.Command{
		Use:   "enroll --controller ADDR --token T",
		Short: "Make a key here and exchange a one-time token for a certificate; CA and policy root are checked against the token",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (cfg.Token == "") == (tokenFile == "") {
				return fmt.Errorf("%w: one of --token and --token-file is needed (a token on the command line can be seen by others on this machine)", clirun.ErrUsage)
			}
			if tokenFile != "" {
				data, err := readToken(cmd.InOrStdin(), tokenFile)
				if err != nil {
					return err
				}
				cfg.Token = data
			}
			cfg.StateDir = o.state
			id, err := agent.Enroll(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "enrolled as agent %s; next: stopgap-agent --state %s run --controller %s --host ...\n", id, o.state, cfg.Controller)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Controller, "controller", "", "controller address, host:port")
	f.StringVar(&cfg.ServerName, "server-name", "", "name in the controller's certificate, if it is not that of the address")
	f.StringVar(&cfg.Token, "token", "", "the token of `stopgap token create`")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the token; - for standard input")
	f.StringVar(&cfg.Host, "host", defaultHost(), "server to look after: windows, or lab:DIR; its machine id is bound to the identity")
	f.StringVar(&cfg.Name, "name", "", "label for people (default: the server's host name)")
	f.BoolVar(&cfg.Again, "again", false, "replace the identity that is there, with a token of `stopgap agents reenroll`; journal, root and version floors stay")
	f.BoolVar(&cfg.NewRoot, "new-root", false, "trust the token's policy root instead of the one held: for a fleet whose root keys were lost")
	_ = c.MarkFlagRequired("controller")
	return c
}

const maxToken = 4 << 10

func readToken(stdin io.Reader, name string) (string, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxToken))
	return strings.TrimSpace(string(data)), err
}

// callTimeout bounds a local call; a block reverts before it answers.
const callTimeout = time.Minute

// with calls the agent, or, while none runs, what answers from its journal.
func with(cmd *cobra.Command, o *options, f func(ctx context.Context, c stopgapv1.LocalServiceClient) error) error {
	call := func(ctx context.Context) error {
		client, closeConn, err := localapi.Dial(o.state)
		if err != nil {
			return err
		}
		defer func() { _ = closeConn() }()
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return f(ctx, client)
	}
	err := call(cmd.Context())
	if err == nil || !strings.Contains(err.Error(), localapi.ErrNoAgent.Error()) {
		return err
	}
	if _, serr := os.Stat(filepath.Join(o.state, journal.File)); serr != nil {
		return err
	}
	s, serr := agent.OpenStored(o.state, hclog.NewNullLogger())
	if errors.Is(serr, journal.ErrLocked) {
		return fmt.Errorf("no agent answers, and another process has its journal (an agent that starts or stops, or another command): try again in a moment: %w", serr)
	}
	if serr != nil {
		return fmt.Errorf("%w; and its journal can't be used: %w", err, serr)
	}
	defer func() { _ = s.Close() }()
	if cmd.Name() != "status" {
		fmt.Fprintln(cmd.ErrOrStderr(), "no agent runs: this is kept in its journal, for its next start or the next `apply`; nothing on the server was touched (`revert --id` takes off now)")
	}
	return s.Serve(cmd.Context(), call)
}

func status(o *options) *cobra.Command {
	format := clirun.Table
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent knows: connection, policy, every mitigation with its reason",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return with(cmd, o, func(ctx context.Context, lc stopgapv1.LocalServiceClient) error {
				s, err := lc.Status(ctx, &stopgapv1.StatusRequest{})
				if err != nil {
					return err
				}
				return printStatus(cmd.OutOrStdout(), s, format)
			})
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, json, csv or yaml")
	return c
}

func printStatus(w io.Writer, s *stopgapv1.StatusResponse, f clirun.Format) error {
	l := clirun.Listing{Header: []string{"MITIGATION", "REV", "STATE", "SINCE", "REASON"}, Messages: []proto.Message{s}}
	for _, x := range s.GetOutcomes() {
		l.Rows = append(l.Rows, []string{x.GetMitigation(), fmt.Sprint(x.GetRevision()), outcome.Name(x.GetState()),
			x.GetObservedAt().AsTime().Local().Format(time.DateTime), x.GetReason()})
	}
	if f != clirun.Table {
		return l.Print(w, f)
	}
	if s.GetStored() {
		fmt.Fprintln(w, "NOT RUNNING this is what the agent's journal holds; the server was not looked at")
	}
	connection := "connected to " + s.GetController()
	if s.GetStored() {
		connection = "no agent runs"
	} else if !s.GetConnected() {
		connection = "no stream to " + s.GetController()
		if s.GetLastContact() != nil {
			connection += ", last heard " + s.GetLastContact().AsTime().Local().Format(time.DateTime)
		}
		if s.GetLastError() != "" {
			connection += ": " + s.GetLastError()
		}
	}
	pol := "none yet"
	if s.GetPolicyVersion() > 0 {
		pol = fmt.Sprintf("version %d, confirmed %s, valid until %s, by root %d", s.GetPolicyVersion(), s.GetPolicyAcceptedAt().AsTime().Local().Format(time.DateTime),
			s.GetPolicyExpires().AsTime().Local().Format(time.DateTime), s.GetRootVersion()) + "; source: " + s.GetPolicySource()
	} else if s.GetRootVersion() == 0 {
		pol = "none, and no policy root is trusted: enrol (again), or apply a bundle"
	}
	if !s.GetStored() {
		f1 := s.GetFacts()
		fmt.Fprintf(w, "agent       %s (%s), version %s\nserver      Exchange %s, organisation %s, URL Rewrite %s\n",
			clirun.Printable(s.GetName()), s.GetAgentId(), s.GetAgentVersion(), orUnknown(f1.GetExchangeBuild()), orUnknown(f1.GetOrganisation()),
			orUnknown(f1.GetUrlRewrite()))
	}
	fmt.Fprintf(w, "controller  %s\npolicy      %s\nto report   %d outcomes\nundo        %s\n", clirun.Printable(connection), pol, s.GetOutbox(), s.GetUndoFile())
	if s.GetFrozen() {
		fmt.Fprintln(w, "FROZEN      nothing is applied, repaired or reverted until `stopgap-agent enable`")
	}
	for _, b := range s.GetBlocks() {
		fmt.Fprintf(w, "blocked     %s since %s %s\n", b.GetMitigation(), b.GetSince().AsTime().Local().Format(time.DateTime), clirun.Printable(b.GetReason()))
	}
	for _, h := range s.GetHealth() {
		fmt.Fprintf(w, "warning     %s: %s\n", h.GetCode(), clirun.Printable(h.GetText()))
	}
	if len(l.Rows) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return l.Print(w, f)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return clirun.Printable(s)
}

func tell(w io.Writer, id, did string, x *stopgapv1.Outcome) {
	if x == nil {
		fmt.Fprintf(w, "%s %s; it is not in this server's policy at present\n", id, did)
		return
	}
	fmt.Fprintf(w, "%s %s; now %s: %s\n", id, did, outcome.Name(x.GetState()), clirun.Printable(x.GetReason()))
}

func block(o *options) *cobra.Command {
	var keep bool
	var reason string
	c := &cobra.Command{
		Use:   "block ID",
		Short: "Never apply a mitigation on this server, and take it off now if it is applied",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, o, func(ctx context.Context, lc stopgapv1.LocalServiceClient) error {
				r, err := lc.Block(ctx, &stopgapv1.BlockRequest{Mitigation: args[0], Keep: keep, Reason: reason})
				if err == nil {
					tell(cmd.OutOrStdout(), args[0], "is blocked on this server", r.GetOutcome())
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave it in place if it is applied")
	c.Flags().StringVar(&reason, "reason", "", "why; shown to the operators")
	return c
}

func unblock(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "unblock ID",
		Short: "Take a block away",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, o, func(ctx context.Context, lc stopgapv1.LocalServiceClient) error {
				r, err := lc.Unblock(ctx, &stopgapv1.UnblockRequest{Mitigation: args[0]})
				if err == nil {
					tell(cmd.OutOrStdout(), args[0], "is not blocked any more", r.GetOutcome())
				}
				return err
			})
		},
	}
}

func freeze(o *options, use string, frozen bool) *cobra.Command {
	short := "Let the agent work again"
	if frozen {
		short = "Freeze the agent: nothing is applied, repaired or reverted; what is in force stays"
	}
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return with(cmd, o, func(ctx context.Context, lc stopgapv1.LocalServiceClient) error {
				r, err := lc.SetFrozen(ctx, &stopgapv1.SetFrozenRequest{Frozen: frozen})
				if err != nil {
					return err
				}
				in := "nothing is in force"
				if len(r.GetInForce()) > 0 {
					in = "in force: " + strings.Join(r.GetInForce(), ", ")
				}
				word := "works again"
				if r.GetFrozen() {
					word = "is frozen"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "the agent %s; %s\n", word, in)
				return nil
			})
		},
	}
}
