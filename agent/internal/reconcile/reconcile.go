// Package reconcile brings the server to what policy, assignment and administrator want: each pass reads what is,
// compares it with what should be, journals, acts on the difference, and reads back. It is driven by events, never by
// assumptions; it owns no connection and no file of its own.
package reconcile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Journal is what a reconciler needs of the journal. Tests wrap it to stop at any call.
type Journal interface {
	host.Originals
	Changes() ([]journal.Change, error)
	Put([]journal.Change) error
	Settle(journal.Settlement) error
	Outcomes() (map[string]*stopgapv1.Outcome, error)
	Blocks() (map[string]journal.Block, error)
	Frozen() (bool, time.Time, error)
	Assignment() (*stopgapv1.Assignment, error)
	Repairs(id string) ([]time.Time, error)
	PutRepairs(id string, ts []time.Time) error
}

// Config of a Reconciler.
type Config struct {
	Driver  host.Driver
	Journal Journal
	// Policy gives the policy held now.
	Policy func() *policy.Policy
	// Interval between passes without an event. Default 1 minute.
	Interval time.Duration
	// Reported is called after a pass put outcomes into the outbox.
	Reported func()
	// FactsChanged is called when a pass read other facts than the one before.
	FactsChanged func(*stopgapv1.Facts)
	Logger       hclog.Logger
}

// Bounds of retries and repairs.
const (
	defaultInterval = time.Minute
	passRetry       = 5 * time.Second
	// A change that failed while it was made is tried again after retryFirst, then twice as long, up to retryMax.
	retryFirst = 10 * time.Second
	retryMax   = 10 * time.Minute
	// More than maxRepairs drift repairs within repairWindow: another manager is fighting us.
	maxRepairs   = 5
	repairWindow = 10 * time.Minute
	fightRetry   = time.Hour
	// servicingStuck is after how long servicing is worth a warning.
	servicingStuck = 4 * time.Hour
)

// Reconciler runs passes.
type Reconciler struct {
	cfg  Config
	kick chan struct{}

	mu        sync.Mutex // one pass at a time
	retry     map[string]backoffState
	servicing time.Time
	watched   []string
	watchKick chan struct{}

	stateMu sync.Mutex
	facts   *stopgapv1.Facts
	health  []*stopgapv1.Health
}

type backoffState struct {
	failures int
	next     time.Time
	// A decision other than the one that failed does not wait.
	want     Want
	revision uint32
}

// New makes a reconciler.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Driver == nil || cfg.Journal == nil || cfg.Policy == nil || cfg.Logger == nil {
		return nil, errors.New("reconcile: driver, journal, policy and logger are needed")
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	return &Reconciler{cfg: cfg, kick: make(chan struct{}, 1), watchKick: make(chan struct{}, 1), retry: map[string]backoffState{}}, nil
}

// Kick asks for a pass soon. It never blocks.
func (r *Reconciler) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Facts gives the facts read last; nil before the first pass.
func (r *Reconciler) Facts() *stopgapv1.Facts {
	r.stateMu.Lock()
	defer r.stateMu.Unlock()
	return r.facts
}

// Health gives the standing warnings of the last pass.
func (r *Reconciler) Health() []*stopgapv1.Health {
	r.stateMu.Lock()
	defer r.stateMu.Unlock()
	return r.health
}

// Run reconciles until ctx ends: at once, on every Kick, when the server changes, and at the interval.
func (r *Reconciler) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { r.watch(ctx) })
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
		case <-timer.C:
		}
		wait := r.cfg.Interval
		if err := r.Pass(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Error("pass failed", "error", err, "again_in", passRetry)
			wait = passRetry
		} else if soon := r.nextRetry(); soon > 0 {
			wait = min(wait, soon)
		}
		timer.Reset(wait)
	}
}

func (r *Reconciler) nextRetry() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	soonest := time.Duration(0)
	for _, b := range r.retry {
		if d := max(time.Until(b.next), time.Second); soonest == 0 || d < soonest {
			soonest = d
		}
	}
	return soonest
}

// watch keeps the driver watching the directories of the last pass.
func (r *Reconciler) watch(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		dirs := append([]string(nil), r.watched...)
		r.mu.Unlock()
		wctx, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- r.cfg.Driver.Watch(wctx, dirs, r.Kick) }()
		select {
		case <-ctx.Done():
		case <-r.watchKick:
		case err := <-done:
			if ctx.Err() == nil {
				// Without a watch drift is found by the interval; try to watch again then.
				r.cfg.Logger.Warn("watching the server failed; changes are found at the interval", "error", err, "interval", r.cfg.Interval)
				select {
				case <-time.After(r.cfg.Interval):
				case <-ctx.Done():
				}
			}
			done <- nil
		}
		stop()
		<-done
	}
}

// pass is the state of one pass.
type pass struct {
	r        *Reconciler
	now      time.Time
	facts    *stopgapv1.Facts
	host     *host.Pass
	changes  []journal.Change // every record, the health manager's included
	known    map[string]*stopgapv1.Outcome
	blocks   map[string]journal.Block
	works    []*work
	watch    map[string]bool
	alarms   map[string]string
	settle   journal.Settlement
	heldTill time.Time // since when the health manager is held; zero: it is not
}

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
}

// step is one action of a work.
type step struct {
	ref    host.Ref
	action host.Action
	file   bool            // staged, written by Flush
	now    host.Finding    // as found before
	record *journal.Change // nil: not ours yet
	change journal.Change  // what is put into the journal before it is done
	todo   bool
}

// Pass makes one pass. The error means that the pass could not be made at all; what failed for one mitigation is in its
// outcome.
func (r *Reconciler) Pass(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, view, err := r.look(ctx)
	if err != nil {
		return err
	}
	if p.facts.GetServicing() {
		// Setup starts and stops services itself: let the health manager go, touch nothing else.
		if err := p.releaseHealthManager(ctx); err != nil {
			p.alarms["health-manager-held"] = err.Error()
		}
	}
	for _, d := range Decide(view) {
		w := &work{Decision: d}
		p.works = append(p.works, w)
		if d.Alarm != "" {
			p.alarms[d.Alarm] = fmt.Sprintf("build %s is of a newer cumulative update than the fixed-builds table knows", p.facts.GetExchangeBuild())
		}
		if b, ok := r.retry[d.ID]; ok && p.now.Before(b.next) && d.Want == b.want && d.Revision == b.revision {
			w.Want, w.waiting = Leave, true
			continue
		}
		p.plan(ctx, w)
	}
	if err := p.act(ctx); err != nil {
		return err
	}
	return p.finish(ctx)
}

// look reads everything a pass rests on.
func (r *Reconciler) look(ctx context.Context) (*pass, View, error) {
	j := r.cfg.Journal
	p := &pass{r: r, now: time.Now().UTC(), watch: map[string]bool{}, alarms: map[string]string{}}
	var err error
	if p.facts, err = r.cfg.Driver.Facts(ctx); err != nil {
		return nil, View{}, fmt.Errorf("reconcile: facts of the server: %w", err)
	}
	if p.changes, err = j.Changes(); err != nil {
		return nil, View{}, err
	}
	if p.known, err = j.Outcomes(); err != nil {
		return nil, View{}, err
	}
	if p.blocks, err = j.Blocks(); err != nil {
		return nil, View{}, err
	}
	frozen, frozenSince, err := j.Frozen()
	if err != nil {
		return nil, View{}, err
	}
	if frozen {
		p.alarms["frozen"] = "frozen by the server's administrator since " + frozenSince.Format(time.RFC3339)
	}
	assignment, err := j.Assignment()
	if err != nil {
		return nil, View{}, err
	}
	view := View{Facts: p.facts, Policy: r.cfg.Policy(), Assignment: assignment, Blocks: p.blocks, Frozen: frozen,
		InForce: map[string][]uint32{}, Known: p.known}
	for _, c := range p.changes {
		if c.Ref.Mitigation == healthManager {
			p.heldTill = c.Since
			continue
		}
		view.InForce[c.Ref.Mitigation] = append(view.InForce[c.Ref.Mitigation], c.Ref.Revision)
	}
	if view.Policy.FixedError != nil {
		p.alarms["fixed-builds-unreadable"] = view.Policy.FixedError.Error()
	}
	p.servicing(r)
	p.host, err = newHostPass(ctx, r.cfg.Driver, j, p.changes)
	return p, view, err
}

func (p *pass) servicing(r *Reconciler) {
	if !p.facts.GetServicing() {
		r.servicing = time.Time{}
		return
	}
	if r.servicing.IsZero() {
		r.servicing = p.now
	}
	if d := p.now.Sub(r.servicing); d > servicingStuck {
		p.alarms["servicing-stuck"] = fmt.Sprintf("Exchange has looked as if it were being updated for %s; nothing is repaired meanwhile", d.Round(time.Minute))
	}
}

func newHostPass(ctx context.Context, d host.Driver, o host.Originals, changes []journal.Change) (*host.Pass, error) {
	var in []host.Change
	for _, c := range changes {
		a, err := c.Action()
		if err != nil {
			return nil, err
		}
		in = append(in, host.Change{Ref: c.Ref, Spec: a, Prior: c.Prior})
	}
	return host.NewPass(ctx, d, o, in), nil
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
	a, err := p.host.Action(ref, spec)
	return step{ref: ref, action: a, file: spec.GetUrlRewrite() != nil, record: c}, err
}

func (p *pass) planApply(ctx context.Context, w *work) {
	foreign, ours := 0, 0
	for _, spec := range w.Doc.GetActions() {
		ref := host.Ref{Mitigation: w.ID, Revision: w.Revision, Action: spec.GetId()}
		s := step{ref: ref, file: spec.GetUrlRewrite() != nil, record: p.record(ref)}
		var err error
		if s.action, err = p.host.Action(ref, spec); err == nil {
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
		for _, d := range plan.Prior.Files {
			p.watch[d] = true
		}
		s.now = plan.Now
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
	c.Since, c.Build, c.CVEs = p.now, p.facts.GetExchangeBuild(), w.Doc.GetCves()
	c.Document = fmt.Sprintf("%x", w.Doc.SHA256)
	if s.record != nil {
		c.Since, c.Proven = s.record.Since, s.record.Proven
		files := c.Prior.Files
		c.Prior = s.record.Prior
		c.Prior.Files = union(s.record.Prior.Files, files)
	}
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

// act journals what is about to be done, does it, and reads it back.
func (p *pass) act(ctx context.Context) error {
	var intents []journal.Change
	stops := false
	for _, w := range p.works {
		for _, s := range append(append([]step(nil), w.apply...), w.revert...) {
			if s.todo && w.failed == nil {
				intents = append(intents, s.change)
				w.touched = true
				stops = stops || !s.file
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
			if err := unwritten[dirKey(d)]; err != nil && s.todo {
				w.failed = err
				return
			}
		}
	}
	w.evidence = nil
	for _, s := range w.apply {
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
		data, name, err := p.r.cfg.Driver.WebConfig(d)
		if err != nil {
			continue
		}
		sum := sha256.Sum256(data)
		found := "nothing of " + s.ref.String() + " is left"
		if orig, ok, err := p.r.cfg.Journal.Original(d); err == nil && ok && bytes.Equal(orig, data) {
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
		a, err := hp.Action(c.Ref, spec)
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
			a, err = hp.Action(back[i].Ref, spec)
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
			err = errors.Join(err, unwritten[dirKey(d)])
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

// finish lets the health manager go if nothing needs it held, writes the end of the pass, and tells.
func (p *pass) finish(ctx context.Context) error {
	var outcomes []*stopgapv1.Outcome
	for _, w := range p.works {
		p.records(w)
		if o := p.outcome(w); o != nil {
			outcomes = append(outcomes, o)
		}
	}
	p.settle.Outcomes = outcomes
	p.settle.Forget = p.forgotten()
	s := p.settle
	if len(s.Put)+len(s.Remove)+len(s.Forget)+len(s.Outcomes)+len(s.Drop) > 0 {
		if err := p.r.cfg.Journal.Settle(s); err != nil {
			return err
		}
	}
	if !p.facts.GetServicing() {
		if err := p.balanceHealthManager(ctx); err != nil {
			p.alarms["health-manager-held"] = err.Error()
		}
	}
	for _, o := range outcomes {
		p.log(o)
	}
	p.publish()
	if len(outcomes) > 0 && p.r.cfg.Reported != nil {
		p.r.cfg.Reported()
	}
	return nil
}

// records says what becomes of the journal's records of a work.
func (p *pass) records(w *work) {
	if w.failed != nil || !w.touched {
		return
	}
	for _, s := range w.apply {
		if s.todo {
			// Not there and nothing to stop: nothing to undo either, so no record.
			if s.now.Standing == host.NotPresent {
				p.settle.Remove = append(p.settle.Remove, s.ref)
				continue
			}
			c := s.change
			c.Phase, c.Proven = journal.Applied, true
			p.settle.Put = append(p.settle.Put, c)
		}
	}
	for _, s := range w.revert {
		p.settle.Remove = append(p.settle.Remove, s.ref)
	}
}

// forgotten lists directories whose originals are not needed any more: nothing of ours is left in them.
func (p *pass) forgotten() []string {
	after := map[host.Ref]journal.Change{}
	dirs := map[string]string{}
	for _, c := range p.changes {
		after[c.Ref] = c
	}
	for _, w := range p.works {
		for _, s := range w.apply {
			if s.todo {
				after[s.ref] = s.change
			}
		}
	}
	for _, c := range p.settle.Put {
		after[c.Ref] = c
	}
	for _, c := range after {
		for _, d := range c.Prior.Files {
			dirs[dirKey(d)] = d
		}
	}
	for _, r := range p.settle.Remove {
		delete(after, r)
	}
	for _, c := range after {
		for _, d := range c.Prior.Files {
			delete(dirs, dirKey(d))
		}
	}
	var out []string
	for _, d := range dirs {
		out = append(out, d)
	}
	sort.Strings(out)
	return out
}

// publish makes facts, warnings and watched directories visible.
func (p *pass) publish() {
	r := p.r
	var codes []string
	for c := range p.alarms {
		codes = append(codes, c)
	}
	sort.Strings(codes)
	var health []*stopgapv1.Health
	r.stateMu.Lock()
	for _, c := range codes {
		since := timestamppb.New(p.now)
		for _, h := range r.health {
			if h.GetCode() == c {
				since = h.GetSince()
			}
		}
		if c == "health-manager-held" && !p.heldTill.IsZero() {
			since = timestamppb.New(p.heldTill)
		}
		health = append(health, &stopgapv1.Health{Code: c, Text: p.alarms[c], Since: since})
	}
	changed := r.facts != nil && r.facts.String() != p.facts.String()
	r.facts, r.health = p.facts, health
	r.stateMu.Unlock()
	if changed && r.cfg.FactsChanged != nil {
		r.cfg.FactsChanged(p.facts)
	}
	for _, c := range p.changes {
		for _, d := range c.Prior.Files {
			p.watch[d] = true
		}
	}
	var dirs []string
	if !p.facts.GetServicing() { // setup fails on what it finds held open
		for d := range p.watch {
			dirs = append(dirs, d)
		}
	}
	sort.Strings(dirs)
	if fmt.Sprint(dirs) != fmt.Sprint(r.watched) {
		r.watched = dirs
		select {
		case r.watchKick <- struct{}{}:
		default:
		}
	}
}
