package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// The runner owns time and store: it shows the engine the fleet, writes what the engine decided, and only then is a server given
// anything. What a server said is in the outcome store, so that a controller that starts again finds its rollouts where they were.

// Keys of the store.
const (
	kPending  = "rollout-choice"
	kRollout  = "rollout/"
	kStrategy = "strategy/"
	kDefault  = "default-strategy"
)

// emergency is the strategy of a new fleet.
const emergency = "emergency"

// Errors.
var (
	ErrNoRollout  = errors.New("no such rollout")
	ErrNoStrategy = errors.New("no such strategy")
	// ErrStrategyExists: a new strategy has the name of one there is.
	ErrStrategyExists = errors.New("there is a strategy of that name")
	ErrBuiltIn        = errors.New("the strategies of the product can't be changed: give yours another name")
)

// choice is how what is new in a publish is released. It is on disk before the policy is, so that a crash between the two releases
// nothing otherwise than was said.
type choice struct {
	Strategy string `json:"strategy"`
	PlanOnly bool   `json:"planOnly"`
	By       string `json:"by"`
}

func (r *Rollout) load(ctx context.Context) error {
	for _, s := range engine.BuiltIn() {
		r.strategies[s.Name] = s
	}
	kvs, _, err := r.cfg.Store.List(ctx, kStrategy)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		s, err := engine.ParseStrategy(kv.Value)
		if err != nil {
			return fmt.Errorf("rollout: %s: %w", kv.Key, err)
		}
		r.strategies[s.Name] = s
	}
	r.byDefault = emergency
	if kv, err := r.cfg.Store.Get(ctx, kDefault); err == nil {
		r.byDefault = string(kv.Value)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if kvs, _, err = r.cfg.Store.List(ctx, kSwitch); err != nil {
		return err
	}
	for _, kv := range kvs {
		var s Switch
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			return fmt.Errorf("rollout: %s: %w", kv.Key, err)
		}
		r.switches = append(r.switches, s)
	}
	sort.Slice(r.switches, func(i, j int) bool { return r.switches[i].Order() < r.switches[j].Order() })
	if kvs, _, err = r.cfg.Store.List(ctx, kRollout); err != nil {
		return err
	}
	for _, kv := range kvs {
		x := &engine.Rollout{}
		if err := json.Unmarshal(kv.Value, x); err != nil {
			return fmt.Errorf("rollout: %s: %w", kv.Key, err)
		}
		if x.Members == nil {
			x.Members = map[string]*engine.Member{}
		}
		r.rollouts = append(r.rollouts, &live{x, kv.Revision, x.LastAt})
		r.number = max(r.number, numberOf(x.ID))
	}
	sort.Slice(r.rollouts, func(i, j int) bool { return numberOf(r.rollouts[i].ID) > numberOf(r.rollouts[j].ID) })
	r.index()
	return nil
}

func numberOf(id string) uint64 { return engine.Number(id) }

// gives says what the newest rollout that gives a server anything of a revision gives; without one, the newest that is about it. The
// caller holds the lock.
func (r *Rollout) gives(d *mitigation.Document, id string) (engine.Give, *engine.Rollout) {
	var about *engine.Rollout
	if r.byItem == nil {
		return engine.Nothing, nil
	}
	for _, x := range r.byItem[engine.Item{Mitigation: d.GetId(), Revision: d.GetRevision()}] {
		if g := x.Gives(id); g != engine.Nothing {
			return g, x.Rollout
		}
		if about == nil {
			about = x.Rollout
		}
	}
	return engine.Nothing, about
}

// index makes byItem anew; the caller holds the lock.
func (r *Rollout) index() {
	r.byItem = map[engine.Item][]*live{}
	for _, x := range r.rollouts {
		for _, it := range x.Items {
			r.byItem[it] = append(r.byItem[it], x)
		}
	}
}

// With publishes, or does whatever else, so that what becomes new in policy by it is released as chosen. One at a time. Errors:
// ErrNoStrategy, and what f says.
func (r *Rollout) With(ctx context.Context, strategy string, planOnly bool, by string, f func() error) error {
	if _, err := r.strategy(strategy); err != nil {
		return err
	}
	r.publishing.Lock()
	defer r.publishing.Unlock()
	raw, err := json.Marshal(choice{strategy, planOnly, by})
	if err != nil {
		return err
	}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: kPending, Value: raw}}); err != nil {
		return err
	}
	if err := f(); err != nil {
		_, derr := r.cfg.Store.Txn(context.WithoutCancel(ctx), nil, []store.Op{{Key: kPending, Delete: true}})
		return errors.Join(err, derr)
	}
	return nil
}

// adopt makes a rollout for each mitigation with a revision in policy that none is about, and forgets those that are about nothing in
// policy. Until it has one, a revision is released to nobody.
func (r *Rollout) adopt(ctx context.Context) error {
	r.step.Lock()
	defer r.step.Unlock()
	cur := r.cfg.Policy()
	known := map[engine.Item]bool{}
	c, chosen := choice{By: "controller"}, true
	switch kv, err := r.cfg.Store.Get(ctx, kPending); {
	case errors.Is(err, store.ErrNotFound):
		chosen = false
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(kv.Value, &c); err != nil {
			return fmt.Errorf("rollout: %s: %w", kPending, err)
		}
	}
	r.mu.RLock()
	all := append([]*live(nil), r.rollouts...)
	r.mu.RUnlock()
	var ops []store.Op
	forgotten := map[string]bool{}
	for _, x := range all {
		left := false
		for _, it := range x.Items {
			known[it] = true
			left = left || cur.Documents[tufpolicy.DocumentPath(it.Mitigation, it.Revision)] != nil
		}
		if !left && cur.Version > 0 {
			ops, forgotten[x.ID] = append(ops, store.Op{Key: kRollout + x.ID, Delete: true}), true
		}
	}
	if len(ops) > 0 {
		if _, err := r.cfg.Store.Txn(ctx, nil, ops); err != nil {
			return err
		}
		r.mu.Lock()
		kept := r.rollouts[:0:0]
		for _, x := range r.rollouts {
			if !forgotten[x.ID] {
				kept = append(kept, x)
			}
		}
		r.rollouts = kept
		r.index()
		r.mu.Unlock()
	}
	s, err := r.strategy(c.Strategy)
	if errors.Is(err, ErrNoStrategy) { // deleted meanwhile
		c.PlanOnly = true
		s, err = r.strategy(emergency)
	}
	if err != nil {
		return err
	}
	var fresh []engine.Item
	for _, d := range cur.Sorted() {
		if it := (engine.Item{Mitigation: d.GetId(), Revision: d.GetRevision()}); !known[it] {
			fresh = append(fresh, it)
		}
	}
	// What reaches everybody at once goes together; what goes in waves goes for itself, so that one can halt without the other.
	groups := [][]engine.Item{fresh}
	if s.Name != emergency {
		groups = nil
		for _, it := range fresh {
			groups = append(groups, []engine.Item{it})
		}
	}
	for _, g := range groups {
		if len(g) == 0 {
			continue
		}
		if _, err := r.create(ctx, g, s, c.PlanOnly, c.By); err != nil {
			return err // the choice stays: the next start goes on with it
		}
	}
	if !chosen {
		return nil
	}
	_, err = r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: kPending, Delete: true}})
	return err
}

// Start makes a rollout and starts it. Errors: policy.ErrNotFound, ErrNoStrategy.
func (r *Rollout) Start(ctx context.Context, items []engine.Item, strategy string, planOnly bool, by string) (*engine.Rollout, error) {
	s, err := r.strategy(strategy)
	if err != nil {
		return nil, err
	}
	if err := r.inPolicy(items); err != nil {
		return nil, err
	}
	r.step.Lock()
	defer r.step.Unlock()
	for _, it := range items {
		for _, x := range r.List() {
			for _, o := range x.Items {
				if o.Mitigation == it.Mitigation && o.Revision > it.Revision && x.Phase != engine.Planned && !x.TakenBack {
					return nil, fmt.Errorf("%w: %s is released by rollout %s; revert that one, and servers go back to the revision before", engine.ErrVerb, mitigation.Ref(o.Mitigation, o.Revision), x.ID)
				}
			}
		}
	}
	x, err := r.create(ctx, items, s, planOnly, by)
	if err == nil {
		r.changed()
	}
	return x, err
}

func (r *Rollout) inPolicy(items []engine.Item) error {
	if len(items) == 0 || len(items) > 100 {
		return fmt.Errorf("%d revisions in one rollout, want 1 to 100: %w", len(items), engine.ErrVerb)
	}
	for _, it := range items {
		if r.cfg.Policy().Documents[tufpolicy.DocumentPath(it.Mitigation, it.Revision)] == nil {
			return fmt.Errorf("%s is %w", mitigation.Ref(it.Mitigation, it.Revision), policy.ErrNotFound)
		}
	}
	return nil
}

// Plan gives the waves that a rollout made now would have, its id, and the strategy.
func (r *Rollout) Plan(items []engine.Item, strategy string) (string, engine.Strategy, []engine.Seen, map[string]int, error) {
	s, err := r.strategy(strategy)
	if err == nil {
		err = r.inPolicy(items)
	}
	if err != nil {
		return "", s, nil, nil, err
	}
	r.mu.RLock()
	id := fmt.Sprintf("R%d", r.number+1)
	r.mu.RUnlock()
	seen := r.see(items, nil)
	return id, s, seen, engine.Plan(id, s, seen), nil
}

// create makes a rollout, supersedes older ones, and starts it. The caller holds step.
func (r *Rollout) create(ctx context.Context, items []engine.Item, s engine.Strategy, planOnly bool, by string) (*engine.Rollout, error) {
	r.mu.Lock()
	r.number++
	id := fmt.Sprintf("R%d", r.number)
	r.mu.Unlock()
	now := time.Now().UTC()
	x := engine.New(id, items, s, by, now)
	var decisions []engine.Decision
	if !planOnly { // in one write: a rollout that was made to start is never found planned
		reports, err := r.reports(ctx, items)
		if err == nil {
			decisions, err = x.Step(engine.Event{At: now, Verb: engine.Start, By: by, Seen: r.see(items, reports)})
		}
		if err != nil {
			return nil, err
		}
	}
	if err := r.put(ctx, &live{x, 0, now}); err != nil {
		return nil, err
	}
	r.cfg.Told(id, string(engine.Planned), fmt.Sprintf("%s by %s", s.Name, by))
	r.tell(id, decisions)
	if planOnly {
		return x, nil
	}
	return x, r.supersede(ctx, x, now)
}

// tell tells the phases among decisions, and gives the servers among them.
func (r *Rollout) tell(id string, decisions []engine.Decision) (released []string) {
	for _, d := range decisions {
		if d.Agent != "" {
			released = append(released, d.Agent)
			continue
		}
		r.cfg.Told(id, string(d.Phase), d.Reason)
	}
	return released
}

// supersede ends what older rollouts of the same mitigations were about. The caller holds step.
func (r *Rollout) supersede(ctx context.Context, by *engine.Rollout, now time.Time) error {
	r.mu.RLock()
	all := append([]*live(nil), r.rollouts...)
	r.mu.RUnlock()
	for _, x := range all {
		if x.ID == by.ID || x.Phase == engine.Superseded || x.Phase == engine.Reverted || numberOf(x.ID) > numberOf(by.ID) {
			continue
		}
		if covers(by, x.Rollout) {
			if _, err := r.act(ctx, x.ID, engine.Event{At: now, Verb: engine.Supersede, By: "rollout " + by.ID}); err != nil {
				return err
			}
		}
	}
	return nil
}

// covers says whether a rollout supersedes another: it has a revision of every mitigation of it, and none is older.
func covers(by, x *engine.Rollout) bool {
	for _, b := range x.Items {
		found := false
		for _, a := range by.Items {
			found = found || a.Mitigation == b.Mitigation && a.Revision >= b.Revision
		}
		if !found {
			return false
		}
	}
	return true
}

// newer names a started rollout that supersedes another; "" when there is none.
func (r *Rollout) newer(x *engine.Rollout) string {
	for _, o := range r.List() {
		if numberOf(o.ID) <= numberOf(x.ID) || o.Phase == engine.Planned || o.Phase == engine.Reverted {
			continue
		}
		if covers(o, x) {
			return o.ID
		}
	}
	return ""
}

// Act does something with a rollout. Errors: ErrNoRollout, engine.ErrVerb.
func (r *Rollout) Act(ctx context.Context, id string, verb engine.Verb, by, reason string) (*engine.Rollout, error) {
	if verb == engine.Look || verb == engine.Supersede {
		return nil, fmt.Errorf("%w: %q is nothing that somebody does", engine.ErrVerb, verb)
	}
	r.step.Lock()
	defer r.step.Unlock()
	x, err := r.act(ctx, id, engine.Event{At: time.Now().UTC(), Verb: verb, By: by, Reason: reason})
	if err == nil {
		r.changed()
	}
	return x, err
}

// act takes one step of a rollout and writes it. The caller holds step.
func (r *Rollout) act(ctx context.Context, id string, e engine.Event) (*engine.Rollout, error) {
	old := r.find(id)
	if old == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoRollout, id)
	}
	if e.Verb == engine.Start || e.Verb == engine.Look {
		reports, err := r.reports(ctx, old.Items)
		if err != nil {
			return nil, err
		}
		e.Seen = r.see(old.Items, reports)
	}
	next := copyOf(old.Rollout)
	decisions, err := next.Step(e)
	if err != nil {
		return nil, err
	}
	if e.Verb == engine.Start {
		if err := r.supersede(ctx, next, e.At); err != nil {
			return nil, err
		}
	}
	x := &live{next, old.revision, old.written}
	if len(decisions) == 0 && e.Verb == engine.Look && next.LastAt.Sub(old.written) < writeEvery && next.TakenBack == old.TakenBack {
		r.replace(x, false) // nothing that a restart could not find out again
		return next, nil
	}
	if err := r.put(ctx, x); err != nil {
		return nil, err
	}
	woken := r.tell(id, decisions)
	if e.Verb == engine.Look && len(decisions) > 0 {
		if len(woken) == len(decisions) {
			r.cfg.Wake(woken)
		} else {
			r.cfg.Changed()
		}
	}
	return next, nil
}

// writeEvery is how often a running rollout is written though nothing was decided: by so much its clocks go back at a restart.
const writeEvery = time.Minute

// copyOf copies a state, so that what others look at does not change.
func copyOf(x *engine.Rollout) *engine.Rollout {
	c := *x
	c.Members = make(map[string]*engine.Member, len(x.Members))
	for id, m := range x.Members {
		one := *m
		c.Members[id] = &one
	}
	return &c
}

// put writes a rollout, if nobody else did meanwhile, and then is it what counts. Once everybody has it, its servers need not be known.
func (r *Rollout) put(ctx context.Context, x *live) error {
	if x.Phase == engine.Completed { // finished servers are not listed
		maps.DeleteFunc(x.Members, func(_ string, m *engine.Member) bool { return !m.State.Notable() })
	}
	slim := *x.Rollout
	if slim.Open && slim.Unlimited() { // nothing depends on who has it
		slim.Members = nil
	}
	raw, err := json.Marshal(&slim)
	if err != nil {
		return err
	}
	key := kRollout + x.ID
	rev, err := r.cfg.Store.Txn(ctx, []store.Compare{{Key: key, Revision: x.revision}}, []store.Op{{Key: key, Value: raw}})
	if err != nil {
		return fmt.Errorf("rollout %s: %w", x.ID, err)
	}
	x.revision, x.written = rev, x.LastAt
	r.replace(x, true)
	return nil
}

// replace makes a state what counts; given says that servers may be given something else by it, so that what they are sent from now on
// must be newer than anything before.
func (r *Rollout) replace(x *live, given bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if given {
		r.generation.Add(1)
	}
	next := append([]*live(nil), r.rollouts...)
	for i, o := range next {
		if o.ID == x.ID {
			next[i] = x
			r.rollouts = next
			r.index()
			return
		}
	}
	r.rollouts = append([]*live{x}, next...)
	r.index()
}

func (r *Rollout) find(id string) *live {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, x := range r.rollouts {
		if strings.EqualFold(x.ID, id) {
			return x
		}
	}
	return nil
}

// Get gives one rollout. The state is not to be changed. Errors: ErrNoRollout.
func (r *Rollout) Get(id string) (*engine.Rollout, error) {
	x := r.find(id)
	if x == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoRollout, id)
	}
	return x.Rollout, nil
}

// List gives every rollout, newest first.
func (r *Rollout) List() []*engine.Rollout {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*engine.Rollout, len(r.rollouts))
	for i, x := range r.rollouts {
		out[i] = x.Rollout
	}
	return out
}

// lookOpen is how often a rollout is looked at that everybody has and that nothing halts: only to say how it went.
const lookOpen = 5 * time.Second

// Look shows running rollouts the fleet as it is. Without one it costs nothing.
func (r *Rollout) Look(ctx context.Context, now time.Time) {
	r.step.Lock()
	defer r.step.Unlock()
	for _, x := range r.List() {
		if x.Phase == engine.Planned || x.Phase.Ended() {
			continue
		}
		if x.Unlimited() && x.Open && now.Sub(x.LastAt).Abs() < lookOpen {
			continue
		}
		e := engine.Event{At: now.UTC()}
		if by := r.newer(x); by != "" { // the controller died between starting that one and superseding this one
			e.Verb, e.By = engine.Supersede, "rollout "+by
		}
		if _, err := r.act(ctx, x.ID, e); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Error("a rollout stands still; trying again", "rollout", x.ID, "error", err)
		}
	}
}
