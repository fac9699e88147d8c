// Command stopgap-bench measures a controller under a fleet of light agents. It prints JSON on standard output and progress on
// standard error. `make bench` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/stopgap-em/stopgap/e2e/bench"
)

func main() {
	var c bench.Config
	flag.IntVar(&c.Agents, "agents", 2000, "number of agents; the open-file limit bounds it")
	flag.IntVar(&c.Rounds, "rounds", 5, "broadcasts measured")
	flag.StringVar(&c.Dir, "dir", ".bench", "directory for what the run makes; removed first")
	flag.StringVar(&c.Mode, "mode", "", "internal: controller, floor")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench.Run(ctx, c, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
