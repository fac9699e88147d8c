package identity

import (
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// world is a fleet's CA with its registry.
type world struct {
	t   *testing.T
	dir string
	ca  *Authority
	reg *Registry
	log *audit.Log
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "data")}
	if _, err := Init(w.dir, "lab", []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	if w.ca, err = Load(w.dir, Files{}); err != nil {
		t.Fatal(err)
	}
	if w.log, err = audit.Load(t.Context(), st, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	if w.reg, err = LoadRegistry(t.Context(), w.ca, st, w.log); err != nil {
		t.Fatal(err)
	}
	return w
}

// agent is an enrolled agent whose certificate was issued at a time.
func (w *world) agent(at time.Time) (string, *x509.Certificate) {
	w.t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := trust.AgentID(key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.ca.issueAgent(&key.PublicKey, id, "EX01", at)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.reg.Seen(w.t.Context(), id, "EX01", "m-"+id, c); err != nil {
		w.t.Fatal(err)
	}
	return id, c
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

func TestInitRefusesADirectoryThatHoldsAFleet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(w.dir, "lab", []string{"localhost"}); err == nil {
		t.Fatal("initialised twice")
	}
	if _, err := Load(t.TempDir(), Files{}); err == nil {
		t.Fatal("loaded nothing")
	}
}
