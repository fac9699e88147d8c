package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/limit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	maxCSR = 4 << 10
	// enrolAgain bounds how often one machine enrols: enrolBurst times, then once in that time. An agent in a loop must not
	// fill the inventory.
	enrolAgain = 2 * time.Minute
	enrolBurst = 5
	// maxEnrolling bounds how many machines that enrolled lately are remembered.
	maxEnrolling = 200_000
	// refusals bounds what bad tokens can write into the audit log.
	refusalsPerSecond = 1
	refusalsBurst     = 50
)

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
	switch {
	case errors.Is(err, ErrToken): // the hash is whatever a stranger sent: it must not be an actor with a bound of its own
		if r.refusals.Allow() {
			r.audit.Append(ctx, audit.Nobody, "enroll-refused", name, "a token that is not valid (hash %s)", hash[:12])
		}
	case err != nil:
		r.audit.Append(ctx, audit.Token(hash[:12]), "enroll-refused", name, "%v", err)
	}
	if bound {
		r.changed(e.ID, ErrKey) // whoever still speaks with the key before
	}
	return e, err
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
		return e, false, fmt.Errorf("%w: a name of 1 to 63 letters, digits, dots, dashes is needed, and a machine id of at most %d bytes",
			ErrRequest, maxMachine)
	}
	own, err := trust.AgentID(pub)
	if err != nil {
		return e, false, err
	}
	// A machine that names itself has a limit of its own; those that don't are told apart by their keys.
	if !r.enrol.Allow(hash+"/"+or(machine, own), limit.Rate{Every: enrolAgain, Burst: enrolBurst}) {
		return e, false, fmt.Errorf("%w: this machine enrolled %d times; once in %s from now on", ErrTooOften, enrolBurst, enrolAgain)
	}
	id, now := or(t.AgentID, own), time.Now()
	cert, err := r.ca.issueAgent(pub, id, name, now)
	if err != nil {
		return e, false, err
	}
	rec := Record{ID: id, Name: name, Key: keyHash(cert), Labels: t.Labels, MachineID: machine, NotAfter: cert.NotAfter,
		Issuer: r.ca.Issuer(cert), EnrolledAt: now}
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
	r.audit.Append(ctx, audit.Token(t.ID()), "enroll", id, "%s, machine %s, %d uses left", name, or(machine, "unknown"), t.UsesLeft)
	return Enrollment{id, cert}, bound, nil
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
	r.audit.Append(ctx, audit.Agent(id), "renew", id, "until %s", cert.NotAfter.Format(time.RFC3339))
	return cert, nil
}
