package urlrewrite

import (
	"fmt"
	"net/http"
	"strings"
)

// Weakness is a way past a rule of a mitigation.
type Weakness struct {
	Rule string
	// Text says what the way is, with a request that goes through where one is known.
	Text string
}

// rawVariables are what IIS gives a rule as the client sent it, percent-encoding and all; what Exchange then reads is
// decoded. {REQUEST_URI} is decoded in its path only.
var rawVariables = map[string]bool{"QUERY_STRING": true, "REQUEST_URI": true, "UNENCODED_URL": true, "HTTP_URL": true, "HTTP_X_ORIGINAL_URL": true}

// Weaknesses lists the ways past the inbound rules of a mitigation that can be told from the rules alone: a text that is
// looked for in what arrives percent-encoded, or in one case of letters only; and the published bypasses of the first rules
// for CVE-2022-41040, tried on every rule that catches the published attack. It finds no others.
func Weaknesses(fragment []byte) ([]Weakness, error) {
	s, _, err := ParseFragment(fragment, false)
	if err != nil {
		return nil, err
	}
	var out []Weakness
	for _, o := range s.inbound.ops {
		r := o.add
		if r == nil || !r.enabled {
			continue
		}
		add := func(format string, args ...any) {
			out = append(out, Weakness{r.name, fmt.Sprintf(format, args...)})
		}
		if l := r.url.literal(); l != "" && !r.urlNegate && !r.url.fold {
			add("<match> looks for %q in exactly this case: %q goes past it", l, swapCase(l))
		}
		for _, c := range r.conditions {
			l := c.pattern.literal()
			if l == "" || c.negate {
				continue
			}
			t, err := parseTemplate(c.input, nil)
			if err != nil {
				continue // a mitigation has no maps; Merge has refused it
			}
			if !c.pattern.fold && !t.lowered() {
				add("the condition on %s looks for %q in exactly this case: %q goes past it", c.input, l, swapCase(l))
			}
			if v := t.undecoded(); v != "" {
				add("the condition on %s looks for %q in what the client may percent-encode: %q goes past it; write {UrlDecode:{%s}}", c.input, l, encodeFirst(l), v)
			}
		}
	}
	known, err := publishedBypasses(fragment)
	return append(out, known...), err
}

// words are the runs of letters, three at least, that an ECMAScript pattern spells out, outside of classes; of alternatives each
// has its own.
func words(src string) []string {
	var b strings.Builder
	class := false
	for i := 0; i < len(src); i++ {
		switch c := src[i]; {
		case c == '\\':
			i++
			b.WriteByte(' ')
		case class:
			class = c != ']'
		case c == '[':
			class = true
			b.WriteByte(' ')
		case letter(rune(c)):
			b.WriteByte(c)
		default:
			b.WriteByte(' ')
		}
	}
	var out []string
	for _, w := range strings.Fields(b.String()) {
		if len(w) >= minLiteral {
			out = append(out, w)
		}
	}
	return out
}

// literal is a text with a letter in it that matches contain, all of them or those of one alternative; "" when none is known.
func (p *pattern) literal() string {
	if p == nil {
		return ""
	}
	texts := strings.FieldsFunc(p.source, func(r rune) bool { return r == '*' && !p.exact }) // a wildcard pattern
	if p.syntax == ecmaScript {
		texts = words(p.source)
		if p.pre != nil && len(p.pre.literals) > 0 {
			texts = p.pre.literals
		}
	}
	for _, l := range texts {
		if strings.ContainsFunc(l, letter) {
			return l
		}
	}
	return ""
}

// lowered says whether a value has no capitals left.
func (t *template) lowered() bool {
	return len(t.nodes) == 1 && t.nodes[0].kind == nodeFunction && t.nodes[0].text == "tolower"
}

func letter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

// undecoded is the first variable of a value that is as the client sent it and not decoded before it is compared; "" for none.
func (t *template) undecoded() string {
	if t == nil {
		return ""
	}
	for _, n := range t.nodes {
		switch {
		case n.kind == nodeVariable && rawVariables[strings.ToUpper(n.text)]:
			return strings.ToUpper(n.text)
		case n.kind == nodeFunction && n.text == "urldecode":
		default:
			if v := n.arg.undecoded(); v != "" {
				return v
			}
		}
	}
	return ""
}

func swapCase(s string) string {
	if up := strings.ToUpper(s); up != s {
		return up
	}
	return strings.ToLower(s)
}

func encodeFirst(s string) string {
	i := strings.IndexFunc(s, letter)
	return s[:i] + fmt.Sprintf("%%%02x", s[i]) + s[i+1:]
}

// published are an attack as it was published and the ways past the first rules against it. Source: GTSC and ZDI on
// ProxyNotShell; microsoft/CSS-Exchange, the versions of the rule of EOMTv2.ps1 from 2022-09-30 to 10-07 and issue 1270.
var published = struct {
	path, query string
	ways        []struct{ path, query, what string }
}{
	"/autodiscover/autodiscover.json", "@evil.example/owa/&Protocol=XYZ&FooProtocol=Powershell",
	[]struct{ path, query, what string }{
		{"/autodiscover/autodiscover.json", "a..evil.example/owa/&Protocol=XYZ&FooProtocol=Powershell", "without the @"},
		{"/autodiscover/autodiscover.json", "@evil.example/owa/&Protocol=XYZ&FooProtocol=%50owershell", "with a letter percent-encoded"},
		{"/autodiscover/autodiscover.json", "@evil.example/owa/&Protocol=XYZ&FooProtocol=POWERSHELL", "in capitals"},
		{"/powershell/", "X-Rps-CAT=A&Email=autodiscover/autodiscover.json%3f@evil.example", "with the two words in the other order"},
	},
}

// publishedBypasses plays the published attack and its variants.
func publishedBypasses(fragment []byte) ([]Weakness, error) {
	rules, err := EachInbound(fragment)
	if err != nil {
		return nil, err
	}
	catches := func(in Inbound, path, query string) bool {
		req := &Request{Method: "GET", Scheme: "https", Host: "mail.example", Path: path, RawQuery: query, Header: http.Header{}}
		res, err := in.Set.Inbound(req, "/")
		return err == nil && (res.Action == ActionAbort || res.Action == ActionCustomResponse)
	}
	var out []Weakness
	for _, in := range rules {
		if !catches(in, published.path, published.query) {
			continue
		}
		for _, w := range published.ways {
			if !catches(in, w.path, w.query) {
				out = append(out, Weakness{in.Name, fmt.Sprintf("it stops the published attack of CVE-2022-41040 and not the published way past such rules %s: GET %s?%s", w.what, w.path, w.query)})
			}
		}
	}
	return out, nil
}
