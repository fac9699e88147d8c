// Package policy is what the controller publishes: documents, their hashes, and the versions of the whole. Signatures come
// in with the TUF repository, which takes the place of the manifests here; what agents are sent is already opaque bytes.
package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/transport"
)

// Keys in the store.
const (
	kHead  = "policy/head"
	kVer   = "policy/version/"
	kDoc   = "policy/document/"
	kPub   = "policy/published/" // id@revision -> hex SHA-256, for ever
	verFmt = "%020d"
)

// keptVersions bounds how many versions are remembered, so that an agent that holds one of them is sent only what it
// lacks; one that holds an older one is sent everything.
const keptVersions = 32

// maxJump bounds how far a publish can move the version ahead.
const maxJump = 1_000_000

// manifest is a version: path -> hex SHA-256.
type manifest struct {
	Version uint64            `json:"version"`
	Targets map[string]string `json:"targets"`
}

// Current is the policy in force. It is never changed after it was made.
type Current struct {
	Version uint64
	// Documents by path, parsed.
	Documents map[string]*mitigation.Document
	// Fixed is the fixed-builds table; nil when none was published.
	Fixed *mitigation.FixedBuilds

	manifest manifest
	content  map[string][]byte // by hex SHA-256
}

// Errors that callers branch on.
var (
	// ErrImmutable: a revision was published before with other bytes.
	ErrImmutable = errors.New("a published revision never changes")
	// ErrNotFound: no such revision in the policy.
	ErrNotFound = errors.New("not in policy")
	// ErrLimit: the policy would be too large.
	ErrLimit = errors.New("too large")
)

// Policy publishes. It is safe for concurrent use.
type Policy struct {
	st      store.Store
	changed func()

	publish sync.Mutex // one change at a time

	mu  sync.RWMutex
	cur *Current
	// published is every revision that ever was, with its hash: one that was withdrawn can't come back with other bytes.
	published map[string]string
	old       map[uint64]manifest
	encoded   map[uint64][]byte // by base version, of the current version
}

// Load reads the policy from the store. changed is called after each new version.
func Load(ctx context.Context, st store.Store, changed func()) (*Policy, error) {
	p := &Policy{st: st, changed: changed, old: map[uint64]manifest{}, encoded: map[uint64][]byte{}}
	vers, _, err := st.List(ctx, kVer)
	if err != nil {
		return nil, err
	}
	var head manifest
	for _, kv := range vers {
		var m manifest
		if err := json.Unmarshal(kv.Value, &m); err != nil {
			return nil, fmt.Errorf("policy: %s: %w", kv.Key, err)
		}
		p.old[m.Version] = m
		if m.Version > head.Version {
			head = m
		}
	}
	content := map[string][]byte{}
	for path, sum := range head.Targets {
		kv, err := st.Get(ctx, kDoc+sum)
		if err != nil {
			return nil, fmt.Errorf("policy: %s: %w", path, err)
		}
		content[sum] = kv.Value
	}
	pubs, _, err := st.List(ctx, kPub)
	if err != nil {
		return nil, err
	}
	p.published = map[string]string{}
	for _, kv := range pubs {
		p.published[strings.TrimPrefix(kv.Key, kPub)] = string(kv.Value)
	}
	p.cur, err = parse(head, content)
	return p, err
}

func parse(m manifest, content map[string][]byte) (*Current, error) {
	c := &Current{Version: m.Version, Documents: map[string]*mitigation.Document{}, manifest: m, content: content}
	for path, sum := range m.Targets {
		data := content[sum]
		if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
			return nil, fmt.Errorf("policy: %s in the store does not have its hash: the data directory was altered or is damaged", path)
		}
		if path == mitigation.FixedBuildsName {
			fb, err := mitigation.ParseFixedBuilds(path, data)
			if err != nil {
				return nil, err
			}
			c.Fixed = fb
			continue
		}
		d, err := mitigation.Parse(path, data)
		if err != nil {
			return nil, err
		}
		c.Documents[path] = d
	}
	return c, nil
}

// Path is where a revision stands in the policy.
func Path(id string, revision uint32) string {
	return fmt.Sprintf("mitigations/%s/%d.yaml", id, revision)
}

// Current gives the policy in force.
func (p *Policy) Current() *Current {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cur
}

// Sorted gives the documents by id and revision.
func (c *Current) Sorted() []*mitigation.Document {
	out := make([]*mitigation.Document, 0, len(c.Documents))
	for _, d := range c.Documents {
		out = append(out, d)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].GetId() != out[j].GetId() {
			return out[i].GetId() < out[j].GetId()
		}
		return out[i].GetRevision() < out[j].GetRevision()
	})
	return out
}

// Newest gives the newest revision of each mitigation, by id.
func (c *Current) Newest() []*mitigation.Document {
	var out []*mitigation.Document
	for _, d := range c.Sorted() {
		if n := len(out); n > 0 && out[n-1].GetId() == d.GetId() {
			out[n-1] = d
			continue
		}
		out = append(out, d)
	}
	return out
}

// File is one file of a publish.
type File struct {
	Name    string
	Content []byte
}

// Publish puts files into the policy, all or none, and says what each changed. Errors: mitigation.Problems (every problem of
// every file), ErrImmutable, ErrLimit.
func (p *Policy) Publish(ctx context.Context, files []File, minimum uint64) (version uint64, changes []string, err error) {
	p.publish.Lock()
	defer p.publish.Unlock()
	cur := p.Current()
	targets, content := clone(cur)
	var problems mitigation.Problems
	seen := map[string]string{}
	for _, f := range files {
		path, line, perr := p.add(cur, targets, content, f)
		var ps mitigation.Problems
		switch {
		case errors.As(perr, &ps):
			problems = append(problems, ps...)
			continue
		case perr != nil:
			return 0, nil, perr
		}
		if other, dup := seen[path]; dup {
			problems = append(problems, mitigation.Problem{File: f.Name, Msg: fmt.Sprintf("is the same document as %s", other)})
		}
		seen[path] = f.Name
		changes = append(changes, line)
	}
	if len(problems) > 0 {
		return 0, nil, problems
	}
	if minimum > cur.Version+maxJump {
		return 0, nil, fmt.Errorf("%w: version %d is more than %d above the current one (%d)", ErrLimit, minimum, maxJump, cur.Version)
	}
	if same(targets, cur.manifest.Targets) && minimum <= cur.Version {
		return cur.Version, changes, nil
	}
	version, err = p.commit(ctx, cur, targets, content, max(minimum, cur.Version+1))
	return version, changes, err
}

func clone(c *Current) (targets map[string]string, content map[string][]byte) {
	targets, content = map[string]string{}, map[string][]byte{}
	for path, sum := range c.manifest.Targets {
		targets[path] = sum
	}
	for sum, data := range c.content {
		content[sum] = data
	}
	return targets, content
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func (p *Policy) add(cur *Current, targets map[string]string, content map[string][]byte, f File) (path, change string, err error) {
	sum := sha256.Sum256(f.Content)
	hash := hex.EncodeToString(sum[:])
	if mitigation.IsFixedBuilds(f.Content) {
		fb, err := mitigation.ParseFixedBuilds(f.Name, f.Content)
		if err != nil {
			return "", "", err
		}
		path = mitigation.FixedBuildsName
		old := cur.Fixed
		switch {
		case old == nil:
			change = fmt.Sprintf("adds the fixed-builds table, revision %d", fb.GetRevision())
		case targets[path] == hash:
			change = fmt.Sprintf("fixed-builds table revision %d: no change", fb.GetRevision())
		case fb.GetRevision() <= old.GetRevision():
			return "", "", mitigation.Problems{{File: f.Name, Line: 1, Col: 1, Msg: fmt.Sprintf("fixed-builds revision %d is not above %d, which is published", fb.GetRevision(), old.GetRevision())}}
		default:
			change = fmt.Sprintf("replaces the fixed-builds table, revision %d by %d", old.GetRevision(), fb.GetRevision())
		}
	} else {
		d, err := mitigation.Parse(f.Name, f.Content)
		if err != nil {
			return "", "", err
		}
		path = Path(d.GetId(), d.GetRevision())
		p.mu.RLock()
		ever := p.published[d.Ref()]
		p.mu.RUnlock()
		if ever == "" {
			ever = targets[path]
		}
		switch {
		case ever != "" && ever != hash:
			return "", "", fmt.Errorf("%s: %s is published with other content; %w: make it revision %d", f.Name, d.Ref(), ErrImmutable, d.GetRevision()+1)
		case targets[path] == "":
			change = fmt.Sprintf("adds %s: %s", d.Ref(), d.GetTitle())
		default:
			change = d.Ref() + ": no change"
		}
	}
	targets[path], content[hash] = hash, f.Content
	return path, change, nil
}

// Withdraw takes one revision out of the policy.
func (p *Policy) Withdraw(ctx context.Context, id string, revision uint32) (uint64, error) {
	p.publish.Lock()
	defer p.publish.Unlock()
	cur := p.Current()
	targets, content := clone(cur)
	path := Path(id, revision)
	if _, ok := targets[path]; !ok {
		return 0, fmt.Errorf("%s is %w", mitigation.Ref(id, revision), ErrNotFound)
	}
	delete(targets, path)
	return p.commit(ctx, cur, targets, content, cur.Version+1)
}

// commit writes a version: documents, manifest and head in one transaction, fenced by the head it was made from.
func (p *Policy) commit(ctx context.Context, cur *Current, targets map[string]string, content map[string][]byte, version uint64) (uint64, error) {
	if len(targets) > transport.MaxTargets {
		return 0, fmt.Errorf("%w: %d documents, the limit is %d", ErrLimit, len(targets), transport.MaxTargets)
	}
	total, used := 0, map[string][]byte{}
	for _, sum := range targets {
		used[sum] = content[sum]
		total += len(content[sum])
	}
	if total > transport.MaxPolicyBytes {
		return 0, fmt.Errorf("%w: %d bytes in all documents, the limit is %d", ErrLimit, total, transport.MaxPolicyBytes)
	}
	m := manifest{Version: version, Targets: targets}
	next, err := parse(m, used)
	if err != nil {
		return 0, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	head := int64(0)
	switch kv, err := p.st.Get(ctx, kHead); {
	case err == nil:
		head = kv.Revision
	case !errors.Is(err, store.ErrNotFound):
		return 0, err
	}
	verKey := kVer + fmt.Sprintf(verFmt, version)
	ops := []store.Op{{Key: kHead, Value: fmt.Append(nil, version)}, {Key: verKey, Value: raw}}
	for sum, data := range used {
		if _, had := cur.content[sum]; !had {
			ops = append(ops, store.Op{Key: kDoc + sum, Value: data})
		}
	}
	p.mu.RLock()
	old := map[uint64]manifest{version: m}
	for v, o := range p.old {
		old[v] = o
	}
	published := map[string]string{}
	for ref, sum := range p.published {
		published[ref] = sum
	}
	p.mu.RUnlock()
	for path, d := range next.Documents {
		if published[d.Ref()] == "" {
			published[d.Ref()] = targets[path]
			ops = append(ops, store.Op{Key: kPub + d.Ref(), Value: []byte(targets[path])})
		}
	}
	ops = append(ops, forget(old, used)...)
	if _, err := p.st.Txn(ctx, []store.Compare{{Key: kHead, Revision: head}}, ops); err != nil {
		return 0, err
	}
	p.mu.Lock()
	p.cur, p.old, p.published, p.encoded = next, old, published, map[uint64][]byte{}
	p.mu.Unlock()
	p.changed()
	return version, nil
}

// forget drops the oldest versions over the bound, and documents that no kept version names.
func forget(old map[uint64]manifest, used map[string][]byte) []store.Op {
	var vers []uint64
	for v := range old {
		vers = append(vers, v)
	}
	sort.Slice(vers, func(i, j int) bool { return vers[i] > vers[j] })
	var ops []store.Op
	if len(vers) <= keptVersions {
		return nil
	}
	named := map[string]bool{}
	for _, v := range vers[:keptVersions] {
		for _, sum := range old[v].Targets {
			named[sum] = true
		}
	}
	for _, v := range vers[keptVersions:] {
		ops = append(ops, store.Op{Key: kVer + fmt.Sprintf(verFmt, v), Delete: true})
		for _, sum := range old[v].Targets {
			if _, inUse := used[sum]; !inUse && !named[sum] {
				named[sum] = true
				ops = append(ops, store.Op{Key: kDoc + sum, Delete: true})
			}
		}
		delete(old, v)
	}
	return ops
}

// Update gives the encoded PolicyUpdate for an agent that holds a version (0: none), encoded once for all of those. nil
// when the agent needs none.
func (p *Policy) Update(held uint64) (data []byte, version uint64) {
	p.mu.RLock()
	cur := p.cur
	base := held
	if _, known := p.old[held]; !known {
		base = 0
	}
	data, ok := p.encoded[base]
	p.mu.RUnlock()
	if cur.Version == 0 || held >= cur.Version {
		return nil, cur.Version
	}
	if ok {
		return data, cur.Version
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur != cur { // a newer one came meanwhile; its own encoding is asked for next
		cur = p.cur
	}
	if data, ok := p.encoded[base]; ok {
		return data, cur.Version
	}
	u := &stopgapv1.PolicyUpdate{Version: cur.Version, BaseVersion: base}
	paths := make([]string, 0, len(cur.manifest.Targets))
	for path := range cur.manifest.Targets {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	for _, path := range paths {
		sum := cur.manifest.Targets[path]
		raw, _ := hex.DecodeString(sum)
		t := &stopgapv1.PolicyTarget{Path: path, Sha256: raw, Length: uint32(len(cur.content[sum]))}
		if base == 0 || p.old[base].Targets[path] != sum {
			t.Content = cur.content[sum]
		}
		u.Targets = append(u.Targets, t)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(u)
	if err != nil {
		return nil, cur.Version // can't happen: the message is made here from valid strings
	}
	p.encoded[base] = data
	return data, cur.Version
}
