package policy

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Store keeps the held policy: the journal.
type Store interface {
	HeldPolicy(v any) error
	PutPolicy(v any) error
}

// Load reads the policy that a store holds and brings it together with the trust anchor beside it. warnings are by health code.
func Load(stateDir string, s Store) (held Held, warnings map[string]string, err error) {
	warnings = map[string]string{}
	if err := s.HeldPolicy(&held); err != nil {
		return held, warnings, err
	}
	anchor, err := ReadAnchor(stateDir)
	if err != nil {
		return held, warnings, err
	}
	held, lacked, err := Restore(held, anchor)
	if err != nil {
		return held, warnings, err
	}
	if lacked {
		warnings["trust-restored"] = "the journal knew an older policy root or no policy; root and version floor were taken from " + AnchorFile
	}
	if len(held.Root) == 0 {
		warnings[CodeNoRoot] = "no policy root is trusted: no policy can be accepted, and nothing is removed; enrol (again), or apply a " +
			"bundle with its pin"
	}
	if !anchor.Replace && !anchor.Fresh {
		if len(held.Root) > 0 && (string(anchor.Root) != string(held.Root) || anchor.Floor != held.Floor) { // a crash came between the two files
			anchor.Root, anchor.Floor = held.Root, held.Floor
			return held, warnings, anchor.Write(stateDir)
		}
		return held, warnings, nil
	}
	if err := s.PutPolicy(held); err != nil {
		return held, warnings, err
	}
	anchor.Replace, anchor.Fresh = false, false
	return held, warnings, anchor.Write(stateDir)
}

// CodeNoRoot is the health code of an agent that trusts no policy root.
const CodeNoRoot = "no-root"

// maxRefusal bounds the reason of a refusal, in bytes: it is kept, shown and sent.
const maxRefusal = 1 << 10

// Refused explains why a policy update was not accepted. The policy from before stays in force.
type Refused struct {
	// Timestamp version of the update; 0 when it could not be decoded.
	Timestamp uint64
	// Permanent: the same update would be refused again. Otherwise it may be accepted when everything is sent.
	Permanent bool
	Err       error
}

// Error is the reason, of at most 1 KiB.
func (r *Refused) Error() string { return bounded.Text(r.Err.Error(), maxRefusal) }

// Unwrap gives the cause.
func (r *Refused) Unwrap() error { return r.Err }

// Keeper owns the policy that a running agent holds: in its store, in the anchor beside it, and parsed. It is safe for concurrent
// use; updates come one after the other.
type Keeper struct {
	stateDir string
	store    Store
	log      hclog.Logger
	parsed   atomic.Pointer[Policy]

	mu   sync.Mutex
	held Held
	full bool // what was left out of an update is not held here: ask for everything
}

// NewKeeper loads the policy of a state directory.
func NewKeeper(stateDir string, s Store, log hclog.Logger) (k *Keeper, warnings map[string]string, err error) {
	k = &Keeper{stateDir: stateDir, store: s, log: log}
	if k.held, warnings, err = Load(stateDir, s); err != nil {
		return nil, warnings, err
	}
	k.parsed.Store(Parse(k.held))
	return k, warnings, nil
}

// Policy is the held policy, parsed.
func (k *Keeper) Policy() *Policy { return k.parsed.Load() }

// Held is the held policy as it is kept.
func (k *Keeper) Held() Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held
}

// Claimed is what to tell the controller that is held: no targets at all after an update that left out what is not held here.
func (k *Keeper) Claimed() Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	held := k.held
	if k.full {
		held.Versions.Targets = 0
	}
	return held
}

// Take verifies an encoded PolicyUpdate and stores the policy in it. changed is false if the agent has that policy already. If the
// update is refused, the policy from before stays, and a permanent refusal is stored with it.
func (k *Keeper) Take(data []byte, now time.Time) (before, after Held, changed bool, refused *Refused) {
	before = k.Held()
	u, err := Decode(data)
	next := before
	if err == nil {
		next, err = Accept(before, u, now)
	}
	if errors.Is(err, ErrUnchanged) {
		return before, before, false, nil
	}
	if err == nil {
		// Parsed before it is kept: reading it must not be what breaks the next start.
		parsed := Parse(next)
		if err = k.keep(before, next); err == nil {
			k.parsed.Store(parsed)
			k.mu.Lock()
			k.held, k.full = next, false
			k.mu.Unlock()
			return before, next, true, nil
		}
	}
	return before, before, false, k.refuse(before, u.GetTimestampVersion(), err, now)
}

// refuse remembers that an update was refused.
func (k *Keeper) refuse(held Held, timestamp uint64, err error, now time.Time) *Refused {
	var ref *tufpolicy.Refusal
	r := &Refused{Timestamp: timestamp, Permanent: errors.As(err, &ref) && !ref.Retry || errors.Is(err, tufpolicy.ErrNoRoot), Err: err}
	if !r.Permanent {
		k.mu.Lock()
		k.full = true
		k.mu.Unlock()
		return r
	}
	held.Attempted, held.AttemptedError, held.RefusedAt = timestamp, r.Error(), now
	k.mu.Lock()
	k.held = held
	k.mu.Unlock()
	if perr := k.store.PutPolicy(held); perr != nil {
		k.log.Error("the refusal could not be kept", "error", perr)
	}
	return r
}

// keep writes an accepted policy: into the store in one transaction, and then root and floor beside it, where they changed.
func (k *Keeper) keep(before, next Held) error {
	if err := k.store.PutPolicy(next); err != nil {
		return err
	}
	if next.Versions.Root == before.Versions.Root && next.Floor == before.Floor && before.Versions.Targets > 0 {
		return nil
	}
	anchor, err := ReadAnchor(k.stateDir)
	if err == nil {
		if anchor.Replace { // somebody enrolled with --new-root beside this agent: the next start obeys that
			return nil
		}
		anchor.Root, anchor.Floor = next.Root, max(anchor.Floor, next.Floor)
		err = anchor.Write(k.stateDir)
	}
	if err != nil { // the store has it; the next change tries again
		k.log.Error("the trust anchor could not be written", "error", err)
	}
	return nil
}

// staleAfter is when a policy whose timestamp was not renewed is worth a warning: two pulls late.
const staleAfter = 2*time.Hour + 20*time.Minute

// Health warns of a policy that ended, or that nobody has confirmed to be the newest for a while, and of a refused update.
func (h Held) Health(now time.Time) []*stopgapv1.Health {
	var out []*stopgapv1.Health
	add := func(code string, since time.Time, format string, args ...any) {
		out = append(out, &stopgapv1.Health{Code: code, Since: timestamppb.New(since), Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case h.Versions.Targets == 0:
	case now.After(h.Expires):
		add("policy-expired", h.Expires, "the signed policy ended on %s (%s); what is applied stays and is repaired, nothing new is applied",
			h.Expires.Format(time.RFC3339), h.ExpiresFirst)
	case h.Source == SourceBundle: // whoever brought it vouches for its being the newest
	case now.Sub(h.AcceptedAt) > staleAfter:
		add("policy-stale", h.AcceptedAt.Add(staleAfter), "nobody has confirmed since %s that the policy held (version %d) is the newest",
			h.AcceptedAt.Format(time.RFC3339), h.Versions.Targets)
	}
	if h.AttemptedError != "" {
		add("policy-refused", h.RefusedAt, "%s", h.AttemptedError)
	}
	return out
}
