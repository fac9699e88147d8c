package simulate

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// rule is one inbound rule of the mitigation, alone, at its place.
type rule struct {
	name string
	base string
	set  *urlrewrite.Ruleset
	traits
}

// traits are properties of a rule's text that decide how it is evaluated.
type traits struct {
	// match is the rule's <match> alone: it aborts the requests for which the rule's conditions would be evaluated. It is nil where
	// there is no <match> with a url.
	match *urlrewrite.Ruleset
	// disabled is enabled="false".
	disabled bool
	// growing says that the rule also matches every longer query: no pattern looks for the end of its input, or for text that must
	// be absent. If such a rule does not match the whole query, it matches no beginning of it.
	growing bool
}

// readTraits returns the traits of a document's rules, by name. EachInbound has accepted the same fragment.
func readTraits(fragment []byte) (map[string]traits, error) {
	doc, err := xmldoc.ParseFragment(fragment)
	if err != nil {
		return nil, err
	}
	out := map[string]traits{}
	for _, e := range doc.Root.All("rule") {
		t := traits{disabled: isTrue(e, "enabled", "false"), growing: growing(e)}
		if m := e.Child("match"); m != nil {
			if _, has := m.Lookup("url"); has {
				alone := fmt.Sprintf(`<rule name="match" enabled=%q patternSyntax=%q>%s<action type="AbortRequest" /></rule>`,
					e.AttrOr("enabled", "true"), e.AttrOr("patternSyntax", "ECMAScript"), doc.Bytes(m))
				sets, err := urlrewrite.EachInbound([]byte(alone))
				if err != nil {
					return nil, fmt.Errorf("rule %q: <match>: %w", e.Attr("name"), err)
				}
				t.match = sets[0].Set
			}
		}
		out[e.Attr("name")] = t
	}
	return out, nil
}

func isTrue(e *xmldoc.Element, attr, want string) bool { return strings.EqualFold(e.Attr(attr), want) }

const queryVariables = `(QUERY_STRING|REQUEST_URI|UNENCODED_URL|HTTP_URL|HTTP_X_ORIGINAL_URL)`

var (
	// holdsQuery finds the server variables that hold the query.
	holdsQuery = regexp.MustCompile(`(?i)\{` + queryVariables + `\}`)
	// queryLast is an input that ends with the query, and changes no character of it because of another.
	queryLast = regexp.MustCompile(`(?i)^[^{}]*(\{(UrlDecode|UrlEncode|ToLower):)*\{` + queryVariables + `\}+$`)
	// looksAtEnd finds the parts of a pattern that depend on the text behind the match, or on its absence.
	looksAtEnd = regexp.MustCompile(`\$|\(\?!|\\[bB]`)
	// derived finds inputs that are taken from an earlier condition, or from a map.
	derived = regexp.MustCompile(`(?i)\{C:|\{[^{}:]+:`)
	// function finds the functions of inputs.
	function = regexp.MustCompile(`(?i)\{(UrlDecode|UrlEncode|ToLower):`)
)

// growing computes traits.growing. In doubt it returns false, which costs time and changes no verdict.
func growing(rule *xmldoc.Element) bool {
	conditions := rule.Child("conditions")
	if conditions == nil {
		return true
	}
	if !strings.EqualFold(rule.AttrOr("patternSyntax", "ECMAScript"), "ECMAScript") {
		return false
	}
	for _, c := range conditions.All("add") {
		input := c.Attr("input")
		if !holdsQuery.MatchString(input) && !derived.MatchString(function.ReplaceAllString(input, "")) {
			continue
		}
		if !queryLast.MatchString(input) || looksAtEnd.MatchString(c.Attr("pattern")) || isTrue(c, "negate", "true") ||
			!strings.EqualFold(c.AttrOr("matchType", "Pattern"), "Pattern") {
			return false
		}
	}
	return true
}

// below says whether a request is for the place of a rule.
func below(path, base string) bool {
	base = strings.TrimSuffix(base, "/")
	return len(path) >= len(base) && strings.EqualFold(path[:len(base)], base) && (len(path) == len(base) || path[len(base)] == '/')
}

// verdict of a rule on a request.
type verdict int

const (
	untouched  verdict = iota
	blocked            // aborted, or answered by the rule
	changed            // rewritten or redirected
	unjudged           // the log lacks what the rule asks for
	overBudget         // a pattern took longer than it may
	tooLong            // a value is longer than patterns are matched against
	failed             // the rule can't be carried out: IIS would answer 500.50
)

func (v verdict) hit() bool { return v == blocked || v == changed }

// judge evaluates the rule for a request below its place. The error says why there is no verdict.
func (r *rule) judge(req *urlrewrite.Request) (verdict, error) { return judge(r.set, req, r.base) }

func judge(set *urlrewrite.Ruleset, req *urlrewrite.Request, base string) (verdict, error) {
	req.Asked, req.Vars = false, nil
	res, err := set.Inbound(req, base)
	if err != nil {
		var rt *urlrewrite.RuntimeError
		switch {
		case errors.As(err, &rt):
			return failed, err
		case strings.Contains(err.Error(), "input of "): // urlrewrite has one error for both
			return tooLong, err
		}
		return overBudget, err
	}
	switch {
	case req.Asked:
		return unjudged, nil
	case res.Action == urlrewrite.ActionAbort || res.Action == urlrewrite.ActionCustomResponse:
		return blocked, nil
	case res.Action == urlrewrite.ActionRewrite || res.Action == urlrewrite.ActionRedirect:
		return changed, nil
	}
	return untouched, nil
}

// maxOverruns bounds how often a rule may exceed the budget of its patterns, a quarter of a second each time, before the rule is
// no longer evaluated: a few thousand hostile lines would otherwise take hours.
const maxOverruns = 200

// judgeWithin is judge with that bound.
func judgeWithin(set *urlrewrite.Ruleset, e *entry, base string, overruns *atomic.Int64) verdict {
	if overruns.Load() >= maxOverruns {
		return overBudget
	}
	v, _ := judge(set, &e.req, base)
	if v == overBudget {
		overruns.Add(1)
	}
	return v
}

// evaluate judges an entry below the rule's place with every query that the client may have sent. depends says that the verdict
// is another without the text that Exchange may have appended; a hit with any of the queries is a hit.
func (r *rule) evaluate(e *entry, overruns *atomic.Int64) (v verdict, depends bool) {
	e.queryAsked = false
	v = judgeWithin(r.set, e, r.base, overruns)
	if !e.queryAsked || v == untouched && r.growing {
		return v, false
	}
	whole := e.req.RawQuery
	ends := clientEnds(whole)
	if v.hit() && r.growing && len(ends) > 1 {
		ends = ends[:1]
	}
	for _, end := range ends {
		e.req.RawQuery = whole[:end]
		w := judgeWithin(r.set, e, r.base, overruns)
		if w == v {
			continue
		}
		depends = true
		if w == blocked || w.hit() && !v.hit() || v == untouched {
			v = w
		}
	}
	e.req.RawQuery = whole
	return v, depends && v.hit()
}
