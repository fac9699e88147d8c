// Package rollout decides when a server gets what is in policy. Today it knows one strategy, `emergency` in one wave:
// everything in policy is released to everybody at once, the newest revision of each mitigation, unless an operator holds it
// back or wants it off. What it owns is those decisions, and the assignments: one for each organisation, encoded once for all
// of its servers.
package rollout

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Fleet is what a release depends on.
type Fleet interface {
	Organisations() []string
	OrganisationFixed(organisation string, cves []string, table *exchange.Table) bool
}

// Config of a Rollout.
type Config struct {
	Fleet  string
	Store  store.Store
	Policy func() *policy.Current
	Agents Fleet
	// Changed is called after assignments changed.
	Changed func()
}

// settle collects changes of facts: ten thousand servers that connect at once are a few computations.
const settle = 100 * time.Millisecond

// Rollout makes assignments. It is safe for concurrent use.
type Rollout struct {
	cfg   Config
	epoch string
	kick  chan struct{}

	mu         sync.RWMutex
	generation uint64
	told       uint64 // the generation that everybody was told of
	byOrg      map[string]assignment
	releases   map[string]Decision // by id@revision
	decisions  uint64              // counts changes of releases
}

// Decision is what an operator decided about a revision.
type Decision struct {
	Release stopgapv1.Release `json:"release"`
	Reason  string            `json:"reason"`
	By      string            `json:"by"`
	At      time.Time         `json:"at"`
}

const kRelease = "release/"

type assignment struct {
	generation uint64
	data       []byte
	items      []*stopgapv1.AssignmentItem
	version    uint64
	decisions  uint64
	stale      bool
}

// New makes a rollout. Its epoch is new with each start of the controller, so that one restored from a backup, whose
// generations went back, starts over.
func New(ctx context.Context, cfg Config) (*Rollout, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	r := &Rollout{cfg: cfg, epoch: hex.EncodeToString(b[:]), kick: make(chan struct{}, 1), byOrg: map[string]assignment{}, releases: map[string]Decision{}}
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
	op := store.Op{Key: kRelease + ref, Value: raw, Delete: d.Release == stopgapv1.Release_RELEASE_UNSPECIFIED}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{op}); err != nil {
		return err
	}
	r.mu.Lock()
	if op.Delete {
		delete(r.releases, ref)
	} else {
		r.releases[ref] = d
	}
	r.decisions++
	r.mu.Unlock()
	r.Recompute()
	return nil
}

// Release is what was decided about a revision.
func (r *Rollout) Release(ref string) Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.releases[ref]
}

// choose gives the assignment's item for each mitigation: the newest revision that is not held back. Of one that is to be
// taken off it names the next lower revision instead, or says that it is to go. One that is held back is not named at all,
// so that who has it keeps it.
func (r *Rollout) choose(cur *policy.Current) []*stopgapv1.AssignmentItem {
	byID := map[string][]*mitigation.Document{}
	var order []string
	for _, d := range cur.Sorted() { // by id and revision
		if byID[d.GetId()] == nil {
			order = append(order, d.GetId())
		}
		byID[d.GetId()] = append(byID[d.GetId()], d)
	}
	var items []*stopgapv1.AssignmentItem
	for _, id := range order {
		docs := byID[id]
		why := ""
		for i := len(docs) - 1; i >= 0; i-- {
			d := docs[i]
			dec := r.Release(d.Ref())
			if dec.Release == stopgapv1.Release_RELEASE_HELD {
				break
			}
			if dec.Release != stopgapv1.Release_RELEASE_REVERTED {
				items = append(items, &stopgapv1.AssignmentItem{Mitigation: id, Revision: d.GetRevision(), Sha256: d.SHA256[:], Reason: why})
				break
			}
			if why == "" {
				why = d.Ref() + ": " + dec.Reason
			}
			if i == 0 {
				newest := docs[len(docs)-1]
				items = append(items, &stopgapv1.AssignmentItem{Mitigation: id, Revision: newest.GetRevision(), Sha256: newest.SHA256[:], Revert: true, Reason: why})
			}
		}
	}
	return items
}

// Epoch is the controller's epoch.
func (r *Rollout) Epoch() string { return r.epoch }

// FactsChanged makes the assignments of organisations stale: whoever asks next gets them made anew, and everybody else is
// told soon.
func (r *Rollout) FactsChanged(organisations []string) {
	r.mu.Lock()
	for _, o := range organisations {
		if a, ok := r.byOrg[o]; ok {
			a.stale = true
			r.byOrg[o] = a
		}
	}
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run recomputes after changes of facts until ctx ends.
func (r *Rollout) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		r.Recompute()
	}
}

// Released says which revisions are released to everybody they are for.
func (r *Rollout) Released() map[string]bool {
	out := map[string]bool{}
	for _, it := range r.choose(r.cfg.Policy()) {
		out[mitigation.Ref(it.GetMitigation(), it.GetRevision())] = !it.GetRevert()
	}
	return out
}

// Recompute makes the assignments of every organisation anew, and tells if one changed; it says so too.
func (r *Rollout) Recompute() bool {
	cur := r.cfg.Policy()
	for _, org := range r.cfg.Agents.Organisations() {
		r.compute(cur, org)
	}
	r.mu.Lock()
	changed := r.generation != r.told // also by who asked meanwhile
	r.told = r.generation
	r.mu.Unlock()
	if changed {
		r.cfg.Changed()
	}
	return changed
}

func (r *Rollout) compute(cur *policy.Current, org string) assignment {
	var table *exchange.Table
	if cur.Fixed != nil {
		table = cur.Fixed.Table
	}
	r.mu.RLock()
	decisions := r.decisions
	r.mu.RUnlock()
	items := r.choose(cur)
	for _, it := range items {
		d := cur.Documents[tufpolicy.DocumentPath(it.GetMitigation(), it.GetRevision())]
		it.OrganisationFixed = mitigation.RemoveWhen(d.Mitigation) == stopgapv1.RemoveWhen_REMOVE_WHEN_ORGANISATION_FIXED &&
			r.cfg.Agents.OrganisationFixed(org, d.GetCves(), table)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byOrg[org]; ok && (old.version > cur.Version || old.decisions > decisions || old.version == cur.Version && sameItems(old.items, items)) {
		old.stale, old.decisions = false, max(old.decisions, decisions)
		r.byOrg[org] = old
		return old
	}
	r.generation++
	data, err := proto.Marshal(&stopgapv1.Assignment{Fleet: r.cfg.Fleet, Organisation: org, ControllerEpoch: r.epoch,
		Generation: r.generation, PolicyVersion: cur.Version, Items: items})
	if err != nil {
		return r.byOrg[org] // can't happen: organisation names are checked where they come in
	}
	a := assignment{generation: r.generation, data: data, items: items, version: cur.Version, decisions: decisions}
	r.byOrg[org] = a
	return a
}

func sameItems(a, b []*stopgapv1.AssignmentItem) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// For gives the encoded assignment of an organisation and its generation; nil before anything was published.
func (r *Rollout) For(org string) (data []byte, generation uint64) {
	cur := r.cfg.Policy()
	r.mu.RLock()
	a, ok := r.byOrg[org]
	decided := r.decisions
	r.mu.RUnlock()
	if !ok || a.stale || a.version < cur.Version || a.decisions < decided {
		a = r.compute(cur, org)
	}
	if cur.Version == 0 {
		return nil, 0
	}
	return a.data, a.generation
}
