package urlrewrite

import (
	"errors"
	"net/http"
	"testing"
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
