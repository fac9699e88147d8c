package reconcile

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/agent/internal/probe"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

const (
	wwwroot   = "C/inetpub/wwwroot/web.config"
	httpProxy = "C/Program Files/Microsoft/Exchange Server/V15/FrontEnd/HttpProxy/"
	appHost   = "C/Windows/System32/inetsrv/config/applicationHost.config"
	partial   = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL
)

// edit replaces the last occurrence of a text in a file of the lab server.
func (g *rig) edit(file, old, with string) {
	g.t.Helper()
	p := filepath.Join(g.dir, file)
	data, err := os.ReadFile(p)
	if err != nil {
		g.t.Fatal(err)
	}
	i := strings.LastIndex(string(data), old)
	if i < 0 {
		g.t.Fatalf("%s has no %q", file, old)
	}
	if err := os.WriteFile(p, []byte(string(data[:i])+with+string(data[i+len(old):])), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) write(file, text string) {
	g.t.Helper()
	p := filepath.Join(g.dir, file)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) read(file string) string {
	g.t.Helper()
	data, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(data)
}

// withdraw takes everything out of policy and checks that the server is what it was.
func (g *rig) withdraw(before map[string][32]byte) {
	g.t.Helper()
	clear(g.targets)
	g.release(false)
	g.pass()
	g.same(before)
}

func TestARuleThatStandsAndIsClearedAgainIsPutWhereItHasItsEffect(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	g.publish("M1")
	g.pass()
	g.edit(wwwroot, "</rules>", "<clear /></rules>")
	g.pass()
	g.expect("M1", applied, "drift-repaired")
	if text := g.read(wwwroot); strings.Index(text, "<clear />") > strings.Index(text, "Stopgap M1.1") {
		t.Errorf("the rule is still in front of what clears it:\n%s", text)
	}
}

func TestARuleThatStandsBehindOneThatStopsIsNotCalledApplied(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	stop := `<location path="Default Web Site"><system.webServer><rewrite><rules><rule name="leave alone" stopProcessing="true"><match url=".*" />` +
		`<action type="None" /></rule></rules></rewrite></system.webServer></location></configuration>`
	g.edit(appHost, "</configuration>", stop)
	there := g.read(wwwroot)
	g.pass()
	g.expect("M1", failed, "no-effect")
	if r := g.outcome("M1").GetReason(); !strings.Contains(r, `rule "leave alone"`) || !strings.Contains(r, "applicationHost.config:") {
		t.Errorf("the reason does not name the rule in front and its place: %s", r)
	}
	if g.read(wwwroot) != there {
		t.Error("a file was written though that helps nothing")
	}
	g.edit(appHost, stop, "</configuration>")
	g.pass()
	g.expect("M1", applied, "")
}

func TestWhatGetsThroughIsPartialAndIsListed(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	g.write(httpProxy+"owa/auth/web.config", "<configuration><system.webServer><rewrite><rules><clear /></rules></rewrite></system.webServer></configuration>")
	before := g.snapshot()
	g.publish("CVE-2021-26855")
	g.pass()
	g.expect("CVE-2021-26855", partial, "partial")
	r := g.outcome("CVE-2021-26855").GetReason()
	if !strings.Contains(r, "GET /owa/auth/x.js") || !strings.Contains(r, "owa/auth/web.config:1") || strings.Contains(r, "/ecp/y.js") {
		t.Errorf("the reason must list what gets through, with the place, and nothing else: %s", r)
	}
	g.pass()
	g.expect("CVE-2021-26855", partial, "partial")
	g.write(httpProxy+"owa/auth/web.config", "<configuration />")
	g.pass()
	g.expect("CVE-2021-26855", applied, "")
	before["/"+httpProxy+"owa/auth/web.config"] = sha256.Sum256([]byte("<configuration />"))
	g.withdraw(before)
}

func TestAnApplicationThatClearsInheritedRulesGetsThemInItsOwnFile(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	g.edit(appHost, "</configuration>", `<location path="Default Web Site/Autodiscover"><system.webServer><rewrite><rules><clear /></rules></rewrite></system.webServer></location></configuration>`)
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	if !strings.Contains(g.read(httpProxy+"Autodiscover/web.config"), "Stopgap M1.1") {
		t.Error("Autodiscover does not have the rule")
	}
	g.pass()
	g.expect("M1", applied, "applied")
	g.withdraw(before)
}

func TestASiteRootWithoutAFileGetsOneAndLosesItAgain(t *testing.T) {
	t.Parallel()
	for name, theirs := range map[string]string{"nobody else wrote": "", "somebody else wrote": "<appSettings />"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
			if err := os.Remove(filepath.Join(g.dir, wwwroot)); err != nil {
				t.Fatal(err)
			}
			g.publish("M1", "CVE-2021-26855")
			g.pass()
			g.expect("M1", applied, "applied")
			if theirs != "" {
				g.edit(wwwroot, "</configuration>", theirs+"</configuration>")
				g.pass()
			}
			clear(g.targets)
			g.release(false)
			g.pass()
			g.expect("M1", reverted, "withdrawn")
			data, err := os.ReadFile(filepath.Join(g.dir, wwwroot))
			switch {
			case theirs == "" && !os.IsNotExist(err):
				t.Errorf("the file is still there: %v\n%s", err, data)
			case theirs != "" && (err != nil || !strings.Contains(string(data), theirs) || strings.Contains(string(data), "Stopgap")):
				t.Errorf("theirs must stay and ours must go: %v\n%s", err, data)
			}
		})
	}
}

func TestASectionThatIsKeptInAnotherFileIsEditedThere(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	g.write(wwwroot, `<configuration><system.webServer><rewrite><rules configSource="kept.config" /></rewrite></system.webServer></configuration>`)
	g.write("C/inetpub/wwwroot/kept.config", "<rules>\r\n  <rule name=\"old page\"><match url=\"^old$\" /><action type=\"Redirect\" url=\"/owa/\" /></rule>\r\n</rules>\r\n")
	before, main := g.snapshot(), g.read(wwwroot)
	g.publish("M1", "M2")
	g.pass()
	g.expect("M1", applied, "applied")
	g.expect("M2", applied, "applied")
	kept := g.read("C/inetpub/wwwroot/kept.config")
	if g.read(wwwroot) != main || strings.Index(kept, "Stopgap M1.1") > strings.Index(kept, "old page") || !strings.Contains(kept, "Stopgap M1.1") {
		t.Errorf("web.config must stay, the rule must come first in the other file:\n%s\n%s", g.read(wwwroot), kept)
	}
	g.edit("C/inetpub/wwwroot/kept.config", "<rules>", `<rules><rule name="stop" stopProcessing="true"><match url=".*" /></rule>`)
	g.pass()
	g.expect("M1", applied, "drift-repaired")
	g.edit("C/inetpub/wwwroot/kept.config", `<rule name="stop" stopProcessing="true"><match url=".*" /></rule>`, "")
	g.withdraw(before)
}

func TestAnotherTeamsApplicationDecidesNothing(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"malformed":     "<configuration><appSettings></configuration>",
		"UTF-16":        "\xff\xfe<\x00",
		"clears":        "<configuration><system.webServer><rewrite><rules><clear /></rules></rewrite></system.webServer></configuration>",
		"has our name":  `<configuration><system.webServer><rewrite><rules><rule name="Stopgap M1.1 PowerShell - inbound"><match url="x" /></rule></rules></rewrite></system.webServer></configuration>`,
		"of 2 MB":       "<configuration>" + strings.Repeat(" ", 2<<20) + "</configuration>",
		"of 5 MB":       "<configuration>" + strings.Repeat(" ", 5<<20) + "</configuration>",
		"rule twice":    `<configuration><system.webServer><rewrite><rules><rule name="a"><match url="x" /></rule><rule name="a"><match url="x" /></rule></rules></rewrite></system.webServer></configuration>`,
		"pattern is *":  `<configuration><system.webServer><rewrite><rules><rule name="a"><match url="*" /></rule></rules></rewrite></system.webServer></configuration>`,
		"newer element": `<configuration><system.webServer><rewrite><rules><rule name="a"><match url="x" /><newer /></rule></rules></rewrite></system.webServer></configuration>`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
			g.edit(appHost, `<application path="/mapi" `, `<application path="/helpdesk" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="C:\inetpub\helpdesk" /></application><application path="/mapi" `)
			g.write("C/inetpub/helpdesk/web.config", file)
			before := g.snapshot()
			g.publish("M1")
			g.pass()
			g.expect("M1", applied, "applied")
			if !strings.Contains(g.read(httpProxy+"Autodiscover/web.config")+g.read(wwwroot), "Stopgap M1.1") {
				t.Error("the rule is nowhere")
			}
			g.pass()
			g.expect("M1", applied, "applied")
			g.withdraw(before)
		})
	}
}

func TestAPoolIsJudgedByThePoolThatServesTheApplication(t *testing.T) {
	t.Parallel()
	const pool = `applicationPool="MSExchangeECPAppPool"`
	move := func(g *rig, all bool) {
		g.edit(appHost, "</applicationPools>", `<add name="Custom" /></applicationPools>`)
		g.edit(appHost, pool, `applicationPool="Custom"`) // the back end's, which stands last
		if all {
			g.edit(appHost, pool, `applicationPool="Custom"`)
		}
	}
	t.Run("one of two moved away", func(t *testing.T) {
		t.Parallel()
		g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
		move(g, false)
		before := g.snapshot()
		g.publish("CVE-2021-27065")
		g.pass()
		g.expect("CVE-2021-27065", partial, "partial")
		if r := g.outcome("CVE-2021-27065").GetReason(); !strings.Contains(r, "Exchange Back End/ecp") || !strings.Contains(r, "Custom") {
			t.Errorf("the reason does not name the application and its pool: %s", r)
		}
		g.withdraw(before)
	})
	t.Run("all moved away", func(t *testing.T) {
		t.Parallel()
		g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
		move(g, true)
		g.publish("CVE-2021-27065")
		g.pass()
		g.expect("CVE-2021-27065", failed, "pool-elsewhere")
	})
	t.Run("the pool is gone and its applications are not", func(t *testing.T) {
		t.Parallel()
		g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
		move(g, true)
		g.edit(appHost, `<add name="MSExchangeECPAppPool"`, `<add name="Renamed"`)
		g.publish("CVE-2021-27065")
		g.pass()
		g.expect("CVE-2021-27065", failed, "pool-elsewhere")
	})
}

// answers is a front end that answers the effect probe, or refuses it, or is not there.
type answers struct{ effect probe.Result }

func (a *answers) Until(_ context.Context, p *stopgapv1.Probe, _ bool) probe.Result {
	r := probe.Result{Name: probe.Name(p), OK: true, Answered: true, Got: "200 OK"}
	if p.GetEffect() != nil {
		r.OK, r.Answered, r.Got = a.effect.OK, a.effect.Answered, a.effect.Got
	}
	return r
}

func TestWhatItsOwnProbeContradictsIsNeverApplied(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	a := &answers{probe.Result{Answered: true, Got: "answered 200 OK"}}
	g.prober = a
	_ = g.journal.Close()
	g.open(nil, nil)
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	g.expect("M1", failed, "contradicted")
	o := g.outcome("M1")
	if o.GetProof() != stopgapv1.Proof_PROOF_CONTRADICTED || !strings.Contains(o.GetReason(), "answered 200 OK") {
		t.Errorf("got %v", o)
	}
	if !strings.Contains(g.read(wwwroot), "Stopgap M1.1") {
		t.Error("the rule was taken off, though it can do no harm")
	}
	g.pass()
	g.expect("M1", failed, "contradicted")
	a.effect = probe.Result{Got: "no answer in time"}
	g.pass() // silence takes nothing back
	g.expect("M1", failed, "contradicted")
	if codes := g.r.Health(); len(codes) != 1 || codes[0].GetCode() != "contradicted" {
		t.Errorf("health %v", codes)
	}
	a.effect = probe.Result{OK: true, Got: "the connection was closed without an answer"}
	g.pass()
	g.expect("M1", applied, "")
	if o := g.outcome("M1"); o.GetProof() != stopgapv1.Proof_PROOF_EFFECT_PROVEN {
		t.Errorf("got %v", o)
	}
	if codes := g.r.Health(); len(codes) != 0 {
		t.Errorf("health %v", codes)
	}
	g.withdraw(before)
}

func TestALockThatComesLaterDoesNotLeaveTheSiteDownBecauseOfUs(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	lock := `<location path="Default Web Site" overrideMode="Deny"><system.webServer><rewrite><rules /></rewrite></system.webServer></location></configuration>`
	g.edit(appHost, "</configuration>", lock)
	g.pass()
	g.expect("M1", failed, "config-locked")
	if strings.Contains(g.read(wwwroot), "Stopgap") {
		t.Error("the section that IIS refuses is still there")
	}
	if r := g.outcome("M1").GetReason(); !strings.Contains(r, "removed") || !strings.Contains(r, "overrideMode") {
		t.Errorf("the reason does not say what happened: %s", r)
	}
	g.pass()
	g.expect("M1", failed, "config-locked")
	g.edit(appHost, lock, "</configuration>")
	g.pass()
	g.expect("M1", applied, "applied")
}
