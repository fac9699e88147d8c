package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/windows/registry"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// listed is what IIS lists for the rules that the Wine tests apply, in the form of `/config:* /xml`. It was derived by hand from
// the documents of the mitigations and URL Rewrite's schema, not from our model: docs/windows-verification.md says how to
// record what a real appcmd prints.
var listed = []struct{ rule, section, xml string }{
	{"Stopgap CVE-2021-26855.1 X-AnonResource-Backend Abort - inbound", "rules",
		`<rule name="Stopgap CVE-2021-26855.1 X-AnonResource-Backend Abort - inbound" enabled="true" patternSyntax="ECMAScript" stopProcessing="false">` +
			`<match url=".*" ignoreCase="true" negate="false" /><conditions logicalGrouping="MatchAll" trackAllCaptures="false"><add input="{HTTP_COOKIE}" matchType="Pattern" ` +
			`pattern="(.*)X-AnonResource-Backend(.*)" ignoreCase="true" negate="false" /></conditions><serverVariables />` + abort + `</rule>`},
	{"Stopgap CVE-2021-26855.1 X-BEResource Abort - inbound", "rules",
		`<rule name="Stopgap CVE-2021-26855.1 X-BEResource Abort - inbound" enabled="true" patternSyntax="ECMAScript" stopProcessing="true">` +
			`<match url=".*" ignoreCase="true" negate="false" /><conditions logicalGrouping="MatchAll" trackAllCaptures="false"><add input="{HTTP_COOKIE}" matchType="Pattern" ` +
			`pattern="(.*)X-BEResource=(.+)/(.+)~(.+)" ignoreCase="true" negate="false" /></conditions><serverVariables />` + abort + `</rule>`},
	{"Stopgap M1.1 PowerShell - inbound", "rules",
		`<rule name="Stopgap M1.1 PowerShell - inbound" enabled="true" patternSyntax="ECMAScript" stopProcessing="true"><match url=".*" ignoreCase="true" negate="false" />` +
			`<conditions logicalGrouping="MatchAll" trackAllCaptures="false"><add input="{UrlDecode:{REQUEST_URI}}" matchType="Pattern" ` +
			`pattern="(?=.*autodiscover)(?=.*powershell)" ignoreCase="true" negate="false" /></conditions><serverVariables />` + abort + `</rule>`},
	{"Stopgap M2.1 OWA SPA HTML shell - precondition", "outboundRules",
		`<preConditions><preCondition name="Stopgap M2.1 OWA SPA HTML shell - precondition" logicalGrouping="MatchAll" patternSyntax="ECMAScript">` +
			`<add input="{RESPONSE_CONTENT_TYPE}" matchType="Pattern" pattern="^text/html" ignoreCase="true" negate="false" /><add input="{REQUEST_URI}" matchType="Pattern" ` +
			`pattern="^/owa/?($|\?|default\.aspx|projection\.aspx|readingPane\.aspx|popout\.aspx)" ignoreCase="true" negate="false" /></preCondition></preConditions>`},
	{"Stopgap M2.1 OWA CSP - outbound", "outboundRules",
		`<rule name="Stopgap M2.1 OWA CSP - outbound" preCondition="Stopgap M2.1 OWA SPA HTML shell - precondition" enabled="true" patternSyntax="ECMAScript" ` +
			`stopProcessing="false"><match filterByTags="None" serverVariable="RESPONSE_Content_Security_Policy" pattern="(.*)" occurrences="0" ignoreCase="true" negate="false" />` +
			`<conditions logicalGrouping="MatchAll" trackAllCaptures="true" /><action type="Rewrite" value="{R:1}; script-src-attr 'none'" replace="true" /></rule>`},
}

const abort = `<action type="AbortRequest" appendQueryString="true" logRewrittenUrl="false" redirectType="Permanent" subStatusCode="0" />`

// list prints the merged view of a section at an application: the rules that the files of the site's root and of the
// application have, in their order. A rule that the file "unlisted" names is left out, as if IIS did not see it.
func list(dir string, site *iisconfig.Site, path, section string) {
	unlisted, _ := os.ReadFile(filepath.Join(dir, "unlisted"))
	var text string
	seen := map[string]bool{}
	for _, p := range []string{"/", path} {
		app := site.App(p)
		if app == nil || seen[app.Dir] {
			continue
		}
		seen[app.Dir] = true
		if d, err := registry.ExpandString(app.Dir); err == nil {
			raw, _ := os.ReadFile(filepath.Join(d, "web.config"))
			text += string(raw)
		}
	}
	place := map[int]string{}
	var places []int
	for _, r := range listed {
		at := strings.Index(text, `name="`+r.rule+`"`)
		if at >= 0 && r.section == section && r.rule != strings.TrimSpace(string(unlisted)) {
			place[at], places = r.xml, append(places, at)
		}
	}
	sort.Ints(places)
	var inner strings.Builder
	for _, at := range places {
		inner.WriteString(place[at])
	}
	full := "system.webServer-rewrite-" + section
	fmt.Printf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<appcmd>\r\n<CONFIG CONFIG.SECTION=\"system.webServer/rewrite/%s\" path=\"MACHINE/WEBROOT/APPHOST/%s\" "+
		"overrideMode=\"Inherit\" locked=\"false\">\r\n<%s>%s</%[3]s>\r\n</CONFIG>\r\n</appcmd>\r\n", section, site.Name+strings.TrimSuffix(path, "/"), full, inner.String())
}
