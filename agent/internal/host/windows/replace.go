package windows

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
)

// Names beside a web.config while it is replaced. IIS refuses to serve any file that ends in .config.
const (
	newSuffix    = ".stopgap-new.config"
	backupSuffix = ".stopgap-backup.config"
)

// Errors of Windows on replacing a file. Source: ReplaceFileW in the Windows API reference, system error codes.
const (
	errAccessDenied     = syscall.Errno(5)
	errSharingViolation = syscall.Errno(32)
	errLockViolation    = syscall.Errno(33)
	errUnableToRemove   = syscall.Errno(1175) // both files keep their names
	errUnableToMove     = syscall.Errno(1176) // both files keep their names
	errUnableToMove2    = syscall.Errno(1177) // the target exists only under its backup's name
)

// fileSystem is what replacing a file needs. Tests give one that fails where they want.
type fileSystem interface {
	ReadFile(path string) ([]byte, error)
	// WriteFile writes a new file and flushes it.
	WriteFile(path string, data []byte) error
	// Replace is ReplaceFileW: target's content becomes that of with, target's attributes and ACL stay, and what was there
	// is kept as backup.
	Replace(target, with, backup string) error
	// Rename moves a file; it replaces nothing.
	Rename(from, to string) error
	Remove(path string) error
	// Keep moves a proven backup into Stopgap's own directory.
	Keep(path string) error
}

// replacer replaces files that others may hold open.
type replacer struct {
	fs fileSystem
	// within bounds the retries, pause is between them.
	within, pause time.Duration
}

func busy(err error) bool {
	for _, e := range []error{errAccessDenied, errSharingViolation, errLockViolation, errUnableToRemove, errUnableToMove} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func backupOf(path string) string { return path + backupSuffix }

// read reads a file. One that exists only under its backup's name, as a crash in the middle of ReplaceFileW leaves it, is put
// back before anything else.
func (r replacer) read(path string) ([]byte, error) {
	data, err := r.fs.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	if _, berr := r.fs.ReadFile(backupOf(path)); berr != nil {
		return nil, err
	}
	if err := r.fs.Rename(backupOf(path), path); err != nil {
		return nil, fmt.Errorf("%s exists only as %s and can't be put back: %w", path, backupOf(path), err)
	}
	return r.fs.ReadFile(path)
}

// replace makes a file's content data if it is old now. After any error the file is there and is not half written. Errors:
// host.ErrChanged; held open by another process for longer than within.
func (r replacer) replace(ctx context.Context, path string, old, data []byte) error {
	deadline := time.Now().Add(r.within)
	if err := r.leftover(path); err != nil {
		return err
	}
	fresh := path + newSuffix
	if err := r.fs.WriteFile(fresh, data); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", fresh, err), r.forget(fresh))
	}
	for {
		cur, err := r.read(path)
		if err == nil && !bytes.Equal(cur, old) {
			err = fmt.Errorf("%s: %w", path, host.ErrChanged)
			return errors.Join(err, r.forget(fresh))
		}
		if err == nil {
			err = r.fs.Replace(path, fresh, backupOf(path))
		}
		if err == nil {
			return r.proven(path, old, data)
		}
		if errors.Is(err, errUnableToMove2) {
			if _, rerr := r.read(path); rerr != nil {
				return errors.Join(err, rerr)
			}
		} else if !busy(err) {
			return errors.Join(fmt.Errorf("%s: %w", path, err), r.forget(fresh))
		}
		if !time.Now().Add(r.pause).Before(deadline) {
			return errors.Join(fmt.Errorf("%s is held open by another process, or read-only (for %s): %w", path, r.within, err), r.forget(fresh))
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), r.forget(fresh))
		case <-time.After(r.pause):
		}
	}
}

// leftover keeps a backup that an earlier replacement was interrupted before keeping.
func (r replacer) leftover(path string) error {
	if _, err := r.read(path); err != nil { // puts back what is missing
		return err
	}
	err := r.fs.Keep(backupOf(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// proven reads back what was written. The backup shows whether somebody else wrote between the comparison and the replacement:
// then theirs comes back.
func (r replacer) proven(path string, old, data []byte) error {
	was, err := r.fs.ReadFile(backupOf(path))
	if err != nil {
		return fmt.Errorf("%s was replaced, its backup can't be read: %w", path, err)
	}
	now, err := r.fs.ReadFile(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s was replaced and can't be read back: %w", path, err)
	case !bytes.Equal(was, old):
		if bytes.Equal(now, data) {
			if err := r.fs.Replace(path, backupOf(path), path+newSuffix); err != nil {
				return fmt.Errorf("%s was changed by somebody else meanwhile, and their change, kept as %s, can't be put back: %w", path, backupOf(path), err)
			}
			return errors.Join(fmt.Errorf("%s: %w", path, host.ErrChanged), r.forget(path+newSuffix))
		}
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	case !bytes.Equal(now, data):
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	return r.fs.Keep(backupOf(path))
}

func (r replacer) forget(path string) error {
	if err := r.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("left behind: %s: %w", filepath.Base(path), err)
	}
	return nil
}
