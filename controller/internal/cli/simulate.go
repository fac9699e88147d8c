package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stopgap-em/stopgap/controller/internal/simulate"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

const topLines = 10

func simulation(o *options) *cobra.Command {
	var logs, requests string
	c := &cobra.Command{
		Use:   "simulate MITIGATION",
		Short: "Say what a mitigation would have done to the requests of the past, from IIS logs; no controller needed",
		Long: "MITIGATION is a file, or a name of the catalogue. Only inbound rules are judged: logs hold no response headers. Take the logs of the\n" +
			"front-end site (inetpub\\logs\\LogFiles\\W3SVC<id>, whose id stands in applicationHost.config). What Exchange appends to\n" +
			"cs-uri-query (&CorrelationID=<..>, &cafeReqId=, &ActID=, &encoding=;, &ClientId=, &ClientRequestId=) is cut off. X-Forwarded-For,\n" +
			"where it is logged, is taken for the client. Requests that can't be judged, because the log lacks a field, are counted apart.",
		Args: cobra.ExactArgs(1),
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
	c.Flags().StringVar(&logs, "iis-logs", "", "pattern of W3C extended log files, .gz too (quote it)")
	c.Flags().StringVar(&requests, "requests", "", "JSON file of exploit and legitimate requests")
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
		return json.NewEncoder(w).Encode(score)
	}
	for _, x := range []struct {
		what string
		ids  []string
	}{{"caught", score.Caught}, {"MISSED", score.Missed}, {"FALSE POSITIVES", score.FalsePositives}, {"exploits of other CVEs also blocked", score.Others}} {
		fmt.Fprintf(w, "%s: %d %s\n", x.what, len(x.ids), clirun.Printable(strings.Join(x.ids, " ")))
	}
	fmt.Fprintf(w, "legitimate requests tried: %d\n", score.Legitimate)
	return nil
}

func overLogs(ctx context.Context, w io.Writer, f clirun.Format, s *simulate.Simulation, pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return fmt.Errorf("%w: --iis-logs: %w", clirun.ErrUsage, err)
	}
	if len(files) == 0 {
		return fmt.Errorf("no file matches %s", pattern)
	}
	sort.Strings(files)
	began := time.Now()
	report, err := s.Logs(ctx, files, bar())
	if err != nil {
		return err
	}
	if report.Requests == 0 {
		return errors.Join(fmt.Errorf("%s: no request was read (%d lines were none): are these W3C extended logs with a #Fields line?", pattern, report.Unreadable))
	}
	if f == clirun.JSON {
		return json.NewEncoder(w).Encode(report)
	}
	took := time.Since(began).Seconds()
	fmt.Fprintf(w, "%d requests of %d files in %.1f s (%.0f a second); %d lines were no requests\n", report.Requests, report.Files, took, float64(report.Requests)/took, report.Unreadable)
	for _, r := range report.Rules {
		fmt.Fprintf(w, "\n%s at %s\n  %s\n", clirun.Printable(r.Rule), r.Path, r.Verdict(report.Requests))
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
	}
	return nil
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
