package windows

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/e2e/patience"
)

// memory is a file system whose Replace does what a script says.
type memory struct {
	files  map[string]string
	kept   []string
	script []error // one for each Replace; nil: it works
	before func()  // called before each Replace
	stop   int     // Replace dies (panics) in the middle at this call, counted from 1
	calls  int
	// heldReads is how many reads, and keeps, of backups fail: a scanner looks at what is new.
	heldReads int
}

type crash struct{}

func (m *memory) ReadFile(p string) ([]byte, error) {
	s, ok := m.files[p]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if strings.HasSuffix(p, backupSuffix) && m.heldReads > 0 {
		m.heldReads--
		return nil, errSharingViolation
	}
	return []byte(s), nil
}
func (m *memory) WriteFile(p string, data []byte) error { m.files[p] = string(data); return nil }
func (m *memory) Rename(from, to string) error {
	if _, ok := m.files[to]; ok {
		return fs.ErrExist
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

func (m *memory) Remove(p string) error {
	if _, ok := m.files[p]; !ok {
		return fs.ErrNotExist
	}
	delete(m.files, p)
	return nil
}

func (m *memory) Backups(p string) ([]string, error) {
	var out []string
	for n := range m.files {
		if strings.HasPrefix(n, p+".") && strings.HasSuffix(n, backupSuffix) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (m *memory) Keep(p string) error {
	if m.heldReads > 0 {
		m.heldReads--
		return errSharingViolation
	}
	if _, ok := m.files[p]; !ok {
		return fs.ErrNotExist
	}
	m.kept = append(m.kept, m.files[p])
	delete(m.files, p)
	return nil
}

func (m *memory) Replace(target, with, backup string) error {
	m.calls++
	if m.before != nil {
		m.before()
	}
	var err error
	if len(m.script) > 0 {
		err, m.script = m.script[0], m.script[1:]
	}
	if errors.Is(err, errUnableToMove2) || m.calls == m.stop {
		m.files[backup] = m.files[target]
		delete(m.files, target)
		if m.calls == m.stop {
			panic(crash{})
		}
		return err
	}
	if err != nil {
		return err
	}
	m.files[backup], m.files[target] = m.files[target], m.files[with]
	delete(m.files, with)
	return nil
}

const target = `C:\inetpub\wwwroot\web.config`

func newReplacer(m *memory) replacer {
	return replacer{fs: m, within: patience.For(200 * time.Millisecond), pause: time.Millisecond}
}

func TestAFileIsReplacedWhateverWindowsAnswers(t *testing.T) {
	t.Parallel()
	always := func(e syscall.Errno) []error {
		out := make([]error, 10_000) // more than there are tries
		for i := range out {
			out[i] = e
		}
		return out
	}
	for _, c := range []struct {
		name   string
		script []error
		fails  string
	}{
		{"at once", nil, ""},
		{"held open for a while", []error{errAccessDenied, errSharingViolation, errLockViolation, errUnableToRemove, errUnableToMove, nil}, ""},
		{"left under its backup's name, twice", []error{errUnableToMove2, errUnableToMove2, nil}, ""},
		{"held open for ever", always(errSharingViolation), "held open by another process"},
		{"left under its backup's name every time", always(errUnableToMove2), "held open by another process"},
		{"an error that no waiting mends", []error{syscall.Errno(112)}, target},
	} {
		m := &memory{files: map[string]string{target: "old"}, script: c.script}
		err := newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new"))
		want, kept := "new", 1
		if c.fails != "" {
			want, kept = "old", 0
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if m.files[target] != want || len(m.files) != 1 || len(m.kept) != kept {
			t.Errorf("%s: files %q, kept %q", c.name, m.files, m.kept)
		}
	}
}

func TestSomebodyElsesChangeIsNeverLost(t *testing.T) {
	t.Parallel()
	m := &memory{files: map[string]string{target: "theirs"}}
	if err := newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new")); !errors.Is(err, host.ErrChanged) || m.files[target] != "theirs" {
		t.Fatalf("before: %v %q", err, m.files)
	}
	m = &memory{files: map[string]string{target: "old"}}
	m.before = func() { m.before = nil; m.files[target] = "theirs" }
	if err := newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new")); !errors.Is(err, host.ErrChanged) || m.files[target] != "theirs" || len(m.files) != 1 {
		t.Fatalf("between comparing and replacing: %v %q", err, m.files)
	}
}

func TestAfterACrashInTheMiddleOfReplacingTheFileIsPutBack(t *testing.T) {
	t.Parallel()
	m := &memory{files: map[string]string{target: "old"}, stop: 1}
	func() {
		defer func() {
			if r := recover(); r != (crash{}) {
				panic(fmt.Sprint("did not crash: ", r))
			}
		}()
		_ = newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new"))
	}()
	if _, there := m.files[target]; there {
		t.Fatal("the crash left the target, so nothing is tested")
	}
	if data, err := newReplacer(m).read(target); err != nil || string(data) != "old" {
		t.Fatalf("%q %v", data, err)
	}
	if err := newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new")); err != nil || m.files[target] != "new" || len(m.files) != 1 {
		t.Fatalf("%v %q", err, m.files)
	}
}

func TestAScannerThatHoldsTheBackupNeitherLosesNorFailsAnything(t *testing.T) {
	t.Parallel()
	for _, held := range []int{3, 100_000} {
		m := &memory{files: map[string]string{target: "old"}, heldReads: held}
		if err := newReplacer(m).replace(t.Context(), target, []byte("old"), []byte("new")); err != nil || m.files[target] != "new" {
			t.Fatalf("held %d times: %v %q", held, err, m.files)
		}
		m.heldReads = 0
		if err := newReplacer(m).replace(t.Context(), target, []byte("new"), []byte("newer")); err != nil || m.files[target] != "newer" || len(m.files) != 1 || len(m.kept) != 2 {
			t.Fatalf("and then: %v %q, kept %q", err, m.files, m.kept)
		}
	}
}

func TestSomebodyElsesChangeComesBackAfterACrash(t *testing.T) {
	t.Parallel()
	// Killed between ReplaceFileW, which took theirs, and the look at the backup.
	m := &memory{files: map[string]string{target: "ours", backupOf(target, []byte("old")): "theirs"}}
	err := newReplacer(m).replace(t.Context(), target, []byte("ours"), []byte("newer"))
	if !errors.Is(err, host.ErrChanged) || m.files[target] != "theirs" || len(m.files) != 1 {
		t.Fatalf("%v %q", err, m.files)
	}
}
