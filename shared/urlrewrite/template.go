package urlrewrite

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// template is a value with {...} parts: server variables, captures {R:n} {C:n}, functions {ToLower:...} {UrlDecode:...}
// {UrlEncode:...} {HtmlEncode:...}, and maps {Name:key}. Source: URL Rewrite configuration reference, "Accessing URL parts", "Using
// string functions", "Using back-references", "Rewrite maps"; of 2.0, HtmlEncode.
type template struct {
	nodes []node
}

type node struct {
	text string    // literal text, or the variable's, function's or map's name
	kind nodeKind  //
	n    int       // capture number
	arg  *template // argument of a function or map
}

type nodeKind int

const (
	nodeText nodeKind = iota
	nodeVariable
	nodeRuleCapture
	nodeConditionCapture
	nodeFunction
	nodeMap
)

const maxTemplateDepth = 8

func parseTemplate(s string, maps map[string]*rewriteMap) (*template, error) {
	t, rest, err := templateUntil(s, 0, maps)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	if rest != "" {
		return nil, fmt.Errorf("%q: } without {", s)
	}
	return t, nil
}

// templateUntil reads up to an unmatched } (depth > 0) or the end, and gives back what follows.
func templateUntil(s string, depth int, maps map[string]*rewriteMap) (*template, string, error) {
	if depth > maxTemplateDepth {
		return nil, "", fmt.Errorf("nested deeper than %d", maxTemplateDepth)
	}
	t := &template{}
	text := func(x string) {
		if x != "" {
			t.nodes = append(t.nodes, node{text: x})
		}
	}
	for {
		i := strings.IndexAny(s, "{}")
		if i < 0 {
			if depth > 0 {
				return nil, "", fmt.Errorf("{ without }")
			}
			text(s)
			return t, "", nil
		}
		text(s[:i])
		if s[i] == '}' {
			if depth == 0 {
				return t, s[i:], nil
			}
			return t, s[i+1:], nil
		}
		s = s[i+1:]
		end := strings.IndexAny(s, ":{}")
		if end < 0 {
			return nil, "", fmt.Errorf("{ without }")
		}
		switch s[end] {
		case '{':
			return nil, "", fmt.Errorf("{ inside a name")
		case '}':
			if end == 0 {
				return nil, "", fmt.Errorf("{} names nothing")
			}
			t.nodes = append(t.nodes, node{text: s[:end], kind: nodeVariable})
			s = s[end+1:]
			continue
		}
		name := s[:end]
		arg, rest, err := templateUntil(s[end+1:], depth+1, maps)
		if err != nil {
			return nil, "", err
		}
		n, err := namedNode(name, arg, maps)
		if err != nil {
			return nil, "", err
		}
		t.nodes = append(t.nodes, n)
		s = rest
	}
}

func namedNode(name string, arg *template, maps map[string]*rewriteMap) (node, error) {
	if name == "R" || name == "C" {
		kind := nodeRuleCapture
		if name == "C" {
			kind = nodeConditionCapture
		}
		if len(arg.nodes) == 1 && arg.nodes[0].kind == nodeText {
			if digit := arg.nodes[0].text; len(digit) == 1 && digit >= "0" && digit <= "9" {
				return node{kind: kind, n: int(digit[0] - '0')}, nil
			}
		}
		return node{}, fmt.Errorf("{%s:...} needs a number from 0 to 9", name)
	}
	switch strings.ToLower(name) {
	case "tolower", "urlencode", "urldecode", "htmlencode":
		return node{text: strings.ToLower(name), kind: nodeFunction, arg: arg}, nil
	}
	if _, ok := maps[strings.ToLower(name)]; ok {
		return node{text: strings.ToLower(name), kind: nodeMap, arg: arg}, nil
	}
	return node{}, fmt.Errorf("no function or rewrite map %q", name)
}

// scope is what a template can see.
type scope struct {
	// adverse: what the client chooses, or what can't be judged, holds.
	adverse bool
	// wary: neither of them holds.
	wary bool

	variable func(name string) string
	rule     []string
	cond     []string
	maps     map[string]*rewriteMap
}

func (t *template) expand(sc *scope) string {
	if len(t.nodes) == 1 && t.nodes[0].kind == nodeText {
		return t.nodes[0].text
	}
	var b strings.Builder
	for _, n := range t.nodes {
		switch n.kind {
		case nodeText:
			b.WriteString(n.text)
		case nodeVariable:
			b.WriteString(sc.variable(n.text))
		case nodeRuleCapture:
			b.WriteString(capture(sc.rule, n.n))
		case nodeConditionCapture:
			b.WriteString(capture(sc.cond, n.n))
		case nodeFunction:
			b.WriteString(apply(n.text, n.arg.expand(sc)))
		case nodeMap:
			b.WriteString(sc.maps[n.text].get(n.arg.expand(sc)))
		}
	}
	return b.String()
}

func capture(c []string, n int) string {
	if n < len(c) {
		return c[n]
	}
	return ""
}

func apply(fn, arg string) string {
	switch fn {
	case "tolower":
		return strings.ToLower(arg)
	case "urlencode":
		return strings.ReplaceAll(url.QueryEscape(arg), "+", "%20")
	case "htmlencode":
		return htmlEncode.Replace(arg)
	default:
		return percentDecode(arg)
	}
}

// htmlEncode encodes what HTML gives a meaning to. The reference does not list the characters; whether IIS encodes the apostrophe too
// is not known.
var htmlEncode = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// percentDecode decodes %XX once and leaves anything malformed, and +, as it is.
func percentDecode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && hexRun(s[i+1:], 2) {
			v, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			out = append(out, byte(v))
			i += 2
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}
