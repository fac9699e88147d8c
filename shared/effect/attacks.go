// Package effect decides whether a mitigation's rules are in effect on a server: whether IIS, by the configuration that it
// composes there, refuses the attack requests. It reads a model of the configuration and changes nothing; what follows from a
// verdict is its caller's decision.
package effect

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
)

// Attack is a request by which a mitigation's effect is judged.
type Attack struct {
	// Name says what it is: "probe" or a CVE, and the request.
	Name string
	// CVE is the vulnerability that the request is published for; "" for a probe, of which Probe is the index in the document.
	CVE    string
	Probe  int
	Method string
	// Path is decoded and absolute; RawPath and Query are as sent.
	Path, RawPath, Query string
	Header               http.Header
	// WantStatus is the status that must come back; 0: any refusal.
	WantStatus int
	// WantHeader, when it is set, is what the answer's headers must contain; the request itself need not be refused.
	WantHeader map[string]string
}

// Attacks returns the attack requests of a document: its own effect probes, and the published requests for its CVEs. It is
// empty for a document that has neither (a fresh exploit).
func Attacks(m *stopgapv1.Mitigation) []Attack {
	var out []Attack
	for i, p := range m.GetProbes() {
		e := p.GetEffect()
		if e == nil || !e.GetExpectAborted() && e.GetExpectStatus() < http.StatusBadRequest && len(e.GetExpectHeader()) == 0 {
			continue // only a server's answer can show it
		}
		a, err := parse("probe", e.GetRequest(), e.GetHeaders())
		if err != nil {
			continue // the document was refused where it was read
		}
		if len(e.GetExpectHeader()) > 0 {
			a.WantHeader = e.GetExpectHeader()
		} else if !e.GetExpectAborted() {
			a.WantStatus = int(e.GetExpectStatus())
		}
		a.Probe = i
		out = append(out, a)
	}
	for _, cve := range m.GetCves() {
		for _, a := range Published(cve) {
			if !contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// Published returns the attack requests that are known for a CVE.
func Published(cve string) []Attack {
	var out []Attack
	for _, p := range published[cve] {
		if a, err := parse(cve, p.request, p.headers); err == nil {
			a.CVE = cve
			out = append(out, a)
		}
	}
	return out
}

// NewAttack reads "METHOD path-and-query".
func NewAttack(name, request string, headers map[string]string) (Attack, error) {
	return parse(name, request, headers)
}

func parse(name, request string, headers map[string]string) (Attack, error) {
	method, target, ok := strings.Cut(request, " ")
	if !ok || !strings.HasPrefix(target, "/") {
		return Attack{}, fmt.Errorf("%q is not \"METHOD /path?query\"", request)
	}
	raw, query, _ := strings.Cut(target, "?")
	path, err := url.PathUnescape(raw)
	if err != nil {
		path = raw
	}
	a := Attack{Name: name + " " + request, Method: method, Path: path, RawPath: raw, Query: query, Header: http.Header{}}
	for k, v := range headers {
		a.Header.Set(k, v)
		if strings.EqualFold(k, "Cookie") {
			a.Name += ", Cookie: " + shorten(v)
		}
	}
	return a, nil
}

func shorten(s string) string { return bounded.Text(s, 63) }

func contains(list []Attack, a Attack) bool {
	for _, x := range list {
		if x.Method == a.Method && x.RawPath == a.RawPath && x.Query == a.Query && x.Header.Get("Cookie") == a.Header.Get("Cookie") {
			return true
		}
	}
	return false
}

// published are requests of public detection rules and reports, with example names and without a payload. For a CVE whose
// first rules were bypassed the published bypasses are listed too: a server on which those get through is not protected.
var published = map[string][]struct {
	request string
	headers map[string]string
}{
	// ProxyLogon. Sources: Microsoft, "HAFNIUM targeting Exchange Servers" (2 March 2021); BackendCookieMitigation.ps1 of
	// microsoft/CSS-Exchange for the two cookies.
	"CVE-2021-26855": {
		{"GET /owa/auth/x.js", map[string]string{"Cookie": "X-AnonResource=true; X-AnonResource-Backend=localhost/ecp/default.flt?~3"}},
		{"POST /ecp/y.js", map[string]string{"Cookie": "X-BEResource=mbx01.example/autodiscover/autodiscover.xml?a=~1942062522"}},
	},
	// ProxyShell. Source: Orange Tsai, "ProxyShell" (August 2021); public detection rules.
	"CVE-2021-34473": {
		{"GET /autodiscover/autodiscover.json?@evil.example/mapi/nspi/?&Email=autodiscover/autodiscover.json%3F@evil.example", nil},
		{"POST /autodiscover/autodiscover.json?@evil.example/powershell/?X-Rps-CAT=A&Email=autodiscover/autodiscover.json%3F@evil.example", nil},
	},
	// ProxyNotShell. Sources: GTSC and ZDI (September and October 2022); the versions of the rule in EOMTv2.ps1 of
	// microsoft/CSS-Exchange from 2022-09-30 to 10-07 and its issue 1270 for the ways past the first ones.
	"CVE-2022-41040": {
		{"GET /autodiscover/autodiscover.json?@evil.example/owa/&Protocol=XYZ&FooProtocol=Powershell", nil},
		{"GET /autodiscover/autodiscover.json?a..evil.example/owa/&Protocol=XYZ&FooProtocol=Powershell", nil},
		{"GET /autodiscover/autodiscover.json?@evil.example/owa/&Protocol=XYZ&FooProtocol=%50owershell", nil},
		{"POST /autodiscover/autodiscover.json?@evil.example/powershell/?X-Rps-CAT=A", nil},
		{"GET /powershell/?X-Rps-CAT=A&Email=autodiscover/autodiscover.json%3f@evil.example", nil},
	},
}
