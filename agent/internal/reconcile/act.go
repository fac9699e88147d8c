package reconcile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// act journals what is about to be done, does it, and reads it back.
func (p *pass) act(ctx context.Context) error {
	var intents []journal.Change
	stops := false
	for _, w := range p.works {
		for _, s := range append(append([]step(nil), w.apply...), w.revert...) {
			if s.todo && w.failed == nil {
				w.touched = true
				stops = stops || !s.file
			}
		}
	}
	p.probeBefore(ctx)
	for _, w := range p.works {
		for _, s := range append(append([]step(nil), w.apply...), w.revert...) {
			if s.todo && w.failed == nil {
				intents = append(intents, s.change)
			}
		}
	}
	if len(intents) > 0 {
		if err := p.r.cfg.Journal.Put(intents); err != nil {
			return fmt.Errorf("reconcile: nothing was touched, the journal can't be written: %w", err)
		}
	}
	if stops && p.wantsHealthManagerHeld() {
		if err := p.holdHealthManager(ctx); err != nil {
			p.alarms["health-manager-not-held"] = err.Error()
		}
	}
	unwritten := p.host.Flush(ctx)
	for _, w := range p.works {
		if w.failed == nil && w.touched {
			p.carryOut(ctx, w, unwritten)
		}
	}
	for _, w := range p.works {
		switch {
		case w.failed != nil || w.Want != Apply:
		case w.touched:
			p.probeAfter(ctx, w)
		case p.contradicted(w):
			p.probeAgain(ctx, w)
		}
	}
	if err := ctx.Err(); err != nil {
		return err // nothing failed: the pass was stopped
	}
	for _, w := range p.works {
		if w.failed != nil && w.Want == Apply {
			p.undo(ctx, w)
		}
	}
	return nil
}

// carryOut does what is not a file edit, then reads all of it back.
func (p *pass) carryOut(ctx context.Context, w *work, unwritten map[string]error) {
	for _, s := range append(append([]step(nil), w.apply...), w.revert...) {
		for _, d := range s.change.Prior.Files {
			if err := unwritten[host.FileKey(d)]; err != nil && s.todo {
				w.failed = err
				return
			}
		}
	}
	w.evidence = nil
	for i, s := range w.apply {
		if s.todo && !s.file {
			if err := s.action.Apply(ctx); err != nil {
				w.failed = fmt.Errorf("action %s: %w", s.ref.Action, err)
				return
			}
		}
		f, err := s.action.Verify(ctx)
		if err == nil && !f.OK() {
			err = &host.Error{Code: "not-in-place", Err: fmt.Errorf("read back after the change and not in place: %s", f.Detail)}
		}
		if err != nil {
			w.failed = fmt.Errorf("action %s: %w", s.ref.Action, err)
			return
		}
		w.evidence = append(w.evidence, f.Evidence...)
		w.apply[i].gaps = f.Gaps
	}
	// Last on, first off.
	for i := len(w.revert) - 1; i >= 0; i-- {
		s := w.revert[i]
		if !s.file && p.stillWanted(s) {
			continue
		}
		if !s.file {
			if err := s.action.Revert(ctx, s.change.Prior); err != nil {
				w.failed = fmt.Errorf("action %s: %w", s.ref.Action, err)
				return
			}
		}
		why, err := s.action.VerifyReverted(ctx, s.change.Prior)
		if err == nil && why != "" {
			err = &host.Error{Code: "still-there", Err: errors.New(why)}
		}
		if err != nil {
			w.failed = fmt.Errorf("action %s: %w", s.ref.Action, err)
			return
		}
		if w.Want == Remove {
			w.evidence = append(w.evidence, p.reverted(s)...)
		}
	}
}

// reverted is the evidence that an action is undone.
func (p *pass) reverted(s step) []*stopgapv1.Evidence {
	var out []*stopgapv1.Evidence
	for _, d := range s.change.Prior.Files {
		data, name, err := p.r.cfg.Driver.ConfigFile(host.SplitRef(d))
		orig, ok, oerr := p.r.cfg.Journal.Original(d)
		if errors.Is(err, fs.ErrNotExist) && oerr == nil && ok && len(orig) == 0 {
			out = append(out, &stopgapv1.Evidence{Action: s.ref.Action, Subject: name, Found: "gone, as it was before"})
			continue
		}
		if err != nil {
			continue
		}
		sum := sha256.Sum256(data)
		found := "nothing of " + s.ref.String() + " is left"
		if oerr == nil && ok && bytes.Equal(orig, data) {
			found = "byte-identical to the file before"
		}
		out = append(out, &stopgapv1.Evidence{Action: s.ref.Action, Subject: name, Found: found, Sha256: sum[:]})
	}
	if len(s.change.Prior.Files) == 0 {
		if f, err := s.action.Verify(context.Background()); err == nil {
			out = append(out, f.Evidence...)
		}
	}
	return out
}

// undo takes back a mitigation that failed part way, so that all of it or none is in force, and puts back the revision
// that it was to replace. What an earlier pass had applied and read back stays: that was protection, and one of its parts
// could only not be repaired.
func (p *pass) undo(ctx context.Context, w *work) {
	var back, restore []journal.Change
	for _, s := range w.apply {
		if s.todo && s.record == nil && w.touched {
			c := s.change
			c.Phase = journal.Reverting
			back = append(back, c)
		}
	}
	// What a killed pass had begun and never read back goes too.
	for _, c := range p.changes {
		if c.Ref.Mitigation == w.ID && c.Ref.Revision == w.Revision && !c.Proven {
			c.Phase = journal.Reverting
			back = append(back, c)
		}
	}
	for _, s := range w.revert {
		c := s.change
		c.Phase = journal.Intended
		restore = append(restore, c)
	}
	if len(back)+len(restore) == 0 {
		return
	}
	left, err := p.takeBack(ctx, back, restore)
	w.undone = err == nil
	if err != nil {
		w.failed = fmt.Errorf("%w; and it could not be taken back: %w", w.failed, err)
	}
	for _, c := range back {
		if left[c.Ref] == nil && err == nil {
			p.settle.Remove = append(p.settle.Remove, c.Ref)
		}
	}
}

// takeBack reverts changes, and applies others again, in a pass of their own that knows what is on the server now.
func (p *pass) takeBack(ctx context.Context, back, restore []journal.Change) (map[host.Ref]error, error) {
	if err := p.r.cfg.Journal.Put(append(append([]journal.Change(nil), back...), restore...)); err != nil {
		return nil, err
	}
	all, err := p.r.cfg.Journal.Changes()
	if err != nil {
		return nil, err
	}
	hp, err := newHostPass(ctx, p.r.cfg.Driver, p.r.cfg.Journal, all)
	if err != nil {
		return nil, err
	}
	for _, c := range restore {
		spec, err := c.Action()
		if err != nil {
			return nil, err
		}
		a, err := hp.Action(c.Ref, spec, nil)
		if err == nil {
			err = a.Apply(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s can't be put back: %w", c.Ref, err)
		}
	}
	left := revertAll(ctx, hp, back)
	for _, err := range left {
		return left, err
	}
	return left, nil
}

// revertAll undoes changes, last first, and reads back that they are.
func revertAll(ctx context.Context, hp *host.Pass, back []journal.Change) map[host.Ref]error {
	left := map[host.Ref]error{}
	type undone struct {
		c journal.Change
		a host.Action
	}
	var todo []undone
	for i := len(back) - 1; i >= 0; i-- {
		spec, err := back[i].Action()
		var a host.Action
		if err == nil {
			a, err = hp.Action(back[i].Ref, spec, nil)
		}
		if err == nil {
			err = a.Revert(ctx, back[i].Prior)
		}
		if err != nil {
			left[back[i].Ref] = err
			continue
		}
		todo = append(todo, undone{back[i], a})
	}
	unwritten := hp.Flush(ctx)
	for _, u := range todo {
		var err error
		for _, d := range u.c.Prior.Files {
			err = errors.Join(err, unwritten[host.FileKey(d)])
		}
		if err == nil {
			var why string
			if why, err = u.a.VerifyReverted(ctx, u.c.Prior); err == nil && why != "" {
				err = errors.New(why)
			}
		}
		if err != nil {
			left[u.c.Ref] = err
		}
	}
	return left
}
