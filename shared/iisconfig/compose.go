package iisconfig

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Model composes the configuration of the paths of one server. It reads each file once and never walks a directory. It is
// not safe for concurrent use.
type Model struct {
	srv     *Server
	files   Files
	sources map[string]*source
	places  map[string]*Place
	dirs    map[string]string
	// held and kept are how many bytes of files, and how many elements of composed sections, the model remembers.
	held, kept int
}

// NewModel makes a model of a server whose web.config files are read from files.
func NewModel(srv *Server, files Files) *Model {
	return &Model{srv: srv, files: files, sources: map[string]*source{}, places: map[string]*Place{}, dirs: map[string]string{}}
}

// Server returns what applicationHost.config says.
func (m *Model) Server() *Server { return m.srv }

func (m *Model) canonical(dir string) string {
	c, ok := m.dirs[dir]
	if !ok {
		c = m.files.Canonical(dir)
		m.dirs[dir] = c
	}
	return c
}

// level is one step of a URL path: the server (path ""), the site ("/"), "/owa", "/owa/auth", ...
type level struct {
	path string
	dir  string // physical directory; "" when none is known
	app  bool   // the root of an application
	own  bool   // its web.config is read
}

// levels cuts a URL path at its slashes. Each is a level, whether or not it exists on disk.
func (m *Model) levels(site *Site, path string) []level {
	out := []level{{path: ""}}
	segments := []string{""}
	if p := strings.Trim(path, "/"); p != "" {
		segments = append(segments, strings.SplitN(p, "/", maxSegments+1)...)
	}
	if len(segments) > maxSegments+1 { // the place is not judged
		segments = segments[:maxSegments+1]
	}
	cur, dir, sub := "", "", true
	for i, seg := range segments {
		if i == 0 {
			cur = "/"
		} else {
			cur = join(cur, seg)
		}
		l := level{path: cur}
		mapped := false
		for _, a := range site.Apps {
			for _, v := range a.Virtual {
				if strings.EqualFold(v.Path, cur) {
					l.dir, l.own, mapped, sub = v.Dir, true, true, !v.NoSubDirConfig
					l.app = l.app || strings.EqualFold(a.Path, cur)
				}
			}
			if strings.EqualFold(a.Path, cur) { // the application's own root directory counts, not a virtual directory of another one
				l.app = true
				if a.Dir != "" {
					l.dir, l.own, mapped = a.Dir, true, true
					for _, v := range a.Virtual {
						if v.Path == a.Path {
							sub = !v.NoSubDirConfig
						}
					}
				}
			}
		}
		if !mapped && dir != "" && plainName(seg) {
			l.dir, l.own = strings.TrimRight(dir, `\/`)+`\`+seg, sub
		}
		dir = l.dir
		out = append(out, l)
	}
	return out
}

// plainName reports whether a URL segment can be the name of a directory.
func plainName(s string) bool {
	if s == "" || len(s) > 255 || s == "." || s == ".." || strings.ContainsAny(s, "\\:*?\"<>|%\x00") {
		return false
	}
	for _, r := range s {
		if r < ' ' {
			return false
		}
	}
	return true
}

// contribution is one element of a section that takes part at a path.
type contribution struct {
	src *source
	// file, doc and el are where the element itself is: in a file that configSource names where there is one.
	file *source
	doc  *xmldoc.Document
	name string // of the file that el is in
	el   *xmldoc.Element
	// outer is the element in src; el is another one only under configSource.
	outer *xmldoc.Element
	in    scope
	depth int // of the file: 0 is applicationHost.config
	level level
	base  string // URL path that a pattern's input is relative to
	void  string // why the element has no effect; "" when it has
}

// Source is where something stands.
type Source struct {
	File string
	Line int
}

func (s Source) String() string { return fmt.Sprintf("%s:%d", s.File, s.Line) }

// Item is one effective element of a section.
type Item struct {
	// Name is the element's key.
	Name    string
	Element *xmldoc.Element
	Doc     *xmldoc.Document
	Source  Source
	// Level is the URL path of the level that it comes from; "" is the server.
	Level string
	// Base is the URL path that the input of a rule's pattern is relative to, by the reading that names the defining level.
	Base string

	depth  int
	locked bool
}

// Removal is an element that a level took away again.
type Removal struct {
	Item Item
	// By is the <clear/> or <remove>; Clear tells which.
	By    Source
	Clear bool
	Level string
}

// Section is the effective section of a path.
type Section struct {
	Name  string
	Items []Item
	// Err is why IIS refuses the section there; Items is then what was gathered up to that point.
	Err *Invalid
	// Removed are the elements that a <clear/> or <remove> took away.
	Removed []Removal
	// NotInherited are elements above that this application does not inherit (inheritInChildApplications="false").
	NotInherited []Item
	// Notes name what this version does not know and steps over.
	Notes []string
}

// Item finds an element by its key, or nil.
func (s *Section) Item(name string) *Item {
	for i := range s.Items {
		if strings.EqualFold(s.Items[i].Name, name) {
			return &s.Items[i]
		}
	}
	return nil
}

// contributions gathers the elements of a section that take part at a path, in the order in which IIS works them off:
// level by level, at each first applicationHost.config's <location> for exactly this path, then those of the web.config
// files above, outermost first, then the level's own web.config. The order of the first and the last is documented by
// Get-URLRewriteRule.ps1; the place of the middle ones is inferred from .NET.
func (p *Place) contributions(k kind) ([]contribution, []contribution, *Invalid) {
	var out, skipped []contribution
	var bad *Invalid
	type upper struct {
		src   *source
		level level
		depth int
	}
	var above []upper
	bytes := 0
	take := func(src *source, target string, l level, depth int, base string) {
		if bad != nil {
			return
		}
		found, in := src.sections(target, k.path)
		if len(found) > 1 {
			bad = src.errorf(found[1], HResultDuplicate, "section %s is defined a second time for the same path; the first is in line %d",
				k.name, invalidAt(src.name, src.doc, found[0], 0, "").Line)
			return
		}
		for i, e := range found {
			c := contribution{src: src, file: src, doc: src.doc, name: src.name, el: e, outer: e, in: in[i], depth: depth, level: l, base: base}
			if in[i].location && !in[i].inherits && !strings.EqualFold(l.path, p.App.Path) && IsBelow(p.App.Path, l.path) {
				skipped = append(skipped, c)
				continue
			}
			if k.server && depth == 0 && l.path != "" {
				c.void = fmt.Sprintf("<%s> has no effect in a <location> for a site", k.name)
			}
			out = append(out, c)
		}
	}
	for i, l := range p.levels {
		target := p.Site.Name
		base := l.path
		switch {
		case i == 0:
			take(p.m.srv.file, "", l, 0, "/")
			continue
		case l.path != "/":
			target = p.Site.Name + l.path
		}
		take(p.m.srv.file, target, l, 0, base)
		if p.ignores {
			continue
		}
		for _, u := range above {
			rel := strings.Trim(strings.TrimPrefix(l.path[len(strings.TrimSuffix(u.level.path, "/")):], "/"), "/")
			take(u.src, rel, l, u.depth, base)
		}
		if !l.own || bad != nil {
			continue
		}
		src := p.m.read(l.dir, WebConfig)
		if src == nil {
			continue
		}
		if src.err != nil {
			bad = src.err
			break
		}
		if bytes += src.size(); bytes > maxChainBytes {
			bad = &Invalid{File: src.name, Unsure: true,
				Msg: fmt.Sprintf("the web.config files down to this one have more than %d bytes together: this version reads no more", maxChainBytes)}
			break
		}
		take(src, "", l, i, base)
		above = append(above, upper{src, l, i})
	}
	return out, skipped, bad
}

// Place is what IIS composes at one path of a site.
type Place struct {
	Site *Site
	// App is the application that serves the path; nil when the site has none.
	App  *App
	Path string

	m        *Model
	levels   []level
	ignores  bool // the application's pool ignores web.config files
	deep     int  // segments of the path, if they are more than maxSegments
	sections map[string]*Section
	rules    *urlrewrite.Ruleset
	notes    []string
}

// At composes the configuration of a URL path: decoded, absolute, without a query.
func (m *Model) At(site *Site, path string) *Place {
	path = cleanPath(collapse(path))
	key := strings.ToLower(site.Name) + "\x00" + strings.ToLower(path)
	if p, ok := m.places[key]; ok {
		return p
	}
	p := &Place{Site: site, App: site.AppFor(path), Path: path, m: m, levels: m.levels(site, path), sections: map[string]*Section{}}
	if p.App == nil {
		p.App = &App{Site: site, Path: "/"}
	}
	if pool := m.srv.Pool(p.App.Pool); pool != nil {
		p.ignores = pool.IgnoresWebConfig
	}
	if n := strings.Count(path, "/"); n > maxSegments {
		p.deep = n
	}
	m.forget()
	if len(key) <= maxKey {
		m.places[key] = p
	}
	return p
}

// collapse takes out empty, "." and ".." segments, as IIS does before it maps a URL.
func collapse(path string) string {
	var out []string
	for _, s := range strings.Split(path, "/") {
		switch s {
		case "", ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

// Section returns an effective section by its short name: "rules", "outboundRules", "preConditions", ...
func (p *Place) Section(name string) *Section {
	if s, ok := p.sections[name]; ok {
		return s
	}
	if _, ok := parts[name]; ok {
		p.Section("outboundRules")
		return p.sections[name]
	}
	k := kinds[name]
	if p.deep > 0 {
		for _, n := range append([]string{name}, k.parts...) {
			p.sections[n] = &Section{Name: n, Err: tooDeep(p.Site, p.deep)}
		}
		return p.sections[name]
	}
	c := newCollector(k)
	subs := map[string]*collector{}
	for _, n := range k.parts {
		subs[n] = newCollector(parts[n])
	}
	all, skipped, bad := p.contributions(k)
	locks := newLocks(p.m.srv, k)
	for _, x := range all {
		if x.void != "" {
			c.out.Notes = append(c.out.Notes, fmt.Sprintf("%s:%d: %s", x.name, invalidAt(x.name, x.doc, x.el, 0, "").Line, x.void))
			continue
		}
		if c.out.Err = p.compose(k, x, locks, c, subs); c.out.Err != nil {
			break
		}
	}
	if c.out.Err == nil {
		c.out.Err = bad
	}
	for _, x := range skipped {
		for _, e := range x.el.All(k.element) {
			c.out.NotInherited = append(c.out.NotInherited, c.item(x, e))
		}
	}
	p.m.kept += len(c.out.Items) + len(c.out.Removed) + 1
	p.sections[name] = &c.out
	for n, s := range subs {
		// The two are one section to IIS: what is wrong with one makes the other unreadable.
		if s.out.Err != nil && c.out.Err == nil {
			c.out.Err = s.out.Err
		}
		p.sections[n] = &s.out
	}
	for n := range subs {
		p.sections[n].Err = c.out.Err
	}
	return &c.out
}

// compose works off one contribution.
func (p *Place) compose(k kind, x contribution, locks *locks, c *collector, subs map[string]*collector) *Invalid {
	if bad := locks.enter(p, k, &x); bad != nil {
		return bad
	}
	if _, ok := x.outer.Lookup("configProtectionProvider"); ok { // source: blogs.iis.net/wonyoo
		return x.src.errorf(x.outer, HResultUnknown, "section %s is encrypted as a whole (configProtectionProvider): IIS does not read it",
			k.name)
	}
	if file, ok := x.outer.Lookup("configSource"); ok {
		if bad := p.follow(k, &x, file); bad != nil {
			return bad
		}
	}
	if bad := locks.attributes(x); bad != nil {
		return bad
	}
	for _, e := range x.el.Children {
		if bad := locks.element(x, e); bad != nil {
			return bad
		}
		if sub := subs[e.Name]; sub != nil {
			inner := x
			inner.el = e
			if bad := sub.locks.attributes(inner); bad != nil {
				return bad
			}
			for _, s := range e.Children {
				if bad := sub.locks.element(inner, s); bad != nil {
					return bad
				}
				if bad := sub.add(inner, s); bad != nil {
					return bad
				}
			}
			if bad := sub.locks.leave(inner); bad != nil {
				return bad
			}
			continue
		}
		if bad := c.add(x, e); bad != nil {
			return bad
		}
	}
	return locks.leave(x)
}

// follow reads a section from the file that configSource names.
func (p *Place) follow(k kind, x *contribution, file string) *Invalid {
	if x.depth == 0 {
		return x.src.errorf(x.outer, HResultInvalidData, "configSource is no attribute in applicationHost.config")
	}
	if len(x.outer.Children) > 0 || len(x.outer.Attrs) > 1 {
		return x.src.errorf(x.outer, HResultInvalidData, "<%s> has configSource and something else besides", k.name)
	}
	if !SourceFile(file) {
		return x.src.errorf(x.outer, HResultUnknown, "configSource=%q is not a file of the same directory or below it", file)
	}
	src := p.m.read(x.src.dir, file)
	switch {
	case src == nil:
		return x.src.errorf(x.outer, HResultUnknown, "configSource names %q, which does not exist", file)
	case src.err != nil:
		return src.err
	case src.doc.Root.Name != k.path[len(k.path)-1]:
		return src.errorf(src.doc.Root, HResultInvalidData, "root element is <%s>; configSource of <%s> needs <%s>", src.doc.Root.Name, k.name, k.path[len(k.path)-1])
	}
	if nested, ok := src.doc.Root.Lookup("configSource"); ok {
		return src.errorf(src.doc.Root, HResultUnknown, "configSource=%q in a file that configSource names", nested)
	}
	x.doc, x.name, x.el, x.file = src.doc, src.name, src.doc.Root, src
	return nil
}

// SourceFile reports whether a configSource names a file of the same directory or below it.
func SourceFile(file string) bool {
	if file == "" || len(file) > maxConfigSourceBytes {
		return false
	}
	for _, s := range strings.FieldsFunc(file, func(r rune) bool { return r == '\\' || r == '/' }) {
		if !plainName(s) {
			return false
		}
	}
	return !strings.HasPrefix(file, `\`) && !strings.HasPrefix(file, "/") && !strings.Contains(file, ":")
}

// With makes a model of the same server with other files, of which only the named ones are different: the rest is not read
// again. A name is a directory and a file of it.
func (m *Model) With(files Files, changed ...[2]string) *Model {
	n := NewModel(m.srv, files)
	for k, s := range m.sources {
		n.sources[k] = s
		n.held += s.size()
	}
	for k, d := range m.dirs {
		n.dirs[k] = d
	}
	for _, c := range changed {
		delete(n.sources, n.canonical(c[0])+"|"+strings.ToLower(c[1]))
	}
	return n
}
