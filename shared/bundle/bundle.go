// Package bundle is a signed policy as one file, for servers that reach no controller: a zip archive of the newest state of a
// policy directory (every root, the newest targets metadata, its documents), so that anybody can look into it. It packs and
// unpacks; who trusts what is in it verifies that (tufpolicy.VerifySigned).
package bundle

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// MaxBytes bounds a bundle, packed; unpacked, each of its parts has the bound that tufpolicy gives it.
const MaxBytes = 16 << 20

const (
	maxEntries  = tufpolicy.MaxRoots + tufpolicy.MaxTargets + 1
	maxUnpacked = tufpolicy.MaxDocuments + tufpolicy.MaxRoots*tufpolicy.MaxRoot/4 + tufpolicy.MaxTargetsMetadata
)

// Pack writes a bundle of files as policydir.Dir.Files gives them: contents by path with slashes. The same files give the same
// bytes.
func Pack(w io.Writer, files map[string][]byte) error {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	z := zip.NewWriter(w)
	for _, n := range names {
		f, err := z.CreateHeader(&zip.FileHeader{Name: n, Method: zip.Deflate})
		if err != nil {
			return err
		}
		if _, err := f.Write(files[n]); err != nil {
			return err
		}
	}
	return z.Close()
}

// Unpack reads a bundle. Nothing of it is verified yet. Errors name the entry.
func Unpack(data []byte) (s tufpolicy.Signed, err error) {
	if len(data) > MaxBytes {
		return s, fmt.Errorf("bundle: %d bytes, limit %d", len(data), MaxBytes)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return s, fmt.Errorf("bundle: not a zip archive: %w", err)
	}
	if len(z.File) > maxEntries {
		return s, fmt.Errorf("bundle: %d entries, limit %d", len(z.File), maxEntries)
	}
	s.Documents = map[string][]byte{}
	roots := map[uint64][]byte{}
	total := 0
	for _, f := range z.File {
		is, ok := tufpolicy.ParseFile(f.Name)
		if !ok {
			return s, fmt.Errorf("bundle: %.80q has no place in a bundle", f.Name)
		}
		content, err := read(f, is.Limit())
		if err != nil {
			return s, fmt.Errorf("bundle: %s: %w", f.Name, err)
		}
		if total += len(content); total > maxUnpacked {
			return s, fmt.Errorf("bundle: more than %d bytes unpacked", maxUnpacked)
		}
		twice := false
		switch {
		case is.Root > 0:
			_, twice = roots[is.Root]
			roots[is.Root] = content
		case is.Document != "":
			_, twice = s.Documents[is.Document]
			s.Documents[is.Document] = content
		default:
			twice = s.Targets != nil
			s.Targets = content
		}
		if twice {
			return s, fmt.Errorf("bundle: %s: there can be only one", f.Name)
		}
	}
	if s.Targets == nil {
		return s, errors.New("bundle: no targets metadata in it")
	}
	for v := uint64(1); v <= uint64(len(roots)); v++ {
		if roots[v] == nil {
			return s, fmt.Errorf("bundle: %d roots, and root %d is missing", len(roots), v)
		}
		s.Roots = append(s.Roots, roots[v])
	}
	if len(s.Roots) == 0 {
		return s, errors.New("bundle: no root in it")
	}
	return s, nil
}

func read(f *zip.File, limit int) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
