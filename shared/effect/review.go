package effect

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// MaxReviewTime bounds one review. Only patterns that take very long to match come near it; the catalogue's documents take
// some 10 ms each.
const MaxReviewTime = 10 * time.Second

// Review judges the rules of a document on a standard Exchange server: what they stop, what they must not stop, and what they
// can't do there. It is not safe for concurrent use.
type Review struct {
	m      *iisconfig.Model
	sites  []*iisconfig.Site
	rules  []*PlacedRule
	pools  []string
	until  time.Time
	cutOff bool
}

// PlacedRule is one rule of a document and the place that the document puts it.
type PlacedRule struct {
	Rule
	// Action is the index of the placement that has the rule.
	Action   int
	Outbound bool

	site *iisconfig.Site
	path string
	// ran: the rule changed the answer to some request of the review. Only for outbound rules.
	ran bool
}

// NewReview puts rules in place on a standard server. pools are the application pools that the document stops. The error says
// why that server can't have the rules: a place that it does not have, or a configuration that IIS refuses.
func NewReview(placed []Placement, pools []string) (*Review, error) {
	m, err := Standard(placed...)
	if err != nil {
		return nil, err
	}
	r := &Review{m: m, pools: pools, until: time.Now().Add(MaxReviewTime)}
	for i, p := range placed {
		site := m.Server().Site(p.Site)
		if !slices.Contains(r.sites, site) {
			r.sites = append(r.sites, site)
		}
		rules, err := ParseRules(p.Inbound, p.Outbound)
		if err != nil {
			return nil, err
		}
		for _, x := range rules.Inbound {
			r.rules = append(r.rules, &PlacedRule{Rule: x, Action: i, site: site, path: p.Path})
		}
		for _, x := range rules.Outbound {
			r.rules = append(r.rules, &PlacedRule{Rule: x, Action: i, Outbound: true, site: site, path: p.Path})
		}
		if bad := m.At(site, p.Path).Invalid(); bad != nil {
			return nil, fmt.Errorf("IIS refuses the configuration with these rules (500.19): %w", bad)
		}
	}
	if len(r.sites) == 0 {
		r.sites = m.Server().FrontEndSites()
	}
	return r, nil
}

// Rules lists the rules of the document in order.
func (r *Review) Rules() []*PlacedRule { return r.rules }

// CutOff reports whether the review ran out of time, so that not everything was judged.
func (r *Review) CutOff() bool { return r.cutOff }

func (r *Review) late() bool {
	r.cutOff = r.cutOff || time.Now().After(r.until)
	return r.cutOff
}

// Refusal is the verdict on one attack request.
type Refusal struct {
	Attack Attack
	// OK: the request is refused, or its answer has the header that is wanted.
	OK bool
	// Why is the reason when it is not.
	Why string
	// Elsewhere: no rule of the document is at the place that the request goes to.
	Elsewhere bool
	// OneReading: it is refused by one of the two ways to read which level an inherited rule's URL is relative to.
	OneReading bool
	// Unjudged: the review ran out of time before.
	Unjudged bool
}

// Attack judges an attack request. It is refused if it is on one of the sites that the document has rules on.
func (r *Review) Attack(a Attack) Refusal {
	out := Refusal{Attack: a}
	for _, site := range r.sites {
		if r.late() {
			out.Unjudged = true
			return out
		}
		p := r.m.At(site, a.Path)
		if r.pooled(p.App.Pool) && len(a.WantHeader) == 0 && (a.WantStatus == 0 || a.WantStatus == http.StatusServiceUnavailable) {
			return Refusal{Attack: a, OK: true}
		}
		c := Judge(r.m, site, a, Rules{})
		if c.OK {
			return Refusal{Attack: a, OK: true}
		}
		if out.Why != "" {
			continue
		}
		out.Why = c.Why
		out.Elsewhere = !r.present(p)
		if !c.Closed && c.Cause == CauseNoMatch {
			out.OneReading = r.ownBase(p, a)
		}
	}
	return out
}

func (r *Review) pooled(pool string) bool {
	return slices.ContainsFunc(r.pools, func(p string) bool { return strings.EqualFold(p, pool) })
}

// present reports whether a rule of the document is in effect at a place.
func (r *Review) present(p *iisconfig.Place) bool {
	return slices.ContainsFunc(r.rules, func(x *PlacedRule) bool { return x.at(p) })
}

func (x *PlacedRule) at(p *iisconfig.Place) bool {
	section := "rules"
	if x.Outbound {
		section = "outboundRules"
	}
	return p.Site == x.site && p.Section(section).Item(x.Name) != nil
}

// ownBase judges an attack by the reading in which a rule sees the URL relative to the level that defines it.
func (r *Review) ownBase(p *iisconfig.Place, a Attack) bool {
	rs, _, err := p.Rules()
	if err != nil {
		return false
	}
	req := a.request(reading{ownBase: true})
	res, err := rs.Inbound(req, p.App.Path)
	return err == nil && a.satisfied(rs, req, res, nil)
}

// Stops reports whether one rule of the document refuses an attack request by itself.
func (r *Review) Stops(x *PlacedRule, a Attack) bool {
	p := r.m.At(x.site, a.Path)
	if r.late() || x.Outbound || !x.at(p) {
		return false
	}
	alone, err := single(x)
	if err != nil {
		return false
	}
	base := p.Section("rules").Item(x.Name).Base
	for _, b := range []string{base, p.App.Path} {
		req := a.request(reading{})
		if res, err := alone.Inbound(req, b); err == nil && a.satisfied(alone, req, res, nil) {
			return true
		}
	}
	return false
}

// Harm is what a rule does to legitimate requests.
type Harm struct {
	Rule *PlacedRule
	// What happens to the first of the requests: "the connection is closed".
	What string
	// Requests are those that do not get Exchange's answer.
	Requests []string
	// Every: all samples that go to places where the rule is in effect are among them.
	Every bool
	// Path is the place that the document puts the rule.
	Path string
	// Unless is a variable by which the rule lets some clients through, "{REMOTE_ADDR}": the samples are not theirs.
	Unless string
}

// Harms lists the rules that stop legitimate requests. extra are requests besides Samples that must be let through.
func (r *Review) Harms(extra ...Sample) []Harm {
	var out []Harm
	reach := map[*PlacedRule]int{}
	for _, site := range r.sites {
		for _, s := range append(Samples(), extra...) {
			if r.late() {
				return out
			}
			p := r.m.At(site, s.Path)
			for _, x := range r.rules {
				if x.at(p) {
					reach[x]++
				}
			}
			rule, what := r.disturbs(p, s)
			if rule == nil {
				continue
			}
			i := slices.IndexFunc(out, func(h Harm) bool { return h.Rule == rule })
			if i < 0 {
				i = len(out)
				out = append(out, Harm{Rule: rule, What: what, Path: rule.path, Unless: rule.exempts()})
			}
			out[i].Requests = append(out[i].Requests, s.Name)
		}
	}
	for i := range out {
		out[i].Every = len(out[i].Requests) == reach[out[i].Rule]
	}
	return out
}

// sampleAddr is the client of the samples. It is none of the addresses for documentation, which documents may name.
const sampleAddr = "10.20.30.40"

// vital are the headers of an answer that a client can't do without.
var vital = []string{"Content-Type", "Location", "Set-Cookie", "WWW-Authenticate"}

// staticFiles are the kinds of files that Exchange serves from its directories.
var staticFiles = []string{".js", ".css", ".ttf", ".aspx", ".asmx", ".wsdl"}

// disturbs returns the rule that keeps a sample from Exchange, by either reading, and what it does to the request.
func (r *Review) disturbs(p *iisconfig.Place, s Sample) (*PlacedRule, string) {
	rs, _, err := p.Rules()
	if err != nil {
		return nil, ""
	}
	for _, rd := range readings[:2] {
		req := s.request(rd)
		req.RemoteAddr, req.IgnoreRedirects = sampleAddr, false
		req.Vars = map[string]string{"SERVER_PROTOCOL": "HTTP/1.1", "LOCAL_ADDR": "10.20.30.1", "REMOTE_PORT": "49811",
			"SERVER_SOFTWARE": "Microsoft-IIS/10.0"}
		req.IsFile = func(name string) bool { return slices.Contains(staticFiles, path.Ext(name)) }
		req.IsDir = func(name string) bool { return strings.EqualFold(strings.TrimSuffix(name, "/"), p.App.Path) }
		res, err := rs.Inbound(req, p.App.Path)
		var runtime *urlrewrite.RuntimeError
		switch {
		case errors.As(err, &runtime):
			return nil, "" // a variable that may not be set: Unallowed says so
		case err != nil:
			return r.slow(err)
		}
		what := ""
		switch res.Action {
		case urlrewrite.ActionAbort:
			what = "the connection is closed"
		case urlrewrite.ActionCustomResponse:
			what = fmt.Sprintf("it is answered with status %d", res.Status)
		case urlrewrite.ActionRedirect:
			what = fmt.Sprintf("it is redirected to %q", res.URL)
		case urlrewrite.ActionRewrite:
			if to, _, _ := strings.Cut(res.URL, "?"); !strings.EqualFold(to, s.Path) {
				what = fmt.Sprintf("it is rewritten to %q", res.URL)
			}
		case urlrewrite.ActionNone:
		}
		if what != "" {
			return r.named(res.Rules[len(res.Rules)-1], false), what
		}
		header := s.Response.Clone()
		if header == nil {
			header = http.Header{}
		}
		ran, _, err := rs.Respond(req, &urlrewrite.Response{Status: s.Status, Header: header})
		for _, n := range ran {
			if x := r.named(n, true); x != nil {
				x.ran = true
			}
		}
		if err != nil && !errors.As(err, &runtime) {
			return r.slow(err)
		}
		for _, h := range vital {
			if s.Response.Get(h) != "" && header.Get(h) == "" {
				return r.outbound("RESPONSE_"+strings.ReplaceAll(h, "-", "_"), ran), fmt.Sprintf("the answer loses its header %s", h)
			}
		}
	}
	return nil, ""
}

// outbound returns the rule that rewrote a variable.
func (r *Review) outbound(variable string, ran []string) *PlacedRule {
	for _, n := range ran {
		if x := r.named(n, true); x != nil && strings.EqualFold(x.Element.Child("match").Attr("serverVariable"), variable) {
			return x
		}
	}
	return nil
}

// slow says that no verdict was reached; the rule is named by the evaluator's error.
func (r *Review) slow(err error) (*PlacedRule, string) {
	for _, x := range r.rules {
		if strings.Contains(err.Error(), fmt.Sprintf("rule %q", x.Name)) {
			return x, "its patterns take too long to match: " + err.Error()
		}
	}
	return nil, ""
}

func (r *Review) named(name string, outbound bool) *PlacedRule {
	for _, x := range r.rules {
		if x.Outbound == outbound && strings.EqualFold(x.Name, name) {
			return x
		}
	}
	return nil
}

// Unallowed returns the server variables that a rule sets and that the standard server does not allow to be set.
func (r *Review) Unallowed(x *PlacedRule) []string {
	var out []string
	allowed := r.m.At(x.site, x.path).Section("allowedServerVariables")
	for _, set := range x.Element.Child("serverVariables").All("set") {
		if n := set.Attr("name"); allowed.Item(n) == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// Shadow returns the rule that ends the evaluation of every request, or of every response, before a rule is reached,
// wherever the rule is; "" for none.
func (r *Review) Shadow(x *PlacedRule) string {
	by := ""
	for _, app := range r.apps(x) {
		rs, _, err := r.m.At(app.Site, app.Path).Rules()
		if err != nil {
			continue
		}
		if x.Outbound {
			by = rs.OutboundStopper(x.Name)
		} else {
			by = rs.InboundStopper(x.Name, app.Path, r.exception)
		}
		if by == "" {
			return ""
		}
	}
	return by
}

// exception reports whether a rule is one of the document's own that lets some requests through: it is meant to stand in front.
func (r *Review) exception(name string) bool {
	return slices.ContainsFunc(r.rules, func(x *PlacedRule) bool {
		return !x.Outbound && strings.EqualFold(x.Name, name) && len(x.Element.Child("conditions").All("add")) > 0
	})
}

// Ran reports whether an outbound rule had something to do in the answer to one of the samples. Call it after Harms.
func (x *PlacedRule) Ran() bool { return x.ran }

// apps are the applications at which a rule is in effect.
func (r *Review) apps(x *PlacedRule) []*iisconfig.App {
	var out []*iisconfig.App
	for _, app := range x.site.Apps {
		if x.at(r.m.At(x.site, app.Path)) {
			out = append(out, app)
		}
	}
	return out
}

// single makes a ruleset of one rule alone.
func single(x *PlacedRule) (*urlrewrite.Ruleset, error) {
	r, err := ParseRules(string(x.Doc.Bytes(x.Element)), "")
	return r.alone, err
}
