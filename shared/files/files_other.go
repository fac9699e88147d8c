//go:build !windows

package files

import (
	"errors"
	"os"
	"syscall"
)

// makePrivateDir has nothing to add to the mode.
func makePrivateDir(dir string) error { return os.MkdirAll(dir, 0o700) }

// keepPrivate has nothing to add to the mode.
func keepPrivate(string) error { return nil }

func rename(from, to string) error { return os.Rename(from, to) }

// flushDir puts the names in a directory on disk: without it a power cut can undo a rename. File systems that can't are left to
// their own ways.
func flushDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
