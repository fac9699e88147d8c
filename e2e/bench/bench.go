// Package bench measures a controller under a fleet of light agents: they speak the real protocol, each over its own mutual
// TLS connection from its own loopback address, and do nothing else. The controller runs in a process of its own. The floor,
// the same bytes to the same number of plain TLS connections and a 50-byte answer back, is measured in the same run.
//
// It prints JSON on standard output and progress on standard error. It measures; it asserts nothing. `make bench` runs it.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
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

// Config is one run.
type Config struct {
	// Agents is their number; the open-file limit bounds it.
	Agents int
	// Rounds is the number of broadcasts measured.
	Rounds int
	// Dir is for what the run makes; it is removed first.
	Dir string
	// Mode is empty, or what a child of a run is: "controller" or "floor".
	Mode string
}

// limit bounds a run on an idle machine.
const limit = 10 * time.Minute

// Run measures, and prints a Result to w. The program that calls it must call it again for a child: Run starts the program itself with
// the flags -mode, -dir and -agents.
func Run(ctx context.Context, c Config, w io.Writer) error {
	switch c.Mode {
	case "":
	case modeController:
		return controllerChild(ctx, c.Dir)
	case modeFloor:
		return floorChild(ctx, c.Dir, c.Agents)
	default:
		return fmt.Errorf("no mode %q", c.Mode)
	}
	// The light agents share the machine with what is measured: let their garbage wait.
	debug.SetGCPercent(400)
	ctx, cancel := context.WithTimeout(ctx, patience.For(limit))
	defer cancel()
	r, err := measure(ctx, c.Dir, c.Agents, c.Rounds)
	if err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
