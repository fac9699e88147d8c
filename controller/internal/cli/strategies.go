package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/pages"
)

func strategyCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "strategy",
		Short: "The named ways in which a release reaches the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(strategyList(o), strategyShow(o), strategySet(o),
		strategyNamed(o, "default NAME", "Make a strategy the one for what is published from now on",
			func(ctx context.Context, c stopgapv1.FleetServiceClient, name string) error {
				_, err := c.SetDefaultStrategy(ctx, &stopgapv1.SetDefaultStrategyRequest{Name: name})
				return err
			}),
		strategyNamed(o, "delete NAME", "Delete a strategy; rollouts under way keep it",
			func(ctx context.Context, c stopgapv1.FleetServiceClient, name string) error {
				_, err := c.DeleteStrategy(ctx, &stopgapv1.DeleteStrategyRequest{Name: name})
				return err
			}))
	return c
}

func strategyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List strategies; * is the one for what is published",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"NAME", "WAVES", "ON HALT", "ABOUT"}}
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListStrategies(ctx, &stopgapv1.ListStrategiesRequest{PageSize: pages.Size, PageToken: token})
					for _, s := range r.GetStrategies() {
						name := s.GetName()
						if name == r.GetDefaultStrategy() {
							name += " *"
						}
						l.Rows = append(l.Rows, []string{name, fmt.Sprint(len(s.GetWaves())), onHaltText(s.GetOnHalt()), s.GetAbout()})
					}
					if r != nil {
						l.Messages = append(l.Messages, r)
					}
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
}

func strategyShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print a strategy as JSON, to be changed and given to `set`",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.GetStrategy(ctx, &stopgapv1.GetStrategyRequest{Name: args[0]})
				if err != nil {
					return err
				}
				text, err := writeStrategy(r.GetStrategy())
				if err == nil {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
				}
				return err
			})
		},
	}
}

func strategySet(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "set FILE",
		Short: "Store a strategy (JSON; - for standard input)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			const limit = 64 << 10
			data, err := io.ReadAll(io.LimitReader(in, limit+1))
			if err != nil {
				return err
			}
			if len(data) == 0 || len(data) > limit {
				return errors.New("a strategy has 1 byte to 64 KiB")
			}
			s, err := readStrategy(data)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.UpdateStrategy(ctx, &stopgapv1.UpdateStrategyRequest{Strategy: s, AllowMissing: true})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "strategy %s is stored\n", r.GetStrategy().GetName())
				}
				return err
			})
		},
	}
}

func strategyNamed(o *options, use, short string,
	do func(ctx context.Context, c stopgapv1.FleetServiceClient, name string) error,
) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				err := do(ctx, c, args[0])
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "strategy %s: %s done\n", args[0], cmd.Name())
				}
				return err
			})
		},
	}
}
