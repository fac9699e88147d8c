// Package policy is the policy an agent holds: which documents are in it, and what they say. It accepts an update whole or
// not at all. Signatures (TUF metadata) will be verified here, before anything else of an update is looked at; until then
// what it believes is the controller's TLS identity and the hashes.
package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/transport"
)

// Held is what is kept in the journal.
type Held struct {
	Version    uint64            `json:"version"`
	AcceptedAt time.Time         `json:"acceptedAt"`
	Targets    map[string][]byte `json:"targets"` // path -> content
	// Attempted is the last version tried, with the reason when it was refused.
	Attempted      uint64 `json:"attempted"`
	AttemptedError string `json:"attemptedError,omitempty"`
}

// Policy is a held policy, parsed. It is never changed after it was made.
type Policy struct {
	Version uint64
	// Revisions by id and revision.
	Revisions map[string]map[uint32]*Revision
	// Fixed answers which builds are fixed; never nil.
	Fixed *exchange.Table
	// FixedError says why the fixed-builds table can't be read; then nothing counts as fixed.
	FixedError error
}

// Revision is one document of the policy.
type Revision struct {
	SHA256 [sha256.Size]byte
	// Document is nil when this agent can't read it; then Err says why.
	Document *mitigation.Document
	Err      error
}

// Refusal is why an update was not accepted.
type Refusal struct {
	// Permanent: the same version can never be accepted.
	Permanent bool
	Err       error
}

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(format string, args ...any) error { return &Refusal{true, fmt.Errorf(format, args...)} }

// ErrUnchanged is returned for an update to the version already held, or an older one: a late answer.
var ErrUnchanged = errors.New("policy: not newer than the one held")

var targetPath = regexp.MustCompile(`^mitigations/([A-Za-z0-9](?:[-._]?[A-Za-z0-9]){0,39})/([1-9][0-9]{0,6})\.yaml$`)

// Decode reads an encoded update, bounded.
func Decode(data []byte) (*stopgapv1.PolicyUpdate, error) {
	if len(data) > transport.MaxToAgent {
		return nil, refuse("policy update of %d bytes, limit %d", len(data), transport.MaxToAgent)
	}
	u := &stopgapv1.PolicyUpdate{}
	if err := proto.Unmarshal(data, u); err != nil {
		return nil, refuse("policy update can't be decoded: %w", err)
	}
	return u, nil
}

// Accept checks an update against what is held and gives what is to be held instead. Errors: ErrUnchanged, *Refusal.
func Accept(held Held, u *stopgapv1.PolicyUpdate, now time.Time) (Held, error) {
	switch {
	case u.GetVersion() == 0:
		return held, refuse("policy update without a version")
	case u.GetVersion() <= held.Version:
		return held, ErrUnchanged
	case len(u.GetTargets()) > transport.MaxTargets:
		return held, refuse("policy %d has %d documents, limit %d", u.GetVersion(), len(u.GetTargets()), transport.MaxTargets)
	}
	next := Held{Version: u.GetVersion(), AcceptedAt: now, Targets: map[string][]byte{}, Attempted: u.GetVersion()}
	for _, t := range u.GetTargets() {
		path := t.GetPath()
		if path != mitigation.FixedBuildsName && !targetPath.MatchString(path) {
			return held, refuse("policy %d: target path %q is not allowed", u.GetVersion(), path)
		}
		if _, dup := next.Targets[path]; dup {
			return held, refuse("policy %d: target %s twice", u.GetVersion(), path)
		}
		content := t.GetContent()
		if content == nil {
			var ok bool
			if content, ok = held.Targets[path]; !ok {
				return held, &Refusal{false, fmt.Errorf("policy %d: target %s was left out and is not held here", u.GetVersion(), path)}
			}
			if sum := sha256.Sum256(content); string(sum[:]) != string(t.GetSha256()) {
				return held, &Refusal{false, fmt.Errorf("policy %d: target %s was left out and another content is held here", u.GetVersion(), path)}
			}
		}
		if len(content) > mitigation.MaxBytes || len(content) != int(t.GetLength()) {
			return held, refuse("policy %d: target %s has %d bytes, announced %d, limit %d", u.GetVersion(), path, len(content), t.GetLength(), mitigation.MaxBytes)
		}
		if sum := sha256.Sum256(content); string(sum[:]) != string(t.GetSha256()) {
			return held, refuse("policy %d: target %s does not have the announced hash", u.GetVersion(), path)
		}
		next.Targets[path] = content
	}
	return next, nil
}

// Parse reads the documents of a held policy, each alone: one that this agent can't read holds up no other.
func Parse(h Held) *Policy {
	p := &Policy{Version: h.Version, Revisions: map[string]map[uint32]*Revision{}, Fixed: &exchange.Table{}}
	for path, content := range h.Targets {
		if path == mitigation.FixedBuildsName {
			if fb, err := mitigation.ParseFixedBuilds(path, content); err != nil {
				p.FixedError = err
			} else {
				p.Fixed = fb.Table
			}
			continue
		}
		m := targetPath.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		rev, _ := strconv.ParseUint(m[2], 10, 32)
		r := &Revision{SHA256: sha256.Sum256(content)}
		r.Document, r.Err = mitigation.Parse(path, content)
		if r.Err == nil && (r.Document.GetId() != m[1] || r.Document.GetRevision() != uint32(rev)) {
			r.Err = fmt.Errorf("%s says it is %s", path, r.Document.Ref())
			r.Document = nil
		}
		if p.Revisions[m[1]] == nil {
			p.Revisions[m[1]] = map[uint32]*Revision{}
		}
		p.Revisions[m[1]][uint32(rev)] = r
	}
	return p
}
