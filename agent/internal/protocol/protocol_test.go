package protocol

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// server is a reconciler that counts how often it was asked to look.
type server struct {
	kicked int
	health []*stopgapv1.Health
}

func (s *server) Facts() *stopgapv1.Facts     { return &stopgapv1.Facts{Host: "EX01"} }
func (s *server) Kick()                       { s.kicked++ }
func (s *server) Health() []*stopgapv1.Health { return s.health }

// world is an enrolled agent with a journal, and the people who sign its policy.
type world struct {
	*Handler
	t                      *testing.T
	soc                    *soc.SOC
	online                 soc.Online
	server                 *server
	journal                *journal.Journal
	renewed, woken, parsed int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: &server{}}
	for _, k := range []struct {
		role string
		into **signkey.Key
	}{{signkey.RoleSnapshot, &w.online.Snapshot}, {signkey.RoleTimestamp, &w.online.Timestamp}} {
		key, err := signkey.Generate(k.role)
		if err != nil {
			t.Fatal(err)
		}
		*k.into = key
	}
	var err error
	if w.soc, err = soc.New(filepath.Join(t.TempDir(), "policy"), w.online.Snapshot.Public, w.online.Timestamp.Public); err != nil {
		t.Fatal(err)
	}
	doc := "id: A\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"
	if err := w.soc.Add(policydir.File{Name: "A.yaml", Content: []byte(doc)}); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	if err := (policy.Anchor{Fleet: "lab", Root: w.signed().Roots[0], Fresh: true}).Write(state); err != nil {
		t.Fatal(err)
	}
	if w.journal, err = journal.Open(state, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.journal.Close() })
	keeper, _, err := policy.NewKeeper(state, w.journal, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	w.Handler = New(Config{ID: "00ff", Instance: "i", Journal: w.journal, Policy: keeper, Reconciler: w.server, Warnings: NewWarnings(),
		Renew: func() { w.renewed++ }, Wake: func() { w.woken++ }, Parsed: func() { w.parsed++ }, Logger: hclog.NewNullLogger()})
	return w
}

func (w *world) signed() tufpolicy.Signed {
	w.t.Helper()
	d, err := w.soc.Dir()
	if err != nil {
		w.t.Fatal(err)
	}
	return d.Signed()
}

// update is an encoded PolicyUpdate with what is signed, as a controller sends it.
func (w *world) update(timestamp int64, change func(*stopgapv1.PolicyUpdate)) []byte {
	w.t.Helper()
	s := w.signed()
	ts, sn, err := w.online.Sign(s.Targets, 2, timestamp, timestamp, time.Now().Add(time.Hour))
	if err != nil {
		w.t.Fatal(err)
	}
	u := &stopgapv1.PolicyUpdate{TimestampVersion: uint64(timestamp), TargetsVersion: 2, Timestamp: ts, Snapshot: sn, Targets: s.Targets}
	for p, data := range s.Documents {
		u.Documents = append(u.Documents, &stopgapv1.PolicyTarget{Path: p, Content: data})
	}
	if change != nil {
		change(u)
	}
	return w.encode(u)
}

func (w *world) encode(m proto.Message) []byte {
	w.t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// report puts outcomes into the journal.
func (w *world) report(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		o := &stopgapv1.Outcome{Mitigation: id, Revision: 1, State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED}
		if err := w.journal.Settle(journal.Settlement{Outcomes: []*stopgapv1.Outcome{o}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) warned(code string) bool {
	for _, h := range w.Health() {
		if h.GetCode() == code {
			return true
		}
	}
	return false
}

func TestAPolicyIsAcknowledgedOrRefusedAndHelloSaysWhich(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if h := w.Hello(); h.GetRootVersion() != 1 || h.GetPolicyVersion() != 0 || h.GetName() != "EX01" || h.GetAgentId() != "00ff" {
		t.Fatalf("%v", h)
	}
	ack, nack := w.Policy(w.update(1, nil))
	if nack != nil || ack.GetVersion() != 1 || ack.GetTargetsVersion() != 2 || w.server.kicked != 1 || w.parsed != 1 {
		t.Fatalf("%v %v, kicked %d, parsed %d", ack, nack, w.server.kicked, w.parsed)
	}
	if ack, nack = w.Policy(w.update(2, nil)); nack != nil || ack.GetVersion() != 2 || w.server.kicked != 1 {
		t.Errorf("a newer timestamp over the same policy: %v %v, kicked %d", ack, nack, w.server.kicked)
	}
	_, nack = w.Policy(w.update(3, func(u *stopgapv1.PolicyUpdate) { u.Timestamp[len(u.Timestamp)/2] ^= 1 }))
	if !nack.GetPermanent() || nack.GetVersion() != 3 || nack.GetHeldVersion() != 2 || nack.GetTargetsVersion() != 2 || nack.GetError() == "" {
		t.Errorf("a forged one: %v", nack)
	}
	if h := w.Hello(); h.GetAttemptedVersion() != 3 || h.GetAttemptedError() != nack.GetError() || h.GetPolicyVersion() != 2 ||
		!w.warned("policy-refused") {
		t.Errorf("%v", h)
	}
	if b := w.Heartbeat(); b.GetTimestampVersion() != 2 {
		t.Errorf("%v", b)
	}
}

func TestAnAssignmentIsTakenOncePerGenerationAndEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	many := make([]*stopgapv1.AssignmentItem, tufpolicy.MaxTargets+1)
	for i := range many {
		many[i] = &stopgapv1.AssignmentItem{Mitigation: "A"}
	}
	for _, c := range []struct {
		what string
		a    *stopgapv1.Assignment
		want bool
	}{
		{"the first", &stopgapv1.Assignment{ControllerEpoch: "e1", Generation: 5}, true},
		{"the same", &stopgapv1.Assignment{ControllerEpoch: "e1", Generation: 5}, false},
		{"an older one", &stopgapv1.Assignment{ControllerEpoch: "e1", Generation: 4}, false},
		{"a newer one", &stopgapv1.Assignment{ControllerEpoch: "e1", Generation: 6}, true},
		{"one with too many items", &stopgapv1.Assignment{ControllerEpoch: "e1", Generation: 7, Items: many}, false},
		{"one of a controller that was restored", &stopgapv1.Assignment{ControllerEpoch: "e2", Generation: 1}, true},
	} {
		kicked := w.server.kicked
		if got := w.Assignment(w.encode(c.a)); got != c.want || (w.server.kicked > kicked) != c.want {
			t.Errorf("%s: taken %v, kicked %v", c.what, got, w.server.kicked > kicked)
		}
	}
	if w.Assignment([]byte{0xff}) {
		t.Error("rubbish was taken")
	}
	if a, err := w.journal.Assignment(); err != nil || a.GetControllerEpoch() != "e2" {
		t.Errorf("%v %v is kept", a, err)
	}
}

func TestAJournalThatIsAnOlderCopyOfItselfBeginsAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.report("A", "B")
	epoch, last := w.journal.Mark()
	if err := w.Welcome(&stopgapv1.Welcome{Acknowledged: &stopgapv1.OutcomeAck{Epoch: epoch, Sequence: last + 3}}); err != nil {
		t.Fatal(err)
	}
	if now, _ := w.journal.Mark(); now == epoch || !w.warned("journal-rolled-back") || w.server.kicked != 1 {
		t.Errorf("epoch %s, was %s, kicked %d", now, epoch, w.server.kicked)
	}
	if b, err := w.Pending(0, 10); err != nil || len(b.GetOutcomes()) != 2 || b.GetEpoch() == epoch {
		t.Errorf("%v %v", b, err)
	}
}

func TestAControllerThatForgotIsToldEverythingAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.report("A", "B", "C")
	epoch, last := w.journal.Mark()
	w.Acknowledged(&stopgapv1.OutcomeAck{Epoch: epoch, Sequence: last})
	pending := func() int {
		b, err := w.Pending(0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(b.GetOutcomes())
	}
	if err := w.Welcome(&stopgapv1.Welcome{Acknowledged: &stopgapv1.OutcomeAck{Epoch: epoch, Sequence: last}}); err != nil || pending() != 0 {
		t.Errorf("one that knows all: %v, %d wait", err, pending())
	}
	if err := w.Welcome(&stopgapv1.Welcome{Acknowledged: &stopgapv1.OutcomeAck{Epoch: epoch, Sequence: 1}}); err != nil || pending() != 3 {
		t.Errorf("one restored from a backup: %v, %d wait", err, pending())
	}
}

func TestAClockThatDiffersIsWarnedOfUntilItNoLongerDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		off  time.Duration
		want bool
	}{{time.Second, false}, {-time.Hour, true}, {2 * time.Hour, true}, {0, false}} {
		err := w.Welcome(&stopgapv1.Welcome{ServerTime: timestamppb.New(time.Now().Add(c.off))})
		if err != nil || w.warned("clock-skew") != c.want {
			t.Errorf("%s off: warned %v, %v", c.off, w.warned("clock-skew"), err)
		}
	}
}

func TestCommandsAreCarriedOutAndUnknownOnesAreNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.report("A")
	epoch, last := w.journal.Mark()
	w.Acknowledged(&stopgapv1.OutcomeAck{Epoch: epoch, Sequence: last})
	for _, k := range []stopgapv1.CommandKind{stopgapv1.CommandKind_COMMAND_KIND_RECHECK, stopgapv1.CommandKind_COMMAND_KIND_RENEW,
		stopgapv1.CommandKind_COMMAND_KIND_SEND_EVERYTHING, stopgapv1.CommandKind_COMMAND_KIND_UNSPECIFIED, 99} {
		w.Command(k)
	}
	if w.server.kicked != 1 || w.renewed != 1 || w.woken != 1 {
		t.Errorf("kicked %d, renewed %d, woken %d", w.server.kicked, w.renewed, w.woken)
	}
	if b, err := w.Pending(0, 10); err != nil || len(b.GetOutcomes()) != 1 {
		t.Errorf("%v %v; everything was to be sent again", b, err)
	}
}

func TestWarningsKeepTheirTimeAndAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Warnings.Raise("a", "first")
	since := w.cfg.Warnings.List()[0].GetSince()
	w.cfg.Warnings.Raise("a", "second")
	w.cfg.Warnings.Set("a", "third")
	if h := w.cfg.Warnings.List(); len(h) != 1 || h[0].GetText() != "third" || !proto.Equal(h[0].GetSince(), since) {
		t.Errorf("%v", h)
	}
	for i := range 2 * maxHealth {
		w.server.health = append(w.server.health, &stopgapv1.Health{Code: strings.Repeat("x", i+1)})
	}
	if n := len(w.Hello().GetHealth()); n != maxHealth {
		t.Errorf("%d warnings in a message, limit %d", n, maxHealth)
	}
	w.cfg.Warnings.Set("a", "")
	if len(w.cfg.Warnings.List()) != 0 {
		t.Error("it still warns")
	}
}
