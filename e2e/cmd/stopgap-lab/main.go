// Command stopgap-lab makes and serves lab servers, for people who want to try Stopgap without Windows.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
)

func main() {
	os.Exit(clirun.Main(context.Background(), root(os.Stdout), os.Args[1:], os.Stdout, os.Stderr))
}

func root(w io.Writer) *cobra.Command {
	c := &cobra.Command{
		Use: "stopgap-lab", Short: "Makes and serves lab servers: directories that look like Exchange servers", Version: shared.Version, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var spec lab.Spec
	var template string
	mk := &cobra.Command{Use: "make DIR", Short: "Write a lab server into a directory", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			spec.Template = lab.Template(template)
			return lab.Make(args[0], spec)
		}}
	mk.Flags().StringVar(&template, "template", string(lab.ExchangeSE), strings.Join(lab.Names(), ", "))
	mk.Flags().StringVar(&spec.Host, "name", "LAB01", "host name")
	mk.Flags().StringVar(&spec.Organisation, "organisation", "Contoso", "Exchange organisation")
	mk.Flags().StringVar(&spec.Build, "build", "", "build of ExSetup.exe (default: the template's)")
	mk.Flags().BoolVar(&spec.Edge, "edge", false, "an Edge Transport server: no IIS")
	var addr string
	serve := &cobra.Command{Use: "serve DIR", Short: "Serve a lab server's front end until interrupted", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := lab.Serve(args[0], addr)
			if err != nil {
				return err
			}
			fmt.Fprintln(w, s.URL())
			lab.HealthManager(cmd.Context(), args[0], time.Second)
			return s.Close()
		}}
	serve.Flags().StringVar(&addr, "listen", "127.0.0.1:8080", "address")
	up := &cobra.Command{Use: "update DIR BUILD", Short: "Play the installation of a security update", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return lab.InstallUpdate(args[0], args[1], false, nil) }}
	c.AddCommand(mk, serve, up)
	return c
}
