package urlrewrite

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/e2e/realdata"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// ruleset reads a <rewrite> fragment as one level.
func ruleset(t testing.TB, xml string) (*Ruleset, error) {
	t.Helper()
	doc, err := xmldoc.Parse([]byte(xml))
	if err != nil {
		return nil, err
	}
	s, err := ParseSection(doc, doc.Root, "")
	if err != nil {
		return nil, err
	}
	return Merge(s)
}

func dataFile(t *testing.T, elem ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{realdata.Dir(t)}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type labRequest struct {
	ID           string            `json:"id"`
	Method       string            `json:"method"`
	Host         string            `json:"host"`
	PathAndQuery string            `json:"path_and_query"`
	Headers      map[string]string `json:"headers"`
	Block        map[string]bool   `json:"expected_block"`
	CSP          *bool             `json:"expected_csp_added"`
	Response     struct {
		ContentType string `json:"content_type"`
	} `json:"response"`
}

func (r labRequest) request() *Request {
	path, query, _ := strings.Cut(r.PathAndQuery, "?")
	req := &Request{Method: r.Method, Scheme: "https", Host: r.Host, Path: percentDecode(path), RawQuery: query, Header: http.Header{}}
	for k, v := range r.Headers {
		req.Header.Set(k, v)
	}
	return req
}

func TestPublishedRulesBlockTheExploitsAndNothingElse(t *testing.T) {
	t.Parallel()
	var data struct {
		Rules map[string]struct {
			Config string `json:"config_xml"`
		} `json:"rules"`
		Outbound map[string]struct {
			Config string `json:"config_xml"`
		} `json:"outbound_rules"`
		Exploit, Legitimate []labRequest
	}
	if err := json.Unmarshal(dataFile(t, "rewrite", "requests.json"), &data); err != nil {
		t.Fatal(err)
	}
	judged := 0
	for name, r := range data.Rules {
		rs, err := ruleset(t, r.Config)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, req := range append(append([]labRequest(nil), data.Exploit...), data.Legitimate...) {
			res, err := rs.Inbound(req.request(), "/")
			if err != nil {
				t.Fatalf("%s on %s: %v", name, req.ID, err)
			}
			judged++
			if got := res.Action == ActionAbort; got != req.Block[name] {
				t.Errorf("%s on %s: blocked %t, want %t", name, req.ID, got, req.Block[name])
			}
		}
	}
	rs, err := ruleset(t, data.Outbound["42897-csp"].Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range data.Legitimate {
		h := http.Header{"Content-Type": {req.Response.ContentType}}
		if _, err := rs.Outbound(req.request(), h); err != nil {
			t.Fatal(err)
		}
		judged++
		if got := strings.Contains(h.Get("Content-Security-Policy"), "script-src-attr 'none'"); req.CSP != nil && got != *req.CSP {
			t.Errorf("CSP on %s: %t, want %t", req.ID, got, *req.CSP)
		}
	}
	if judged < 200 {
		t.Fatalf("only %d verdicts: is the data there?", judged)
	}
}

func TestPatternsOfAnotherDialectOrThatCanRunForeverAreRefused(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{
		`(?<=a)b`:           "is not ECMAScript 3",
		`(?<n>a)`:           "is not ECMAScript 3",
		`(?i)a`:             "is not ECMAScript 3",
		`(?>a)`:             "is not ECMAScript 3",
		`(?#c)a`:            "is not ECMAScript 3",
		`\p{L}`:             "is not an escape",
		`\Aab`:              "is not an escape",
		`[\p{L}]`:           "is not an escape",
		`a**`:               "nothing to repeat",
		`*a`:                "nothing to repeat",
		`(a`:                "( without )",
		`a)`:                "unmatched )",
		`[a`:                "[ without ]",
		`a{2,1}`:            "not a count",
		`[z-a]`:             "out of order",
		`a\`:                `\ at the end`,
		`(a+)+b`:            "exponential",
		`(a*)*`:             "exponential",
		`(a|a)*b`:           "exponential",
		`(a|ab)*c`:          "exponential",
		`(.*a)+x`:           "exponential",
		`([a-z]+)*\d`:       "exponential",
		`(a?)+`:             "exponential",
		`(a?b?)+`:           "exponential",
		`(aa?)*`:            "exponential",
		`^(?:ba*a*)*c`:      "exponential",
		`.*.*.*.*.*.*.*.*x`: "takes too long",
		`(x+x+)+y`:          "exponential",
		`(\w+\s?)*$`:        "exponential",
		`((ab)*)*`:          "exponential",
		`(a{1,20}){5,50}`:   "exponential",
	} {
		err := CheckPattern(p)
		var pe *PatternError
		if !errors.As(err, &pe) || !strings.Contains(err.Error(), want) || pe.Col < 1 {
			t.Errorf("%s: got %v, want %q", p, err, want)
		}
	}
	for _, p := range []string{
		`(?=.*autodiscover)(?=.*powershell)`, `(.*)X-BEResource=(.+)/(.+)~(.+)`, `^/owa/?($|\?|default\.aspx|popout\.aspx)`, `.*autodiscover\.json.*\@.*Powershell.*`,
		`^([^/]+/)*x$`, `(?:[a-z]+,)*`, `(foo|bar)+`, `a{1,3}`, `[^\]]+`, `\d+\.\d+`, `(a|b)*`, `^$`, ``, `\/\-\_`, `[\w-]+`, `(?!x)y`, `(\w+) \1`, `(ab?)+`,
	} {
		if err := CheckPattern(p); err != nil {
			t.Errorf("%s: refused: %v", p, err)
		}
		if _, err := compilePattern(p, ecmaScript, true, true); err != nil {
			t.Errorf("%s: does not compile: %v", p, err)
		}
	}
}

func TestWhatIISRefusesIsRefusedWithItsPlace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ xml, want string }{
		"unknown attribute": {`<rewrite><rules><rule name="a" nam="b"/></rules></rewrite>`, `no attribute "nam"`},
		"name twice":        {`<rewrite><rules><rule name="a"/><rule name="A"/></rules></rewrite>`, `a second <rule>`},
		"no name":           {`<rewrite><rules><rule/></rules></rewrite>`, "without name"},
		"stray element":     {`<rewrite><rules><rule name="a"><mach/></rule></rules></rewrite>`, "does not belong"},
		"bad boolean":       {`<rewrite><rules><rule name="a" enabled="yes"/></rules></rewrite>`, "neither true nor false"},
		"bad action":        {`<rewrite><rules><rule name="a"><action type="Explode"/></rule></rules></rewrite>`, `type="Explode" is none of None, Rewrite`},
		"bad template":      {`<rewrite><rules><rule name="a"><match url=".*"/><conditions><add input="{REQUEST_URI" pattern="."/></conditions></rule></rules></rewrite>`, "{ without }"},
		"no preCondition":   {`<rewrite><outboundRules><rule name="a" preCondition="x"><match serverVariable="RESPONSE_X" pattern="."/></rule></outboundRules></rewrite>`, `"x" does not exist`},
	} {
		if _, err := ruleset(t, c.xml); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestARuleInheritedAndAddedAgainIsAnErrorAndClearAndRemoveHelp(t *testing.T) {
	t.Parallel()
	section := func(x string) *Section {
		doc, err := xmldoc.Parse([]byte("<rewrite><rules>" + x + "</rules></rewrite>"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseSection(doc, doc.Root, "w")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a := section(`<rule name="a"><match url=".*"/></rule>`)
	var ce *ConfigError
	if _, err := Merge(a, a); !errors.As(err, &ce) || !strings.Contains(err.Error(), "defined twice") {
		t.Errorf("twice: %v", err)
	}
	for _, child := range []string{`<clear/><rule name="a"/>`, `<remove name="A"/><rule name="a"/>`} {
		if _, err := Merge(a, section(child)); err != nil {
			t.Errorf("%s: %v", child, err)
		}
	}
	rs, err := Merge(a, section(`<clear/>`))
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := rs.HasInbound("a"); ok {
		t.Error("cleared and still there")
	}
}

func FuzzSection(f *testing.F) {
	f.Add([]byte(`<rewrite><rules><rule name="a"><match url="(.*)"/><conditions><add input="{C:1}" pattern="x"/></conditions><action type="Rewrite" url="{R:1}"/></rule></rules></rewrite>`), "/a?b=c")
	f.Fuzz(func(_ *testing.T, xml []byte, uri string) {
		doc, err := xmldoc.Parse(xml)
		if err != nil {
			return
		}
		s, err := ParseSection(doc, doc.Root, "")
		if err != nil {
			return
		}
		rs, err := Merge(s)
		if err != nil {
			return
		}
		path, query, _ := strings.Cut(uri, "?")
		req := &Request{Method: "GET", Scheme: "https", Host: "h", Path: path, RawQuery: query, Header: http.Header{}}
		_, _ = rs.Inbound(req, "/")
		_, _ = rs.Outbound(req, http.Header{})
	})
}

func FuzzCheckPattern(f *testing.F) {
	for _, p := range []string{`(?=.*a)(?=.*b)`, `[^\]-a]{2,}`, `(a|b)*\1`, `\x41\u0041`} {
		f.Add(p)
	}
	f.Fuzz(func(_ *testing.T, p string) {
		if CheckPattern(p) == nil {
			_, _ = compilePattern(p, ecmaScript, true, true)
		}
	})
}
