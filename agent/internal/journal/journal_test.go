package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"pgregory.net/rapid"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func reopen(t testing.TB, dir string) *Journal {
	t.Helper()
	j, err := Open(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func change(t testing.TB, id string) Change {
	t.Helper()
	c, err := NewChange(host.Ref{Mitigation: id, Revision: 1, Action: "a"},
		&stopgapv1.Action{Id: "a", Kind: &stopgapv1.Action_Service{Service: &stopgapv1.ServiceAction{Name: "S", StartType: "DISABLED", State: "STOPPED"}}},
		host.Prior{Service: &host.Service{Present: true, StartType: "AUTOMATIC", State: "RUNNING"}, Files: []string{`C:\x`}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func outcome(id string) *stopgapv1.Outcome {
	return &stopgapv1.Outcome{Mitigation: id, State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED}
}

func TestWhatWasWrittenIsThereAfterAReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := reopen(t, dir)
	if err := j.Put([]Change{change(t, "M1")}); err != nil {
		t.Fatal(err)
	}
	if err := j.PutOriginal(`C:\X\`, []byte("orig")); err != nil {
		t.Fatal(err)
	}
	if err := j.Settle(Settlement{Outcomes: []*stopgapv1.Outcome{outcome("M1"), outcome("M2")}}); err != nil {
		t.Fatal(err)
	}
	epoch, seq := j.Mark()
	if err := j.SetBlock("M1", Block{Reason: "why"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, hclog.NewNullLogger()); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	_ = j.Close()
	j = reopen(t, dir)
	cs, err := j.Changes()
	if err != nil || len(cs) != 1 || cs[0].Phase != Intended || cs[0].Prior.Service.StartType != "AUTOMATIC" {
		t.Errorf("changes: %+v %v", cs, err)
	}
	if data, ok, err := j.Original(`c:\x`); err != nil || !ok || string(data) != "orig" {
		t.Errorf("original: %q %t %v", data, ok, err)
	}
	if e, s := j.Mark(); e != epoch || s != seq || s != 2 {
		t.Errorf("mark: %s %d", e, s)
	}
	if b, err := j.Blocks(); err != nil || b["M1"].Reason != "why" {
		t.Errorf("blocks: %v %v", b, err)
	}
	_, pending, err := j.Pending(0, 10)
	if err != nil || len(pending) != 2 || pending[0].GetSequence() != 1 {
		t.Errorf("pending: %v %v", pending, err)
	}
	if err := j.Acknowledged("another epoch", 2); err != nil || j.OutboxLen() != 2 {
		t.Errorf("an acknowledgement of another epoch: %v", err)
	}
	if err := j.Acknowledged(epoch, 1); err != nil || j.OutboxLen() != 1 {
		t.Errorf("acknowledged 1: %d left, %v", j.OutboxLen(), err)
	}
}

func TestADamagedJournalIsSetAsideAndRebuiltFromThePlainCopies(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, path string){
		"rubbish": func(t *testing.T, p string) {
			if err := os.WriteFile(p, bytes.Repeat([]byte("rubbish "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"truncated": func(t *testing.T, p string) {
			if err := os.Truncate(p, 9000); err != nil {
				t.Fatal(err)
			}
		},
		"empty": func(t *testing.T, p string) {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		},
		"pages overwritten": func(t *testing.T, p string) {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, _ := f.Stat()
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, int(st.Size())-8192), 8192); err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := lastingDir(t)
			j := reopen(t, dir)
			c := change(t, "M1")
			c.Phase = Applied
			if err := j.Put([]Change{c}); err != nil {
				t.Fatal(err)
			}
			if err := j.PutOriginal(`C:\x`, []byte("orig")); err != nil {
				t.Fatal(err)
			}
			old, _ := j.Mark()
			_ = j.Close()
			damage(t, filepath.Join(dir, File))
			onlyLooks(t, dir, name == "empty")
			j = reopen(t, dir)
			cs, err := j.Changes()
			if err != nil || len(cs) != 1 || cs[0].Phase != Intended || cs[0].Prior.Service == nil {
				t.Errorf("changes: %+v %v", cs, err)
			}
			if data, ok, _ := j.Original(`C:\x`); !ok || string(data) != "orig" {
				t.Errorf("original: %q", data)
			}
			if now, _ := j.Mark(); now == old {
				t.Error("the epoch did not change: numbers would be used twice")
			}
			aside, _ := filepath.Glob(filepath.Join(dir, File+".damaged-*"))
			if name != "empty" && (len(aside) != 1 || len(j.Notes()) == 0) {
				t.Errorf("set aside: %v, said: %v", aside, j.Notes())
			}
		})
	}
}

// lastingDir is a temporary directory that need not go away: on Windows what bbolt mapped when it panicked stays until the process ends.
func lastingDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "journal") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// onlyLooks opens a copy of a journal for somebody who must not change it.
func onlyLooks(t *testing.T, dir string, fine bool) {
	t.Helper()
	left, err := os.ReadFile(filepath.Join(dir, File))
	copied := lastingDir(t)
	if err == nil {
		err = os.WriteFile(filepath.Join(copied, File), left, 0o600)
	}
	if fine && errors.Is(err, fs.ErrNotExist) {
		if _, err := OpenIntact(copied, hclog.NewNullLogger()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("who only looks makes a journal: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if j, err := OpenIntact(copied, hclog.NewNullLogger()); err == nil {
		_ = j.Close()
		t.Error("who only looks takes a damaged journal for a sound one")
	} else if !strings.Contains(err.Error(), "damaged") {
		t.Errorf("who only looks is told %v", err)
	}
	now, err := os.ReadFile(filepath.Join(copied, File))
	if err != nil || string(now) != string(left) {
		t.Errorf("who only looks changed it: %v", err)
	}
}

func TestUndoTellsHowToUndoEachChangeByHand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := reopen(t, dir)
	if err := j.Put([]Change{change(t, "M1")}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, UndoFile))
	if err != nil || !strings.Contains(string(text), "sc.exe config S start= auto") || !strings.Contains(string(text), "sc.exe start S") || !strings.Contains(string(text), "panic-revert") {
		t.Errorf("%s %v", text, err)
	}
	if err := j.Settle(Settlement{Remove: []host.Ref{{Mitigation: "M1", Revision: 1, Action: "a"}}}); err != nil {
		t.Fatal(err)
	}
	if text, _ = os.ReadFile(filepath.Join(dir, UndoFile)); !strings.Contains(string(text), "Nothing is changed now") {
		t.Errorf("after the last change is gone: %s", text)
	}
}

func TestTheOutboxIsBoundedAndKeepsTheNewest(t *testing.T) {
	t.Parallel()
	j := reopen(t, t.TempDir())
	var s Settlement
	for range MaxOutbox + 10 {
		s.Outcomes = append(s.Outcomes, outcome("M1"))
	}
	if err := j.Settle(s); err != nil {
		t.Fatal(err)
	}
	_, pending, err := j.Pending(0, 1)
	if err != nil || j.OutboxLen() != MaxOutbox || pending[0].GetSequence() != 11 {
		t.Errorf("%d kept, oldest %v, %v", j.OutboxLen(), pending, err)
	}
}

func TestSequenceNumbersNeverComeTwiceInAnEpoch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "journal") //nolint:usetesting // rapid.T has no TempDir, and there are hundreds
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		j, err := Open(dir, hclog.NewNullLogger())
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		given := map[string]uint64{}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			epoch, before := j.Mark()
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				err = j.Settle(Settlement{Outcomes: []*stopgapv1.Outcome{outcome("M1")}})
			case 1:
				err = j.RollBack()
			case 2:
				err = j.ReportAll()
			case 3:
				_ = j.Close()
				j, err = Open(dir, hclog.NewNullLogger())
			}
			if err != nil {
				rt.Fatal(err)
			}
			now, after := j.Mark()
			if now == epoch && after < before || now != epoch && given[now] > 0 {
				rt.Fatalf("epoch %s went from %d to %d (%s)", epoch, before, after, now)
			}
			given[epoch] = max(given[epoch], before)
		}
	})
}

func FuzzImportPlain(f *testing.F) {
	f.Add([]byte(`{"changes":[{"ref":{"Mitigation":"M1"},"spec":{"id":"a"},"phase":"applied","since":"2026-01-01T00:00:00Z"}],"originals":{"c:\\x":"../../etc/passwd"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, PlainFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(dir, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = j.Close() }()
		if err := j.Settle(Settlement{Outcomes: []*stopgapv1.Outcome{outcome("M1")}}); err != nil {
			t.Fatal(err)
		}
	})
}
