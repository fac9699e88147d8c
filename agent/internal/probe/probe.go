// Package probe asks the local server: does the mitigation do what it is for (effect), and does the service still work (health). It
// decides nothing about the answers.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"syscall"
	"time"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// FrontEnd is where the server's web site answers.
type FrontEnd struct {
	// URL is its base, with a loopback address: "https://127.0.0.1:443". Host is the host name of its binding; "" for none.
	URL, Host string
}

// Result is one answer.
type Result struct {
	// Name says what was asked: "health GET /owa/healthcheck.htm".
	Name string
	OK   bool
	// Skipped: it was not asked, since the component is in maintenance, or no front end is known; it says nothing.
	Skipped bool
	// Answered: an answer came back, so that a result that is not OK shows that the request got through.
	Answered bool
	// Got is what came back, for people.
	Got string
	// nobody listens there: asking again changes nothing, since a restart of an application does not close the port.
	nobody bool
}

// Prober asks.
type Prober struct {
	// Find gives the front end; the zero value when none is known.
	Find func(ctx context.Context) (FrontEnd, error)
	// Inactive says whether a component of the server is in maintenance.
	Inactive func(component string) bool
	// Retries: Within bounds all attempts at one question, Pause is between them: a changed web.config restarts the application.
	Within, Pause time.Duration
}

// Defaults.
const (
	defaultWithin = 20 * time.Second
	defaultPause  = 500 * time.Millisecond
	perRequest    = 5 * time.Second
	maxAnswer     = 64 << 10
	userAgent     = "Stopgap-Probe"
)

// Name says what a probe asks.
func Name(p *stopgapv1.Probe) string {
	if e := p.GetEffect(); e != nil {
		return "effect " + e.GetRequest()
	}
	return "health " + p.GetHealth().GetRequest()
}

// Once asks once.
func (pr Prober) Once(ctx context.Context, p *stopgapv1.Probe) Result {
	r := Result{Name: Name(p)}
	if c := p.GetHealth().GetComponent(); c != "" && pr.Inactive != nil && pr.Inactive(c) {
		r.Skipped, r.Got = true, "component "+c+" is in maintenance"
		return r
	}
	fe, err := pr.Find(ctx)
	if err != nil || fe.URL == "" {
		r.Skipped, r.Got = true, "no front end is known to ask"
		return r
	}
	if e := p.GetEffect(); e != nil {
		resp, body, err := ask(ctx, fe, e.GetRequest(), e.GetHeaders())
		r.OK, r.Got = effect(e, resp, body, err)
		r.nobody, r.Answered = isRefused(err), err == nil
		return r
	}
	h := p.GetHealth()
	resp, body, err := ask(ctx, fe, h.GetRequest(), nil)
	if err != nil {
		r.Got, r.nobody = err.Error(), isRefused(err)
		return r
	}
	r.OK, r.Got = uint32(resp.StatusCode) == h.GetExpectStatus(), resp.Status
	if r.OK && !strings.Contains(body, h.GetExpectBody()) {
		r.OK, r.Got = false, resp.Status+" without the text that was expected"
	}
	return r
}

// Until asks until the answer is as expected, for a bounded time; it gives the last one. Where nobody listens it does not wait, unless there
// was an answer before (IIS is being restarted).
func (pr Prober) Until(ctx context.Context, p *stopgapv1.Probe, answered bool) Result {
	within, pause := pr.Within, pr.Pause
	if within == 0 {
		within = defaultWithin
	}
	if pause == 0 {
		pause = defaultPause
	}
	end := time.Now().Add(within)
	for {
		r := pr.Once(ctx, p)
		if r.OK || r.Skipped || r.nobody && !answered || !time.Now().Add(pause).Before(end) {
			return r
		}
		select {
		case <-ctx.Done():
			return r
		case <-time.After(pause):
		}
	}
}

func effect(e *stopgapv1.EffectProbe, resp *http.Response, body string, err error) (bool, string) {
	var timeout net.Error
	switch {
	case err != nil && errors.As(err, &timeout) && timeout.Timeout():
		return false, "no answer in time" // which an aborted request would not need
	case err != nil && isRefused(err):
		return false, err.Error()
	case err != nil && !errors.Is(err, errAborted):
		return false, err.Error()
	case err != nil:
		return e.GetExpectAborted(), "the connection was closed without an answer"
	case e.GetExpectAborted():
		return false, "answered " + resp.Status
	case e.GetExpectStatus() != 0 && uint32(resp.StatusCode) != e.GetExpectStatus():
		return false, "answered " + resp.Status
	}
	for k, want := range e.GetExpectHeader() {
		if got := strings.Join(resp.Header.Values(k), ", "); !strings.Contains(got, want) {
			return false, fmt.Sprintf("answered %s, header %s is %q", resp.Status, k, got)
		}
	}
	if !strings.Contains(body, e.GetExpectBody()) {
		return false, "answered " + resp.Status + " without the text that was expected"
	}
	return true, "answered " + resp.Status
}

// errAborted: the request was sent whole (10053 and 10054 are what Windows says when a connection is reset), and the connection was closed without an answer.
var errAborted = errors.New("closed without an answer")

// isRefused: nobody listens, which is no abort.
func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// ask sends one request, "METHOD target", as it stands. Certificates of a loopback address are not judged: they are for names.
func ask(ctx context.Context, fe FrontEnd, request string, headers map[string]string) (*http.Response, string, error) {
	method, target, ok := strings.Cut(request, " ")
	base, err := url.Parse(fe.URL)
	if err != nil || !ok {
		return nil, "", fmt.Errorf("%q to %q can't be asked", request, fe.URL)
	}
	ip := net.ParseIP(base.Hostname())
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, Proxy: nil,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: ip != nil && ip.IsLoopback(), ServerName: fe.Host}} //nolint:gosec // see above
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t, Timeout: perRequest, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req := (&http.Request{Method: method, URL: &url.URL{Scheme: base.Scheme, Host: base.Host, Opaque: target}, Host: fe.Host, Header: http.Header{}}).WithContext(ctx)
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("User-Agent", userAgent)
	sent := false
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(i httptrace.WroteRequestInfo) { sent = i.Err == nil }}))
	resp, err := c.Do(req)
	var ue *url.Error
	if errors.As(err, &ue) { // its URL says less than the probe's name
		err = ue.Err
	}
	if err != nil && sent && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.Errno(10053)) || errors.Is(err, syscall.Errno(10054)) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return nil, "", fmt.Errorf("%w (%w)", errAborted, err)
	}
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, "", fmt.Errorf("answered %s and then: %w", resp.Status, err)
	}
	return resp, string(body), nil
}
