// Package check walks the way from an agent to its controller hop by hop and says which one fails and what to ask the network
// team for. It changes nothing, and its stream never says Hello, so that it takes nothing over from an agent that runs.
package check

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
)

// Config says what to check.
type Config struct {
	// Controller is host:port; Source says where that comes from, for people.
	Controller, Source string
	// TLS is what the agent would use; nil when it has neither identity nor token: then what is shown can't be judged.
	TLS *tls.Config
	// Enrolled: there is a certificate to show. Without one the stream is not tried.
	Enrolled bool
	// Proxy gives the proxy for an address, nil for none, and where that comes from.
	Proxy func(hostport string) (*url.URL, string, error)
	// Timeout bounds each hop; default 10 s. The stream stands for transport.HelloTimeout besides.
	Timeout time.Duration
}

// Step is one hop.
type Step struct {
	Name string
	OK   bool
	// Warning: it works, and something is to be looked at.
	Warning bool
	Detail  string
	// Ask is what to do, or to ask the network team for.
	Ask string
}

// clockSkew is from which difference of the clocks on it is worth a warning.
const clockSkew = 5 * time.Minute

// walk is one run; the first hop that fails ends it.
type walk struct {
	cfg    Config
	report func(Step)
	host   string
	proxy  *url.URL
}

// Run walks, and reports each hop as it is done. It says whether all hops work.
func Run(ctx context.Context, cfg Config, report func(Step)) bool {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	w := &walk{cfg: cfg, report: report}
	host, _, err := net.SplitHostPort(cfg.Controller)
	if cfg.Controller == "" {
		w.fail("settings", "no controller is named", "give --controller, or install with CONTROLLER=host:port")
		return false
	}
	if err != nil {
		w.fail("settings", fmt.Sprintf("controller %q (%s) is not host:port", cfg.Controller, cfg.Source), "give --controller, or install with CONTROLLER=host:port")
		return false
	}
	w.host = host
	w.ok("settings", fmt.Sprintf("controller %s (%s)", cfg.Controller, cfg.Source))
	var source string
	if w.proxy, source, err = cfg.Proxy(cfg.Controller); err != nil {
		w.fail("proxy", fmt.Sprintf("the setting (%s) can't be read: %v", source, err), "correct it, or exempt the controller (NO_PROXY, or the bypass list of WinHTTP)")
		return false
	}
	if !w.names(ctx, source) {
		return false
	}
	raw := w.connect(ctx)
	if raw == nil {
		return false
	}
	ok := w.handshake(ctx, raw)
	_ = raw.Close()
	return ok && w.stream(ctx)
}

func (w *walk) ok(name, detail string) { w.report(Step{Name: name, OK: true, Detail: detail}) }
func (w *walk) fail(name, detail, ask string) {
	w.report(Step{Name: name, Detail: detail, Ask: ask})
}

// names resolves the first hop's name.
func (w *walk) names(ctx context.Context, source string) bool {
	host := w.host
	if w.proxy != nil {
		host = w.proxy.Hostname()
		w.ok("proxy", fmt.Sprintf("%s (%s); it resolves the controller's name", w.proxy.Host, source))
	} else {
		w.ok("proxy", "none ("+source+")")
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		w.fail("name resolution", err.Error(), fmt.Sprintf("ask for a DNS entry of %s that this server can resolve", host))
		return false
	}
	w.ok("name resolution", host+" is "+strings.Join(addrs, ", "))
	return true
}

// connect opens the way for TLS: TCP, and CONNECT where there is a proxy.
func (w *walk) connect(ctx context.Context) net.Conn {
	addr := w.cfg.Controller
	if w.proxy != nil {
		addr = w.proxyAddr()
	}
	d := net.Dialer{Timeout: w.cfg.Timeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		ask := fmt.Sprintf("ask for the firewall to let this server open TCP connections to %s", addr)
		if strings.Contains(err.Error(), "refused") {
			ask = fmt.Sprintf("the machine answers and nobody listens on %s: is the controller running, and is the port right?", addr)
		}
		w.fail("TCP", err.Error(), ask)
		return nil
	}
	w.ok("TCP", fmt.Sprintf("%s reached from %s", addr, conn.LocalAddr()))
	if w.proxy == nil {
		return conn
	}
	if err := w.tunnel(conn); err != nil {
		_ = conn.Close()
		w.fail("proxy CONNECT", err.Error(), fmt.Sprintf("ask for the proxy %s to allow CONNECT to %s, or for the controller to be exempt from it", w.proxy.Host, w.cfg.Controller))
		return nil
	}
	w.ok("proxy CONNECT", "the proxy opened a tunnel to "+w.cfg.Controller)
	return conn
}

func (w *walk) proxyAddr() string {
	if w.proxy.Port() == "" {
		return net.JoinHostPort(w.proxy.Hostname(), "80")
	}
	return w.proxy.Host
}

func (w *walk) tunnel(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(w.cfg.Timeout)); err != nil {
		return err
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: w.cfg.Controller}, Host: w.cfg.Controller, Header: http.Header{}}
	if u := w.proxy.User; u != nil {
		p, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+p)))
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(io.LimitReader(conn, 64<<10), 1), req)
	if err != nil {
		return fmt.Errorf("no answer to CONNECT: %w", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy answered CONNECT with %s", resp.Status)
	}
	return conn.SetDeadline(time.Time{})
}

// handshake shows the certificate that comes, whoever sent it, and says whether it is the controller's.
func (w *walk) handshake(ctx context.Context, raw net.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if w.cfg.TLS != nil {
		cfg = w.cfg.TLS.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = w.host
	}
	cfg.NextProtos = []string{"h2"}
	roots, name, verify := cfg.RootCAs, cfg.ServerName, cfg.VerifyConnection
	cfg.InsecureSkipVerify = true // verified below, after it was shown
	var shown *x509.Certificate
	var bad error
	cfg.VerifyPeerCertificate = nil
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0]
		if w.cfg.TLS == nil {
			return nil
		}
		if verify != nil {
			bad = verify(cs)
			return nil
		}
		inter := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			inter.AddCert(c)
		}
		_, bad = shown.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: name})
		return nil
	}
	conn := tls.Client(raw, cfg)
	err := conn.HandshakeContext(ctx)
	if shown != nil {
		what := fmt.Sprintf("certificate shown: %s, issued by %s, until %s, SHA-256 %x", shown.Subject, shown.Issuer, shown.NotAfter.Format(time.DateOnly), sha256.Sum256(shown.Raw))
		if bad != nil {
			w.fail("TLS", bad.Error()+"; "+what, w.certificateAdvice(bad))
			return false
		}
		if err == nil && w.cfg.TLS == nil {
			w.report(Step{Name: "TLS", OK: true, Warning: true, Detail: what, Ask: "this server has no identity and no token: whether that is the controller can't be judged; ask the operators for its certificate's SHA-256"})
		} else if err == nil {
			w.ok("TLS", what)
		}
	}
	if err != nil {
		w.fail("TLS", err.Error(), fmt.Sprintf("something on the way ends TLS 1.3: ask for connections to %s to be passed through unopened", w.cfg.Controller))
		return false
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		w.fail("HTTP/2", fmt.Sprintf("the other end speaks %q", p), "ask for whatever stands in front of the controller to pass HTTP/2 (ALPN h2) through")
		return false
	}
	w.ok("HTTP/2", "negotiated")
	return true
}

func (w *walk) certificateAdvice(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("something else answers, or TLS is opened on the way (look at the issuer): ask for %s to be exempt from TLS inspection", w.cfg.Controller)
	case errors.As(err, &name):
		return "give --server-name with a name that the certificate has, or make the controller's certificate with this name (stopgap-controller init --host)"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "look at this server's clock first, then at the controller's certificate"
	}
	return "ask the operators whether this is their controller"
}

// stream opens the agent's stream and says nothing: the controller ends it by itself after transport.HelloTimeout, and says so.
// Until then it has stood, both ways.
func (w *walk) stream(ctx context.Context) bool {
	if !w.cfg.Enrolled {
		w.report(Step{Name: "stream", OK: true, Warning: true, Detail: "not tried: this server is not enrolled", Ask: "enrol it: stopgap-agent enroll, or install with TOKEN="})
		return true
	}
	opts := transport.DialOptions(w.cfg.TLS)
	if w.proxy != nil {
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			d := net.Dialer{Timeout: w.cfg.Timeout}
			conn, err := d.DialContext(ctx, "tcp", w.proxyAddr())
			if err == nil {
				err = w.tunnel(conn)
			}
			return conn, err
		}))
	} else {
		opts = append(opts, grpc.WithNoProxy())
	}
	conn, err := grpc.NewClient("passthrough:///"+w.cfg.Controller, opts...)
	if err != nil {
		w.fail("stream", err.Error(), "")
		return false
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout+2*transport.HelloTimeout)
	defer cancel()
	began := time.Now()
	st, err := stopgapv1.NewAgentServiceClient(conn).Connect(ctx)
	if err == nil {
		_, err = st.Recv()
	}
	stood := time.Since(began).Round(time.Second)
	var head []string
	if st != nil {
		if md, herr := st.Header(); herr == nil {
			head = md.Get(transport.TimeHeader)
		}
	}
	switch code := status.Code(err); {
	case code == codes.DeadlineExceeded && len(head) > 0:
		w.ok("stream", fmt.Sprintf("stood for %s, and the controller answered on it", stood))
	case code == codes.PermissionDenied || code == codes.Unauthenticated:
		w.fail("stream", status.Convert(err).Message(), "ask the operators: this agent's certificate is not accepted (stopgap agents show)")
		return false
	default:
		w.fail("stream", fmt.Sprintf("ended after %s: %v", stood, err), "something on the way ends long-lived HTTP/2 streams: ask for idle and total timeouts of at least an hour for "+w.cfg.Controller)
		return false
	}
	return w.clock(head[0])
}

func (w *walk) clock(text string) bool {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		w.fail("clock", "the controller's time can't be read: "+text, "")
		return false
	}
	// The header was written when the stream began.
	if d := time.Since(t) - transport.HelloTimeout; d.Abs() > clockSkew {
		w.fail("clock", fmt.Sprintf("this server's clock differs from the controller's by %s", d.Round(time.Second)), "set this server's clock (w32tm /resync); the end of signed policy is judged by it")
		return false
	}
	w.ok("clock", "agrees with the controller's")
	return true
}

// Proxy gives the proxy of the environment (HTTPS_PROXY, NO_PROXY), or else of WinHTTP.
func Proxy(hostport string) (*url.URL, string, error) {
	env := httpproxy.FromEnvironment()
	source := "HTTPS_PROXY"
	if env.HTTPSProxy == "" {
		p, bypass, err := winHTTP()
		if err != nil {
			return nil, "WinHTTP", err
		}
		source = "no HTTPS_PROXY, no WinHTTP proxy"
		if p != "" {
			env.HTTPSProxy, env.NoProxy, source = p, bypass, "WinHTTP: netsh winhttp show proxy"
		}
	}
	u, err := env.ProxyFunc()(&url.URL{Scheme: "https", Host: hostport})
	if err == nil && u == nil && env.HTTPSProxy != "" {
		source += ", which does not apply to this address"
	}
	return u, source, err
}

// SetEnvironment makes grpc use WinHTTP's proxy where the environment names none. To be called before the first connection. It gives
// the proxy set, "" for none.
func SetEnvironment(setenv func(key, value string) error) (string, error) {
	if httpproxy.FromEnvironment().HTTPSProxy != "" {
		return "", nil
	}
	p, bypass, err := winHTTP()
	if err != nil || p == "" {
		return "", err
	}
	return p, errors.Join(setenv("HTTPS_PROXY", p), setenv("NO_PROXY", bypass))
}

// parseWinHTTP reads WinHTTP's proxy and bypass lists: "host:port" for all, or "http=a:1;https=b:2".
func parseWinHTTP(proxy, bypass string) (p, no string) {
	for _, part := range strings.FieldsFunc(proxy, func(r rune) bool { return r == ';' || r == ' ' }) {
		scheme, addr, ok := strings.Cut(part, "=")
		switch {
		case !ok && p == "":
			p = part
		case ok && strings.EqualFold(scheme, "https"):
			p = addr
		}
	}
	var list []string
	for _, part := range strings.FieldsFunc(bypass, func(r rune) bool { return r == ';' || r == ' ' }) {
		list = append(list, strings.TrimPrefix(part, "*"))
	}
	return p, strings.Join(list, ",")
}
