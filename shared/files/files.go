// Package files writes files that are there whole or not at all, also after a power cut, and reads files up to a bound. It knows
// nothing of what is in them.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// TempPattern matches the temporary files that Replace makes beside a file; a process that is killed may leave one.
const TempPattern = ".new-*"

// Private is the mode of a file that only its owner may read. On Windows, where modes say nothing, Replace and Create then leave
// access to SYSTEM and Administrators only (and to the owner, in a process that is not elevated).
const Private fs.FileMode = 0o600

// Public is the mode of a file that everybody may read.
const Public fs.FileMode = 0o644

// Replace writes a file in one step, whether or not it is there: whoever reads it finds the old content or the new, and so does
// the next start after a crash. When it returns without an error, the new content is on disk. The directory must exist. While the
// file is incomplete nobody else can read it.
func Replace(name string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(name)
	tmp, err := os.CreateTemp(dir, TempPattern) // with an exclusive random name, and Private
	if err != nil {
		return err
	}
	err = fill(tmp, data, mode)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	return flushDir(dir)
}

// fill gives a new file its access, its content and its mode, and flushes it.
func fill(f *os.File, data []byte, mode fs.FileMode) error {
	if mode&0o077 == 0 {
		if err := keepPrivate(f.Name()); err != nil {
			return err
		}
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := permit(f, mode); err != nil {
		return err
	}
	return f.Sync()
}

// permit gives a file its mode. File systems without modes, as on a memory stick, may refuse to change one: that is no error where
// the mode they show allows as much.
func permit(f *os.File, mode fs.FileMode) error {
	if mode == Private {
		return nil // it was made so
	}
	err := f.Chmod(mode)
	if st, serr := f.Stat(); err != nil && serr == nil && st.Mode().Perm()&mode == mode {
		return nil
	}
	return err
}

// Create writes a file that must not be there yet, in one step like Replace. Errors: fs.ErrExist.
func Create(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, Private) // the name is ours from here on
	if err != nil {
		return err
	}
	if err = f.Close(); err == nil {
		err = Replace(name, data, mode)
	}
	if err != nil {
		_ = os.Remove(name)
	}
	return err
}

// Rename renames a file or a directory within its directory, replacing a file that has the new name. When it returns without an
// error, the new name is on disk.
func Rename(from, to string) error {
	if err := rename(from, to); err != nil {
		return err
	}
	return flushDir(filepath.Dir(to))
}

// ErrTooLarge is returned by Read.
var ErrTooLarge = errors.New("too large")

// Read reads a file of at most limit bytes, and never more of it. Errors: fs.ErrNotExist and others of the system, ErrTooLarge.
func Read(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return data, nil
}

// ReadRegular is Read for a file that must be a regular one and no link: for directories that come from somebody else.
func ReadRegular(name string, limit int) ([]byte, error) {
	st, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return Read(name, limit)
}

// ErrPlanted is returned by MakePrivateDir for a directory that somebody else made, who could read and change what is put there.
// Windows only.
var ErrPlanted = errors.New("somebody who is no administrator made it: move it away")

// MakePrivateDir makes a directory, where there is none, that nobody but its owner can look into (on Windows: SYSTEM and
// Administrators). Errors: ErrPlanted.
func MakePrivateDir(dir string) error {
	if err := makePrivateDir(dir); err != nil {
		return fmt.Errorf("%s can't be kept from others: %w", dir, err)
	}
	return nil
}
