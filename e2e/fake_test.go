package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

func sha(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// serveFake serves a hand-made controller with the real one's certificate.
func serveFake(t *testing.T, r *rig, f stopgapv1.AgentServiceServer) (*grpc.Server, string) {
	t.Helper()
	dir := filepath.Join(r.data, "server")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, trust.CertFile), filepath.Join(dir, trust.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, trust.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	srv := grpc.NewServer(transport.ServerOptions(trust.ServerTLS(cert, pool))...)
	stopgapv1.RegisterAgentServiceServer(srv, f)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	return srv, ln.Addr().String()
}
