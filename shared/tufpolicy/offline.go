package tufpolicy

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Signed is the part of a policy that is signed offline: what an author, a publishing controller and a bundle have.
type Signed struct {
	// Roots from the first one wanted to the newest, oldest first.
	Roots [][]byte
	// Targets is the targets metadata.
	Targets   []byte
	Documents map[string][]byte
}

// VerifySigned checks what is signed offline against a trusted root: the root chain, the threshold of the targets role, the
// expiry of both at now, the version floor, length and hash of each document. There is no snapshot or timestamp in it: who
// brings it vouches for its being the newest. It gives the State with the new root, targets and documents, and no timestamp
// or snapshot. Errors: *Refusal.
func VerifySigned(st State, s Signed, now time.Time) (State, error) {
	next, err := verifySigned(st, s, now)
	if err != nil {
		return st, err
	}
	return next, nil
}

func verifySigned(st State, s Signed, now time.Time) (next State, err error) {
	defer contained(&err)
	if err := withinBounds(Update{Roots: s.Roots, Targets: s.Targets, Documents: s.Documents}); err != nil {
		return st, err
	}
	tm, root, err := followRoots(st.Root, s.Roots)
	if err != nil {
		return st, err
	}
	if tm.Root.Signed.IsExpired(now) {
		return st, refuse("root %d expired on %s", tm.Root.Signed.Version, tm.Root.Signed.Expires.Format(time.DateOnly))
	}
	tg, err := metadata.Targets().FromBytes(s.Targets)
	if err != nil {
		return st, refuse("targets metadata can't be read: %w", err)
	}
	if err := tm.Root.VerifyDelegate(metadata.TARGETS, tg); err != nil {
		return st, refusal(fmt.Sprintf("targets %d by root %d", tg.Signed.Version, tm.Root.Signed.Version), err)
	}
	if err := checkTargets(tg); err != nil {
		return st, err
	}
	if tg.Signed.IsExpired(now) {
		return st, refuse("targets %d expired on %s", tg.Signed.Version, tg.Signed.Expires.Format(time.DateOnly))
	}
	if v := uint64(tg.Signed.Version); v < st.Floor {
		return st, refuse("targets version %d is below %d, which was accepted before: an old policy", v, st.Floor)
	}
	docs, err := documents(tg, s.Documents, st.Documents)
	if err != nil {
		return st, err
	}
	next = State{Root: root, Targets: s.Targets, Documents: docs, Floor: uint64(tg.Signed.Version),
		Versions: Versions{Root: uint64(tm.Root.Signed.Version), Targets: uint64(tg.Signed.Version)}}
	next.setExpiry(tm.Root.Signed.Expires, time.Time{}, time.Time{}, tg.Signed.Expires)
	return next, nil
}

// RootInfo is what a root says.
type RootInfo struct {
	Version uint64
	Expires time.Time
	// Keys by role: key ids.
	Keys map[string][]string
	// Thresholds by role.
	Thresholds map[string]int
	// Public keys by key id: Ed25519, hex.
	Public map[string]string
}

// Allows says whether a key may sign for a role.
func (r RootInfo) Allows(role, keyID string) bool {
	for _, id := range r.Keys[role] {
		if id == keyID {
			return true
		}
	}
	return false
}

// ReadRoot reads a root. It verifies no signature.
func ReadRoot(data []byte) (info RootInfo, err error) {
	defer contained(&err)
	r, err := parseRoot(data)
	if err != nil {
		return RootInfo{}, err
	}
	info = RootInfo{Version: uint64(r.Signed.Version), Expires: r.Signed.Expires, Keys: map[string][]string{}, Thresholds: map[string]int{}, Public: map[string]string{}}
	for _, role := range sortedKeys(r.Signed.Roles) {
		info.Keys[role], info.Thresholds[role] = r.Signed.Roles[role].KeyIDs, r.Signed.Roles[role].Threshold
	}
	for id, k := range r.Signed.Keys {
		info.Public[id] = k.Value.PublicKey
	}
	return info, nil
}

// Identity names a policy for ever: the SHA-256, in hex, of what its first root says, without the signatures, which are added one
// by one. "unknown" for what is no root.
func Identity(firstRoot []byte) string {
	r, err := parseRoot(firstRoot)
	if err != nil {
		return "unknown"
	}
	data, err := cjson.EncodeCanonical(r.Signed)
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// Follow checks that a root may follow another: the next version, signed by the threshold of both. It gives its bytes.
func Follow(root, next []byte) (last []byte, err error) {
	defer contained(&err)
	_, last, err = followRoots(root, [][]byte{next})
	if err == nil && &last[0] == &root[0] {
		return nil, refuse("the root does not follow: its version is not above the one before")
	}
	return last, err
}

// TargetsExpire is when targets metadata ends. It verifies nothing.
func TargetsExpire(data []byte) (time.Time, error) {
	tg, err := metadata.Targets().FromBytes(data)
	if err != nil {
		return time.Time{}, err
	}
	return tg.Signed.Expires, nil
}

// OnlineVersions reads the versions of timestamp and snapshot metadata. It verifies nothing.
func OnlineVersions(timestamp, snapshot []byte) (v Versions, err error) {
	ts, err := metadata.Timestamp().FromBytes(timestamp)
	if err != nil {
		return v, err
	}
	sn, err := metadata.Snapshot().FromBytes(snapshot)
	if err != nil {
		return v, err
	}
	return Versions{Timestamp: uint64(ts.Signed.Version), Snapshot: uint64(sn.Signed.Version)}, nil
}
