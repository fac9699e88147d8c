package rollout

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// memory is a store whose process can die at any write.
type memory struct {
	store.Store
	mu       sync.Mutex
	kv       map[string]store.KV
	revision int64
	// Die at this write, counted from 1: before it is durable, or after it and before anybody is told.
	dieAt, writes int
	after         bool
}

type died struct{}

func (m *memory) Get(_ context.Context, key string) (store.KV, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kv, ok := m.kv[key]
	if !ok {
		return kv, store.ErrNotFound
	}
	return kv, nil
}

func (m *memory) List(_ context.Context, prefix string) ([]store.KV, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []store.KV
	for k, v := range m.kv {
		if strings.HasPrefix(k, prefix) {
			out = append(out, v)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out, m.revision, nil
}

func (m *memory) Txn(_ context.Context, compare []store.Compare, ops []store.Op) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.writes == m.dieAt && !m.after {
		panic(died{})
	}
	for _, c := range compare {
		if m.kv[c.Key].Revision != c.Revision {
			return 0, store.ErrConflict
		}
	}
	m.revision++
	for _, op := range ops {
		if op.Delete {
			delete(m.kv, op.Key)
		} else {
			m.kv[op.Key] = store.KV{Key: op.Key, Value: op.Value, Revision: m.revision}
		}
	}
	if m.writes == m.dieAt {
		panic(died{})
	}
	return m.revision, nil
}

// said is what a server said, and when.
type said struct {
	outcome *stopgapv1.Outcome
	at      time.Time
}

// server answers to assignments as its behaviour says.
type server struct {
	Server
	behaves string // good, partial, forgets, fails, kills, refuses, slow, unproven, deaf
	out     map[string]said
	got     uint64 // generation of the assignment it took last
	epoch   string
	content uint64 // as its session sent it last
	given   map[string]int
	items   []*stopgapv1.AssignmentItem
}

// world is a fleet of such servers, and a controller's rollouts that can be started again.
type world struct {
	t       testing.TB
	mem     *memory
	cur     *policy.Current
	servers map[string]*server
	r       *Rollout
	mu      sync.Mutex
	offset  time.Duration
}

func doc(t testing.TB, id string, revision uint32) *mitigation.Document {
	t.Helper()
	m := &stopgapv1.Mitigation{Id: id, Revision: revision, Severity: stopgapv1.Severity_SEVERITY_HIGH,
		AppliesTo: &stopgapv1.AppliesTo{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}},
		Probes:    []*stopgapv1.Probe{{Kind: &stopgapv1.Probe_Effect{Effect: &stopgapv1.EffectProbe{Request: "GET /x", ExpectAborted: true}}}}}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := &mitigation.Document{Mitigation: m}
	copy(d.SHA256[:], raw)
	return d
}

func newWorld(t testing.TB) *world {
	return &world{t: t, mem: &memory{kv: map[string]store.KV{}}, servers: map[string]*server{}, cur: &policy.Current{Documents: map[string]*mitigation.Document{}}}
}

func (w *world) add(name string, labels map[string]string) *server {
	f := &stopgapv1.Facts{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}, ExchangeBuild: "15.2.2562.17", Organisation: "Contoso", Dag: labels["dag"]}
	if b := labels["build"]; b != "" {
		f.ExchangeBuild = b
	}
	s := &server{Server: Server{ID: "id-" + name, Name: name, Facts: f, Labels: labels, Connected: true}, behaves: "good", out: map[string]said{}, given: map[string]int{}}
	w.servers[s.ID] = s
	return s
}

// publish puts revisions into policy.
func (w *world) publish(refs ...string) {
	w.t.Helper()
	next := &policy.Current{Documents: map[string]*mitigation.Document{}}
	for p, d := range w.cur.Documents {
		next.Documents[p] = d
	}
	for _, ref := range refs {
		id, rev, err := mitigation.ParseRef(ref)
		if err != nil {
			w.t.Fatal(err)
		}
		next.Documents[tufpolicy.DocumentPath(id, rev)] = doc(w.t, id, rev)
	}
	next.Version = w.cur.Version + 1
	w.mu.Lock()
	w.cur = next
	w.mu.Unlock()
	w.r.PolicyChanged(w.t.Context())
}

// start starts the controller on what is in the store.
func (w *world) start() {
	w.t.Helper()
	r, err := New(w.t.Context(), Config{Fleet: "lab", Store: w.mem, Outcomes: outcomes{w: w}, Agents: w, Changed: func() {}, Wake: func([]string) {}, Told: func(string, string, string) {},
		Policy: func() *policy.Current { w.mu.Lock(); defer w.mu.Unlock(); return w.cur }, Logger: hclog.NewNullLogger()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.r = r
	r.PolicyChanged(w.t.Context())
}

func (w *world) now() time.Time { return time.Now().Add(w.offset) }

// live lets every connected server take its assignment and do with it as it behaves.
func (w *world) live() {
	for _, s := range w.servers {
		if !s.Connected || s.behaves == "deaf" {
			continue
		}
		data, content := w.r.For(s.ID)
		a := &stopgapv1.Assignment{}
		if err := proto.Unmarshal(data, a); err != nil {
			w.t.Fatal(err)
		}
		// As an agent does: what is not newer is not taken.
		if a.GetControllerEpoch() != s.epoch {
			s.epoch, s.got, s.content = a.GetControllerEpoch(), 0, 0
		}
		if data == nil || content == s.content { // as a session does: what was sent is not sent again
			continue
		}
		s.content = content
		if a.GetGeneration() <= s.got { // as an agent does
			w.t.Errorf("%s was sent other content with generation %d, and has %d", s.Name, a.GetGeneration(), s.got)
			continue
		}
		s.got, s.items = a.GetGeneration(), a.GetItems()
		w.recheck(s)
	}
}

// recheck lets a server look at itself again.
func (w *world) recheck(s *server) {
	for _, it := range s.items {
		w.obey(s, it)
	}
}

func (w *world) obey(s *server, it *stopgapv1.AssignmentItem) {
	old := s.out[it.GetMitigation()]
	say := func(st stopgapv1.OutcomeState, code string, proof stopgapv1.Proof) {
		o := &stopgapv1.Outcome{Mitigation: it.GetMitigation(), Revision: it.GetRevision(), State: st, Code: code, Proof: proof, Reason: s.behaves}
		if !proto.Equal(o, old.outcome) {
			s.out[it.GetMitigation()] = said{o, w.now()}
		}
	}
	if it.GetRevert() {
		if outcome.Of(old.outcome.GetState()).Applied {
			say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, "controller-revert", 0)
		}
		return
	}
	ref := mitigation.Ref(it.GetMitigation(), it.GetRevision())
	if old.outcome.GetRevision() != it.GetRevision() || old.outcome == nil {
		s.given[ref]++
	}
	proven := stopgapv1.Proof_PROOF_EFFECT_PROVEN
	switch s.behaves {
	case "forgets":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "servicing", 0)
	case "partial":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL, "not-inherited", 0)
	case "fails":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "write-failed", 0)
	case "refuses":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED, "blocked", 0)
	case "unproven":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, "applied", stopgapv1.Proof_PROOF_CONFIGURATION_ONLY)
	case "kills":
		say(stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, "applied", proven)
		s.Connected = false
	default:
		say(stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, "applied", proven)
	}
}

// Servers implements Fleet.
func (w *world) Servers() []Server {
	var out []Server
	for _, s := range w.servers {
		out = append(out, s.Server)
	}
	return out
}

// Server implements Fleet.
func (w *world) Server(id string) (Server, bool) {
	if s := w.servers[id]; s != nil {
		return s.Server, true
	}
	return Server{}, false
}

// Organisations implements Fleet.
func (w *world) Organisations() []string { return []string{"Contoso"} }

// OrganisationFixed implements Fleet.
func (w *world) OrganisationFixed(string, []string, *exchange.Table) bool { return false }

// outcomes is what the servers said.
type outcomes struct {
	store.Outcomes
	w *world
}

// Current implements store.Outcomes.
func (o outcomes) Current(_ context.Context, id string) ([]*stopgapv1.OutcomeRecord, int64, error) {
	var out []*stopgapv1.OutcomeRecord
	for _, s := range o.w.servers {
		if x, ok := s.out[id]; ok {
			out = append(out, &stopgapv1.OutcomeRecord{AgentId: s.ID, Outcome: x.outcome, RecordedAt: timestamppb.New(x.at)})
		}
	}
	return out, 1, nil
}

// count counts the servers on which a revision is applied.
func (w *world) count(ref string) int {
	n := 0
	for _, s := range w.servers {
		for _, x := range s.out {
			if mitigation.Ref(x.outcome.GetMitigation(), x.outcome.GetRevision()) == ref && x.outcome.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED {
				n++
			}
		}
	}
	return n
}

func (w *world) newest() *engine.Rollout { return w.r.List()[0] }

// tick lets some of synctest's time pass: servers live, rollouts look.
func (w *world) tick(d time.Duration) {
	time.Sleep(d)
	w.live()
	w.r.Look(w.t.Context(), w.now())
}

func (w *world) strategy(raw string) string {
	w.t.Helper()
	s, err := engine.ParseStrategy([]byte(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.r.UpdateStrategy(w.t.Context(), s, true); err != nil {
		w.t.Fatal(err)
	}
	return s.Name
}

// TestAControllerKilledAtAnyWriteReleasesNothingTwiceAndForgetsNothing plays a rollout of two revisions, dies at every write, before and after
// it is durable, and starts again.
func TestAControllerKilledAtAnyWriteReleasesNothingTwiceAndForgetsNothing(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		deaths := 0
		for at := 1; ; at++ {
			if !dies(t, at, after) {
				break
			}
			deaths++
		}
		if deaths < 8 {
			t.Errorf("after %t: it died %d times only", after, deaths)
		}
		t.Logf("after %t: died at each of %d writes", after, deaths)
	}
}

func path(t *testing.T, ref string) string {
	t.Helper()
	id, rev, err := mitigation.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return tufpolicy.DocumentPath(id, rev)
}

func dies(t *testing.T, at int, after bool) (dead bool) {
	t.Helper()
	w := newWorld(t)
	for i := range 6 {
		w.add(fmt.Sprintf("EX%d", i), nil)
	}
	w.start()
	w.strategy(`{"name":"two","onHalt":"hold","maxFailures":{},"waves":[{"count":1,"minHealthyTime":"10s"},{"maxInFlight":2,"minHealthyTime":"10s"}]}`)
	w.mem.dieAt, w.mem.after = w.mem.writes+at, after
	clock := time.Now()
	look := func() {
		clock = clock.Add(5 * time.Second)
		w.offset = time.Until(clock)
		w.live()
		w.r.Look(t.Context(), clock)
	}
	// Whatever dies is started again, and does what it was at once more.
	safely := func(f func()) {
		defer func() {
			switch r := recover(); r.(type) {
			case nil:
			case died:
				dead = true
				w.start()
			default:
				panic(r)
			}
		}()
		f()
	}
	for _, ref := range []string{"M1@1", "M1@2"} {
		// The choice is made with the publish; a policy that was not yet published then is published again.
		for i := 0; i == 0 || w.cur.Documents[path(t, ref)] == nil; i++ {
			safely(func() {
				if err := w.r.With(t.Context(), "two", false, "alice", func() error { w.publish(ref); return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		for range 40 {
			safely(look)
			if n := w.newest().InFlight(); n > 2 {
				t.Fatalf("write %d: %d in flight", at, n)
			}
		}
		if x := w.newest(); x.Phase != engine.Completed || w.count(ref) != 6 {
			t.Fatalf("write %d, after %t: %s is on %d servers, rollout %s: %s", at, after, ref, w.count(ref), x.Phase, x.Reason)
		}
	}
	for _, s := range w.servers {
		for ref, n := range s.given {
			if n != 1 {
				t.Errorf("write %d, after %t: %s was given %s %d times", at, after, s.Name, ref, n)
			}
		}
	}
	return dead
}
