// Command stopgap-demo plays Stopgap's main job with the real programs and six lab servers, checks every step, and exits non-zero
// when one does not hold. `make demo` runs it; `make demo KEEP=1` leaves everything running, also when a step does not hold.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"

	"github.com/stopgap-em/stopgap/e2e/demo"
)

func main() {
	var c demo.Config
	flag.StringVar(&c.Bin, "bin", "bin", "directory of the binaries")
	flag.StringVar(&c.Dir, "dir", ".demo", "directory for everything the demo makes; what an earlier demo left there is removed")
	flag.BoolVar(&c.Keep, "keep", false, "leave controller, agents and lab servers running at the end, until interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(demo.Run(ctx, c))
}
