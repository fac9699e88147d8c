package reconcile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/labdir"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// oddities are what people and tools leave in the configuration of a server, each as an edit: a text goes in front of a mark in a
// file, or a file is written.
func oddities() []oddity {
	clear := "<system.webServer><rewrite><rules><clear /></rules></rewrite></system.webServer>"
	rules := func(x string) string {
		return "<system.webServer><rewrite><rules>" + x + "</rules></rewrite></system.webServer>"
	}
	stop := `<rule name="stop" stopProcessing="true"><match url=".*" /></rule>`
	theirs := `<rule name="EEMS M1.1" stopProcessing="true"><match url=".*" /><conditions><add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)" /></conditions><action type="AbortRequest" /></rule>`
	at := func(path, x string) string { return `<location path="` + path + `">` + x + `</location>` }
	whole := func(x string) string { return "<configuration>" + x + "</configuration>" }
	app := func(path, dir string) string {
		return `<application path="` + path + `" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="` + dir + `" /></application>`
	}
	return []oddity{
		{"site rules of somebody else", wwwroot, "</configuration>", rules(`<rule name="page"><match url="^old$" /><action type="Redirect" url="/owa/" /></rule>`)},
		{"a rule that stops, in the site", wwwroot, "</configuration>", rules(stop)},
		{"theirs, in the site", wwwroot, "</configuration>", rules(theirs)},
		{"theirs, not inherited", wwwroot, "  </location>", rules(theirs)},
		{"the site clears inside", wwwroot, "  </location>", clear},
		{"apphost stops at the site", appHost, "</configuration>", at("Default Web Site", rules(stop))},
		{"apphost clears at Autodiscover", appHost, "</configuration>", at("Default Web Site/Autodiscover", clear)},
		{"apphost removes ours at owa", appHost, "</configuration>", at("Default Web Site/owa", rules(`<remove name="Stopgap M1.1 PowerShell - inbound" />`))},
		{"apphost denies at the site", appHost, "</configuration>", strings.Replace(at("Default Web Site", rules("")), `">`, `" overrideMode="Deny">`, 1)},
		{"apphost locks elements", appHost, "</configuration>", at("Default Web Site", `<system.webServer><rewrite><rules lockElements="clear" /></rewrite></system.webServer>`)},
		{"the site's location for Autodiscover", wwwroot, "</configuration>", at("Autodiscover", clear)},
		{"autodiscover clears", httpProxy + "Autodiscover/web.config", "</configuration>", clear},
		{"autodiscover is broken", httpProxy + "Autodiscover/web.config", "</configuration>", "<a>"},
		{"autodiscover has no module", httpProxy + "Autodiscover/web.config", "  </modules>", `<remove name="RewriteModule" />`},
		{"ecp clears", httpProxy + "ecp/web.config", "</configuration>", clear},
		{"owa/auth clears", httpProxy + "owa/auth/web.config", "", whole(clear)},
		{"powershell stops", httpProxy + "PowerShell/web.config", "</configuration>", rules(stop)},
		{"old application on wwwroot", appHost, `<application path="/mapi"`, app("/old", `%SystemDrive%\inetpub\wwwroot`)},
		{"helpdesk", appHost, `<application path="/mapi"`, app("/helpdesk", `C:\inetpub\helpdesk`)},
		{"helpdesk has our name", `C/inetpub/helpdesk/web.config`, "", whole(rules(`<rule name="Stopgap M1.1 PowerShell - inbound"><match url="x" /></rule>`))},
		{"the pool ignores web.config", appHost, `name="MSExchangeAutodiscoverAppPool"`, `enableConfigurationOverride="false" `},
		{"a section twice", wwwroot, "</configuration>", rules("") + rules("")},
		{"an unknown function", wwwroot, "</configuration>", rules(`<rule name="f" stopProcessing="true"><match url=".*" /><conditions><add input="{Newer:{URL}}" pattern="." /></conditions></rule>`)},
	}
}

// oddity goes in front of mark, or is the whole file when there is no mark.
type oddity struct{ name, file, mark, text string }

func (o oddity) play(dir string) error {
	p := filepath.Join(dir, o.file)
	if o.mark == "" {
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return err
		}
		return os.WriteFile(p, []byte(o.text), 0o600)
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	i := strings.LastIndex(string(data), o.mark)
	if i < 0 {
		return nil // another oddity took the place
	}
	return os.WriteFile(p, []byte(string(data[:i])+o.text+string(data[i:])), 0o600)
}

// refused asks the plain evaluator, path by path, whether each attack request of M1 is refused: written without the agent's code.
func refused(t interface{ Fatal(...any) }, dir string, doc *stopgapv1.Mitigation) (through []string) {
	d := labdir.Dir(dir)
	data, name, err := d.ReadFile(labdir.ApplicationHost)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := iisconfig.Parse(data, name)
	if err != nil {
		t.Fatal(err)
	}
	m := iisconfig.NewModel(srv, d)
	for _, a := range effect.Attacks(doc) {
		p := m.At(srv.Site("Default Web Site"), a.Path)
		rs, _, err := p.Rules()
		if err != nil {
			continue // IIS answers 500.19 to everybody
		}
		runs, _ := p.Module()
		req := &urlrewrite.Request{Method: a.Method, Scheme: "https", Host: "mail.example", Path: a.Path, RawPath: a.RawPath, RawQuery: a.Query, Header: a.Header}
		res, err := rs.Inbound(req, p.App.Path)
		if err != nil || !runs || res.Action != urlrewrite.ActionAbort {
			through = append(through, fmt.Sprintf("%s (%v, module %t, action %d)", a.Name, err, runs, res.Action))
		}
	}
	return through
}

// invalid lists Exchange's places at which IIS refuses the configuration.
func invalid(t interface{ Fatal(...any) }, dir string) map[string]bool {
	d := labdir.Dir(dir)
	data, name, err := d.ReadFile(labdir.ApplicationHost)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := iisconfig.Parse(data, name)
	if err != nil {
		t.Fatal(err)
	}
	m, out := iisconfig.NewModel(srv, d), map[string]bool{}
	for _, s := range srv.Sites {
		for _, path := range s.Places() {
			if m.At(s, path).Invalid() != nil {
				out[s.Name+path] = true
			}
		}
	}
	return out
}

// TestWhateverIsOddAppliedMeansRefused is the law of the product: on a server with any mixture of oddities APPLIED is said only
// if every attack request is refused; no place becomes invalid that was not; FAILED leaves every file as it was; and taking the
// mitigation off gives every byte back.
func TestWhateverIsOddAppliedMeansRefused(t *testing.T) {
	t.Parallel()
	files, err := mitigation.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	var doc *stopgapv1.Mitigation
	for _, f := range files {
		if f.Name == "M1.yaml" {
			d, err := mitigation.Parse(f.Name, f.Content)
			if err != nil {
				t.Fatal(err)
			}
			doc = d.Mitigation
		}
	}
	all := oddities()
	seen := map[stopgapv1.OutcomeState]int{}
	rapid.Check(t, func(rt *rapid.T) {
		g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
		var names []string
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(all)-1), 0, 4, rapid.ID[int]).Draw(rt, "oddities") {
			names = append(names, all[i].name)
			if err := all[i].play(g.dir); err != nil {
				rt.Fatal(err)
			}
		}
		before, broken := g.snapshot(), invalid(rt, g.dir)
		g.publish("M1")
		for range 2 { // the second pass must say the same
			if err := g.r.Pass(t.Context()); err != nil {
				rt.Fatal(err)
			}
			o := g.outcome("M1")
			through := refused(rt, g.dir, doc)
			if o.GetState() == applied && len(through) > 0 {
				rt.Fatalf("%v: APPLIED (%s) and through get %v", names, o.GetReason(), through)
			}
			for place := range invalid(rt, g.dir) {
				if !broken[place] && !strings.Contains(place, "helpdesk") {
					rt.Fatalf("%v: %s (%s): %s is invalid now", names, o.GetState(), o.GetReason(), place)
				}
			}
			if o.GetState() == failed && fmt.Sprint(g.snapshot()) != fmt.Sprint(before) {
				rt.Fatalf("%v: FAILED (%s) and a file was changed", names, o.GetReason())
			}
		}
		seen[g.outcome("M1").GetState()]++
		clear(g.targets)
		g.release(false)
		if err := g.r.Pass(t.Context()); err != nil {
			rt.Fatal(err)
		}
		after := g.snapshot()
		for p, h := range before {
			if after[p] != h {
				rt.Fatalf("%v: %s is not as before", names, p)
			}
		}
	})
	t.Log("states: ", seen)
	for _, s := range []stopgapv1.OutcomeState{applied, failed} {
		if seen[s] == 0 {
			t.Errorf("no server ended %s: the oddities are not odd enough", s)
		}
	}
}
