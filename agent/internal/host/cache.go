package host

import (
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// fileKey identifies a configuration file in one pass.
func fileKey(ref string) string {
	dir, file := SplitRef(ref)
	return strings.ToLower(strings.TrimRight(dir, `\/`)) + "|" + strings.ToLower(file)
}

// cached reads each file once, so that everything in one pass is judged by the same bytes.
type cached struct {
	Driver
	read map[string]cachedFile
	dirs map[string]string // what Canonical said
}

func newCached(d Driver) *cached {
	return &cached{Driver: d, read: map[string]cachedFile{}, dirs: map[string]string{}}
}

type cachedFile struct {
	data []byte
	name string
	err  error
}

var _ iisconfig.Files = (*cached)(nil)

// ConfigFile implements iisconfig.Files.
func (c *cached) ConfigFile(dir, file string) ([]byte, string, error) {
	k := fileKey(FileRef(dir, file))
	f, ok := c.read[k]
	if !ok {
		f.data, f.name, f.err = c.Driver.ConfigFile(dir, file)
		c.read[k] = f
	}
	return f.data, f.name, f.err
}

// Canonical implements iisconfig.Files.
func (c *cached) Canonical(dir string) string {
	canon, ok := c.dirs[dir]
	if !ok {
		canon = c.Driver.Canonical(dir)
		c.dirs[dir] = canon
	}
	return canon
}

// key identifies a configuration file by what its directory is, not by how it is written.
func (c *cached) key(dir, file string) string { return c.Canonical(dir) + "|" + strings.ToLower(file) }

// forget reads a file anew the next time.
func (c *cached) forget(ref string) { delete(c.read, fileKey(ref)) }
