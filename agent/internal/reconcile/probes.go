package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
)

// Prober asks the local server.
type Prober interface {
	// Until asks until the answer is as expected, for a bounded time; answered says that there was an answer before.
	Until(ctx context.Context, p *stopgapv1.Probe, answered bool) probe.Result
}

// A health probe that passed before a change and fails after it does what the document says; one that failed before counts for nothing. An
// effect probe only shows. Only the pass that makes a change probes: later failures are the monitoring's matter, not a reason to take
// protection off.

// probed is what the probes around one mitigation's change showed.
type probed struct {
	before   map[string]probe.Result
	proven   bool   // every effect was shown
	unproven string // what was not shown
	// contradicted is what got through although the configuration says that it is refused.
	contradicted string
	kept         string // why it stays although a health probe fails
	evidence     []*stopgapv1.Evidence
}

// codeProbeFailed is the code of a REVERTED by a failed probe, and of an APPLIED that stays in spite of one.
const codeProbeFailed = "probe-failed"

// probeBudget bounds the probes of one pass, before and after together: meanwhile nobody else can have the pass.
const probeBudget = time.Minute

// wouldRevert says whether a failed probe would take a mitigation off.
func (p *pass) wouldRevert(w *work) bool {
	if p.r.cfg.Prober == nil || w.Want != Apply || w.Doc == nil || keeps(w) {
		return false
	}
	return slices.ContainsFunc(w.Doc.GetProbes(), func(q *stopgapv1.Probe) bool { return q.GetHealth() != nil })
}

// onProbation lets one mitigation a pass be put to the proof of its probes: of two that come together and break something, each would be
// blamed for the other. The others wait for the next pass, which follows at once.
func (p *pass) onProbation(w *work) {
	if w.failed != nil || !p.wouldRevert(w) || !slices.ContainsFunc(w.apply, func(s step) bool { return s.todo }) {
		return
	}
	if !p.probation {
		p.probation = true
		return
	}
	p.unstage(w)
	w.apply, w.revert, w.waiting, w.Want = nil, nil, true, Leave
	p.again = true
}

// interrupted is the record of a change that an earlier pass began and did not prove, with what was asked before it; nil when there is none.
func interrupted(w *work) *journal.Change {
	for _, s := range w.apply {
		if s.record != nil && !s.record.Proven && s.record.Asked {
			return s.record
		}
	}
	return nil
}

// probeBefore asks the health probes of everything that is about to be changed, each question once, and puts what passed into what is
// journaled: a pass that goes on with a change after a crash takes the answers from there, since "before" is over.
func (p *pass) probeBefore(ctx context.Context) {
	if p.r.cfg.Prober == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeBudget)
	defer cancel()
	asked := map[string]probe.Result{}
	for _, w := range p.works {
		if !w.touched || w.failed != nil || w.Want != Apply {
			continue
		}
		w.probed.before = map[string]probe.Result{}
		old := interrupted(w)
		var passed []string
		for _, q := range w.Doc.GetProbes() {
			if q.GetHealth() == nil {
				continue
			}
			n := probe.Name(q)
			switch _, ok := asked[n]; {
			case old != nil:
				asked[n] = probe.Result{Name: n, OK: slices.Contains(old.Passed, n), Got: "as asked before the agent was started anew"}
			case !ok:
				asked[n] = p.r.cfg.Prober.Until(ctx, q, false)
			}
			if w.probed.before[n] = asked[n]; asked[n].OK {
				passed = append(passed, n)
			}
		}
		for i := range w.apply {
			w.apply[i].change.Asked, w.apply[i].change.Passed = true, passed
		}
	}
}

// probeAfter asks again, with patience, and sets failed when the mitigation has to go.
func (p *pass) probeAfter(ctx context.Context, w *work) {
	if p.r.cfg.Prober == nil || len(w.Doc.GetProbes()) == 0 {
		return
	}
	stopped := ctx
	ctx, cancel := context.WithTimeout(ctx, probeBudget)
	defer cancel()
	ask := func(q *stopgapv1.Probe, answered bool) probe.Result {
		if r, ok := p.answers[q.String()]; ok && r.OK { // one that fails is asked again: what broke it may be gone
			return r
		}
		r := p.r.cfg.Prober.Until(ctx, q, answered)
		p.answers[q.String()] = r
		return r
	}
	effects, shown := 0, 0
	var missing, broken, through []string
	tell := func(r probe.Result, before string) {
		w.probed.evidence = append(w.probed.evidence, &stopgapv1.Evidence{Subject: "probe " + bounded.Text(r.Name, 480), Found: bounded.Text(before+"after: "+r.Got, 500)})
	}
	for _, q := range w.Doc.GetProbes() {
		if q.GetEffect() != nil {
			effects++
			r := ask(q, false)
			tell(r, "")
			switch {
			case r.OK:
				shown++
			case r.Answered:
				through = append(through, r.Name+": "+r.Got)
			case !r.Skipped:
				missing = append(missing, r.Name+": "+r.Got)
			}
			continue
		}
		before := w.probed.before[probe.Name(q)]
		if before.Skipped || !before.OK { // it says nothing about the change
			tell(before, "not asked again; ")
			continue
		}
		r := ask(q, true)
		tell(r, "before: "+before.Got+"; ")
		if !r.OK && !r.Skipped {
			broken = append(broken, fmt.Sprintf("%s: before %s, after %s", r.Name, before.Got, r.Got))
		}
	}
	if stopped.Err() != nil {
		return
	}
	w.probed.proven, w.probed.unproven = effects > 0 && shown == effects, strings.Join(missing, "; ")
	if w.probed.contradicted = strings.Join(through, "; "); w.probed.contradicted != "" {
		p.again = p.again || w.touched // read it all back at once: something may have undone it in between
	}
	if len(broken) == 0 {
		return
	}
	why := strings.Join(broken, "; ")
	repaired := slices.ContainsFunc(w.apply, func(s step) bool { return s.record != nil && s.record.Proven })
	if keeps(w) || repaired { // a repair puts back what was there, and proven: what fails now is something else
		w.probed.kept = why
		p.alarms[codeProbeFailed] = fmt.Sprintf("%s@%d: applied, and a probe that passed before fails now: %s", w.ID, w.Revision, why)
		return
	}
	w.failed = &host.Error{Code: codeProbeFailed, Err: fmt.Errorf("a probe that passed before fails after it, and it was taken off again: %s", why)}
}

// codeContradicted is the code of a FAILED that is in place by the configuration while its own probe gets through.
const codeContradicted = "contradicted"

// probeBudgetAgain bounds the question in a pass that changes nothing.
const probeBudgetAgain = 5 * time.Second

// contradicted reports whether the last word on a mitigation is that its probe got through. Only a probe that is refused takes that back.
func (p *pass) contradicted(w *work) bool {
	old := p.known[w.ID]
	return old.GetCode() == codeContradicted && old.GetRevision() == w.Revision && bytes.Equal(old.GetDocumentSha256(), w.SHA256)
}

// probeAgain asks the effect probes of a mitigation that they contradicted. Without an answer the contradiction stands.
func (p *pass) probeAgain(ctx context.Context, w *work) {
	ctx, cancel := context.WithTimeout(ctx, probeBudgetAgain)
	defer cancel()
	if p.r.cfg.Prober != nil {
		p.probeAfter(ctx, w)
	}
	if w.probed.contradicted == "" && !w.probed.proven {
		w.probed.contradicted = strings.TrimPrefix(p.known[w.ID].GetReason(), contradictedText)
	}
}

const contradictedText = "contradicted by its probe: the configuration says that the request is refused, and it got through: "

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
