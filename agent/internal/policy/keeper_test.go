package policy

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// memory is a Store in memory; it can be made to fail.
type memory struct {
	data []byte
	fail error
}

func (m *memory) HeldPolicy(v any) error {
	if m.data == nil {
		return nil
	}
	return json.Unmarshal(m.data, v)
}

func (m *memory) PutPolicy(v any) (err error) {
	if m.fail != nil {
		return m.fail
	}
	m.data, err = json.Marshal(v)
	return err
}

func encoded(t *testing.T, u *stopgapv1.PolicyUpdate) []byte {
	t.Helper()
	data, err := proto.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAKeeperKeepsWhatItAcceptsInStoreAndAnchorAndRemembersWhatItRefused(t *testing.T) {
	t.Parallel()
	s, o, enrolled := world(t)
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	dir, st, now := t.TempDir(), &memory{}, time.Now().UTC()
	if err := (Anchor{Fleet: "lab", Root: enrolled.Root, Fresh: true}).Write(dir); err != nil {
		t.Fatal(err)
	}
	k, warnings, err := NewKeeper(dir, st, hclog.NewNullLogger())
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v", warnings, err)
	}
	good := encoded(t, update(t, o, d.Signed().Targets, 2, 1, d.Signed().Documents))

	// What can't be kept is not held.
	st.fail = errors.New("disk full")
	if _, _, changed, refused := k.Take(good, now); refused == nil || refused.Permanent || changed || k.Held().Versions.Targets != 0 ||
		k.Policy().Version != 0 {
		t.Errorf("with a full disk: %v", refused)
	}
	st.fail = nil
	if _, after, changed, refused := k.Take(good, now); refused != nil || !changed || after.Versions.Targets != 2 ||
		k.Policy().Revisions["A"][1].Document == nil {
		t.Fatalf("a good update: %v", refused)
	}
	if _, _, changed, refused := k.Take(good, now); refused != nil || changed {
		t.Errorf("the same again: %v", refused)
	}
	if a, err := ReadAnchor(dir); err != nil || a.Floor != k.Held().Floor || a.Fresh {
		t.Errorf("anchor %+v %v", a, err)
	}

	// One that leaves out what is not held here may be accepted when all is sent.
	part := update(t, o, d.Signed().Targets, 2, 2, nil)
	delete(k.held.Documents, "mitigations/A/1.yaml")
	if _, _, _, refused := k.Take(encoded(t, part), now); refused == nil || refused.Permanent || k.Claimed().Versions.Targets != 0 ||
		k.Held().Versions.Targets != 2 {
		t.Errorf("with a document missing: %v, claims %+v", refused, k.Claimed().Versions)
	}
	all := encoded(t, update(t, o, d.Signed().Targets, 2, 2, d.Signed().Documents))
	if _, _, changed, refused := k.Take(all, now); refused != nil || !changed || k.Claimed().Versions.Targets != 2 {
		t.Errorf("with everything: %v", refused)
	}

	// A forged one is never accepted, which is remembered over a restart.
	forged := update(t, o, append([]byte(nil), d.Signed().Targets...), 2, 9, nil)
	forged.Timestamp[len(forged.Timestamp)/2] ^= 1
	_, after, changed, refused := k.Take(encoded(t, forged), now)
	if refused == nil || !refused.Permanent || changed || after.Versions.Targets != 2 {
		t.Fatalf("a forged one: %v", refused)
	}
	k, _, err = NewKeeper(dir, st, hclog.NewNullLogger())
	if err != nil || k.Held().Attempted != 9 || k.Held().AttemptedError != refused.Error() || k.Policy().Version != 2 {
		t.Errorf("after a restart: %+v %v", k.Held().AttemptedError, err)
	}
	if h := k.Held().Health(now); len(h) != 1 || h[0].GetCode() != "policy-refused" {
		t.Errorf("it warns of %v", h)
	}
	if _, _, _, refused := k.Take([]byte{0xff}, now); refused == nil || !refused.Permanent || refused.Timestamp != 0 {
		t.Errorf("rubbish: %v", refused)
	}
}

func TestWarningsOfAPolicyFollowItsAge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	code := func(h Held) string {
		for _, w := range h.Health(now) {
			return w.GetCode()
		}
		return ""
	}
	h := Held{AcceptedAt: now, Source: SourceController}
	h.Expires = now.Add(time.Hour)
	if got := code(h); got != "" {
		t.Errorf("none held: %q", got)
	}
	h.Versions.Targets = 1
	if got := code(h); got != "" {
		t.Errorf("a fresh one: %q", got)
	}
	h.AcceptedAt = now.Add(-3 * time.Hour)
	if got := code(h); got != "policy-stale" {
		t.Errorf("one that nobody confirmed for three hours: %q", got)
	}
	h.Source = SourceBundle
	if got := code(h); got != "" {
		t.Errorf("one from a bundle: %q", got)
	}
	h.Expires = now.Add(-time.Minute)
	if got := code(h); got != "policy-expired" {
		t.Errorf("one that ended: %q", got)
	}
}

func TestAnAgentWithoutARootSaysSo(t *testing.T) {
	t.Parallel()
	k, warnings, err := NewKeeper(t.TempDir(), &memory{}, hclog.NewNullLogger())
	if err != nil || warnings[CodeNoRoot] == "" {
		t.Fatalf("%v %v", warnings, err)
	}
	_, o, held := world(t)
	if _, _, _, refused := k.Take(encoded(t, update(t, o, held.Targets, 1, 1, nil)), time.Now()); refused == nil || !refused.Permanent {
		t.Errorf("an update without a trusted root: %v", refused)
	}
}
