// Command bench measures a controller under a fleet of light agents: they speak the real protocol, each over its own mutual
// TLS connection from its own loopback address, and do nothing else. The controller runs in a process of its own. The floor,
// the same bytes to the same number of plain TLS connections and a 50-byte answer back, is measured in the same run.
//
// It prints JSON on standard output and progress on standard error. It measures; it asserts nothing. `make bench` runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// Result is what is printed. Durations are in milliseconds.
type Result struct {
	Agents           int     `json:"agents"`
	Cores            int     `json:"cores"`
	PayloadBytes     int     `json:"payload_bytes"`
	ConnectAllMS     float64 `json:"connect_all_ms"`
	ConnectsPerS     float64 `json:"connects_per_s"`
	RSSPerAgentKiB   float64 `json:"controller_rss_per_idle_agent_kib"`
	RSSPerAgentGCKiB float64 `json:"controller_rss_per_idle_agent_after_gc_kib"`
	GoroutinesPer    float64 `json:"controller_goroutines_per_idle_agent"`
	// Publish (the operator's call is sent) to the last outcome committed to disk by the controller, by the controller's
	// account: median over the rounds, and each.
	PublishLastMS   float64   `json:"publish_to_last_outcome_recorded_ms"`
	PublishRoundsMS []float64 `json:"publish_to_last_outcome_recorded_rounds_ms"`
	// Publish to the acknowledgement at the agent, which follows: over all agents and rounds.
	AckP50MS        float64 `json:"publish_to_acknowledgement_p50_ms"`
	AckP99MS        float64 `json:"publish_to_acknowledgement_p99_ms"`
	AckMaxMS        float64 `json:"publish_to_acknowledgement_max_ms"`
	CPUPerBroadcast float64 `json:"controller_cpu_s_per_broadcast"`
	OutcomesPerS    float64 `json:"outcomes_committed_per_s"`
	// The same with 5 % of the agents not reading; over the others.
	StuckLastMS   float64   `json:"publish_to_last_outcome_recorded_5pct_stuck_ms"`
	StuckP99MS    float64   `json:"publish_to_acknowledgement_p99_5pct_stuck_ms"`
	FloorLastMS   float64   `json:"floor_last_answer_ms"`
	FloorRoundsMS []float64 `json:"floor_last_answer_rounds_ms"`
	TimesFloor    float64   `json:"publish_to_last_outcome_recorded_x_floor"`
}

func main() {
	agents := flag.Int("agents", 2000, "number of agents; the open-file limit bounds it")
	rounds := flag.Int("rounds", 5, "broadcasts measured")
	dir := flag.String("dir", ".bench", "directory for what the run makes; removed first")
	mode := flag.String("mode", "", "internal: controller, floor")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch *mode {
	case "controller":
		err = controllerChild(ctx, *dir)
	case "floor":
		err = floorChild(ctx, *dir, *agents)
	default:
		// The light agents share the machine with what is measured: let their garbage wait.
		debug.SetGCPercent(400)
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		var r *Result
		if r, err = measure(ctx, *dir, *agents, *rounds); err == nil {
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			err = e.Encode(r)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
