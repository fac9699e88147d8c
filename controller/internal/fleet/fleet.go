// Package fleet is what the controller knows of its servers: facts, connection, warnings, and the outcomes they report. It
// decides nothing about them.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/exchange"
)

const (
	prefix = "agent/"
	// flushEvery collects changes of agents' records: ten thousand that connect at once are a few transactions.
	flushEvery = 200 * time.Millisecond
	flushBatch = 1000
	// An agent without a stream is stale after staleAfter, and lost after lostAfter: what is known of it is that old.
	staleAfter = 2 * time.Minute
	lostAfter  = 24 * time.Hour
	// Bounds on what an agent says about itself.
	maxText   = 256
	maxHealth = 32
)

// Errors that callers branch on.
var (
	ErrNotFound  = errors.New("no such server")
	ErrAmbiguous = errors.New("not unique")
)

// Fleet is the inventory. It is safe for concurrent use.
type Fleet struct {
	st      store.Store
	log     hclog.Logger
	written func(agents, organisations []string)

	mu     sync.RWMutex
	agents map[string]*record
	dirty  map[string]bool
	// mailbox counts Mailbox servers by organisation and build, so that "is every one fixed" need not look at each. It
	// counts what is on disk: what was decided by facts must not be decided otherwise after a crash that forgot them.
	mailbox map[string]map[string]int
}

type record struct {
	a         *stopgapv1.Agent // replaced, never changed in place
	counted   *stopgapv1.Facts // as on disk
	connected bool
	// Policy, as the agent said last; not on disk.
	holds, refused uint64
	refusedError   string
	own            []*stopgapv1.Health // raised here about it
}

// Load reads the inventory. written is called after records were written, with their ids and the organisations whose facts
// changed by that.
func Load(ctx context.Context, st store.Store, log hclog.Logger, written func(agents, organisations []string)) (*Fleet, error) {
	f := &Fleet{st: st, log: log, written: written, agents: map[string]*record{}, dirty: map[string]bool{}, mailbox: map[string]map[string]int{}}
	kvs, _, err := st.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		a := &stopgapv1.Agent{}
		if err := proto.Unmarshal(kv.Value, a); err != nil {
			return nil, fmt.Errorf("fleet: %s: %w", kv.Key, err)
		}
		f.agents[a.GetId()] = &record{a: a, counted: a.GetFacts()}
		f.count(a.GetFacts(), 1)
	}
	return f, nil
}

// Run writes changed records until ctx ends, and once more then.
func (f *Fleet) Run(ctx context.Context) error {
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return f.flush(context.WithoutCancel(ctx))
		case <-t.C:
			if err := f.flush(ctx); err != nil {
				f.log.Error("inventory can't be written; trying again", "error", err)
			}
		}
	}
}

func (f *Fleet) flush(ctx context.Context) error {
	for {
		f.mu.Lock()
		var ops []store.Op
		batch := map[string]*stopgapv1.Agent{}
		for id := range f.dirty {
			a := f.agents[id].a
			raw, err := proto.Marshal(a)
			if err != nil {
				f.mu.Unlock()
				return err
			}
			ops, batch[id] = append(ops, store.Op{Key: prefix + id, Value: raw}), a
			delete(f.dirty, id)
			if len(ops) == flushBatch {
				break
			}
		}
		f.mu.Unlock()
		if len(ops) == 0 {
			return nil
		}
		sort.Slice(ops, func(i, j int) bool { return ops[i].Key < ops[j].Key })
		if _, err := f.st.Txn(ctx, nil, ops); err != nil {
			f.mu.Lock()
			for id := range batch {
				f.dirty[id] = true
			}
			f.mu.Unlock()
			return err
		}
		f.settle(batch)
	}
}

// settle counts what was written, and tells.
func (f *Fleet) settle(batch map[string]*stopgapv1.Agent) {
	ids := make([]string, 0, len(batch))
	orgs := map[string]bool{}
	f.mu.Lock()
	for id, a := range batch {
		ids = append(ids, id)
		r := f.agents[id]
		if old := r.counted; !proto.Equal(old, a.GetFacts()) {
			f.count(old, -1)
			f.count(a.GetFacts(), 1)
			orgs[a.GetFacts().GetOrganisation()] = true
			if old != nil {
				orgs[old.GetOrganisation()] = true
			}
		}
		r.counted = a.GetFacts()
	}
	f.mu.Unlock()
	names := make([]string, 0, len(orgs))
	for o := range orgs {
		names = append(names, o)
	}
	f.written(ids, names)
}

// Settled says whether an agent's facts are on disk, as they are known now: before that nothing is released to it.
func (f *Fleet) Settled(id string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	r := f.agents[id]
	return r != nil && r.counted != nil && (r.counted == r.a.GetFacts() || proto.Equal(r.counted, r.a.GetFacts()))
}

func clip(s string) string { return bounded.Text(s, maxText) }

// cleanFacts bounds what an agent says about its server.
func cleanFacts(in *stopgapv1.Facts) *stopgapv1.Facts {
	return &stopgapv1.Facts{Host: clip(in.GetHost()), Organisation: clip(in.GetOrganisation()), ExchangeBuild: clip(in.GetExchangeBuild()),
		Roles: in.GetRoles()[:min(len(in.GetRoles()), 8)], UrlRewrite: clip(in.GetUrlRewrite()), Os: clip(in.GetOs()), Dag: clip(in.GetDag()),
		Servicing: in.GetServicing(), MachineId: clip(in.GetMachineId()),
		Iis: clip(in.GetIis()), Domain: clip(in.GetDomain()), InstallPath: clip(in.GetInstallPath()), WindowsBuild: clip(in.GetWindowsBuild()),
		Unsettled: clip(in.GetUnsettled())}
}

func cleanHealth(in []*stopgapv1.Health) []*stopgapv1.Health {
	var out []*stopgapv1.Health
	for _, h := range in[:min(len(in), maxHealth)] {
		out = append(out, &stopgapv1.Health{Code: clip(h.GetCode()), Text: clip(h.GetText()), Since: h.GetSince()})
	}
	return out
}

// count keeps the counts of Mailbox servers; the caller holds the lock, or nobody else can see f yet.
func (f *Fleet) count(facts *stopgapv1.Facts, by int) {
	for _, r := range facts.GetRoles() {
		if r == stopgapv1.Role_ROLE_MAILBOX {
			org := f.mailbox[facts.GetOrganisation()]
			if org == nil {
				org = map[string]int{}
				f.mailbox[facts.GetOrganisation()] = org
			}
			build := facts.GetExchangeBuild()
			if facts.GetUnsettled() != "" {
				build += " (unsettled)" // no build, so not fixed
			}
			if org[build] += by; org[build] == 0 {
				delete(org, build)
			}
		}
	}
}

// update changes one record under the lock; change gets a copy.
func (f *Fleet) update(id string, change func(a *stopgapv1.Agent, r *record)) {
	f.mu.Lock()
	r := f.agents[id]
	if r == nil {
		r = &record{a: &stopgapv1.Agent{Id: id}}
		f.agents[id] = r
	}
	old := r.a
	next := proto.CloneOf(old)
	change(next, r)
	r.a = next
	f.dirty[id] = true
	f.mu.Unlock()
}

// Connected records an agent's Hello on a stream (stream true) or a pull.
func (f *Fleet) Connected(h *stopgapv1.Hello, stream bool) {
	f.update(h.GetAgentId(), func(a *stopgapv1.Agent, r *record) {
		a.Name, a.AgentVersion = clip(h.GetName()), clip(h.GetAgentVersion())
		if h.GetFacts() != nil {
			a.Facts = cleanFacts(h.GetFacts())
		}
		r.holds, r.refused, r.refusedError = h.GetPolicyVersion(), 0, ""
		if h.GetAttemptedError() != "" {
			r.refused, r.refusedError = h.GetAttemptedVersion(), clip(h.GetAttemptedError())
		}
		a.Health, a.LastSeenAt = cleanHealth(h.GetHealth()), timestamppb.Now()
		r.connected = r.connected || stream
	})
}

// Disconnected records the end of an agent's stream.
func (f *Fleet) Disconnected(id string) {
	f.update(id, func(a *stopgapv1.Agent, r *record) {
		r.connected = false
		a.LastSeenAt = timestamppb.Now()
	})
}

// Facts records changed facts.
func (f *Fleet) Facts(id string, facts *stopgapv1.Facts) {
	f.update(id, func(a *stopgapv1.Agent, _ *record) { a.Facts = cleanFacts(facts) })
}

// Holds records which policy version an agent holds. It is not written to the store: every Hello says it anew, and ten
// thousand agents say it at once.
func (f *Fleet) Holds(id string, version uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.agents[id]; r != nil {
		r.holds, r.refused, r.refusedError = version, 0, ""
	}
}

// Refused records a policy version that an agent refused, and the one it still holds.
func (f *Fleet) Refused(id string, holds, refused uint64, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.agents[id]; r != nil {
		r.holds, r.refused, r.refusedError = holds, refused, clip(why)
	}
}

// Heartbeat records an agent's standing warnings; nothing is written when they are what they were.
func (f *Fleet) Heartbeat(id string, hb *stopgapv1.Heartbeat) {
	health := cleanHealth(hb.GetHealth())
	f.mu.RLock()
	r := f.agents[id]
	same := r != nil && sameHealth(r.a.GetHealth(), health)
	f.mu.RUnlock()
	if !same {
		f.update(id, func(a *stopgapv1.Agent, _ *record) { a.Health = health })
	}
}

func sameHealth(a, b []*stopgapv1.Health) bool {
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

// Raise adds a warning of the controller's own about an agent. It stays until the controller restarts.
func (f *Fleet) Raise(id, code, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.agents[id]
	if r == nil {
		return
	}
	for _, h := range r.own {
		if h.GetCode() == code {
			return
		}
	}
	r.own = append(r.own, &stopgapv1.Health{Code: code, Text: clip(text), Since: timestamppb.Now()})
}

// minPrefix keeps a slip of the finger from naming a server.
const minPrefix = 4

// Find gives a server by id, by a unique prefix of it, or by name.
func (f *Fleet) Find(id string) (*stopgapv1.Agent, error) {
	now := time.Now()
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r := f.agents[id]; r != nil {
		return r.view(now), nil
	}
	var found []*record
	for full, r := range f.agents {
		if len(id) >= minPrefix && strings.HasPrefix(full, id) || strings.EqualFold(r.a.GetName(), id) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %q is no id, prefix of one (%d characters at least) or name", ErrNotFound, id, minPrefix)
	case 1:
		return found[0].view(now), nil
	}
	return nil, fmt.Errorf("%w: %q names %d servers; use more of the id", ErrAmbiguous, id, len(found))
}

// Label gives an agent's name and organisation.
func (f *Fleet) Label(id string) (name, organisation string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	r := f.agents[id]
	if r == nil {
		return "", ""
	}
	return r.a.GetName(), r.a.GetFacts().GetOrganisation()
}

// Each calls f with every record. What it is given is not to be changed.
func (f *Fleet) Each(do func(a *stopgapv1.Agent, connected bool)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, r := range f.agents {
		do(r.a, r.connected)
	}
}

// Record gives one record, not to be changed; nil when there is none.
func (f *Fleet) Record(id string) (a *stopgapv1.Agent, connected bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r := f.agents[id]; r != nil {
		return r.a, r.connected
	}
	return nil, false
}

// Ahead says how many agents hold a newer policy than a version, and the newest they name.
func (f *Fleet) Ahead(version uint64) (agents uint32, newest uint64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, r := range f.agents {
		if r.holds > version {
			agents++
			newest = max(newest, r.holds)
		}
	}
	return agents, newest
}

// Organisations lists the organisations known.
func (f *Fleet) Organisations() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	seen := map[string]bool{}
	for _, r := range f.agents {
		seen[r.a.GetFacts().GetOrganisation()] = true
	}
	var out []string
	for o := range seen {
		out = append(out, o)
	}
	sort.Strings(out)
	return out
}

// OrganisationFixed says whether every known Mailbox server of an organisation runs a build that is fixed for all of the
// CVEs. Silence is no proof: a server not heard of for long counts with the build it had; one whose build is unknown is
// not fixed. False when no Mailbox server is known.
func (f *Fleet) OrganisationFixed(organisation string, cves []string, table *exchange.Table) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	builds := f.mailbox[organisation]
	for s := range builds {
		b, err := exchange.ParseBuild(s)
		if err != nil || table.StateAll(cves, b) != exchange.Fixed {
			return false
		}
	}
	return len(builds) > 0
}
