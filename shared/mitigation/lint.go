package mitigation

import (
	"fmt"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Finding is something in a document that Parse accepts and that a reviewer must see. An agent never refuses a document for
// a finding: one that was signed before a check existed stays readable.
type Finding struct {
	Problem
	// Severe: the document does harm, or nothing. It should not be signed.
	Severe bool
}

func (f Finding) String() string {
	if f.Severe {
		return f.Problem.String() + " (error)"
	}
	return f.Problem.String() + " (warning)"
}

// Severe returns the severe ones of findings.
func Severe(all []Finding) []Finding {
	var out []Finding
	for _, f := range all {
		if f.Severe {
			out = append(out, f)
		}
	}
	return out
}

// Bounds on what lint judges and says.
const (
	// maxFindings bounds the errors on one document, and the warnings.
	maxFindings = 60
	// maxLintRules bounds the rules of a document whose effect is judged. The largest document of the catalogue has two.
	maxLintRules = 100
	// maxNamed bounds the requests that one finding names.
	maxNamed = 3
)

// linter gathers findings on one document.
type linter struct {
	checker
	d        *Document
	findings []Finding
	count    map[bool]int // of findings, by whether they are severe
}

// Lint judges a document that Parse accepted: whether its rules do what it is for, on a standard Exchange server, and nothing
// else; and whether it can be bypassed. Findings are ordered by line. It takes at most about effect.MaxReviewTime.
func Lint(d *Document) []Finding {
	l := &linter{checker: checker{name: d.Ref(), data: d.Content, root: &yaml.Node{}}, d: d, count: map[bool]int{}}
	_ = yaml.Unmarshal(d.Content, l.root)
	l.leaves()
	l.names()
	l.bypasses()
	l.effect()
	sort.SliceStable(l.findings, func(i, j int) bool { return l.findings[i].Line < l.findings[j].Line })
	return l.findings
}

// say adds a finding at a YAML node.
func (l *linter) say(severe bool, n *yaml.Node, format string, args ...any) {
	l.at(severe, n.Line, n.Column, format, args...)
}

func (l *linter) at(severe bool, line, col int, format string, args ...any) {
	if l.count[severe]++; l.count[severe] <= maxFindings {
		l.findings = append(l.findings, Finding{Problem{l.name, line, col, fmt.Sprintf(format, args...)}, severe})
	}
}

// rule adds a finding at a rule of an action.
func (l *linter) rule(severe bool, action int, outbound bool, name, format string, args ...any) {
	if l.count[severe] >= maxFindings {
		return
	}
	n := l.fragmentNode(action, outbound)
	line, col := n.Line, n.Column
	if e := l.element(action, outbound, name); e != nil {
		inLine, inCol := xmldoc.LineCol([]byte(l.xml(action, outbound)), e.Start)
		line, col, _ = l.within(n, inLine, inCol)
	}
	l.at(severe, line, col, "rule %q "+format, append([]any{name}, args...)...)
}

func (l *linter) fragmentNode(action int, outbound bool) *yaml.Node {
	if outbound {
		return l.node("actions", action, "urlRewrite", "outbound")
	}
	return l.node("actions", action, "urlRewrite", "inbound")
}

func (l *linter) xml(action int, outbound bool) string {
	rw := l.d.GetActions()[action].GetUrlRewrite()
	if outbound {
		return rw.GetOutbound()
	}
	return rw.GetInbound()
}

// element finds a rule of an action; nil when there is none.
func (l *linter) element(action int, outbound bool, name string) *xmldoc.Element {
	doc, err := xmldoc.ParseFragment([]byte(l.xml(action, outbound)))
	if err != nil {
		return nil
	}
	for _, e := range doc.Root.All("rule") {
		if strings.EqualFold(e.Attr("name"), name) {
			return e
		}
	}
	return nil
}

// eachFragment calls f for every XML fragment of the document, in order.
func (l *linter) eachFragment(f func(action int, outbound bool, xml string)) {
	for i := range l.d.GetActions() {
		for _, outbound := range []bool{false, true} {
			if x := l.xml(i, outbound); x != "" {
				f(i, outbound, x)
			}
		}
	}
}

// leaves says when a mitigation would stay for ever, or nothing would show whether it works.
func (l *linter) leaves() {
	if len(l.d.GetActions()) == 0 {
		return // it changes nothing, as PING1
	}
	never := RemoveWhen(l.d.Mitigation) == stopgapv1.RemoveWhen_REMOVE_WHEN_NEVER
	if len(l.d.GetCves()) == 0 && !never {
		l.say(false, l.node("removeWhen"),
			"it has no CVE, so that it is never removed by itself; name the CVE, or write removeWhen: REMOVE_WHEN_NEVER if that is meant")
	}
	published := false
	for _, c := range l.d.GetCves() {
		published = published || len(effect.Published(c)) > 0
	}
	if l.shows() || never && published {
		return
	}
	for i, a := range l.d.GetActions() {
		if a.GetUrlRewrite() != nil || a.GetAppPool() != nil {
			l.say(false, l.node("actions", i),
				"it has no effect probe: no request shows that the server does what is wanted; add one with the attack's form to probes")
			return
		}
	}
}

// shows reports whether the document has an effect probe.
func (l *linter) shows() bool {
	for _, p := range l.d.GetProbes() {
		if p.GetEffect() != nil {
			return true
		}
	}
	return false
}

func (l *linter) names() {
	want := fmt.Sprintf("Stopgap %s.%d ", l.d.GetId(), l.d.GetRevision())
	l.eachFragment(func(action int, outbound bool, xml string) {
		_, names, _ := urlrewrite.ParseFragment([]byte(xml), outbound)
		for _, n := range names {
			if !strings.HasPrefix(n, want) {
				l.rule(false, action, outbound, n, "should be named %q...: then nobody takes it for somebody else's", want)
			}
		}
	})
}

func (l *linter) bypasses() {
	l.eachFragment(func(action int, outbound bool, xml string) {
		if outbound {
			return
		}
		ways, err := urlrewrite.Weaknesses([]byte(xml))
		if err != nil {
			l.say(false, l.node("actions", action, "urlRewrite", "inbound"), "it could not be checked for ways past it: %v", err)
		}
		for _, w := range ways {
			if r := l.element(action, false, w.Rule); r != nil && r.Child("action").AttrOr("type", "None") == "None" {
				continue // it lets requests through; to get past it is no gain
			}
			l.rule(false, action, false, w.Rule, "can be bypassed: %s", w.Text)
		}
	})
}
