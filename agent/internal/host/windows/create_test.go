package windows

import (
	"errors"
	"testing"

	"github.com/stopgap-em/stopgap/agent/internal/host"
)

const made = `C:\inetpub\partner\web.config`

// intruder writes over a file in the moment in which it is moved away.
type intruder struct {
	*memory
	text string
}

func (i *intruder) Rename(from, to string) error {
	if from == made {
		i.files[made] = i.text
	}
	return i.memory.Rename(from, to)
}

func TestAFileIsMadeOnlyWhereThereIsNoneAndDeletedOnlyAsItWasMade(t *testing.T) {
	t.Parallel()
	m := &memory{files: map[string]string{}}
	r := replacer{fs: m}
	if err := r.create(made, []byte("ours")); err != nil || len(m.files) != 1 || m.files[made] != "ours" {
		t.Fatalf("%v %v", err, m.files)
	}
	if err := r.create(made, []byte("again")); !errors.Is(err, host.ErrChanged) || m.files[made] != "ours" || len(m.files) != 1 {
		t.Fatalf("a file that is there was made again: %v %v", err, m.files)
	}
	if err := r.remove(made, []byte("other")); !errors.Is(err, host.ErrChanged) || m.files[made] != "ours" {
		t.Fatalf("a file of other content was deleted: %v %v", err, m.files)
	}
	if err := (replacer{fs: &intruder{m, "theirs"}}).remove(made, []byte("ours")); !errors.Is(err, host.ErrChanged) || m.files[made] != "theirs" || len(m.files) != 1 {
		t.Fatalf("what somebody else wrote in between was lost: %v %v", err, m.files)
	}
	if err := r.remove(made, []byte("theirs")); err != nil || len(m.files) != 0 {
		t.Fatalf("%v %v", err, m.files)
	}
}

func TestAFileThatACrashLeftMovedAwayIsThereAgain(t *testing.T) {
	t.Parallel()
	m := &memory{files: map[string]string{backupOf(made, []byte("ours")): "ours"}}
	r := replacer{fs: m}
	if err := r.create(made, []byte("new")); !errors.Is(err, host.ErrChanged) || m.files[made] != "ours" {
		t.Fatalf("%v %v", err, m.files)
	}
	if err := r.remove(made, []byte("ours")); err != nil || len(m.files) != 0 {
		t.Fatalf("%v %v", err, m.files)
	}
}
