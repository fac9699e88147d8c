package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
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

// with is the context of a call with a client certificate; nil: none.
func with(ctx context.Context, c *x509.Certificate) context.Context {
	st := tls.ConnectionState{HandshakeComplete: true}
	if c != nil {
		st.PeerCertificates = []*x509.Certificate{c}
	}
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: st}})
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

func TestEveryMethodSaysWhoMayCallItHowOftenHowLargeAndWhetherItIsAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := NewGate(w.ca, w.reg, hclog.NewNullLogger())
	_, agentCert := w.agent(time.Now())
	_, otherCert := w.agent(time.Now())
	_, expired := w.agent(time.Now().Add(-DefaultAgentLife - 24*time.Hour))
	revokedID, revoked := w.agent(time.Now())
	if err := w.reg.Revoke(t.Context(), revokedID, "admin", "stolen"); err != nil {
		t.Fatal(err)
	}
	foreign := newWorld(t)
	foreign.ca.Fleet = "elsewhere"
	callers := map[string]struct {
		cert *x509.Certificate
		kind trust.Kind // "" may call nothing
	}{
		"nobody": {nil, KindNobody}, "an agent": {agentCert, trust.KindAgent}, "another agent": {otherCert, trust.KindAgent},
		"a revoked agent": {revoked, ""}, "a viewer": {w.person(trust.KindViewer), trust.KindViewer},
		"an operator": {w.person(trust.KindOperator), trust.KindOperator}, "an admin": {w.person(trust.KindAdmin), trust.KindAdmin},
		"an admin of another fleet": {foreign.person(trust.KindAdmin), ""},
	}
	changes := map[string]bool{"Publish": true, "SetRelease": true, "Recheck": true, "CreateToken": true, "RevokeToken": true, "RevokeAgent": true,
		"ReenrollAgent": true, "Enroll": true, "RenewCertificate": true, "StartRollout": true, "ActOnRollout": true, "SetStrategy": true, "SetSwitch": true}
	seen := 0
	for _, file := range []protoreflect.FileDescriptor{stopgapv1.File_stopgap_v1_agent_proto, stopgapv1.File_stopgap_v1_fleet_proto} {
		for i := range file.Services().Len() {
			svc := file.Services().Get(i)
			for j := range svc.Methods().Len() {
				seen++
				name := string(svc.Methods().Get(j).Name())
				full := fmt.Sprintf("/%s/%s", svc.FullName(), name)
				r, ok := methods[full]
				if !ok {
					t.Errorf("%s: nobody said who may call it", full)
					continue
				}
				if len(r.callers) == 0 || r.maxRequest <= 0 || r.maxRequest > large || (r.rate.burst < 1 || r.rate.every <= 0) && r.rate != noLimit {
					t.Errorf("%s declares %+v", full, r)
				}
				if r.audited != changes[name] {
					t.Errorf("%s: audited is %v; what changes something is", full, r.audited)
				}
				for who, c := range callers {
					_, err := gate.Authorize(with(t.Context(), c.cert), full)
					if allowed := slices.Contains(r.callers, c.kind); allowed != (err == nil) {
						t.Errorf("%s by %s: %v", full, who, err)
					}
					if code := status.Code(err); err != nil && code != codes.PermissionDenied && code != codes.Unauthenticated {
						t.Errorf("%s by %s: refused with %s", full, who, code)
					}
				}
				if _, err := gate.Authorize(with(t.Context(), expired), full); r.expired != (err == nil) {
					t.Errorf("%s with an expired certificate: %v", full, err)
				}
			}
		}
	}
	if seen != len(methods) {
		t.Errorf("%d methods, %d entries", seen, len(methods))
	}
	if _, err := gate.Authorize(with(t.Context(), callers["an admin"].cert), "/stopgap.v1.FleetService/Nothing"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unknown method: %v", err)
	}
	if _, err := gate.Authorize(peer.NewContext(t.Context(), &peer.Peer{}), stopgapv1.FleetService_ListAgents_FullMethodName); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without TLS: %v", err)
	}
}

func TestRatesAreOfOneCallerAndAnotherDoesNotNotice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := NewGate(w.ca, w.reg, hclog.NewNullLogger())
	_, loud := w.agent(time.Now())
	_, quiet := w.agent(time.Now())
	const method = stopgapv1.AgentService_Connect_FullMethodName
	refused := false
	for range methods[method].rate.burst + 1 {
		_, err := gate.Authorize(with(t.Context(), loud), method)
		refused = refused || status.Code(err) == codes.ResourceExhausted
	}
	if !refused {
		t.Error("there is no limit")
	}
	if _, err := gate.Authorize(with(t.Context(), quiet), method); err != nil {
		t.Errorf("another agent: %v", err)
	}
	big := &stopgapv1.RenewCertificateRequest{Csr: make([]byte, 9<<10)}
	if err := tooLarge(stopgapv1.AgentService_RenewCertificate_FullMethodName, big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large request: %v", err)
	}
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
