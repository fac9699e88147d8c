package tufpolicy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/stopgap-em/stopgap/shared/mitigation"
)

// PolicyName is the path, among the targets, of the table of what is allowed.
const PolicyName = "policy.yaml"

// The two halves of a policy, as a directory, a bundle and a publish have them alike:
//
//	metadata/<n>.root.json                     every root, from the first
//	metadata/<n>.targets.json                  a version of the targets metadata
//	targets/policy.yaml                        which revisions are allowed, and what the controller is permitted
//	targets/fixed-builds.yaml                  which builds are fixed
//	targets/mitigations/<id>/<revision>.yaml   the documents
const (
	MetadataDir = "metadata"
	TargetsDir  = "targets"
)

const (
	rootSuffix    = ".root.json"
	targetsSuffix = ".targets.json"
)

// File says which file of a policy one is: exactly one of its fields is set.
type File struct {
	// Root is the version of a root.
	Root uint64
	// Targets is the version of targets metadata.
	Targets uint64
	// Document is the path of a document among the targets: one of the tables, or a mitigation.
	Document string
}

// ParseFile says which file of a policy has a path; ok is false for a path that has no place in a policy.
func ParseFile(path string) (f File, ok bool) {
	if doc, is := strings.CutPrefix(path, TargetsDir+"/"); is {
		return File{Document: doc}, AllowedPath(doc)
	}
	name, is := strings.CutPrefix(path, MetadataDir+"/")
	if !is {
		return File{}, false
	}
	if text, is := strings.CutSuffix(name, rootSuffix); is {
		f.Root, ok = version(text)
		return f, ok
	}
	if text, is := strings.CutSuffix(name, targetsSuffix); is {
		f.Targets, ok = version(text)
		return f, ok
	}
	return File{}, false
}

// version reads a version as it is written: one text for one number.
func version(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 63)
	return n, err == nil && n > 0 && strconv.FormatUint(n, 10) == text
}

// Path is the reverse of ParseFile.
func (f File) Path() string {
	switch {
	case f.Root > 0:
		return fmt.Sprintf("%s/%d%s", MetadataDir, f.Root, rootSuffix)
	case f.Targets > 0:
		return fmt.Sprintf("%s/%d%s", MetadataDir, f.Targets, targetsSuffix)
	default:
		return TargetsDir + "/" + f.Document
	}
}

// Limit bounds the file, in bytes.
func (f File) Limit() int {
	switch {
	case f.Root > 0:
		return MaxRoot
	case f.Targets > 0:
		return MaxTargetsMetadata
	default:
		return mitigation.MaxBytes
	}
}

var documentPath = regexp.MustCompile(`^mitigations/([A-Za-z0-9](?:[-._]?[A-Za-z0-9]){0,39})/([1-9][0-9]{0,6})\.yaml$`)

// DocumentPath is where a revision stands among the targets.
func DocumentPath(id string, revision uint32) string {
	return fmt.Sprintf("mitigations/%s/%d.yaml", id, revision)
}

// AllowedPath says whether a target may have this path.
func AllowedPath(p string) bool {
	return p == PolicyName || p == mitigation.FixedBuildsName || documentPath.MatchString(p)
}

// ParsePath splits the path of a mitigation document; ok is false for the two tables.
func ParsePath(p string) (id, revision string, ok bool) {
	m := documentPath.FindStringSubmatch(p)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}
