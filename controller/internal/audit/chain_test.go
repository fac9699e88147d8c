package audit

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// write stores entries as controllers did when an actor was one text, with the hash of that time.
func write(t *testing.T, st store.Store, c *chained, before []byte, entries ...*stopgapv1.AuditEntry) []byte {
	t.Helper()
	for _, e := range entries {
		h := sha256.New()
		h.Write(before)
		for _, s := range []string{fmt.Sprint(e.GetSequence()), fmt.Sprint(e.GetTime().AsTime().UnixNano()), e.GetActor(), e.GetAction(),
			e.GetSubject(), e.GetDetail()} {
			fmt.Fprintf(h, "%d:%s", len(s), s)
		}
		e.Hash = h.Sum(nil)
		before = e.GetHash()
		put(t, st, c.key(e.GetSequence()), e)
		head := fmt.Appendf(nil, "%d %x", e.GetSequence(), e.GetHash())
		if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: c.head, Value: head}}); err != nil {
			t.Fatal(err)
		}
	}
	return before
}

func put(t *testing.T, st store.Store, key string, e *stopgapv1.AuditEntry) {
	t.Helper()
	raw, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: key, Value: raw}}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, st store.Store, key string) *stopgapv1.AuditEntry {
	t.Helper()
	kv, err := st.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	e := &stopgapv1.AuditEntry{}
	if err := proto.Unmarshal(kv.Value, e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestALogOfBeforeActorsHadTwoFieldsIsReadVerifiedAndContinued(t *testing.T) {
	t.Parallel()
	st, load := open(t)
	old := func(sequence uint64, actor string) *stopgapv1.AuditEntry {
		return &stopgapv1.AuditEntry{Sequence: sequence, Time: timestamppb.New(time.Unix(1e9, int64(sequence))), Actor: actor, Action: "publish",
			Subject: "policy 1", Detail: "something"}
	}
	write(t, st, newPeople(), nil, old(1, "controller"), old(2, "operator ben"), old(4, "somebody else"))
	write(t, st, newOthers(), nil, old(3, "agent 00ff"), old(5, "nobody"))
	l := load()
	l.Append(t.Context(), Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_OPERATOR, Name: "ben"}, "halt", "x", "new")
	l.Append(t.Context(), Agent("00ff"), "renew", "00ff", "new")
	l = load()
	entries, broken, err := l.List(t.Context(), 0)
	if err != nil || broken > 0 {
		t.Fatalf("the chain breaks at %d, %v", broken, err)
	}
	want := []Actor{Controller, ParseActor("operator ben"), Agent("00ff"), {Name: "somebody else"}, Nobody,
		{Kind: stopgapv1.ActorKind_ACTOR_KIND_OPERATOR, Name: "ben"}, Agent("00ff")}
	for i, e := range entries {
		got := Actor{Kind: e.GetActorKind(), Name: e.GetActorName()}
		if i >= len(want) || got != want[i] {
			t.Errorf("entry %d is by %q, want %q", e.GetSequence(), got, want[i])
		}
		if text := e.GetActor(); text != "" && got.String() != text {
			t.Errorf("entry %d is by %q, and was by %q", e.GetSequence(), got, text)
		}
	}
	if len(entries) != len(want) {
		t.Fatalf("%d entries, want %d", len(entries), len(want))
	}
	for name, change := range map[string]struct {
		key string
		do  func(*stopgapv1.AuditEntry)
	}{
		"an old entry by another":             {newPeople().key(2), func(e *stopgapv1.AuditEntry) { e.Actor = "operator eve" }},
		"an old entry with fields of its own": {newPeople().key(2), func(e *stopgapv1.AuditEntry) { e.ActorName = "eve" }},
		"a new entry by another":              {newPeople().key(6), func(e *stopgapv1.AuditEntry) { e.ActorName = "eve" }},
		"a new entry by another kind":         {newPeople().key(6), func(e *stopgapv1.AuditEntry) { e.ActorKind++ }},
		"a new entry made an old one": {newPeople().key(6), func(e *stopgapv1.AuditEntry) {
			e.Actor, e.ActorName, e.ActorKind = "operator ben", "", 0
		}},
	} {
		e := get(t, st, change.key)
		altered := proto.CloneOf(e)
		change.do(altered)
		put(t, st, change.key, altered)
		if _, broken, err := l.List(t.Context(), 0); err != nil || broken != e.GetSequence() {
			t.Errorf("%s: broken at %d, %v; want %d", name, broken, err, e.GetSequence())
		}
		put(t, st, change.key, e)
	}
}

func TestEveryKindOfActorIsReadBackFromItsText(t *testing.T) {
	t.Parallel()
	for n := range stopgapv1.ActorKind_name {
		a := Actor{Kind: stopgapv1.ActorKind(n), Name: "x y"}
		if got := ParseActor(a.String()); got != a {
			t.Errorf("%q is read back as %+v", a, got)
		}
	}
}
