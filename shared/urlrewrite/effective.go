package urlrewrite

import (
	"net/http"
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

// computed are the server variables, besides headers, that the evaluator knows the value of.
var computed = map[string]bool{"UNENCODED_URL": true, "HTTP_URL": true, "REQUEST_URI": true, "URL": true, "SCRIPT_NAME": true, "PATH_INFO": true,
	"REQUEST_FILENAME": true, "QUERY_STRING": true, "REMOTE_ADDR": true, "REMOTE_HOST": true, "HTTP_X_ORIGINAL_URL": true, "REQUEST_METHOD": true}

// chooses reports whether a value depends on what the client of a request chooses freely, or on a server variable whose value
// is not known (SERVER_PROTOCOL, LOGON_USER): what the request itself sets is fixed. method tells whether its method is free.
func (r *Request) chooses(t *template, method bool) bool {
	if t == nil {
		return false
	}
	for _, n := range t.nodes {
		if n.kind == nodeVariable {
			up := strings.ToUpper(n.text)
			h, header := strings.CutPrefix(up, "HTTP_")
			_, set := r.Vars[up]
			switch {
			case set, strings.HasPrefix(up, "RESPONSE_"):
			case up == "REQUEST_METHOD":
				if method {
					return true
				}
			case up == "QUERY_STRING" && r.freeQuery:
				return true
			case computed[up]:
			case !header, len(r.Header.Values(headerName(h))) == 0:
				return true
			}
		}
		if r.chooses(n.arg, method) {
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

// InboundStopper returns the rule in front of an inbound rule of the place at a URL path that ends the evaluation of every
// request that the rule is for; "" for none. A global rule ends the distributed ones only by answering the request itself. Rules
// that expected knows do not count: they are meant to stand there.
func (rs *Ruleset) InboundStopper(name, base string, expected func(rule string) bool) string {
	inputs := rs.inputsOf(name)
	for _, r := range rs.global {
		if r.ends() && r.action != "None" && r.action != "Rewrite" && rs.takesAll(r, base, inputs) {
			return r.name
		}
	}
	for _, r := range rs.inbound {
		if strings.EqualFold(r.name, name) {
			return ""
		}
		if r.ends() && !expected(r.name) && rs.takesAll(r, base, inputs) {
			return r.name
		}
	}
	return ""
}

// inputsOf are the samples that the pattern of an inbound rule matches; all of them when it matches none.
func (rs *Ruleset) inputsOf(name string) []string {
	var out []string
	for _, r := range rs.inbound {
		if !strings.EqualFold(r.name, name) || r.url == nil {
			continue
		}
		for _, s := range samples {
			if caps, err := r.url.match(s); err == nil && (caps != nil) != r.urlNegate {
				out = append(out, s)
			}
		}
	}
	if len(out) == 0 {
		return samples
	}
	return out
}

// takesAll reports whether a rule matches requests for all of several inputs, of a client that wants to get past the rules
// behind it.
func (rs *Ruleset) takesAll(r *inboundRule, base string, inputs []string) bool {
	if !r.enabled || r.unknown {
		return false
	}
	for _, s := range inputs {
		if r.url != nil {
			if caps, err := r.url.match(s); err != nil || (caps != nil) == r.urlNegate {
				return false
			}
		}
		req := &Request{Method: http.MethodGet, Scheme: "https", Host: "mail.example", Path: strings.TrimSuffix(base, "/") + "/" + s,
			Header: http.Header{}, RemoteAddr: "192.0.2.1", Adverse: true, freeQuery: true}
		sc := &scope{variable: req.variable(nil, req.Path, ""), maps: rs.maps, adverse: r.passes(), wary: !r.passes()}
		if ok, err := matchAllOf(r.conditions, r.matchAny, r.trackAll, sc, req); err != nil || !ok {
			return false
		}
	}
	return true
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
