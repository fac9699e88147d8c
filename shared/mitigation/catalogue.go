package mitigation

import (
	"embed"
	"io/fs"
	"path"
	"sort"
)

// The catalogue: every mitigation Microsoft published for Exchange that Stopgap can express, as documents of ours.
//
//go:embed catalogue/*.yaml
var catalogue embed.FS

// OutOfScope names published mitigations that Stopgap can't express, with the reason.
var OutOfScope = map[string]string{
	"CVE-2023-21709": "removes the global module TokenCacheModule; Stopgap changes rewrite rules, services and app pools only. Install the Windows update of October 2023",
}

// FixedBuildsName is the file name of the fixed-builds table.
const FixedBuildsName = "fixed-builds.yaml"

// CatalogueFile is one file of the catalogue.
type CatalogueFile struct {
	Name    string
	Content []byte
}

// Catalogue gives every file of the catalogue, the fixed-builds table included, by name.
func Catalogue() ([]CatalogueFile, error) {
	names, err := fs.Glob(catalogue, "catalogue/*.yaml")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	out := make([]CatalogueFile, 0, len(names))
	for _, n := range names {
		data, err := catalogue.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out = append(out, CatalogueFile{path.Base(n), data})
	}
	return out, nil
}
