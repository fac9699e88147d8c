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
	"github.com/stopgap-em/stopgap/shared/trust"
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
	var keys controller.Keys
	f := c.PersistentFlags()
	f.StringVar(&keys.CA, "ca-key", "", "file of the CA's private key (default DATA/ca/ca-key.pem)")
	f.StringVar(&keys.Snapshot, "snapshot-key", "", "file of the snapshot key (default DATA/online/snapshot.pem)")
	f.StringVar(&keys.Timestamp, "timestamp-key", "", "file of the timestamp key (default DATA/online/timestamp.pem)")
	c.AddCommand(initialise(&data), run(&data, &keys, stderr), operatorCert(&data, &keys), ca(&data, &keys), onlineKeys(&data))
	return c
}

func initialise(data *string) *cobra.Command {
	var fleet string
	var hosts []string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a data directory: CA, server certificate, online keys, the first admin's credentials",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			op, err := controller.Init(*data, fleet, hosts)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "fleet %s initialised in %s\nadmin credentials: %s (for `stopgap --credentials`)\nfor `stopgap policy init --online`: %s\nnext: stopgap-controller --data %s run\n",
				fleet, *data, op, controller.OnlinePublic(*data), *data)
			return nil
		},
	}
	c.Flags().StringVar(&fleet, "fleet", "default", "name of the fleet: lower-case letters, digits, dashes")
	c.Flags().StringSliceVar(&hosts, "host", []string{"localhost", "127.0.0.1"}, "host names and addresses by which agents and operators reach the controller")
	return c
}

func run(data *string, keys *controller.Keys, stderr io.Writer) *cobra.Command {
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
			cfg.DataDir, cfg.Keys, cfg.Logger = *data, *keys, log
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
	c.Flags().DurationVar(&cfg.AgentCertificateLife, "agent-certificate-life", 0, "how long an agent's certificate is good (default 168h); agents renew at half of it")
	c.Flags().StringVar(&level, "log-level", "info", "trace, debug, info, warn, error, off")
	c.Flags().StringVar(&format, "log-format", "text", "text or json")
	return c
}

func operatorCert(data *string, keys *controller.Keys) *cobra.Command {
	var out, role string
	c := &cobra.Command{
		Use:   "operator-cert NAME",
		Short: "Issue a key and certificate for another person: viewer (reads), operator (acts on the fleet), admin (decides who belongs to it)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = filepath.Join(*data, "operators", args[0])
			}
			if err := controller.IssueOperator(*data, out, args[0], trust.Kind(role), *keys); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s: credentials in %s\n", role, args[0], out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write (default DATA/operators/NAME)")
	c.Flags().StringVar(&role, "role", string(trust.KindOperator), "viewer, operator or admin")
	return c
}

func ca(data *string, keys *controller.Keys) *cobra.Command {
	c := &cobra.Command{
		Use:   "ca",
		Short: "Replace the certificate authority, with the controller stopped",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var force bool
	finish := &cobra.Command{
		Use:   "finish",
		Short: "Drop the old CA: once every agent has a certificate of the new one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := controller.FinishCARotation(cmd.Context(), *data, *keys, force); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the old CA is gone; the server and the people in %s have new certificates: copy theirs to them again\n", filepath.Join(*data, "operators"))
			return nil
		},
	}
	finish.Flags().BoolVar(&force, "force", false, "though agents still have a certificate of the old one and will have to enrol again")
	c.AddCommand(finish, &cobra.Command{
		Use:   "rotate",
		Short: "Make a new CA, which issues from then on; the old one stays good until `ca finish`",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := controller.BeginCARotation(*data, *keys); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "a new CA issues from now on, the old one stays good; start the controller: agents renew at half of their certificate's life, 3.5 days by default; then `ca finish`")
			return nil
		},
	})
	return c
}

func onlineKeys(data *string) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "online-keys",
		Short: "Make new keys for snapshot and timestamp, after the old ones were stolen or lost; `stopgap policy rotate-root --online` then names them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return fmt.Errorf("%w: --out is needed", clirun.ErrUsage)
			}
			if err := controller.NewOnlineKeys(out); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "new online keys in %s; carry public.json to where policy is signed; when the new root is signed, stop the controller, put them in place of %s, start it and publish\n",
				out, filepath.Join(*data, "online"))
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write")
	return c
}
