package windows

import (
	"bytes"
	"context"
	"crypto/sha256"
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
	// Backups lists the backups beside a file, newest first.
	Backups(path string) ([]string, error)
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

// backupOf names the backup of a file by what is expected to be in it, so that who finds one later can tell ours from what somebody
// else wrote between the comparison and the replacement.
func backupOf(path string, old []byte) string {
	sum := sha256.Sum256(old)
	return fmt.Sprintf("%s.%x%s", path, sum[:6], backupSuffix)
}

// patient repeats what fails because somebody holds a file open, for a bounded time.
func (r replacer) patient(ctx context.Context, deadline time.Time, f func() error) error {
	for {
		err := f()
		if err == nil || !busy(err) || !time.Now().Add(r.pause).Before(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.pause):
		}
	}
}

// read reads a file. One that exists only under its backup's name, as a crash in the middle of ReplaceFileW leaves it, is put
// back before anything else.
func (r replacer) read(path string) ([]byte, error) {
	var data []byte
	err := r.patient(context.Background(), time.Now().Add(r.within), func() error {
		var err error
		if data, err = r.fs.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
			if perr := r.putBack(path); perr != nil {
				return perr
			}
			data, err = r.fs.ReadFile(path)
		}
		return err
	})
	return data, err
}

func (r replacer) putBack(path string) error {
	backups, err := r.fs.Backups(path)
	if err != nil || len(backups) == 0 {
		return err
	}
	if err := r.fs.Rename(backups[0], path); err != nil {
		return fmt.Errorf("%s exists only as %s and can't be put back: %w", path, backups[0], err)
	}
	return nil
}

// replace makes a file's content data if it is old now. After an error the file is there, is not half written, and is not data. Errors:
// host.ErrChanged; held open by another process for longer than within.
func (r replacer) replace(ctx context.Context, path string, old, data []byte) error {
	deadline := time.Now().Add(r.within)
	if err := r.leftovers(path); err != nil {
		return err
	}
	fresh, backup := path+newSuffix, backupOf(path, old)
	if err := r.fs.WriteFile(fresh, data); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", fresh, err), r.forget(fresh))
	}
	for {
		err := r.patient(ctx, deadline, func() error {
			cur, err := r.read(path)
			if err == nil && !bytes.Equal(cur, old) {
				err = fmt.Errorf("%s: %w", path, host.ErrChanged)
			}
			if err != nil {
				return err
			}
			return r.fs.Replace(path, fresh, backup)
		})
		switch {
		case err == nil:
			return r.proven(ctx, path, backup, old)
		case errors.Is(err, errUnableToMove2):
			if _, rerr := r.read(path); rerr != nil { // puts it back
				return errors.Join(err, rerr)
			}
			if !time.Now().Add(r.pause).Before(deadline) {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(r.pause):
				continue
			}
		case !busy(err):
			return errors.Join(fmt.Errorf("%s: %w", path, err), r.forget(fresh))
		}
		return errors.Join(fmt.Errorf("%s is held open by another process, or read-only (for %s): %w", path, r.within, err), r.forget(fresh))
	}
}

// create writes a file that must not be there yet. It gets the access control list that its directory hands down.
func (r replacer) create(path string, data []byte) error {
	_, err := r.read(path) // puts back what a crash left under its backup's name
	if err == nil {
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := path + newSuffix
	if err := r.fs.WriteFile(fresh, data); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", fresh, err), r.forget(fresh))
	}
	if err := r.fs.Rename(fresh, path); err != nil { // replaces nothing
		if _, rerr := r.fs.ReadFile(path); rerr == nil {
			err = fmt.Errorf("%s: %w", path, host.ErrChanged)
		}
		return errors.Join(err, r.forget(fresh))
	}
	return nil
}

// remove deletes a file if its content is old. It renames the file before it compares the content a last time: if somebody else
// wrote to the file meanwhile, their version is renamed back. If the agent crashes after the rename, the next read restores the file.
func (r replacer) remove(path string, old []byte) error {
	cur, err := r.read(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(cur, old) {
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	backup := backupOf(path, old)
	if err := r.fs.Rename(path, backup); err != nil {
		return err
	}
	was, err := r.fs.ReadFile(backup)
	if err == nil && !bytes.Equal(was, old) {
		err = fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	if err != nil {
		return errors.Join(err, r.fs.Rename(backup, path))
	}
	return r.fs.Remove(backup)
}

// leftovers deals with backups that an earlier replacement was interrupted before it dealt with them: what is not as expected was written
// by somebody else, and comes back.
func (r replacer) leftovers(path string) error {
	if _, err := r.read(path); err != nil { // puts back what is missing
		return err
	}
	backups, err := r.fs.Backups(path)
	if err != nil {
		return err
	}
	for _, b := range backups {
		was, err := r.fs.ReadFile(b)
		if err != nil {
			return err
		}
		if b != backupOf(path, was) {
			return r.theirs(context.Background(), path, b)
		}
		if err := r.fs.Keep(b); err != nil {
			return err
		}
	}
	return nil
}

// theirs gives somebody else's change back, which a replacement took.
func (r replacer) theirs(ctx context.Context, path, backup string) error {
	mine := path + newSuffix
	if err := r.patient(ctx, time.Now().Add(r.within), func() error { return r.fs.Replace(path, backup, mine) }); err != nil {
		return fmt.Errorf("%s was changed by somebody else meanwhile, and their change, kept as %s, can't be put back: %w", path, backup, err)
	}
	return errors.Join(fmt.Errorf("%s: %w", path, host.ErrChanged), r.forget(mine))
}

// proven looks at the backup: it shows whether somebody else wrote between the comparison and the replacement. A backup that can't be
// looked at now stays, for leftovers: the file itself is written.
func (r replacer) proven(ctx context.Context, path, backup string, old []byte) error {
	var was []byte
	err := r.patient(ctx, time.Now().Add(r.within), func() error {
		var err error
		was, err = r.fs.ReadFile(backup)
		return err
	})
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	if !bytes.Equal(was, old) {
		return r.theirs(ctx, path, backup)
	}
	_ = r.patient(ctx, time.Now().Add(r.within), func() error { return r.fs.Keep(backup) })
	return nil
}

func (r replacer) forget(path string) error {
	if err := r.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("left behind: %s: %w", filepath.Base(path), err)
	}
	return nil
}
