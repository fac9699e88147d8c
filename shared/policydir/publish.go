package policydir

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

func setPermit(table *mitigation.PolicyTable, id, revert string) error {
	v, ok := stopgapv1.ControllerRevert_value["CONTROLLER_REVERT_"+strings.ToUpper(strings.ReplaceAll(revert, "-", "_"))]
	if !ok || v == 0 {
		return fmt.Errorf("%q is none of never, during-rollout, always", revert)
	}
	p := &stopgapv1.Permits{ControllerRevert: stopgapv1.ControllerRevert(v)}
	if id == "" {
		table.Permits = p
		return nil
	}
	for _, m := range table.GetMitigations() {
		if m.GetId() == id {
			m.Permits = p
			return nil
		}
	}
	return fmt.Errorf("%s is not in the policy", id)
}

// Files gives what is published: every root, the newest targets metadata and its documents, by path in the directory.
// Errors: something still lacks signatures, or was changed by hand.
func (d *Dir) Files() (map[string][]byte, error) {
	if m := d.Missing(); len(m) > 0 {
		return nil, fmt.Errorf("%s can't be published: %s", d.path, strings.Join(m, "; "))
	}
	if err := d.current(); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for v, data := range d.roots {
		out[tufpolicy.File{Root: v}.Path()] = data
	}
	v := uint64(d.head.Signed.Version)
	out[tufpolicy.File{Targets: v}.Path()] = d.targets[v]
	for p, data := range d.docs {
		out[tufpolicy.File{Document: p}.Path()] = data
	}
	return out, nil
}

// Signed gives the same for verification.
func (d *Dir) Signed() tufpolicy.Signed {
	s := tufpolicy.Signed{Targets: d.targets[uint64(d.head.Signed.Version)], Documents: d.docs}
	for v := uint64(1); d.roots[v] != nil; v++ {
		s.Roots = append(s.Roots, d.roots[v])
	}
	return s
}

// FirstRoot is the first root's bytes.
func (d *Dir) FirstRoot() []byte { return d.roots[1] }

// Verify checks the whole directory as a publishing controller does, from its own first root on. It gives what it found to be
// signed. Errors: *tufpolicy.Refusal; mitigation.Problems.
func (d *Dir) Verify(now time.Time) (tufpolicy.State, error) {
	if m := d.Missing(); len(m) > 0 {
		return tufpolicy.State{}, errors.New(strings.Join(m, "; "))
	}
	if err := d.current(); err != nil {
		return tufpolicy.State{}, err
	}
	st, err := tufpolicy.Begin(d.FirstRoot(), 0)
	if err != nil {
		return st, err
	}
	if st, err = tufpolicy.VerifySigned(st, d.Signed(), now); err != nil {
		return st, err
	}
	_, err = Read(st.Documents)
	return st, err
}

// Contents is a policy's documents, parsed.
type Contents struct {
	Table *mitigation.PolicyTable
	// Documents by path; all of them, allowed or not.
	Documents map[string]*mitigation.Document
	// Fixed is nil when there is no table.
	Fixed *mitigation.FixedBuilds
}

// Read parses a policy's documents and checks that they fit together: each is what its path says, and what is allowed is
// there. Errors: mitigation.Problems, every one of them.
func Read(docs map[string][]byte) (*Contents, error) {
	c := &Contents{Documents: map[string]*mitigation.Document{}}
	var problems mitigation.Problems
	note := func(name string, err error) {
		var ps mitigation.Problems
		if errors.As(err, &ps) {
			problems = append(problems, ps...)
		} else if err != nil {
			problems = append(problems, mitigation.Problem{File: name, Msg: err.Error()})
		}
	}
	var err error
	c.Table, err = mitigation.ParsePolicyTable(tufpolicy.PolicyName, docs[tufpolicy.PolicyName])
	note(tufpolicy.PolicyName, err)
	for _, p := range sortedKeys(docs) {
		if p == tufpolicy.PolicyName {
			continue
		}
		if p == mitigation.FixedBuildsName {
			c.Fixed, err = mitigation.ParseFixedBuilds(p, docs[p])
			note(p, err)
			continue
		}
		doc, err := mitigation.Parse(p, docs[p])
		note(p, err)
		if err != nil {
			continue
		}
		if want := tufpolicy.DocumentPath(doc.GetId(), doc.GetRevision()); want != p {
			problems = append(problems, mitigation.Problem{File: p, Msg: "says it is " + doc.Ref()})
		}
		c.Documents[p] = doc
	}
	for _, m := range c.Table.GetMitigations() {
		for _, r := range m.GetRevisions() {
			if docs[tufpolicy.DocumentPath(m.GetId(), r)] == nil {
				problems = append(problems, mitigation.Problem{File: tufpolicy.PolicyName, Msg: mitigation.Ref(m.GetId(), r) + " is allowed and its document is missing"})
			}
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return c, nil
}

// Diff says in words what the newest version changes against the last one that is signed; against nothing, when none is.
func (d *Dir) Diff() ([]string, error) {
	var out []string
	if d.rootDraft != nil {
		lines, err := d.diffRoot()
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	last := d.lastSigned()
	if last != nil && last.Signed.Version == d.head.Signed.Version {
		return append(append(out, fmt.Sprintf("targets %d is signed; nothing is changed since", last.Signed.Version)), d.inventory()...), nil
	}
	old := map[string]string{}
	from := "nothing (no version was signed yet)"
	if last != nil {
		from = fmt.Sprintf("version %d", last.Signed.Version)
		for p, t := range last.Signed.Targets {
			old[p] = fmt.Sprintf("%x", []byte(t.Hashes["sha256"]))
		}
	}
	out = append(out, fmt.Sprintf("targets %d against %s, valid until %s:", d.head.Signed.Version, from, d.head.Signed.Expires.Format(time.DateOnly)))
	n := len(out)
	for _, p := range sortedKeys(d.head.Signed.Targets) {
		sum := fmt.Sprintf("%x", []byte(d.head.Signed.Targets[p].Hashes["sha256"]))
		if p == tufpolicy.PolicyName || old[p] == sum {
			continue
		}
		what, err := d.describe(p)
		if err != nil {
			return nil, err
		}
		if old[p] == "" {
			out = append(out, "  adds "+what)
		} else {
			out = append(out, "  changes "+what)
		}
	}
	for _, p := range sortedKeys(old) {
		if d.head.Signed.Targets[p] == nil {
			id, rev, _ := tufpolicy.ParsePath(p)
			out = append(out, fmt.Sprintf("  REMOVES %s@%s: every server that has it takes it off", id, rev))
		}
	}
	table, err := d.table()
	if err != nil {
		return nil, err
	}
	if old[tufpolicy.PolicyName] != fmt.Sprintf("%x", []byte(d.head.Signed.Targets[tufpolicy.PolicyName].Hashes["sha256"])) {
		out = append(out, "  allows: "+allowed(table))
	}
	if len(out) == n {
		out = append(out, "  nothing but its end")
	}
	// What is compared with came in the same directory; what is signed is everything, so everything is said.
	return append(out, d.inventory()...), nil
}

// Identity names this policy for ever; see tufpolicy.Identity.
func (d *Dir) Identity() string { return tufpolicy.Identity(d.FirstRoot()) }

// inventory lists all that the newest version says, with what a signer can compare with a copy of their own.
func (d *Dir) inventory() []string {
	out := []string{fmt.Sprintf("policy %s; targets %d lists, with SHA-256:", d.Identity(), d.head.Signed.Version)}
	for _, p := range sortedKeys(d.head.Signed.Targets) {
		out = append(out, fmt.Sprintf("  %-40s %x", p, []byte(d.head.Signed.Targets[p].Hashes["sha256"])))
	}
	if fb, err := mitigation.ParseFixedBuilds(mitigation.FixedBuildsName, d.docs[mitigation.FixedBuildsName]); err == nil {
		for _, f := range fb.GetFixes() {
			out = append(out, fmt.Sprintf("  fixed for %s: %s", f.GetCve(), strings.Join(append(append([]string(nil), f.GetBuilds()...), f.GetAllFixedFrom()...), ", ")))
		}
	}
	if table, err := d.table(); err == nil {
		out = append(out, "  allows: "+allowed(table))
	}
	return out
}

// ErrNotUnderstood is returned for a document that this version can't describe in full to somebody who is to sign it.
var ErrNotUnderstood = errors.New("this version of stopgap does not understand all of it; sign it with a newer one, or not at all")

// describe says in words what a document does. Errors: ErrNotUnderstood.
func (d *Dir) describe(p string) (string, error) {
	if p == mitigation.FixedBuildsName {
		fb, err := mitigation.ParseFixedBuilds(p, d.docs[p])
		if err != nil {
			return "", fmt.Errorf("%s: %w (%w)", p, ErrNotUnderstood, err)
		}
		return fmt.Sprintf("the fixed-builds table, revision %d", fb.GetRevision()), nil
	}
	doc, err := mitigation.Parse(p, d.docs[p])
	if err != nil {
		return "", fmt.Errorf("%s: %w (%w)", p, ErrNotUnderstood, err)
	}
	var acts []string
	for _, a := range doc.GetActions() {
		what, err := describeAction(a)
		if err != nil {
			return "", fmt.Errorf("%s: action %s: %w", p, a.GetId(), err)
		}
		acts = append(acts, what)
	}
	if len(acts) == 0 {
		acts = []string{"changes nothing on a server"}
	}
	return fmt.Sprintf("%s (%s): %s", doc.Ref(), strings.TrimPrefix(doc.GetSeverity().String(), "SEVERITY_"), strings.Join(acts, ", ")), nil
}

// describeAction says in words what one action does. Errors: ErrNotUnderstood, for a kind that it does not know.
func describeAction(a *stopgapv1.Action) (string, error) {
	switch a.GetKind().(type) {
	case *stopgapv1.Action_UrlRewrite:
		return "rewrite rule at " + a.GetUrlRewrite().GetLocation().GetPath(), nil
	case *stopgapv1.Action_Service:
		return "stops service " + a.GetService().GetName(), nil
	case *stopgapv1.Action_AppPool:
		return "stops app pool " + a.GetAppPool().GetName(), nil
	default:
		return "", ErrNotUnderstood
	}
}

func allowed(t *mitigation.PolicyTable) string {
	var parts []string
	for _, m := range t.GetMitigations() {
		part := fmt.Sprintf("%s@%v", m.GetId(), m.GetRevisions())
		if r := m.GetPermits().GetControllerRevert(); r != 0 {
			part += " (controller may take it off: " + strings.TrimPrefix(r.String(), "CONTROLLER_REVERT_") + ")"
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		parts = []string{"nothing"}
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ") + "; the controller may take off by itself: " +
		strings.TrimPrefix(t.ControllerRevert("").String(), "CONTROLLER_REVERT_")
}

func (d *Dir) diffRoot() ([]string, error) {
	next, _, err := d.deciding()
	if err != nil {
		return nil, err
	}
	out := []string{fmt.Sprintf("root %d, valid until %s:", next.Version, next.Expires.Format(time.DateOnly))}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		var old []string
		threshold := 0
		if d.root != nil {
			old, threshold = d.rootInfo.Keys[role], d.rootInfo.Thresholds[role]
		}
		for _, id := range next.Keys[role] {
			if !slices.Contains(old, id) {
				out = append(out, fmt.Sprintf("  adds %s key %s", role, short(id)))
			}
		}
		for _, id := range old {
			if !next.Allows(role, id) {
				out = append(out, fmt.Sprintf("  REMOVES %s key %s", role, short(id)))
			}
		}
		if t := next.Thresholds[role]; t != threshold {
			out = append(out, fmt.Sprintf("  %s needs %d of %d signatures", role, t, len(next.Keys[role])))
		}
	}
	return out, nil
}

func short(id string) string { return id[:min(len(id), 8)] }

// RotateConfig says what a new root changes.
type RotateConfig struct {
	// Add and Remove are keys by role (root, targets); Remove names ids or unique prefixes of them.
	Add    map[string][]signkey.Public
	Remove map[string][]string
	// RootThreshold and TargetsThreshold; 0: as before.
	RootThreshold, TargetsThreshold int
	// Snapshot and Timestamp replace the controller's online keys; both or none.
	Snapshot, Timestamp *signkey.Public
	Life                time.Duration
	Now                 time.Time
}

// RotateRoot makes the next root as a draft; it must be signed by the threshold of the root before and by its own.
func (d *Dir) RotateRoot(c RotateConfig) ([]string, error) {
	if d.rootDraft != nil {
		return nil, fmt.Errorf("%s: root %d still lacks signatures; sign it first, or delete its file", d.path, d.rootDraft.Signed.Version)
	}
	r, err := metadata.Root().FromBytes(bytes.Clone(d.root))
	if err != nil {
		return nil, err
	}
	r.Signatures = []metadata.Signature{}
	r.Signed.Version++
	r.Signed.Expires = c.Now.Add(c.Life).UTC().Truncate(time.Second)
	for role, ids := range c.Remove {
		for _, prefix := range ids {
			id, err := unique(d.rootInfo.Keys[role], prefix)
			if err != nil {
				return nil, fmt.Errorf("%s key %q: %w", role, prefix, err)
			}
			if err := r.Signed.RevokeKey(id, role); err != nil {
				return nil, err
			}
		}
	}
	for role, keys := range c.Add {
		for _, k := range keys {
			if err := r.Signed.AddKey(k.Key, role); err != nil {
				return nil, err
			}
		}
	}
	if c.Snapshot != nil && c.Timestamp != nil {
		for role, k := range map[string]*signkey.Public{metadata.SNAPSHOT: c.Snapshot, metadata.TIMESTAMP: c.Timestamp} {
			for _, id := range d.rootInfo.Keys[role] {
				if err := r.Signed.RevokeKey(id, role); err != nil {
					return nil, err
				}
			}
			if err := r.Signed.AddKey(k.Key, role); err != nil {
				return nil, err
			}
		}
	}
	for role, n := range map[string]int{metadata.ROOT: c.RootThreshold, metadata.TARGETS: c.TargetsThreshold} {
		if n > 0 {
			r.Signed.Roles[role].Threshold = n
		}
		if have := len(r.Signed.Roles[role].KeyIDs); r.Signed.Roles[role].Threshold > have {
			return nil, fmt.Errorf("a threshold of %d for %d %s keys can't be met", r.Signed.Roles[role].Threshold, have, role)
		}
		sort.Strings(r.Signed.Roles[role].KeyIDs)
	}
	d.rootDraft = r
	if err := d.writeRoot(); err != nil {
		return nil, err
	}
	lines, err := d.diffRoot()
	if err == nil && !d.complete(d.head) {
		lines = append(lines, fmt.Sprintf("targets %d must be signed again by the new targets keys", d.head.Signed.Version))
	}
	return lines, err
}

func unique(ids []string, prefix string) (string, error) {
	var found []string
	for _, id := range ids {
		if len(prefix) >= 4 && strings.HasPrefix(id, prefix) {
			found = append(found, id)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("names %d keys of the role (at least 4 characters are needed)", len(found))
	}
	return found[0], nil
}
