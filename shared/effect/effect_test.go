package effect_test

import (
	"io/fs"
	"strings"
	"testing"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

// disk is the files of a server, by directory and name in lower case.
type disk map[string]string

func (d disk) ConfigFile(dir, file string) ([]byte, string, error) {
	name := d.Canonical(dir) + `\` + strings.ToLower(file)
	if text, ok := d[name]; ok {
		return []byte(text), name, nil
	}
	return nil, name, fs.ErrNotExist
}
func (disk) Canonical(dir string) string { return strings.ToLower(strings.TrimRight(dir, `\`)) }
func (disk) MaxConfigBytes() int         { return iisconfig.DefaultMaxBytes }

const (
	root = `c:\inetpub\wwwroot\web.config`
	ad   = `c:\ex\frontend\httpproxy\autodiscover\web.config`
	owa  = `c:\ex\frontend\httpproxy\owa\web.config`
	auth = `c:\ex\frontend\httpproxy\owa\auth\web.config`
)

// host makes an applicationHost.config: extra goes to its end.
func host(extra string) string {
	return `<configuration><configSections><sectionGroup name="system.webServer"><section name="globalModules" allowDefinition="AppHostOnly" />` +
		`<section name="modules" allowDefinition="MachineToApplication" /><sectionGroup name="rewrite"><section name="globalRules" allowDefinition="AppHostOnly" />` +
		`<section name="rules" /><section name="outboundRules" /><section name="providers" /><section name="rewriteMaps" />` +
		`<section name="allowedServerVariables" overrideModeDefault="Deny" /></sectionGroup></sectionGroup></configSections>` +
		`<system.applicationHost><applicationPools><add name="P" /><add name="Q" enableConfigurationOverride="false" /></applicationPools><sites><site name="Default Web Site" id="1">` +
		`<application path="/" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\inetpub\wwwroot" /></application>` +
		`<application path="/owa" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\Ex\FrontEnd\HttpProxy\owa" /></application>` +
		`<application path="/Autodiscover" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\Ex\FrontEnd\HttpProxy\Autodiscover" /></application>` +
		`</site></sites></system.applicationHost><system.webServer><globalModules><add name="RewriteModule" image="x" /></globalModules>` +
		`<modules><add name="RewriteModule" /></modules></system.webServer>` + extra + `</configuration>`
}

func rules(inside string) string {
	return "<configuration><system.webServer><rewrite><rules>" + inside + "</rules></rewrite></system.webServer></configuration>"
}

func document(t *testing.T, id string) *stopgapv1.Mitigation {
	t.Helper()
	files, err := mitigation.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name == id+".yaml" {
			d, err := mitigation.Parse(f.Name, f.Content)
			if err != nil {
				t.Fatal(err)
			}
			return d.Mitigation
		}
	}
	t.Fatalf("no %s in the catalogue", id)
	return nil
}

// TestAnAttackIsRefusedOnlyIfEveryReadingSaysSo has what a person would say of each situation, written by hand.
func TestAnAttackIsRefusedOnlyIfEveryReadingSaysSo(t *testing.T) {
	t.Parallel()
	m1 := document(t, "M1")
	ours := m1.GetActions()[0].GetUrlRewrite().GetInbound()
	stop := `<rule name="stop" stopProcessing="true"><match url=".*" /><action type="None" /></rule>`
	for name, c := range map[string]struct {
		host  string
		files disk
		cause effect.Cause
		in    string // what the reason names
	}{
		"the rule is there":                    {"", disk{root: rules(ours)}, effect.CauseNone, ""},
		"nothing is there":                     {"", disk{}, effect.CauseAbsent, "is not there"},
		"cleared by the application":           {"", disk{root: rules(ours), ad: rules("<clear />")}, effect.CauseRemoved, ad + ":1"},
		"removed by applicationHost.config":    {`<location path="Default Web Site/Autodiscover"><system.webServer><rewrite><rules><remove name="Stopgap M1.1 PowerShell - inbound" /></rules></rewrite></system.webServer></location>`, disk{root: rules(ours)}, effect.CauseRemoved, "applicationHost.config"},
		"cleared elsewhere":                    {"", disk{root: rules(ours), owa: rules("<clear />")}, effect.CauseNone, ""},
		"not inherited":                        {"", disk{root: strings.NewReplacer("<configuration>", `<configuration><location inheritInChildApplications="false">`, "</configuration>", "</location></configuration>").Replace(rules(ours))}, effect.CauseNotInherited, root},
		"behind one that stops":                {"", disk{root: rules(stop + ours)}, effect.CauseShadowed, `rule "stop"`},
		"in front of one that stops":           {"", disk{root: rules(ours + stop)}, effect.CauseNone, ""},
		"disabled":                             {"", disk{root: rules(strings.Replace(ours, "<rule ", `<rule enabled="false" `, 1))}, effect.CauseDisabled, "disabled"},
		"the module is taken out":              {"", disk{root: rules(ours), ad: `<configuration><system.webServer><modules><remove name="RewriteModule" /></modules></system.webServer></configuration>`}, effect.CauseModule, ad},
		"the pool ignores web.config":          {"", disk{root: rules(ours)}, effect.CauseModule, "enableConfigurationOverride"},
		"the application's file is broken":     {"", disk{root: rules(ours), ad: "<configuration>"}, effect.CauseInvalid, "500.19"},
		"a file that only IIS may read":        {"", disk{root: rules(ours), ad: "\xff\xfe<\x00"}, effect.CauseInvalid, "can't be judged"},
		"a provider decides before ours":       {"", disk{root: strings.Replace(rules(`<rule name="v" stopProcessing="true"><match url=".*" /><conditions><add input="{V:{R:0}}" pattern=".+" /></conditions></rule>`+ours), "<rules>", `<providers><provider name="V" type="T" /></providers><rules>`, 1)}, effect.CauseShadowed, `rule "v"`},
		"a provider decides after ours":        {"", disk{root: strings.Replace(rules(ours+`<rule name="v" stopProcessing="true"><match url=".*" /><conditions><add input="{V:{R:0}}" pattern=".+" /></conditions></rule>`), "<rules>", `<providers><provider name="V" type="T" /></providers><rules>`, 1)}, effect.CauseNone, ""},
		"a pattern for the path from the root": {"", disk{root: rules(strings.Replace(ours, `url=".*"`, `url="^autodiscover/"`, 1))}, effect.CauseNoMatch, "no rule refuses"},
		"a stop that a header asks for":        {"", disk{root: rules(`<rule name="probe" stopProcessing="true"><match url=".*" /><conditions><add input="{HTTP_USER_AGENT}" pattern="Monitor" /></conditions></rule>` + ours)}, effect.CauseShadowed, `rule "probe"`},
		"a stop for another host":              {"", disk{root: rules(`<rule name="partner" stopProcessing="true"><match url=".*" /><conditions><add input="{HTTP_HOST}" pattern="^partner\." /></conditions></rule>` + ours)}, effect.CauseShadowed, `rule "partner"`},
		"a stop for some networks":             {"", disk{root: rules(`<rule name="inside" stopProcessing="true"><match url=".*" /><conditions><add input="{REMOTE_ADDR}" pattern="^10\." /></conditions></rule>` + ours)}, effect.CauseNone, ""},
		"a stop for another path":              {"", disk{root: rules(`<rule name="img" stopProcessing="true"><match url="^img/" /></rule>` + ours)}, effect.CauseNone, ""},
		"a redirect to the right name":         {"", disk{root: rules(`<rule name="name" stopProcessing="true"><match url=".*" /><conditions><add input="{HTTP_HOST}" pattern="^mail\.contoso\.com$" negate="true" /></conditions><action type="Redirect" url="https://mail.contoso.com/{R:0}" /></rule>` + ours)}, effect.CauseNone, ""},
		"a global rule stops everything":       {`<system.webServer><rewrite><globalRules>` + stop + `</globalRules></rewrite></system.webServer>`, disk{root: rules(ours)}, effect.CauseShadowed, `rule "stop"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := host(c.host)
			if strings.Contains(name, "pool ignores") {
				text = strings.Replace(text, `path="/Autodiscover" applicationPool="P"`, `path="/Autodiscover" applicationPool="Q"`, 1)
			}
			srv, err := iisconfig.Parse([]byte(text), "applicationHost.config")
			if err != nil {
				t.Fatal(err)
			}
			r, err := effect.ParseRules(ours, "")
			if err != nil {
				t.Fatal(err)
			}
			m := iisconfig.NewModel(srv, c.files)
			for _, a := range effect.Attacks(m1)[:1] {
				got := effect.Judge(m, srv.Sites[0], a, r)
				if got.OK != (c.cause == effect.CauseNone) || got.Cause != c.cause || !strings.Contains(got.Why, c.in) {
					t.Errorf("%s: OK %t, cause %d, why %q; want cause %d naming %q", a.Name, got.OK, got.Cause, got.Why, c.cause, c.in)
				}
			}
		})
	}
}

func TestADirectoryOnTheWayOfAnAttackCounts(t *testing.T) {
	t.Parallel()
	d := document(t, "CVE-2021-26855")
	inbound := d.GetActions()[0].GetUrlRewrite().GetInbound()
	srv, err := iisconfig.Parse([]byte(host("")), "applicationHost.config")
	if err != nil {
		t.Fatal(err)
	}
	r, err := effect.ParseRules(inbound, "")
	if err != nil {
		t.Fatal(err)
	}
	m := iisconfig.NewModel(srv, disk{root: rules(inbound), auth: rules("<clear />")})
	for _, a := range effect.Attacks(d) {
		got, want := effect.Judge(m, srv.Sites[0], a, r), !strings.HasPrefix(a.Path, "/owa/auth/")
		if got.OK != want {
			t.Errorf("%s: OK %t (%s), want %t", a.Name, got.OK, got.Why, want)
		}
	}
}

func TestEveryDocumentOfTheCatalogueStopsItsOwnAttacks(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"M1", "M2", "CVE-2021-26855"} {
		d := document(t, id)
		rw := d.GetActions()[0].GetUrlRewrite()
		r, err := effect.ParseRules(rw.GetInbound(), rw.GetOutbound())
		if err != nil {
			t.Fatal(err)
		}
		attacks := effect.Attacks(d)
		if len(attacks) == 0 {
			t.Errorf("%s has no attack requests", id)
		}
		for _, a := range attacks {
			if !r.Stops(a, rw.GetLocation().GetPath()) {
				t.Errorf("%s: %s gets through", id, a.Name)
			}
		}
	}
}

func TestSomebodyElsesRuleCountsByWhatItDoes(t *testing.T) {
	t.Parallel()
	d := document(t, "M2")
	outbound := d.GetActions()[0].GetUrlRewrite().GetOutbound()
	r, err := effect.ParseRules("", outbound)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := iisconfig.Parse([]byte(host("")), "applicationHost.config")
	if err != nil {
		t.Fatal(err)
	}
	eems := strings.NewReplacer("Stopgap M2.1", "EEMS M2.1", "<rule name", `<rule enabled="true" stopProcessing="false" name`).Replace(outbound)
	for name, c := range map[string]struct {
		xml string
		ok  bool
	}{
		"under other names":       {eems, true},
		"other value":             {strings.Replace(eems, "script-src-attr 'none'", "script-src-attr 'self'", 1), false},
		"other precondition":      {strings.Replace(eems, "^text/html", "^text/plain", 1), false},
		"precondition is missing": {eems[strings.Index(eems, "</preConditions>")+len("</preConditions>"):], false},
		"disabled":                {strings.Replace(eems, `enabled="true"`, `enabled="false"`, 1), false},
	} {
		m := iisconfig.NewModel(srv, disk{owa: "<configuration><system.webServer><rewrite><outboundRules>" + c.xml + "</outboundRules></rewrite></system.webServer></configuration>"})
		got := effect.Reach(m, srv.Sites[0].App("/owa"), r, effect.Foreign)
		if got.OK != c.ok {
			t.Errorf("%s: OK %t (%s), want %t", name, got.OK, got.Why, c.ok)
		}
	}
}
