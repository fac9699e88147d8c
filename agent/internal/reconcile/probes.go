package reconcile

import (
	"context"
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Prober asks the local server.
type Prober interface {
	Once(ctx context.Context, p *stopgapv1.Probe) probe.Result
	Until(ctx context.Context, p *stopgapv1.Probe) probe.Result
}

// A health probe that passed before a change and fails after it does what the document says; one that failed before counts for nothing. An
// effect probe only shows. Only the pass that makes a change probes: later failures are the monitoring's matter, not a reason to take
// protection off.

// probed is what the probes around one mitigation's change showed.
type probed struct {
	before   map[string]probe.Result
	proven   bool   // every effect was shown
	unproven string // what was not shown
	kept     string // why it stays although a health probe fails
	evidence []*stopgapv1.Evidence
}

// codeProbeFailed is the code of a REVERTED by a failed probe, and of an APPLIED that stays in spite of one.
const codeProbeFailed = "probe-failed"

// probeBefore asks the health probes of everything that is about to be changed, each question once.
func (p *pass) probeBefore(ctx context.Context) {
	if p.r.cfg.Prober == nil {
		return
	}
	asked := map[string]probe.Result{}
	for _, w := range p.works {
		if !w.touched || w.failed != nil || w.Want != Apply {
			continue
		}
		w.probed.before = map[string]probe.Result{}
		for _, q := range w.Doc.GetProbes() {
			if q.GetHealth() == nil {
				continue
			}
			n := probe.Name(q)
			if _, ok := asked[n]; !ok {
				asked[n] = p.r.cfg.Prober.Once(ctx, q)
			}
			w.probed.before[n] = asked[n]
		}
	}
}

// probeAfter asks again, with patience, and sets failed when the mitigation has to go.
func (p *pass) probeAfter(ctx context.Context, w *work) {
	if p.r.cfg.Prober == nil || len(w.Doc.GetProbes()) == 0 {
		return
	}
	effects, shown := 0, 0
	var missing, broken []string
	tell := func(r probe.Result, before string) {
		w.probed.evidence = append(w.probed.evidence, &stopgapv1.Evidence{Subject: "probe " + cut(r.Name, 480), Found: cut(before+"after: "+r.Got, 500)})
	}
	for _, q := range w.Doc.GetProbes() {
		if q.GetEffect() != nil {
			effects++
			r := p.r.cfg.Prober.Until(ctx, q)
			tell(r, "")
			if r.OK {
				shown++
			} else if !r.Skipped {
				missing = append(missing, r.Name+": "+r.Got)
			}
			continue
		}
		before := w.probed.before[probe.Name(q)]
		if before.Skipped || !before.OK { // it says nothing about the change
			tell(before, "not asked again; ")
			continue
		}
		r := p.r.cfg.Prober.Until(ctx, q)
		tell(r, "before: "+before.Got+"; ")
		if !r.OK && !r.Skipped {
			broken = append(broken, fmt.Sprintf("%s: before %s, after %s", r.Name, before.Got, r.Got))
		}
	}
	if ctx.Err() != nil {
		return
	}
	w.probed.proven, w.probed.unproven = effects > 0 && shown == effects, strings.Join(missing, "; ")
	if len(broken) == 0 {
		return
	}
	why := strings.Join(broken, "; ")
	if keeps(w) {
		w.probed.kept = why
		p.alarms[codeProbeFailed] = fmt.Sprintf("%s@%d: applied, and a probe that passed before fails now: %s", w.ID, w.Revision, why)
		return
	}
	w.failed = &host.Error{Code: codeProbeFailed, Err: fmt.Errorf("a probe that passed before fails after it, and it was taken off again: %s", why)}
}

// keeps says whether a mitigation stays when a health probe fails: an attacker who loads a server must not free it of its protection.
func keeps(w *work) bool {
	switch w.Doc.GetOnProbeFailure() {
	case stopgapv1.OnProbeFailure_ON_PROBE_FAILURE_KEEP_AND_ALARM:
		return true
	case stopgapv1.OnProbeFailure_ON_PROBE_FAILURE_REVERT:
		return false
	case stopgapv1.OnProbeFailure_ON_PROBE_FAILURE_UNSPECIFIED:
	}
	return w.Emergency && w.Doc.GetSeverity() == stopgapv1.Severity_SEVERITY_CRITICAL
}
