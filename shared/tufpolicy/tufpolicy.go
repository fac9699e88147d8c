// Package tufpolicy verifies signed policy: a TUF repository (The Update Framework, specification 1.0) with the four
// top-level roles and no delegations. Agent, controller and the offline commands verify with this one package.
//
// It never signs and never stores: it takes what is trusted and what arrived, and gives what is to be trusted instead, or an
// error and nothing.
package tufpolicy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

// Bounds on what is looked at at all, before any signature is; each is named in the error that going past it gives.
const (
	// MaxRoots bounds the roots of one update: a rotation a week for five years.
	MaxRoots = 256
	// MaxRoot, MaxTimestamp, MaxSnapshot and MaxTargetsMetadata bound one metadata file, in bytes. The targets metadata of
	// 1,000 documents has 250 KiB.
	MaxRoot            = 64 << 10
	MaxTimestamp       = 16 << 10
	MaxSnapshot        = 16 << 10
	MaxTargetsMetadata = 448 << 10
	// MaxTargets bounds the documents of a policy, MaxDocuments their bytes together.
	MaxTargets   = 1000
	MaxDocuments = 12 << 20
	maxSigs      = 64
)

// State is the policy that is trusted. The zero State trusts nothing and accepts nothing.
type State struct {
	// Root is the newest trusted root; the exact bytes, as with the others.
	Root []byte `json:"root,omitempty"`
	// Timestamp, Snapshot and Targets are what was accepted last; empty before the first policy.
	Timestamp []byte `json:"timestamp,omitempty"`
	Snapshot  []byte `json:"snapshot,omitempty"`
	Targets   []byte `json:"targets,omitempty"`
	// Documents by path.
	Documents map[string][]byte `json:"documents,omitempty"`
	// Versions of the four.
	Versions Versions `json:"versions"`
	// Floor is the lowest acceptable version of the targets metadata; it outlives everything else.
	Floor uint64 `json:"floor"`
	// Expires is when the first of the four ends, ExpiresFirst which one that is.
	Expires      time.Time `json:"expires"`
	ExpiresFirst string    `json:"expiresFirst,omitempty"`
}

// Versions are the versions of the four roles' metadata; 0: none.
type Versions struct {
	Root      uint64 `json:"root"`
	Timestamp uint64 `json:"timestamp"`
	Snapshot  uint64 `json:"snapshot"`
	Targets   uint64 `json:"targets"`
}

// Update is what arrived.
type Update struct {
	// Roots after the trusted one, oldest first.
	Roots     [][]byte
	Timestamp []byte
	Snapshot  []byte
	// Targets is nil when the receiver was believed to hold it.
	Targets []byte
	// Documents that the receiver was believed to lack.
	Documents map[string][]byte
}

// ErrUnchanged says that the update's timestamp is the one held.
var ErrUnchanged = errors.New("policy: nothing new")

// ErrNoRoot says that there is no trusted root to begin from.
var ErrNoRoot = errors.New("policy: no trusted root; enrol again or apply a bundle")

// Refusal is why an update was not accepted.
type Refusal struct {
	// Retry: something was left out that is not held; the same policy may be accepted when everything is sent.
	Retry bool
	Err   error
}

func (r *Refusal) Error() string { return "policy: " + r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(format string, args ...any) error { return &Refusal{Err: fmt.Errorf(format, args...)} }
func again(format string, args ...any) error {
	return &Refusal{Retry: true, Err: fmt.Errorf(format, args...)}
}

// RootFingerprint is how a token, a stick or a person names a root: the SHA-256 of its exact bytes.
func RootFingerprint(root []byte) [sha256.Size]byte { return sha256.Sum256(root) }

// Begin is the State that trusts one root, which was checked by its fingerprint, and accepts no targets version below floor.
// Errors: the root is malformed, or not signed by its own keys to its own threshold.
func Begin(root []byte, floor uint64) (st State, err error) {
	defer contained(&err)
	r, err := parseRoot(root)
	if err != nil {
		return State{}, err
	}
	if err := r.VerifyDelegate(metadata.ROOT, r); err != nil {
		return State{}, refuse("root %d is not signed by its own keys: %w", r.Signed.Version, err)
	}
	return State{Root: root, Floor: floor, Versions: Versions{Root: uint64(r.Signed.Version)}}, nil
}

// parseRoot reads a root and checks what Stopgap asks of one beyond the specification: Ed25519 keys only, and a separate
// snapshot file for each version. (Checking who signed it is the caller's.)
func parseRoot(data []byte) (*metadata.Metadata[metadata.RootType], error) {
	if len(data) > MaxRoot {
		return nil, refuse("a root of %d bytes, limit %d", len(data), MaxRoot)
	}
	r, err := metadata.Root().FromBytes(data)
	if err != nil {
		return nil, refuse("a root can't be read: %w", err)
	}
	if err := common("root", r.Signed.Type, metadata.ROOT, r.Signed.SpecVersion, r.Signed.Version, len(r.Signatures)); err != nil {
		return nil, err
	}
	if len(r.Signed.Keys) > maxSigs {
		return nil, refuse("root %d has %d keys, limit %d", r.Signed.Version, len(r.Signed.Keys), maxSigs)
	}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if x := r.Signed.Roles[role]; x == nil || x.Threshold < 1 || len(x.KeyIDs) > maxSigs {
			return nil, refuse("root %d: role %s is missing or malformed", r.Signed.Version, role)
		}
	}
	for id, k := range r.Signed.Keys {
		if k == nil {
			return nil, refuse("root %d: key %s is null", r.Signed.Version, clip(id))
		}
		if k.Type != metadata.KeyTypeEd25519 || k.Scheme != metadata.KeySchemeEd25519 {
			return nil, refuse("root %d: key %s is %s/%s; only Ed25519 keys are used", r.Signed.Version, clip(id), clip(k.Type), clip(k.Scheme))
		}
	}
	if !r.Signed.ConsistentSnapshot {
		return nil, refuse("root %d: consistent_snapshot is off", r.Signed.Version)
	}
	return r, nil
}

func common(what, typ, want, spec string, version int64, sigs int) error {
	switch {
	case typ != want:
		return refuse("%s metadata is of type %q", what, clip(typ))
	case !strings.HasPrefix(spec, "1."):
		return refuse("%s metadata follows TUF specification %q; 1.x is known here", what, clip(spec))
	case version < 1:
		return refuse("%s metadata has version %d", what, version)
	case sigs > maxSigs:
		return refuse("%s metadata has %d signatures, limit %d", what, sigs, maxSigs)
	}
	return nil
}

func clip(s string) string { return bounded.Text(s, 64) }

// Verify checks an update against what is trusted and gives what is to be trusted instead: signatures to the threshold,
// expiry at now, no version that goes back, length and hash of every part. All of it or nothing. Errors: ErrUnchanged,
// ErrNoRoot, *Refusal.
func Verify(st State, u Update, now time.Time) (State, error) {
	next, err := verify(st, u, now)
	if err != nil {
		return st, err
	}
	return next, nil
}

// contained turns a panic into a refusal: go-tuf trusts the shape of what it has not verified yet.
func contained(err *error) {
	if p := recover(); p != nil {
		*err = refuse("malformed metadata: %v", p)
	}
}

// shaped refuses timestamp and snapshot metadata that do not name what they are for.
func shaped(u Update) error {
	ts, err := metadata.Timestamp().FromBytes(u.Timestamp)
	if err != nil {
		return refuse("timestamp metadata can't be read: %w", err)
	}
	if ts.Signed.Meta["snapshot.json"] == nil {
		return refuse("timestamp metadata names no snapshot")
	}
	sn, err := metadata.Snapshot().FromBytes(u.Snapshot)
	if err != nil {
		return refuse("snapshot metadata can't be read: %w", err)
	}
	if sn.Signed.Meta["targets.json"] == nil {
		return refuse("snapshot metadata names no targets")
	}
	for name, m := range sn.Signed.Meta {
		if m == nil {
			return refuse("snapshot metadata: %s is null", clip(name))
		}
	}
	return errors.Join(common("timestamp", ts.Signed.Type, metadata.TIMESTAMP, ts.Signed.SpecVersion, ts.Signed.Version, len(ts.Signatures)),
		common("snapshot", sn.Signed.Type, metadata.SNAPSHOT, sn.Signed.SpecVersion, sn.Signed.Version, len(sn.Signatures)))
}

func verify(st State, u Update, now time.Time) (next State, err error) {
	defer contained(&err)
	if len(st.Root) == 0 {
		return st, ErrNoRoot
	}
	if err := withinBounds(u); err != nil {
		return st, err
	}
	if err := shaped(u); err != nil {
		return st, err
	}
	tm, root, err := followRoots(st.Root, u.Roots)
	if err != nil {
		return st, err
	}
	if err := loadHeld(tm, st, u, now); err != nil {
		return st, err
	}
	targets := u.Targets
	if targets == nil {
		targets = st.Targets
	}
	if len(targets) == 0 {
		return st, again("the targets metadata was left out and none is held here")
	}
	tg, err := tm.UpdateTargets(targets)
	if err != nil {
		if u.Targets == nil {
			return st, again("the targets metadata was left out, and what is held here does not fit: %w", err)
		}
		return st, refusal("targets metadata", err)
	}
	if err := checkTargets(tg); err != nil {
		return st, err
	}
	if v := uint64(tg.Signed.Version); v < st.Floor {
		return st, refuse("targets version %d is below %d, which was accepted or announced here before: an old policy", v, st.Floor)
	}
	docs, err := documents(tg, u.Documents, st.Documents)
	if err != nil {
		return st, err
	}
	next = State{Root: root, Timestamp: u.Timestamp, Snapshot: u.Snapshot, Targets: targets, Documents: docs,
		Versions: Versions{uint64(tm.Root.Signed.Version), uint64(tm.Timestamp.Signed.Version), uint64(tm.Snapshot.Signed.Version), uint64(tg.Signed.Version)},
		Floor:    uint64(tg.Signed.Version)}
	next.setExpiry(tm.Root.Signed.Expires, tm.Timestamp.Signed.Expires, tm.Snapshot.Signed.Expires, tg.Signed.Expires)
	return next, nil
}

func (s *State) setExpiry(root, timestamp, snapshot, targets time.Time) {
	for name, t := range map[string]time.Time{"root": root, "timestamp": timestamp, "snapshot": snapshot, "targets": targets} {
		if t.IsZero() {
			continue
		}
		if s.Expires.IsZero() || t.Before(s.Expires) || t.Equal(s.Expires) && name < s.ExpiresFirst {
			s.Expires, s.ExpiresFirst = t, name
		}
	}
}

func withinBounds(u Update) error {
	for _, x := range []struct {
		name       string
		got, limit int
	}{
		{"roots", len(u.Roots), MaxRoots}, {"bytes of timestamp metadata", len(u.Timestamp), MaxTimestamp},
		{"bytes of snapshot metadata", len(u.Snapshot), MaxSnapshot}, {"bytes of targets metadata", len(u.Targets), MaxTargetsMetadata},
		{"documents", len(u.Documents), MaxTargets},
	} {
		if x.got > x.limit {
			return refuse("%d %s, limit %d", x.got, x.name, x.limit)
		}
	}
	for p, d := range u.Documents {
		if len(d) > mitigation.MaxBytes {
			return refuse("document %s of %d bytes, limit %d", clip(p), len(d), mitigation.MaxBytes)
		}
	}
	return nil
}

// followRoots goes from the trusted root along new ones, each signed by the one before and by itself. Roots at or below the
// trusted version are skipped: a sender may not know what is held.
func followRoots(trusted []byte, roots [][]byte) (*trustedmetadata.TrustedMetadata, []byte, error) {
	if _, err := parseRoot(trusted); err != nil {
		return nil, nil, fmt.Errorf("the trusted root: %w", err)
	}
	tm, err := trustedmetadata.New(trusted)
	if err != nil {
		return nil, nil, refuse("the trusted root: %w", err)
	}
	last := trusted
	for _, data := range roots {
		r, err := parseRoot(data)
		if err != nil {
			return nil, nil, err
		}
		if r.Signed.Version <= tm.Root.Signed.Version {
			continue
		}
		from := tm.Root.Signed.Version
		if _, err := tm.UpdateRoot(data); err != nil {
			return nil, nil, refusal(fmt.Sprintf("root %d after root %d", r.Signed.Version, from), err)
		}
		last = data
	}
	return tm, last, nil
}

// loadHeld loads the held timestamp and snapshot, so that versions can't go back, and then the new ones. When the new root
// names other online keys the held ones are dropped first (specification 5.3.11): whoever stole the old keys may have
// signed a version so high that no honest one could follow.
func loadHeld(tm *trustedmetadata.TrustedMetadata, st State, u Update, now time.Time) error {
	heldTS, heldSnap := heldByRoot(tm.Root, st)
	tm.RefTime = time.Time{} // held metadata may have expired; it is loaded for its version
	if heldTS {
		if _, err := tm.UpdateTimestamp(st.Timestamp); err != nil {
			return again("the held timestamp: %w", err)
		}
	}
	tm.RefTime = now.UTC()
	if _, err := tm.UpdateTimestamp(u.Timestamp); err != nil {
		var same *metadata.ErrEqualVersionNumber
		if errors.As(err, &same) {
			if bytes.Equal(u.Timestamp, st.Timestamp) && tm.Root.Signed.Version == int64(st.Versions.Root) {
				return ErrUnchanged
			}
			if bytes.Equal(u.Timestamp, st.Timestamp) {
				return refuse("a new root with the timestamp held (%d)", st.Versions.Timestamp)
			}
			return refuse("another timestamp of the version held (%d)", st.Versions.Timestamp)
		}
		return refusal("timestamp", err)
	}
	if heldSnap {
		// It is loaded even where it does not fit the new timestamp, which is what the error then says.
		if _, err := tm.UpdateSnapshot(st.Snapshot, true); err != nil && tm.Snapshot == nil {
			return again("the held snapshot: %w", err)
		}
	}
	if _, err := tm.UpdateSnapshot(u.Snapshot, false); err != nil {
		return refusal("snapshot", err)
	}
	return nil
}

func heldByRoot(root *metadata.Metadata[metadata.RootType], st State) (timestamp, snapshot bool) {
	ts, err := metadata.Timestamp().FromBytes(st.Timestamp)
	if err != nil || root.VerifyDelegate(metadata.TIMESTAMP, ts) != nil {
		return false, false
	}
	sn, err := metadata.Snapshot().FromBytes(st.Snapshot)
	if err != nil || root.VerifyDelegate(metadata.SNAPSHOT, sn) != nil {
		return false, false
	}
	return true, true
}

// refusal wraps an error of go-tuf.
func refusal(what string, err error) error { return refuse("%s refused: %w", what, err) }

func checkTargets(tg *metadata.Metadata[metadata.TargetsType]) error {
	if err := common("targets", tg.Signed.Type, metadata.TARGETS, tg.Signed.SpecVersion, tg.Signed.Version, len(tg.Signatures)); err != nil {
		return err
	}
	v := tg.Signed.Version
	if tg.Signed.Delegations != nil {
		return refuse("targets %d delegates; delegations are not used", v)
	}
	if len(tg.Signed.Targets) > MaxTargets {
		return refuse("targets %d lists %d documents, limit %d", v, len(tg.Signed.Targets), MaxTargets)
	}
	total := int64(0)
	for p, t := range tg.Signed.Targets {
		switch {
		case !AllowedPath(p):
			return refuse("targets %d: path %q is not allowed", v, clip(p))
		case t == nil || len(t.Hashes["sha256"]) != sha256.Size:
			return refuse("targets %d: %s has no SHA-256", v, p)
		case t.Length < 0 || t.Length > mitigation.MaxBytes:
			return refuse("targets %d: %s has %d bytes, limit %d", v, p, t.Length, mitigation.MaxBytes)
		}
		total += t.Length
	}
	if total > MaxDocuments {
		return refuse("targets %d: %d bytes in all documents, limit %d", v, total, MaxDocuments)
	}
	if tg.Signed.Targets[PolicyName] == nil {
		return refuse("targets %d: no %s", v, PolicyName)
	}
	return nil
}

// documents gives the bytes of every target, from what arrived or from what is held, each with its length and hash checked.
func documents(tg *metadata.Metadata[metadata.TargetsType], arrived, held map[string][]byte) (map[string][]byte, error) {
	v := tg.Signed.Version
	for p := range arrived {
		if tg.Signed.Targets[p] == nil {
			return nil, refuse("document %q came with targets %d, which does not list it", clip(p), v)
		}
	}
	out := make(map[string][]byte, len(tg.Signed.Targets))
	for p, t := range tg.Signed.Targets {
		if data, ok := arrived[p]; ok {
			if err := t.VerifyLengthHashes(data); err != nil {
				return nil, refuse("document %s is not what targets %d says: %w", p, v, err)
			}
			out[p] = data
			continue
		}
		data, ok := held[p]
		if !ok {
			return nil, again("document %s was left out and is not held here", p)
		}
		if err := t.VerifyLengthHashes(data); err != nil {
			return nil, again("document %s was left out, and another one is held here", p)
		}
		out[p] = data
	}
	return out, nil
}

// Targets lists what targets metadata names: path to hex SHA-256. It verifies nothing.
func Targets(data []byte) (out map[string]string, err error) {
	defer contained(&err)
	tg, err := metadata.Targets().FromBytes(data)
	if err != nil {
		return nil, err
	}
	out = make(map[string]string, len(tg.Signed.Targets))
	for p, t := range tg.Signed.Targets {
		out[p] = hex.EncodeToString(t.Hashes["sha256"])
	}
	return out, nil
}

// sortedKeys gives a map's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
