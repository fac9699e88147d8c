package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a controller as far as enrolment and renewal go. alter changes what it answers: a controller in the wrong hands.
type issuer struct {
	stopgapv1.UnimplementedEnrollmentServiceServer
	t     *testing.T
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	root  []byte
	life  time.Duration
	alter func(*stopgapv1.EnrollResponse)
	asked *stopgapv1.EnrollRequest
	ln    *bufconn.Listener
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{t: t, key: newKey(t), life: 24 * time.Hour, alter: func(*stopgapv1.EnrollResponse) {}}
	tmpl := template(time.Now(), 1000*time.Hour)
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	tmpl.Subject = pkix.Name{CommonName: "CA"}
	i.ca = tmpl
	i.ca = i.sign(tmpl, i.key.Public().(*ecdsa.PublicKey))
	return i
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func template(now time.Time, life time.Duration) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-trust.Backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature}
}

func (i *issuer) sign(tmpl *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.ca, pub, i.key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// agent issues an agent's certificate for a key.
func (i *issuer) agent(pub *ecdsa.PublicKey, id string) *x509.Certificate {
	tmpl := template(time.Now(), i.life)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	tmpl.URIs = []*url.URL{trust.Identity{Fleet: "lab", Kind: trust.KindAgent, ID: id}.URI()}
	return i.sign(tmpl, pub)
}

// answer is what a good controller says to an enrolment.
func (i *issuer) answer(pub *ecdsa.PublicKey) *stopgapv1.EnrollResponse {
	id, err := trust.AgentID(pub)
	if err != nil {
		panic(err)
	}
	return &stopgapv1.EnrollResponse{AgentId: id, Fleet: "lab", Root: i.root, Ca: [][]byte{i.ca.Raw}, Certificate: i.agent(pub, id).Raw}
}

// Enroll implements EnrollmentService.
func (i *issuer) Enroll(_ context.Context, r *stopgapv1.EnrollRequest) (*stopgapv1.EnrollResponse, error) {
	i.asked = r
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	resp := i.answer(csr.PublicKey.(*ecdsa.PublicKey))
	i.alter(resp)
	return resp, nil
}

// serve answers enrolments over TLS.
func (i *issuer) serve() {
	i.t.Helper()
	key := newKey(i.t)
	tmpl := template(time.Now(), time.Hour)
	tmpl.DNSNames, tmpl.ExtKeyUsage = []string{"controller"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf := i.sign(tmpl, key.Public().(*ecdsa.PublicKey))
	cert := tls.Certificate{Certificate: [][]byte{leaf.Raw, i.ca.Raw}, PrivateKey: key, Leaf: leaf}
	nobody := func(*x509.Certificate) error { return errors.New("nobody has one yet") }
	s := grpc.NewServer(transport.ServerOptions(trust.ServerTLS(cert, x509.NewCertPool(), nobody))...)
	stopgapv1.RegisterEnrollmentServiceServer(s, i)
	i.ln = bufconn.Listen(1 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(i.ln)
	}()
	i.t.Cleanup(func() { s.Stop(); <-done })
}

// dial replaces the network.
func (i *issuer) dial(ctx context.Context, _ string) (net.Conn, error) { return i.ln.DialContext(ctx) }

// root is the first root of a policy of its own.
func root(t *testing.T) []byte {
	t.Helper()
	var public []signkey.Public
	for _, role := range []string{signkey.RoleSnapshot, signkey.RoleTimestamp} {
		k, err := signkey.Generate(role)
		if err != nil {
			t.Fatal(err)
		}
		public = append(public, k.Public)
	}
	s, err := soc.New(filepath.Join(t.TempDir(), "policy"), public[0], public[1])
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Dir()
	if err != nil {
		t.Fatal(err)
	}
	return d.FirstRoot()
}
