package reconcile

import (
	"context"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
)

// IIS's own view of the configuration is the second witness beside the model: what it does not confirm is not called applied.

const (
	codeModelDiffers = "model-differs"
	codeNotAsked     = "iis-not-asked"
	// IIS is asked once in witnessEvery, after every write, and in the first pass; while it differs or does not answer, once in
	// witnessAgain.
	witnessEvery = time.Hour
	witnessAgain = 5 * time.Minute
	// witnessMark begins the part of a reason that tells of a difference.
	witnessMark = "; IIS sees something else than Stopgap computes"
)

// witness is the last look at IIS's view, and when the next one is due.
type witness struct {
	look *host.Look
	due  time.Time
}

// ask looks at IIS's view if that is due, and takes what it showed into the works of this pass.
func (p *pass) ask(ctx context.Context) {
	wt := &p.r.witness
	var actions []host.Action
	due := !p.now.Before(wt.due) || p.host.Wrote()
	for _, w := range p.works {
		if w.failed != nil || w.Want != Apply {
			continue
		}
		for _, s := range w.apply {
			if s.file {
				actions = append(actions, s.action)
				_, known := wt.look.Of(s.ref)
				due = due || !known
			}
		}
	}
	switch {
	case len(actions) == 0:
		wt.look = nil
	case due:
		look := p.host.Look(ctx, actions, wt.look)
		if ctx.Err() != nil {
			return // stopped meanwhile
		}
		wt.look, wt.due = look, p.now.Add(witnessEvery)
		if !look.Settled() {
			wt.due = p.now.Add(witnessAgain)
		}
	}
	if text := wt.look.Differs(); text != "" {
		p.alarms[codeModelDiffers] = bounded.Text("IIS and Stopgap do not agree: "+text, maxReason)
	}
	if text := wt.look.Unasked(); text != "" {
		p.alarms[codeNotAsked] = bounded.Text(text, maxReason)
	}
	for _, w := range p.works {
		for i, s := range w.apply {
			if t, ok := wt.look.Of(s.ref); ok && w.failed == nil && w.Want == Apply {
				w.apply[i].gaps = append(s.gaps[:len(s.gaps):len(s.gaps)], t.Gaps...)
			}
		}
	}
}

// witnessed takes IIS's view into an outcome that says APPLIED or PARTIAL by the model alone.
func (p *pass) witnessed(w *work, old, o *stopgapv1.Outcome) {
	o.Reason, _, _ = strings.Cut(o.GetReason(), witnessMark) // of an earlier look
	var differs string
	var seen []*stopgapv1.Evidence
	rewrites, nothing, unanswered := 0, 0, false
	var gaps []string
	for _, s := range w.apply {
		if !s.file {
			continue
		}
		rewrites++
		t, _ := p.r.witness.look.Of(s.ref)
		if t.Nothing {
			nothing++
		}
		gaps = append(gaps, t.Gaps...)
		unanswered = unanswered || t.Unanswered
		seen = append(seen, t.Evidence...)
		if differs == "" {
			differs = t.Differs
		}
	}
	switch {
	case rewrites > 0 && nothing == rewrites:
		o.State, o.Code, o.Proof = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, codeModelDiffers, stopgapv1.Proof_PROOF_UNSPECIFIED
		o.Reason = "in place, and not in effect by IIS's own view: " + strings.Join(gaps, "; ")
	case differs != "":
		o.Reason = bounded.Text(o.GetReason(), maxReason-len(witnessMark)-maxDiffers) + witnessMark + " (" + bounded.Text(differs, maxDiffers-3) + ")"
	case unanswered && old.GetRevision() == o.GetRevision() && (old.GetCode() == codeModelDiffers || strings.Contains(old.GetReason(), witnessMark)):
		// What IIS said before counts until it says something else.
		o.State, o.Code, o.Reason, o.Proof, o.Evidence = old.GetState(), old.GetCode(), old.GetReason(), old.GetProof(), old.GetEvidence()
	}
	o.Evidence = append(seen[:len(seen):len(seen)], o.GetEvidence()...)
}

// maxDiffers bounds what a reason says about a difference.
const maxDiffers = 300
