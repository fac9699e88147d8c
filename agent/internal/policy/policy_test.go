package policy

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

const a1 = "id: A\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"

// world is a SOC with online keys, and what an agent that enrolled with it holds.
func world(t testing.TB) (*soc.SOC, soc.Online, Held) {
	t.Helper()
	sn, err := signkey.Generate(signkey.RoleSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	ts, err := signkey.Generate(signkey.RoleTimestamp)
	if err != nil {
		t.Fatal(err)
	}
	s, err := soc.New(filepath.Join(t.TempDir(), "policy"), sn.Public, ts.Public)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(policydir.File{Name: "A.yaml", Content: []byte(a1)}); err != nil {
		t.Fatal(err)
	}
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	st, err := tufpolicy.Begin(d.FirstRoot(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return s, soc.Online{Snapshot: sn, Timestamp: ts}, Held{State: st}
}

func update(t testing.TB, o soc.Online, targets []byte, version, ts int64, docs map[string][]byte) *stopgapv1.PolicyUpdate {
	t.Helper()
	timestamp, snapshot, err := o.Sign(targets, version, ts, ts, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	u := &stopgapv1.PolicyUpdate{TimestampVersion: uint64(ts), TargetsVersion: uint64(version), Timestamp: timestamp, Snapshot: snapshot, Targets: targets}
	for p, data := range docs {
		u.Documents = append(u.Documents, &stopgapv1.PolicyTarget{Path: p, Content: data})
	}
	return u
}

func TestATableThatCannotBeReadIsRefusedSoThatNothingIsRemovedForIt(t *testing.T) {
	t.Parallel()
	s, o, held := world(t)
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	held, err = Accept(held, update(t, o, d.Signed().Targets, 2, 1, d.Signed().Documents), time.Now())
	if err != nil || Parse(held).Revisions["A"][1].Document == nil {
		t.Fatal(err)
	}
	docs := map[string][]byte{"policy.yaml": []byte("quantum: true\n"), "mitigations/A/1.yaml": []byte(a1)}
	tg, err := soc.SignTargets(3, time.Now().Add(time.Hour), docs, s.Targets[:2]...)
	if err != nil {
		t.Fatal(err)
	}
	next, err := Accept(held, update(t, o, tg, 3, 2, docs), time.Now())
	var r *tufpolicy.Refusal
	if !errors.As(err, &r) || r.Retry || next.Versions.Targets != 2 {
		t.Errorf("got %v, at %d", err, next.Versions.Targets)
	}
}

func TestADocumentThatCannotBeReadHoldsUpNoOtherAndOneThatIsNotAllowedIsNotThere(t *testing.T) {
	t.Parallel()
	h := Held{}
	h.Versions.Targets = 1
	h.Documents = map[string][]byte{"mitigations/A/1.yaml": []byte(a1), "mitigations/B/1.yaml": []byte("id: ["), "mitigations/C/2.yaml": []byte(a1),
		"mitigations/D/1.yaml": []byte(a1), "fixed-builds.yaml": []byte("revision: x"),
		"policy.yaml": []byte("mitigations: [{id: A, revisions: [1]}, {id: B, revisions: [1]}, {id: C, revisions: [2]}, {id: E, revisions: [1]}]\n")}
	p := Parse(h)
	if p.Revisions["A"][1].Document == nil || p.Revisions["B"][1].Err == nil || p.FixedError == nil {
		t.Errorf("%+v", p)
	}
	if p.Revisions["C"][2].Err == nil {
		t.Error("a document under another's path is believed")
	}
	if p.Revisions["D"] != nil {
		t.Error("a document that the table does not allow is in policy")
	}
	if p.Revisions["E"][1].Err == nil {
		t.Error("what is allowed and missing counts as dropped, and would be removed")
	}
}

func TestTheAnchorBringsBackRootAndFloorOfALostJournal(t *testing.T) {
	t.Parallel()
	_, _, held := world(t)
	dir := t.TempDir()
	if a, err := ReadAnchor(dir); err != nil || len(a.Root) > 0 {
		t.Fatalf("%v %v", a, err)
	}
	if err := (Anchor{Fleet: "lab", Root: held.Root, Floor: 7}).Write(dir); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAnchor(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, lacked, err := Restore(Held{}, a)
	if err != nil || !lacked || got.Floor != 7 || got.Versions.Root != 1 {
		t.Errorf("%+v %v %v", got.Versions, lacked, err)
	}
	held.Floor = 9
	if got, lacked, err = Restore(held, a); err != nil || lacked || got.Floor != 9 {
		t.Errorf("a journal that is there: %v %v %v", got.Floor, lacked, err)
	}
	a.Root = a.Root[:len(a.Root)/2]
	if _, _, err := Restore(Held{}, a); err == nil {
		t.Error("half a root is believed")
	}
}

func TestABundleRaisesTheFloorForTheController(t *testing.T) {
	t.Parallel()
	s, o, begin := world(t)
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	old := d.Signed()
	held, err := Accept(begin, update(t, o, old.Targets, 2, 7, old.Documents), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Refresh(time.Hour); err != nil {
		t.Fatal(err)
	}
	if d, err = s.Dir(); err != nil {
		t.Fatal(err)
	}
	fresh := d.Signed()
	// No root is needed where one is held, and a wrong name is refused even then.
	if _, err := AcceptBundle(held, fresh, &Pin{}, time.Now()); err == nil {
		t.Error("another policy's name was taken")
	}
	if _, err := AcceptBundle(Held{}, fresh, nil, time.Now()); !errors.Is(err, tufpolicy.ErrNoRoot) {
		t.Errorf("without any root: %v", err)
	}
	if _, err := AcceptBundle(held, tufpolicy.Signed{}, nil, time.Now()); err == nil {
		t.Error("an empty bundle was taken")
	}
	// A first trust goes by the pin: another root's bundle, and one from before it, are refused.
	if _, err := AcceptBundle(Held{}, old, &Pin{Root: tufpolicy.RootFingerprint(d.FirstRoot()), Floor: 3}, time.Now()); err == nil {
		t.Error("a bundle from before the pin was taken")
	}
	if _, _, other := world(t); true {
		if _, err := AcceptBundle(other, fresh, nil, time.Now()); err == nil || !strings.Contains(err.Error(), "of another policy") {
			t.Errorf("another policy's bundle: %v", err)
		}
	}
	if p, err := ParsePin(fmt.Sprintf(" %x-3\n", tufpolicy.RootFingerprint(d.FirstRoot()))); err != nil || p.Floor != 3 {
		t.Errorf("pin: %+v, %v", p, err)
	}
	carried, err := AcceptBundle(held, fresh, &Pin{Root: tufpolicy.RootFingerprint(d.FirstRoot()), Floor: 3}, time.Now())
	if err != nil || carried.Versions.Targets != 3 || carried.Source != SourceBundle || carried.Floor != 3 {
		t.Fatalf("got %+v, %v", carried.Versions, err)
	}
	if _, err := Accept(carried, update(t, o, old.Targets, 2, 8, old.Documents), time.Now()); err == nil {
		t.Error("the controller went back behind the bundle")
	}
	if _, err := AcceptBundle(carried, old, nil, time.Now()); err == nil {
		t.Error("an older bundle was taken")
	}
	next, err := Accept(carried, update(t, o, fresh.Targets, 3, 8, nil), time.Now())
	if err != nil || next.Source != SourceController {
		t.Errorf("the controller's own: %v", err)
	}
}

func FuzzAccept(f *testing.F) {
	s, o, begin := world(f)
	d, err := s.Dir()
	if err != nil {
		f.Fatal(err)
	}
	u := update(f, o, d.Signed().Targets, 2, 5, d.Signed().Documents)
	held, err := Accept(begin, update(f, o, d.Signed().Targets, 2, 4, d.Signed().Documents), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	raw, err := proto.Marshal(u)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Decode(data)
		if err != nil {
			return
		}
		next, err := Accept(held, u, time.Now())
		if err != nil && next.Versions != held.Versions {
			t.Fatal("refused, and something changed")
		}
		if err == nil && (next.Versions.Timestamp <= held.Versions.Timestamp || Parse(next).Revisions["A"][1].Document == nil) {
			t.Fatal("accepted what nobody signed")
		}
	})
}
