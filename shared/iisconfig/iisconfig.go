// Package iisconfig knows how IIS finds its configuration: sites, applications and pools in applicationHost.config, and
// which web.config files an application reads and inherits. It only reads; the editor is the agent's.
//
// Sources: IIS configuration reference (location, inheritInChildApplications, overrideMode) and ApplicationHost.config of
// Exchange servers.
package iisconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Server is what applicationHost.config says.
type Server struct {
	Sites []*Site
	Pools []*Pool

	doc  *xmldoc.Document
	name string
}

// Site is one web site.
type Site struct {
	Name string
	ID   string
	Apps []*App
	// Bindings are those of http and https, as written: IP ("*" for all), port, host name.
	Bindings []Binding
}

// Binding is where a site listens.
type Binding struct{ Protocol, IP, Port, Host string }

// Loopback is the base address at which a site can be asked from its own machine, and the host name to ask for: of https before http;
// "" when it listens on other addresses only.
func (s *Site) Loopback() (base, host string) {
	for _, protocol := range []string{"https", "http"} {
		for _, b := range s.Bindings {
			if b.Protocol == protocol && (b.IP == "*" || b.IP == "" || b.IP == "127.0.0.1") {
				return protocol + "://127.0.0.1:" + b.Port, b.Host
			}
		}
	}
	return "", ""
}

// App is one application of a site.
type App struct {
	Site *Site
	// Path is the URL path, "/" or "/owa".
	Path string
	// Pool is the application pool's name.
	Pool string
	// Dir is the physical path of the application's root directory, as written.
	Dir string
}

func (a *App) String() string { return a.Site.Name + a.Path }

// Pool is one application pool.
type Pool struct {
	Name string
	// AutoStart is the attribute's value; nil when it is absent (which means true).
	AutoStart *bool
}

// Parse reads an applicationHost.config. name is used in errors.
func Parse(data []byte, name string) (*Server, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if doc.Root.Name != "configuration" {
		return nil, fmt.Errorf("%s: %w", name, doc.Errorf(doc.Root, "root element is <%s>, not <configuration>", doc.Root.Name))
	}
	s := &Server{doc: doc, name: name}
	ah := doc.Root.Child("system.applicationHost")
	defaultPool := ah.Find("sites", "applicationDefaults")
	for _, e := range ah.Find("sites").All("site") {
		site := &Site{Name: e.Attr("name"), ID: e.Attr("id")}
		for _, a := range e.All("application") {
			app := &App{Site: site, Path: a.AttrOr("path", "/"), Pool: a.Attr("applicationPool")}
			if app.Pool == "" && defaultPool != nil {
				app.Pool = defaultPool.Attr("applicationPool")
			}
			for _, v := range a.All("virtualDirectory") {
				if v.Attr("path") == "/" {
					app.Dir = v.Attr("physicalPath")
				}
			}
			site.Apps = append(site.Apps, app)
		}
		for _, b := range e.Find("bindings").All("binding") {
			part := strings.Split(b.Attr("bindingInformation"), ":")
			if p := strings.ToLower(b.Attr("protocol")); (p == "http" || p == "https") && len(part) == 3 {
				site.Bindings = append(site.Bindings, Binding{p, part[0], part[1], part[2]})
			}
		}
		s.Sites = append(s.Sites, site)
	}
	for _, e := range ah.Find("applicationPools").All("add") {
		p := &Pool{Name: e.Attr("name")}
		if v, ok := e.Lookup("autoStart"); ok {
			b := strings.EqualFold(v, "true")
			p.AutoStart = &b
		}
		s.Pools = append(s.Pools, p)
	}
	return s, nil
}

// SharedFrom reads a redirection.config and says where from the configuration of IIS is shared; "" when it is not. Source: IIS
// configuration reference, configurationRedirection.
func SharedFrom(data []byte, name string) (string, error) {
	doc, err := ParseWebConfig(data, name)
	if err != nil {
		return "", err
	}
	e := doc.Root.Child("configurationRedirection")
	if e == nil || !strings.EqualFold(e.Attr("enabled"), "true") {
		return "", nil
	}
	line, _ := xmldoc.LineCol(data, e.Start)
	return fmt.Sprintf("%s, line %d: from %q", name, line, e.Attr("path")), nil
}

// Document is the parsed file.
func (s *Server) Document() *xmldoc.Document { return s.doc }

// Pool finds an application pool by name, or nil.
func (s *Server) Pool(name string) *Pool {
	for _, p := range s.Pools {
		if strings.EqualFold(p.Name, name) {
			return p
		}
	}
	return nil
}

// PoolElement finds the <add> element of a pool, or nil.
func (s *Server) PoolElement(name string) *xmldoc.Element {
	for _, e := range s.doc.Root.Find("system.applicationHost", "applicationPools").All("add") {
		if strings.EqualFold(e.Attr("name"), name) {
			return e
		}
	}
	return nil
}

// AppsOfPool lists the applications that run in a pool.
func (s *Server) AppsOfPool(name string) []*App {
	var out []*App
	for _, site := range s.Sites {
		for _, a := range site.Apps {
			if strings.EqualFold(a.Pool, name) {
				out = append(out, a)
			}
		}
	}
	return out
}

// frontEnd is below the Exchange install path on every server since 2013.
const frontEnd = `\frontend\httpproxy\`

// FrontEndSites lists the sites that have an application below FrontEnd\HttpProxy.
func (s *Server) FrontEndSites() []*Site {
	var out []*Site
	for _, site := range s.Sites {
		for _, a := range site.Apps {
			if strings.Contains(strings.ToLower(a.Dir)+`\`, frontEnd) {
				out = append(out, site)
				break
			}
		}
	}
	return out
}

// Site finds a site by name, or nil.
func (s *Server) Site(name string) *Site {
	for _, x := range s.Sites {
		if strings.EqualFold(x.Name, name) {
			return x
		}
	}
	return nil
}

// App finds an application by its exact path, or nil.
func (s *Site) App(path string) *App {
	for _, a := range s.Apps {
		if strings.EqualFold(a.Path, path) {
			return a
		}
	}
	return nil
}

// AppFor finds the application that a URL path belongs to: the longest match; nil when the site has none.
func (s *Site) AppFor(urlPath string) *App {
	var best *App
	for _, a := range s.Apps {
		if isBelow(urlPath, a.Path) && (best == nil || len(a.Path) > len(best.Path)) {
			best = a
		}
	}
	return best
}

// isBelow says whether path is base or lies under it.
func isBelow(path, base string) bool {
	if base == "/" {
		return true
	}
	return strings.EqualFold(path, base) ||
		len(path) > len(base) && strings.EqualFold(path[:len(base)], base) && path[len(base)] == '/'
}

// chain is the applications whose root web.config an application reads: its parents by URL path, outermost first, and
// itself.
func (a *App) chain() []*App {
	var out []*App
	for depth := 1; depth <= strings.Count(a.Path, "/")+1; depth++ {
		for _, o := range a.Site.Apps {
			n := strings.Count(o.Path, "/") + 1
			if o.Path == "/" {
				n = 1
			}
			if n == depth && isBelow(a.Path, o.Path) {
				out = append(out, o)
			}
		}
	}
	return out
}

// SameDir says whether two physical paths, as written, are one directory.
func SameDir(a, b string) bool { return normal(a) == normal(b) }

func normal(p string) string {
	p = strings.ToLower(strings.ReplaceAll(p, "/", `\`))
	p = strings.ReplaceAll(p, "%systemdrive%", "c:")
	return strings.TrimRight(p, `\`)
}

// Readers lists every application whose configuration includes the web.config of a directory.
func (s *Server) Readers(dir string) []*App {
	var out []*App
	for _, site := range s.Sites {
		for _, a := range site.Apps {
			for _, c := range a.chain() {
				if SameDir(c.Dir, dir) {
					out = append(out, a)
					break
				}
			}
		}
	}
	return out
}

// SharesDirBelow says whether an application below target (by URL) has target's own directory, and which.
func (s *Server) SharesDirBelow(target *App) *App {
	for _, a := range target.Site.Apps {
		if a != target && isBelow(a.Path, target.Path) && SameDir(a.Dir, target.Dir) {
			return a
		}
	}
	return nil
}

// Nested gives, for each of the directories with a web.config below an application's own that belong to it and not to another
// application, the directories with one on the way there: what Effective takes. dirs are all of them.
func (s *Server) Nested(app *App, dirs []string) [][]string {
	var mine []string
	for _, d := range dirs {
		foreign := SameDir(d, app.Dir)
		for _, site := range s.Sites {
			for _, o := range site.Apps {
				foreign = foreign || !SameDir(o.Dir, app.Dir) && within(o.Dir, app.Dir) && within(d, o.Dir)
			}
		}
		if !foreign {
			mine = append(mine, d)
		}
	}
	var out [][]string
	for _, d := range mine {
		var way []string
		for _, o := range mine {
			if within(d, o) {
				way = append(way, o)
			}
		}
		sort.Slice(way, func(i, j int) bool { return len(way[i]) < len(way[j]) })
		out = append(out, way)
	}
	return out
}

// within says whether a physical path is a directory or lies below it.
func within(path, dir string) bool {
	p, d := normal(path), normal(dir)
	return p == d || strings.HasPrefix(p, d+`\`)
}

// Files reads web.config files.
type Files interface {
	// WebConfig gives the bytes of the web.config in a physical directory and a name for errors. When there is none,
	// the error is fs.ErrNotExist.
	WebConfig(dir string) (data []byte, name string, err error)
}

// Effective is the URL Rewrite configuration of an application, as IIS would compute it; with below, that of a directory in it,
// where below are the directories with a web.config on the way there, outermost first. An error that wraps
// *urlrewrite.ConfigError or *xmldoc.SyntaxError is what IIS answers with 500.19.
func (s *Server) Effective(app *App, files Files, below ...string) (*urlrewrite.Ruleset, error) {
	var levels []*urlrewrite.Section
	add := func(doc *xmldoc.Document, scope *xmldoc.Element, where string) error {
		for _, ws := range scope.All("system.webServer") {
			for _, rw := range ws.All("rewrite") {
				sec, err := urlrewrite.ParseSection(doc, rw, where)
				if err != nil {
					return err
				}
				levels = append(levels, sec)
			}
		}
		return nil
	}
	if err := add(s.doc, s.doc.Root, s.name); err != nil {
		return nil, err
	}
	full := strings.TrimSuffix(app.Site.Name+app.Path, "/")
	for _, loc := range s.doc.Root.All("location") {
		if p := loc.Attr("path"); p == "" || isBelow(full, p) {
			if err := add(s.doc, loc, s.name); err != nil {
				return nil, err
			}
		}
	}
	own := func(dir string, locations func(doc *xmldoc.Document, name string) error) error {
		data, name, err := files.WebConfig(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		doc, err := ParseWebConfig(data, name)
		if err != nil {
			return err
		}
		if err := s.checkLocked(app, doc, name); err != nil {
			return err
		}
		if err := add(doc, doc.Root, name); err != nil {
			return err
		}
		return locations(doc, name)
	}
	for _, c := range app.chain() {
		err := own(c.Dir, func(doc *xmldoc.Document, name string) error {
			for _, loc := range doc.Root.All("location") {
				p := strings.Trim(loc.Attr("path"), "./")
				if c != app && strings.EqualFold(loc.Attr("inheritInChildApplications"), "false") {
					continue
				}
				if p == "" || isBelow(app.Path, strings.TrimSuffix(c.Path, "/")+"/"+p) {
					if err := add(doc, loc, name); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, dir := range below {
		err := own(dir, func(doc *xmldoc.Document, name string) error {
			for _, loc := range doc.Root.All("location") {
				if strings.Trim(loc.Attr("path"), "./") == "" {
					if err := add(doc, loc, name); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return urlrewrite.Merge(levels...)
}

// ParseWebConfig parses a web.config and checks its root.
func ParseWebConfig(data []byte, name string) (*xmldoc.Document, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if doc.Root.Name != "configuration" {
		return nil, fmt.Errorf("%s: %w", name, doc.Errorf(doc.Root, "root element is <%s>, not <configuration>", doc.Root.Name))
	}
	return doc, nil
}

// Locked says why a section below system.webServer/rewrite ("rules", "outboundRules") can't be set in the web.config of
// an application; "" when it can.
func (s *Server) Locked(app *App, section string) string {
	mode := ""
	decl := sectionGroup(s.doc.Root.Child("configSections"), "system.webServer", "rewrite")
	if decl == nil {
		return "URL Rewrite is not registered in " + s.name + " (no section group system.webServer/rewrite)"
	}
	for _, list := range []string{"globalModules", "modules"} {
		if !s.lists(list) {
			return "URL Rewrite is registered in " + s.name + ", and its module is not loaded (no RewriteModule in " + list + ")"
		}
	}
	for _, e := range decl.All("section") {
		if e.Attr("name") == section {
			if e.Attr("allowDefinition") == "AppHostOnly" || e.AttrOr("overrideModeDefault", "Allow") == "Deny" {
				mode = "the section's default in " + s.name + " is Deny"
			}
		}
	}
	full := strings.TrimSuffix(app.Site.Name+app.Path, "/")
	for _, loc := range s.doc.Root.All("location") {
		p := loc.Attr("path")
		if p != "" && !isBelow(full, p) || loc.Find("system.webServer", "rewrite", section) == nil {
			continue
		}
		line, _ := xmldoc.LineCol(s.doc.Data, loc.Start)
		switch {
		case loc.Attr("overrideMode") == "Deny" || strings.EqualFold(loc.Attr("allowOverride"), "false"):
			mode = fmt.Sprintf("<location path=%q overrideMode=\"Deny\"> in %s, line %d", p, s.name, line)
		case loc.Attr("overrideMode") == "Allow" || strings.EqualFold(loc.Attr("allowOverride"), "true"):
			mode = ""
		}
	}
	return mode
}

// lists says whether a list of modules, in any scope, has URL Rewrite's, or whether there is no such list.
func (s *Server) lists(name string) bool {
	found := false
	for _, scope := range append([]*xmldoc.Element{s.doc.Root}, s.doc.Root.All("location")...) {
		for _, a := range scope.Find("system.webServer", name).All("add") {
			if strings.EqualFold(a.Attr("name"), "RewriteModule") {
				return true
			}
			found = true
		}
	}
	return !found
}

func sectionGroup(e *xmldoc.Element, names ...string) *xmldoc.Element {
	for _, n := range names {
		var next *xmldoc.Element
		for _, g := range e.All("sectionGroup") {
			if g.Attr("name") == n {
				next = g
			}
		}
		if next == nil {
			return nil
		}
		e = next
	}
	return e
}

// checkLocked finds sections that a web.config sets though they are locked.
func (s *Server) checkLocked(app *App, doc *xmldoc.Document, name string) error {
	scopes := append([]*xmldoc.Element{doc.Root}, doc.Root.All("location")...)
	for _, sc := range scopes {
		for _, ws := range sc.All("system.webServer") {
			for _, rw := range ws.All("rewrite") {
				for _, sec := range rw.Children {
					if why := s.Locked(app, sec.Name); why != "" {
						return &urlrewrite.ConfigError{Where: name, Msg: doc.Errorf(sec, "section %s is locked: %s", sec.Name, why).Error()}
					}
				}
			}
		}
	}
	return nil
}
