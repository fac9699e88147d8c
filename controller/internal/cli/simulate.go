package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stopgap-em/stopgap/controller/internal/simulate"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

const topLines = 10

const simulateHelp = `MITIGATION is a file, or a name of the catalogue. Only inbound rules are judged: logs hold no response headers.

--iis-logs reads the logs of the front-end site (inetpub\logs\LogFiles\W3SVC<id>; the id is in applicationHost.config): W3C extended
logs and those of IIS Advanced Logging, also packed with gzip, in UTF-8 or UTF-16. What can't be read, a damaged archive, a directory or
a line, is named, and the report covers the rest.

Exchange appends text to cs-uri-query (&CorrelationID=<..>;, &cafeReqId=, &ActID=, &encoding=;, SoapAction=...; and more, also with
blanks). A client can send parameters of these names, and a log does not say which it was. Every such query is judged with and without
that text; a request that is blocked only one way counts as blocked, and is shown apart as depending on appended text.

The client is the first name in X-Forwarded-For, where that is logged. Requests without a verdict are counted apart, by reason: the log
lacks a field, a pattern exceeds its budget, a value is too long, or IIS would answer 500.50. A rule whose <match> matches no request
for its own path is reported as doing nothing.

--requests reads a JSON file:

  {"exploit":    [{"id": "x1", "cve": "CVE-2022-41040", "path_and_query": "/autodiscover/autodiscover.json?@a.example/powershell"}],
   "legitimate": [{"id": "l1", "method": "POST", "path_and_query": "/EWS/Exchange.asmx", "headers": {"User-Agent": "Outlook"}}]}

Keys of a request: id, cve, method (GET), scheme (https), host, path_and_query (as the client sends it; must be there), headers. An
exploit without a cve counts for every mitigation, one of another CVE for none. Notes for people may be in: notes, source. Keys that are
not known are refused. The exit status is 1 when an exploit is missed, a legitimate request is blocked or changed, or there is no verdict.`

func simulation(o *options) *cobra.Command {
	var logs, requests string
	c := &cobra.Command{
		Use:   "simulate MITIGATION",
		Short: "Say what a mitigation would have done to the requests of the past, from IIS logs; no controller needed",
		Long:  simulateHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (logs == "") == (requests == "") {
				return fmt.Errorf("%w: one of --iis-logs and --requests is needed", clirun.ErrUsage)
			}
			files, err := readFiles(args)
			if err != nil {
				return err
			}
			if len(files) != 1 {
				return fmt.Errorf("%w: one mitigation at a time", clirun.ErrUsage)
			}
			d, err := mitigation.Parse(files[0].name, files[0].data)
			if err != nil {
				return err
			}
			s, err := simulate.New(d)
			if err != nil {
				return fmt.Errorf("%s: %w", d.Ref(), err)
			}
			if s.Outbound {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s also has outbound rules, which logs say nothing about\n", d.Ref())
			}
			if requests != "" {
				return samples(cmd.OutOrStdout(), o.format, s, requests, d.GetCves())
			}
			return overLogs(cmd.Context(), cmd.OutOrStdout(), o.format, s, logs)
		},
	}
	c.Flags().StringVar(&logs, "iis-logs", "", "pattern of IIS log files, .gz too (quote it)")
	c.Flags().StringVar(&requests, "requests", "", "JSON file of exploit and legitimate requests (its format is above)")
	return c
}

func samples(w io.Writer, f clirun.Format, s *simulate.Simulation, name string, cves []string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	all, err := simulate.ReadSamples(in)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	score := s.Samples(all, cves)
	if f == clirun.JSON {
		if err := json.NewEncoder(w).Encode(score); err != nil {
			return err
		}
	} else {
		printScore(w, score)
	}
	if !score.Good() {
		return fmt.Errorf("%s: %d exploits missed, %d false positives, %d samples without a verdict",
			name, len(score.Missed), len(score.FalsePositives), len(score.NoVerdict))
	}
	return nil
}

func printScore(w io.Writer, score simulate.Score) {
	for _, x := range []struct {
		what string
		ids  []string
	}{{"caught", score.Caught}, {"MISSED", score.Missed}, {"FALSE POSITIVES", score.FalsePositives}, {"NO VERDICT", score.NoVerdict},
		{"exploits of other CVEs also blocked", score.Others}} {
		fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("%s: %d %s", x.what, len(x.ids), clirun.Printable(strings.Join(x.ids, " ")))))
	}
	fmt.Fprintf(w, "legitimate requests tried: %d\n", score.Legitimate)
	if score.NotCounted > 0 {
		fmt.Fprintf(w, "exploits of other CVEs, which do not count: %d\n", score.NotCounted)
	}
	if len(score.Caught)+len(score.Missed)+len(score.NoVerdict) == 0 {
		fmt.Fprintln(w, "no exploit was tried: the file has none of this mitigation's CVEs, and none without a CVE")
	}
}

func overLogs(ctx context.Context, w io.Writer, f clirun.Format, s *simulate.Simulation, pattern string) error {
	files, problems, err := simulate.Files(pattern)
	if err != nil {
		return fmt.Errorf("%w: --iis-logs: %w", clirun.ErrUsage, err)
	}
	if len(files) == 0 {
		if len(problems) > 0 {
			return fmt.Errorf("no file matches %s; %s: %s", pattern, problems[0].File, problems[0].What)
		}
		return fmt.Errorf("no file matches %s", pattern)
	}
	began := time.Now()
	report, err := s.Logs(ctx, files, bar())
	if err != nil {
		return err
	}
	for _, p := range problems {
		report.Lose(p.File, p.What)
	}
	if report.Requests == 0 {
		return nothingRead(pattern, report)
	}
	if f == clirun.JSON {
		return json.NewEncoder(w).Encode(report)
	}
	took := time.Since(began).Seconds()
	fmt.Fprintf(w, "%d requests of %d files in %.1f s (%.0f a second); %d lines were no requests\n",
		report.Requests, report.Files, took, float64(report.Requests)/took, report.Unreadable)
	printProblems(w, report)
	for _, r := range report.Rules {
		printRule(w, r, report.Requests)
	}
	return nil
}

// nothingRead says what was wrong with the first files.
func nothingRead(pattern string, r *simulate.Report) error {
	const most = 3
	var why []string
	for _, p := range r.Unread[:min(len(r.Unread), most)] {
		why = append(why, p.File+": "+p.What)
	}
	for _, p := range r.DamagedLines[:min(len(r.DamagedLines), most-len(why))] {
		why = append(why, fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.What))
	}
	if len(why) == 0 {
		why = append(why, "there are no lines in them")
	}
	return fmt.Errorf("%s: no request was read (%d lines were none): %s", pattern, r.Unreadable, clirun.Printable(strings.Join(why, "; ")))
}

// printProblems names what is not in the report.
func printProblems(w io.Writer, r *simulate.Report) {
	for _, p := range r.Unread {
		fmt.Fprintf(w, "not read, in whole or in part: %s: %s\n", clirun.Printable(p.File), clirun.Printable(p.What))
	}
	if more := r.DamagedFiles - int64(len(r.Unread)); more > 0 {
		fmt.Fprintf(w, "not read, in whole or in part: %d more\n", more)
	}
	for _, p := range r.DamagedLines {
		fmt.Fprintf(w, "no request: %s:%d: %s\n", clirun.Printable(p.File), p.Line, clirun.Printable(p.What))
	}
	if more := r.Unreadable - int64(len(r.DamagedLines)); more > 0 {
		fmt.Fprintf(w, "no request: %d more lines\n", more)
	}
}

func printRule(w io.Writer, r *simulate.RuleReport, requests int64) {
	fmt.Fprintf(w, "\n%s at %s\n  %s\n", clirun.Printable(r.Rule), r.Path, r.Verdict(requests))
	for _, t := range []struct {
		name  string
		tally simulate.Tally
	}{{"endpoint", r.Endpoints}, {"user agent", r.Agents}, {"client network", r.Networks}, {"URL", r.URLs}} {
		for _, c := range t.tally.Top(topLines) {
			fmt.Fprintf(w, "  %8d  %-14s %s\n", c.Count, t.name, clirun.Printable(c.Name))
		}
	}
	for _, x := range r.Samples {
		fmt.Fprintf(w, "  sample    %s\n", clirun.Printable(x))
	}
	for _, x := range r.SamplesDepending {
		fmt.Fprintf(w, "  depends on appended text  %s\n", clirun.Printable(x))
	}
}

// bar draws progress on a terminal, a few times a second; nil where there is none.
func bar() simulate.Progress {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	var last time.Time
	return func(done, total int64) {
		if time.Since(last) < 200*time.Millisecond && done < total {
			return
		}
		last = time.Now()
		const width = 40
		n := int(width * done / max(total, 1))
		fmt.Fprintf(os.Stderr, "\r[%s%s] %3d %%", strings.Repeat("=", n), strings.Repeat(" ", width-n), 100*done/max(total, 1))
		if done >= total {
			fmt.Fprintln(os.Stderr)
		}
	}
}
