//go:build unix

package labdir

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// Two processes change services.json and apppools.json: the agent, and whoever plays the server. The lock is one of the kernel's on the
// directory, so that a process that is killed loses it and one that is only slow keeps it.
const (
	lockPoll = 5 * time.Millisecond
	lockWait = time.Minute
)

func (d Dir) lock() (unlock func(), err error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR), time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("lab server %s: its lock: %w", d, err), f.Close())
		}
	}
}
