// Package rollout decides when a server gets what is in policy. Revisions reach servers through rollouts (runner.go runs the pure
// state machine of package engine); operators hold back, take off, and switch off (switches.go) over that. What comes of it is the
// assignments: one for each class of servers that are given the same, encoded once for all of them.
package rollout

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hashicorp/go-hclog"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Fleet is what a release depends on.
type Fleet interface {
	Organisations() []string
	OrganisationFixed(organisation string, cves []string, table *exchange.Table) bool
	// Servers gives every server that is not revoked; Server one of them.
	Servers() []Server
	Server(id string) (Server, bool)
}

// Server is one of the fleet, as a rollout sees it. What it points to is not changed.
type Server struct {
	ID, Name  string
	Facts     *stopgapv1.Facts
	Labels    map[string]string
	Connected bool
}

// Config of a Rollout.
type Config struct {
	Fleet  string
	Store  store.Store
	Policy func() *policy.Current
	Agents Fleet
	// Outcomes is where reports come from.
	Outcomes store.Outcomes
	// Changed is called after assignments of many servers may have changed, Wake after those of some did.
	Changed func()
	Wake    func(ids []string)
	// Told is called with each phase that a rollout comes into; for the audit log.
	Told func(id, phase, reason string)
	// Tick is how often running rollouts look at the fleet. Default 500 ms.
	Tick   time.Duration
	Logger hclog.Logger
}

// settle collects changes of facts: ten thousand servers that connect at once are a few computations.
const settle = 100 * time.Millisecond

// Rollout makes assignments. It is safe for concurrent use.
type Rollout struct {
	cfg   Config
	epoch string
	kick  chan struct{}

	// generation counts what may change what any server is given. It moves while mu is held for writing.
	generation atomic.Uint64

	mu         sync.RWMutex
	told       uint64 // the generation that everybody was told of
	content    uint64
	classes    map[string]*class
	fixed      map[string]map[string]bool // by organisation and id@revision
	releases   map[string]Decision        // by id@revision
	switches   []Switch
	rollouts   []*live // newest first
	strategies map[string]engine.Strategy
	byDefault  string
	number     uint64

	byItem map[engine.Item][]*live
	stale  map[string]bool // organisations whose facts changed since they were looked at

	step       sync.Mutex // one change of a rollout at a time
	publishing sync.Mutex // one publish at a time
}

// live is a rollout with the store's revision of it. The state is replaced, never changed in place.
type live struct {
	*engine.Rollout
	revision int64
	written  time.Time
}

// Decision is what an operator decided about a revision.
type Decision struct {
	Release stopgapv1.Release `json:"release"`
	Reason  string            `json:"reason"`
	By      string            `json:"by"`
	At      time.Time         `json:"at"`
}

const kRelease = "release/"

// class is servers that are given the same.
type class struct {
	content    uint64
	generation uint64 // of the encoded form
	data       []byte
}

const defaultTick = 500 * time.Millisecond

// New makes a rollout. Its epoch is new with each start of the controller, so that one restored from a backup, whose
// generations went back, starts over.
func New(ctx context.Context, cfg Config) (*Rollout, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	if cfg.Tick == 0 {
		cfg.Tick = defaultTick
	}
	r := &Rollout{cfg: cfg, epoch: hex.EncodeToString(b[:]), kick: make(chan struct{}, 1), classes: map[string]*class{}, fixed: map[string]map[string]bool{}, stale: map[string]bool{},
		releases: map[string]Decision{}, strategies: map[string]engine.Strategy{}}
	kvs, _, err := cfg.Store.List(ctx, kRelease)
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		var d Decision
		if err := json.Unmarshal(kv.Value, &d); err != nil {
			return nil, fmt.Errorf("rollout: %s: %w", kv.Key, err)
		}
		r.releases[strings.TrimPrefix(kv.Key, kRelease)] = d
	}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// ErrReason is returned by Set when something is to be taken off without a reason.
var ErrReason = errors.New("a reason is needed to take a mitigation off")

// Set releases a revision, holds it back, or asks agents to take it off. Errors: policy.ErrNotFound, ErrReason.
func (r *Rollout) Set(ctx context.Context, id string, revision uint32, d Decision) error {
	if r.cfg.Policy().Documents[tufpolicy.DocumentPath(id, revision)] == nil {
		return fmt.Errorf("%s is %w", mitigation.Ref(id, revision), policy.ErrNotFound)
	}
	if d.Release == stopgapv1.Release_RELEASE_REVERTED && d.Reason == "" {
		return ErrReason
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	ref := mitigation.Ref(id, revision)
	// Released is the default: there is no decision to keep.
	op := store.Op{Key: kRelease + ref, Value: raw, Delete: d.Release <= stopgapv1.Release_RELEASE_RELEASED}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{op}); err != nil {
		return err
	}
	r.mu.Lock()
	if op.Delete {
		delete(r.releases, ref)
	} else {
		r.releases[ref] = d
	}
	r.generation.Add(1)
	r.mu.Unlock()
	r.cfg.Changed()
	return nil
}

// Release is what operators decided about a revision.
func (r *Rollout) Release(ref string) Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.releases[ref]
}

// choose gives the item of each mitigation for one server, with the generation at which that is so, and tells why if somebody listens: the
// newest revision that is released to it and not held back.
// Of one that is to be taken off it names the next lower revision instead, or says that it is to go. One that is held back, blocked or
// not released is not named at all, so that who has it keeps it.
func (r *Rollout) choose(cur *policy.Current, srv Server, tell func(id, step string)) (items []*stopgapv1.AssignmentItem, generation uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	generation = r.generation.Load()
	for _, docs := range cur.Groups() {
		id := docs[0].GetId()
		var say func(string)
		if tell != nil {
			say = func(step string) { tell(id, step) }
		}
		it := r.item(docs, srv, say)
		if sw := r.switchedOff(id, srv); sw != nil && it != nil && !it.GetRevert() {
			if tell == nil {
				continue
			}
			tell(id, fmt.Sprintf("switched off for %s by %s since %s (%s): nothing new is applied, what is applied stays", sw.Scope, sw.By, sw.Since.UTC().Format(time.DateTime), sw.Reason))
			continue
		}
		if it != nil {
			it.OrganisationFixed = r.fixed[srv.Facts.GetOrganisation()][mitigation.Ref(id, it.GetRevision())]
			items = append(items, it)
		}
	}
	return items, generation
}

// cut bounds what servers are told as a reason.
func cut(s string) string { return bounded.Text(s, 300) }

// item chooses among the revisions of one mitigation, oldest first; nil: none is named. The caller holds the lock.
func (r *Rollout) item(docs []*mitigation.Document, srv Server, say func(string)) *stopgapv1.AssignmentItem {
	tell := func(format string, args ...any) {
		if say != nil {
			say(fmt.Sprintf(format, args...))
		}
	}
	name := func(d *mitigation.Document) *stopgapv1.AssignmentItem {
		return &stopgapv1.AssignmentItem{Mitigation: d.GetId(), Revision: d.GetRevision(), Sha256: d.SHA256[:]}
	}
	var off *mitigation.Document // the newest that is to go
	why := ""
	goes := func(d *mitigation.Document, reason string) {
		if off == nil {
			off, why = d, d.Ref()+": "+reason
		}
	}
	for i := len(docs) - 1; i >= 0; i-- {
		d := docs[i]
		switch dec := r.releases[d.Ref()]; dec.Release {
		case stopgapv1.Release_RELEASE_HELD:
			tell("%s is held back by %s: who has it keeps it", d.Ref(), dec.By)
			return nil
		case stopgapv1.Release_RELEASE_REVERTED:
			tell("%s is to be taken off, by %s: %s", d.Ref(), dec.By, dec.Reason)
			goes(d, dec.Reason)
			continue
		default:
		}
		give, x := r.gives(d, srv.ID)
		switch give {
		case engine.Target:
			tell("%s is released by rollout %s (%s, %s)", d.Ref(), x.ID, x.Strategy.Name, x.Phase)
			it := name(d)
			it.Reason, it.Emergency = why, x.Strategy.Name == emergency
			return it
		case engine.Back:
			tell("%s is taken back by rollout %s: %s", d.Ref(), x.ID, x.Cause)
			goes(d, cut("rollout "+x.ID+" "+x.Cause))
		case engine.Nothing:
			if x == nil {
				tell("%s is in policy, and no rollout releases it", d.Ref())
			} else if m := x.Members[srv.ID]; m != nil {
				tell("%s waits: rollout %s is in wave %d (%s), this server is in wave %d", d.Ref(), x.ID, x.Wave+1, x.Phase, m.Wave+1)
			} else {
				tell("%s is not released to this server by rollout %s (%s)", d.Ref(), x.ID, x.Phase)
			}
		}
	}
	if off == nil {
		return nil
	}
	it := name(off)
	it.Revert, it.Reason = true, why
	return it
}

// Explain follows the decisions about every mitigation in policy for one server, by id.
func (r *Rollout) Explain(id string) map[string][]string {
	out := map[string][]string{}
	srv, ok := r.cfg.Agents.Server(id)
	if !ok {
		return out
	}
	cur := r.cfg.Policy()
	for _, d := range cur.Sorted() {
		if !mitigation.Applies(d.Mitigation, srv.Facts) {
			out[d.GetId()] = append(out[d.GetId()], d.Ref()+" is in policy, and not for this server (role or build)")
		} else {
			out[d.GetId()] = append(out[d.GetId()], d.Ref()+" is in policy, and for this server")
		}
	}
	r.choose(cur, srv, func(id, step string) { out[id] = append(out[id], step) })
	return out
}

// Epoch is the controller's epoch.
func (r *Rollout) Epoch() string { return r.epoch }

// FactsChanged says that facts of organisations changed on disk: whether all of one is fixed is looked at by whoever asks next for one of its
// servers, and for everybody soon.
func (r *Rollout) FactsChanged(organisations []string) {
	r.mu.Lock()
	for _, o := range organisations {
		r.stale[o] = true
	}
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run drives rollouts, and looks at organisations after changes of facts, until ctx ends.
func (r *Rollout) Run(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.Look(ctx, time.Now())
			continue
		case <-r.kick:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		r.organisations(r.cfg.Agents.Organisations()...)
		r.mu.Lock()
		news := r.generation.Load() != r.told // also by who asked meanwhile
		r.told = r.generation.Load()
		r.mu.Unlock()
		if news {
			r.cfg.Changed()
		}
	}
}

// Released says which revisions are released to everybody they are for.
func (r *Rollout) Released() map[string]bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := map[string]bool{}
	for _, docs := range r.cfg.Policy().Groups() {
		// A server that no rollout knows by name is given what everybody is.
		if it := r.item(docs, Server{}, nil); it != nil {
			out[mitigation.Ref(it.GetMitigation(), it.GetRevision())] = !it.GetRevert()
		}
	}
	return out
}

// PolicyChanged makes rollouts for what is new in policy, and tells everybody.
func (r *Rollout) PolicyChanged(ctx context.Context) {
	r.organisations(r.cfg.Agents.Organisations()...) // before anything of it is given
	if err := r.adopt(ctx); err != nil {
		r.cfg.Logger.Error("rollouts for what is new in policy can't be made; nothing of it is released", "error", err)
	}
	r.changed()
}

// changed makes every encoded assignment old, and tells everybody.
func (r *Rollout) changed() {
	r.mu.Lock()
	r.generation.Add(1)
	r.told = r.generation.Load()
	r.mu.Unlock()
	r.cfg.Changed()
}

// organisations looks which of some organisations are fixed for what.
func (r *Rollout) organisations(names ...string) {
	cur := r.cfg.Policy()
	var table *exchange.Table
	if cur.Fixed != nil {
		table = cur.Fixed.Table
	}
	r.mu.Lock()
	for _, org := range names {
		delete(r.stale, org) // what changes from here on is looked at again
	}
	r.mu.Unlock()
	for _, org := range names {
		next := map[string]bool{}
		for _, d := range cur.Sorted() {
			if mitigation.RemoveWhen(d.Mitigation) == stopgapv1.RemoveWhen_REMOVE_WHEN_ORGANISATION_FIXED && r.cfg.Agents.OrganisationFixed(org, d.GetCves(), table) {
				next[d.Ref()] = true
			}
		}
		r.mu.Lock()
		if !maps.Equal(next, r.fixed[org]) {
			r.fixed[org] = next
			r.generation.Add(1)
		}
		r.mu.Unlock()
	}
}

// Generation moves whenever what a server is given may have changed; while it stands, For need not be asked again.
func (r *Rollout) Generation() uint64 { return r.generation.Load() }

// For gives the encoded assignment of a server, and what tells it from another one; nil before anything was published.
func (r *Rollout) For(id string) (data []byte, content uint64) {
	cur := r.cfg.Policy()
	srv, ok := r.cfg.Agents.Server(id)
	if cur.Version == 0 || !ok {
		return nil, 0
	}
	r.mu.RLock()
	stale := r.stale[srv.Facts.GetOrganisation()]
	r.mu.RUnlock()
	if stale {
		r.organisations(srv.Facts.GetOrganisation())
	}
	items, generation := r.choose(cur, srv, nil)
	org := srv.Facts.GetOrganisation()
	var b strings.Builder
	b.WriteString(org)
	for _, n := range []uint64{cur.Version, uint64(len(items))} {
		b.WriteByte(0)
		b.WriteString(strconv.FormatUint(n, 10))
	}
	for _, it := range items {
		b.WriteByte(0)
		b.WriteString(it.GetMitigation())
		b.WriteByte(0)
		b.WriteString(strconv.FormatUint(uint64(it.GetRevision()), 10))
		for _, on := range []bool{it.GetRevert(), it.GetOrganisationFixed(), it.GetEmergency()} {
			b.WriteString(map[bool]string{true: "+", false: "-"}[on])
		}
		b.WriteString(it.GetReason())
	}
	key := b.String()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.classes[key]
	if c == nil {
		if len(r.classes) >= maxClasses { // of policies and rollouts that are gone
			clear(r.classes)
		}
		r.content++
		c = &class{content: r.content}
		r.classes[key] = c
	}
	if c.data == nil || c.generation < generation {
		data, err := proto.Marshal(&stopgapv1.Assignment{Fleet: r.cfg.Fleet, Organisation: org, ControllerEpoch: r.epoch,
			Generation: generation + 1, PolicyVersion: cur.Version, Items: items})
		if err != nil {
			return nil, 0 // can't happen: organisation names are checked where they come in
		}
		c.data, c.generation = data, generation
	}
	return c.data, c.content
}

// maxClasses bounds the encoded assignments that are kept.
const maxClasses = 4096
