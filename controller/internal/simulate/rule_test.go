package simulate

import (
	"bufio"
	"bytes"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

func bufioOf(data []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(data)) }

// ruled is a simulation of a document with these rules at a path.
func ruled(t *testing.T, path, rules string) *Simulation {
	t.Helper()
	d := catalogue(t, "M1")
	u := d.GetActions()[0].GetUrlRewrite()
	u.Inbound, u.GetLocation().Path = rules, path
	s, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARuleWhoseMatchMatchesNothingIsReportedAsDoingNothing(t *testing.T) {
	t.Parallel()
	const never = `<conditions><add input="{QUERY_STRING}" pattern="never"/></conditions>`
	log := head + strings.Repeat(line("POST", "/EWS/Exchange.asmx", "a=1", "192.0.2.7"), 5) + line("GET", "/owa/", "-", "192.0.2.7")
	for name, c := range map[string]struct {
		path, match, conditions string
		nothing                 bool
		says                    string
	}{
		"the url as seen from the site": {"/EWS", `<match url="^ews/exchange\.asmx"/>`, "", true,
			"matched none of the 5 requests for its own path: this rule does nothing"},
		"the url as seen from its own place":  {"/EWS", `<match url="^exchange\.asmx"/>`, never, false, "would have touched none of 6 requests"},
		"a leading slash":                     {"/", `<match url="^/EWS"/>`, "", true, "this rule does nothing"},
		"a negated match":                     {"/EWS", `<match url="^exchange" negate="true"/>`, "", true, "this rule does nothing"},
		"a match without url":                 {"/EWS", `<match/>`, never, false, "would have touched none of 6 requests"},
		"no match":                            {"/EWS", ``, never, false, "would have touched none of 6 requests"},
		"a path that nobody asked for":        {"/mapi", `<match url="^x"/>`, "", false, "nothing is known about this rule"},
		"a rule that blocks":                  {"/EWS", `<match url=".*"/>`, "", false, "would have blocked 5"},
		"a rule that is disabled":             {"/EWS", `<match url=".*"/>`, "disabled", true, `enabled="false"`},
		"a disabled rule without a condition": {"/EWS", ``, "disabled", true, `enabled="false"`},
	} {
		attrs := ` name="r &quot;1&quot;"`
		if c.conditions == "disabled" {
			attrs, c.conditions = attrs+` enabled="false"`, ""
		}
		rules := `<rule` + attrs + `>` + c.match + c.conditions + `<action type="AbortRequest"/></rule>`
		r, err := ruled(t, c.path, rules).Logs(t.Context(), []string{write(t, "u_ex1.log", log)}, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		v := r.Rules[0].Verdict(r.Requests)
		if r.Rules[0].Nothing != c.nothing || !strings.Contains(v, c.says) || strings.Contains(v, "does nothing") != c.nothing {
			t.Errorf("%s: %s", name, v)
		}
	}
}

// slow is a rule that no document may have: its pattern takes exponential time.
func slow(t *testing.T) *urlrewrite.Ruleset {
	t.Helper()
	sections, err := urlrewrite.ParseConfig([]byte(`<configuration><system.webServer><rewrite><rules><rule name="slow"><match url=".*"/>`+
		`<conditions><add input="{QUERY_STRING}" pattern="^(a+)+$"/></conditions>`+
		`<action type="AbortRequest"/></rule></rules></rewrite></system.webServer></configuration>`), urlrewrite.WebConfig)
	if err != nil {
		t.Fatal(err)
	}
	set, err := urlrewrite.Merge(sections...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestAPatternThatExceedsItsBudgetIsAVerdictOfItsOwn(t *testing.T) {
	t.Parallel()
	s := &Simulation{rules: []rule{{name: "slow", base: "/", set: slow(t)}}}
	log := head + line("GET", "/x", strings.Repeat("a", 100)+"!", "192.0.2.7") +
		line("GET", "/x", strings.Repeat("a", 20_000), "192.0.2.7") + line("GET", "/x", "aa", "192.0.2.7")
	r, err := s.Logs(t.Context(), []string{write(t, "u_ex1.log", log)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := r.Rules[0]
	if x.OverBudget != 1 || x.TooLong != 1 || x.Blocked != 1 || x.Unjudged != 0 || x.Nothing {
		t.Errorf("%+v", x)
	}
	v := x.Verdict(r.Requests)
	if !strings.Contains(v, "1 without a verdict: the pattern exceeds its budget") || strings.Contains(v, "the log lacks") {
		t.Error(v)
	}
	score := s.Samples(Samples{Exploit: []Sample{{ID: "x1", PathAndQuery: "/x?" + strings.Repeat("a", 100) + "!"}}}, nil)
	if len(score.NoVerdict) != 1 || score.NoVerdict[0] != "x1: the pattern exceeds its budget" || score.Good() {
		t.Errorf("%+v", score)
	}
}

func TestARuleThatExceedsItsBudgetTooOftenIsNoLongerEvaluated(t *testing.T) {
	t.Parallel()
	s := &Simulation{rules: []rule{{name: "slow", base: "/", set: slow(t)}}}
	f := parseFields([]byte("cs-uri-stem cs-uri-query"))
	w := &worker{s: s, report: newReport(s), overruns: make([]atomic.Int64, 1)}
	w.overruns[0].Store(maxOverruns)
	w.play(block{fields: f, lines: []byte(strings.Repeat("/x aa\n", 1000))})
	if x := w.report.Rules[0]; x.OverBudget != 1000 || !strings.Contains(x.Verdict(1000), "no longer evaluated") {
		t.Errorf("%+v", x)
	}
}

func TestARuleThatSetsAVariableTheServerMayNotAllowIsNotCalledHarmless(t *testing.T) {
	t.Parallel()
	s := ruled(t, "/", `<rule name="r"><match url=".*"/>`+
		`<serverVariables><set name="HTTP_X_A" value="1"/></serverVariables><action type="None"/></rule>`)
	r, err := s.Logs(t.Context(), []string{write(t, "u_ex1.log", head+line("GET", "/x", "-", "192.0.2.7"))}, nil)
	if err != nil || r.Rules[0].Failed != 1 || !strings.Contains(r.Rules[0].Verdict(1), "500.50") {
		t.Errorf("%+v %v", r.Rules[0], err)
	}
}
