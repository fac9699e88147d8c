package tufpolicy_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

const hour = time.Hour

// world is a SOC, a controller's online keys, and what one agent trusts.
type world struct {
	t      *testing.T
	soc    *soc.SOC
	online soc.Online
	st     tufpolicy.State
	ts     int64
}

func online(t testing.TB) soc.Online {
	sn, err := signkey.Generate(signkey.RoleSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	ts, err := signkey.Generate(signkey.RoleTimestamp)
	if err != nil {
		t.Fatal(err)
	}
	return soc.Online{Snapshot: sn, Timestamp: ts}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, online: online(t)}
	var err error
	if w.soc, err = soc.New(filepath.Join(t.TempDir(), "policy"), w.online.Snapshot.Public, w.online.Timestamp.Public); err != nil {
		t.Fatal(err)
	}
	if w.st, err = tufpolicy.Begin(w.dir().FirstRoot(), 0); err != nil {
		t.Fatal(err)
	}
	w.add("A", 1)
	w.must(w.update())
	return w
}

func (w *world) dir() *policydir.Dir {
	w.t.Helper()
	d, err := w.soc.Dir()
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func doc(id string, rev int) []byte {
	return fmt.Appendf(nil, "id: %s\nrevision: %d\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n", id, rev)
}

func (w *world) add(id string, rev int) {
	w.t.Helper()
	if err := w.soc.Add(policydir.File{Name: id + ".yaml", Content: doc(id, rev)}); err != nil {
		w.t.Fatal(err)
	}
}

// sign makes an update of targets metadata with the online keys, with the next versions.
func (w *world) sign(targets []byte, version uint64, docs map[string][]byte) tufpolicy.Update {
	w.t.Helper()
	w.ts++
	ts, sn, err := w.online.Sign(targets, int64(version), w.ts, w.ts, time.Now().Add(hour))
	if err != nil {
		w.t.Fatal(err)
	}
	return tufpolicy.Update{Timestamp: ts, Snapshot: sn, Targets: targets, Documents: docs}
}

// update is the policy directory as an honest controller sends it, whole.
func (w *world) update() tufpolicy.Update {
	w.t.Helper()
	s := w.dir().Signed()
	u := w.sign(s.Targets, w.targetsVersion(s.Targets), s.Documents)
	u.Roots = s.Roots
	return u
}

func (w *world) targetsVersion(data []byte) uint64 {
	w.t.Helper()
	_, after, _ := strings.Cut(string(data), `"version":`)
	var v uint64
	if _, err := fmt.Sscan(strings.TrimSpace(strings.SplitN(after, ",", 2)[0]), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) must(u tufpolicy.Update) {
	w.t.Helper()
	st, err := tufpolicy.Verify(w.st, u, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	w.st = st
}

// refused checks that an update is refused for a reason, and that what is trusted stays.
func (w *world) refused(u tufpolicy.Update, now time.Time, want string) {
	w.t.Helper()
	before := w.st.Versions
	st, err := tufpolicy.Verify(w.st, u, now)
	var r *tufpolicy.Refusal
	if !errors.As(err, &r) || !strings.Contains(err.Error(), want) {
		w.t.Errorf("got %v, want a refusal with %q", err, want)
	}
	if st.Versions != before {
		w.t.Errorf("refused, and something changed: %v", st.Versions)
	}
}

func TestWithTheOnlineKeysAloneNothingCanBeInventedAlteredOrTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.dir().Signed()
	firstVersion := w.st.Versions.Targets
	w.add("B", 1)
	w.must(w.update())
	now := w.dir().Signed()
	v := w.st.Versions.Targets

	evil := map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}
	unsigned, err := soc.SignTargets(int64(v)+1, time.Now().Add(hour), evil)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(unsigned, v+1, evil), time.Now(), "targets")
	one, err := soc.SignTargets(int64(v)+1, time.Now().Add(hour), evil, w.soc.Targets[0])
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(one, v+1, evil), time.Now(), "targets")
	twice, err := soc.SignTargets(int64(v)+1, time.Now().Add(hour), evil, w.soc.Targets[0], w.soc.Targets[0])
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(twice, v+1, evil), time.Now(), "targets")
	byRoot, err := soc.SignTargets(int64(v)+1, time.Now().Add(hour), evil, w.soc.Root...)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(byRoot, v+1, evil), time.Now(), "targets")

	altered := map[string][]byte{}
	for p, d := range now.Documents {
		altered[p] = d
	}
	altered["mitigations/A/1.yaml"] = bytes.Replace(doc("A", 1), []byte("title: t"), []byte("title: x"), 1)
	w.refused(w.sign(now.Targets, v, altered), time.Now(), "mitigations/A/1.yaml is not what")
	// Yesterday's policy, in a fresh snapshot: it was signed once.
	w.refused(w.sign(first.Targets, firstVersion, first.Documents), time.Now(), "version")
	// The same, to an agent whose snapshot is lost: the floor stands.
	lost := w.st
	lost.Timestamp, lost.Snapshot, lost.Targets, lost.Documents, lost.Versions = nil, nil, nil, nil, tufpolicy.Versions{Root: 1}
	if _, err := tufpolicy.Verify(lost, w.sign(first.Targets, firstVersion, first.Documents), time.Now()); err == nil || !strings.Contains(err.Error(), "is below") {
		t.Errorf("an old policy to an agent that lost its journal: %v", err)
	}
	// Old snapshot, new targets.
	u := w.sign(first.Targets, firstVersion, first.Documents)
	u.Targets, u.Documents = now.Targets, now.Documents
	w.refused(u, time.Now(), "version")
	// A timestamp of the version held, with other content.
	held := int64(w.st.Versions.Timestamp)
	ts, sn, err := w.online.Sign(now.Targets, int64(v), held, held, time.Now().Add(2*hour))
	if err != nil {
		t.Fatal(err)
	}
	w.refused(tufpolicy.Update{Timestamp: ts, Snapshot: sn, Targets: now.Targets, Documents: now.Documents}, time.Now(), "another timestamp")
	// Frozen: the same timestamp for ever ends.
	if _, err := tufpolicy.Verify(w.st, tufpolicy.Update{Timestamp: w.st.Timestamp, Snapshot: w.st.Snapshot}, time.Now()); !errors.Is(err, tufpolicy.ErrUnchanged) {
		t.Errorf("the timestamp held: %v", err)
	}
	w.refused(w.sign(now.Targets, v, now.Documents), time.Now().Add(2*hour), "expired")
	// A document more than the targets list, one of a path that is not allowed, too many, too large: nothing is looked at.
	extra := map[string][]byte{"mitigations/Z/1.yaml": doc("Z", 1)}
	w.refused(w.sign(now.Targets, v, extra), time.Now(), "does not list")
	w.refused(w.sign(now.Targets, v, map[string][]byte{"mitigations/A/1.yaml": make([]byte, 300<<10)}), time.Now(), "limit")
	many := map[string][]byte{}
	for i := range 1001 {
		many[fmt.Sprint(i)] = nil
	}
	w.refused(w.sign(now.Targets, v, many), time.Now(), "1001 documents, limit 1000")
	w.refused(tufpolicy.Update{Timestamp: make([]byte, 1<<20)}, time.Now(), "limit")
	w.refused(tufpolicy.Update{Roots: make([][]byte, 300)}, time.Now(), "300 roots, limit 256")
	// Even two bribed signers can't make an agent write elsewhere, or take a target of a gigabyte.
	path := map[string][]byte{"policy.yaml": []byte("mitigations: []\n"), "../../journal.db": nil}
	tg, err := soc.SignTargets(int64(v)+1, time.Now().Add(hour), path, w.soc.Targets[:2]...)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(tg, v+1, path), time.Now(), "is not allowed")
	// After all of it the honest policy is still taken, with only what is lacking.
	w.add("C", 1)
	s := w.dir().Signed()
	w.must(w.sign(s.Targets, v+1, map[string][]byte{"mitigations/C/1.yaml": doc("C", 1), "policy.yaml": s.Documents["policy.yaml"]}))
}

func TestStolenOnlineKeysAreOverWithTheNextRootHoweverHighTheyCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.dir().Signed()
	v := w.st.Versions.Targets
	w.ts = 1 << 40 // fast-forwarded
	w.must(w.sign(s.Targets, v, nil))
	w.ts = 10
	w.refused(w.sign(s.Targets, v, nil), time.Now(), "version")

	thief := w.online
	w.online = online(t)
	if err := w.soc.Rotate(policydir.RotateConfig{Snapshot: &w.online.Snapshot.Public, Timestamp: &w.online.Timestamp.Public}); err != nil {
		t.Fatal(err)
	}
	w.must(w.update())
	if w.st.Versions.Root != 2 || w.st.Versions.Timestamp != uint64(w.ts) || w.st.Versions.Targets != v {
		t.Errorf("after the rotation: %+v", w.st.Versions)
	}
	mine := w.online
	w.online = thief
	w.ts = 1 << 41
	w.refused(w.sign(s.Targets, v, nil), time.Now(), "timestamp refused")
	w.online = mine
}

func TestRootsAreFollowedOneByOneAndOnlyIfOldAndNewKeysSigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	behind := w.st
	for range 20 { // a year away
		if err := w.soc.Rotate(policydir.RotateConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	u := w.update()
	w.must(u)
	if w.st.Versions.Root != 21 {
		t.Errorf("at root %d", w.st.Versions.Root)
	}
	w.st = behind
	gap := u
	gap.Roots = append(append([][]byte(nil), u.Roots[:5]...), u.Roots[6:]...)
	w.refused(gap, time.Now(), "root 7 after root 5")
	// A root that only its own keys signed: a thief's.
	other, err := soc.New(filepath.Join(t.TempDir(), "other"), w.online.Snapshot.Public, w.online.Timestamp.Public)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Rotate(policydir.RotateConfig{}); err != nil {
		t.Fatal(err)
	}
	d, err := other.Dir()
	if err != nil {
		t.Fatal(err)
	}
	foreign := u
	foreign.Roots = d.Signed().Roots
	w.refused(foreign, time.Now(), "root 2 after root 1")
	w.must(u)
}

func TestARevokedTargetsKeySignsNothingAnyMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gone, added := w.soc.Targets[0], w.soc.Targets[2]
	if err := w.soc.Rotate(policydir.RotateConfig{Remove: map[string][]string{signkey.RoleTargets: {gone.ID}}}, added); err != nil {
		t.Fatal(err)
	}
	w.must(w.update())
	evil := map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}
	tg, err := soc.SignTargets(int64(w.st.Versions.Targets)+1, time.Now().Add(hour), evil, gone, added)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.sign(tg, w.st.Versions.Targets+1, evil), time.Now(), "targets")
}

func TestWithoutARootNothingIsBelieved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := tufpolicy.Verify(tufpolicy.State{}, w.update(), time.Now()); !errors.Is(err, tufpolicy.ErrNoRoot) {
		t.Errorf("got %v", err)
	}
	if _, err := tufpolicy.Begin(bytes.Replace(w.st.Root, []byte(`"sig": "`), []byte(`"sig": "00`), 2), 0); err == nil {
		t.Error("a root that its own keys did not sign")
	}
}

func TestNullsAndHolesAreRefusedAndTripNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := w.update()
	for name, root := range map[string]string{
		"a null key":     `{"signed":{"_type":"root","spec_version":"1.0.31","consistent_snapshot":true,"version":2,"expires":"2030-01-01T00:00:00Z","keys":{"x":null},"roles":{}},"signatures":[]}`,
		"a null role":    `{"signed":{"_type":"root","spec_version":"1.0.31","consistent_snapshot":true,"version":2,"expires":"2030-01-01T00:00:00Z","keys":{},"roles":{"root":null}},"signatures":[]}`,
		"no roles":       `{"signed":{"_type":"root","spec_version":"1.0.31","consistent_snapshot":true,"version":2,"expires":"2030-01-01T00:00:00Z","keys":{}},"signatures":[]}`,
		"nothing signed": `{"signed":null,"signatures":null}`,
		"null":           `null`,
	} {
		u := good
		u.Roots = [][]byte{[]byte(root)}
		if _, err := tufpolicy.Verify(w.st, u, time.Now()); err == nil {
			t.Errorf("root with %s was taken", name)
		}
		if _, err := tufpolicy.Begin([]byte(root), 0); err == nil {
			t.Errorf("root with %s begins trust", name)
		}
		if _, err := tufpolicy.ReadRoot([]byte(root)); err == nil {
			t.Errorf("root with %s is read", name)
		}
		if _, err := tufpolicy.VerifySigned(w.st, tufpolicy.Signed{Roots: u.Roots, Targets: []byte(`{"signed":{"_type":"targets","spec_version":"1.0","version":9,"expires":"2030-01-01T00:00:00Z","targets":{"policy.yaml":null}},"signatures":[]}`)}, time.Now()); err == nil {
			t.Errorf("root with %s is published", name)
		}
	}
	for name, meta := range map[string]string{"no meta": `{}`, "a null meta": `{"snapshot.json":null,"targets.json":null}`} {
		for _, role := range []string{"timestamp", "snapshot"} {
			u := good
			data := []byte(`{"signed":{"_type":"` + role + `","spec_version":"1.0.31","version":999,"expires":"2030-01-01T00:00:00Z","meta":` + meta + `},"signatures":[]}`)
			if role == "timestamp" {
				u.Timestamp = data
			} else {
				u.Snapshot = data
			}
			w.refused(u, time.Now(), "names no")
			_ = name
		}
	}
}

func TestEvenTwoBribedSignersStayWithinTheBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.st.Versions.Targets + 1
	many := map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}
	for i := range 1001 {
		many[fmt.Sprintf("mitigations/X%d/1.yaml", i)] = []byte("x")
	}
	large := map[string][]byte{"policy.yaml": []byte("mitigations: []\n"), "mitigations/X/1.yaml": make([]byte, 257<<10)}
	none := map[string][]byte{"mitigations/X/1.yaml": []byte("x")}
	for want, docs := range map[string]map[string][]byte{"1002 documents, limit 1000": many, "limit 262144": large, "no policy.yaml": none} {
		tg, err := soc.SignTargets(int64(v), time.Now().Add(hour), docs, w.soc.Targets[:2]...)
		if err != nil {
			t.Fatal(err)
		}
		u := w.sign(tg, v, nil)
		w.refused(u, time.Now(), want)
	}
}

func FuzzVerify(f *testing.F) {
	o := online(f)
	s, err := soc.New(filepath.Join(f.TempDir(), "policy"), o.Snapshot.Public, o.Timestamp.Public)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Add(policydir.File{Name: "A.yaml", Content: doc("A", 1)}); err != nil {
		f.Fatal(err)
	}
	d, err := s.Dir()
	if err != nil {
		f.Fatal(err)
	}
	signed := d.Signed()
	ts, sn, err := o.Sign(signed.Targets, 2, 5, 5, time.Now().Add(hour))
	if err != nil {
		f.Fatal(err)
	}
	st, err := tufpolicy.Begin(d.FirstRoot(), 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed.Roots[0], ts, sn, signed.Targets, []byte("mitigations/A/1.yaml"), doc("A", 1))
	f.Add([]byte(`{"signed":{"_type":"root","spec_version":"1.0.31","consistent_snapshot":true,"version":2,"keys":{"x":null},"roles":{"root":null}},"signatures":[]}`),
		[]byte(`{"signed":{"_type":"timestamp","meta":{"snapshot.json":null}},"signatures":[null]}`), []byte(`{"signed":{"meta":{"targets.json":null}}}`), []byte(`{"signed":{"targets":{"a":null}}}`), []byte("x"), []byte("y"))
	now := time.Now()
	f.Fuzz(func(t *testing.T, root, timestamp, snapshot, targets, path, content []byte) {
		docs := map[string][]byte{string(path): content, "policy.yaml": signed.Documents["policy.yaml"]}
		next, err := tufpolicy.Verify(st, tufpolicy.Update{Roots: [][]byte{root}, Timestamp: timestamp, Snapshot: snapshot, Targets: targets, Documents: docs}, now)
		if err != nil {
			if next.Versions != st.Versions {
				t.Fatal("refused, and something changed")
			}
			return
		}
		// Whatever was accepted is what was signed, spelled in one way or another.
		if next.Versions.Targets != 2 || string(next.Documents["mitigations/A/1.yaml"]) != string(doc("A", 1)) {
			t.Fatalf("accepted something else: %v", next.Versions)
		}
	})
}
