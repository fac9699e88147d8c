package check

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/e2e/patience"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
)

// certificate is self-signed, for 127.0.0.1.
func certificate(t *testing.T, name string, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// fakeController answers a stream with a status, its clock off by skew.
type fakeController struct {
	stopgapv1.UnimplementedAgentServiceServer
	code codes.Code
	skew time.Duration
}

func (f *fakeController) Connect(st stopgapv1.AgentService_ConnectServer) error {
	// The check takes its stream to have stood for the controller's patience.
	_ = st.SetHeader(metadata.Pairs(transport.TimeHeader, time.Now().Add(f.skew-transport.HelloTimeout).Format(time.RFC3339)))
	return status.Error(f.code, "no Hello")
}

func serve(t *testing.T, f *fakeController, cert tls.Certificate) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})))
	stopgapv1.RegisterAgentServiceServer(s, f)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return ln.Addr().String()
}

// listen serves connections with a function until the test ends.
func listen(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				handle(c)
				_ = c.Close()
			}
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// connectProxy answers CONNECT with a status, and tunnels when that is 200.
func connectProxy(t *testing.T, answer string) *url.URL {
	t.Helper()
	addr := listen(t, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 "+answer+"\r\n\r\n")
		if !strings.HasPrefix(answer, "200") {
			return
		}
		up, err := net.Dial("tcp", req.Host)
		if err != nil {
			return
		}
		done := make(chan struct{})
		go func() { _, _ = io.Copy(up, c); _ = up.Close(); close(done) }()
		_, _ = io.Copy(c, up)
		_ = c.Close()
		<-done
	})
	return &url.URL{Scheme: "http", Host: addr}
}

func TestTheHopThatFailsIsNamedWithWhatToAskFor(t *testing.T) {
	t.Parallel()
	good, roots := certificate(t, "controller", time.Now().Add(time.Hour))
	inspected, _ := certificate(t, "Corporate TLS inspection", time.Now().Add(time.Hour))
	old, oldRoots := certificate(t, "controller", time.Now().Add(-time.Hour))
	ok := serve(t, &fakeController{code: codes.DeadlineExceeded}, good)
	dead := "127.0.0.1:1"
	h1 := listen(t, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}})
		_ = s.Handshake()
	})
	plain := listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "220 mail\r\n") })
	for _, c := range []struct {
		name, addr        string
		roots             *x509.CertPool
		proxy             *url.URL
		last, detail, ask string
	}{
		{"all is well", ok, roots, nil, "clock", "agrees", ""},
		{"through a proxy", ok, roots, connectProxy(t, "200 OK"), "clock", "agrees", ""},
		{"not an address", "controller", roots, nil, "settings", "not host:port", "CONTROLLER=host:port"},
		{"no such name", "no-such-host.invalid:8443", roots, nil, "name resolution", "no-such-host.invalid", "DNS entry of no-such-host.invalid"},
		{"nobody listens", dead, roots, nil, "TCP", "refused", "is the controller running"},
		{"the proxy is not there", ok, roots, &url.URL{Scheme: "http", Host: dead}, "TCP", "refused", dead},
		{"the proxy says no", ok, roots, connectProxy(t, "403 Forbidden"), "proxy CONNECT", "403 Forbidden", "allow CONNECT to " + ok},
		{"TLS is opened on the way", serve(t, &fakeController{}, inspected), roots, nil, "TLS", "issued by CN=Corporate TLS inspection", "exempt from TLS inspection"},
		{"the certificate has ended", serve(t, &fakeController{}, old), oldRoots, nil, "TLS", "expired", "clock"},
		{"something else listens", plain, roots, nil, "TLS", "", "passed through unopened"},
		{"a proxy without HTTP/2", h1, roots, nil, "TLS", "no application protocol", "passed through unopened"},
		{"the stream is cut", serve(t, &fakeController{code: codes.Unavailable}, good), nil, nil, "stream", "ended after", "timeouts of at least an hour"},
		{"the certificate is refused", serve(t, &fakeController{code: codes.PermissionDenied}, good), nil, nil, "stream", "no Hello", "not accepted"},
		{"the clock is wrong", serve(t, &fakeController{code: codes.DeadlineExceeded, skew: -time.Hour}, good), nil, nil, "clock", "differs from the controller's by 1h", "w32tm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.roots == nil {
				c.roots = roots
			}
			var steps []Step
			passed := Run(t.Context(), Config{Controller: c.addr, Source: "test", TLS: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS13}, Enrolled: true, Timeout: patience.For(3 * time.Second),
				Proxy: func(string) (*url.URL, string, error) { return c.proxy, "test", nil }}, func(s Step) { steps = append(steps, s) })
			last := steps[len(steps)-1]
			if passed != (c.ask == "") || passed != last.OK || last.Name != c.last || !strings.Contains(last.Detail, c.detail) || !strings.Contains(last.Ask, c.ask) {
				t.Errorf("passed %t, last step %+v\nall: %+v", passed, last, steps)
			}
			for _, s := range steps[:len(steps)-1] {
				if !s.OK {
					t.Errorf("went on after %+v", s)
				}
			}
		})
	}
}

func TestWinHTTPsListsAreReadAsItWritesThem(t *testing.T) {
	t.Parallel()
	for _, c := range [][4]string{
		{"proxy:8080", "", "proxy:8080", ""},
		{"http=a:1;https=b:2", "*.contoso.com;<local>", "b:2", ".contoso.com,<local>"},
		{"ftp=x:3", "", "", ""},
		{"p:1 q:2", "a b", "p:1", "a,b"},
	} {
		if p, no := parseWinHTTP(c[0], c[1]); p != c[2] || no != c[3] {
			t.Errorf("%q, %q: %q, %q", c[0], c[1], p, no)
		}
	}
}
