package policydir_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
)

func newSOC(t *testing.T) *soc.SOC {
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
	return s
}

func open(t *testing.T, s *soc.SOC) *policydir.Dir {
	t.Helper()
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func m(rev, title string) policydir.File {
	return policydir.File{Name: "M.yaml", Content: []byte("id: M\nrevision: " + rev + "\ntitle: " + title + "\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n")}
}

const life = 24 * time.Hour

func TestTheDiffSaysInWordsWhatChangesAndThenEverything(t *testing.T) {
	t.Parallel()
	s := newSOC(t)
	if err := s.Add(m("1", "one")); err != nil {
		t.Fatal(err)
	}
	d := open(t, s)
	if _, err := d.Add([]policydir.File{m("2", "two")}, time.Now(), life); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, s).Remove("M", 1, time.Now(), life); err != nil {
		t.Fatal(err)
	}
	lines, err := open(t, s).Diff()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"targets 3 against version 2", "adds M@2 (LOW): changes nothing on a server", "REMOVES M@1: every server that has it takes it off",
		"policy " + d.Identity(), "mitigations/M/2.yaml", "allows: M@[2]"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

func TestAnEditDropsSignaturesThatNoLongerHoldAndSaysSo(t *testing.T) {
	t.Parallel()
	s := newSOC(t)
	d := open(t, s)
	if _, err := d.Add([]policydir.File{m("1", "one")}, time.Now(), life); err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(s.Targets[0]); err != nil {
		t.Fatal(err)
	}
	if miss := strings.Join(open(t, s).Missing(), ""); !strings.Contains(miss, "1 more of the 2") {
		t.Errorf("missing: %q", miss)
	}
	lines, err := open(t, s).Add([]policydir.File{m("2", "two")}, time.Now(), life)
	if err != nil || !strings.Contains(strings.Join(lines, "\n"), "had 1 signatures, which no longer hold") {
		t.Errorf("%v %v", lines, err)
	}
	if err := s.Sign(s.Targets[:2]...); err != nil {
		t.Fatal(err)
	}
	if st, err := open(t, s).Verify(time.Now()); err != nil || st.Versions.Targets != 2 {
		t.Errorf("%v %v", st.Versions, err)
	}
}

func TestAVersionThatWasSignedOnceIsNeverChangedNotEvenAfterItsSignersLeft(t *testing.T) {
	t.Parallel()
	s := newSOC(t)
	if err := s.Add(m("1", "one")); err != nil { // signed by the first two
		t.Fatal(err)
	}
	if err := s.Rotate(policydir.RotateConfig{Remove: map[string][]string{signkey.RoleTargets: {s.Targets[0].ID}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, s).Verify(time.Now()); err == nil {
		t.Error("signed by one of those left, and fine")
	}
	lines, err := open(t, s).Refresh(time.Now(), life)
	if err != nil || !strings.Contains(strings.Join(lines, "\n"), "version 3") {
		t.Errorf("%v %v", lines, err)
	}
}

func TestWhatIsChangedByHandIsNeitherSignedNorPublished(t *testing.T) {
	t.Parallel()
	s := newSOC(t)
	if err := s.Add(m("1", "one")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Path, "targets", "mitigations", "M", "1.yaml"), []byte("id: M\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(s.Targets[2]); err == nil || !strings.Contains(err.Error(), "changed by hand") {
		t.Errorf("sign: %v", err)
	}
	if _, err := open(t, s).Files(); err == nil || !strings.Contains(err.Error(), "changed by hand") {
		t.Errorf("publish: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.Path, "targets", "evil.sh"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Dir(); err == nil || !strings.Contains(err.Error(), "has no place") {
		t.Errorf("a file that has no place: %v", err)
	}
}

func TestAKeyThatNoRootNamesSignsNothing(t *testing.T) {
	t.Parallel()
	s := newSOC(t)
	k, err := signkey.Generate(signkey.RoleTargets)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(k); err == nil || !strings.Contains(err.Error(), "may sign nothing here") {
		t.Errorf("got %v", err)
	}
	other := newSOC(t)
	if open(t, s).Identity() == open(t, other).Identity() {
		t.Error("two policies have one identity")
	}
}
