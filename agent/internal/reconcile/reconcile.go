// Package reconcile brings the server to what policy, assignment and administrator want: each pass reads what is,
// compares it with what should be, journals, acts on the difference, and reads back. It is driven by events, never by
// assumptions; it owns no connection and no file of its own.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
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
	// RemoveHold is how long a fixed build must have been there before a mitigation comes off by itself; 0: not at all.
	RemoveHold time.Duration
	// Reported is called after a pass put outcomes into the outbox.
	Reported func()
	// Prober, if set, asks the local server before and after a change.
	Prober Prober
	// Told, if set, is called with each outcome that a pass reported.
	Told func(*stopgapv1.Outcome)
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
	build     string // as last seen, and since when
	since     time.Time
	watchKick chan struct{}
	witness   witness

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
	r         *Reconciler
	now       time.Time
	facts     *stopgapv1.Facts
	host      *host.Pass
	changes   []journal.Change // every record, the health manager's included
	known     map[string]*stopgapv1.Outcome
	blocks    map[string]journal.Block
	works     []*work
	watch     map[string]bool
	alarms    map[string]string
	settle    journal.Settlement
	answers   map[string]probe.Result // of probes after a change
	probation bool                    // one mitigation of this pass is put to the proof of its probes
	again     bool                    // others wait for that
	heldTill  time.Time               // since when the health manager is held; zero: it is not
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
	return p.carry(ctx, Decide(view))
}

// TakeOff takes one mitigation off, whatever policy says, and nothing else: the word of the server's administrator. It is told
// as REVERTED with reason. During servicing nothing is touched. ErrNotInForce when there is nothing to take off.
func (r *Reconciler) TakeOff(ctx context.Context, id, reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, view, err := r.look(ctx)
	if err != nil {
		return err
	}
	revs := view.InForce[id]
	switch {
	case len(revs) == 0:
		return fmt.Errorf("%s: %w", id, ErrNotInForce)
	case p.facts.GetServicing():
		return errors.New("Exchange is being installed or updated: nothing is touched until that is over (`panic-revert` asks nobody)") //nolint:staticcheck // a name
	case view.Frozen:
		return errors.New("the agent is frozen: `enable` first, or `panic-revert` for everything")
	}
	d := Decision{ID: id, Revision: newest(revs), Want: Remove}
	return p.carry(ctx, []Decision{d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, "taken-off", "%s", reason)})
}

// ErrNotInForce is returned by TakeOff.
var ErrNotInForce = errors.New("nothing of it that is ours is in force on this server")

// carry plans and carries out decisions.
func (p *pass) carry(ctx context.Context, decisions []Decision) error {
	r := p.r
	for _, d := range decisions {
		w := &work{Decision: d}
		p.works = append(p.works, w)
		if d.Alarm != "" {
			p.alarms[d.Alarm] = alarmText(d.Alarm, p.facts)
		}
		if d.Code == codeFixed && d.Want == Leave {
			p.foreignLeft(ctx, d)
		}
		if b, ok := r.retry[d.ID]; ok && p.now.Before(b.next) && d.Want == b.want && d.Revision == b.revision {
			w.Want, w.waiting = Leave, true
			continue
		}
		p.plan(ctx, w)
		p.onProbation(w)
	}
	if err := p.act(ctx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // stopped half way: nothing failed, and the next start finishes it by the journal
	}
	p.ask(ctx)
	return p.finish(ctx)
}

func alarmText(code string, f *stopgapv1.Facts) string {
	if code == codeUnsettled {
		return fmt.Sprintf("build %s is fixed and does not count yet: %s", f.GetExchangeBuild(), f.GetUnsettled())
	}
	return fmt.Sprintf("build %s is of a newer cumulative update than the fixed-builds table knows", f.GetExchangeBuild())
}

// look reads everything a pass rests on.
func (r *Reconciler) look(ctx context.Context) (*pass, View, error) {
	j := r.cfg.Journal
	p := &pass{r: r, now: time.Now().UTC(), watch: map[string]bool{}, alarms: map[string]string{}, answers: map[string]probe.Result{}}
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
	if b := p.facts.GetExchangeBuild(); b != r.build {
		r.build, r.since = b, p.now
	}
	view := View{Hold: r.cfg.RemoveHold, BuildSince: r.since, Facts: p.facts, Policy: r.cfg.Policy(), Assignment: assignment, Blocks: p.blocks, Frozen: frozen,
		InForce: map[string][]uint32{}, Since: map[string]time.Time{}, Protected: map[string]time.Time{}, Now: p.now, Known: p.known}
	for _, c := range p.changes {
		if c.Ref.Mitigation == healthManager {
			p.heldTill = c.Since
			continue
		}
		view.InForce[c.Ref.Mitigation] = append(view.InForce[c.Ref.Mitigation], c.Ref.Revision)
		ref := mitigation.Ref(c.Ref.Mitigation, c.Ref.Revision)
		if since, ok := view.Since[ref]; !ok || c.Since.Before(since) {
			view.Since[ref] = c.Since
		}
		view.Protected[c.Ref.Mitigation] = p.protected(c.Ref.Mitigation)
	}
	for id, o := range p.known {
		if outcome.Of(o.GetState()).Applied && o.GetCode() == codeProbeFailed && len(view.InForce[id]) > 0 {
			p.alarms[codeProbeFailed] = mitigation.Ref(id, o.GetRevision()) + ": " + o.GetReason()
		}
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
		if p.r.cfg.Told != nil {
			p.r.cfg.Told(o)
		}
	}
	p.publish()
	if p.again {
		p.r.Kick()
	}
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
			dir, _ := host.SplitRef(d)
			p.watch[dir] = true
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
