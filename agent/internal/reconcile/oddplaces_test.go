package reconcile

import (
	"strings"
	"testing"

	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

const frontEndDir = `C:\Program Files\Microsoft\Exchange Server\V15\FrontEnd\HttpProxy\`

func rulesXML(x string) string {
	return "<system.webServer><rewrite><rules>" + x + "</rules></rewrite></system.webServer>"
}

func outboundXML(x string) string {
	return "<system.webServer><rewrite><outboundRules>" + x + "</outboundRules></rewrite></system.webServer>"
}

func appXML(path, dir string) string {
	return `<application path="` + path + `" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="` + dir + `" /></application>`
}

// location puts a <location> at the end of applicationHost.config.
func (g *rig) location(path, x string) {
	g.t.Helper()
	g.edit(appHost, "</configuration>", `<location path="`+path+`">`+x+"</location></configuration>")
}

// fresh publishes a document without CVE and probes: a location, and an inbound rule in it.
func (g *rig) fresh(path, rule string) {
	g.t.Helper()
	g.targets["mitigations/FX/1.yaml"] = []byte(`id: FX
revision: 1
title: "a fresh exploit"
severity: SEVERITY_CRITICAL
appliesTo:
  roles: [ROLE_MAILBOX]
  exchange:
    - {product: "15.2", from: "15.2.196.0"}
actions:
  - id: one
    urlRewrite:
      location: {site: EXCHANGE_FRONT_END, path: "` + path + `"}
      inbound: |
        ` + rule + "\n")
	g.publish()
}

// TestOddPlaces are servers on which the verdict was once wrong.
func TestOddPlaces(t *testing.T) {
	t.Parallel()
	const (
		stop   = `<rule name="stop" stopProcessing="true"><match url=".*" /></rule>`
		header = `<rule name="Stopgap FX.1"><match url=".*" /><conditions><add input="{HTTP_X}" pattern="evil" /></conditions><action type="AbortRequest" /></rule>`
		theirs = `<rule name="EEMS M1.1" stopProcessing="true"><match url=".*" /><conditions><add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)" /></conditions><action type="AbortRequest" /></rule>`
		pre    = `<preConditions><preCondition name="EEMS P"><add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/html" /><add input="{REQUEST_URI}" pattern="^/owa/?($|\?|default\.aspx|projection\.aspx|readingPane\.aspx|popout\.aspx)" /></preCondition></preConditions>`
		csp    = `<rule name="EEMS M2" preCondition="EEMS P"><match serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" /><action type="Rewrite" value="{R:1}; script-src-attr 'none'" /></rule>`
		inside = `<location path="." inheritInChildApplications="false">`
	)
	filter := func(condition string) string {
		return `<rule name="filter" stopProcessing="true"><match url=".*" /><conditions>` + condition + `</conditions><action type="AbortRequest" /></rule>`
	}
	stopIf := func(condition string) string {
		return `<rule name="stop" stopProcessing="true"><match url=".*" /><conditions>` + condition + `</conditions></rule>`
	}
	site := func(apps, root string) func(*rig) {
		return func(g *rig) {
			g.write("C/inetpub/partner/web.config", root)
			g.edit(appHost, "</sites>", `<site name="Partner" id="77">`+appXML("/", `C:\inetpub\partner`)+apps+`</site></sites>`)
		}
	}
	atSite := func(x string) func(*rig) { return func(g *rig) { g.location("Default Web Site", x) } }
	for _, c := range []struct {
		name string
		make func(*rig)
		id   string
		want stopgapv1.OutcomeState
		code string // "" for any
	}{
		// The client picks its host, its headers: a filter on those is no protection.
		{"a filter by host name in front", atSite(rulesXML(filter(`<add input="{HTTP_HOST}" pattern="^mail\.contoso\.com$" negate="true" />`) + stop)), "M1", failed, "no-effect"},
		{"a filter of empty agents in front", atSite(rulesXML(filter(`<add input="{HTTP_USER_AGENT}" pattern="^$" />`) + stop)), "CVE-2021-26855", failed, "no-effect"},
		{"a filter, and an outbound rule that stops", func(g *rig) {
			g.location("Default Web Site/owa", `<system.webServer><rewrite><rules>`+filter(`<add input="{HTTP_HOST}" pattern="x" negate="true" />`)+
				`</rules><outboundRules><rule name="stop" stopProcessing="true"><match serverVariable="RESPONSE_Content_Type" pattern=".*" /><action type="None" /></rule></outboundRules></rewrite></system.webServer>`)
		}, "M2", failed, "no-effect"},
		{"an outbound rule that stops for some clients", func(g *rig) {
			g.location("Default Web Site/owa", outboundXML(`<rule name="stop" stopProcessing="true"><match serverVariable="RESPONSE_Content_Type" pattern=".*" /><conditions><add input="{HTTP_USER_AGENT}" pattern="Mozilla" /></conditions><action type="None" /></rule>`))
		}, "M2", failed, "no-effect"},
		{"500.50 for some clients only", atSite(rulesXML(`<rule name="set"><match url=".*" /><conditions><add input="{HTTP_USER_AGENT}" pattern="^$" /></conditions><serverVariables><set name="HTTP_X" value="1" /></serverVariables></rule>` + stop)), "M1", failed, "no-effect"},
		{"stops on a variable that is not known here", atSite(rulesXML(stopIf(`<add input="{SERVER_PROTOCOL}" pattern="HTTP" />`))), "M1", failed, "no-effect"},
		// A fresh exploit: rules that stop under conditions that always hold, or that the client picks.
		{"fresh, stops for every URL", func(g *rig) {
			g.location("Default Web Site", rulesXML(stopIf(`<add input="{URL}" pattern=".*" />`)))
			g.fresh("/", header)
		}, "FX", failed, "no-effect"},
		{"fresh, stops for what is no file", func(g *rig) {
			g.location("Default Web Site", rulesXML(stopIf(`<add input="{REQUEST_FILENAME}" matchType="IsFile" negate="true" />`)))
			g.fresh("/", header)
		}, "FX", failed, "no-effect"},
		{"fresh, stops on the query", func(g *rig) {
			g.location("Default Web Site", rulesXML(stopIf(`<add input="{QUERY_STRING}" pattern="skip" />`)))
			g.fresh("/", header)
		}, "FX", failed, "no-effect"},
		{"fresh, stops for what the rule is for", func(g *rig) {
			g.location("Default Web Site/EWS", rulesXML(`<rule name="stop" stopProcessing="true"><match url="^(ews/)?exchange\.asmx" /></rule>`))
			g.fresh("/EWS", `<rule name="Stopgap FX.1"><match url="exchange\.asmx" /><action type="AbortRequest" /></rule>`)
		}, "FX", failed, "no-effect"},
		{"fresh, stops for others", func(g *rig) {
			g.location("Default Web Site", rulesXML(stopIf(`<add input="{REMOTE_ADDR}" pattern="^10\." />`)))
			g.fresh("/", header)
		}, "FX", applied, "applied"},
		// Written otherwise.
		{"directories with the other slash", func(g *rig) {
			g.write(appHost, strings.ReplaceAll(g.read(appHost), `FrontEnd\HttpProxy\`, "FrontEnd/HttpProxy/"))
		}, "M2", applied, "applied"},
		{"another site has the directory, written otherwise", func(g *rig) {
			g.edit(appHost, "<sites>", `<sites><site name="Aaa" id="9">`+appXML("/", `C:\inetpub\.\wwwroot`)+`</site>`)
		}, "M1", applied, "applied"},
		// Several sites.
		{"a site without /owa", site(appXML("/ecp", frontEndDir+"ecp"), "<configuration />"), "M2", applied, "applied"},
		{"a site with a malformed root", site(appXML("/owa", frontEndDir+"owa"), "<configuration"), "M1", applied, "applied"},
		{"a site with a root in UTF-16", site(appXML("/owa", frontEndDir+"owa"), "\xff\xfe<\x00"), "M1", partial, "partial"},
		{"a site with a root that is full", site(appXML("/owa", frontEndDir+"owa"), "<configuration>"+strings.Repeat(" ", 255_900)+"</configuration>"), "M1", partial, "partial"},
		{"a site with an odd location", site(appXML("/owa", frontEndDir+"owa"), `<configuration><location path="/x" /></configuration>`), "M1", partial, "partial"},
		// Microsoft's rules.
		{"their rule in a second location of the path", func(g *rig) {
			g.edit(wwwroot, "</configuration>", outboundXML(pre)+"</configuration>")
			g.edit(httpProxy+"owa/web.config", "</configuration>", inside+outboundXML(csp)+"</location></configuration>")
		}, "M2", applied, "found"},
		{"their rule in a file that takes no more", func(g *rig) {
			g.write(wwwroot, "<configuration>"+rulesXML(theirs)+strings.Repeat(" ", 255_500)+"</configuration>")
		}, "M1", applied, "found"},
		{"configSource in a file that configSource names", func(g *rig) {
			g.edit(wwwroot, "</configuration>", `<system.webServer><rewrite><rules configSource="r.config" /></rewrite></system.webServer></configuration>`)
			g.write("C/inetpub/wwwroot/r.config", `<rules configSource="s.config" />`)
		}, "M1", failed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
			c.make(g)
			before, broken := g.snapshot(), invalid(t, g.dir)
			if c.id != "FX" {
				g.publish(c.id)
			}
			for range 2 {
				g.pass()
				if o := g.outcome(c.id); o.GetState() != c.want || c.code != "" && o.GetCode() != c.code {
					t.Fatalf("%s %s: %s", o.GetState(), o.GetCode(), o.GetReason())
				}
			}
			for place := range invalid(t, g.dir) {
				if !broken[place] {
					t.Errorf("%s is invalid now", place)
				}
			}
			g.withdraw(before)
		})
	}
}

func TestAClearThatGoesAwayAgainLeavesNoRuleTwice(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	before := g.snapshot()
	clear := `<location path="Default Web Site/Autodiscover">` + rulesXML("<clear />") + "</location></configuration>"
	g.edit(appHost, "</configuration>", clear)
	g.publish("M1")
	g.pass()
	g.edit(appHost, clear, "</configuration>")
	g.pass()
	g.expect("M1", applied, "drift-repaired")
	if bad := invalid(t, g.dir); len(bad) > 0 {
		t.Errorf("IIS refuses %v", bad)
	}
	g.withdraw(before)
}

func TestRulesInOwnFilesAreNoDrift(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	g.edit(appHost, `<application path="/mapi" `, appXML("/old", `C:\inetpub\wwwroot`)+`<application path="/mapi" `)
	before := g.snapshot()
	g.publish("M1", "CVE-2021-26855")
	for range 3 {
		g.pass()
		g.expect("M1", applied, "applied")
		g.expect("CVE-2021-26855", applied, "applied")
	}
	g.edit(httpProxy+"Autodiscover/web.config", "(?=.*autodiscover)", "(?=.*nothing)")
	for range 2 {
		g.pass()
		g.expect("M1", applied, "drift-repaired")
		if n := g.outcome("M1").GetDriftRepairs(); n != 1 {
			t.Errorf("%d repairs", n)
		}
	}
	g.withdraw(before)
}

// Attack requests go to /autodiscover, the application is /Autodiscover.
func TestWhatAnApplicationClearsForItselfAloneIsSeen(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "EX01"})
	g.edit(httpProxy+"Autodiscover/web.config", "</configuration>", `<location inheritInChildApplications="false">`+rulesXML("<clear />")+"</location></configuration>")
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	if !strings.Contains(g.read(httpProxy+"Autodiscover/web.config"), "Stopgap M1.1") {
		t.Error("Autodiscover clears the rule and does not have it again")
	}
	g.withdraw(before)
}
