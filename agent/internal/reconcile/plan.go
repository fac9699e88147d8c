package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// work is one decision being carried out.
type work struct {
	Decision
	apply  []step // actions of the wanted revision
	revert []step // actions of what has to go
	drift  []string
	// failed is why it can't be done; then nothing of it is kept.
	failed   error
	evidence []*stopgapv1.Evidence
	foreign  bool // all of it was found in place and is not ours
	adopted  bool // ours by name was found that the journal did not know
	absent   int  // actions whose service or pool does not exist
	touched  bool // something was journaled to be done
	waiting  bool // failed before and not yet due
	before   backoffState
	probed   probed
	undone   bool // it failed, and nothing of it is left
}

// step is one action of a work.
type step struct {
	ref    host.Ref
	action host.Action
	file   bool            // staged, written by Flush
	now    host.Finding    // as found before
	gaps   []string        // where it is in place and not in effect
	record *journal.Change // nil: not ours yet
	change journal.Change  // what is put into the journal before it is done
	todo   bool
}

// plan finds out what a decision needs done, and stages its file edits.
func (p *pass) plan(ctx context.Context, w *work) {
	if w.Want == Leave {
		return
	}
	keep := uint32(0)
	if w.Want == Apply {
		keep = w.Revision
		p.planApply(ctx, w)
		var he *host.Error
		if errors.As(w.failed, &he) && he.TakeOff {
			w.Decision = w.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, he.Code, "%s; they were removed, so that IIS answers again", he)
			w.Want, w.failed, keep = Remove, nil, 0
		}
	}
	if w.failed != nil {
		return
	}
	for i := range p.changes {
		c := &p.changes[i]
		if c.Ref.Mitigation != w.ID || c.Ref.Revision == keep {
			continue
		}
		s, err := p.step(c.Ref, c)
		if err == nil && s.file {
			err = s.action.Revert(ctx, c.Prior)
		}
		if err != nil {
			w.failed = fmt.Errorf("%s can't be taken off: %w", c.Ref, err)
			p.host.Unstage(c.Ref)
			p.unstage(w)
			return
		}
		s.todo = true
		s.change = *c
		s.change.Phase = journal.Reverting
		w.revert = append(w.revert, s)
	}
}

func (p *pass) step(ref host.Ref, c *journal.Change) (step, error) {
	spec, err := c.Action()
	if err != nil {
		return step{}, err
	}
	a, err := p.host.Action(ref, spec, nil)
	return step{ref: ref, action: a, file: spec.GetUrlRewrite() != nil, record: c}, err
}

// foreignLeft looks on a server that is fixed for rules that do what a mitigation does and are not ours to take off.
func (p *pass) foreignLeft(ctx context.Context, d Decision) {
	rev := p.r.cfg.Policy().Revisions[d.ID][d.Revision]
	if rev == nil || rev.Document == nil {
		return
	}
	for _, spec := range rev.Document.GetActions() {
		if spec.GetUrlRewrite() == nil {
			continue
		}
		a, err := p.host.Action(host.Ref{Mitigation: d.ID, Revision: d.Revision, Action: spec.GetId()}, spec, rev.Document.Mitigation)
		if err != nil {
			continue
		}
		plan, err := a.Plan(ctx)
		if err != nil || plan.Now.Standing != host.Foreign { // nothing is done here: what can't be read is no finding
			continue
		}
		for _, e := range plan.Now.Evidence {
			const code = "foreign-rule-left"
			if p.alarms[code] != "" {
				p.alarms[code] += "; "
			}
			p.alarms[code] += fmt.Sprintf("%s is fixed by the build, and %s still has a rule that does the same; it is not ours: take it off by hand", d.ID, e.GetSubject())
		}
	}
}

func (p *pass) planApply(ctx context.Context, w *work) {
	foreign, ours := 0, 0
	for _, spec := range w.Doc.GetActions() {
		ref := host.Ref{Mitigation: w.ID, Revision: w.Revision, Action: spec.GetId()}
		s := step{ref: ref, file: spec.GetUrlRewrite() != nil, record: p.record(ref)}
		var err error
		if s.action, err = p.host.Action(ref, spec, w.Doc.Mitigation); err == nil {
			err = s.action.Validate(ctx)
		}
		var plan host.Plan
		if err == nil {
			plan, err = s.action.Plan(ctx)
		}
		if err != nil {
			w.failed = fmt.Errorf("action %s: %w", spec.GetId(), err)
			break
		}
		for _, d := range append(plan.Watch, plan.Prior.Files...) {
			dir, _ := host.SplitRef(d)
			p.watch[dir] = true
		}
		s.now = plan.Now
		s.gaps = plan.Now.Gaps
		w.evidence = append(w.evidence, plan.Now.Evidence...)
		switch {
		case plan.Now.Standing == host.InPlace && s.record == nil && p.ours(spec) != nil:
			// Another change of ours stopped it already: this one needs it stopped too, and its own record of what was
			// there before, so that it stays stopped when the other goes.
			s.todo = true
			ours++
		case plan.Now.OK() && (s.record == nil || s.record.Phase == journal.Applied):
			switch {
			case plan.Now.Standing == host.NotPresent:
				w.absent++
			case plan.Now.Standing == host.Foreign || s.record == nil:
				foreign++
			default:
				ours++
			}
			// Ours by name, unknown to the journal: adopt, so that it can be taken off again.
			if s.todo = plan.Now.Standing == host.InPlace && s.record == nil && s.file; s.todo {
				w.adopted = true
				foreign--
			}
		default:
			s.todo = true
		}
		if s.todo {
			if s.record != nil && s.record.Phase == journal.Applied {
				w.drift = append(w.drift, plan.Now.Detail)
			}
			if s.change, err = journal.NewChange(ref, spec, p.before(spec, plan.Prior)); err != nil {
				w.failed = err
				break
			}
			p.fill(&s, w)
			if s.file {
				if err := s.action.Apply(ctx); err != nil {
					w.failed = fmt.Errorf("action %s: %w", spec.GetId(), err)
					break
				}
			}
		}
		w.apply = append(w.apply, s)
	}
	w.foreign = foreign > 0 && ours == 0
	if w.failed == nil && len(w.drift) > 0 {
		w.failed = p.fighting(w)
	}
	if w.failed != nil {
		p.unstage(w)
	}
}

// unstage leaves everything of a failed plan as it was found.
func (p *pass) unstage(w *work) {
	for _, s := range append(w.apply, w.revert...) {
		p.host.Unstage(s.ref)
	}
	w.apply, w.revert = nil, nil
}

// fill completes a record. What was there before our first change is never overwritten by what a repair finds.
func (p *pass) fill(s *step, w *work) {
	c := &s.change
	c.Since, c.Protected, c.Build, c.CVEs = p.now, p.protected(c.Ref.Mitigation), p.facts.GetExchangeBuild(), w.Doc.GetCves()
	c.Document = fmt.Sprintf("%x", w.Doc.SHA256)
	if s.record != nil {
		c.Since, c.Protected, c.Proven = s.record.Since, s.record.Protected, s.record.Proven
		files := c.Prior.Files
		c.Prior = s.record.Prior
		c.Prior.Files = union(s.record.Prior.Files, files)
	}
}

// protected is since when a mitigation has been in force, over all its revisions: now, when it is not yet.
func (p *pass) protected(id string) time.Time {
	since := p.now
	for _, c := range p.changes {
		if c.Ref.Mitigation != id {
			continue
		}
		for _, t := range []time.Time{c.Since, c.Protected} {
			if !t.IsZero() && t.Before(since) {
				since = t
			}
		}
	}
	return since
}

func union(a, b []string) []string {
	out := append([]string(nil), a...)
	for _, x := range b {
		found := false
		for _, y := range out {
			found = found || x == y
		}
		if !found {
			out = append(out, x)
		}
	}
	return out
}

// target is what a service or app-pool action stops; "" for other actions.
func target(a *stopgapv1.Action) string {
	switch {
	case a.GetService() != nil:
		return "service " + strings.ToLower(a.GetService().GetName())
	case a.GetAppPool() != nil:
		return "pool " + strings.ToLower(a.GetAppPool().GetName())
	}
	return ""
}

// ours finds a record of ours that stops the same thing as an action.
func (p *pass) ours(spec *stopgapv1.Action) *journal.Change {
	t := target(spec)
	for i := range p.changes {
		c := &p.changes[i]
		if a, err := c.Action(); t != "" && err == nil && c.Ref.Mitigation != healthManager && target(a) == t {
			return c
		}
	}
	return nil
}

// before is what was there before any of ours: what another record of ours says, or else what was found now.
func (p *pass) before(spec *stopgapv1.Action, found host.Prior) host.Prior {
	if c := p.ours(spec); c != nil {
		return c.Prior
	}
	return found
}

// stillWanted says whether something else that stays in force stops the same thing as a step that goes.
func (p *pass) stillWanted(s step) bool {
	spec, err := s.change.Action()
	if err != nil {
		return false
	}
	t, gone := target(spec), map[host.Ref]bool{}
	for _, w := range p.works {
		for _, r := range w.revert {
			gone[r.ref] = true
		}
		for _, a := range w.apply {
			if x, err := a.change.Action(); a.todo && w.failed == nil && err == nil && target(x) == t {
				return true
			}
		}
	}
	for _, c := range p.changes {
		if x, err := c.Action(); c.Ref != s.ref && !gone[c.Ref] && c.Ref.Mitigation != healthManager && err == nil && target(x) == t {
			return true
		}
	}
	return false
}

func (p *pass) record(ref host.Ref) *journal.Change {
	for i := range p.changes {
		if p.changes[i].Ref == ref {
			return &p.changes[i]
		}
	}
	return nil
}

// fighting counts a drift repair, and refuses it when there were too many: another manager is undoing ours.
func (p *pass) fighting(w *work) error {
	ts, err := p.r.cfg.Journal.Repairs(w.ID)
	if err != nil {
		return err
	}
	recent := ts[:0:0]
	for _, t := range ts {
		if p.now.Sub(t) < repairWindow {
			recent = append(recent, t)
		}
	}
	if len(recent) >= maxRepairs {
		w.touched = true // so that it is tried again after fightRetry, not at every event
		return &host.Error{Code: "repair-limit", Conflict: true, Err: fmt.Errorf(
			"put back %d times within %s and undone again each time (%s): something else manages this server; tried again hourly",
			len(recent), repairWindow, w.drift[0])}
	}
	return p.r.cfg.Journal.PutRepairs(w.ID, append(recent, p.now))
}
