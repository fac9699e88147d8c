package iisconfig

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// maxEntries bounds a walk below one directory; the front end of an Exchange server has some ten thousand files.
const maxEntries = 200_000

// WebConfigsBelow lists the directories below one that have a web.config, not itself, as Windows paths. root is where it is on
// this machine, dir what it is called. What can't be read is left out. Errors: more than 200,000 files.
func WebConfigsBelow(root, dir string) ([]string, error) {
	dir = strings.TrimRight(dir, `\/`)
	var out []string
	seen := 0
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if e != nil && e.IsDir() && p != root {
				return fs.SkipDir
			}
			return nil
		}
		if seen++; seen > maxEntries {
			return fmt.Errorf("%s: more than %d files", root, maxEntries)
		}
		if parent := filepath.Dir(p); !e.IsDir() && parent != root && strings.EqualFold(e.Name(), "web.config") {
			rel, err := filepath.Rel(root, parent)
			if err != nil {
				return err
			}
			out = append(out, dir+`\`+strings.ReplaceAll(rel, string(filepath.Separator), `\`))
		}
		return nil
	})
	return out, err
}
