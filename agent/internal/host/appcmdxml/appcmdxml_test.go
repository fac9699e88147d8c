package appcmdxml

import (
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// model is the model's side: elements as they are in configuration files.
func model(t testing.TB, xml string) View {
	t.Helper()
	doc, err := xmldoc.ParseFragment([]byte(xml))
	if err != nil {
		t.Fatal(err)
	}
	return View{Rules: doc.Root.All("rule"), PreConditions: doc.Root.All("preCondition")}
}

// full wraps rules as `/config:* /xml` does. The form is that of iis-composition.md, section 11, written by hand.
func full(section, inner string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<appcmd><CONFIG CONFIG.SECTION="system.webServer/rewrite/` + section + `" path="MACHINE/WEBROOT/APPHOST/Default Web Site/owa" overrideMode="Inherit" locked="false">` +
		`<system.webServer-rewrite-` + section + `>` + inner + `</system.webServer-rewrite-` + section + `></CONFIG></appcmd>`
}

const (
	ours = `<rule name="Stopgap M1.1 PowerShell - inbound" stopProcessing="true">
  <!-- why -->
  <match url=".*" />
  <conditions>
    <add pattern="(?=.*autodiscover)(?=.*powershell)" input="{UrlDecode:{REQUEST_URI}}" />
  </conditions>
  <action type="AbortRequest" />
</rule>`
	oursFull = `<rule name="Stopgap M1.1 PowerShell - inbound" enabled="true" patternSyntax="ECMAScript" stopProcessing="true">` +
		`<match url=".*" ignoreCase="true" negate="false" /><conditions logicalGrouping="MatchAll" trackAllCaptures="false">` +
		`<add input="{UrlDecode:{REQUEST_URI}}" matchType="Pattern" pattern="(?=.*autodiscover)(?=.*powershell)" ignoreCase="true" negate="false" /></conditions>` +
		`<serverVariables /><action type="AbortRequest" url="" appendQueryString="true" logRewrittenUrl="false" redirectType="Permanent" subStatusCode="0" /></rule>`
	theirs     = `<rule name="to https"><match url="(.*)" /><action type="Redirect" url="https://{HTTP_HOST}/{R:1}" redirectType="Found" /></rule>`
	theirsFull = `<rule name="to https" enabled="true" patternSyntax="ECMAScript" stopProcessing="false"><match url="(.*)" ignoreCase="true" negate="false" />` +
		`<conditions logicalGrouping="MatchAll" trackAllCaptures="false" /><serverVariables /><action type="Redirect" url="https://{HTTP_HOST}/{R:1}" ` +
		`appendQueryString="true" logRewrittenUrl="false" redirectType="Found" subStatusCode="0" /></rule>`
	outbound = `<rule name="csp" preCondition="html"><match serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" />` +
		`<conditions><add input="{X}" pattern="y" /></conditions><action type="Rewrite" value="{R:1}; x" /></rule>` +
		`<preCondition name="html"><add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/html" /></preCondition>`
	outboundFull = `<preConditions><preCondition name="html" logicalGrouping="MatchAll" patternSyntax="ECMAScript"><add input="{RESPONSE_CONTENT_TYPE}" matchType="Pattern" ` +
		`pattern="^text/html" ignoreCase="true" negate="false" /></preCondition></preConditions><rule name="csp" preCondition="html" enabled="true" patternSyntax="ECMAScript" ` +
		`stopProcessing="false"><match filterByTags="None" customTags="" serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" occurrences="0" ignoreCase="true" ` +
		`negate="false" /><conditions logicalGrouping="MatchAll" trackAllCaptures="true"><add input="{X}" matchType="Pattern" pattern="y" ignoreCase="true" negate="false" />` +
		`</conditions><action type="Rewrite" value="{R:1}; x" replace="true" /></rule>`
)

func TestTheTwoSidesAreComparedByWhatTheyMean(t *testing.T) {
	t.Parallel()
	fragment := func(inner string) string {
		return "<system.webServer><rewrite><rules>" + inner + "</rules></rewrite></system.webServer>\r\n"
	}
	for name, c := range map[string]struct{ section, model, iis, want string }{
		"agrees":               {"rules", ours + theirs, full("rules", oursFull+theirsFull), ""},
		"agrees, default form": {"rules", ours + theirs, fragment(ours + theirs), ""},
		"agrees, clear and remove count for nothing": {"rules", ours, full("rules", `<clear /><remove name="z" />`+oursFull), ""},
		"agrees, nobody sets it":                     {"rules", "", full("rules", ""), ""},
		"agrees, outbound":                           {"outboundRules", outbound, full("outboundRules", outboundFull), ""},
		"IIS misses ours":                            {"rules", ours + theirs, full("rules", theirsFull), `IIS does not list rule "Stopgap M1.1 PowerShell - inbound"`},
		"IIS has nothing":                            {"rules", ours, full("rules", ""), "does not list"},
		"a rule that the model lacks":                {"rules", ours, full("rules", theirsFull+oursFull), `IIS lists rule "to https", which the model does not have`},
		"another order":                              {"rules", ours + theirs, full("rules", theirsFull+oursFull), `place 1 is rule "Stopgap M1.1 PowerShell - inbound" in the model and "to https" for IIS`},
		"disabled":                                   {"rules", ours, full("rules", strings.Replace(oursFull, `enabled="true"`, `enabled="false"`, 1)), `enabled is "true" in the model and "false" for IIS`},
		"another pattern":                            {"rules", ours, full("rules", strings.Replace(oursFull, "powershell", "power", 1)), `<conditions>, entry 1: pattern is`},
		"a condition less":                           {"rules", ours, fragment(`<rule name="Stopgap M1.1 PowerShell - inbound" stopProcessing="true"><match url=".*" /><action type="AbortRequest" /></rule>`), "the model has 1 entries and IIS lists 0"},
		"another action":                             {"rules", ours, full("rules", strings.Replace(oursFull, "AbortRequest", "None", 1)), `<action>: type is "AbortRequest" in the model and "None" for IIS`},
		"a server variable more":                     {"rules", ours, full("rules", strings.Replace(oursFull, "<serverVariables />", `<serverVariables><set name="HTTP_X" value="1" replace="true" /></serverVariables>`, 1)), "<serverVariables>"},
		"a precondition less":                        {"outboundRules", outbound, full("outboundRules", "<preConditions />"+outboundFull[strings.Index(outboundFull, "<rule"):]), `does not list precondition "html"`},
		"another precondition":                       {"outboundRules", outbound, full("outboundRules", strings.Replace(outboundFull, "^text/html", "^text", 1)), `precondition "html", entry 1: pattern`},
		"names in another case":                      {"rules", ours, full("rules", strings.Replace(oursFull, "Stopgap M1.1", "STOPGAP m1.1", 1)), ""},
		"spelling of bools and numbers":              {"rules", `<rule name="a" enabled="True"><match url="x" /><action type="customresponse" statusCode="0403" /></rule>`, fragment(`<rule name="a"><match url="x" /><action type="CustomResponse" statusCode="403" /></rule>`), ""},
		"an attribute that only IIS has":             {"rules", `<rule name="a"><match url="x" /></rule>`, fragment(`<rule name="a" newer="1"><match url="x" /></rule>`), ""},
		"one that the older IIS lacks":               {"rules", `<rule name="a" responseCacheDirective="Auto"><match url="x" /></rule>`, fragment(`<rule name="a"><match url="x" /></rule>`), ""},
		"a code page":                                {"rules", `<rule name="Überprüfung"><match url="é+x" /></rule>`, fragment("<rule name=\"\x9aberpr\x81fung\"><match url=\"?+x\" /></rule>"), ""},
		"a code page, and other text":                {"rules", `<rule name="Ü"><match url="é+x" /></rule>`, fragment("<rule name=\"\x9a\"><match url=\"?+y\" /></rule>"), `url is`},
		"a line break in an attribute":               {"rules", "<rule name=\"a\"><match url=\"x\r\n|y\" /></rule>", fragment(`<rule name="a"><match url="x |y" /></rule>`), ""},
		"the same rule twice":                        {"rules", ours, full("rules", oursFull+oursFull), "IIS lists 2 rules and the model has 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			iis, err := Parse([]byte(c.iis), c.section)
			if err != nil {
				t.Fatal(err)
			}
			m := model(t, c.model)
			d := Compare(m, iis, c.section)
			switch {
			case c.want == "" && d != nil:
				t.Errorf("they agree, and it says %+v", *d)
			case c.want != "" && (d == nil || !strings.Contains(d.Text, c.want) || d.Model == "" || d.IIS == ""):
				t.Errorf("want %q, got %+v", c.want, d)
			}
		})
	}
}

func TestWhatIsNoAnswerIsAnError(t *testing.T) {
	t.Parallel()
	for name, out := range map[string]string{
		"nothing":         "",
		"an error":        "ERROR ( message:Configuration error \r\nFilename: \\\\?\\C:\\inetpub\\wwwroot\\web.config\r\nLine Number: 5\r\nDescription: x\r\n. )",
		"cut off":         full("rules", oursFull)[:400],
		"cut in the head": "<?xml version=",
		"other section":   full("outboundRules", ""),
		"no section":      "<appcmd></appcmd>",
		"UTF-16":          "\xff\xfe<\x00a\x00/\x00>\x00",
		"a DOCTYPE":       `<!DOCTYPE x [<!ENTITY a "b">]><appcmd />`,
		"deep":            strings.Repeat("<a>", 100000),
		"huge":            strings.Repeat("<a/>", MaxBytes/4) + "<a/>",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if v, err := Parse([]byte(out), "rules"); err == nil {
				t.Errorf("read as %d rules", len(v.Rules))
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{full("rules", oursFull+theirsFull), full("outboundRules", outboundFull), "ERROR ( message:x )", "\xff<a", full("rules", "<rule /><rule name=\"\xe9\" />")} {
		f.Add([]byte(s), ours, "rules")
		f.Add([]byte(s), outbound, "outboundRules")
	}
	f.Fuzz(func(t *testing.T, out []byte, have, section string) {
		iis, err := Parse(out, section)
		if err != nil {
			return
		}
		if d := Compare(iis, iis, section); d != nil {
			t.Errorf("it differs from itself: %+v", *d)
		}
		doc, err := xmldoc.ParseFragment([]byte(have))
		if err != nil {
			return
		}
		m := View{Rules: doc.Root.All("rule"), PreConditions: doc.Root.All("preCondition")}
		if d := Compare(m, iis, section); d != nil && (len(d.Text) > 2048 || len(d.Model) > 2048 || len(d.IIS) > 2048) {
			t.Errorf("not shortened: %d, %d, %d bytes", len(d.Text), len(d.Model), len(d.IIS))
		}
	})
}
