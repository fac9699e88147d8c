package mitigation

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/shared/effect"
)

// doc writes a document with one action. rest stands behind the head: cves, removeWhen, probes.
func doc(rest, path, key, xml string) string {
	return head + rest + "actions:\n  - id: a\n    urlRewrite:\n      location: {site: EXCHANGE_FRONT_END, path: \"" + path + "\"}\n      " + key + ": |\n" + indent(xml)
}

func indent(xml string) string {
	var b strings.Builder
	for _, l := range strings.Split(strings.Trim(xml, "\n"), "\n") {
		b.WriteString("        " + l + "\n")
	}
	return b.String()
}

// rule writes an inbound rule named after the document.
func rule(match, conditions, action string) string {
	return ruleNamed("a", match, conditions, action)
}

func ruleNamed(name, match, conditions, action string) string {
	if conditions != "" {
		conditions = "<conditions>" + conditions + "</conditions>"
	}
	return `<rule name="Stopgap X.1 ` + name + `"><match ` + match + ` />` + conditions + `<action ` + action + ` /></rule>`
}

const (
	abort     = `type="AbortRequest"`
	forbidden = `type="CustomResponse" statusCode="403" statusReason="Forbidden" statusDescription="Forbidden"`
	notShell  = "cves: [CVE-2022-41040]\n" // has published attack requests
	fresh     = "cves: [CVE-2031-12345]\n" // has none
	shellWord = `<add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)" />`
)

func probe(request, expect string) string {
	return "probes:\n  - effect: {request: \"" + request + "\", " + expect + "}\n"
}

func findings(t *testing.T, text string) []Finding {
	t.Helper()
	d, err := Parse("x", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return Lint(d)
}

func TestADocumentThatDoesWhatItIsForHasNoFinding(t *testing.T) {
	t.Parallel()
	gone := probe("GET /ews/gone.asmx", "expectAborted: true")
	for name, text := range map[string]string{
		"attack refused at the site": doc(notShell+probe("GET /autodiscover/autodiscover.json?@a.example/PowerShell",
			"expectAborted: true"), "/", "inbound", rule(`url=".*"`, shellWord, abort)),
		"never removed, and meant so": doc(notShell+"removeWhen: REMOVE_WHEN_NEVER\n", "/", "inbound", rule(`url=".*"`, shellWord, forbidden)),
		"at an application":           doc(fresh+gone, "/EWS", "inbound", rule(`url="^gone\.asmx"`, "", abort)),
		"wildcards": doc(fresh+gone, "/EWS", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="Wildcard"><match url="gone*" /><action `+abort+` /></rule>`),
		"an exact text": doc(fresh+gone, "/EWS", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="ExactMatch"><match url="gone.asmx" /><action `+abort+` /></rule>`),
		"a header": doc(fresh+strings.Replace(gone, "expect", "headers: {X-Old: \"yes\"}, expect", 1), "/", "inbound",
			rule(`url=".*"`, `<add input="{HTTP_X_OLD}" pattern="^yes" />`, abort)),
		"a status": doc(fresh+probe("GET /ecp/old.aspx", "expectStatus: 403"), "/ecp", "inbound",
			rule(`url="^old\.aspx$"`, "", forbidden)),
		"a negated match that fits": doc(fresh+probe("OPTIONS /oab/", "expectAborted: true"), "/OAB", "inbound",
			rule(`url="^x{20}$" negate="true"`, `<add input="{REQUEST_METHOD}" pattern="^(GET|HEAD|POST)$" negate="true" />`, abort)),
		"a shared directory": doc(fresh+probe("GET /owa/Calendar/x", "expectAborted: true"), "/owa", "inbound", rule(`url="^x$"`,
			"", abort)),
		"an exception in front of it": doc(fresh+probe("GET /mapi/nspi/?%61=evil", "expectAborted: true"), "/mapi", "inbound",
			`<rule name="Stopgap X.1 good" stopProcessing="true"><match url=".*" /><conditions><add input="{QUERY_STRING}" pattern="^[a-z]+=" /></conditions><action type="None" /></rule>`+"\n"+`<rule name="Stopgap X.1 a"><match url="^(emsmdb|nspi)" /><action `+abort+` /></rule>`),
		"a header of the answer": doc(fresh+probe("GET /owa/", `expectHeader: {X-Frame-Options: "DENY"}`), "/owa", "outbound",
			`<rule name="Stopgap X.1 o"><match serverVariable="RESPONSE_X_Frame_Options" pattern=".*" /><action type="Rewrite" value="DENY" /></rule>`),
		"a path where no application is": doc(fresh+probe("GET /telemetry/x", "expectAborted: true"), "/", "inbound", rule(`url="^telemetry/"`,
			"", abort)),
		"a name inside of the path": doc(fresh+"removeWhen: REMOVE_WHEN_NEVER\n"+probe("GET /rpc/x", "expectAborted: true"), "/", "inbound",
			rule(`url=".*"`, `<add input="{UrlDecode:{REQUEST_URI}}" pattern="^/rpc/x" ignoreCase="true" />`, abort)),
		"any of two conditions": doc(fresh+gone, "/EWS", "inbound",
			`<rule name="Stopgap X.1 a"><match url=".*" /><conditions logicalGrouping="MatchAny"><add input="{URL}" pattern="/gone\.asmx" /><add input="{UrlDecode:{QUERY_STRING}}" pattern="evil" ignoreCase="true" /></conditions><action `+abort+` /></rule>`),
		"a pool": head + fresh + probe("GET /ews/",
			"expectStatus: 503") + "actions:\n  - {id: p, appPool: {name: MSExchangeServicesAppPool, autoStart: false, state: STOPPED}}\n",
	} {
		for _, f := range findings(t, text) {
			t.Errorf("%s: %v", name, f)
		}
	}
}

func TestLintObjectsToADocumentThatDoesHarmOrNothing(t *testing.T) {
	t.Parallel()
	csp := func(pre, match, value string) string {
		return `<preConditions><preCondition name="Stopgap X.1 p">` + pre + `</preCondition></preConditions>` + "\n" +
			`<rule name="Stopgap X.1 o" preCondition="Stopgap X.1 p"><match ` + match + ` /><action type="Rewrite" value="` + value + `" /></rule>`
	}
	html := `<add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/html" />`
	header := probe("GET /owa/", `expectHeader: {Content-Security-Policy: "script-src-attr"}`)
	for name, c := range map[string]struct {
		text, at, want string
	}{
		"the application's name in the pattern": {doc(fresh, "/EWS", "inbound", rule(`url="^ews/gone"`, "", abort)), `<rule`,
			`never does anything at /EWS: url="\^ews/gone" looks for "ews".*write url="\^gone"`},
		"the name without an anchor": {doc(fresh, "/PowerShell", "inbound", rule(`url="powershell"`, "", abort)), `<rule`,
			`never does anything at /PowerShell`},
		"the name behind a slash": {doc(fresh, "/owa", "inbound", rule(`url="^/owa/auth/x"`, "", abort)), `<rule`,
			`write url="\^auth/x"`},
		"the name in wildcards": {doc(fresh, "/ecp", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="Wildcard"><match url="ecp/*.js" /><action `+abort+` /></rule>`), `<rule`, `never does anything at /ecp`},
		"the name as an exact text": {doc(fresh, "/EWS", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="ExactMatch"><match url="EWS/Exchange.asmx" /><action `+abort+` /></rule>`), `<rule`, `never does anything at /EWS`},
		"another application's name": {doc(fresh, "/owa", "inbound", rule(`url="^ecp/.*\.js$"`, "", abort)), `<rule`,
			`never does anything at /owa`},
		"a slash in front": {doc(fresh, "/", "inbound", rule(`url="^/gone/"`, "", abort)), `<rule`,
			`begins with a slash.*write url="\^gone/"`},
		"a query in the pattern": {doc(fresh, "/", "inbound", rule(`url="gone\.aspx\?x=.*"`, "", abort)), `<rule`,
			`looks for a question mark`},
		"scheme and host in the pattern": {doc(fresh, "/", "inbound", rule(`url="^https?://mail\."`, "", abort)), `<rule`,
			`scheme and host`},
		"a negated match of everything": {doc(fresh, "/", "inbound", rule(`url=".*" negate="true"`, "", abort)), `<rule`,
			`never does anything at /: .*negated`},
		"a disabled rule": {doc(fresh, "/", "inbound",
			`<rule name="Stopgap X.1 a" enabled="false"><match url="^gone" /><action `+abort+` /></rule>`), `<rule`, `disabled`},
		"REQUEST_URI without its slash": {doc(fresh, "/", "inbound", rule(`url=".*"`,
			`<add input="{REQUEST_URI}" pattern="^owa/gone" />`, abort)), `<rule`, `condition on {REQUEST_URI} can't hold.*begins with a slash`},
		"a question mark in QUERY_STRING": {doc(fresh, "/", "inbound", rule(`url=".*"`,
			`<add input="{UrlDecode:{QUERY_STRING}}" pattern="^\?evil" />`, abort)), `<rule`, `no question mark in front`},
		"a query in URL": {doc(fresh, "/", "inbound", rule(`url=".*"`, `<add input="{URL}" pattern="gone\?evil" />`,
			abort)), `<rule`, `has no query string`},
		"no such variable": {doc(fresh, "/", "inbound", rule(`url=".*"`, `<add input="{QUERYSTRING}" pattern="evil" />`,
			abort)), `<rule`, `no server variable of that name`},
		"a variable without braces": {doc(fresh, "/", "inbound", rule(`url=".*"`, `<add input="HTTP_COOKIE" pattern="evil" />`,
			abort)), `<rule`, `write {HTTP_COOKIE}`},
		"a variable of the response": {doc(fresh, "/", "inbound", rule(`url=".*"`,
			`<add input="{RESPONSE_CONTENT_TYPE}" pattern="html" />`, abort)), `<rule`, `there is no response`},
		"HTTPS as true": {doc(fresh, "/", "inbound", rule(`url=".*"`, `<add input="{HTTPS}" pattern="^true$" />`,
			abort)), `<rule`, `on or off`},
		"a path in the host": {doc(fresh, "/", "inbound", rule(`url=".*"`,
			`<add input="{HTTP_HOST}" pattern="^https://mail" />`, abort)), `<rule`, `no scheme and no path`},
		"words of the query in the path": {doc(notShell, "/", "inbound", rule(`url=".*autodiscover\.json.*powershell.*"`, "", abort)),
			`cves:`, `stops none of the published attack requests for CVE-2022-41040.*gets the path only`},
		"words in wildcards": {doc(notShell, "/", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="Wildcard"><match url="*autodiscover*powershell*" /><action `+abort+` /></rule>`), `cves:`, `stops none of`},
		"another application than the attack's": {doc(notShell, "/owa", "inbound", rule(`url=".*"`, shellWord, abort)), `cves:`,
			`stops none of .*another application than the rules, which are at /owa`},
		"a negated condition": {doc(notShell, "/", "inbound", rule(`url=".*"`, strings.Replace(shellWord, " />",
			` negate="true" />`, 1), abort)), `<rule`, `stops every request|stops legitimate requests`},
		"an attack that is rewritten": {doc(notShell, "/", "inbound", rule(`url=".*"`, shellWord, `type="Rewrite" url="/owa/x"`)),
			`cves:`, `no rule refuses it`},
		"an outbound rule against an attack": {doc(notShell, "/owa", "outbound", csp(html, `serverVariable="RESPONSE_X" pattern=".*"`,
			"y")), `cves:`, `stops none of`},
		"the second CVE": {doc("cves: [CVE-2022-41040, CVE-2021-26855]\n", "/", "inbound", rule(`url=".*"`, shellWord,
			abort)), `cves:`, `none of the published attack requests for CVE-2021-26855`},
		"its own probe": {doc(fresh+probe("GET /ews/other.asmx", "expectAborted: true"), "/EWS", "inbound",
			rule(`url="^gone\.asmx"`, "", abort)), `effect:`, `does not stop the request of this probe`},
		"its own probe, another status": {doc(fresh+probe("GET /ews/gone.asmx", "expectStatus: 404"), "/EWS", "inbound",
			rule(`url="^gone\.asmx"`, "", forbidden)), `effect:`, `answered with status 403`},
		"a header that is never there": {doc(fresh+header, "/owa", "outbound", csp(html,
			`serverVariable="RESPONSE_Content_Security_Policy" pattern="(.+)"`, "{R:1}; script-src-attr 'none'")), `effect:`, `do not add the header`},
		"a header for another type": {doc(fresh+header, "/owa", "outbound",
			csp(`<add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/htm1" />`, `serverVariable="RESPONSE_Content_Security_Policy" pattern=".*"`,
				"script-src-attr 'none'")), `effect:`, `do not add the header`},
		"a header in another place": {doc(fresh+header, "/ecp", "outbound", csp(html,
			`serverVariable="RESPONSE_Content_Security_Policy" pattern=".*"`, "script-src-attr 'none'")), `effect:`, `another application`},
		"no header of the response": {doc(fresh, "/owa", "outbound", csp(html, `serverVariable="HTTP_X" pattern=".*"`, "y")),
			`"Stopgap X.1 o"`, `names no header of the response`},
		"a precondition that never holds": {doc(fresh, "/owa", "outbound", csp(`<add input="{REQUEST_URI}" pattern="^owa/" />`,
			`serverVariable="RESPONSE_X" pattern=".*"`, "y")), `"Stopgap X.1 o"`, `precondition never holds`},
		"everything": {doc(fresh, "/", "inbound", rule(`url=".*"`, "", abort)), `<rule`,
			`stops every request at /, legitimate ones too: front page`},
		"everything, by a wildcard": {doc(fresh, "/", "inbound",
			`<rule name="Stopgap X.1 a" patternSyntax="Wildcard"><match url="*" /><action `+abort+` /></rule>`), `<rule`, `stops every request at /`},
		"everything is redirected": {doc(fresh, "/", "inbound", rule(`url=".*"`, "",
			`type="Redirect" url="https://status.example/" redirectType="Found"`)), `<rule`, `it is redirected to "https://status\.example/`},
		"everything is rewritten": {doc(fresh, "/owa", "inbound", rule(`url=".*"`, "",
			`type="Rewrite" url="/maintenance.htm"`)), `<rule`, `it is rewritten to "/maintenance\.htm`},
		"every request of phones": {doc(fresh, "/Microsoft-Server-ActiveSync", "inbound", rule(`url=".*"`, "", forbidden)),
			`<rule`, `stops every request at /Microsoft-Server-ActiveSync.*status 403`},
		"every POST": {doc(fresh, "/", "inbound", rule(`url=".*"`,
			`<add input="{REQUEST_METHOD}" pattern="^POST$" />`, abort)), `<rule`, `stops legitimate requests`},
		"every address in a query": {doc(fresh, "/Autodiscover", "inbound", rule(`url="autodiscover\.json"`,
			`<add input="{UrlDecode:{QUERY_STRING}}" pattern="@" />`, abort)), `<rule`, `stops legitimate requests: Autodiscover v2`},
		"all but what is on disk": {doc(fresh, "/owa", "inbound", rule(`url=".*"`,
			`<add input="{REQUEST_FILENAME}" matchType="IsFile" negate="true" />`, abort)), `<rule`, `stops legitimate requests`},
		"whoever is not signed in": {doc(fresh, "/owa", "inbound", rule(`url=".*"`,
			`<add input="{HTTP_COOKIE}" pattern="cadata=" negate="true" />`, abort)), `<rule`, `stops legitimate requests: sign-in`},
		"who has signed in": {doc(fresh, "/ecp", "inbound", rule(`url=".*"`,
			`<add input="{LOGON_USER}" pattern="admin" />`, abort)), `<rule`, `before anybody is authenticated`},
		"the answer's Location is emptied": {doc(fresh, "/owa", "outbound", csp(`<add input="{RESPONSE_STATUS}" pattern="^302" />`,
			`serverVariable="RESPONSE_Location" pattern=".*"`, "")), `"Stopgap X.1 o"`, `breaks answers to legitimate requests: sign-in to OWA .*loses its header Location`},
		"its own health probe": {doc(fresh+"probes:\n  - health: {request: \"GET /owa/gone.htm\", expectStatus: 200}\n",
			"/owa", "inbound", rule(`url="^gone"`, "", abort)), `<rule`, `the document's own health probe`},
		"a variable": {doc(fresh, "/", "inbound",
			`<rule name="Stopgap X.1 a"><match url="^gone" /><serverVariables><set name="HTTP_X" value="1" /></serverVariables><action type="None" /></rule>`), `<rule`, `sets the server variable HTTP_X.*500\.50`},
		"a rule behind one that ends it": {doc(fresh, "/EWS", "inbound",
			`<rule name="Stopgap X.1 first" stopProcessing="true"><match url=".*" /><action type="None" /></rule>`+"\n"+rule(`url="^gone"`, "",
				abort)), `"Stopgap X.1 a"`, `never reached: rule "Stopgap X.1 first"`},
		"rules that refuse nothing": {doc(fresh, "/EWS", "inbound", rule(`url="^gone"`, "", `type="None"`)), `<rule`,
			`refuses no request`},
		"no such application": {doc(fresh, "/owa/auth", "inbound", rule(`url="^gone"`, "", abort)), `location:`,
			`no application /owa/auth`},
		"a pool that does not serve the request": {head + fresh + probe("GET /ews/", "expectStatus: 503") +
			"actions:\n  - {id: p, appPool: {name: MSExchangeOABAppPool, autoStart: false, state: STOPPED}}\n", `effect:`, `runs in another pool`},
		"a pool for an attack that goes elsewhere": {head + notShell +
			"actions:\n  - {id: p, appPool: {name: MSExchangeOABAppPool, autoStart: false, state: STOPPED}}\n", `cves:`, `stops none of`},
	} {
		all := findings(t, c.text)
		want := regexp.MustCompile(c.want)
		ok := false
		for _, f := range all {
			ok = ok || f.Severe && f.Line == lineOf(c.text, c.at) && want.MatchString(f.Msg)
		}
		if !ok {
			t.Errorf("%s: want an error at %s like %q, got\n%s", name, c.at, c.want, list(all))
		}
	}
}

// lineOf finds the line that has a text.
func lineOf(doc, text string) int {
	i := strings.Index(doc, text)
	return 1 + strings.Count(doc[:max(i, 0)], "\n")
}

func list(all []Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

func TestLintWarnsOfWhatAReviewerShouldSee(t *testing.T) {
	t.Parallel()
	gone := rule(`url="^gone\.asmx"`, "", abort)
	goneProbe := probe("GET /ews/gone.asmx", "expectAborted: true")
	for name, c := range map[string]struct {
		text, want, at string
	}{
		"a way past": {doc(fresh+probe("GET /ews/gone?Exploited", "expectAborted: true"), "/EWS", "inbound", ruleNamed("b",
			`url="^gone"`, `<add input="{QUERY_STRING}" pattern="Exploited" />`, abort)), `"%65xploited" goes past it; write {UrlDecode:{QUERY_STRING}}`, `<rule`},
		"no CVE":   {doc(goneProbe, "/EWS", "inbound", gone), `has no CVE`, `id: X`},
		"no probe": {doc(fresh, "/EWS", "inbound", gone), `has no effect probe`, `- id: a`},
		"one attack of two": {doc("cves: [CVE-2021-34473]\n"+probe("GET /powershell/?x=autodiscover", "expectAborted: true"), "/",
			"inbound", rule(`url=".*"`, shellWord,
				abort)), `does not stop a published attack request for CVE-2021-34473: GET /autodiscover/autodiscover\.json\?@evil\.example/mapi/nspi`, `cves:`},
		"a rule too many": {doc(fresh+goneProbe, "/EWS", "inbound", gone+"\n"+ruleNamed("b", `url="^other\.asmx"`, "", abort)),
			`rule "Stopgap X.1 b" refuses none of`, `X.1 b`},
		"another name": {doc(fresh+goneProbe, "/EWS", "inbound", strings.Replace(gone, "Stopgap X.1", "Mine", 1)),
			`should be named`, `<rule`},
		"addresses from inside only": {doc(fresh+probe("GET /ecp/", "expectAborted: true"), "/ecp", "inbound", rule(`url=".*"`,
			`<add input="{REMOTE_ADDR}" pattern="^192\.168\." negate="true" />`, abort)), `unless {REMOTE_ADDR} is as the rule wants it`, `<rule`},
		"an unknown site": {strings.Replace(doc(fresh+goneProbe, "/EWS", "inbound", gone), "EXCHANGE_FRONT_END", "Partners", 1),
			`was not judged`, `Partners`},
		"an answer unchanged": {doc(fresh+goneProbe, "/EWS", "inbound", gone) + "      outbound: |\n" +
			indent(`<rule name="Stopgap X.1 o"><match serverVariable="RESPONSE_X_Old" pattern="^yes" /><action type="Rewrite" value="no" /></rule>`), `changes the answer to none`, `X.1 o`},
	} {
		all := findings(t, c.text)
		want := regexp.MustCompile(c.want)
		if len(all) != 1 || all[0].Severe || all[0].Line != lineOf(c.text, c.at) || !want.MatchString(all[0].Msg) {
			t.Errorf("%s: want one warning at %s like %q, got\n%s", name, c.at, c.want, list(all))
		}
	}
}

func TestARuleWithoutCVEThatIsMeantToStayHasNoFinding(t *testing.T) {
	t.Parallel()
	text := doc("removeWhen: REMOVE_WHEN_NEVER\n"+probe("GET /ews/gone.asmx", "expectAborted: true"), "/EWS", "inbound",
		rule(`url="^gone\.asmx"`, "", abort))
	if all := findings(t, text); len(all) > 0 {
		t.Error(list(all))
	}
}

func TestSlowPatternsAndManyRulesEndInTime(t *testing.T) {
	t.Parallel()
	var many, slow strings.Builder
	for i := range maxLintRules + 1 {
		many.WriteString(strings.Replace(ruleNamed(fmt.Sprint(i), `url="^gone"`, "", abort), "Stopgap", "Mine", 1) + "\n")
	}
	for i := range 40 {
		slow.WriteString(ruleNamed(fmt.Sprint(i), `url=".*"`, `<add input="{ALL_RAW}" pattern="a.*b.*c.*d" />`, abort) + "\n")
	}
	if all := findings(t, doc(fresh, "/EWS", "inbound", many.String())); !strings.Contains(list(all), "is not judged") {
		t.Error(list(all))
	}
	began := time.Now()
	findings(t, doc(notShell, "/", "inbound", slow.String()))
	if took := time.Since(began); took > 2*effect.MaxReviewTime {
		t.Errorf("took %v", took)
	}
}

func FuzzLint(f *testing.F) {
	files, err := Catalogue()
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range files {
		f.Add(c.Content)
	}
	f.Add([]byte(doc(notShell, "/owa", "inbound", rule(`url="^(a|b)*/[^x]\?$" negate="true"`, `<add input="{R:1}" pattern="^$" />`, abort))))
	f.Fuzz(lintInTime)
}

// FuzzLintRule keeps the document well-formed, so that more of what is tried gets as far as the rule's effect.
func FuzzLintRule(f *testing.F) {
	f.Add("/EWS", `^ews/`, "", "{QUERY_STRING}", `^\?`, "AbortRequest", uint8(0))
	f.Add("/", `(?=x)y{2,9}`, "Wildcard", "{NONE}", `[\x00-x]`, "Redirect", uint8(1))
	f.Add("/owa", `.*`, "ExactMatch", "{UrlDecode:{REQUEST_URI}}", `(a|b)*[^/]+`, "CustomResponse", uint8(2))
	f.Add("/owa", ``, "", "{RESPONSE_X}", `^(https?://|/)x\.y$`, "None", uint8(7))
	quote := strings.NewReplacer("&", "&amp;", "<", "&lt;", `"`, "&quot;", "\n", "&#10;", "\r", "&#13;", "\t", "&#9;").Replace
	f.Fuzz(func(t *testing.T, path, url, syntax, input, pattern, action string, bits uint8) {
		attrs := map[bool]string{true: ` negate="true"`}
		target := ""
		switch action {
		case "CustomResponse":
			target = ` statusCode="403" statusReason="x" statusDescription="x"`
		case "Redirect", "Rewrite":
			target = ` url="/x{R:0}"`
		}
		if syntax == "" {
			syntax = "ECMAScript"
		}
		xml := fmt.Sprintf(`<rule name="Stopgap X.1 a" patternSyntax="%s"><match url="%s"%s /><conditions><add input="%s" pattern="%s"%s /></conditions><action type="%s"%s /></rule>`,
			quote(syntax), quote(url), attrs[bits&1 > 0], quote(input), quote(pattern), attrs[bits&2 > 0], quote(action), target)
		cves := fresh
		if bits&4 > 0 {
			cves = notShell
		}
		lintInTime(t, []byte(doc(cves, path, "inbound", xml)))
	})
}

func lintInTime(t *testing.T, data []byte) {
	d, err := Parse("f", data)
	if err != nil {
		return
	}
	began := time.Now()
	if n := len(Lint(d)); n > 2*maxFindings {
		t.Errorf("%d findings", n)
	}
	if took := time.Since(began); took > 2*effect.MaxReviewTime {
		t.Errorf("took %v", took)
	}
}
