package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/identity"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// world is a fleet with its CA, its registry and its gate.
type world struct {
	t     *testing.T
	ca    *identity.Authority
	reg   *identity.Registry
	audit *audit.Log
	gate  *Gate
}

func newWorld(t *testing.T, before ...Authenticator) *world {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := identity.Init(dir, "lab", []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := &world{t: t}
	if w.ca, err = identity.Load(dir, identity.Files{}); err != nil {
		t.Fatal(err)
	}
	if w.audit, err = audit.Load(t.Context(), st, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	if w.reg, err = identity.LoadRegistry(t.Context(), w.ca, st, w.audit); err != nil {
		t.Fatal(err)
	}
	w.gate = New(Config{Fleet: w.ca.Fleet, Authenticators: append(before, Certificates{}), CheckAgent: w.reg.Check, Grace: identity.Grace,
		Audit: w.audit, Logger: hclog.NewNullLogger()})
	return w
}

// with is the context of a call with a client certificate; nil: none.
func with(ctx context.Context, c *x509.Certificate) context.Context {
	st := tls.ConnectionState{HandshakeComplete: true}
	if c != nil {
		st.PeerCertificates = []*x509.Certificate{c}
	}
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: st}})
}

// agent enrols an agent whose certificate ends after life.
func (w *world) agent(life time.Duration) (string, *x509.Certificate) {
	w.t.Helper()
	w.ca.AgentLife = life
	token, _, err := w.reg.CreateToken(w.t.Context(), audit.Controller, identity.Token{UsesLeft: 1}, time.Hour, [32]byte{}, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := trust.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	csr, err := trust.NewRequest(key)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := w.reg.Enroll(w.t.Context(), token.Secret[:], csr, "EX01", "")
	if err != nil {
		w.t.Fatal(err)
	}
	return e.ID, e.Cert
}

func (w *world) person(kind trust.Kind) *x509.Certificate {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), string(kind))
	if err := w.ca.IssueOperator(dir, string(kind), kind); err != nil {
		w.t.Fatal(err)
	}
	c, err := trust.LoadCredentials(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Cert.Leaf
}
