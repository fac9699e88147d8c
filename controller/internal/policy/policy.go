// Package policy is the signed policy a controller serves: a TUF repository whose root and targets are signed offline, and
// whose snapshot and timestamp it signs itself. It believes nothing it is handed: what is published, and what is read back
// from the store at a start, is verified as an agent verifies it.
package policy

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Keys in the store.
const (
	kHead = "policy/head"      // head
	kRoot = "policy/root/"     // version, zero-padded -> bytes
	kVer  = "policy/version/"  // version, zero-padded -> manifest
	kDoc  = "policy/document/" // hex SHA-256 -> bytes
	// kPub remembers every revision that ever was in policy: id@revision -> hex SHA-256, for ever.
	kPub   = "policy/published/"
	verFmt = "%020d"
)

// keptVersions bounds how many versions are remembered, so that an agent that holds one of them is sent only what it
// lacks; one that holds an older one is sent everything.
const keptVersions = 32

// manifest is a version: path -> hex SHA-256.
type manifest struct {
	Version uint64            `json:"version"`
	Targets map[string]string `json:"targets"`
}

// head is what is served now.
type head struct {
	Timestamp []byte    `json:"timestamp"`
	Snapshot  []byte    `json:"snapshot"`
	Targets   []byte    `json:"targets"`
	SignedAt  time.Time `json:"signedAt"` // of the snapshot
}

// Current is the policy in force. It is never changed after it was made.
type Current struct {
	// Version of the targets metadata; 0: nothing was published yet.
	Version uint64
	// State is what an agent that has everything trusts.
	State tufpolicy.State
	// TargetsExpire and RootExpire are when what is signed offline ends.
	TargetsExpire, RootExpire time.Time
	// Documents by path, parsed; only what the table allows.
	Documents map[string]*mitigation.Document
	// Fixed is the fixed-builds table; nil when there is none.
	Fixed *mitigation.FixedBuilds

	roots    [][]byte // all of them, oldest first
	manifest manifest
	head     head
	sorted   []*mitigation.Document // Documents, once all of them are there
	groups   [][]*mitigation.Document
}

// Errors that callers branch on.
var (
	// ErrImmutable: a version or revision was published before with other bytes.
	ErrImmutable = errors.New("what was published never changes")
	// ErrNotFound: no such revision in policy.
	ErrNotFound = errors.New("not in policy")
	// ErrMalformed: the files are no policy directory.
	ErrMalformed = errors.New("malformed")
	// ErrUntrusted: signatures are missing or wrong.
	ErrUntrusted = errors.New("not signed as it has to be")
	// ErrOld: what is published is newer.
	ErrOld = errors.New("older than what is published")
	// ErrOnlineKeys: the root names other snapshot and timestamp keys than this controller has.
	ErrOnlineKeys = errors.New("the root names other online keys than this controller has")
	// ErrFirstRoot: the first root needs an admin's word.
	ErrFirstRoot = errors.New("the first root a controller is given must come from an admin")
)

// Config of a Policy.
type Config struct {
	Store store.Store
	// Snapshot and Timestamp are the online keys.
	Snapshot, Timestamp *signkey.Key
	// Changed is called after each new version or renewal.
	Changed func()
	// RenewEvery is how often the timestamp is renewed; default 20 minutes.
	RenewEvery time.Duration
	Logger     hclog.Logger
}

// Policy publishes. It is safe for concurrent use.
type Policy struct {
	cfg    Config
	change sync.Mutex // one change at a time

	mu  sync.RWMutex
	cur *Current
	// published is every revision that ever was, with its hash: one that was removed can't come back with other bytes.
	published map[string]string
	old       map[uint64]manifest
	encoded   map[held][]byte // by what the receiver holds, of the current timestamp
}

type held struct{ root, targets uint64 }

// Load reads the policy from the store and verifies it.
func Load(ctx context.Context, cfg Config) (*Policy, error) {
	if cfg.RenewEvery == 0 {
		cfg.RenewEvery = renewEvery
	}
	p := &Policy{cfg: cfg, cur: &Current{}, published: map[string]string{}, old: map[uint64]manifest{}, encoded: map[held][]byte{}}
	vers, _, err := cfg.Store.List(ctx, kVer)
	if err != nil {
		return nil, err
	}
	for _, kv := range vers {
		var m manifest
		if err := json.Unmarshal(kv.Value, &m); err != nil {
			return nil, fmt.Errorf("policy: %s: %w", kv.Key, err)
		}
		p.old[m.Version] = m
	}
	pubs, _, err := cfg.Store.List(ctx, kPub)
	if err != nil {
		return nil, err
	}
	for _, kv := range pubs {
		p.published[strings.TrimPrefix(kv.Key, kPub)] = string(kv.Value)
	}
	kv, err := cfg.Store.Get(ctx, kHead)
	if errors.Is(err, store.ErrNotFound) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p.cur, err = p.read(ctx, kv.Value)
	if err != nil {
		return nil, fmt.Errorf("policy in the store: %w: the data directory was altered or is damaged; restore it, or publish into a new one", err)
	}
	return p, nil
}

func (p *Policy) read(ctx context.Context, raw []byte) (*Current, error) {
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, err
	}
	roots, _, err := p.cfg.Store.List(ctx, kRoot)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	for _, kv := range roots {
		chain = append(chain, kv.Value)
	}
	named, err := tufpolicy.Targets(h.Targets)
	if err != nil {
		return nil, err
	}
	docs := map[string][]byte{}
	for path, sum := range named {
		kv, err := p.cfg.Store.Get(ctx, kDoc+sum)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		docs[path] = kv.Value
	}
	if len(chain) == 0 {
		return nil, errors.New("no root")
	}
	// All of it has to verify; that it may have expired since is for the agents to judge.
	c, err := assemble(chain, h, docs, time.Time{})
	if err != nil {
		return nil, err
	}
	st, err := tufpolicy.Begin(chain[len(chain)-1], 0)
	if err == nil {
		_, err = tufpolicy.Verify(st, tufpolicy.Update{Timestamp: h.Timestamp, Snapshot: h.Snapshot, Targets: h.Targets, Documents: docs}, time.Time{})
	}
	if err != nil {
		return nil, err
	}
	if limit := uint64(time.Now().AddDate(maxAheadYears, 0, 0).Unix()); max(c.State.Versions.Timestamp, c.State.Versions.Snapshot) > limit {
		return nil, fmt.Errorf("timestamp or snapshot version is above %d: somebody counted ahead with the online keys; replace them", limit)
	}
	return c, nil
}

// maxAheadYears is how far versions, which count by the clock, may be ahead of it.
const maxAheadYears = 10

// assemble verifies and parses a whole policy. A zero now leaves expiry out.
func assemble(roots [][]byte, h head, docs map[string][]byte, now time.Time) (*Current, error) {
	st, err := tufpolicy.Begin(roots[0], 0)
	if err != nil {
		return nil, err
	}
	// A fleet of many years may have more roots than one agent may be sent.
	rest := roots[1:]
	for len(rest) > tufpolicy.MaxRoots {
		for _, r := range rest[:tufpolicy.MaxRoots] {
			if st.Root, err = tufpolicy.Follow(st.Root, r); err != nil {
				return nil, err
			}
		}
		rest = rest[tufpolicy.MaxRoots:]
	}
	if st, err = tufpolicy.VerifySigned(st, tufpolicy.Signed{Roots: rest, Targets: h.Targets, Documents: docs}, now); err != nil {
		return nil, err
	}
	contents, err := policydir.Read(docs)
	if err != nil {
		return nil, err
	}
	named, err := tufpolicy.Targets(h.Targets)
	if err != nil {
		return nil, err
	}
	root, err := tufpolicy.ReadRoot(st.Root)
	if err != nil {
		return nil, err
	}
	c := &Current{Version: st.Versions.Targets, State: st, RootExpire: root.Expires, Documents: map[string]*mitigation.Document{}, Fixed: contents.Fixed,
		roots: roots, manifest: manifest{st.Versions.Targets, named}}
	if c.TargetsExpire, err = tufpolicy.TargetsExpire(h.Targets); err != nil {
		return nil, err
	}
	for path, d := range contents.Documents {
		if contents.Table.Allows(d.GetId(), d.GetRevision()) {
			c.Documents[path] = d
		}
	}
	c.sorted = c.sort()
	c.groups = c.group()
	return c, c.serve(h)
}

// serve sets what is signed online.
func (c *Current) serve(h head) error {
	c.head = h
	if len(h.Timestamp) == 0 {
		return nil
	}
	v, err := tufpolicy.OnlineVersions(h.Timestamp, h.Snapshot)
	if err != nil {
		return err
	}
	c.State.Timestamp, c.State.Snapshot = h.Timestamp, h.Snapshot
	c.State.Versions.Timestamp, c.State.Versions.Snapshot = v.Timestamp, v.Snapshot
	return nil
}

// Current gives the policy in force.
func (p *Policy) Current() *Current {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cur
}

// Root gives the newest root; nil before anything was published.
func (p *Policy) Root() []byte { return p.Current().State.Root }

// RootByFingerprint gives the root with a fingerprint; nil when there is none.
func (p *Policy) RootByFingerprint(want [32]byte) []byte {
	for _, r := range p.Current().roots {
		if tufpolicy.RootFingerprint(r) == want {
			return r
		}
	}
	return nil
}

// Sorted gives the documents by id and revision.
func (c *Current) Sorted() []*mitigation.Document {
	if c.sorted != nil {
		return c.sorted
	}
	return c.sort()
}

// Groups gives the documents of each mitigation, by id; the revisions of one in their order.
func (c *Current) Groups() [][]*mitigation.Document {
	if c.groups != nil {
		return c.groups
	}
	return c.group()
}

func (c *Current) group() [][]*mitigation.Document {
	var out [][]*mitigation.Document
	for _, d := range c.Sorted() {
		if n := len(out); n > 0 && out[n-1][0].GetId() == d.GetId() {
			out[n-1] = append(out[n-1], d)
		} else {
			out = append(out, []*mitigation.Document{d})
		}
	}
	return out
}

func (c *Current) sort() []*mitigation.Document {
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

// File is one file of a policy directory.
type File struct {
	Path    string
	Content []byte
}

// split sorts the files of a policy directory.
func split(files []File) (roots map[uint64][]byte, targets []byte, docs map[string][]byte, err error) {
	roots, docs = map[uint64][]byte{}, map[string][]byte{}
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.Path] {
			return nil, nil, nil, fmt.Errorf("%w: %s twice", ErrMalformed, f.Path)
		}
		seen[f.Path] = true
		switch is, ok := tufpolicy.ParseFile(f.Path); {
		case ok && is.Document != "":
			docs[is.Document] = f.Content
		case ok && is.Root > 0:
			roots[is.Root] = f.Content
		case ok && is.Targets > 0 && targets == nil:
			targets = f.Content
		default:
			return nil, nil, nil, fmt.Errorf("%w: %q has no place in a policy directory, or stands in it twice", ErrMalformed, f.Path)
		}
	}
	if targets == nil {
		return nil, nil, nil, fmt.Errorf("%w: no metadata/<version>.targets.json", ErrMalformed)
	}
	return roots, targets, docs, nil
}

// Publish takes a signed policy directory, whole or not at all, and says what it changes. Only an admin's first root is
// taken. Errors: mitigation.Problems, and those above.
func (p *Policy) Publish(ctx context.Context, files []File, admin bool) (changes []string, err error) {
	p.change.Lock()
	defer p.change.Unlock()
	cur := p.Current()
	roots, targets, docs, err := split(files)
	if err != nil {
		return nil, err
	}
	chain := cur.roots
	if len(chain) == 0 {
		if !admin {
			return nil, ErrFirstRoot
		}
		if roots[1] == nil {
			return nil, fmt.Errorf("%w: no metadata/1.root.json", ErrMalformed)
		}
		chain = [][]byte{roots[1]}
	}
	for v := uint64(1); v <= uint64(len(chain)); v++ {
		if roots[v] != nil && !bytes.Equal(roots[v], chain[v-1]) {
			return nil, fmt.Errorf("%w: root %d is another one than this controller has: a different policy directory", ErrUntrusted, v)
		}
	}
	chain = chain[:len(chain):len(chain)]
	for v := uint64(len(chain) + 1); roots[v] != nil; v++ {
		chain = append(chain, roots[v])
	}
	if fresh := len(chain) - len(cur.roots); fresh > tufpolicy.MaxRoots {
		return nil, fmt.Errorf("%w: %d new roots, limit %d", ErrMalformed, fresh, tufpolicy.MaxRoots)
	}
	next, err := assemble(chain, head{Targets: targets}, docs, time.Now())
	if err != nil {
		var refused *tufpolicy.Refusal
		if errors.As(err, &refused) {
			return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		return nil, err
	}
	if err := p.succeeds(cur, next); err != nil {
		return nil, err
	}
	if err := p.onlineKeys(next.State.Root); err != nil {
		return nil, err
	}
	changes = describe(cur, next)
	if len(changes) == 0 {
		return []string{"no change"}, nil
	}
	if next.head, err = p.signOnline(next, cur.head, true, time.Now()); err != nil {
		return nil, err
	}
	if err := next.serve(next.head); err != nil {
		return nil, err
	}
	if err := p.commit(ctx, cur, next); err != nil {
		return nil, err
	}
	return changes, nil
}

// succeeds checks that a policy may follow the one in force.
func (p *Policy) succeeds(cur, next *Current) error {
	if next.Version < cur.Version {
		return fmt.Errorf("%w: targets version %d, published is %d", ErrOld, next.Version, cur.Version)
	}
	if next.Version == cur.Version && !bytes.Equal(next.head.Targets, cur.head.Targets) {
		// More signatures on the same content, as after a rotation of targets keys, are no other content.
		if !sameTargets(next.manifest.Targets, cur.manifest.Targets) || !next.TargetsExpire.Equal(cur.TargetsExpire) {
			return fmt.Errorf("%w: targets version %d is published with other content; make it version %d", ErrImmutable, next.Version, cur.Version+1)
		}
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	for path, d := range next.Documents {
		if ever := p.published[d.Ref()]; ever != "" && ever != next.manifest.Targets[path] {
			return fmt.Errorf("%s: %w: it was published with other content; make it revision %d", d.Ref(), ErrImmutable, d.GetRevision()+1)
		}
	}
	return nil
}

func sameTargets(a, b map[string]string) bool {
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

// describe says in words what a policy changes.
func describe(cur, next *Current) []string {
	var out []string
	if a, b := cur.State.Versions.Root, next.State.Versions.Root; a == 0 {
		out = append(out, fmt.Sprintf("trusts root %d, SHA-256 %x", b, tufpolicy.RootFingerprint(next.State.Root)))
	} else if b > a {
		out = append(out, fmt.Sprintf("replaces root %d by %d", a, b))
	}
	old := map[string]bool{}
	for _, d := range cur.Sorted() {
		old[d.Ref()] = true
	}
	for _, d := range next.Sorted() {
		if !old[d.Ref()] {
			out = append(out, fmt.Sprintf("adds %s: %s", d.Ref(), d.GetTitle()))
		}
		delete(old, d.Ref())
	}
	for _, d := range cur.Sorted() {
		if old[d.Ref()] {
			out = append(out, fmt.Sprintf("removes %s: servers that have it take it off", d.Ref()))
		}
	}
	if a, b := cur.Fixed, next.Fixed; b != nil && (a == nil || a.GetRevision() != b.GetRevision()) {
		out = append(out, fmt.Sprintf("fixed-builds table, revision %d", b.GetRevision()))
	}
	if len(out) == 0 && next.Version != cur.Version {
		out = append(out, fmt.Sprintf("version %d with the same documents, valid until %s", next.Version, next.TargetsExpire.Format(time.DateOnly)))
	}
	if len(out) == 0 && !bytes.Equal(cur.head.Targets, next.head.Targets) {
		out = append(out, "signatures")
	}
	return out
}

// commit writes a policy in one transaction, fenced by the head it was made from.
func (p *Policy) commit(ctx context.Context, cur, next *Current) error {
	raw, err := json.Marshal(next.head)
	if err != nil {
		return err
	}
	ops := []store.Op{{Key: kHead, Value: raw}}
	p.mu.RLock()
	old := map[uint64]manifest{}
	for v, o := range p.old {
		old[v] = o
	}
	published := map[string]string{}
	for ref, sum := range p.published {
		published[ref] = sum
	}
	p.mu.RUnlock()
	if next.Version != cur.Version || len(next.roots) != len(cur.roots) {
		man, err := json.Marshal(next.manifest)
		if err != nil {
			return err
		}
		old[next.Version] = next.manifest
		ops = append(ops, store.Op{Key: kVer + fmt.Sprintf(verFmt, next.Version), Value: man})
		had := map[string]bool{}
		for _, sum := range cur.manifest.Targets {
			had[sum] = true
		}
		for path, sum := range next.manifest.Targets {
			if !had[sum] {
				had[sum] = true
				ops = append(ops, store.Op{Key: kDoc + sum, Value: next.State.Documents[path]})
			}
		}
		for path, d := range next.Documents {
			if published[d.Ref()] == "" {
				published[d.Ref()] = next.manifest.Targets[path]
				ops = append(ops, store.Op{Key: kPub + d.Ref(), Value: []byte(published[d.Ref()])})
			}
		}
		for i := len(cur.roots); i < len(next.roots); i++ {
			ops = append(ops, store.Op{Key: kRoot + fmt.Sprintf(verFmt, i+1), Value: next.roots[i]})
		}
		ops = append(ops, forget(old, next.manifest.Targets)...)
	}
	fence := int64(0)
	switch kv, err := p.cfg.Store.Get(ctx, kHead); {
	case err == nil:
		fence = kv.Revision
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	if _, err := p.cfg.Store.Txn(ctx, []store.Compare{{Key: kHead, Revision: fence}}, ops); err != nil {
		return err
	}
	p.mu.Lock()
	p.cur, p.old, p.published, p.encoded = next, old, published, map[held][]byte{}
	p.mu.Unlock()
	p.cfg.Changed()
	return nil
}

// forget drops the oldest versions over the bound, and documents that no kept version names.
func forget(old map[uint64]manifest, used map[string]string) []store.Op {
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
	for _, sum := range used {
		named[sum] = true
	}
	for _, v := range vers[:keptVersions] {
		for _, sum := range old[v].Targets {
			named[sum] = true
		}
	}
	for _, v := range vers[keptVersions:] {
		ops = append(ops, store.Op{Key: kVer + fmt.Sprintf(verFmt, v), Delete: true})
		for _, sum := range old[v].Targets {
			if !named[sum] {
				named[sum] = true
				ops = append(ops, store.Op{Key: kDoc + sum, Delete: true})
			}
		}
		delete(old, v)
	}
	return ops
}

// Update gives the encoded PolicyUpdate for an agent that holds these versions, encoded once for all of those, and the
// version of its timestamp. nil when the agent needs none. full leaves nothing out.
func (p *Policy) Update(v tufpolicy.Versions, full bool) (data []byte, timestamp uint64) {
	p.mu.RLock()
	cur := p.cur
	h := held{min(v.Root, uint64(len(cur.roots))), v.Targets}
	if _, known := p.old[h.targets]; !known || full {
		h.targets = 0
	}
	data, ok := p.encoded[h]
	p.mu.RUnlock()
	have := cur.State.Versions
	// A newer root is sent even to who holds a higher timestamp: it may be what makes an end of a forged one.
	if have.Timestamp == 0 || v.Root == 0 || !full && have.Root <= v.Root && have.Timestamp <= v.Timestamp {
		return nil, have.Timestamp
	}
	if ok {
		return data, have.Timestamp
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if cur = p.cur; p.encoded[h] != nil {
		return p.encoded[h], cur.State.Versions.Timestamp
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(p.update(cur, h))
	if err != nil {
		return nil, 0 // can't happen: the message is made here from valid strings
	}
	if len(p.encoded) >= maxEncoded {
		p.encoded = map[held][]byte{}
	}
	p.encoded[h] = data
	return data, cur.State.Versions.Timestamp
}

// maxEncoded bounds the encodings kept: an agent names what it holds, and could name anything.
const maxEncoded = 16

func (p *Policy) update(cur *Current, h held) *stopgapv1.PolicyUpdate {
	u := &stopgapv1.PolicyUpdate{TimestampVersion: cur.State.Versions.Timestamp, TargetsVersion: cur.Version, Timestamp: cur.head.Timestamp, Snapshot: cur.head.Snapshot}
	if h.root < uint64(len(cur.roots)) {
		u.Roots = cur.roots[h.root:]
		u.Roots = u.Roots[:min(len(u.Roots), tufpolicy.MaxRoots)]
	}
	if h.targets == cur.Version && len(u.Roots) == 0 {
		return u
	}
	u.Targets = cur.head.Targets
	paths := make([]string, 0, len(cur.manifest.Targets))
	for path := range cur.manifest.Targets {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	for _, path := range paths {
		if h.targets == 0 || p.old[h.targets].Targets[path] != cur.manifest.Targets[path] {
			u.Documents = append(u.Documents, &stopgapv1.PolicyTarget{Path: path, Content: cur.State.Documents[path]})
		}
	}
	return u
}

// HashOf gives the SHA-256 of a document in policy.
func (c *Current) HashOf(path string) []byte {
	raw, _ := hex.DecodeString(c.manifest.Targets[path])
	return raw
}
