package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/pages"
)

type file struct {
	name string
	data []byte
}

// readFiles reads files, bounded; names of the built-in catalogue, or all of it, may stand among them.
func readFiles(args []string) ([]file, error) {
	built, err := mitigation.Catalogue()
	if err != nil {
		return nil, err
	}
	var out []file
	for _, a := range args {
		found := false
		if _, err := os.Stat(a); err != nil {
			for _, b := range built {
				if a == "catalogue" || a == strings.TrimSuffix(b.Name, ".yaml") {
					out = append(out, file{b.Name, b.Content})
					found = true
				}
			}
		}
		if found {
			continue
		}
		data, err := files.Read(a, mitigation.MaxBytes)
		if err != nil {
			return nil, err
		}
		out = append(out, file{filepath.Base(a), data})
	}
	return out, nil
}

// lintFiles checks files and gives every problem.
func lintFiles(files []file) error {
	var all mitigation.Problems
	for _, f := range files {
		var err error
		if mitigation.IsFixedBuilds(f.data) {
			_, err = mitigation.ParseFixedBuilds(f.name, f.data)
		} else {
			_, err = mitigation.Parse(f.name, f.data)
		}
		var ps mitigation.Problems
		if errors.As(err, &ps) {
			all = append(all, ps...)
		} else if err != nil {
			return err
		}
	}
	if len(all) > 0 {
		return all
	}
	return nil
}

func mitigations(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "mitigation",
		Short: "Check, show and list mitigation documents",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(lint(), show(), list(o))
	return c
}

func lint() *cobra.Command {
	return &cobra.Command{
		Use:   "lint FILE...",
		Short: "Check mitigation documents and fixed-builds tables, and what their rules would do on a standard Exchange server; no controller needed",
		Long: `Checks mitigation documents and fixed-builds tables; names of the built-in catalogue, or "catalogue", may stand among the files.

A document that can't be read is refused, with line and column. Of one that can, lint evaluates the rules on the model of a
standard Exchange server, with the document's effect probes, the published attack requests for its CVEs, and requests that
clients send every day.

An error is a document that does harm, or nothing: it stops legitimate requests, sets a server variable that is not allowed,
has a rule that can never match where it is, or stops none of the attack requests of a CVE, or not its own effect probe. The
exit status is then 1. A warning is for the reviewer; the exit status stays 0.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := readFiles(args)
			if err != nil {
				return err
			}
			if err := lintFiles(files); err != nil {
				return err
			}
			var bad []string
			for _, f := range files {
				if mitigation.IsFixedBuilds(f.data) {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: fine\n", f.name)
					continue
				}
				d, err := mitigation.Parse(f.name, f.data)
				if err != nil {
					return err
				}
				found := mitigation.Lint(d)
				for _, w := range found {
					w.File = f.name
					fmt.Fprintln(cmd.ErrOrStderr(), clirun.Printable(w.String()))
				}
				if len(mitigation.Severe(found)) > 0 {
					bad = append(bad, f.name)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: fine: %s\n", f.name, d.Ref())
			}
			if len(bad) > 0 {
				return fmt.Errorf("not to be signed as written: %s", strings.Join(bad, ", "))
			}
			return nil
		},
	}
}

func show() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Print a document of the built-in catalogue (or fixed-builds); no controller needed",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			built, err := mitigation.Catalogue()
			if err != nil {
				return err
			}
			var names []string
			for _, b := range built {
				n := strings.TrimSuffix(b.Name, ".yaml")
				if strings.EqualFold(n, args[0]) {
					_, err := cmd.OutOrStdout().Write(b.Content)
					return err
				}
				names = append(names, n)
			}
			if why, ok := mitigation.OutOfScope[strings.ToUpper(args[0])]; ok {
				return fmt.Errorf("%s is out of scope: %s", args[0], why)
			}
			return fmt.Errorf("no %q in the catalogue; there are %s", args[0], strings.Join(names, ", "))
		},
	}
}

func list(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List what is in policy with how many servers are in which state; without a controller, the built-in catalogue",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.controller == "" {
				return listCatalogue(cmd.OutOrStdout(), o.format)
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				l := clirun.Listing{Header: []string{"MITIGATION", "SEVERITY", "IN FORCE", "SERVERS", "TITLE"}}
				var policy *stopgapv1.PolicyInfo
				err := pages.Each(func(token string) (string, error) {
					r, err := c.ListMitigations(ctx, &stopgapv1.ListMitigationsRequest{PageSize: pages.Size, PageToken: token})
					for _, m := range r.GetMitigations() {
						d := m.GetMitigation()
						l.Messages = append(l.Messages, m)
						l.Rows = append(l.Rows, []string{mitigation.Ref(d.GetId(), d.GetRevision()), severity(d), releaseText(m), counts(m.GetCounts()),
							d.GetTitle()})
					}
					policy = r.GetPolicy()
					return r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				if o.format == clirun.Table {
					fmt.Fprintf(cmd.OutOrStdout(), "policy version %d, valid until %s; root %d, valid until %s; fixed-builds revision %d\n",
						policy.GetPolicyVersion(), when(policy.GetTargetsExpireAt()), policy.GetRootVersion(), when(policy.GetRootExpiresAt()),
						policy.GetFixedBuildsRevision())
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
}

// releaseText says whether a revision is in force.
func releaseText(m *stopgapv1.MitigationSummary) string {
	switch m.GetRelease() {
	case stopgapv1.Release_RELEASE_UNSPECIFIED, stopgapv1.Release_RELEASE_RELEASED:
		if m.GetAssigned() {
			return "released"
		}
		return "superseded"
	default:
		return strings.ToLower(enumName(m.GetRelease(), "RELEASE_")) + ": " + m.GetReleaseReason()
	}
}

// counts is how many servers are in which state, the worst first.
func counts(in []*stopgapv1.StateCount) string {
	in = slices.SortedFunc(slices.Values(in), func(a, b *stopgapv1.StateCount) int { return outcome.Compare(a.GetState(), b.GetState()) })
	var out []string
	for _, x := range in {
		out = append(out, fmt.Sprintf("%d %s", x.GetCount(), outcome.Name(x.GetState())))
	}
	return strings.Join(out, ", ")
}

func severity(m *stopgapv1.Mitigation) string {
	return enumName(m.GetSeverity(), "SEVERITY_")
}

func listCatalogue(w io.Writer, f clirun.Format) error {
	built, err := mitigation.Catalogue()
	if err != nil {
		return err
	}
	l := clirun.Listing{Header: []string{"MITIGATION", "SEVERITY", "CVES", "TITLE"}}
	for _, b := range built {
		if mitigation.IsFixedBuilds(b.Content) {
			continue
		}
		d, err := mitigation.Parse(b.Name, b.Content)
		if err != nil {
			return err
		}
		l.Messages = append(l.Messages, proto.Message(d.Mitigation))
		l.Rows = append(l.Rows, []string{d.Ref(), severity(d.Mitigation), strings.Join(d.GetCves(), " "), d.GetTitle()})
	}
	if f != clirun.Table {
		return l.Print(w, f)
	}
	if err := l.Print(w, f); err != nil {
		return err
	}
	for cve, why := range mitigation.OutOfScope {
		fmt.Fprintf(w, "out of scope: %s: %s\n", cve, why)
	}
	return nil
}
