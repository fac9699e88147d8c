// Package policy is the signed policy an agent holds: which documents are in it, and what they say. It accepts an update
// whole or not at all, and only on the word of the SOC's offline keys, never on the controller's.
package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Held is what is kept in the journal.
type Held struct {
	tufpolicy.State
	// AcceptedAt is when its timestamp was accepted, which is when it was last known to be the newest.
	AcceptedAt time.Time `json:"acceptedAt"`
	// Attempted is the timestamp version of the last update tried, with the reason when it was refused.
	Attempted      uint64 `json:"attempted"`
	AttemptedError string `json:"attemptedError,omitempty"`
	// Source is where the policy came from: SourceController or SourceBundle; "" before the first.
	Source string `json:"source,omitempty"`
	// RefusedAt is when that was.
	RefusedAt time.Time `json:"refusedAt"`
}

// Sources of a policy.
const (
	SourceController = "controller"
	SourceBundle     = "bundle"
)

// Policy is a held policy, parsed. It is never changed after it was made.
type Policy struct {
	// Version of the targets metadata; 0: none is held.
	Version uint64
	// Revisions that are allowed, by id and revision.
	Revisions map[string]map[uint32]*Revision
	// Table says what is allowed and what the controller is permitted; never nil.
	Table *mitigation.PolicyTable
	// Fixed answers which builds are fixed; never nil.
	Fixed *exchange.Table
	// FixedError says why the fixed-builds table can't be read; then nothing counts as fixed.
	FixedError error
	// Source is where it came from, as in Held.
	Source string
	// Expires is when the first part of it ends; zero: never.
	Expires time.Time
	// ExpiresFirst is that part.
	ExpiresFirst string
}

// Expired says whether a part of the policy has ended: then nothing new is applied, and nothing is removed for it.
func (p *Policy) Expired(now time.Time) bool { return !p.Expires.IsZero() && now.After(p.Expires) }

// Revision is one document of the policy.
type Revision struct {
	SHA256 [sha256.Size]byte
	// Document is nil when this agent can't read it; then Err says why.
	Document *mitigation.Document
	Err      error
}

// ErrUnchanged is returned for an update to what is held already, or a late answer.
var ErrUnchanged = tufpolicy.ErrUnchanged

func refuse(format string, args ...any) error {
	return &tufpolicy.Refusal{Err: fmt.Errorf(format, args...)}
}

// Decode reads an encoded update, bounded.
func Decode(data []byte) (*stopgapv1.PolicyUpdate, error) {
	if len(data) > transport.MaxToAgent {
		return nil, refuse("update of %d bytes, limit %d", len(data), transport.MaxToAgent)
	}
	u := &stopgapv1.PolicyUpdate{}
	if err := proto.Unmarshal(data, u); err != nil {
		return nil, refuse("update can't be decoded: %w", err)
	}
	return u, nil
}

// Accept verifies an update against what is held and gives what is to be held instead. Errors: ErrUnchanged,
// tufpolicy.ErrNoRoot, *tufpolicy.Refusal.
func Accept(held Held, u *stopgapv1.PolicyUpdate, now time.Time) (Held, error) {
	up := tufpolicy.Update{Roots: u.GetRoots(), Timestamp: u.GetTimestamp(), Snapshot: u.GetSnapshot(), Documents: map[string][]byte{}}
	if len(u.GetTargets()) > 0 {
		up.Targets = u.GetTargets()
	}
	if len(u.GetDocuments()) > tufpolicy.MaxTargets {
		return held, refuse("%d documents, limit %d", len(u.GetDocuments()), tufpolicy.MaxTargets)
	}
	for _, d := range u.GetDocuments() {
		if _, twice := up.Documents[d.GetPath()]; twice {
			return held, refuse("document %.64q twice", d.GetPath())
		}
		up.Documents[d.GetPath()] = d.GetContent()
	}
	st, err := tufpolicy.Verify(held.State, up, now)
	if err != nil {
		return held, err
	}
	if err := readable(st); err != nil {
		return held, err
	}
	return Held{State: st, AcceptedAt: now, Attempted: st.Versions.Timestamp, Source: SourceController}, nil
}

// readable refuses a policy whose table can't be read: it decides what is taken off.
func readable(st tufpolicy.State) error {
	if _, err := mitigation.ParsePolicyTable(tufpolicy.PolicyName, st.Documents[tufpolicy.PolicyName]); err != nil {
		return refuse("this agent can't read what is allowed; update it: %w", err)
	}
	return nil
}

// Pin is how an administrator is told which policy to trust, by another way than the bundle: the SHA-256 of a root, and the lowest
// version of the targets metadata that may come.
type Pin struct {
	Root  [sha256.Size]byte
	Floor uint64
}

var pinText = regexp.MustCompile(`^([0-9a-fA-F]{64})-([1-9][0-9]{0,17})$`)

// ParsePin reads what `stopgap bundle` prints.
func ParsePin(s string) (Pin, error) {
	var p Pin
	m := pinText.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return p, errors.New("a pin is 64 hexadecimal digits, a dash and a number, as `stopgap bundle` prints it")
	}
	_, err := hex.Decode(p.Root[:], []byte(m[1]))
	if err == nil {
		p.Floor, err = strconv.ParseUint(m[2], 10, 64)
	}
	return p, err
}

// AcceptBundle verifies a bundle against what is held and gives what is to be held instead: thresholds, the ends of root and
// targets metadata, the version floor. It carries no snapshot or timestamp; what of those was held is dropped, and the floor
// keeps a controller from going back behind the bundle. pin is needed where no root is trusted yet, and checked wherever it is
// given. Errors: tufpolicy.ErrNoRoot, *tufpolicy.Refusal.
func AcceptBundle(held Held, s tufpolicy.Signed, pin *Pin, now time.Time) (Held, error) {
	from := held.State
	if pin != nil {
		var pinned []byte
		for _, r := range s.Roots {
			if tufpolicy.RootFingerprint(r) == pin.Root {
				pinned = r
			}
		}
		if pinned == nil {
			return held, refuse("the bundle is of another policy: none of its %d roots is the one that the pin names", len(s.Roots))
		}
		from.Floor = max(from.Floor, pin.Floor)
		if len(held.Root) == 0 {
			var err error
			if from, err = tufpolicy.Begin(pinned, from.Floor); err != nil {
				return held, err
			}
		}
	}
	if len(from.Root) == 0 {
		return held, tufpolicy.ErrNoRoot
	}
	if v := held.Versions.Root; v > 0 && v <= uint64(len(s.Roots)) && !bytes.Equal(s.Roots[v-1], held.Root) {
		return held, refuse("the bundle is of another policy: its root %d is not the one that is trusted here", v)
	}
	st, err := tufpolicy.VerifySigned(from, s, now)
	if err != nil {
		return held, err
	}
	if err := readable(st); err != nil {
		return held, err
	}
	return Held{State: st, AcceptedAt: now, Source: SourceBundle}, nil
}

// Parse reads the documents of a held policy, each alone: one that this agent can't read holds up no other.
func Parse(h Held) *Policy {
	p := &Policy{Version: h.Versions.Targets, Revisions: map[string]map[uint32]*Revision{}, Fixed: &exchange.Table{},
		Table: &mitigation.PolicyTable{PolicyTable: &stopgapv1.PolicyTable{}}, Expires: h.Expires, ExpiresFirst: h.ExpiresFirst, Source: h.Source}
	if p.Version == 0 {
		return p
	}
	if t, err := mitigation.ParsePolicyTable(tufpolicy.PolicyName, h.Documents[tufpolicy.PolicyName]); err == nil {
		p.Table = t
	} else {
		p.Version = 0 // as if none were held: nothing is applied, and nothing removed
	}
	for path, content := range h.Documents {
		if path == mitigation.FixedBuildsName {
			if fb, err := mitigation.ParseFixedBuilds(path, content); err != nil {
				p.FixedError = err
			} else {
				p.Fixed = fb.Table
			}
			continue
		}
		id, number, ok := tufpolicy.ParsePath(path)
		rev, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil || !p.Table.Allows(id, uint32(rev)) {
			continue
		}
		p.add(id, uint32(rev), path, content)
	}
	// Allowed, and its document is not there: it counts as there and unreadable, because what is allowed is not removed.
	for _, m := range p.Table.GetMitigations() {
		for _, r := range m.GetRevisions() {
			if p.Revisions[m.GetId()][r] == nil {
				p.put(m.GetId(), r, &Revision{Err: errors.New("its document is missing in the signed policy")})
			}
		}
	}
	return p
}

func (p *Policy) add(id string, rev uint32, path string, content []byte) {
	r := &Revision{SHA256: sha256.Sum256(content)}
	r.Document, r.Err = mitigation.Parse(path, content)
	if r.Err == nil && (r.Document.GetId() != id || r.Document.GetRevision() != rev) {
		r.Err = fmt.Errorf("%s says it is %s", path, r.Document.Ref())
		r.Document = nil
	}
	p.put(id, rev, r)
}

func (p *Policy) put(id string, rev uint32, r *Revision) {
	if p.Revisions[id] == nil {
		p.Revisions[id] = map[uint32]*Revision{}
	}
	p.Revisions[id][rev] = r
}
