package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/agent"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bundle"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/logging"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// standalone opens state and host for a command that works while no agent runs.
func standalone(cmd *cobra.Command, o *options, create bool, stderr io.Writer) (*agent.Standalone, error) {
	log, err := logging.New("stopgap-agent", "warn", "text", stderr)
	if err != nil {
		return nil, err
	}
	return agent.OpenStandalone(cmd.Context(), o.state, o.host, create, log)
}

func apply(o *options, stderr io.Writer) *cobra.Command {
	var file, pin string
	format := clirun.Table
	c := &cobra.Command{
		Use:   "apply --bundle FILE",
		Short: "Make this server be as a signed bundle says, once, without service or controller",
		Long: "Verifies a bundle of `stopgap bundle`, applies of each mitigation the newest revision it allows that is for this server, takes\n" +
			"off what it lists no more, and reads it all back. The agent must not run. Carrying the bundle here is its release: no assignment is asked.\n" +
			"Drift is repaired when it is applied again. Exit 1 when something is not as it should be.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := files.Read(file, bundle.MaxBytes)
			if err != nil {
				return err
			}
			s, err := standalone(cmd, o, true, stderr)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			outcomes, health, err := s.ApplyBundle(cmd.Context(), data, pin)
			var refused *tufpolicy.Refusal
			if errors.As(err, &refused) {
				return fmt.Errorf("%s is refused and nothing on the server was changed: %w", file, err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			l := clirun.Listing{Header: []string{"MITIGATION", "REV", "STATE", "SINCE", "REASON"}}
			bad := 0
			for _, x := range outcomes {
				l.Rows = append(l.Rows, []string{x.GetMitigation(), fmt.Sprint(x.GetRevision()), outcome.Name(x.GetState()),
					x.GetObservedAt().AsTime().Local().Format(time.DateTime), x.GetReason()})
				l.Messages = append(l.Messages, proto.Message(x))
				if outcome.Of(x.GetState()).ApplyFails {
					bad++
				}
			}
			if err := l.Print(cmd.OutOrStdout(), format); err != nil {
				return err
			}
			for _, h := range health {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s: %s\n", h.GetCode(), clirun.Printable(h.GetText()))
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d mitigations are not as the bundle wants them; the reasons stand above", bad, len(outcomes))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&file, "bundle", "", "the bundle")
	f.StringVar(&pin, "pin", "", "what `stopgap bundle` printed; needed the first time, and to come by another way than the bundle")
	hostFlag(c, &o.host)
	f.VarP(&format, "output", "o", "table, json, csv or yaml")
	_ = c.MarkFlagRequired("bundle")
	return c
}

func revert(o *options, stderr io.Writer) *cobra.Command {
	var id, reason string
	var block bool
	c := &cobra.Command{
		Use:   "revert --id ID",
		Short: "Take one mitigation off, with agent and controller down",
		Long: "Takes off what the journal knows of one mitigation and reads back that it is gone; nothing else is touched. The agent must\n" +
			"not run (while it does: `block ID`). Without --block the next bundle, or the agent once it runs, puts it back.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := standalone(cmd, o, false, stderr)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			out, health, err := s.Revert(cmd.Context(), id, block, reason)
			for _, h := range health {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s: %s\n", h.GetCode(), clirun.Printable(h.GetText()))
			}
			if err != nil {
				return err
			}
			if out == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is blocked on this server; nothing of it that is ours was in force\n", id)
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is %s: %s\n", id, outcome.Name(out.GetState()), clirun.Printable(out.GetReason()))
			for _, e := range out.GetEvidence() {
				fmt.Fprintf(cmd.OutOrStdout(), "  %s: %s\n", clirun.Printable(e.GetSubject()), clirun.Printable(e.GetFound()))
			}
			if out.GetState() != stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED {
				return fmt.Errorf("%s is not off, see %s", id, filepath.Join(o.state, "UNDO.txt"))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&id, "id", "", "the mitigation")
	f.BoolVar(&block, "block", false, "and never apply it here again, until `unblock`")
	f.StringVar(&reason, "reason", "", "why; shown to the operators")
	hostFlag(c, &o.host)
	_ = c.MarkFlagRequired("id")
	return c
}

func panicRevert(o *options, stderr io.Writer) *cobra.Command {
	c := &cobra.Command{
		Use:   "panic-revert",
		Short: "Take off everything, with agent and controller down, and freeze the agent",
		Long: "Takes off every change the journal knows of, whatever policy says, and freezes the agent so that its next start puts\n" +
			"nothing back (`stopgap-agent enable` thaws it). The agent must not run.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logging.New("stopgap-agent", "warn", "text", stderr)
			if err != nil {
				return err
			}
			done, err := agent.PanicRevert(cmd.Context(), o.state, o.host, log)
			for _, d := range done {
				fmt.Fprintf(cmd.OutOrStdout(), "taken off: %s\n", d)
			}
			if err != nil && len(done) > 0 {
				return fmt.Errorf("not everything could be taken off, see %s: %w", filepath.Join(o.state, "UNDO.txt"), err)
			}
			if err != nil {
				return fmt.Errorf("nothing was taken off: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d actions taken off; the agent, once started, is frozen until `stopgap-agent enable`\n", len(done))
			return nil
		},
	}
	hostFlag(c, &o.host)
	return c
}
