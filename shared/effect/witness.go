package effect

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"regexp/syntax"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// matcher is one pattern of a rule.
type matcher struct {
	source, syntax string
	rs             *urlrewrite.Ruleset
}

// newMatcher compiles a pattern as a rule with these attributes does. It is nil when the pattern does not compile, which the
// document's parser has refused.
func newMatcher(pattern, patternSyntax, ignoreCase string) *matcher {
	if patternSyntax == "" {
		patternSyntax = "ECMAScript"
	}
	var p strings.Builder
	if xml.EscapeText(&p, []byte(pattern)) != nil {
		return nil
	}
	fold := ""
	if strings.EqualFold(ignoreCase, "false") {
		fold = ` ignoreCase="false"`
	}
	r, err := ParseRules(fmt.Sprintf(`<rule name="m" patternSyntax="%s"><match url="-" negate="true"/>`+
		`<conditions><add input="{HTTP_INPUT}" pattern="%s"%s/></conditions>`+
		`<action type="AbortRequest"/></rule>`, patternSyntax, p.String(), fold), "")
	if err != nil {
		return nil
	}
	return &matcher{pattern, patternSyntax, r.alone}
}

func (m *matcher) matches(in string) bool {
	if m == nil {
		return false
	}
	res, err := m.rs.Inbound(&urlrewrite.Request{Path: "/", Header: http.Header{"Input": {in}}}, "/")
	return err == nil && res.Action == urlrewrite.ActionAbort
}

// Bounds on the examples of what a pattern matches.
const (
	maxExamples     = 64
	maxExampleBytes = 400
)

// examples returns texts that the pattern matches, short ones of every shape: each alternative, each optional part present and
// absent. complete is false when there are more shapes than fit, or the pattern has parts that can't be turned into a text.
func (m *matcher) examples() (out []string, complete bool) {
	if m == nil {
		return nil, false
	}
	var all []string
	complete = true
	switch m.syntax {
	case "ExactMatch":
		all = []string{m.source}
	case "Wildcard":
		s := strings.ReplaceAll(m.source, "?", "x")
		all = []string{strings.ReplaceAll(s, "*", ""), strings.ReplaceAll(s, "*", "x")}
	default:
		if strings.Contains(m.source, "(?!") {
			return nil, false
		}
		// A look-ahead's text, put where it stands, often matches; whether it does is tried below.
		re, err := syntax.Parse(strings.ReplaceAll(m.source, "(?=", "(?:"), syntax.Perl)
		if err != nil {
			return nil, false
		}
		all, complete = texts(re)
	}
	for _, t := range all {
		if m.matches(t) {
			out = append(out, t)
		} else {
			complete = false
		}
	}
	return out, complete && len(out) > 0
}

// texts are examples of what an expression matches; false when there are too many shapes.
func texts(re *syntax.Regexp) ([]string, bool) {
	switch re.Op {
	case syntax.OpLiteral:
		return []string{string(re.Rune)}, len(re.Rune) < maxExampleBytes
	case syntax.OpCharClass:
		return members(re.Rune)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return []string{"x"}, true
	case syntax.OpCapture:
		return texts(re.Sub[0])
	case syntax.OpStar, syntax.OpQuest, syntax.OpPlus, syntax.OpRepeat:
		return repeated(re)
	case syntax.OpConcat:
		out := []string{""}
		for _, s := range re.Sub {
			next, ok := texts(s)
			if !ok || len(out)*len(next) > maxExamples {
				return nil, false
			}
			var joined []string
			for _, a := range out {
				for _, b := range next {
					if len(a)+len(b) > maxExampleBytes {
						return nil, false
					}
					joined = append(joined, a+b)
				}
			}
			out = joined
		}
		return out, true
	case syntax.OpAlternate:
		var out []string
		for _, s := range re.Sub {
			next, ok := texts(s)
			if !ok || len(out)+len(next) > maxExamples {
				return nil, false
			}
			out = append(out, next...)
		}
		return out, true
	case syntax.OpNoMatch:
		return nil, false
	default: // anchors and word boundaries have no text
		return []string{""}, true
	}
}

func repeated(re *syntax.Regexp) ([]string, bool) {
	least, most := 0, 1
	switch re.Op {
	case syntax.OpPlus:
		least = 1
	case syntax.OpRepeat:
		least, most = re.Min, max(re.Min, min(1, re.Max))
		if re.Max < 0 {
			most = max(re.Min, 1)
		}
	default:
	}
	one, ok := texts(re.Sub[0])
	if !ok {
		return nil, false
	}
	// A star of any character adds no shape: what is around it decides.
	if op := re.Sub[0].Op; least == 0 && (op == syntax.OpAnyChar || op == syntax.OpAnyCharNotNL) {
		return []string{""}, true
	}
	var out []string
	for n := least; n <= most; n++ {
		if n == 0 {
			out = append(out, "")
			continue
		}
		for _, t := range one {
			if len(t)*n > maxExampleBytes {
				return nil, false
			}
			out = append(out, strings.Repeat(t, n))
		}
	}
	return out, len(out) <= maxExamples
}

// members picks characters of a class: the first and the last letter or digit, or else one that a URL can have.
func members(class []rune) ([]string, bool) {
	var out []string
	for _, r := range [][2]rune{{'a', 'z'}, {'0', '9'}, {'A', 'Z'}} {
		low, high := rune(-1), rune(-1)
		for i := 0; i+1 < len(class); i += 2 {
			if from, to := max(class[i], r[0]), min(class[i+1], r[1]); from <= to {
				if low < 0 {
					low = from
				}
				high = to
			}
		}
		if low >= 0 && len(out) == 0 {
			out = append(out, string(low))
			if high != low {
				out = append(out, string(high))
			}
		}
	}
	if len(out) > 0 {
		return out, true
	}
	for _, c := range "-_.~&=@;,+%/ ?:" {
		for i := 0; i+1 < len(class); i += 2 {
			if class[i] <= c && c <= class[i+1] {
				return []string{string(c)}, true
			}
		}
	}
	if len(class) > 0 {
		return []string{string(class[0])}, true
	}
	return nil, false
}
