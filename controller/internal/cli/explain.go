package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/iisconfig/composition"
)

// explainFlags are the flags of `stopgap rewrite explain`.
type explainFlags struct {
	config, headers              []string
	site, path, request, vectors string
}

func rewriteExplain(o *options) *cobra.Command {
	var f explainFlags
	c := &cobra.Command{
		Use:   "explain --config DIR|FILE... [--path /owa] [--request \"GET /owa/?x=1\" [--header \"Cookie: a=b\"]...]",
		Short: "Say which rewrite rules are in effect at a path, where each comes from, and which of them decides a request",
		Long: `Say which rewrite rules are in effect at a path, where each comes from, and which of them decides a request. It reads copies of
configuration files, and changes nothing.

--config is one of these:
  DIR                        a lab server, or a copy of a server's disk: C:\inetpub\wwwroot is DIR/C/inetpub/wwwroot
  DIR                        a directory with an applicationHost.config in it; the directories that it names are below DIR/C
  applicationHost.config     the file alone
  URLPATH=FILE               the web.config of that URL path; it replaces the one of DIR. "Site name/owa=FILE" names the site too

With an applicationHost.config alone, a web.config that is not given is taken to be absent, and the output says so.

Without --path and --request, the output is one line for each application of the front-end sites: how many rules are in effect, or
why IIS refuses the application.

Where Microsoft's documents leave open how IIS reads something, a request is evaluated under each reading. The output tells them apart
only if they lead to different results.

With --vectors, it answers the questions of a vectors file instead: one JSON object for each.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, o.format) },
	}
	fs := c.Flags()
	fs.StringArrayVar(&f.config, "config", nil, "directory, applicationHost.config, or URLPATH=FILE; can be repeated")
	fs.StringVar(&f.site, "site", "", "name of the site (default: the site of Exchange's front end)")
	fs.StringVar(&f.path, "path", "", "URL path, such as /owa")
	fs.StringVar(&f.request, "request", "", "request, such as \"GET /owa/?x=1\"")
	fs.StringArrayVar(&f.headers, "header", nil, "header of the request, \"Name: value\"; can be repeated")
	fs.StringVar(&f.vectors, "vectors", "", "composition vectors (JSON); - for standard input")
	return c
}

func (f explainFlags) run(cmd *cobra.Command, format clirun.Format) error {
	if f.vectors != "" {
		if len(f.config) > 0 || f.path != "" || f.request != "" {
			return fmt.Errorf("%w: --vectors stands alone", clirun.ErrUsage)
		}
		return explainVectors(cmd, f.vectors)
	}
	switch {
	case len(f.config) == 0:
		return fmt.Errorf("%w: --config is needed", clirun.ErrUsage)
	case format != clirun.Table && format != clirun.JSON:
		return fmt.Errorf("%w: explain prints -o table or -o json", clirun.ErrUsage)
	case f.request == "" && len(f.headers) > 0:
		return fmt.Errorf("%w: --header needs --request", clirun.ErrUsage)
	}
	var req *explainedRequest
	if f.request != "" {
		var err error
		if req, err = parseRequest(f.request, f.headers); err != nil {
			return fmt.Errorf("%w: %w", clirun.ErrUsage, err)
		}
	}
	cfg, err := openConfig(f.config, f.site)
	if err != nil {
		return err
	}
	r, err := cfg.report(f, req)
	if err != nil {
		return err
	}
	if format == clirun.JSON {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	return r.print(cmd.OutOrStdout())
}

// explainVectors answers the questions of a composition vectors file.
func explainVectors(cmd *cobra.Command, name string) error {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	file, err := composition.Read(in)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	out := json.NewEncoder(cmd.OutOrStdout())
	out.SetEscapeHTML(false)
	for _, v := range file.Vectors {
		for _, a := range file.Evaluate(v) {
			if err := out.Encode(a); err != nil {
				return err
			}
		}
	}
	return nil
}

var errRequest = errors.New(`a request is "METHOD /path?query", a header is "Name: value"`)

// parseHeader reads "Name: value".
func parseHeader(s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, ":")
	if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
		return "", "", fmt.Errorf("--header %q: %w", s, errRequest)
	}
	return name, strings.TrimSpace(value), nil
}
