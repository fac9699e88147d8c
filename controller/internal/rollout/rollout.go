// Package rollout decides when a server gets what is in policy. Today it knows one strategy, `emergency` in one wave:
// everything in policy is released to everybody at once, the newest revision of each mitigation. What it owns is the
// assignments: one for each organisation, encoded once for all of its servers.
package rollout

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

// Fleet is what a release depends on.
type Fleet interface {
	Organisations() []string
	OrganisationFixed(organisation string, cves []string, table *exchange.Table) bool
}

// Config of a Rollout.
type Config struct {
	Fleet  string
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
}

type assignment struct {
	generation uint64
	data       []byte
	items      []*stopgapv1.AssignmentItem
	version    uint64
	stale      bool
}

// New makes a rollout. Its epoch is new with each start of the controller, so that one restored from a backup, whose
// generations went back, starts over.
func New(cfg Config) (*Rollout, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	return &Rollout{cfg: cfg, epoch: hex.EncodeToString(b[:]), kick: make(chan struct{}, 1), byOrg: map[string]assignment{}}, nil
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
	var items []*stopgapv1.AssignmentItem
	for _, d := range cur.Newest() {
		fixed := mitigation.RemoveWhen(d.Mitigation) == stopgapv1.RemoveWhen_REMOVE_WHEN_ORGANISATION_FIXED &&
			r.cfg.Agents.OrganisationFixed(org, d.GetCves(), table)
		items = append(items, &stopgapv1.AssignmentItem{Mitigation: d.GetId(), Revision: d.GetRevision(), Sha256: d.SHA256[:], OrganisationFixed: fixed})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byOrg[org]; ok && (old.version > cur.Version || old.version == cur.Version && sameItems(old.items, items)) {
		old.stale = false
		r.byOrg[org] = old
		return old
	}
	r.generation++
	data, err := proto.Marshal(&stopgapv1.Assignment{Fleet: r.cfg.Fleet, Organisation: org, ControllerEpoch: r.epoch,
		Generation: r.generation, PolicyVersion: cur.Version, Items: items})
	if err != nil {
		return r.byOrg[org] // can't happen: organisation names are checked where they come in
	}
	a := assignment{generation: r.generation, data: data, items: items, version: cur.Version}
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
	r.mu.RUnlock()
	if !ok || a.stale || a.version < cur.Version {
		a = r.compute(cur, org)
	}
	if cur.Version == 0 {
		return nil, 0
	}
	return a.data, a.generation
}
