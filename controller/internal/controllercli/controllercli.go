// Package controllercli is the commands of stopgap-controller.
package controllercli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/logging"
)

// Main runs stopgap-controller.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return clirun.Main(ctx, root(stderr), args, stdout, stderr)
}

const defaultData = "/var/lib/stopgap-controller"

func root(stderr io.Writer) *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:     "stopgap-controller",
		Short:   "Serves a fleet: pushes mitigations to agents and records what they report",
		Version: shared.Version,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.PersistentFlags().StringVar(&data, "data", defaultData, "data directory")
	c.AddCommand(initialise(&data), run(&data, stderr), agentCert(&data), operatorCert(&data))
	return c
}

func initialise(data *string) *cobra.Command {
	var fleet string
	var hosts []string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a data directory: CA, server certificate, the first operator's credentials",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			op, err := controller.Init(*data, fleet, hosts)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "fleet %s initialised in %s\noperator credentials: %s (for `stopgap --credentials`)\nnext: stopgap-controller --data %s run\n", fleet, *data, op, *data)
			return nil
		},
	}
	c.Flags().StringVar(&fleet, "fleet", "default", "name of the fleet: lower-case letters, digits, dashes")
	c.Flags().StringSliceVar(&hosts, "host", []string{"localhost", "127.0.0.1"}, "host names and addresses by which agents and operators reach the controller")
	return c
}

func run(data *string, stderr io.Writer) *cobra.Command {
	cfg := controller.Config{}
	var level, format string
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve the fleet",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logging.New("stopgap-controller", level, format, stderr)
			if err != nil {
				return fmt.Errorf("%w: %w", clirun.ErrUsage, err)
			}
			cfg.DataDir, cfg.Logger = *data, log
			ctl, err := controller.New(cfg)
			if err != nil {
				return err
			}
			return ctl.Run(cmd.Context())
		},
	}
	c.Flags().StringVar(&cfg.Listen, "listen", ":8443", "address for agents and operators")
	c.Flags().DurationVar(&cfg.Heartbeat, "heartbeat", 0, "how often both sides of a stream send a heartbeat (default 15s, at most 19s)")
	c.Flags().IntVar(&cfg.MaxAgents, "max-agents", 0, "limit on connected agents (default 50000)")
	c.Flags().StringVar(&level, "log-level", "info", "trace, debug, info, warn, error, off")
	c.Flags().StringVar(&format, "log-format", "text", "text or json")
	return c
}

func agentCert(data *string) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "agent-cert NAME",
		Short: "Issue a key and certificate for an agent; the id is the key's fingerprint, the name only a label",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = filepath.Join(".", args[0]+"-credentials")
			}
			id, err := controller.IssueAgent(*data, out, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "agent %s (%s): credentials in %s; its agent looks for them in STATE/credentials\n", id, args[0], out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write (default NAME-credentials)")
	return c
}

func operatorCert(data *string) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "operator-cert NAME",
		Short: "Issue a key and certificate for another operator",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = filepath.Join(*data, "operators", args[0])
			}
			if err := controller.IssueOperator(*data, out, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "operator %s: credentials in %s\n", args[0], out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write (default DATA/operators/NAME)")
	return c
}
