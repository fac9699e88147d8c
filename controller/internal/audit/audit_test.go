package audit

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

var ann = Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_ADMIN, Name: "ann"}

func open(t *testing.T) (store.Store, func() *Log) {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st, func() *Log {
		l, err := Load(t.Context(), st, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

func TestTheChainGoesOnOverARestartAndShowsWhatWasAlteredOrTakenOut(t *testing.T) {
	t.Parallel()
	st, load := open(t)
	l := load()
	for i := range 5 {
		l.Append(t.Context(), ann, "publish", "policy", "change %d", i)
	}
	l = load()
	l.Append(t.Context(), ann, "token-create", "x", "%s", strings.Repeat("long ", 1000))
	entries, broken, err := l.List(t.Context(), 4)
	if err != nil || broken > 0 || len(entries) != 2 || entries[1].GetSequence() != 6 || len(entries[1].GetDetail()) > maxText {
		t.Fatalf("%v %d %v", entries, broken, err)
	}
	key := l.people.key(3)
	kv, err := st.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	e := &stopgapv1.AuditEntry{}
	if err := proto.Unmarshal(kv.Value, e); err != nil {
		t.Fatal(err)
	}
	e.ActorName = "somebody else"
	raw, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]store.Op{"altered": {Key: key, Value: raw}, "taken out": {Key: key, Delete: true},
		"the oldest taken out": {Key: l.people.key(1), Delete: true}, "the newest taken out": {Key: l.people.key(6), Delete: true}} {
		kv, err := st.Get(t.Context(), op.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Txn(t.Context(), nil, []store.Op{op}); err != nil {
			t.Fatal(err)
		}
		if _, broken, err := l.List(t.Context(), 0); err != nil || broken == 0 {
			t.Errorf("%s: %v at %d, %v", name, broken == 0, broken, err)
		}
		if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: op.Key, Value: kv.Value}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnAgentCanNotPushAPersonsDecisionOutOfTheLog(t *testing.T) {
	t.Parallel()
	_, load := open(t)
	l := load()
	l.Append(t.Context(), ann, "publish", "policy", "the decision")
	for i := range 500 {
		l.Append(t.Context(), Agent("evil"), "policy-refused", "timestamp", "nack %d", i)
	}
	l.Append(t.Context(), ann, "token-create", "x", "another decision")
	entries, broken, err := l.List(t.Context(), 0)
	if err != nil || broken > 0 {
		t.Fatalf("%v %v", broken, err)
	}
	evil, people := 0, 0
	for _, e := range entries {
		if e.GetActorKind() == stopgapv1.ActorKind_ACTOR_KIND_AGENT && e.GetActorName() == "evil" {
			evil++
		} else {
			people++
		}
	}
	if evil != actorBurst || people != 2 {
		t.Errorf("%d entries of one agent, %d of people", evil, people)
	}
	if !Controller.ours() || !ParseActor("operator ben").ours() || Nobody.ours() || Token("x").ours() || (Actor{Name: "somebody"}).ours() {
		t.Error("who is ours is told apart wrongly")
	}
}

func TestOneDamagedEntryIsShownAsSuchAndHidesNoOther(t *testing.T) {
	t.Parallel()
	st, load := open(t)
	l := load()
	for range 3 {
		l.Append(t.Context(), ann, "publish", "policy", "something")
	}
	if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: l.people.key(2), Value: []byte("\xff")}}); err != nil {
		t.Fatal(err)
	}
	entries, broken, err := l.List(t.Context(), 0)
	if err != nil || broken != 2 || len(entries) != 3 {
		t.Fatalf("%d entries, broken at %d: %v", len(entries), broken, err)
	}
	if e := entries[1]; e.GetSequence() != 2 || e.GetAction() != "unreadable" || e.GetDetail() == "" {
		t.Errorf("the damaged one is given as %v", e)
	}
}
