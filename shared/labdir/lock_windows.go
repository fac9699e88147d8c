package labdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// On Windows a lab server is played by one process only; the lock keeps its goroutines apart. A file that a killed process left
// behind has to be deleted by hand.
const (
	lockPoll = 5 * time.Millisecond
	lockWait = time.Minute
)

func (d Dir) lock() (unlock func(), err error) {
	p := filepath.Join(string(d), "lock")
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		switch {
		case err == nil:
			_ = f.Close()
			return func() { _ = os.Remove(p) }, nil
		case !errors.Is(err, fs.ErrExist), time.Now().After(deadline):
			return nil, fmt.Errorf("lab server %s: its lock: %w", d, err)
		}
	}
}
