// Package policydir is a policy as people keep and sign it: a directory that goes from one signer to the next, on any
// medium. It needs no controller and no network, and imports only what is shared.
//
// Its files are those of tufpolicy.ParseFile: every root, and every version of the targets metadata, of which the newest may still
// lack signatures (the draft); and the documents of the newest.
package policydir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Lifetimes when nobody says otherwise.
const (
	DefaultRootLife    = 365 * 24 * time.Hour
	DefaultTargetsLife = 90 * 24 * time.Hour
)

// Errors that callers branch on.
var (
	// ErrNone: there is no policy directory.
	ErrNone = errors.New("no policy directory there; `stopgap policy init` makes one")
	// ErrImmutable: a revision is in the policy with other bytes.
	ErrImmutable = errors.New("a revision never changes once it was added")
)

// Dir is a policy directory, read whole.
type Dir struct {
	path  string
	roots map[uint64][]byte
	// root is the newest root that is signed to the threshold; rootDraft a newer one that is not, or nil.
	root      []byte
	rootInfo  tufpolicy.RootInfo
	rootDraft *metadata.Metadata[metadata.RootType]
	targets   map[uint64][]byte
	// head is the newest targets metadata; signed to the threshold or not.
	head *metadata.Metadata[metadata.TargetsType]
	docs map[string][]byte
}

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// Open reads a policy directory, bounded.
func Open(dir string) (*Dir, error) {
	d := &Dir{path: dir, roots: map[uint64][]byte{}, targets: map[uint64][]byte{}, docs: map[string][]byte{}}
	entries, err := os.ReadDir(filepath.Join(dir, tufpolicy.MetadataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := d.readMetadata(e.Name()); err != nil {
			return nil, err
		}
	}
	if err := d.readDocuments(); err != nil {
		return nil, err
	}
	return d, d.resolve()
}

// file is where a file of the policy is.
func (d *Dir) file(f tufpolicy.File) string {
	return filepath.Join(d.path, filepath.FromSlash(f.Path()))
}

func (d *Dir) readMetadata(name string) error {
	is, ok := tufpolicy.ParseFile(tufpolicy.MetadataDir + "/" + name)
	if !ok {
		return nil // not one of ours: an editor's backup, say
	}
	data, err := files.ReadRegular(d.file(is), is.Limit())
	if err != nil {
		return err
	}
	if is.Root > 0 {
		d.roots[is.Root] = data
	} else {
		d.targets[is.Targets] = data
	}
	return nil
}

func (d *Dir) readDocuments() error {
	base := filepath.Join(d.path, tufpolicy.TargetsDir)
	return filepath.WalkDir(base, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(base, p)
		if err != nil {
			return err
		}
		is, ok := tufpolicy.ParseFile(tufpolicy.TargetsDir + "/" + filepath.ToSlash(rel))
		if !ok {
			return fmt.Errorf("%s has no place in a policy directory", p)
		}
		if len(d.docs) >= tufpolicy.MaxTargets {
			return fmt.Errorf("%s: more than %d documents", base, tufpolicy.MaxTargets)
		}
		d.docs[is.Document], err = files.ReadRegular(p, is.Limit())
		return err
	})
}

// resolve finds out what is signed and what is a draft.
func (d *Dir) resolve() error {
	first, ok := d.roots[1]
	if !ok {
		return fmt.Errorf("%s: no metadata/1.root.json", d.path)
	}
	if err := d.resolveRoot(first); err != nil {
		return err
	}
	newest := uint64(0)
	for v := range d.targets {
		newest = max(newest, v)
	}
	if newest == 0 {
		return fmt.Errorf("%s: no targets metadata", d.path)
	}
	head, err := metadata.Targets().FromBytes(d.targets[newest])
	if err != nil || uint64(head.Signed.Version) != newest {
		return fmt.Errorf("%s: metadata/%d.targets.json can't be read as version %d: %w", d.path, newest, newest, err)
	}
	d.head = head
	return nil
}

func (d *Dir) resolveRoot(first []byte) error {
	last := uint64(1)
	var chain [][]byte
	for v := uint64(2); d.roots[v] != nil; v++ {
		chain, last = append(chain, d.roots[v]), v
	}
	draft := func(data []byte) error {
		r, err := metadata.Root().FromBytes(data)
		if err != nil {
			return fmt.Errorf("%s: the newest root can't be read: %w", d.path, err)
		}
		d.rootDraft = r
		return nil
	}
	st, err := tufpolicy.Begin(first, 0)
	if err != nil {
		if last > 1 {
			return fmt.Errorf("%s: metadata/1.root.json: %w", d.path, err)
		}
		if err := draft(first); err != nil {
			return err
		}
		d.rootInfo, err = tufpolicy.ReadRoot(first)
		return err
	}
	d.root = st.Root
	for i, data := range chain {
		next, err := tufpolicy.Follow(d.root, data)
		if err != nil {
			if i < len(chain)-1 {
				return fmt.Errorf("%s: metadata/%d.root.json: %w", d.path, i+2, err)
			}
			if err := draft(data); err != nil {
				return err
			}
			break
		}
		d.root = next
	}
	d.rootInfo, err = tufpolicy.ReadRoot(d.root)
	return err
}

// deciding is the root by which targets are signed: the draft where there is one, because it is published with them.
func (d *Dir) deciding() (tufpolicy.RootInfo, *metadata.Metadata[metadata.RootType], error) {
	if d.rootDraft != nil {
		data, err := d.rootDraft.ToBytes(true)
		if err != nil {
			return tufpolicy.RootInfo{}, nil, err
		}
		info, err := tufpolicy.ReadRoot(data)
		return info, d.rootDraft, err
	}
	r, err := metadata.Root().FromBytes(d.root)
	return d.rootInfo, r, err
}

// complete says whether targets metadata is signed to the threshold.
func (d *Dir) complete(tg *metadata.Metadata[metadata.TargetsType]) bool {
	_, root, err := d.deciding()
	return err == nil && root.VerifyDelegate(metadata.TARGETS, tg) == nil
}

// everComplete says whether targets metadata is, or was by an earlier root, signed to the threshold: then it may have been
// published, and its version says what it says.
func (d *Dir) everComplete(tg *metadata.Metadata[metadata.TargetsType]) bool {
	if d.complete(tg) {
		return true
	}
	for _, data := range d.roots {
		if r, err := metadata.Root().FromBytes(data); err == nil && r.VerifyDelegate(metadata.TARGETS, tg) == nil {
			return true
		}
	}
	return false
}

// lastSigned is the newest targets metadata that is signed to the threshold; nil: none.
func (d *Dir) lastSigned() *metadata.Metadata[metadata.TargetsType] {
	var versions []uint64
	for v := range d.targets {
		versions = append(versions, v)
	}
	sort.Slice(versions, func(i, j int) bool { return versions[i] > versions[j] })
	for _, v := range versions {
		if tg, err := metadata.Targets().FromBytes(d.targets[v]); err == nil && d.everComplete(tg) {
			return tg
		}
	}
	return nil
}

// InitConfig describes a new policy.
type InitConfig struct {
	Root, Targets []signkey.Public
	// RootThreshold and TargetsThreshold are how many of them must sign.
	RootThreshold, TargetsThreshold int
	// Snapshot and Timestamp are the controller's online keys.
	Snapshot, Timestamp   signkey.Public
	RootLife, TargetsLife time.Duration
	Now                   time.Time
}

// Init makes a policy directory with an unsigned root and empty, unsigned targets.
func Init(dir string, c InitConfig) (*Dir, error) {
	if _, err := os.Stat(filepath.Join(dir, tufpolicy.MetadataDir)); err == nil {
		return nil, fmt.Errorf("%s is a policy directory already; nothing was changed", dir)
	}
	for _, x := range []struct {
		role      string
		keys      []signkey.Public
		threshold int
	}{{"root", c.Root, c.RootThreshold}, {"targets", c.Targets, c.TargetsThreshold}} {
		if x.threshold < 1 || x.threshold > len(x.keys) {
			return nil, fmt.Errorf("a threshold of %d for %d %s keys can't be met", x.threshold, len(x.keys), x.role)
		}
	}
	r := metadata.Root(c.Now.Add(c.RootLife).UTC().Truncate(time.Second))
	for role, keys := range map[string][]signkey.Public{metadata.ROOT: c.Root, metadata.TARGETS: c.Targets,
		metadata.SNAPSHOT: {c.Snapshot}, metadata.TIMESTAMP: {c.Timestamp}} {
		for _, k := range keys {
			if err := r.Signed.AddKey(k.Key, role); err != nil {
				return nil, err
			}
		}
	}
	r.Signed.Roles[metadata.ROOT].Threshold = c.RootThreshold
	r.Signed.Roles[metadata.TARGETS].Threshold = c.TargetsThreshold
	for _, role := range r.Signed.Roles {
		sort.Strings(role.KeyIDs)
	}
	tg := metadata.Targets(c.Now.Add(c.TargetsLife).UTC().Truncate(time.Second))
	d := &Dir{path: dir, rootDraft: r, head: tg, docs: map[string][]byte{}, roots: map[uint64][]byte{}, targets: map[uint64][]byte{}}
	if err := os.MkdirAll(filepath.Join(dir, tufpolicy.MetadataDir), 0o755); err != nil {
		return nil, err
	}
	if err := d.putDocument(tufpolicy.PolicyName, (&mitigation.PolicyTable{}).YAML()); err != nil {
		return nil, err
	}
	if err := d.writeHead(); err != nil {
		return nil, err
	}
	// The root last: it is what says that the whole is there.
	return d, d.writeRoot()
}

func (d *Dir) writeRoot() error {
	data, err := d.rootDraft.ToBytes(true)
	if err != nil {
		return err
	}
	d.roots[uint64(d.rootDraft.Signed.Version)] = data
	return files.Replace(d.file(tufpolicy.File{Root: uint64(d.rootDraft.Signed.Version)}), data, files.Public)
}

// writeHead brings the head's targets up to the documents and writes it.
func (d *Dir) writeHead() error {
	d.head.Signed.Targets = map[string]*metadata.TargetFiles{}
	for p, data := range d.docs {
		t, err := metadata.TargetFile().FromBytes(p, data, "sha256")
		if err != nil {
			return err
		}
		d.head.Signed.Targets[p] = t
	}
	return d.writeTargets()
}

func (d *Dir) writeTargets() error {
	data, err := d.head.ToBytes(true)
	if err != nil {
		return err
	}
	d.targets[uint64(d.head.Signed.Version)] = data
	return files.Replace(d.file(tufpolicy.File{Targets: uint64(d.head.Signed.Version)}), data, files.Public)
}

func (d *Dir) putDocument(p string, data []byte) error {
	full := d.file(tufpolicy.File{Document: p})
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	d.docs[p] = data
	return files.Replace(full, data, files.Public)
}

// edit makes the head a draft that can be changed: the next version where the head is signed, else the head itself without
// the signatures it has, whose loss it says.
func (d *Dir) edit(now time.Time, life time.Duration) (notes []string) {
	if d.everComplete(d.head) {
		d.head = &metadata.Metadata[metadata.TargetsType]{Signed: d.head.Signed}
		d.head.Signed.Version++
		notes = append(notes, fmt.Sprintf("begins version %d", d.head.Signed.Version))
	} else if n := len(d.head.Signatures); n > 0 {
		notes = append(notes, fmt.Sprintf("version %d had %d signatures, which no longer hold and were dropped", d.head.Signed.Version, n))
	}
	d.head.Signatures = []metadata.Signature{}
	d.head.Signed.Expires = now.Add(life).UTC().Truncate(time.Second)
	return notes
}

// File is a document to add.
type File struct {
	Name    string
	Content []byte
}

// Add puts documents into the policy: mitigation documents, each allowed from then on, and the fixed-builds table. All are
// checked first; all or none. It says what changed. Errors: mitigation.Problems, ErrImmutable.
func (d *Dir) Add(files []File, now time.Time, life time.Duration) ([]string, error) {
	table, err := d.table()
	if err != nil {
		return nil, err
	}
	put := map[string][]byte{}
	var lines []string
	var problems mitigation.Problems
	for _, f := range files {
		p, line, err := d.check(f, table)
		var ps mitigation.Problems
		if errors.As(err, &ps) {
			problems = append(problems, ps...)
			continue
		}
		if err != nil {
			return nil, err
		}
		if _, twice := put[p]; twice {
			problems = append(problems, mitigation.Problem{File: f.Name, Msg: "is given twice"})
		}
		put[p], lines = f.Content, append(lines, line)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	put[tufpolicy.PolicyName] = table.YAML()
	return d.change(put, nil, lines, now, life)
}

func (d *Dir) check(f File, table *mitigation.PolicyTable) (p, line string, err error) {
	if mitigation.IsFixedBuilds(f.Content) {
		fb, err := mitigation.ParseFixedBuilds(f.Name, f.Content)
		if err != nil {
			return "", "", err
		}
		if old := d.docs[mitigation.FixedBuildsName]; old != nil && !bytes.Equal(old, f.Content) {
			if o, err := mitigation.ParseFixedBuilds(mitigation.FixedBuildsName, old); err == nil && fb.GetRevision() <= o.GetRevision() {
				return "", "", mitigation.Problems{{File: f.Name, Line: 1, Col: 1, Msg: fmt.Sprintf("fixed-builds revision %d is not above %d, which is in the policy", fb.GetRevision(), o.GetRevision())}}
			}
		}
		return mitigation.FixedBuildsName, fmt.Sprintf("fixed-builds table, revision %d", fb.GetRevision()), nil
	}
	doc, err := mitigation.Parse(f.Name, f.Content)
	if err != nil {
		return "", "", err
	}
	p = tufpolicy.DocumentPath(doc.GetId(), doc.GetRevision())
	if old := d.docs[p]; old != nil && !bytes.Equal(old, f.Content) {
		return "", "", fmt.Errorf("%s: %s is in the policy with other content; %w: make it revision %d", f.Name, doc.Ref(), ErrImmutable, doc.GetRevision()+1)
	}
	table.Allow(doc.GetId(), doc.GetRevision())
	return p, fmt.Sprintf("%s: %s", doc.Ref(), doc.GetTitle()), nil
}

// change writes documents and the head, if anything changes.
func (d *Dir) change(put map[string][]byte, gone []string, lines []string, now time.Time, life time.Duration) ([]string, error) {
	same := len(gone) == 0
	for p, data := range put {
		same = same && bytes.Equal(d.docs[p], data)
	}
	if same {
		return append(lines, "no change"), nil
	}
	notes := d.edit(now, life)
	for _, p := range sortedKeys(put) {
		if err := d.putDocument(p, put[p]); err != nil {
			return nil, err
		}
	}
	for _, p := range gone {
		delete(d.docs, p)
	}
	if err := d.writeHead(); err != nil {
		return nil, err
	}
	// The metadata no longer names them; what is left of an interrupted run is only a file too many, which Open refuses.
	for _, p := range gone {
		if err := os.Remove(d.file(tufpolicy.File{Document: p})); err != nil {
			return nil, err
		}
		_ = os.Remove(filepath.Dir(d.file(tufpolicy.File{Document: p}))) // if it is empty now
	}
	return append(lines, notes...), nil
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (d *Dir) table() (*mitigation.PolicyTable, error) {
	return mitigation.ParsePolicyTable(tufpolicy.PolicyName, d.docs[tufpolicy.PolicyName])
}

// Remove takes a revision out of the policy: servers that have it take it off once this is signed and published.
func (d *Dir) Remove(id string, revision uint32, now time.Time, life time.Duration) ([]string, error) {
	table, err := d.table()
	if err != nil {
		return nil, err
	}
	if !table.Disallow(id, revision) {
		return nil, fmt.Errorf("%s is not in the policy", mitigation.Ref(id, revision))
	}
	p := tufpolicy.DocumentPath(id, revision)
	return d.change(map[string][]byte{tufpolicy.PolicyName: table.YAML()}, []string{p},
		[]string{fmt.Sprintf("%s: servers that have it will take it off", mitigation.Ref(id, revision))}, now, life)
}

// Permit sets how far a controller may take a mitigation off; an empty id means every one that says nothing of its own.
func (d *Dir) Permit(id, revert string, now time.Time, life time.Duration) ([]string, error) {
	table, err := d.table()
	if err != nil {
		return nil, err
	}
	if err := setPermit(table, id, revert); err != nil {
		return nil, err
	}
	return d.change(map[string][]byte{tufpolicy.PolicyName: table.YAML()}, nil, []string{"what the controller may take off: " + strings.ToUpper(revert)}, now, life)
}

// Refresh makes a new version with the same content and a new end.
func (d *Dir) Refresh(now time.Time, life time.Duration) ([]string, error) {
	notes := d.edit(now, life)
	if err := d.writeHead(); err != nil {
		return nil, err
	}
	return append(notes, fmt.Sprintf("version %d, valid until %s", d.head.Signed.Version, d.head.Signed.Expires.Format(time.DateOnly))), nil
}
