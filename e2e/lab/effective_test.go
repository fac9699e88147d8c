package lab

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheFrontEndAnswersAsIISDoes has what IIS answers, written by hand from Microsoft's documents, for configurations that an
// administrator, Exchange or another tool leaves on a server. The front end composes with the same model as the agent: these
// expectations do not come from it.
func TestTheFrontEndAnswersAsIISDoes(t *testing.T) {
	t.Parallel()
	const (
		wwwroot = "C/inetpub/wwwroot/web.config"
		apphost = "C/Windows/System32/inetsrv/config/applicationHost.config"
		proxy   = "C/Program Files/Microsoft/Exchange Server/V15/FrontEnd/HttpProxy/"
	)
	rules := func(x string) string {
		return "<system.webServer><rewrite><rules>" + x + "</rules></rewrite></system.webServer>"
	}
	teapot := `<rule name="teapot"><match url=".*" /><action type="CustomResponse" statusCode="418" /></rule>`
	pass := `<rule name="pass" stopProcessing="true"><match url=".*" /><action type="None" /></rule>`
	type edit struct{ file, before, text string }
	for name, c := range map[string]struct {
		edits []edit
		want  map[string]int // status by path; 0: any but 418 and 500
	}{
		"a rule of the site is inherited by every application": {[]edit{{wwwroot, "</configuration>", rules(teapot)}},
			map[string]int{"/": 418, "/owa/": 418, "/ecp/": 418, "/owa/auth/x.js": 418}},
		"a rule in Exchange's own location is not": {[]edit{{wwwroot, "  </location>", rules(teapot)}},
			map[string]int{"/": 418, "/nothing/here": 418, "/owa/": 0, "/ecp/": 0}},
		"an application clears": {[]edit{{wwwroot, "</configuration>", rules(teapot)}, {proxy + "ecp/web.config", "</configuration>", rules("<clear />")}},
			map[string]int{"/owa/": 418, "/ecp/": 0}},
		"applicationHost.config removes for a path, after the site's file": {[]edit{{wwwroot, "</configuration>", rules(teapot)},
			{apphost, "</configuration>", `<location path="Default Web Site/EWS">` + rules(`<remove name="TEAPOT" />`) + `</location>`}},
			map[string]int{"/ews/exchange.asmx": 0, "/ecp/": 418}},
		"applicationHost.config's own rule comes before the site's": {[]edit{{wwwroot, "</configuration>", rules(teapot)},
			{apphost, "</configuration>", `<location path="Default Web Site">` + rules(pass) + `</location>`}},
			map[string]int{"/": 0, "/ecp/": 0}},
		"a plain directory has rules of its own": {[]edit{{proxy + "owa/auth/web.config", "", "<configuration>" + rules(teapot) + "</configuration>"}},
			map[string]int{"/owa/auth/x.js": 418, "/owa/": 0}},
		"a rule outside of the location that four applications share": {[]edit{{proxy + "owa/web.config", "</configuration>", rules(teapot)}},
			map[string]int{"/owa/": 418, "/owa/Calendar/": 500, "/owa/oma/": 500, "/ecp/": 0}},
		"a rule inside of it": {[]edit{{proxy + "owa/web.config", "  </location>", rules(teapot)}},
			map[string]int{"/owa/": 418, "/owa/Calendar/": 418, "/ecp/": 0}},
		"one name twice": {[]edit{{wwwroot, "</configuration>", rules(teapot)}, {proxy + "ecp/web.config", "</configuration>", rules(teapot)}},
			map[string]int{"/ecp/": 500, "/owa/": 418}},
		"a locked section": {[]edit{{apphost, "</configuration>", `<location path="Default Web Site/ecp" overrideMode="Deny">` + rules("") + `</location>`},
			{proxy + "ecp/web.config", "</configuration>", rules(teapot)}},
			map[string]int{"/ecp/": 500, "/owa/": 0}},
		"a malformed file":           {[]edit{{proxy + "ecp/web.config", "</configuration>", "<a>"}}, map[string]int{"/ecp/": 500, "/owa/": 0}},
		"a file of more than 250 KB": {[]edit{{proxy + "ecp/web.config", "</configuration>", strings.Repeat(" ", 256_000)}}, map[string]int{"/ecp/": 500, "/owa/": 0}},
		"rules in a file of their own": {[]edit{{wwwroot, "</configuration>", `<system.webServer><rewrite><rules configSource="r.config" /></rewrite></system.webServer>`},
			{"C/inetpub/wwwroot/r.config", "", "<rules>" + teapot + "</rules>"}},
			map[string]int{"/": 418, "/owa/": 418}},
		"which is missing": {[]edit{{wwwroot, "</configuration>", `<system.webServer><rewrite><rules configSource="r.config" /></rewrite></system.webServer>`}},
			map[string]int{"/": 500, "/owa/": 500}},
		"an application without the module": {[]edit{{wwwroot, "</configuration>", rules(teapot)}, {proxy + "ecp/web.config", "  </modules>", `<remove name="RewriteModule" />`}},
			map[string]int{"/ecp/": 0, "/owa/": 418}},
		"a pool that ignores web.config": {[]edit{{wwwroot, "</configuration>", rules(teapot)}, {apphost, `name="MSExchangeECPAppPool"`, `enableConfigurationOverride="false" `}},
			map[string]int{"/ecp/": 0, "/owa/": 418}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "server")
			if err := Make(dir, Spec{Template: Exchange2019CU14, Host: "EX01"}); err != nil {
				t.Fatal(err)
			}
			for _, e := range c.edits {
				p := filepath.Join(dir, e.file)
				text := e.text
				if e.before == "" {
					if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
						t.Fatal(err)
					}
				} else {
					data, err := os.ReadFile(p)
					if err != nil {
						t.Fatal(err)
					}
					i := strings.LastIndex(string(data), e.before)
					if i < 0 {
						t.Fatalf("%s has no %q", e.file, e.before)
					}
					text = string(data[:i]) + text + string(data[i:])
				}
				if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Serve(dir, "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			for path, want := range c.want {
				resp, err := client.Get(s.URL() + path)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if want != 0 && resp.StatusCode != want || want == 0 && (resp.StatusCode == http.StatusTeapot || resp.StatusCode == http.StatusInternalServerError) {
					t.Errorf("%s: %s, want %d\n%s", path, resp.Status, want, body)
				}
			}
		})
	}
}
