package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/shared/clirun"
)

const explainConfig = "testdata/explain"

// explain runs the command and returns what it prints.
func explain(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), append([]string{"rewrite", "explain"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

func explained(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := explain(t, args...)
	if code != clirun.OK {
		t.Fatalf("%v: exit status %d: %s", args, code, errs)
	}
	return out
}

// says checks that a text has all parts, in their order.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, p := range parts {
		_, after, ok := strings.Cut(rest, p)
		if !ok {
			t.Fatalf("%q is missing, or not in its place, in:\n%s", p, text)
		}
		rest = after
	}
}

// webConfig writes a web.config whose <system.webServer> has the text.
func webConfig(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "web.config")
	if err := os.WriteFile(name, []byte("<configuration><system.webServer>\n"+text+"\n</system.webServer></configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// block is a fenced block of a page.
var block = regexp.MustCompile("(?s)```(sh|text)\n(.*?)```")

// TestThePageOnEffectiveConfigurationIsTrue runs the commands of docs/effective-configuration.md as they are there, and compares
// what they print with the page.
func TestThePageOnEffectiveConfigurationIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../../docs/effective-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	got, ran := "", 0
	for _, b := range block.FindAllStringSubmatch(string(page), -1) {
		switch b[1] {
		case "sh":
			command := strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(b[2]), "\\\n", " "), "$CONFIG", explainConfig)
			args, ok := strings.CutPrefix(command, "stopgap rewrite explain ")
			if !ok {
				t.Fatalf("not a command of this page: %s", command)
			}
			got = explained(t, words(args)...)
			ran++
		case "text":
			if want := strings.ReplaceAll(b[2], "$CONFIG", explainConfig); trimmed(got) != trimmed(want) {
				t.Errorf("the page says:\n%s\nthe command prints:\n%s", want, got)
			}
		}
	}
	if ran < 2 {
		t.Errorf("only %d commands were found in the page", ran)
	}
}

// words splits a command line as a shell does, as far as this page needs it.
func words(s string) []string {
	var out []string
	for _, w := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(s, -1) {
		out = append(out, strings.Trim(w, `"`))
	}
	return out
}

func trimmed(s string) string {
	return regexp.MustCompile(`[ \t]+\n`).ReplaceAllString(strings.TrimSpace(s)+"\n", "\n")
}

func TestASingleFileTakesThePlaceOfACopysFileAndOthersAreAbsentWithoutACopy(t *testing.T) {
	own := webConfig(t, `<rewrite><rules><rule name="mine"><match url="^x$"/><action type="Redirect" url="/y" redirectType="Found"/></rule></rules></rewrite>`)
	for _, arg := range []string{"/owa=", "Default Web Site/owa="} {
		out := explained(t, "--config", explainConfig, "--config", arg+own, "--path", "/OWA")
		says(t, out, `application /owa`, "1. EEMS M1.1", "level /", "2. mine", `the URL matches "^x$"`, `redirects to "/y" (Found)`, own+":2, level /OWA")
	}
	out := explained(t, "--config", explainConfig+"/applicationHost.config", "--config", "/owa="+own, "--path", "/owa/auth")
	says(t, out, "(web.config: not given: taken to be absent)", own, "(web.config: not given: taken to be absent)", "1. mine")
	says(t, explained(t, "--config", explainConfig+"/applicationHost.config"), "/owa", "not given")
}

func TestARefusedPlaceNamesFileLineCodeAndReason(t *testing.T) {
	twice := webConfig(t, `<rewrite><rules><rule name="eems m1.1 powershell - inbound"/></rules></rewrite>`)
	out := explained(t, "--config", explainConfig, "--config", "/owa="+twice, "--path", "/owa/auth", "--request", "GET /owa/auth/x")
	says(t, out, "No rule is in effect. IIS refuses it with 0x800700b7: "+twice+":2: ", "wwwroot/web.config:5", "status 500: IIS refuses the configuration")
	says(t, explained(t, "--config", explainConfig, "--config", "/owa="+twice), "/owa", "-  ", "0x800700b7", "/Autodiscover")
	var r struct {
		Place struct {
			Refused struct {
				File, HResult string
				Line          int
			}
		}
	}
	if err := json.Unmarshal([]byte(explained(t, "--config", explainConfig, "--config", "/owa="+twice, "--path", "/owa", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Place.Refused.File != twice || r.Place.Refused.Line != 2 || r.Place.Refused.HResult != "0x800700b7" {
		t.Errorf("%+v", r)
	}
}

func TestWhatIsNotInEffectIsNamedWithTheReason(t *testing.T) {
	site := webConfig(t, `</system.webServer><location path="." inheritInChildApplications="false"><system.webServer><rewrite><rules><rule name="kept"/></rules></rewrite></system.webServer></location>
<system.webServer><rewrite><outboundRules><preConditions><preCondition name="html"><add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/html"/></preCondition></preConditions>
<rule name="gone"><match serverVariable="RESPONSE_A" pattern=".*"/></rule><rule name="lost" preCondition="none"><match serverVariable="RESPONSE_A" pattern=".*"/></rule></outboundRules></rewrite>`)
	owa := webConfig(t, `<rewrite><outboundRules><remove name="GONE"/></outboundRules><rules><rule name="off" enabled="false"/></rules></rewrite>`)
	out := explained(t, "--config", explainConfig, "--config", "/="+site, "--config", "/owa="+owa, "--path", "/owa")
	says(t, out, "1. off  (disabled", `"kept" of `+site+":2 is not inherited", "lost", `"gone" of `+site, "<remove> at "+owa+":2", "Preconditions", `{RESPONSE_CONTENT_TYPE} matches`,
		`precondition "none" does not exist`)
}

func TestAModuleThatIsRemovedAndAnIgnoringPoolAreSaid(t *testing.T) {
	out := explained(t, "--config", explainConfig, "--config", "/owa="+webConfig(t, `<modules><remove name="RewriteModule"/></modules>`), "--path", "/owa",
		"--request", "GET /owa/?autodiscover/powershell")
	says(t, out, "No rule runs: URL Rewrite is switched off here", "web.config:2 takes RewriteModule out of modules", "no rule runs")
	host, err := os.ReadFile(explainConfig + "/applicationHost.config")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "applicationHost.config")
	global := strings.Replace(string(host), "<globalModules>", `<rewrite><globalRules><rule name="g"><match url="^owa/x"/><action type="AbortRequest"/></rule></globalRules></rewrite><globalModules>`, 1)
	if err := os.WriteFile(name, []byte(global), 0o600); err != nil {
		t.Fatal(err)
	}
	out = explained(t, "--config", name, "--config", "/owa="+webConfig(t, `<modules><remove name="RewriteModule"/></modules>`), "--request", "GET /owa/x")
	says(t, out, "switched off here", "Global rules probably run", "2 possible results", "connection is closed", "no rule runs")
	changed := strings.Replace(string(host), `name="MSExchangeOWAAppPool"`, `name="MSExchangeOWAAppPool" enableConfigurationOverride="false"`, 1)
	if err := os.WriteFile(name, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	own := webConfig(t, `<rewrite><rules><rule name="mine"/></rules></rewrite>`)
	says(t, explained(t, "--config", name, "--config", "/owa="+own, "--path", "/owa"), "ignores web.config files", "the pool ignores it", "No inbound rule is in effect")
}

func TestARequestIsDecidedAndReadingsAreToldApartOnlyWhereTheyDiffer(t *testing.T) {
	rules := func(r string) string { return "/=" + webConfig(t, `<rewrite><rules>`+r+`</rules></rewrite>`) }
	abort := `<action type="AbortRequest"/>`
	for _, x := range []struct {
		name, rules, request string
		header               []string
		says                 []string
		outcomes             int
	}{
		{"every reading agrees", `<rule name="a"><match url="x$"/>` + abort + `</rule>`, "GET /owa/x", nil, []string{`decided by rule "a"`, "connection is closed", "runs", "a"}, 1},
		{"an inherited pattern", `<rule name="a"><match url="^owa/x$"/>` + abort + `</rule>`, "GET /owa/x", nil,
			[]string{"2 possible results", "relative to the application", "no rule refuses", "does not match", "relative to the level that defines", "connection is closed"}, 2},
		{"a stop in front", `<rule name="s" stopProcessing="true"><match url="x"/></rule><rule name="a"><match url=".*"/>` + abort + `</rule>`, "GET /owa/x", nil,
			[]string{"no rule refuses", "runs", "s", "not reached", "a"}, 1},
		{"a header", `<rule name="a"><match url=".*"/><conditions><add input="{HTTP_COOKIE}" pattern="bad"/></conditions><action type="CustomResponse" statusCode="403" statusReason="No"/></rule>`,
			"GET /owa/x", []string{"Cookie: bad=1", "X: y"}, []string{`decided by rule "a"`, "status 403 No"}, 1},
		{"a stop for one header", `<rule name="s" stopProcessing="true"><match url=".*"/><conditions><add input="{HTTP_X_PARTNER}" pattern="yes"/></conditions></rule><rule name="a"><match url=".*"/>` + abort + `</rule>`,
			"GET /owa/x", nil, []string{"the client sends the request as it is", "connection is closed", "the client adds what gets it past", "no rule refuses"}, 2},
		{"a variable that is not allowed", `<rule name="a"><match url=".*"/><serverVariables><set name="HTTP_X" value="1"/></serverVariables>` + abort + `</rule>`, "GET /owa/x", nil,
			[]string{"status 500, substatus 50", "HTTP_X"}, 1},
		{"a pattern that does not compile", `<rule name="star"><match url="*"/></rule>`, "GET /owa/x", nil,
			[]string{"A pattern does not compile", `rule "star"`, "status 500: a pattern does not compile"}, 1},
		{"a rewrite", `<rule name="a"><match url=".*"/><action type="Rewrite" url="/owa/y"/></rule>`, "GET /owa/x?q=1", nil, []string{`rewritten URL "/owa/y?q=1"`}, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := []string{"--config", explainConfig, "--config", rules(x.rules), "--request", x.request}
			for _, h := range x.header {
				args = append(args, "--header", h)
			}
			says(t, explained(t, args...), x.says...)
			var r struct{ Request struct{ Outcomes []any } }
			if err := json.Unmarshal([]byte(explained(t, append(args, "-o", "json")...)), &r); err != nil || len(r.Request.Outcomes) != x.outcomes {
				t.Errorf("%d outcomes, want %d (%v)", len(r.Request.Outcomes), x.outcomes, err)
			}
		})
	}
}

func TestTextOfConfigurationFilesIsShownAndNeverObeyedByATerminal(t *testing.T) {
	own := webConfig(t, "<rewrite><rules><rule name=\"a\u009b31m\u202eb\"><match url=\"\u202e\"/></rule></rules></rewrite>")
	for _, args := range [][]string{{"--path", "/owa"}, {"--request", "GET /owa/\u202e"}, {}} {
		out := explained(t, append([]string{"--config", explainConfig, "--config", "/owa=" + own}, args...)...)
		if strings.ContainsAny(out, "\u009b\u202e\x1b") {
			t.Errorf("%v: control characters reach the terminal: %q", args, out)
		}
	}
}

func TestWrongCallsAndUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "applicationHost.config")
	if err := os.WriteFile(broken, []byte("<configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		args []string
		code int
		says string
	}{
		{nil, clirun.Usage, "--config is needed"},
		{[]string{"--config", explainConfig, "-o", "csv"}, clirun.Usage, "table or"},
		{[]string{"--config", explainConfig, "--header", "A: b"}, clirun.Usage, "--request"},
		{[]string{"--config", explainConfig, "--request", "/owa"}, clirun.Usage, "METHOD /path"},
		{[]string{"--config", explainConfig, "--request", "GET /%zz"}, clirun.Usage, "%zz"},
		{[]string{"--config", explainConfig, "--request", "GET /", "--header", "no colon"}, clirun.Usage, "Name: value"},
		{[]string{"--vectors", "x", "--config", explainConfig}, clirun.Usage, "stands alone"},
		{[]string{"--vectors", dir + "/none"}, clirun.Failed, "none"},
		{[]string{"--config", dir + "/none"}, clirun.Failed, "none"},
		{[]string{"--config", t.TempDir()}, clirun.Failed, "no copy of a server"},
		{[]string{"--config", broken}, clirun.Failed, "is not closed"},
		{[]string{"--config", explainConfig, "--config", dir}, clirun.Failed, "only one"},
		{[]string{"--config", "/owa=x"}, clirun.Failed, "no directory and no applicationHost.config"},
		{[]string{"--config", explainConfig, "--config", "/owa=" + dir + "/none"}, clirun.Failed, "none"},
		{[]string{"--config", explainConfig, "--site", "Other"}, clirun.Failed, `the sites are "Default Web Site"`},
		{[]string{"--config", explainConfig, "--config", "Other/owa=" + broken}, clirun.Failed, `no site "Other"`},
	} {
		if _, errs, code := explain(t, x.args...); code != x.code || !strings.Contains(errs, x.says) {
			t.Errorf("%v: exit status %d, %q; want %d, %q", x.args, code, errs, x.code, x.says)
		}
	}
}

func TestHostileFilesCostTheirPlaceOnly(t *testing.T) {
	huge := filepath.Join(t.TempDir(), "web.config")
	if err := os.WriteFile(huge, []byte("<configuration/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 2<<30); err != nil { // sparse
		t.Fatal(err)
	}
	began := time.Now()
	out := explained(t, "--config", explainConfig, "--config", "/owa="+huge)
	says(t, out, "/owa", "IIS refuses it: "+huge, "256000 bytes", "/Autodiscover")
	long := strings.Repeat("/d", 50_000)
	out = explained(t, "--config", explainConfig, "--request", "GET "+long+"/?x=powershell-autodiscover")
	says(t, out, "can't be judged", "50000 segments")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestVectorsAreAnsweredOneLineForEachQuestion(t *testing.T) {
	host, err := os.ReadFile(explainConfig + "/applicationHost.config")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "vectors.json")
	vectors, err := json.Marshal(map[string]any{
		"site": "Default Web Site", "dirs": map[string]string{"W": `C:\inetpub\wwwroot`, "O": `C:\Exchange\FrontEnd\HttpProxy\owa`},
		"vectors": []any{map[string]any{"id": "v", "xml": map[string]string{"apphost": string(host),
			"W/web.config": `<configuration><system.webServer><rewrite><rules><rule name="A"/></rules></rewrite></system.webServer></configuration>`,
			"O/web.config": `<configuration><system.webServer>`},
			"asks": []any{
				map[string]any{"path": "/", "section": "rules", "module": true}, map[string]any{"path": "/owa", "section": "rules"},
				map[string]any{"path": "/autodiscover", "section": "rules"}, map[string]any{"path": "/x/y", "section": "rules", "input_of": "a"},
				map[string]any{"path": "/", "section": "nonsense"},
			}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, vectors, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(explained(t, "--vectors", name)), "\n")
	if len(lines) != 5 {
		t.Fatal(lines)
	}
	says(t, lines[0], `"module":true`, `"names":["A"]`)
	says(t, lines[1], `"error":"config_error"`, `"hresult":"0x8007000d"`)
	says(t, lines[2], `"names":[]`)
	says(t, lines[3], `"inputs":["x/y"]`)
	says(t, lines[4], `"error":"unknown_section"`)
}
