package identity

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/limit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	kAgent     = "identity/agent/"
	maxMachine = 256
)

// Errors that callers branch on.
var (
	// ErrToken: no such token, or it is used up, over, or taken back; which one is not said.
	ErrToken = errors.New("the enrolment token is not valid: never made, used up, expired or taken back")
	// ErrRevoked: the agent was revoked.
	ErrRevoked = errors.New("revoked")
	// ErrKey: the certificate is not for the key on record.
	ErrKey = errors.New("the certificate is not for the key on record; this agent has to enrol again")
	// ErrTooOften: a rate limit.
	ErrTooOften = errors.New("too often")
	// ErrRequest: what was sent is malformed.
	ErrRequest = errors.New("malformed")
	// ErrUnknown: no such agent or token.
	ErrUnknown = errors.New("not known")
	// ErrMachine: the identity belongs to another machine.
	ErrMachine = errors.New("this identity was enrolled on another machine")
)

// Record is what is known of one agent's identity.
type Record struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Key is the SHA-256 of the SubjectPublicKeyInfo its certificates must be for, hex; empty after an order to enrol again.
	Key       string            `json:"key"`
	Labels    map[string]string `json:"labels,omitempty"`
	MachineID string            `json:"machineId,omitempty"`
	NotAfter  time.Time         `json:"notAfter"`
	// Issuer is the CA of its last certificate.
	Issuer     string    `json:"issuer"`
	EnrolledAt time.Time `json:"enrolledAt"`
	// Revoked says since when, by whom and why; empty when it is not.
	Revoked string `json:"revoked,omitempty"`
}

// Registry is the agents' records and the tokens. It is safe for concurrent use.
type Registry struct {
	ca    *Authority
	st    store.Store
	audit *audit.Log

	// change is held over reading a record, deciding, and writing it: a renewal must not bring back what a revocation took.
	change sync.Mutex

	mu       sync.RWMutex
	agents   map[string]Record
	enrol    *limit.Keyed // by token and machine
	refusals *rate.Limiter
	// changed is called, outside the lock, after an agent was revoked or ordered to enrol again.
	changed func(id string, reason error)
}

// LoadRegistry reads the records.
func LoadRegistry(ctx context.Context, ca *Authority, st store.Store, log *audit.Log) (*Registry, error) {
	r := &Registry{ca: ca, st: st, audit: log, agents: map[string]Record{}, enrol: limit.NewKeyed(maxEnrolling),
		refusals: rate.NewLimiter(refusalsPerSecond, refusalsBurst), changed: func(string, error) {}}
	kvs, _, err := st.List(ctx, kAgent)
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		var rec Record
		if err := json.Unmarshal(kv.Value, &rec); err != nil {
			return nil, fmt.Errorf("identity: %s: %w", kv.Key, err)
		}
		r.agents[rec.ID] = rec
	}
	return r, nil
}

// OnRevoke sets what is called after an agent was revoked; before anything is served.
func (r *Registry) OnRevoke(f func(id string, reason error)) { r.changed = f }

// Get gives an agent's record.
func (r *Registry) Get(id string) (Record, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.agents[id]
	return rec, ok
}

// OfOtherCA lists agents whose last certificate was not issued by the present CA.
func (r *Registry) OfOtherCA() []string {
	want := fmt.Sprintf("%x", r.ca.Fingerprint())
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []string
	for id, rec := range r.agents {
		if rec.Issuer != want && rec.Revoked == "" && rec.Key != "" {
			out = append(out, id)
		}
	}
	sort.Strings(out)
	return out
}

// OfOldCA says whether an agent's last certificate is of a CA that is being replaced.
func (r *Registry) OfOldCA(id string) bool {
	rec, ok := r.Get(id)
	return ok && len(r.ca.certs) > 1 && rec.Issuer != fmt.Sprintf("%x", r.ca.Fingerprint())
}

func keyHash(c *x509.Certificate) string { return fmt.Sprintf("%x", trust.KeyFingerprint(c)) }

// Check says whether an agent's certificate, whose chain was verified, may be used. An agent that is not on record is: the
// CA's signature proves that it was enrolled, and a controller restored from a backup may not remember.
func (r *Registry) Check(id string, c *x509.Certificate) error {
	rec, ok := r.Get(id)
	switch {
	case !ok:
		return nil
	case rec.Revoked != "":
		return fmt.Errorf("%w: %s", ErrRevoked, rec.Revoked)
	case rec.Key != keyHash(c):
		return ErrKey
	}
	return nil
}

// Seen ties an agent to its machine the first time and makes a record of one that had none. ErrMachine: it speaks from
// another machine than it was enrolled on.
func (r *Registry) Seen(ctx context.Context, id, name, machine string, c *x509.Certificate) error {
	r.change.Lock()
	defer r.change.Unlock()
	rec, ok := r.Get(id)
	machine = bounded.Text(machine, maxMachine)
	switch {
	case ok && rec.MachineID != "" && machine != "" && rec.MachineID != machine:
		return fmt.Errorf("%w (%s, now %s)", ErrMachine, rec.MachineID, machine)
	case ok && (rec.MachineID != "" || machine == ""):
		return nil
	}
	if !ok {
		rec = Record{ID: id, Name: name, Key: keyHash(c), NotAfter: c.NotAfter, Issuer: r.ca.Issuer(c), EnrolledAt: c.NotBefore}
	}
	rec.MachineID = machine
	return r.put(ctx, rec, nil, nil)
}

// put writes a record, and what else belongs to the same change.
func (r *Registry) put(ctx context.Context, rec Record, compare []store.Compare, ops []store.Op) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if _, err := r.st.Txn(ctx, compare, append(ops, store.Op{Key: kAgent + rec.ID, Value: raw})); err != nil {
		return err
	}
	r.mu.Lock()
	r.agents[rec.ID] = rec
	r.mu.Unlock()
	return nil
}

// Revoke refuses an agent from now on, and takes back tokens that are bound to it.
func (r *Registry) Revoke(ctx context.Context, id string, by audit.Actor, reason string) error {
	rec, err := r.take(ctx, id, func(rec *Record) {
		rec.Revoked = Revocation{At: time.Now().UTC(), By: by, Reason: or(reason, "no reason given")}.String()
	})
	if err != nil {
		return err
	}
	r.audit.Append(ctx, by, "agent-revoke", id, "%s", or(reason, "no reason given"))
	r.changed(id, fmt.Errorf("%w: %s", ErrRevoked, rec.Revoked))
	return nil
}

// take changes an agent's record and drops its tokens, in one transaction.
func (r *Registry) take(ctx context.Context, id string, change func(*Record)) (Record, error) {
	r.change.Lock()
	defer r.change.Unlock()
	rec, ok := r.Get(id)
	if !ok {
		rec = Record{ID: id}
	}
	change(&rec)
	ops, err := r.boundTokens(ctx, id)
	if err != nil {
		return rec, err
	}
	return rec, r.put(ctx, rec, nil, ops)
}

// Reenroll refuses an agent's present key and makes a token bound to its id; earlier ones that were are taken back.
func (r *Registry) Reenroll(ctx context.Context, id string, by audit.Actor, ttl time.Duration, root [32]byte,
	floor uint64) (trust.Token, error) {
	if _, ok := r.Get(id); !ok {
		return trust.Token{}, fmt.Errorf("%w: agent %s", ErrUnknown, id)
	}
	if ttl < minTokenTTL || ttl > maxTokenTTL { // before anything is taken from the agent
		return trust.Token{}, fmt.Errorf("%w: a token lives %s to %s, not %s", ErrRequest, minTokenTTL, maxTokenTTL, ttl)
	}
	if _, err := r.take(ctx, id, func(rec *Record) { rec.Key, rec.MachineID, rec.Revoked = "", "", "" }); err != nil {
		return trust.Token{}, err
	}
	r.changed(id, ErrKey)
	t, _, err := r.CreateToken(ctx, by, Token{AgentID: id, UsesLeft: 1}, ttl, root, floor)
	if err != nil {
		return t, err
	}
	r.audit.Append(ctx, by, "agent-reenroll", id, "its key is refused; a token bound to it was made")
	return t, nil
}

// ToStatus turns an error of this room into a status; nil when it is none of them.
func ToStatus(err error) error {
	for _, x := range []struct {
		err  error
		code codes.Code
	}{
		{ErrToken, codes.PermissionDenied}, {ErrRevoked, codes.PermissionDenied}, {ErrKey, codes.PermissionDenied},
		{ErrRequest, codes.InvalidArgument}, {ErrTooOften, codes.ResourceExhausted}, {ErrUnknown, codes.NotFound},
		{ErrMachine, codes.FailedPrecondition},
	} {
		if errors.Is(err, x.err) {
			st := status.New(x.code, err.Error())
			if x.code == codes.ResourceExhausted {
				if with, derr := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(enrolAgain)}); derr == nil {
					st = with
				}
			}
			return st.Err()
		}
	}
	return nil
}
