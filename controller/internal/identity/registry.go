package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	kAgent = "identity/agent/"
	kToken = "identity/token/"
	// Bounds.
	maxCSR       = 4 << 10
	maxTokens    = 10_000
	maxLabels    = 16
	maxLabel     = 63
	minTokenTTL  = time.Minute
	maxTokenTTL  = 30 * 24 * time.Hour
	maxTokenUses = 10_000
	maxMachine   = 256
	// enrolAgain bounds how often one machine enrols: enrolBurst times, then once in that time. An agent in a loop must not
	// fill the inventory.
	enrolAgain = 2 * time.Minute
	enrolBurst = 5
	// refusals bounds what bad tokens can write into the audit log.
	refusalsPerSecond = 1
	refusalsBurst     = 50
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

// Token is an enrolment token as it is kept: never its secret.
type Token struct {
	Hash      string            `json:"hash"`
	Expires   time.Time         `json:"expires"`
	UsesLeft  int               `json:"usesLeft"`
	Labels    map[string]string `json:"labels,omitempty"`
	AgentID   string            `json:"agentId,omitempty"`
	CreatedBy string            `json:"createdBy"`
}

// ID names a token to people.
func (t Token) ID() string { return t.Hash[:12] }

// Registry is the agents' records and the tokens. It is safe for concurrent use.
type Registry struct {
	ca    *Authority
	st    store.Store
	audit *audit.Log

	// change is held over reading a record, deciding, and writing it: a renewal must not bring back what a revocation took.
	change sync.Mutex

	mu       sync.RWMutex
	agents   map[string]Record
	enrol    map[string]*rate.Limiter // by token and machine
	refusals *rate.Limiter
	// changed is called, outside the lock, after an agent was revoked or ordered to enrol again.
	changed func(id string, reason error)
}

// LoadRegistry reads the records.
func LoadRegistry(ctx context.Context, ca *Authority, st store.Store, log *audit.Log) (*Registry, error) {
	r := &Registry{ca: ca, st: st, audit: log, agents: map[string]Record{}, enrol: map[string]*rate.Limiter{},
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
	machine = machine[:min(len(machine), maxMachine)]
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

// parseRequest reads a certificate request and gives its key.
func parseRequest(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("%w: a certificate request of %d bytes, limit %d", ErrRequest, len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate request can't be read", ErrRequest)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the certificate request is not for an ECDSA P-256 key", ErrRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: the certificate request is not signed by its key", ErrRequest)
	}
	return pub, nil
}

// Enrollment is a successful enrolment.
type Enrollment struct {
	ID   string
	Cert *x509.Certificate
}

// Enroll exchanges a token's secret for a certificate. Errors: ErrToken, ErrRequest, ErrTooOften.
func (r *Registry) Enroll(ctx context.Context, secret, csr []byte, name, machine string) (Enrollment, error) {
	sum := sha256.Sum256(secret)
	hash := hex.EncodeToString(sum[:])
	r.change.Lock()
	e, bound, err := r.enroll(ctx, hash, csr, name, machine)
	r.change.Unlock()
	if errors.Is(err, ErrToken) && r.refusals.Allow() {
		r.audit.Append(ctx, "nobody", "enroll-refused", name, "a token that is not valid (hash %s)", hash[:12])
	} else if err != nil {
		r.audit.Append(ctx, "token "+hash[:12], "enroll-refused", name, "%v", err)
	}
	if bound {
		r.changed(e.ID, ErrKey) // whoever still speaks with the key before
	}
	return e, err
}

// token gives a token that can be used, by its hash. Errors: ErrToken.
func (r *Registry) token(ctx context.Context, hash string) (t Token, revision int64, err error) {
	kv, err := r.st.Get(ctx, kToken+hash)
	if errors.Is(err, store.ErrNotFound) {
		return t, 0, ErrToken
	}
	if err != nil {
		return t, 0, err
	}
	if err := json.Unmarshal(kv.Value, &t); err != nil {
		return t, 0, err
	}
	if time.Now().After(t.Expires) || t.UsesLeft < 1 {
		return t, 0, ErrToken
	}
	return t, kv.Revision, nil
}

// enroll is Enroll under the lock; bound says that the id had a key before.
func (r *Registry) enroll(ctx context.Context, hash string, csr []byte, name, machine string) (e Enrollment, bound bool, err error) {
	// The token first: without one nobody gets to have a signature checked.
	t, revision, err := r.token(ctx, hash)
	if err != nil {
		return e, false, err
	}
	pub, err := parseRequest(csr)
	if err != nil {
		return e, false, err
	}
	if !agentLabel.MatchString(name) || len(machine) > maxMachine {
		return e, false, fmt.Errorf("%w: a name of 1 to 63 letters, digits, dots, dashes is needed, and a machine id of at most %d bytes", ErrRequest, maxMachine)
	}
	own, err := trust.AgentID(pub)
	if err != nil {
		return e, false, err
	}
	// A machine that names itself has a limit of its own; those that don't are told apart by their keys.
	if !r.mayEnrol(hash + "/" + or(machine, own)) {
		return e, false, fmt.Errorf("%w: this machine enrolled %d times; once in %s from now on", ErrTooOften, enrolBurst, enrolAgain)
	}
	id, now := or(t.AgentID, own), time.Now()
	cert, err := r.ca.issueAgent(pub, id, name, now)
	if err != nil {
		return e, false, err
	}
	rec := Record{ID: id, Name: name, Key: keyHash(cert), Labels: t.Labels, MachineID: machine, NotAfter: cert.NotAfter, Issuer: r.ca.Issuer(cert), EnrolledAt: now}
	switch old, known := r.Get(id); {
	case known && old.Revoked != "":
		return e, false, fmt.Errorf("%w: %s", ErrRevoked, old.Revoked) // neither a key nor a bound token of before comes back
	case known && t.AgentID != "":
		rec.Labels, bound = old.Labels, true
	case known && old.Key != rec.Key:
		return e, false, fmt.Errorf("%w: this key was taken from its agent; make a new one", ErrKey)
	}
	op := store.Op{Key: kToken + hash, Delete: true}
	if t.UsesLeft--; t.UsesLeft > 0 {
		raw, err := json.Marshal(t)
		if err != nil {
			return e, false, err
		}
		op = store.Op{Key: kToken + hash, Value: raw}
	}
	if err := r.put(ctx, rec, []store.Compare{{Key: kToken + hash, Revision: revision}}, []store.Op{op}); err != nil {
		return e, false, err
	}
	r.audit.Append(ctx, "token "+t.ID(), "enroll", id, "%s, machine %s, %d uses left", name, or(machine, "unknown"), t.UsesLeft)
	return Enrollment{id, cert}, bound, nil
}

// maxLimiters bounds the limiters kept: four methods of 50,000 agents.
const maxLimiters = 200_000

// sweep forgets limiters that hold nobody back, when there are too many.
func sweep(ls map[string]*rate.Limiter) {
	if len(ls) < maxLimiters {
		return
	}
	for k, l := range ls {
		if l.Burst() <= int(l.Tokens()) {
			delete(ls, k)
		}
	}
	if len(ls) >= maxLimiters { // under attack from as many callers: begin again rather than grow
		clear(ls)
	}
}

func (r *Registry) mayEnrol(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.enrol[key]
	if l == nil {
		sweep(r.enrol)
		l = rate.NewLimiter(rate.Every(enrolAgain), enrolBurst)
		r.enrol[key] = l
	}
	return l.Allow()
}

// Renew gives a fresh certificate for the key of an agent's present one. Errors: ErrRequest, ErrRevoked, ErrKey.
func (r *Registry) Renew(ctx context.Context, id string, present *x509.Certificate, csr []byte) (*x509.Certificate, error) {
	pub, err := parseRequest(csr)
	if err != nil {
		return nil, err
	}
	if had, ok := present.PublicKey.(*ecdsa.PublicKey); !ok || !had.Equal(pub) {
		return nil, fmt.Errorf("%w: the certificate request is for another key than the certificate", ErrRequest)
	}
	r.change.Lock()
	defer r.change.Unlock()
	if err := r.Check(id, present); err != nil {
		return nil, err
	}
	rec, ok := r.Get(id)
	if !ok {
		rec = Record{ID: id, Name: present.Subject.CommonName, Key: keyHash(present), EnrolledAt: present.NotBefore}
	}
	cert, err := r.ca.issueAgent(pub, id, present.Subject.CommonName, time.Now())
	if err != nil {
		return nil, err
	}
	rec.NotAfter, rec.Issuer = cert.NotAfter, r.ca.Issuer(cert)
	if err := r.put(ctx, rec, nil, nil); err != nil {
		return nil, err
	}
	r.audit.Append(ctx, "agent "+id, "renew", id, "until %s", cert.NotAfter.Format(time.RFC3339))
	return cert, nil
}

// boundTokens are the deletions of every token that is bound to an agent: the last word about it is the one that counts.
func (r *Registry) boundTokens(ctx context.Context, id string) ([]store.Op, error) {
	all, err := r.Tokens(ctx)
	var ops []store.Op
	for _, t := range all {
		if t.AgentID == id {
			ops = append(ops, store.Op{Key: kToken + t.Hash, Delete: true})
		}
	}
	return ops, err
}

// Revoke refuses an agent from now on, and takes back tokens that are bound to it.
func (r *Registry) Revoke(ctx context.Context, id, by, reason string) error {
	rec, err := r.take(ctx, id, func(rec *Record) {
		rec.Revoked = fmt.Sprintf("since %s by %s: %s", time.Now().UTC().Format(time.RFC3339), by, or(reason, "no reason given"))
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
func (r *Registry) Reenroll(ctx context.Context, id, by string, ttl time.Duration, root [32]byte, floor uint64) (trust.Token, error) {
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
	t, _, err := r.CreateToken(ctx, Token{AgentID: id, UsesLeft: 1, CreatedBy: by}, ttl, root, floor)
	if err != nil {
		return t, err
	}
	r.audit.Append(ctx, by, "agent-reenroll", id, "its key is refused; a token bound to it was made")
	return t, nil
}

var labelKey = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CreateToken makes a token. Errors: ErrRequest.
func (r *Registry) CreateToken(ctx context.Context, t Token, ttl time.Duration, root [32]byte, floor uint64) (trust.Token, Token, error) {
	switch {
	case ttl < minTokenTTL || ttl > maxTokenTTL:
		return trust.Token{}, t, fmt.Errorf("%w: a token lives %s to %s, not %s", ErrRequest, minTokenTTL, maxTokenTTL, ttl)
	case t.UsesLeft < 1 || t.UsesLeft > maxTokenUses:
		return trust.Token{}, t, fmt.Errorf("%w: a token is used 1 to %d times, not %d", ErrRequest, maxTokenUses, t.UsesLeft)
	case len(t.Labels) > maxLabels:
		return trust.Token{}, t, fmt.Errorf("%w: %d labels, limit %d", ErrRequest, len(t.Labels), maxLabels)
	}
	for k, v := range t.Labels {
		if !labelKey.MatchString(k) || len(v) > maxLabel || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return trust.Token{}, t, fmt.Errorf("%w: label %.70q=%.70q: a key is lower-case letters, digits, dots, dashes, a value at most %d bytes", ErrRequest, k, v, maxLabel)
		}
	}
	have, err := r.Tokens(ctx)
	if err != nil {
		return trust.Token{}, t, err
	}
	if len(have) >= maxTokens {
		return trust.Token{}, t, fmt.Errorf("%w: %d tokens are the limit", ErrRequest, maxTokens)
	}
	secret, err := trust.NewToken(r.ca.TokenCA(), root, floor)
	if err != nil {
		return secret, t, err
	}
	sum := sha256.Sum256(secret.Secret[:])
	t.Hash, t.Expires = hex.EncodeToString(sum[:]), time.Now().Add(ttl).UTC()
	raw, err := json.Marshal(t)
	if err != nil {
		return secret, t, err
	}
	if _, err := r.st.Txn(ctx, nil, []store.Op{{Key: kToken + t.Hash, Value: raw}}); err != nil {
		return secret, t, err
	}
	r.audit.Append(ctx, t.CreatedBy, "token-create", t.ID(), "%d uses until %s, labels %v, agent %s", t.UsesLeft, t.Expires.Format(time.RFC3339), t.Labels, or(t.AgentID, "new"))
	return secret, t, nil
}

// Tokens lists the tokens that can still be used, by end, and forgets those that can't.
func (r *Registry) Tokens(ctx context.Context) ([]Token, error) {
	kvs, _, err := r.st.List(ctx, kToken)
	if err != nil {
		return nil, err
	}
	var out []Token
	var gone []store.Op
	for _, kv := range kvs {
		var t Token
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			return nil, fmt.Errorf("identity: %s: %w", kv.Key, err)
		}
		if time.Now().After(t.Expires) {
			gone = append(gone, store.Op{Key: kv.Key, Delete: true})
			continue
		}
		out = append(out, t)
	}
	if len(gone) > 0 {
		if _, err := r.st.Txn(ctx, nil, gone); err != nil {
			return nil, err
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Expires.Before(out[j].Expires) })
	return out, nil
}

// RevokeToken takes a token back.
func (r *Registry) RevokeToken(ctx context.Context, id, by string) error {
	all, err := r.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.ID() == id {
			if _, err := r.st.Txn(ctx, nil, []store.Op{{Key: kToken + t.Hash, Delete: true}}); err != nil {
				return err
			}
			r.audit.Append(ctx, by, "token-revoke", id, "%d uses were left", t.UsesLeft)
			return nil
		}
	}
	return fmt.Errorf("%w: token %q", ErrUnknown, id)
}

func parsePEM(data []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(bytes.TrimSpace(data))
	if b == nil {
		return nil, errors.New("identity: no PEM certificate")
	}
	return x509.ParseCertificate(b.Bytes)
}
