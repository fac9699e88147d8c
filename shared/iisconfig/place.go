package iisconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// rewriteSections are the sections that a request's rewriting reads.
var rewriteSections = []string{"globalRules", "rules", "outboundRules", "rewriteMaps", "providers", "allowedServerVariables"}

// Invalid returns why IIS refuses the path's configuration: the first of its rewrite sections and of modules that it
// refuses. nil when it accepts all of them.
func (p *Place) Invalid() *Invalid {
	for _, n := range append([]string{"modules"}, rewriteSections...) {
		if s := p.Section(n); s.Err != nil {
			return s.Err
		}
	}
	return nil
}

// Module reports whether URL Rewrite runs for the application, and why not: its module must be in globalModules and in the
// application's modules. Where applicationHost.config has no such list, there is nothing to judge by.
func (p *Place) Module() (runs bool, why string) {
	if runs, why := p.Loaded(); !runs {
		return false, why
	}
	return p.lists("modules")
}

// Loaded reports whether IIS loads URL Rewrite's module at all.
func (p *Place) Loaded() (loaded bool, why string) { return p.lists("globalModules") }

func (p *Place) lists(names ...string) (bool, string) {
	const module = "RewriteModule"
	for _, n := range names {
		s := p.Section(n)
		if len(s.Items) == 0 && len(s.Removed) == 0 {
			continue
		}
		if s.Item(module) != nil {
			continue
		}
		for _, r := range s.Removed {
			if strings.EqualFold(r.Item.Name, module) {
				return false, fmt.Sprintf("%s takes RewriteModule out of %s", r.By, n)
			}
		}
		return false, "RewriteModule is not in " + n + " of " + p.m.srv.file.name
	}
	return true, ""
}

// IgnoresWebConfig reports whether the pool of the path's application ignores web.config files.
func (p *Place) IgnoresWebConfig() bool { return p.ignores }

// Rules returns the effective ruleset, and notes on what this version does not know in it. The error is an *Invalid.
func (p *Place) Rules() (*urlrewrite.Ruleset, []string, error) {
	if bad := p.Invalid(); bad != nil {
		return nil, nil, bad
	}
	if p.rules == nil {
		p.rules, p.notes = urlrewrite.Build(urlrewrite.Parts{
			Global: p.parts("globalRules"), Inbound: p.parts("rules"), Outbound: p.parts("outboundRules"), PreConditions: p.parts("preConditions"),
			Maps: p.parts("rewriteMaps"), Tags: p.parts("customTags"), Allowed: p.parts("allowedServerVariables"), Providers: p.parts("providers"),
		})
		for _, n := range rewriteSections {
			p.notes = append(p.notes, p.Section(n).Notes...)
		}
	}
	return p.rules, p.notes, nil
}

func (p *Place) parts(section string) []urlrewrite.Part {
	var out []urlrewrite.Part
	for _, i := range p.Section(section).Items {
		out = append(out, urlrewrite.Part{Element: i.Element, Doc: i.Doc, Where: i.Source.String(), Base: i.Base})
	}
	return out
}

// Inputs returns what the pattern of an effective rule gets for a request to the path: one value, or one for each way to
// read Microsoft's reference. The first is relative to the level that defines the rule, the second to the application.
func (p *Place) Inputs(section, rule string) []string {
	it := p.Section(section).Item(rule)
	if it == nil {
		return nil
	}
	own := urlrewrite.Relative(p.Path, it.Base)
	if section == "globalRules" {
		return []string{urlrewrite.Relative(p.Path, "/")}
	}
	app := urlrewrite.Relative(p.Path, p.App.Path)
	if IsBelow(it.Base, p.App.Path) || own == app {
		return []string{own}
	}
	return []string{own, app}
}

// Places lists the paths of a site at which a level of its own begins: applications and virtual directories.
func (s *Site) Places() []string {
	var out []string
	seen := map[string]bool{}
	add := func(p string) {
		if k := strings.ToLower(p); !seen[k] {
			seen[k] = true
			out = append(out, p)
		}
	}
	for _, a := range s.Apps {
		add(a.Path)
		for _, v := range a.Virtual {
			add(v.Path)
		}
	}
	return out
}

// Reader is a place whose configuration includes a directory's web.config.
type Reader struct {
	Place *Place
	// Own: the file is that of the place's own directory. Otherwise the place inherits it.
	Own bool
	// Times is how often the place reads the file: more than once when two of its levels are one directory.
	Times int
}

// Readers lists every application and virtual directory whose configuration includes the files of a directory.
func (m *Model) Readers(dir string) []Reader {
	var out []Reader
	want := m.canonical(dir)
	for _, site := range m.srv.Sites {
		for _, path := range site.Places() {
			p := m.At(site, path)
			r := Reader{Place: p}
			for i, l := range p.levels {
				if l.own && m.canonical(l.dir) == want {
					r.Times++
					r.Own = r.Own || i == len(p.levels)-1
				}
			}
			if r.Times > 0 {
				out = append(out, r)
			}
		}
	}
	return out
}

// SameDir reports whether two directories, as written, are one.
func (m *Model) SameDir(a, b string) bool { return m.canonical(a) == m.canonical(b) }

// SharesDirBelow returns an application or virtual directory below another one (by URL) that has its directory; "" for none.
func (m *Model) SharesDirBelow(app *App) string {
	for _, path := range app.Site.Places() {
		if path == app.Path || !IsBelow(path, app.Path) {
			continue
		}
		if l := m.levels(app.Site, path); m.SameDir(l[len(l)-1].dir, app.Dir) {
			return path
		}
	}
	return ""
}

// File is what a model read of one configuration file; nil when there is none.
func (m *Model) File(dir, file string) *File {
	s := m.read(dir, file)
	if s == nil {
		return nil
	}
	return &File{src: s}
}

// File is one configuration file.
type File struct{ src *source }

// Err is why IIS, or this version, refuses the file as a whole; nil when it is read.
func (f *File) Err() *Invalid { return f.src.err }

// Name is the file's path for people.
func (f *File) Name() string { return f.src.name }

// Has returns the line of a section that the file has for its own level, outside a <location> or in the path-less one; 0
// when it has none there. source is the file that its configSource names.
func (f *File) Has(section string, inLocation bool) (line int, source string) {
	if f.src.doc == nil {
		return 0, ""
	}
	found, in := f.src.sections("", kinds[section].path)
	for i, e := range found {
		if in[i].location == inLocation {
			return f.src.errorf(e, 0, "").Line, e.Attr("configSource")
		}
	}
	return 0, ""
}

// AsInvalid returns the *Invalid that an error is or wraps, or nil.
func AsInvalid(err error) *Invalid {
	var bad *Invalid
	if errors.As(err, &bad) {
		return bad
	}
	return nil
}
