//go:build unix

package bench

import (
	"fmt"
	"syscall"
)

// fileLimit raises the open-file limit as far as it goes and says whether n connections fit.
func fileLimit(n int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if uint64(n)+90 > l.Cur {
		return fmt.Errorf("%d agents need more open files than the limit, %d (ulimit -n)", n, l.Cur)
	}
	return nil
}
