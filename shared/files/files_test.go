package files

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// content reads a file of a test.
func content(t *testing.T, name string) string {
	t.Helper()
	data, err := Read(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// alone checks that a directory has just these entries: no temporary file is left.
func alone(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("the directory has %q, want %q", got, names)
	}
}

func TestAReplacedFileHasTheNewContentAndTheModeAskedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for i, mode := range []fs.FileMode{Private, Public, Private} {
		want := strings.Repeat("x", i)
		if err := Replace(name, []byte(want), mode); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, name); got != want || runtime.GOOS != "windows" && st.Mode().Perm() != mode {
			t.Errorf("%q with mode %v, want %q with %v", got, st.Mode(), want, mode)
		}
	}
	alone(t, dir, "f")
}

func TestWhatCanNotBeReplacedStaysAndLeavesNothingBeside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(name, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(name, []byte("x"), Private); err == nil {
		t.Error("a directory was replaced by a file")
	}
	alone(t, dir, "d")
	if err := Replace(filepath.Join(dir, "missing", "f"), nil, Private); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}

func TestReadersSeeOneContentOrTheOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	contents := []string{strings.Repeat("a", 100_000), strings.Repeat("b", 200_000)}
	if err := Replace(name, []byte(contents[0]), Public); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range contents {
		wg.Go(func() {
			for range 20 {
				if err := Replace(name, []byte(c), Public); err != nil && runtime.GOOS != "windows" { // where a reader keeps the name
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		got, err := Read(name, 1<<20)
		if err != nil && runtime.GOOS == "windows" { // where a file can't be opened in the moment of its replacement
			continue
		}
		if err != nil || string(got) != contents[0] && string(got) != contents[1] {
			t.Fatalf("%d bytes of neither content, %v", len(got), err)
		}
	}
	wg.Wait()
	alone(t, dir, "f")
}

func TestAFileIsCreatedOnceAndNeverReplacedByThat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "key")
	won := make(chan string, 20)
	var wg sync.WaitGroup
	for i := range cap(won) {
		wg.Go(func() {
			me := strings.Repeat("k", i+1)
			switch err := Create(name, []byte(me), Private); {
			case err == nil:
				won <- me
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d created one file", len(won))
	}
	if me := <-won; content(t, name) != me {
		t.Error("the one that created it does not find its content")
	}
	alone(t, dir, "key")
}

func TestAReadHasABound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := Replace(name, bytes.Repeat([]byte("x"), 10), Public); err != nil {
		t.Fatal(err)
	}
	if data, err := Read(name, 10); err != nil || len(data) != 10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if _, err := Read(name, 9); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), name) {
		t.Errorf("one byte too many: %v", err)
	}
	if _, err := Read(filepath.Join(dir, "none"), 9); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := ReadRegular(dir, 10); err == nil {
		t.Error("a directory was read")
	}
	if err := os.Symlink(name, filepath.Join(dir, "link")); err == nil {
		if _, err := ReadRegular(filepath.Join(dir, "link"), 10); err == nil {
			t.Error("a link was followed")
		}
	}
}

func TestARenamedFileReplacesTheOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := Replace(filepath.Join(dir, n), []byte(n), Private); err != nil {
			t.Fatal(err)
		}
	}
	if err := Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if content(t, filepath.Join(dir, "b")) != "a" {
		t.Error("the name has the old content")
	}
	alone(t, dir, "b")
}
