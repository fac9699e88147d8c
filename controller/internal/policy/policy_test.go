package policy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// world is a controller's policy and the SOC that signs it.
type world struct {
	t   *testing.T
	st  store.Store
	cfg Config
	soc *soc.SOC
	p   *Policy
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := &world{t: t, st: st, cfg: Config{Store: st, Changed: func() {}, Logger: hclog.NewNullLogger()}}
	if w.cfg.Snapshot, err = signkey.Generate(signkey.RoleSnapshot); err != nil {
		t.Fatal(err)
	}
	if w.cfg.Timestamp, err = signkey.Generate(signkey.RoleTimestamp); err != nil {
		t.Fatal(err)
	}
	if w.soc, err = soc.New(filepath.Join(t.TempDir(), "policy"), w.cfg.Snapshot.Public, w.cfg.Timestamp.Public); err != nil {
		t.Fatal(err)
	}
	w.p = w.load()
	return w
}

func (w *world) load() *Policy {
	w.t.Helper()
	p, err := Load(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func doc(id string, rev int, title string) policydir.File {
	return policydir.File{Name: id + ".yaml", Content: fmt.Appendf(nil, "id: %s\nrevision: %d\ntitle: %s\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n", id, rev, title)}
}

func (w *world) files() []File {
	w.t.Helper()
	m, err := w.soc.Files()
	if err != nil {
		w.t.Fatal(err)
	}
	return list(m)
}

func list(m map[string][]byte) (out []File) {
	for p, data := range m {
		out = append(out, File{p, data})
	}
	return out
}

// publish adds, signs and publishes; it gives the version.
func (w *world) publish(add ...policydir.File) uint64 {
	w.t.Helper()
	if len(add) > 0 {
		if err := w.soc.Add(add...); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := w.p.Publish(w.t.Context(), w.files(), true); err != nil {
		w.t.Fatal(err)
	}
	return w.p.Current().Version
}

// force is a publish of anything two signers signed.
func (w *world) force(version int64, docs map[string][]byte, keys ...*signkey.Key) error {
	w.t.Helper()
	tg, err := soc.SignTargets(version, time.Now().Add(time.Hour), docs, keys...)
	if err != nil {
		w.t.Fatal(err)
	}
	m := map[string][]byte{fmt.Sprintf("metadata/%d.targets.json", version): tg}
	for p, data := range docs {
		m["targets/"+p] = data
	}
	_, err = w.p.Publish(w.t.Context(), list(m), true)
	return err
}

func TestTheFirstRootNeedsAnAdminAndALaterOneItsPredecessor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.p.Publish(t.Context(), w.files(), false); !errors.Is(err, ErrFirstRoot) {
		t.Errorf("from somebody who is no admin: %v", err)
	}
	w.publish()
	other := newWorld(t)
	other.cfg.Snapshot, other.cfg.Timestamp = w.cfg.Snapshot, w.cfg.Timestamp
	if _, err := w.p.Publish(t.Context(), other.files(), true); !errors.Is(err, ErrUntrusted) {
		t.Errorf("another SOC's policy: %v", err)
	}
	if err := w.soc.Rotate(policydir.RotateConfig{}); err != nil {
		t.Fatal(err)
	}
	w.publish()
	if w.p.Current().State.Versions.Root != 2 {
		t.Error("the next root was not taken")
	}
}

func TestWhatIsNotSignedToTheThresholdOrIsOldIsNotStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := int64(w.publish(doc("A", 1, "t")))
	old := w.files()
	v2 := w.publish(doc("B", 1, "t"))
	docs := map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"one signature":         {w.force(v+2, docs, w.soc.Targets[0]), ErrUntrusted},
		"root keys":             {w.force(v+2, docs, w.soc.Root...), ErrUntrusted},
		"the same version":      {w.force(int64(v2), docs, w.soc.Targets[:2]...), ErrImmutable},
		"a revision, other":     {w.force(v+2, map[string][]byte{"policy.yaml": []byte("mitigations: [{id: A, revisions: [1]}]\n"), "mitigations/A/1.yaml": doc("A", 1, "other").Content}, w.soc.Targets[:2]...), ErrImmutable},
		"allowed and not there": {w.force(v+2, map[string][]byte{"policy.yaml": []byte("mitigations: [{id: Q, revisions: [1]}]\n")}, w.soc.Targets[:2]...), mitigation.Problems{}},
	} {
		var ps mitigation.Problems
		if !errors.Is(c.err, c.want) && (!errors.As(c.want, &ps) || !errors.As(c.err, &ps)) {
			t.Errorf("%s: got %v", name, c.err)
		}
	}
	if _, err := w.p.Publish(t.Context(), old, true); !errors.Is(err, ErrUntrusted) && !errors.Is(err, ErrOld) {
		t.Errorf("an older one: %v", err)
	}
	if _, err := w.p.Publish(t.Context(), []File{{"metadata/1.root.json", nil}, {"metadata/x", nil}}, true); !errors.Is(err, ErrMalformed) {
		t.Errorf("rubbish: %v", err)
	}
	if got := w.load().Current(); got.Version != v2 || len(got.Documents) != 2 {
		t.Errorf("something was stored: version %d, %d documents", got.Version, len(got.Documents))
	}
}

func TestARootForOtherOnlineKeysIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k, err := signkey.Generate(signkey.RoleTimestamp)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Timestamp = k
	w.p = w.load()
	if _, err := w.p.Publish(t.Context(), w.files(), true); !errors.Is(err, ErrOnlineKeys) || !strings.Contains(err.Error(), "rotate-root") {
		t.Errorf("got %v", err)
	}
}

// agent is what an agent does with an update.
func agent(t *testing.T, st tufpolicy.State, data []byte) tufpolicy.State {
	t.Helper()
	u := &stopgapv1.PolicyUpdate{}
	if err := proto.Unmarshal(data, u); err != nil {
		t.Fatal(err)
	}
	up := tufpolicy.Update{Roots: u.GetRoots(), Timestamp: u.GetTimestamp(), Snapshot: u.GetSnapshot(), Documents: map[string][]byte{}}
	if len(u.GetTargets()) > 0 {
		up.Targets = u.GetTargets()
	}
	for _, d := range u.GetDocuments() {
		up.Documents[d.GetPath()] = d.GetContent()
	}
	next, err := tufpolicy.Verify(st, up, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestAnUpdateCarriesOnlyWhatTheAgentLacksAndIsEncodedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(doc("A", 1, "t"))
	d, err := w.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	st, err := tufpolicy.Begin(d.FirstRoot(), 0)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := w.p.Update(st.Versions, false)
	if again, _ := w.p.Update(st.Versions, false); &again[0] != &data[0] {
		t.Error("encoded twice")
	}
	st = agent(t, st, data)
	if data, _ := w.p.Update(st.Versions, false); data != nil {
		t.Error("an agent that has the newest is sent something")
	}
	w.publish(doc("B", 1, "t"))
	for _, p := range []*Policy{w.p, w.load()} {
		data, _ := p.Update(st.Versions, false)
		u := &stopgapv1.PolicyUpdate{}
		if err := proto.Unmarshal(data, u); err != nil || len(u.GetDocuments()) != 2 || len(u.GetRoots()) != 0 {
			t.Errorf("%d documents and %d roots for one that lacks B and the table: %v", len(u.GetDocuments()), len(u.GetRoots()), err)
		}
		agent(t, st, data)
	}
	data, _ = w.p.Update(st.Versions, false)
	st = agent(t, st, data)
	// A renewal is a timestamp and a snapshot, nothing else.
	if err := w.p.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	data, _ = w.p.Update(st.Versions, false)
	if len(data) > 2<<10 || bytes.Contains(data, []byte("severity")) {
		t.Errorf("a renewal has %d bytes", len(data))
	}
	agent(t, st, data)
	if data, _ := w.p.Update(tufpolicy.Versions{}, true); data != nil {
		t.Error("an agent without a root is sent what it can't believe")
	}
}

func TestAControllerRestoredFromABackupCountsOnAboveWhatAgentsHaveSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(doc("A", 1, "t"))
	seen := w.p.Current().State.Versions.Timestamp
	if got := nextVersion(3, time.Unix(int64(seen)+60, 0)); uint64(got) <= seen {
		t.Errorf("a minute later a controller that remembers version 3 signs %d, agents hold %d", got, seen)
	}
	if got := nextVersion(seen, time.Unix(5, 0)); uint64(got) != seen+1 {
		t.Errorf("with a clock that went back it signs %d after %d", got, seen)
	}
}

func TestAStoreThatWasAlteredByHandIsNotServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(doc("A", 1, "t"))
	kvs, _, err := w.st.List(t.Context(), kDoc)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		if bytes.Contains(kv.Value, []byte("severity")) {
			if _, err := w.st.Txn(t.Context(), nil, []store.Op{{Key: kv.Key, Value: bytes.Replace(kv.Value, []byte("LOW"), []byte("HIGH"), 1)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Load(t.Context(), w.cfg); err == nil || !strings.Contains(err.Error(), "altered") || !strings.Contains(err.Error(), "mitigations/A/1.yaml") {
		t.Errorf("got %v", err)
	}
}

func TestOldVersionsAreForgottenAndTheirDocumentsWithThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := 1; i <= keptVersions+5; i++ {
		if i > 1 {
			if err := w.soc.Remove("A", uint32(i-1)); err != nil {
				t.Fatal(err)
			}
		}
		w.publish(doc("A", i, "t"))
	}
	q := w.load()
	if len(q.old) > keptVersions {
		t.Errorf("%d versions kept", len(q.old))
	}
	kvs, _, err := w.st.List(t.Context(), kDoc)
	if err != nil || len(kvs) > 2*keptVersions+2 {
		t.Errorf("%d documents kept, %v", len(kvs), err)
	}
	if data, _ := q.Update(tufpolicy.Versions{Root: 1, Targets: 1, Timestamp: 1}, false); data == nil {
		t.Error("an agent at a forgotten version gets nothing")
	}
}
