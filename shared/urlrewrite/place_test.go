package urlrewrite

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

func get(path string) *Request {
	return &Request{Method: "GET", Scheme: "https", Host: "mail.example", Path: path, Header: http.Header{}}
}

func TestRulesRunOnlyForRequestsBelowTheirPlace(t *testing.T) {
	t.Parallel()
	rs, err := ruleset(t, `<rewrite><rules><rule name="all"><match url=".*"/><action type="AbortRequest"/></rule></rules></rewrite>`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		base, path string
		runs       bool
	}{
		{"/", "/", true}, {"/", "/ecp/x", true}, {"/owa", "/owa", true}, {"/owa", "/OWA/auth", true}, {"/owa/", "/owa/auth", true},
		{"/owa", "/ecp", false}, {"/owa", "/owax", false}, {"/owa", "/", false}, {"/owa/auth", "/owa", false},
	} {
		res, err := rs.Inbound(get(c.path), c.base)
		if err != nil || (res.Action == ActionAbort) != c.runs {
			t.Errorf("rules of %s, request for %s: %+v %v", c.base, c.path, res, err)
		}
	}
}

func TestGlobalRulesDecideWhichPlaceARequestBelongsTo(t *testing.T) {
	t.Parallel()
	rs, err := ruleset(t, `<rewrite>
		<globalRules><rule name="move"><match url="^old/(.*)"/><action type="Rewrite" url="/owa/{R:1}"/></rule></globalRules>
		<rules><rule name="stop"><match url="^x$"/><action type="AbortRequest"/></rule></rules></rewrite>`)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]Action{"/old/x": ActionAbort, "/owa/x": ActionAbort, "/old/y": ActionRewrite, "/x": ActionNone} {
		if res, err := rs.Inbound(get(path), "/owa"); err != nil || res.Action != want {
			t.Errorf("%s: %+v %v", path, res, err)
		}
	}
}

func TestAGlobalRuleThatStopsDoesNotSkipTheDistributedRules(t *testing.T) {
	t.Parallel()
	for action, want := range map[string]Action{
		`<action type="None"/>`:                                ActionAbort,
		`<action type="Rewrite" url="/owa/x"/>`:                ActionAbort,
		`<action type="Rewrite" url="http://other.example/"/>`: ActionRewrite,
		`<action type="Redirect" url="/elsewhere"/>`:           ActionRedirect,
		`<action type="CustomResponse" statusCode="404"/>`:     ActionCustomResponse,
	} {
		rs, err := ruleset(t, `<rewrite><globalRules><rule name="g" stopProcessing="true"><match url=".*"/>`+action+`</rule><rule name="never"><match url=".*"/>
			<action type="CustomResponse" statusCode="410"/></rule></globalRules><rules><rule name="r"><match url=".*"/><action type="AbortRequest"/></rule></rules></rewrite>`)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := rs.Inbound(get("/owa/a"), "/owa"); err != nil || res.Action != want {
			t.Errorf("%s: %+v %v", action, res, err)
		}
		at := func(string) (Place, error) { return Place{rs, func(string) string { return "/owa" }}, nil }
		if res, err := rs.InboundAt(get("/owa/a"), at); err != nil || res.Action != want {
			t.Errorf("%s, by place: %+v %v", action, res, err)
		}
		req := get("/owa/a")
		req.Adverse = true // the other reading
		if res, err := rs.Inbound(req, "/owa"); err != nil || res.Action == ActionAbort {
			t.Errorf("%s, adverse: %+v %v", action, res, err)
		}
	}
}

func TestARuleBelowTheApplicationIsRelativeToItsOwnLevelByEveryReading(t *testing.T) {
	t.Parallel()
	doc, err := xmldoc.ParseFragment([]byte(`<rule name="r"><match url="^x$"/><action type="AbortRequest"/></rule>`))
	if err != nil {
		t.Fatal(err)
	}
	rs, _ := Build(Parts{Inbound: []Part{{Element: doc.Root.Children[0], Doc: doc, Base: "/owa/auth"}}})
	for _, own := range []bool{false, true} {
		req := get("/owa/auth/x")
		req.OwnBase = own
		if res, err := rs.Inbound(req, "/owa"); err != nil || res.Action != ActionAbort {
			t.Errorf("own base %v: %+v %v", own, res, err)
		}
	}
}

func TestAnInheritedRuleIsRelativeToTheLevelThatDefinesIt(t *testing.T) {
	t.Parallel()
	rs, err := ruleset(t, `<rewrite><rules>
		<rule name="above"><match url="^owa/a$"/><action type="Rewrite" url="owa/b"/></rule>
		<rule name="own"><match url="^b$"/><action type="Rewrite" url="c"/></rule></rules></rewrite>`)
	if err != nil {
		t.Fatal(err)
	}
	place := Place{rs, func(rule string) string { return map[string]string{"above": "/", "own": "/owa"}[rule] }}
	var asked string
	res, err := rs.InboundAt(get("/owa/a"), func(path string) (Place, error) { asked = path; return place, nil })
	if err != nil || res.URL != "/owa/c" || len(res.Rules) != 2 || asked != "/owa/a" {
		t.Errorf("%+v %v, asked for %s", res, err, asked)
	}
	refused := errors.New("refused")
	if _, err := rs.InboundAt(get("/"), func(string) (Place, error) { return Place{}, refused }); !errors.Is(err, refused) {
		t.Errorf("the place is refused: %v", err)
	}
}

func TestASectionNamesTheRulesItAdds(t *testing.T) {
	t.Parallel()
	s, names, err := ParseFragment([]byte(`<rule name="one"/><rule name="Two"/>`), false)
	if err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
	if got := s.InboundNames(); len(got) != 2 || got[0] != "one" || got[1] != "Two" {
		t.Error(got)
	}
}
