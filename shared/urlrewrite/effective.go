package urlrewrite

import (
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// samples are inputs of every shape: a pattern that matches all of them is taken to match everything.
var samples = []string{"", "a", "owa/", "owa/auth/logon.aspx", "ecp/default.aspx", "autodiscover/autodiscover.json", "autodiscover/autodiscover.xml",
	"EWS/Exchange.asmx", "powershell/", "Microsoft-Server-ActiveSync", "mapi/nspi/", "x/y/z-1.html", "Q_7.zz", "rpc/rpcproxy.dll"}

func matchesAll(p *pattern, negate bool) bool {
	if p == nil {
		return true
	}
	for _, s := range samples {
		caps, err := p.match(s)
		if err != nil || (caps != nil) == negate {
			return false
		}
	}
	return true
}

// ends reports whether a rule ends the evaluation when it matches.
func (r *inboundRule) ends() bool {
	return r.stop || r.action == "AbortRequest" || r.action == "CustomResponse" || r.action == "Redirect"
}

// passes reports whether a rule ends the evaluation and lets the request through.
func (r *inboundRule) passes() bool {
	return r.stop && r.action != "AbortRequest" && r.action != "CustomResponse" && r.action != "Redirect"
}

// chosen are the server variables whose value the client chooses besides the headers.
var chosen = map[string]bool{"REQUEST_METHOD": true, "SERVER_NAME": true, "SERVER_PORT": true, "SERVER_PORT_SECURE": true, "HTTPS": true, "CONTENT_TYPE": true, "CONTENT_LENGTH": true}

// chooses reports whether a value depends on what the client of a request chooses freely: what the request itself sets is fixed.
func (r *Request) chooses(t *template) bool {
	if t == nil {
		return false
	}
	for _, n := range t.nodes {
		if n.kind == nodeVariable {
			up := strings.ToUpper(n.text)
			h, header := strings.CutPrefix(up, "HTTP_")
			if chosen[up] || header && up != "HTTP_URL" && up != "HTTP_X_ORIGINAL_URL" && len(r.Header.Values(headerName(h))) == 0 {
				return true
			}
		}
		if r.chooses(n.arg) {
			return true
		}
	}
	return false
}

// Ends reports whether an inbound rule ends the evaluation when it matches.
func (rs *Ruleset) Ends(name string) bool {
	for _, rules := range [][]*inboundRule{rs.global, rs.inbound} {
		for _, r := range rules {
			if strings.EqualFold(r.name, name) {
				return r.ends()
			}
		}
	}
	return false
}

// InboundStopper returns the rule in front of an inbound rule that ends the evaluation of every request; "" for none. A
// global rule ends the distributed ones only by answering the request itself.
func (rs *Ruleset) InboundStopper(name string) string {
	all := func(r *inboundRule) bool {
		return r.enabled && !r.unknown && anybody(r) && matchesAll(r.url, r.urlNegate)
	}
	for _, r := range rs.global {
		if all(r) && r.ends() && r.action != "None" && r.action != "Rewrite" {
			return r.name
		}
	}
	for _, r := range rs.inbound {
		if strings.EqualFold(r.name, name) {
			return ""
		}
		if all(r) && r.ends() {
			return r.name
		}
	}
	return ""
}

// anybody reports whether every client can make the conditions of a rule hold, if it lets requests through.
func anybody(r *inboundRule) bool {
	req := &Request{}
	for _, c := range r.conditions {
		free := r.passes() && req.chooses(c.inputT)
		if r.matchAny && free {
			return true
		}
		if !r.matchAny && !free {
			return false
		}
	}
	return len(r.conditions) == 0 || !r.matchAny
}

// OutboundStopper returns the rule in front of an outbound rule that ends the evaluation of every response; "" for none.
func (rs *Ruleset) OutboundStopper(name string) string {
	for _, r := range rs.outbound {
		if strings.EqualFold(r.name, name) {
			return ""
		}
		if r.enabled && !r.unknown && !r.void && r.stop && r.pre == "" && r.variable != "" && len(r.conditions) == 0 && matchesAll(r.pattern, r.negate) {
			return r.name
		}
	}
	return ""
}

// Void reports whether an outbound rule never runs, because what it names is missing.
func (rs *Ruleset) Void(name string) bool {
	for _, r := range rs.outbound {
		if strings.EqualFold(r.name, name) {
			return r.void
		}
	}
	return true
}

// defaults of URL Rewrite's schema: an attribute written out with its default means the same as an absent one.
var defaults = map[string]string{
	"enabled": "true", "patternSyntax": "ECMAScript", "stopProcessing": "false", "ignoreCase": "true", "negate": "false",
	"matchType": "Pattern", "logicalGrouping": "MatchAll", "trackAllCaptures": "false", "appendQueryString": "true", "replace": "true",
	"logRewrittenUrl": "false", "responseCacheDirective": "Auto", "occurrences": "0", "filterByTags": "None",
}

// SameRule reports whether two rules, or preconditions, do the same whatever they are called. The name, the name of the
// precondition, and the spelling of defaults make no difference.
func SameRule(a, b *xmldoc.Element) bool { return sameElement(a, b, true) }

func sameElement(a, b *xmldoc.Element, top bool) bool {
	ca, cb := meaningful(a), meaningful(b)
	if a.Name != b.Name || len(ca) != len(cb) || a.HasText != b.HasText {
		return false
	}
	na, nb := attributes(a, top), attributes(b, top)
	if len(na) != len(nb) {
		return false
	}
	for k, v := range na {
		if nb[k] != v {
			return false
		}
	}
	for i := range ca {
		if !sameElement(ca[i], cb[i], false) {
			return false
		}
	}
	return true
}

// meaningful leaves out empty containers, which mean the same as absent ones.
func meaningful(e *xmldoc.Element) []*xmldoc.Element {
	var out []*xmldoc.Element
	for _, c := range e.Children {
		if (c.Name == "conditions" || c.Name == "serverVariables") && len(c.Children) == 0 {
			continue
		}
		out = append(out, c)
	}
	return out
}

func attributes(e *xmldoc.Element, top bool) map[string]string {
	m := map[string]string{}
	for _, x := range e.Attrs {
		if top && (x.Name == "name" || x.Name == "preCondition" || x.Name == "stopProcessing" && aborts(e)) {
			continue
		}
		if !strings.EqualFold(defaults[x.Name], x.Value) {
			m[x.Name] = x.Value
		}
	}
	return m
}

// aborts: a rule that ends the request makes stopProcessing meaningless.
func aborts(rule *xmldoc.Element) bool {
	a := rule.Child("action")
	return a != nil && a.Attr("type") == "AbortRequest"
}
