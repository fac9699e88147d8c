package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// failedFile in a demo's directory says which step did not hold, and why. The next demo keeps a directory that has it.
const failedFile = "FAILED.txt"

// failed prints the ends of the logs, what to look at and how to run the demo again, and notes in the directory what failed.
func (d *demo) failed(n int, title string, took time.Duration, why error, keep bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "step %d: %s\nfailed after %.1f s at %s with %s=%.2g:\n%v\n", n, title, took.Seconds(),
		time.Now().UTC().Format(time.RFC3339), patience.Variable, patience.Factor(), why)
	text := b.String()
	all := d.processes()
	for _, p := range all {
		fmt.Printf("--- end of the log of %s\n%s\n", p.Name, p.LogTail())
	}
	if _, err := os.Stat(d.dir); err == nil {
		if err := os.WriteFile(filepath.Join(d.dir, failedFile), []byte(text), 0o600); err != nil {
			fmt.Println("   ", err)
		}
	}
	fmt.Printf("\nStep %d does not hold: %v\n\nWhat to look at (kept; the next demo moves it to %s):\n", n, why, d.dir+aside)
	fmt.Printf("  %-44s what failed\n", d.show(filepath.Join(d.dir, failedFile)))
	for _, p := range all {
		fmt.Printf("  %-44s log of %s\n", d.show(p.Log()), p.Name)
	}
	for _, s := range d.servers {
		fmt.Printf("  %-44s files of the server\n  %s --state %s status\n", d.show(s.dir), d.show(d.program("stopgap-agent")), d.show(s.state))
	}
	fmt.Printf("\nRun it again:             make demo\nwith more time for all:   %s=%.0f make demo\n", patience.Variable, 2*patience.Factor()+1)
	if !keep {
		fmt.Println("and leave it running:     make demo KEEP=1")
	}
}

// show shortens a path for people, where that is shorter.
func (d *demo) show(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) {
			return rel
		}
	}
	return path
}

// processes are those that were started so far.
func (d *demo) processes() []*procs.Proc {
	var out []*procs.Proc
	if d.controller != nil {
		out = append(out, d.controller)
	}
	for _, s := range d.servers {
		out = append(out, s.agent)
	}
	return out
}
