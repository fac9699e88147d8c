// Package demo plays Stopgap's main job with the real programs and six lab servers, and checks every step.
package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
)

// Config is where a demo finds and makes things.
type Config struct {
	// Bin has the programs, as `make build` makes them.
	Bin string
	// Dir is for everything the demo makes. What an earlier one left there is removed; what a failed one left is kept beside it.
	Dir string
	// Keep leaves everything running at the end until ctx ends, also when a step does not hold.
	Keep bool
}

// Times on an idle machine.
const (
	// soon is how long something that happens at once may take without any progress.
	soon = 20 * time.Second
	// limit bounds one step, whatever moves in it.
	limit = 2 * time.Minute
)

// Run plays the demo, prints what happens, and gives the program's exit status.
func Run(ctx context.Context, c Config) int {
	began := time.Now()
	var err error
	if c.Bin, err = filepath.Abs(c.Bin); err != nil {
		return report(err)
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return report(err)
	}
	d := &demo{bin: c.Bin, dir: c.Dir}
	defer d.stop()
	if f := patience.Factor(); f > 1 {
		fmt.Printf("This machine is busy or slow: everything is given %.1f times as long (%s sets that).\n", f, patience.Variable)
	}
	for i, s := range d.steps() {
		fmt.Printf("\n%d. %s\n", i+1, s.title)
		t := time.Now()
		proof, err := s.within(ctx)
		if err != nil {
			took := time.Since(t)
			fmt.Printf("   DOES NOT HOLD (%.1f s): %v\n", took.Seconds(), err)
			d.failed(i+1, s.title, took, err, c.Keep)
			if c.Keep && ctx.Err() == nil {
				d.instructions()
				<-ctx.Done()
			}
			return 1
		}
		fmt.Printf("   ok (%.1f s): %s\n", time.Since(t).Seconds(), proof)
	}
	fmt.Printf("\nAll %d steps hold, in %.0f s.\n", len(d.steps()), time.Since(began).Seconds())
	if c.Keep {
		d.instructions()
		<-ctx.Done()
	}
	return 0
}

// within runs a step, with a bound on its time.
func (s step) within(ctx context.Context) (string, error) {
	most := patience.For(limit)
	ctx, cancel := context.WithTimeoutCause(ctx, most, errors.New("the step took longer than "+most.Round(time.Second).String()))
	defer cancel()
	return s.run(ctx)
}

func report(err error) int {
	fmt.Fprintln(os.Stderr, "demo:", err)
	return 1
}
