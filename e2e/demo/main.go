// Command demo plays Stopgap's main job with the real programs and six lab servers, checks every step, and exits non-zero
// when one does not hold. `make demo` runs it; `make demo KEEP=1` leaves everything running.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the binaries")
	dir := flag.String("dir", ".demo", "directory for everything the demo makes; what an earlier demo left there is removed")
	keep := flag.Bool("keep", false, "leave controller, agents and lab servers running at the end, until interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, *bin, *dir, *keep))
}

// limit bounds the whole demo.
const limit = 2 * time.Minute

func run(ctx context.Context, bin, dir string, keep bool) int {
	began := time.Now()
	bin, err := filepath.Abs(bin)
	if err != nil {
		return report(err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return report(err)
	}
	d := &demo{bin: bin, dir: dir}
	defer d.stop()
	dctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for i, s := range d.steps() {
		fmt.Printf("\n%d. %s\n", i+1, s.title)
		t := time.Now()
		proof, err := s.run(dctx)
		if err != nil {
			fmt.Printf("   DOES NOT HOLD: %v\n", err)
			d.tails()
			return 1
		}
		fmt.Printf("   ok (%.1f s): %s\n", time.Since(t).Seconds(), proof)
	}
	fmt.Printf("\nAll %d steps hold, in %.0f s.\n", len(d.steps()), time.Since(began).Seconds())
	if keep {
		d.instructions()
		<-ctx.Done()
	}
	return 0
}

func report(err error) int {
	fmt.Fprintln(os.Stderr, "demo:", err)
	return 1
}
