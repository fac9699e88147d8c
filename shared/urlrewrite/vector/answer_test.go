package vector_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/urlrewrite/vector"
)

func TestAnErrorSaysWhetherItHitsThePlaceOrOneRequest(t *testing.T) {
	t.Parallel()
	const (
		setsVariable = `<rewrite><rules><rule name="r"><match url="^a"/>
			<serverVariables><set name="X" value="1"/></serverVariables></rule></rules></rewrite>`
		body = `<rule name="o"><match pattern="a"/><action type="Rewrite" value="b"/></rule></outboundRules></rewrite>`
	)
	for what, c := range map[string]struct {
		phase, xml, action string
		substatus          int
	}{
		"malformed":                    {"inbound", "<rewrite>", "config_error", 19},
		"malformed, outbound":          {"outbound", "<rewrite>", "config_error", 19},
		"malformed, configuration":     {"config", "<rewrite>", "config_error", 19},
		"name twice":                   {"inbound", rules(abort("a"), abort("A")), "config_error", 19},
		"map that does not exist":      {"config", rules(`<rule name="a"><action type="Rewrite" url="{M:1}"/></rule>`), "config_error", 19},
		"capture that does not exist":  {"config", rules(`<rule name="a"><action type="Rewrite" url="{R:10}"/></rule>`), "config_error", 19},
		"variable not allowed":         {"inbound", setsVariable, "runtime_error", 50},
		"encoded body":                 {"outbound", "<rewrite><outboundRules>" + body, "runtime_error", 52},
		"encoded body, before cache":   {"outbound", `<rewrite><outboundRules rewriteBeforeCache="True">` + body, "runtime_error", 53},
		"encoded body, behind a cache": {"outbound", `<rewrite><outboundRules rewriteBeforeCache="false">` + body, "runtime_error", 52},
	} {
		v := ask("site", "/a")
		v.Phase, v.ConfigXML = c.phase, &c.xml
		v.Response = &vector.Response{Body: "a", Headers: map[string]string{"content-encoding": "gzip"}}
		a := vector.Evaluate(v, nil)
		if a.Action != c.action || a.Status != 500 || a.Substatus != c.substatus || a.Error == "" || a.Body != nil {
			t.Errorf("%s: %+v", what, a)
		}
	}
	sets := setsVariable
	v := ask("site", "/b")
	v.ConfigXML = &sets
	if a := vector.Evaluate(v, nil); a.Action != "none" || a.Status != 0 {
		t.Errorf("a request that the rule does not match: %+v", a)
	}
}

func TestWhatTheEvaluatorCantAnswerIsNotBlamedOnIIS(t *testing.T) {
	t.Parallel()
	xml := rules(abort("a"))
	long := ask("site", "/"+strings.Repeat("a", 20<<10))
	long.ConfigXML = &xml
	none := ask("site", "/")
	noRequest := vector.Vector{Phase: "inbound", ConfigXML: &xml}
	for what, v := range map[string]vector.Vector{"input over the limit": long, "no configuration": none, "no request": noRequest} {
		if a := vector.Evaluate(v, nil); a.Action != "error" || a.Status != 0 || a.Substatus != 0 || a.Error == "" {
			t.Errorf("%s: %+v", what, a)
		}
	}
}

func TestRequestHeadersAreAllThatTheApplicationGets(t *testing.T) {
	t.Parallel()
	sent := map[string]string{"X-Kept": "k", "X-Changed": "old", "X-Left": "old", "X-Removed": "r"}
	set := `<rewrite><allowedServerVariables><add name="HTTP_X_CHANGED"/><add name="HTTP_X_LEFT"/>
		<add name="HTTP_X_REMOVED"/><add name="HTTP_X_NEW"/></allowedServerVariables>
		<rules><rule name="r"><match url="^set$"/><serverVariables><set name="HTTP_X_CHANGED" value="new"/>
		<set name="HTTP_X_LEFT" value="new" replace="false"/>
		<set name="HTTP_X_REMOVED" value=""/><set name="HTTP_X_NEW" value="new" replace="false"/></serverVariables></rule></rules></rewrite>`
	for path, want := range map[string]map[string]string{
		"/set":   {"x-kept": "k", "x-changed": "new", "x-left": "old", "x-new": "new"},
		"/other": {"x-kept": "k", "x-changed": "old", "x-left": "old", "x-removed": "r"},
	} {
		v := ask("site", path)
		v.ConfigXML, v.Request.Headers = &set, sent
		if a := vector.Evaluate(v, nil); !maps.Equal(a.RequestHeaders, want) || (len(a.ServerVariables) > 0) != (path == "/set") {
			t.Errorf("%s: %+v", path, a)
		}
	}
}

func FuzzVectors(f *testing.F) {
	f.Add([]byte(`[{"id":"a","phase":"inbound","scope":"/a","levels":[{"scope":"site","config_xml":"<rewrite/>"},
		{"scope":"/a","config_xml":"<configuration><location path='b'/></configuration>"}],"request":{"path_and_query":"/a/b?c"}}]`))
	f.Add([]byte(`[{"phase":"outbound","config_xml":"<rewrite><outboundRules rewriteBeforeCache='true'/></rewrite>",
		"request":{},"response":{"headers":{"Content-Encoding":"br"}}}]`))
	f.Add([]byte(`{"vectors":[{"phase":"config","file":"web.config","config_xml":"<rewrite><globalRules/></rewrite>"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := vector.Read(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		for _, v := range list {
			if a := vector.Evaluate(v, nil); strings.HasSuffix(a.Action, "error") != (a.Error != "") {
				t.Errorf("%+v", a)
			}
		}
	})
}
