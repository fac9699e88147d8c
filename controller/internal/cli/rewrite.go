package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/urlrewrite/vector"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

func rewrite(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "rewrite",
		Short: "Evaluate and check IIS URL Rewrite configuration; no controller needed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(rewriteEval(), rewriteCheck(), rewriteExplain(o))
	return c
}

func rewriteEval() *cobra.Command {
	var config, vectors string
	c := &cobra.Command{
		Use:   "eval --vectors FILE [--config FILE]",
		Short: "Say what a configuration does to requests and responses: one JSON object for each vector",
		Long: `Say what a configuration does to requests and responses: one JSON object for each vector.

A vector has a phase (inbound, outbound or config), a configuration (config_xml, or levels from parent to child), the scope that the
configuration is for (server, site or a path such as /owa), a request and, for outbound, a response. Rules run only for requests below
their scope. A level sees the rewrite maps, preconditions and custom tags of the levels above it.

The action in the answer is none, rewrite, redirect, custom_response or abort, or one of these:
  config_error   IIS refuses the configuration and answers 500 (substatus 19) to every request below that place
  runtime_error  a rule can't be carried out for this request; IIS answers 500 (substatus 50 inbound, 52 outbound, 53 outbound before
                 the cache). Examples: a rule sets a server variable that is not allowed, or rewrites the body of a compressed response
  error          no answer: the vector is incomplete, or its input is over a limit of this command

request_headers are all headers of the request after the inbound rules, with lower-case names.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var xml []byte
			if config != "" {
				var err error
				if xml, err = files.Read(config, xmldoc.MaxBytes); err != nil {
					return err
				}
			}
			in := cmd.InOrStdin()
			if vectors != "-" {
				f, err := os.Open(vectors)
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			list, err := vector.Read(in)
			if err != nil {
				return fmt.Errorf("%s: %w", vectors, err)
			}
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetEscapeHTML(false)
			for _, v := range list {
				if err := out.Encode(vector.Evaluate(v, xml)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&config, "config", "", "configuration for vectors that carry none: a whole file, or a <rewrite> fragment")
	c.Flags().StringVar(&vectors, "vectors", "", "vectors file (JSON); - for standard input")
	_ = c.MarkFlagRequired("vectors")
	return c
}

func rewriteCheck() *cobra.Command {
	var as string
	c := &cobra.Command{
		Use:   "check FILE...",
		Short: "Say whether IIS accepts the rewrite sections of configuration files or bare <rewrite> fragments; if not, why, with line and column",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bad := 0
			for _, name := range args {
				kind := urlrewrite.KindOf(name)
				if as != "" {
					var err error
					if kind, err = urlrewrite.ParseKind(as); err != nil {
						return fmt.Errorf("%w: --as: %w", clirun.ErrUsage, err)
					}
				}
				data, err := files.Read(name, xmldoc.MaxBytes)
				if err != nil {
					return err
				}
				err = tooLarge(data, kind)
				if err == nil {
					_, err = urlrewrite.ParseConfig(data, kind)
				}
				if err != nil {
					bad++
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, clirun.Printable(place(err)))
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: fine\n", name)
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d would be refused by IIS (500.19)", bad, len(args))
			}
			return nil
		},
	}
	c.Flags().StringVar(&as, "as", "", "applicationHost.config or web.config (default: by the file's name, else applicationHost.config)")
	return c
}

// tooLarge refuses a web.config that IIS does not read because of its size.
func tooLarge(data []byte, kind urlrewrite.Kind) error {
	if kind != urlrewrite.WebConfig || len(data) <= iisconfig.DefaultMaxBytes {
		return nil
	}
	return &xmldoc.SyntaxError{Line: 1, Col: 1, Msg: fmt.Sprintf("more than %d bytes (250 KB): IIS reads no larger web.config, "+
		"unless MaxWebConfigFileSizeInKB in the registry says otherwise", iisconfig.DefaultMaxBytes)}
}

// place puts line and column in front, as compilers do.
func place(err error) string {
	var se *xmldoc.SyntaxError
	if errors.As(err, &se) {
		return fmt.Sprintf("%d:%d: %s", se.Line, se.Col, se.Msg)
	}
	return err.Error()
}
