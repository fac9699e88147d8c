package effect

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

func TestTheStandardServerIsValidAndServesEverySample(t *testing.T) {
	t.Parallel()
	m, err := Standard()
	if err != nil {
		t.Fatal(err)
	}
	site := m.Server().Site(StandardFrontEnd)
	if len(Samples()) != len(samples) {
		t.Errorf("%d of %d samples are well-formed", len(Samples()), len(samples))
	}
	asked := map[string]bool{}
	for _, s := range Samples() {
		p := m.At(site, s.Path)
		asked[p.App.Path] = true
		if bad := p.Invalid(); bad != nil {
			t.Errorf("%s: %v", s.Name, bad)
		}
		if runs, why := p.Module(); !runs {
			t.Errorf("%s: %s", s.Name, why)
		}
	}
	for _, app := range site.Apps {
		if !asked[app.Path] && app.Path != "/owa/Integrated" && app.Path != "/owa/oma" {
			t.Errorf("no sample goes to %s", app.Path)
		}
	}
}

func TestRulesStandWhereApplicationsGetThemOnce(t *testing.T) {
	t.Parallel()
	rule := `<rule name="a"><match url=".*" /><action type="AbortRequest" /></rule>`
	for _, s := range standardSites {
		for _, a := range s.apps {
			m, err := Standard(Placement{Site: s.name, Path: a.path, Inbound: rule})
			if err != nil {
				t.Fatal(err)
			}
			site := m.Server().Site(s.name)
			for _, app := range site.Apps {
				p := m.At(site, app.Path)
				if bad := p.Invalid(); bad != nil {
					t.Errorf("%s%s, rule at %s: %v", s.name, app.Path, a.path, bad)
				}
				want := app.Dir == site.App(a.path).Dir || iisconfig.IsBelow(app.Path, a.path)
				if got := p.Section("rules").Item("a") != nil; got != want {
					t.Errorf("%s%s, rule at %s: present %v, want %v", s.name, app.Path, a.path, got, want)
				}
			}
		}
	}
}

func TestExamplesAreTextsThatThePatternMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		syntax, pattern string
		complete        bool
	}{
		{"", `^owa/(auth|prem)?/x+\.js$`, true}, {"", `(?=.*a)(?=.*b)`, true}, {"", `^(?!x)y`, false}, {"", `[^/]{3,}\d`, true}, {"",
			`(ab|bc|cd)(ab|bc|cd)(ab|bc|cd)(dd|ee|f)`, false},
		{"", ``, true}, {"", `a{0}b`, true}, {"", `\bx\b`, true}, {"Wildcard", "owa/*.js", true}, {"ExactMatch", "a?b", true}, {"", `$a`, false},
	} {
		m := newMatcher(c.pattern, c.syntax, "")
		got, complete := m.examples()
		if complete != c.complete {
			t.Errorf("%q: complete %v, examples %q", c.pattern, complete, got)
		}
		for _, g := range got {
			if !m.matches(g) {
				t.Errorf("%q does not match its example %q", c.pattern, g)
			}
		}
	}
}

// What Never calls impossible, no request of the site does: neither one for a known page nor one for any other.
func TestNoRequestMatchesARuleThatNeverMatches(t *testing.T) {
	t.Parallel()
	word := rapid.SampledFrom([]string{"owa", "ews", "EWS", "auth", "gone", "x", "exchange.asmx", "calendar", "a.b"})
	piece := rapid.SampledFrom([]string{"", "/", ".*", "[^/]+", "(auth|ews)", "[ex]ws/", "[/e]ws", "x?", "/?", `\.`, "(owa/)?"})
	rapid.Check(t, func(t *rapid.T) {
		place := rapid.SampledFrom([]string{"/", "/owa", "/EWS", "/owa/Calendar"}).Draw(t, "place")
		pattern := rapid.SampledFrom([]string{"", "^", "^/"}).Draw(t, "start")
		for i := range rapid.IntRange(1, 3).Draw(t, "parts") {
			if w := word.Draw(t, fmt.Sprint("word", i)); rapid.Bool().Draw(t, fmt.Sprint("has", i)) {
				pattern += strings.ReplaceAll(w, ".", `\.`)
			}
			pattern += piece.Draw(t, fmt.Sprint("piece", i))
		}
		r, err := NewReview([]Placement{{Site: StandardFrontEnd, Path: place,
			Inbound: fmt.Sprintf(`<rule name="a"><match url="%s" /><action type="AbortRequest" /></rule>`, pattern)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		why := r.Never(r.Rules()[0], nil)
		if why == "" {
			return
		}
		app := rapid.SampledFrom(r.sites[0].Apps).Draw(t, "app")
		path := strings.TrimSuffix(app.Path, "/")
		for i := range rapid.IntRange(0, 3).Draw(t, "segments") {
			path += "/" + word.Draw(t, fmt.Sprint("segment", i))
		}
		if r.plausible(r.Rules()[0], path) && r.sees(r.Rules()[0], newMatcher(pattern, "", ""), path) != "" {
			t.Errorf("at %s, url=%q matches %s; Never says: %s", place, pattern, path, why)
		}
	})
}

func TestAPatternForAnEmbeddedNameIsNotCalledImpossible(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		place, pattern string
		never          bool
	}{
		{"/", `^ews/.*powershell`, false}, {"/", `^autodiscover/autodiscover\.json/.*mapi/nspi`, false}, {"/Autodiscover", `autodiscover\.json.*owa/auth`, false},
		{"/Autodiscover", `^autodiscover/autodiscover\.json`, true}, {"/owa", `^ecp/`, true}, {"/owa", `^calendar/`, false},
		{"/mapi", `nspi`, false}, {"/EWS", ``, false}, {"/EWS", `^$`, false}, {"/EWS", `[/]`, false},
	} {
		r, err := NewReview([]Placement{{Site: StandardFrontEnd, Path: c.place,
			Inbound: fmt.Sprintf(`<rule name="a"><match url="%s" /><action type="AbortRequest" /></rule>`, c.pattern)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if why := r.Never(r.Rules()[0], nil); (why != "") != c.never {
			t.Errorf("url=%q at %s: %q", c.pattern, c.place, why)
		}
	}
}
