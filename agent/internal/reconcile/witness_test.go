package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// iis is a lab server with an IIS that answers what a test says. The answers are written by hand in the form of
// iis-composition.md, section 11.
type iis struct {
	host.Driver
	// rules and outbound are what IIS lists, by application; "" is every other one.
	rules, outbound map[string]string
	err             error
	mute            string // this application gets an answer that can't be read
	asked           []string
}

// Effective implements host.Driver.
func (f *iis) Effective(_ context.Context, app, section string) ([]byte, error) {
	f.asked = append(f.asked, app+" "+section)
	if f.err != nil {
		return nil, f.err
	}
	if app == f.mute {
		return []byte("?"), nil
	}
	list := map[string]map[string]string{"rules": f.rules, "outboundRules": f.outbound}[section]
	inner, ok := list[app]
	if !ok {
		inner = list[""]
	}
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>`+"\r\n"+`<appcmd><CONFIG CONFIG.SECTION="system.webServer/rewrite/%[1]s" path="MACHINE/WEBROOT/APPHOST/%[2]s" overrideMode="Inherit" `+
		`locked="false"><system.webServer-rewrite-%[1]s>%[3]s</system.webServer-rewrite-%[1]s></CONFIG></appcmd>`+"\r\n", section, app, inner), nil
}

// What IIS lists for M1 and M2, and for two rules of somebody else.
const (
	iisM1 = `<rule name="Stopgap M1.1 PowerShell - inbound" enabled="true" patternSyntax="ECMAScript" stopProcessing="true"><match url=".*" ignoreCase="true" negate="false" />` +
		`<conditions logicalGrouping="MatchAll" trackAllCaptures="false"><add input="{UrlDecode:{REQUEST_URI}}" matchType="Pattern" pattern="(?=.*autodiscover)(?=.*powershell)" ` +
		`ignoreCase="true" negate="false" /></conditions><serverVariables /><action type="AbortRequest" appendQueryString="true" logRewrittenUrl="false" redirectType="Permanent" subStatusCode="0" /></rule>`
	iisM2 = `<preConditions><preCondition name="Stopgap M2.1 OWA SPA HTML shell - precondition" logicalGrouping="MatchAll" patternSyntax="ECMAScript">` +
		`<add input="{RESPONSE_CONTENT_TYPE}" matchType="Pattern" pattern="^text/html" ignoreCase="true" negate="false" />` +
		`<add input="{REQUEST_URI}" matchType="Pattern" pattern="^/owa/?($|\?|default\.aspx|projection\.aspx|readingPane\.aspx|popout\.aspx)" ignoreCase="true" negate="false" />` +
		`</preCondition></preConditions><rule name="Stopgap M2.1 OWA CSP - outbound" preCondition="Stopgap M2.1 OWA SPA HTML shell - precondition" enabled="true" ` +
		`patternSyntax="ECMAScript" stopProcessing="false"><match filterByTags="None" serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" occurrences="0" ignoreCase="true" ` +
		`negate="false" /><conditions logicalGrouping="MatchAll" trackAllCaptures="true" /><action type="Rewrite" value="{R:1}; script-src-attr 'none'" replace="true" /></rule>`
	iisPage = `<rule name="old page" enabled="true" patternSyntax="ECMAScript" stopProcessing="false"><match url="^old$" ignoreCase="true" negate="false" /><conditions ` +
		`logicalGrouping="MatchAll" trackAllCaptures="false" /><serverVariables /><action type="Redirect" url="/owa/" appendQueryString="true" redirectType="Permanent" /></rule>`
	iisStop = `<rule name="leave alone" enabled="true" patternSyntax="ECMAScript" stopProcessing="true"><match url=".*" ignoreCase="true" negate="false" /><conditions ` +
		`logicalGrouping="MatchAll" trackAllCaptures="false" /><serverVariables /><action type="None" appendQueryString="true" redirectType="Permanent" /></rule>`

	page         = `<rule name="old page"><match url="^old$" /><action type="Redirect" url="/owa/" /></rule>`
	leaveAlone   = `<rule name="leave alone" stopProcessing="true"><match url=".*" /><action type="None" /></rule>`
	autodiscover = "Default Web Site/Autodiscover"
	powershell   = "Default Web Site/PowerShell"
	owa          = "Default Web Site/owa"
)

// witnessRig is a server with M1 and M2, and an IIS that agrees with the model. more are rules of somebody else behind M1.
func witnessRig(t *testing.T, more string) (*rig, *iis) {
	t.Helper()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	f := &iis{Driver: g.driver, rules: map[string]string{"": iisM1}, outbound: map[string]string{owa: iisM2}}
	g.again(f)
	if more != "" {
		g.write(wwwroot, "<configuration><system.webServer><rewrite><rules>"+more+"</rules></rewrite></system.webServer></configuration>")
	}
	g.publish("M1", "M2")
	return g, f
}

// again is a start of the agent.
func (g *rig) again(d host.Driver) {
	g.t.Helper()
	_ = g.journal.Close()
	g.open(nil, func(host.Driver) host.Driver { return d })
}

// look makes a pass in which IIS is asked.
func (g *rig) look() {
	g.t.Helper()
	g.r.witness.due = time.Time{}
	g.pass()
}

func (g *rig) warned(code string) string {
	g.t.Helper()
	for _, h := range g.r.Health() {
		if h.GetCode() == code {
			return h.GetText()
		}
	}
	return ""
}

func TestWhatIISSeesIsComparedWithTheModel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		more            string // of somebody else, in the site's file
		rules, outbound map[string]string
		m1, m2          stopgapv1.OutcomeState
		// reason is in M1's; warning in that of the health code, "" for none.
		reason, warning string
	}{
		"it agrees":                              {m1: applied, m2: applied},
		"it agrees, with rules of somebody else": {more: page, rules: map[string]string{"": iisM1 + iisPage}, m1: applied, m2: applied},
		"it does not list our rule": {rules: map[string]string{"": ""}, m1: failed, m2: applied,
			reason: `it does not list rule "Stopgap M1.1 PowerShell - inbound"`, warning: `Default Web Site/Autodiscover, rules: IIS does not list rule`},
		"it does not list our rule at one application": {rules: map[string]string{"": iisM1, powershell: ""}, m1: partial, m2: applied,
			reason: "IIS sees something else at Default Web Site/PowerShell", warning: "Default Web Site/PowerShell, rules: "},
		"it has our rule disabled": {rules: map[string]string{"": strings.Replace(iisM1, `enabled="true"`, `enabled="false"`, 1)}, m1: failed, m2: applied,
			reason: `enabled is "true" in the model and "false" for IIS`, warning: "enabled"},
		"it has our rule with another pattern": {rules: map[string]string{"": strings.Replace(iisM1, "powershell", "power", 1)}, m1: failed, m2: applied,
			reason: "pattern is", warning: "pattern"},
		"another order without consequences": {more: page, rules: map[string]string{"": iisPage + iisM1}, m1: applied, m2: applied,
			reason: "IIS sees something else than Stopgap computes", warning: "another order"},
		"another order in which ours is not reached": {more: leaveAlone, rules: map[string]string{"": iisStop + iisM1}, m1: failed, m2: applied,
			reason: `it lists rule "leave alone" first`, warning: "another order"},
		"a rule that the model lacks": {rules: map[string]string{"": iisPage + iisM1}, m1: applied, m2: applied,
			reason: "IIS sees something else than Stopgap computes", warning: `IIS lists rule "old page", which the model does not have`},
		"a rule that the model lacks and that takes over": {rules: map[string]string{"": strings.Replace(iisStop, `url=".*"`, `url="json$"`, 1) + iisM1}, m1: partial, m2: applied,
			reason: "the request is answered in another way", warning: `"leave alone"`},
		"it lacks the precondition": {outbound: map[string]string{owa: "<preConditions />" + iisM2[strings.Index(iisM2, "<rule"):]}, m1: applied, m2: failed,
			warning: "does not list precondition"},
		"a difference that concerns M2 only": {outbound: map[string]string{owa: ""}, m1: applied, m2: failed, warning: "Default Web Site/owa, outboundRules"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, f := witnessRig(t, c.more)
			agrees := iis{rules: f.rules, outbound: f.outbound}
			if c.more != "" {
				agrees.rules = map[string]string{"": iisM1 + map[string]string{page: iisPage, leaveAlone: iisStop}[c.more]}
			}
			if c.rules != nil {
				f.rules = c.rules
			}
			if c.outbound != nil {
				f.outbound = c.outbound
			}
			for range 2 { // the second pass does not ask, and says the same
				g.pass()
				g.expect("M1", c.m1, "")
				g.expect("M2", c.m2, "")
				o := g.outcome("M1")
				if !strings.Contains(o.GetReason(), c.reason) {
					t.Errorf("M1: %s", o.GetReason())
				}
				if w := g.warned("model-differs"); (w == "") != (c.warning == "") || !strings.Contains(w, c.warning) {
					t.Errorf("health: %q, want %q", w, c.warning)
				}
				if both := fmt.Sprint(o.GetEvidence()); c.reason != "" && (!strings.Contains(both, "model: rules of Default Web Site/") || !strings.Contains(both, "IIS: rules of Default Web Site/")) {
					t.Errorf("the evidence does not have both sides: %s", both)
				}
			}
			f.rules, f.outbound = agrees.rules, agrees.outbound
			g.look()
			g.expect("M1", applied, "")
			g.expect("M2", applied, "")
			if r := g.outcome("M1").GetReason(); g.warned("model-differs") != "" || strings.Contains(r, "IIS sees") {
				t.Errorf("it agrees again: %q, %s", g.warned("model-differs"), r)
			}
		})
	}
}

func TestIISIsAskedInTheFirstPassAfterWritesAndHourly(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	g.pass()
	asked := strings.Join(f.asked, ", ")
	for _, want := range []string{autodiscover, powershell, owa} {
		for _, section := range []string{"rules", "outboundRules"} {
			if strings.Count(asked, want+" "+section) != 1 {
				t.Errorf("%s: %s is to be asked for once: %s", want, section, asked)
			}
		}
	}
	f.asked = nil
	g.pass()
	if len(f.asked) > 0 {
		t.Errorf("nothing was written, and IIS was asked: %v", f.asked)
	}
	if d := time.Until(g.r.witness.due); d < 55*time.Minute || d > time.Hour {
		t.Errorf("asked again in %s", d)
	}
	g.look()
	if len(f.asked) == 0 {
		t.Error("not asked though it was due")
	}
	f.asked = nil
	g.again(f)
	g.pass()
	if len(f.asked) == 0 {
		t.Error("not asked after a start")
	}
	f.asked = nil
	clear(g.targets)
	g.release(false)
	g.pass()
	g.look()
	if len(f.asked) > 0 || g.r.witness.look != nil {
		t.Errorf("nothing is in force, and IIS was asked: %v", f.asked)
	}
}

func TestAnIISThatGivesNoAnswerChangesNoState(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"no appcmd": errors.New("appcmd: file does not exist"), "too slow": context.DeadlineExceeded} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, f := witnessRig(t, "")
			f.err = err
			g.pass()
			g.expect("M1", applied, "applied")
			g.expect("M2", applied, "applied")
			if w := g.warned("iis-not-asked"); !strings.Contains(w, err.Error()) || g.warned("model-differs") != "" {
				t.Errorf("health: %q, %q", w, g.warned("model-differs"))
			}
			if len(f.asked) != 1 {
				t.Errorf("what does not answer once is asked once in a pass: %v", f.asked)
			}
			f.err, f.rules = nil, map[string]string{"": ""}
			g.look()
			g.expect("M1", failed, "model-differs")
			if w := g.warned("iis-not-asked"); w != "" {
				t.Errorf("it answers again: %q", w)
			}
			f.err = err
			g.look()
			g.expect("M1", failed, "model-differs")
			g.again(f)
			g.pass()
			g.expect("M1", failed, "model-differs")
			g.expect("M2", applied, "applied")
			f.err, f.rules = nil, map[string]string{"": iisM1}
			g.look()
			g.expect("M1", applied, "")
			if g.warned("iis-not-asked")+g.warned("model-differs") != "" {
				t.Errorf("health: %v", g.r.Health())
			}
		})
	}
}

func TestWhatWasSeenBeforeCountsWhileOneApplicationGivesNoAnswer(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	f.rules = map[string]string{"": iisM1, autodiscover: ""}
	g.pass()
	g.expect("M1", partial, "partial")
	f.mute = autodiscover
	g.look()
	g.expect("M1", partial, "partial")
	f.rules = map[string]string{"": ""}
	g.look()
	g.expect("M1", failed, "model-differs")
	f.rules = map[string]string{"": iisM1}
	g.look()
	g.expect("M1", partial, "partial")
	if g.warned("iis-not-asked") == "" || !strings.Contains(g.warned("model-differs"), autodiscover) {
		t.Errorf("health: %v", g.r.Health())
	}
	f.mute = ""
	g.look()
	g.expect("M1", applied, "")
}

func TestAnAnswerThatCantBeReadChangesNoState(t *testing.T) {
	t.Parallel()
	for name, inner := range map[string]string{"cut off": "<rule", "console text": "\x00\xff", "another document": "</system.webServer-rewrite-rules></CONFIG></appcmd><a>"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, f := witnessRig(t, "")
			f.rules = map[string]string{"": inner}
			g.pass()
			g.expect("M1", applied, "applied")
			if w := g.warned("iis-not-asked"); !strings.Contains(w, "rules of Default Web Site/") {
				t.Errorf("health: %q", w)
			}
		})
	}
}

func TestAConfigurationThatIISRefusesIsPutBackAfterAWriteAndADifferenceLater(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	before := g.snapshot()
	f.err = &host.IISError{Text: "IIS can't read rules: exit code 183, \"ERROR ( message:Configuration error )\""}
	g.pass()
	g.expect("M1", failed, "config-refused")
	g.same(before)
	f.err = nil
	g.r.retry = map[string]backoffState{}
	g.pass()
	g.expect("M1", applied, "")
	there := g.read(wwwroot)
	f.err = &host.IISError{Text: "IIS can't read rules: exit code 13"}
	g.look()
	g.expect("M1", failed, "model-differs")
	if w := g.warned("model-differs"); !strings.Contains(w, "IIS can't read it, and the model can") || g.read(wwwroot) != there {
		t.Errorf("health: %q", w)
	}
}

func TestAPoolThatIgnoresWebConfigIsNotAskedAbout(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	g.edit(appHost, `<add name="MSExchangeOWAAppPool"`, `<add name="MSExchangeOWAAppPool" enableConfigurationOverride="false"`)
	g.pass()
	for _, a := range f.asked {
		if strings.HasPrefix(a, owa+" ") {
			t.Errorf("appcmd shows web.config files that the pool ignores; asked %v", f.asked)
		}
	}
}

func TestAServerWithoutIISHasNoWitness(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	f.err = host.ErrNoWitness
	g.pass()
	g.expect("M1", applied, "applied")
	if len(g.r.Health()) > 0 {
		t.Errorf("health: %v", g.r.Health())
	}
}

func TestARuleOfSomebodyElseThatIISDoesNotListIsNotCalledApplied(t *testing.T) {
	t.Parallel()
	theirs := `<rule name="EEMS M1.1 PowerShell - inbound" stopProcessing="true"><match url=".*" /><conditions><add input="{UrlDecode:{REQUEST_URI}}" ` +
		`pattern="(?=.*autodiscover)(?=.*powershell)" /></conditions><action type="AbortRequest" /></rule>`
	g, f := witnessRig(t, theirs)
	f.rules = map[string]string{"": strings.Replace(iisM1, "Stopgap", "EEMS", 1)}
	g.pass()
	g.expect("M1", applied, "found")
	f.rules = map[string]string{"": ""}
	g.look()
	g.expect("M1", failed, "model-differs")
	if r := g.outcome("M1").GetReason(); !strings.Contains(r, `it does not list rule "EEMS M1.1 PowerShell - inbound"`) {
		t.Errorf("reason: %s", r)
	}
}

func TestOnlySoManyApplicationsAreAskedAbout(t *testing.T) {
	t.Parallel()
	g, f := witnessRig(t, "")
	var sites strings.Builder
	for i := range 42 {
		fmt.Fprintf(&sites, `<site name="S%02d" id="%d"><application path="/" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="C:\inetpub\s%[1]d" /></application>`+
			`<application path="/owa" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="C:\sites\%[1]d\FrontEnd\HttpProxy\owa" /></application>`+
			`<bindings><binding protocol="https" bindingInformation="*:%[3]d:" /></bindings></site>`, i, 100+i, 5000+i)
		g.write(fmt.Sprintf("C/inetpub/s%d/web.config", i), "<configuration />")
		g.write(fmt.Sprintf("C/sites/%d/FrontEnd/HttpProxy/owa/web.config", i), "<configuration />")
	}
	g.edit(appHost, "</sites>", sites.String()+"</sites>")
	delete(g.targets, "mitigations/M1/1.yaml")
	g.release(false)
	f.outbound = map[string]string{"": iisM2}
	g.pass()
	g.expect("M2", applied, "applied")
	if w := g.warned("iis-not-asked"); w != "43 applications decide about what is in force; IIS was asked about 40 of them" {
		t.Errorf("health: %q", w)
	}
	f.asked = nil
	g.look()
	if n := len(f.asked); n != 80 {
		t.Errorf("asked %d times, want for two sections of 40 applications", n)
	}
}
