package iisconfig_test

import (
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// world is a server in short notation. A file is lines, each "[@PATH[attributes]] SECTION{attributes} ITEMS": @PATH is <location
// path="PATH">, @. is path=".", @~ is a location without path. +X adds an element named X, -X removes it, clear clears;
// {a=b;c=d} after a section or an item are its attributes; pre: marks items of preConditions. A file that begins with "<" is XML.
// The file "apphost" is applicationHost.config; the others are DIR for DIR/web.config, or DIR/FILE.
type world struct {
	files map[string]string
	// declare overrides attributes of a section's declaration: `rules` -> `overrideModeDefault="Deny"`; "-" leaves it out.
	declare map[string]string
	// apps replaces the applications; top replaces the attributes of the site's root directory.
	apps, top string
	// more is XML in <system.applicationHost>, pool the attributes of the pool.
	more, pool string
}

// dirs are the directories of the letters.
var dirs = map[string]string{
	"W": `C:\inetpub\wwwroot`, "O": `C:\Exch\FrontEnd\HttpProxy\owa`, "E": `C:\Exch\FrontEnd\HttpProxy\ecp`, "X": `D:\extra`,
}

const standardApps = `<application path="/" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\inetpub\wwwroot"%s/></application>
<application path="/owa" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\Exch\FrontEnd\HttpProxy\owa"/></application>
<application path="/owa/Calendar" applicationPool="P"><virtualDirectory path="/" physicalPath="C:\Exch\FrontEnd\HttpProxy\owa"/></application>
<application path="/ecp" applicationPool="Q"><virtualDirectory path="/" physicalPath="C:\Exch\FrontEnd\HttpProxy\ecp"/></application>`

// declarations of Exchange 2019's applicationHost.config.
var declarations = []struct{ name, attrs string }{
	{"globalRules", `allowDefinition="AppHostOnly" overrideModeDefault="Deny"`}, {"rules", `overrideModeDefault="Allow"`},
	{"outboundRules", `overrideModeDefault="Allow"`}, {"providers", `overrideModeDefault="Allow"`},
	{"rewriteMaps", `overrideModeDefault="Allow"`}, {"allowedServerVariables", `overrideModeDefault="Deny"`},
}

func (w world) appHost() string {
	if strings.HasPrefix(w.files["apphost"], "<") {
		return w.files["apphost"]
	}
	var decl strings.Builder
	for _, d := range declarations {
		attrs := d.attrs
		if o := w.declare[d.name]; o == "-" {
			continue
		} else if o != "" {
			attrs = o
		}
		fmt.Fprintf(&decl, "<section name=%q %s/>\n", d.name, attrs)
	}
	apps := w.apps
	if apps == "" {
		apps = fmt.Sprintf(standardApps, w.top)
	}
	return fmt.Sprintf(`<configuration><configSections><sectionGroup name="system.applicationHost"><section name="sites" allowDefinition="AppHostOnly"/>
</sectionGroup><sectionGroup name="system.webServer"><section name="globalModules" allowDefinition="AppHostOnly" overrideModeDefault="Deny"/>
<section name="modules" allowDefinition="MachineToApplication"/><sectionGroup name="rewrite">%s</sectionGroup></sectionGroup></configSections>
<system.applicationHost><applicationPools><add name="P"%s/><add name="Q"/></applicationPools>%s<sites><site name="S" id="1">%s</site></sites>
</system.applicationHost><system.webServer><globalModules><add name="RewriteModule" image="r.dll"/></globalModules><modules>
<add name="RewriteModule"/></modules></system.webServer>
%s</configuration>`, decl.String(), w.pool, w.more, apps, lines(w.files["apphost"]))
}

func (w world) model(t testing.TB) (*iisconfig.Model, *iisconfig.Site) {
	t.Helper()
	m, site, err := w.parse()
	if err != nil {
		t.Fatalf("applicationHost.config: %v", err)
	}
	return m, site
}

func (w world) parse() (*iisconfig.Model, *iisconfig.Site, error) {
	srv, err := iisconfig.Parse([]byte(w.appHost()), "applicationHost.config")
	if err != nil {
		return nil, nil, err
	}
	return iisconfig.NewModel(srv, memory(w.texts())), srv.Site("S"), nil
}

// texts are the files by their Windows path, in lower case.
func (w world) texts() map[string]string {
	out := map[string]string{}
	for k, text := range w.files {
		if k == "apphost" {
			continue
		}
		letter, rest, _ := strings.Cut(k, "/")
		name := dirs[letter]
		if strings.HasSuffix(rest, ".config") {
			name += `\` + strings.ReplaceAll(rest, "/", `\`)
		} else {
			name = strings.TrimRight(name+`\`+strings.ReplaceAll(rest, "/", `\`), `\`) + `\web.config`
		}
		if !strings.HasPrefix(strings.TrimPrefix(text, "\ufeff"), "<") && text != "" {
			text = "<configuration>" + lines(text) + "</configuration>"
		}
		out[strings.ToLower(name)] = text
	}
	return out
}

// memory is files by lower-case Windows path.
type memory map[string]string

func (m memory) ConfigFile(dir, file string) ([]byte, string, error) {
	name := strings.ToLower(strings.TrimRight(dir, `\`) + `\` + file)
	text, ok := m[name]
	if !ok {
		return nil, name, fs.ErrNotExist
	}
	return []byte(text), name, nil
}

func (memory) Canonical(dir string) string { return strings.ToLower(strings.TrimRight(dir, `\`)) }
func (memory) MaxConfigBytes() int         { return iisconfig.DefaultMaxBytes }

func lines(text string) string {
	var out strings.Builder
	for _, l := range strings.Split(text, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			out.WriteString(line(l) + "\n")
		}
	}
	return out.String()
}

var withAttrs = regexp.MustCompile(`^([^{\[]+)(?:[{\[](.*)[}\]])?$`)

// attrs splits "name{a=b;c=d}" into the name and XML attributes.
func attrs(s string) (name, xml string) {
	m := withAttrs.FindStringSubmatch(s)
	if m == nil {
		panic("notation: " + s)
	}
	for _, a := range strings.Split(m[2], ";") {
		if k, v, ok := strings.Cut(a, "="); ok {
			xml += fmt.Sprintf(` %s="%s"`, k, v)
		}
	}
	return m[1], xml
}

func line(l string) string {
	words := strings.Fields(l)
	location, head := "", words[0]
	if strings.HasPrefix(head, "@") {
		path, a := attrs(head[1:])
		location = fmt.Sprintf("<location path=%q%s>", path, a)
		if path == "~" {
			location = fmt.Sprintf("<location%s>", a)
		}
		words = words[1:]
	}
	section, sectionAttrs := attrs(words[0])
	var items, pre strings.Builder
	for _, w := range words[1:] {
		to := &items
		if rest, ok := strings.CutPrefix(w, "pre:"); ok {
			w, to = rest, &pre
		}
		to.WriteString(element(section, w, to == &pre))
	}
	inner := items.String()
	if pre.Len() > 0 {
		inner = "<preConditions>" + pre.String() + "</preConditions>" + inner
	}
	body := fmt.Sprintf("<%s%s>%s</%s>", section, sectionAttrs, inner, section)
	if section != "modules" && section != "globalModules" {
		body = "<rewrite>" + body + "</rewrite>"
	}
	body = "<system.webServer>" + body + "</system.webServer>"
	if location != "" {
		body = location + body + "</location>"
	}
	return body
}

func element(section, w string, pre bool) string {
	if w == "clear" {
		return "<clear/>"
	}
	name, a := attrs(w[1:])
	if w[0] == '-' {
		return fmt.Sprintf("<remove name=%q/>", name)
	}
	switch {
	case pre:
		return fmt.Sprintf(`<preCondition name=%q%s><add input="{X}" pattern="x"/></preCondition>`, name, a)
	case section == "outboundRules":
		return fmt.Sprintf(`<rule name=%q%s><match serverVariable="RESPONSE_X" pattern=".*"/><action type="Rewrite" value="y"/></rule>`, name, a)
	case section == "rewriteMaps":
		return fmt.Sprintf(`<rewriteMap name=%q%s><add key="k" value="v"/></rewriteMap>`, name, a)
	case section == "providers":
		return fmt.Sprintf(`<provider name=%q type="T"%s/>`, name, a)
	case strings.HasSuffix(section, "ules") && section != "modules" && section != "globalModules":
		return fmt.Sprintf(`<rule name=%q%s><match url=".*"/><action type="None"/></rule>`, name, a)
	}
	return fmt.Sprintf("<add name=%q%s/>", name, a)
}

// answer is what the model says of a section at a path: the names in order, or "!" and the code.
func answer(p *iisconfig.Place, section string) string {
	s := p.Section(section)
	if s.Err != nil {
		if s.Err.HResult == 0 {
			return "!"
		}
		return fmt.Sprintf("!0x%08x", s.Err.HResult)
	}
	var names []string
	for _, i := range s.Items {
		names = append(names, i.Name)
	}
	return strings.Join(names, " ")
}

// ask checks answers: "/owa" or "/owa outboundRules" -> the names in order, "" for none, "!0x..." for a code, "!" for any refusal.
func (w world) ask(t *testing.T, want map[string]string) {
	t.Helper()
	m, site := w.model(t)
	for _, q := range slices.Sorted(maps.Keys(want)) {
		path, section, ok := strings.Cut(q, " ")
		if !ok {
			section = "rules"
		}
		got := answer(m.At(site, path), section)
		if got != want[q] && (want[q] != "!" || !strings.HasPrefix(got, "!")) {
			t.Errorf("%s: got %q, want %q (%v)", q, got, want[q], m.At(site, path).Section(section).Err)
		}
	}
}
