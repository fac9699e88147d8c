package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// What stands behind the lab's IIS: enough of Exchange to see whether people can work and whether an exploit gets
// through. An exploit "gets through" when the request reaches the vulnerable part of a build that is not fixed; nothing
// is executed.

type response struct {
	status int
	header http.Header
	body   string
}

func answer(status int, contentType, body string) response {
	h := http.Header{}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	return response{status, h, body}
}

// ExploitedHeader names the CVE whose vulnerable part a request reached.
const ExploitedHeader = "X-Lab-Exploited"

func exploited(cve string) response {
	r := answer(http.StatusOK, "text/plain", "reached the vulnerable part of "+cve+"\n")
	r.header.Set(ExploitedHeader, cve)
	return r
}

func (s *Server) vulnerable(cve string) bool {
	srv, err := s.dir.Server()
	if err != nil {
		return false
	}
	b, err := exchange.ParseBuild(srv.ExchangeBuild)
	return err == nil && s.fixed.State(cve, b) == exchange.Unfixed
}

func (s *Server) exchange(r *http.Request) response {
	path := strings.ToLower(r.URL.Path)
	cookie := r.Header.Get("Cookie")
	decoded := strings.ToLower(r.URL.Path + "?" + unescape(r.URL.RawQuery))
	switch {
	case (strings.Contains(cookie, "X-AnonResource-Backend") || strings.Contains(cookie, "X-BEResource=")) && strings.Contains(cookie, "~") &&
		s.vulnerable("CVE-2021-26855"):
		return exploited("CVE-2021-26855")
	case strings.HasPrefix(path, "/autodiscover/autodiscover.json") && strings.Contains(decoded, "powershell") && s.vulnerable("CVE-2022-41040"):
		return exploited("CVE-2022-41040")
	case strings.HasPrefix(path, "/ecp/ddi/") && r.Method == http.MethodPost && strings.Contains(decoded, ".aspx") && s.vulnerable("CVE-2021-27065"):
		return exploited("CVE-2021-27065")
	case strings.HasPrefix(path, "/oab/") && r.Method == http.MethodPost && strings.Contains(decoded, ".aspx") && s.vulnerable("CVE-2021-26858"):
		return exploited("CVE-2021-26858")
	case strings.HasSuffix(path, "/healthcheck.htm"):
		return answer(http.StatusOK, "text/html", "200 OK<br/>lab.contoso.com")
	case strings.HasPrefix(path, "/owa"):
		return s.owa(path, cookie)
	case strings.HasPrefix(path, "/microsoft-server-activesync"):
		if r.Method == http.MethodOptions {
			a := answer(http.StatusOK, "", "")
			a.header.Set("MS-ASProtocolVersions", "14.1,16.0,16.1")
			return a
		}
		return answer(http.StatusOK, "application/vnd.ms-sync.wbxml", "\x03\x01j\x00")
	case strings.HasPrefix(path, "/ews"), strings.HasPrefix(path, "/autodiscover"), strings.HasPrefix(path, "/mapi"),
		strings.HasPrefix(path, "/oab"), strings.HasPrefix(path, "/api"), strings.HasPrefix(path, "/powershell"), strings.HasPrefix(path, "/rpc"):
		a := answer(http.StatusUnauthorized, "text/plain", "")
		a.header.Set("WWW-Authenticate", "Negotiate")
		return a
	case strings.HasPrefix(path, "/ecp"):
		return answer(http.StatusOK, "text/html; charset=utf-8", "<html>Exchange administration</html>")
	}
	return answer(http.StatusOK, "text/html", "<html>IIS</html>")
}

// owa answers the sign-in page, and the mailbox page with a message whose sender put a script into an attribute.
func (s *Server) owa(path, cookie string) response {
	if strings.HasPrefix(path, "/owa/auth/logon.aspx") {
		return answer(http.StatusOK, "text/html; charset=utf-8", "<html>Sign in</html>")
	}
	if !strings.Contains(cookie, "cadata=") {
		a := answer(http.StatusFound, "text/html; charset=utf-8", "<html><body>Object moved</body></html>")
		a.header.Set("Location", "/owa/auth/logon.aspx?url=%2fowa%2f")
		return a
	}
	if !s.vulnerable("CVE-2026-42897") {
		return answer(http.StatusOK, "text/html; charset=utf-8", "<html><img src=x>inbox</html>")
	}
	a := answer(http.StatusOK, "text/html; charset=utf-8", `<html><img src=x onerror="stealTheMailbox()">inbox</html>`)
	a.header.Set(ExploitedHeader, "CVE-2026-42897")
	return a
}

func (s *Server) unifiedMessaging(w http.ResponseWriter) {
	services, err := s.dir.Services()
	if err != nil || services["MSExchangeUM"].State != labdir.Running {
		fail(w, http.StatusServiceUnavailable, "Unified Messaging is not running")
		return
	}
	if s.vulnerable("CVE-2021-26857") {
		w.Header().Set(ExploitedHeader, "CVE-2021-26857")
	}
	fail(w, http.StatusOK, "Unified Messaging took the message")
}

func unescape(q string) string {
	if u, err := url.QueryUnescape(q); err == nil {
		return u
	}
	return q
}

// Attempt is a request and what came of it.
type Attempt struct {
	Name string
	// Through says that an exploit reached the vulnerable part, or that a person's request was answered as it should be.
	Through bool
	// Got is what came back, for people.
	Got string
}

type request struct {
	name, method, path, cookie string
	// through judges the answer; nil for an aborted request means not through.
	through func(*http.Response) bool
}

func hit(cve string) func(*http.Response) bool {
	return func(r *http.Response) bool { return r.Header.Get(ExploitedHeader) == cve }
}

func status(want int) func(*http.Response) bool {
	return func(r *http.Response) bool { return r.StatusCode == want }
}

var exploits = []request{
	{"CVE-2021-26855", "GET", "/owa/auth/x.js", "X-AnonResource=true; X-AnonResource-Backend=localhost/ecp/default.flt?~3; X-BEResource=localhost/owa/auth/logon.aspx?~3;", hit("CVE-2021-26855")},
	{"CVE-2021-26857", "POST", "/_lab/um", "", hit("CVE-2021-26857")},
	{"CVE-2021-27065", "POST", "/ecp/DDI/DDIService.svc/SetObject?schema=OABVirtualDirectory&path=shell.aspx", "", hit("CVE-2021-27065")},
	{"CVE-2021-26858", "POST", "/OAB/write?file=shell.aspx", "", hit("CVE-2021-26858")},
	{"CVE-2022-41040", "GET", "/autodiscover/autodiscover.json?a@foo.var/owa/?&Protocol=XYZ&FooProtocol=%50owershell", "", hit("CVE-2022-41040")},
	{"CVE-2026-42897", "GET", "/owa/projection.aspx?t=1", "cadata=session", func(r *http.Response) bool {
		// The browser runs the attribute unless the policy forbids it.
		return hit("CVE-2026-42897")(r) && !strings.Contains(r.Header.Get("Content-Security-Policy"), "script-src-attr 'none'")
	}},
}

var people = []request{
	{"OWA sign-in", "GET", "/owa/auth/logon.aspx?replaceCurrent=1&url=https%3a%2f%2fmail.contoso.com%2fowa%2f", "", status(http.StatusOK)},
	{"OWA", "GET", "/owa/", "cadata=session", status(http.StatusOK)},
	{"ActiveSync", "OPTIONS", "/Microsoft-Server-ActiveSync?Cmd=Sync&User=user1", "", status(http.StatusOK)},
	{"EWS", "POST", "/EWS/Exchange.asmx", "", status(http.StatusUnauthorized)},
	{"Autodiscover", "POST", "/Autodiscover/Autodiscover.xml", "", status(http.StatusUnauthorized)},
}

// Exploit tries each exploit of the catalogue against a lab server's front end. What a fixed build ignores counts as not
// through.
func Exploit(ctx context.Context, base string) []Attempt { return try(ctx, base, exploits) }

// Work does what people do: OWA sign-in, ActiveSync, EWS, Autodiscover.
func Work(ctx context.Context, base string) []Attempt { return try(ctx, base, people) }

// requestTimeout bounds a request on an idle machine.
const requestTimeout = 5 * time.Second

func try(ctx context.Context, base string, rs []request) []Attempt {
	client := &http.Client{Timeout: patience.For(requestTimeout), Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var out []Attempt
	for _, r := range rs {
		a := Attempt{Name: r.name}
		req, err := http.NewRequestWithContext(ctx, r.method, base+r.path, nil)
		if err == nil {
			req.Header.Set("Cookie", r.cookie)
			var resp *http.Response
			if resp, err = client.Do(req); err == nil {
				a.Through, a.Got = r.through(resp), resp.Status
				_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
				_ = resp.Body.Close()
			}
		}
		if err != nil {
			a.Got = "connection closed"
			if !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
				a.Got = fmt.Sprintf("error: %v", err)
			}
		}
		out = append(out, a)
	}
	return out
}
