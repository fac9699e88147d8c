package windows

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// winFS is the real file system.
type winFS struct {
	keep string // directory of proven backups
}

// keepNewest is how many proven backups of one file are kept.
const keepNewest = 10

// ReadFile implements fileSystem.
func (winFS) ReadFile(path string) ([]byte, error) {
	data, _, err := readBounded(path)
	return data, err
}

// WriteFile implements fileSystem.
func (winFS) WriteFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

var replaceFile = windows.NewLazySystemDLL("kernel32.dll").NewProc("ReplaceFileW")

// Replace implements fileSystem.
func (winFS) Replace(target, with, backup string) error {
	t, err := windows.UTF16PtrFromString(target)
	if err != nil {
		return err
	}
	w, err := windows.UTF16PtrFromString(with)
	if err != nil {
		return err
	}
	b, err := windows.UTF16PtrFromString(backup)
	if err != nil {
		return err
	}
	if ok, _, err := replaceFile.Call(uintptr(unsafe.Pointer(t)), uintptr(unsafe.Pointer(w)), uintptr(unsafe.Pointer(b)), 0, 0, 0); ok == 0 {
		return err
	}
	return nil
}

// Rename implements fileSystem.
func (winFS) Rename(from, to string) error {
	f, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	return windows.MoveFileEx(f, t, windows.MOVEFILE_WRITE_THROUGH)
}

// Remove implements fileSystem.
func (winFS) Remove(path string) error { return os.Remove(path) }

// Backups implements fileSystem.
func (winFS) Backups(path string) ([]string, error) {
	all, err := filepath.Glob(path + ".*" + backupSuffix)
	age := map[string]time.Time{}
	for _, p := range all {
		if st, err := os.Stat(p); err == nil {
			age[p] = st.ModTime()
		}
	}
	sort.Slice(all, func(i, j int) bool { return age[all[i]].After(age[all[j]]) })
	return all, err
}

// Keep implements fileSystem. The directory may be on another disk.
func (w winFS) Keep(path string) error {
	data, _, err := readBounded(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.keep, 0o700); err != nil {
		return err
	}
	name := strings.TrimSuffix(path, backupSuffix)
	name = strings.NewReplacer(`:`, "", `\`, "_", " ", "_").Replace(name[:strings.LastIndex(name, ".")]) // without the hash
	if err := w.WriteFile(filepath.Join(w.keep, fmt.Sprintf("%s.%s", name, time.Now().UTC().Format("20060102T150405.000000"))), data); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(w.keep, name+".2*"))
	if err != nil {
		return err
	}
	sort.Strings(old)
	for len(old) > keepNewest {
		if err := os.Remove(old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	return nil
}
