package effect

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Check is the verdict on one attack request at one site, or on one application.
type Check struct {
	// What names the request or the application: "Default Web Site: probe GET /owa/".
	What string
	Site string
	// App is the application that the request goes to.
	App *iisconfig.App
	// OK: the request is refused there, or the rules are reached there.
	OK bool
	// Closed: IIS refuses the configuration of the place, so that every request fails there. It is no effect of ours, and no
	// way through either.
	Closed bool
	// By is the rule that decides, with its file and line.
	By string
	// Why is the reason when it is not OK.
	Why string
	// Cause tells the reasons apart for a caller that can do something about it.
	Cause Cause
	// Notes name what this version does not know in the configuration there.
	Notes []string
}

// Cause is why rules are not in effect at a place.
type Cause int

// The causes.
const (
	CauseNone         Cause = iota
	CauseAbsent             // the rule is not there
	CauseNotInherited       // it stands in a <location> that applications below do not inherit
	CauseRemoved            // a <clear/> or <remove> took it away
	CauseDisabled
	CauseShadowed // a rule in front of it ends the evaluation
	CauseModule   // the rewrite module does not run there, or web.config is ignored
	CauseInvalid  // IIS refuses the configuration, or this version can't read it
	CauseNoMatch  // the rule is reached and does not stop the request
	CauseOther
)

// Rules are the rules of one url_rewrite action.
type Rules struct {
	Inbound, Outbound []Rule
	// alone is the action's inbound and outbound rules as a ruleset of their own.
	alone *urlrewrite.Ruleset
}

// Rule is one rule of an action.
type Rule struct {
	Name    string
	Element *xmldoc.Element
	// Doc is the fragment that Element is in.
	Doc *xmldoc.Document
	// Pre is the precondition that an outbound rule names; nil for none.
	Pre *xmldoc.Element
}

// ParseRules reads the rules of an action: what it puts into <rules> and into <outboundRules>.
func ParseRules(inbound, outbound string) (Rules, error) {
	var r Rules
	parts := urlrewrite.Parts{}
	read := func(xml string) (*xmldoc.Document, error) {
		doc, err := xmldoc.ParseFragment([]byte(xml))
		if err != nil {
			return nil, fmt.Errorf("effect: %w", err)
		}
		return doc, nil
	}
	doc, err := read(inbound)
	if err != nil {
		return r, err
	}
	for _, e := range doc.Root.All("rule") {
		r.Inbound = append(r.Inbound, Rule{Name: e.Attr("name"), Element: e, Doc: doc})
		parts.Inbound = append(parts.Inbound, urlrewrite.Part{Element: e, Doc: doc})
	}
	if doc, err = read(outbound); err != nil {
		return r, err
	}
	pres := doc.Root.Child("preConditions")
	for _, p := range pres.All("preCondition") {
		parts.PreConditions = append(parts.PreConditions, urlrewrite.Part{Element: p, Doc: doc})
	}
	for _, e := range doc.Root.All("rule") {
		rule := Rule{Name: e.Attr("name"), Element: e, Doc: doc}
		for _, p := range pres.All("preCondition") {
			if strings.EqualFold(p.Attr("name"), e.Attr("preCondition")) {
				rule.Pre = p
			}
		}
		r.Outbound = append(r.Outbound, rule)
		parts.Outbound = append(parts.Outbound, urlrewrite.Part{Element: e, Doc: doc})
	}
	r.alone, _ = urlrewrite.Build(parts)
	return r, nil
}

// Stops reports whether the rules alone, placed at a URL path, would do to an attack request what is wanted.
func (r Rules) Stops(a Attack, path string) bool {
	if !iisconfig.IsBelow(a.Path, path) {
		return false
	}
	for _, rd := range readings {
		req := a.request(rd)
		res, err := r.alone.Inbound(req, path)
		if err != nil || !a.satisfied(r.alone, req, res, nil) {
			return false
		}
	}
	return true
}

// Match finds rules of an action among effective ones. It returns the names that the effective rules have.
type Match func(p *iisconfig.Place, r Rules) (inbound, outbound []string, ok bool)

// Ours matches rules by name and content.
func Ours(p *iisconfig.Place, r Rules) (inbound, outbound []string, ok bool) {
	ok = true
	find := func(section string, rules []Rule) (names []string) {
		for _, x := range rules {
			it := p.Section(section).Item(x.Name)
			if it == nil || !xmldoc.Equal(it.Element, x.Element) {
				ok = false
			}
			names = append(names, x.Name)
		}
		return names
	}
	return find("rules", r.Inbound), find("outboundRules", r.Outbound), ok
}

// Foreign matches rules of other names that do the same.
func Foreign(p *iisconfig.Place, r Rules) (inbound, outbound []string, ok bool) {
	ok = true
	for _, x := range r.Inbound {
		name := twin(p, "rules", x)
		ok = ok && name != ""
		inbound = append(inbound, name)
	}
	for _, x := range r.Outbound {
		name := twin(p, "outboundRules", x)
		ok = ok && name != ""
		outbound = append(outbound, name)
	}
	return inbound, outbound, ok
}

// twin finds an effective rule of another name that does what a rule does; "" for none. What it is called, and what its
// precondition is called, makes no difference.
func twin(p *iisconfig.Place, section string, r Rule) string {
	for _, it := range p.Section(section).Items {
		if strings.EqualFold(it.Name, r.Name) || strings.EqualFold(it.Element.Attr("enabled"), "false") || !urlrewrite.SameRule(it.Element, r.Element) {
			continue
		}
		pre := it.Element.Attr("preCondition")
		if (pre == "") != (r.Pre == nil) {
			continue
		}
		if r.Pre != nil {
			other := p.Section("preConditions").Item(pre)
			if other == nil || !urlrewrite.SameRule(other.Element, r.Pre) {
				continue
			}
		}
		return it.Name
	}
	return ""
}

// reading is one way to read what the sources leave open.
type reading struct{ ownBase, adverse bool }

// readings are all of them, for a client that sends the request as it stands and for one that adds what gets it past the rules:
// an attack counts as refused only if it is by each.
var readings = []reading{{false, false}, {true, false}, {false, true}, {true, true}}

func (a Attack) request(rd reading) *urlrewrite.Request {
	return &urlrewrite.Request{Method: a.Method, Scheme: "https", Host: "mail.example", Path: a.Path, RawPath: a.RawPath, RawQuery: a.Query,
		Header: a.Header.Clone(), RemoteAddr: "192.0.2.1", OwnBase: rd.ownBase, Adverse: rd.adverse, IgnoreRedirects: true}
}

// satisfied reports whether an answer is what the attack request wants; why, if set, gets the reason when it is not.
func (a Attack) satisfied(rs *urlrewrite.Ruleset, req *urlrewrite.Request, res urlrewrite.Result, why *string) bool {
	say := func(format string, args ...any) bool {
		if why != nil {
			*why = fmt.Sprintf(format, args...)
		}
		return false
	}
	switch res.Action {
	case urlrewrite.ActionAbort:
		return a.WantStatus == 0 || say("the connection is closed, wanted is status %d", a.WantStatus)
	case urlrewrite.ActionCustomResponse:
		if a.WantStatus != 0 && res.Status != a.WantStatus || res.Status < http.StatusBadRequest {
			return say("it is answered with status %d", res.Status)
		}
		return true
	case urlrewrite.ActionNone, urlrewrite.ActionRewrite, urlrewrite.ActionRedirect: // the last is not followed, see request
		if len(a.WantHeader) == 0 {
			return say("no rule refuses it")
		}
	}
	// A header counts for every answer that the application gives, whatever the inbound rules do with this one request.
	header := http.Header{"Content-Type": {"text/html; charset=utf-8"}}
	if _, _, err := rs.Respond(req, &urlrewrite.Response{Status: http.StatusOK, Header: header}); err != nil {
		return say("%v", err)
	}
	for k, want := range a.WantHeader {
		if got := strings.Join(header.Values(k), ", "); !strings.Contains(got, want) {
			return say("the answer's header %s would be %q", k, got)
		}
	}
	return true
}

// Judge judges one attack request at a site.
func Judge(m *iisconfig.Model, site *iisconfig.Site, a Attack, r Rules) Check {
	p := m.At(site, a.Path)
	c := Check{What: site.Name + ": " + a.Name, Site: site.Name, App: p.App}
	rs, notes, err := p.Rules()
	if err != nil {
		return invalid(c, err)
	}
	c.Notes = notes
	if runs, why := p.Module(); !runs {
		c.Why, c.Cause = "URL Rewrite does not run there: "+why, CauseModule
		return c
	}
	broken := "" // why IIS answers with an error, by one of the readings
	for _, rd := range readings {
		req := a.request(rd)
		res, err := rs.Inbound(req, p.App.Path)
		var runtime *urlrewrite.RuntimeError
		if errors.As(err, &runtime) {
			broken = "IIS answers 500.50: " + err.Error()
			continue
		}
		if err != nil {
			c.Why, c.Cause = "no verdict: "+err.Error(), CauseOther
			return c
		}
		why := ""
		if !a.satisfied(rs, req, res, &why) {
			c.Why, c.Cause = explain(p, rs, r, res, why, a)
			return c
		}
		if n := len(res.Rules); n > 0 {
			c.By = named(p, res.Rules[n-1])
		}
	}
	if broken != "" {
		c.Closed, c.Why, c.Cause = true, broken, CauseInvalid
		return c
	}
	c.OK = true
	return c
}

func invalid(c Check, err error) Check {
	c.Cause = CauseInvalid
	if bad := iisconfig.AsInvalid(err); bad != nil && !bad.Unsure {
		c.Closed, c.Why = true, "IIS refuses the configuration there (500.19): "+err.Error()
		return c
	}
	c.Why = "the configuration there can't be judged: " + err.Error()
	return c
}

// named adds where an effective rule comes from.
func named(p *iisconfig.Place, rule string) string {
	for _, section := range []string{"rules", "globalRules", "outboundRules"} {
		if it := p.Section(section).Item(rule); it != nil {
			return fmt.Sprintf("rule %q (%s)", rule, it.Source)
		}
	}
	return fmt.Sprintf("rule %q", rule)
}

// explain says why an attack request gets past the rules.
func explain(p *iisconfig.Place, rs *urlrewrite.Ruleset, r Rules, res urlrewrite.Result, why string, a Attack) (string, Cause) {
	if text, cause := missing(p, r); cause != CauseNone {
		return text, cause
	}
	if n := len(res.Rules); n > 0 && len(r.Inbound) > 0 {
		last := res.Rules[n-1]
		if !has(r.Inbound, last) && rs.Ends(last) {
			return fmt.Sprintf("%s comes first and ends the evaluation; %s", named(p, last), why), CauseShadowed
		}
	}
	if len(a.WantHeader) > 0 && len(r.Outbound) > 0 {
		if stop := rs.OutboundStopper(r.Outbound[0].Name); stop != "" {
			return fmt.Sprintf("%s comes first and ends the evaluation; %s", named(p, stop), why), CauseShadowed
		}
	}
	return why, CauseNoMatch
}

func has(rules []Rule, name string) bool {
	for _, r := range rules {
		if strings.EqualFold(r.Name, name) {
			return true
		}
	}
	return false
}

// missing says why a rule of ours is not among the effective ones of a place.
func missing(p *iisconfig.Place, r Rules) (string, Cause) {
	for _, part := range []struct {
		section string
		rules   []Rule
	}{{"rules", r.Inbound}, {"outboundRules", r.Outbound}} {
		s := p.Section(part.section)
		for _, x := range part.rules {
			it := s.Item(x.Name)
			if it != nil {
				if strings.EqualFold(it.Element.Attr("enabled"), "false") {
					return fmt.Sprintf("rule %q is disabled (%s)", x.Name, it.Source), CauseDisabled
				}
				continue
			}
			return absent(p, s, x.Name)
		}
	}
	return "", CauseNone
}

func absent(p *iisconfig.Place, s *iisconfig.Section, name string) (string, Cause) {
	if p.IgnoresWebConfig() {
		return fmt.Sprintf("application pool %s ignores web.config files (enableConfigurationOverride=\"false\")", p.App.Pool), CauseModule
	}
	for _, x := range s.Removed {
		if strings.EqualFold(x.Item.Name, name) {
			what := "<remove>"
			if x.Clear {
				what = "<clear/>"
			}
			return fmt.Sprintf("a %s at %s takes rule %q away", what, x.By, name), CauseRemoved
		}
	}
	for _, x := range s.NotInherited {
		if strings.EqualFold(x.Name, name) {
			return fmt.Sprintf("rule %q is in a <location> that applications do not inherit (%s)", name, x.Source), CauseNotInherited
		}
	}
	return fmt.Sprintf("rule %q is not there", name), CauseAbsent
}

// Reach judges whether rules are reached at an application's root: present, enabled, and behind no rule that ends the
// evaluation of every request.
func Reach(m *iisconfig.Model, app *iisconfig.App, r Rules, match Match) Check {
	p := m.At(app.Site, app.Path)
	c := Check{What: "application " + app.String(), Site: app.Site.Name, App: app}
	rs, notes, err := p.Rules()
	if err != nil {
		return invalid(c, err)
	}
	c.Notes = notes
	if runs, why := p.Module(); !runs {
		c.Why, c.Cause = "URL Rewrite does not run there: "+why, CauseModule
		return c
	}
	in, out, ok := match(p, r)
	if !ok {
		if c.Why, c.Cause = missing(p, r); c.Cause == CauseNone {
			c.Why, c.Cause = "a rule there has another content", CauseOther
		}
		return c
	}
	if c.Why, c.Cause = missing(p, r); c.Cause == CauseDisabled {
		return c
	}
	c.Why, c.Cause = "", CauseNone
	for _, n := range in {
		if stop := rs.InboundStopper(n, app.Path, func(other string) bool { return has(r.Inbound, other) }); stop != "" {
			c.Why, c.Cause = named(p, stop)+" comes first and ends the evaluation of every request", CauseShadowed
			return c
		}
		c.By = named(p, n)
	}
	for _, n := range out {
		if rs.Void(n) {
			c.Why, c.Cause = fmt.Sprintf("outbound rule %q never runs: its precondition is missing", n), CauseOther
			return c
		}
		if stop := rs.OutboundStopper(n); stop != "" {
			c.Why, c.Cause = named(p, stop)+" comes first and ends the evaluation of every response", CauseShadowed
			return c
		}
		c.By = named(p, n)
	}
	c.OK = true
	return c
}

// Unallowed returns a server variable that a rule of ours would set at a place and that IIS does not allow there: it then
// answers 500.50 to every request that the rule matches. "" for none.
func Unallowed(p *iisconfig.Place, r Rules) string {
	allowed := p.Section("allowedServerVariables")
	for _, x := range r.Inbound {
		if p.Section("rules").Item(x.Name) == nil {
			continue
		}
		for _, set := range x.Element.Child("serverVariables").All("set") {
			if allowed.Item(set.Attr("name")) == nil {
				return set.Attr("name")
			}
		}
	}
	return ""
}
