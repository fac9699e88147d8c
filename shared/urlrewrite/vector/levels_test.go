package vector_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/urlrewrite/vector"
)

// abort is a rule that aborts every request it sees.
func abort(name string) string {
	return fmt.Sprintf(`<rule name=%q><match url=".*"/><action type="AbortRequest"/></rule>`, name)
}

// setsX is an outbound rule that sets the response's header X.
func setsX(preCondition, value string) string {
	return fmt.Sprintf(`<rule name="o" preCondition=%q><match serverVariable="RESPONSE_X" pattern=".*"/>
		<action type="Rewrite" value=%q/></rule>`,
		preCondition, value)
}

func outboundRules(xml string) string {
	return "<rewrite><outboundRules>" + xml + "</outboundRules></rewrite>"
}

func rules(xml ...string) string {
	return "<rewrite><rules>" + strings.Join(xml, "") + "</rules></rewrite>"
}

func ask(scope, path string) vector.Vector {
	return vector.Vector{ID: "v", Phase: "inbound", Scope: scope, Request: &vector.Request{Host: "mail.example", PathAndQuery: path}}
}

func TestALevelCountsForRequestsBelowIt(t *testing.T) {
	t.Parallel()
	levels := []vector.Level{
		{Scope: "site", ConfigXML: rules(abort("site"))},
		{Scope: "/owa", ConfigXML: rules(`<clear/>`)},
		{Scope: "/owa/auth", ConfigXML: rules(abort("auth"))},
	}
	for path, rule := range map[string]string{"/": "site", "/owax": "site", "/owa": "", "/OWA/a": "", "/owa/auth/x": "auth"} {
		v := ask("/owa", path)
		v.Levels = levels
		if a := vector.Evaluate(v, nil); a.MatchedRule != rule || a.Error != "" {
			t.Errorf("%s: %+v, want rule %q", path, a, rule)
		}
	}
}

func TestARequestOutsideTheScopeMeetsNoRule(t *testing.T) {
	t.Parallel()
	xml := rules(abort("a"))
	for path, action := range map[string]string{"/ecp/x": "abort", "/ecp": "abort", "/owa/": "none", "/ecpx": "none", "/": "none"} {
		v := ask("/ecp", path)
		v.ConfigXML = &xml
		if a := vector.Evaluate(v, nil); a.Action != action {
			t.Errorf("%s: %+v, want %s", path, a, action)
		}
	}
	out := outboundRules(setsX("", "1"))
	for path, action := range map[string]string{"/ecp/x": "rewrite", "/owa/": "none"} {
		v := ask("/ecp", path)
		v.Phase, v.ConfigXML = "outbound", &out
		if a := vector.Evaluate(v, nil); a.Action != action {
			t.Errorf("outbound %s: %+v, want %s", path, a, action)
		}
	}
}

func TestALevelUsesWhatLevelsAboveDefine(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ above, below string }{
		"rewrite map": {
			`<rewrite><rewriteMaps><rewriteMap name="M"><add key="k" value="v"/></rewriteMap></rewriteMaps></rewrite>`,
			outboundRules(setsX("", "{M:k}")),
		},
		"precondition": {
			outboundRules(`<preConditions><preCondition name="P"><add input="{URL}" pattern="."/></preCondition></preConditions>`),
			outboundRules(setsX("p", "v")),
		},
		"custom tags": {
			outboundRules(`<customTags><tags name="T"><tag name="x" attribute="y"/></tags></customTags>`),
			outboundRules(`<rule name="o"><match filterByTags="CustomTags" customTags="t" pattern=".*"/><action type="Rewrite" value="v"/></rule>`),
		},
	} {
		v := ask("/owa", "/owa/")
		v.Phase, v.Response = "outbound", &vector.Response{Body: `<x y="a">`}
		v.Levels = []vector.Level{{Scope: "site", ConfigXML: c.above}, {Scope: "/owa", ConfigXML: c.below}}
		if a := vector.Evaluate(v, nil); a.Action != "rewrite" || a.Headers["X"] != "v" && *a.Body != `<x y="v">` {
			t.Errorf("%s: %+v", name, a)
		}
		v.Levels = v.Levels[1:]
		if a := vector.Evaluate(v, nil); a.Action != "config_error" {
			t.Errorf("%s is defined nowhere: %+v", name, a)
		}
		v.Phase, v.Levels = "config", []vector.Level{{Scope: "/ecp", ConfigXML: c.above}, {Scope: "/owa", ConfigXML: c.below}}
		if a := vector.Evaluate(v, nil); a.Action != "config_error" || !strings.HasPrefix(a.Error, "level 2 (/owa): line 1, column 1: ") {
			t.Errorf("%s is defined beside: %+v", name, a)
		}
	}
}

func TestAnInheritedRuleSeesThePathOfItsOwnLevel(t *testing.T) {
	t.Parallel()
	v := ask("/owa", "/owa/a")
	v.Levels = []vector.Level{
		{Scope: "site", ConfigXML: rules(`<rule name="r"><match url="^owa/a$"/><action type="Rewrite" url="owa/b"/></rule>`)},
		{Scope: "/owa", ConfigXML: rules(`<rule name="s"><match url="^b$"/><action type="Rewrite" url="c"/></rule>`)},
	}
	if a := vector.Evaluate(v, nil); a.URL != "/owa/c" || len(a.MatchedRules) != 2 {
		t.Errorf("%+v", a)
	}
}

func TestALocationOfAWholeFileIsAPlaceOfItsOwn(t *testing.T) {
	t.Parallel()
	rewrite := func(r string) string { return "<system.webServer>" + r + "</system.webServer>" }
	maps := `<rewrite><rewriteMaps><rewriteMap name="M" defaultValue="x"/></rewriteMaps></rewrite>`
	useMap := rules(`<rule name="l"><match url="^a$"/><conditions><add input="{M:1}" pattern="x"/></conditions>
		<action type="AbortRequest"/></rule>`)
	web := "<configuration>" + rewrite(maps) + `<location path="owa">` + rewrite(useMap) + `</location></configuration>`
	host := "<configuration>" + rewrite(maps) + `<location path="Default Web Site/owa">` + rewrite(useMap) + `</location></configuration>`
	for file, xml := range map[string]string{"web.config": web, "applicationHost.config": host} {
		for path, action := range map[string]string{"/owa/a": "abort", "/a": "none", "/ecp/a": "none"} {
			v := ask("site", path)
			v.File = file
			if a := vector.Evaluate(v, []byte(xml)); a.Action != action || a.Error != "" {
				t.Errorf("%s, %s: %+v, want %s", file, path, a, action)
			}
		}
	}
	for what, c := range map[string]struct{ file, xml, action, want string }{
		"a section twice": {
			"web.config",
			"<configuration>" + rewrite(rules(abort("a"))) + `<location path=".">` + rewrite(rules(abort("b"))) + "</location></configuration>",
			"config_error", "a second <rules> for the same place",
		},
		"two sites": {
			"",
			`<configuration><location path="One">` + rewrite(rules(abort("a"))) + `</location><location path="Two">` + rewrite(rules(abort("a"))) +
				"</location></configuration>",
			"error", "two sites",
		},
		"locked": {
			"web.config", `<configuration><location path="owa">` + rewrite("<rewrite><globalRules/></rewrite>") + "</location></configuration>",
			"config_error", "locked in web.config",
		},
		"another root": {"", "<rules/>", "config_error", "neither"},
	} {
		v := ask("site", "/")
		v.File, v.ConfigXML = c.file, &c.xml
		if a := vector.Evaluate(v, nil); a.Action != c.action || !strings.Contains(a.Error, c.want) {
			t.Errorf("%s: %+v", what, a)
		}
	}
}

func TestALongListOfLevelsIsRefused(t *testing.T) {
	t.Parallel()
	v := ask("site", "/")
	v.Levels = make([]vector.Level, 65)
	if a := vector.Evaluate(v, nil); a.Action != "error" || !strings.Contains(a.Error, "limit 64") {
		t.Errorf("%+v", a)
	}
	many := "<configuration>" + strings.Repeat("<system.webServer><rewrite/></system.webServer>", 1025) + "</configuration>"
	v = ask("site", "/")
	v.ConfigXML = &many
	if a := vector.Evaluate(v, nil); a.Action != "error" || !strings.Contains(a.Error, "1024") {
		t.Errorf("%+v", a)
	}
}
