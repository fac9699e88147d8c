// Package iisconfig is the model of how IIS composes its configuration: sites, applications and application pools from
// applicationHost.config, and for a URL path the effective rewrite rules, each with the file and line it comes from, or the
// reason why IIS refuses the configuration there. It only reads; the editor is the agent's.
//
// Sources: "How to Use Locking in IIS 7.0 Configuration", "Deep Dive into IIS Configuration", "URL Rewrite Module
// Configuration Reference" and support article 942055 (HTTP 500.19) on Microsoft Learn; Get-URLRewriteRule.ps1 of
// microsoft/CSS-Exchange for the order of levels; System.Configuration of .NET where Microsoft documents nothing.
package iisconfig

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Server is what applicationHost.config says.
type Server struct {
	Sites []*Site
	Pools []*Pool

	file *source
	decl map[string]declaration
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

// Loopback returns the base address at which a site can be asked from its own machine, and the host name to ask for; https
// before http. The address is empty when the site listens on other addresses only.
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
	// Virtual are the application's virtual directories, the root one included.
	Virtual []VirtualDirectory
}

func (a *App) String() string { return a.Site.Name + a.Path }

// VirtualDirectory maps a URL path to a directory.
type VirtualDirectory struct {
	// Path is the URL path within the site, "/" or "/owa/images".
	Path string
	// Dir is the physical path, as written.
	Dir string
	// NoSubDirConfig: IIS reads no web.config in the directories below this one (allowSubDirConfig="false").
	NoSubDirConfig bool
}

// Pool is one application pool.
type Pool struct {
	Name string
	// AutoStart is the attribute's value; nil when it is absent (which means true).
	AutoStart *bool
	// IgnoresWebConfig: the pool's applications ignore web.config files (enableConfigurationOverride="false").
	IgnoresWebConfig bool
}

// frontEnd and backEnd are below the Exchange install path on every server since 2013.
const (
	frontEnd = `\frontend\httpproxy\`
	backEnd  = `\clientaccess\`
)

// IsFrontEnd reports whether an application is part of Exchange's front end, which clients talk to.
func (a *App) IsFrontEnd() bool { return a.isIn(frontEnd) }

// isIn reports whether the application's directory is in another one. Windows takes both slashes.
func (a *App) isIn(dir string) bool {
	return strings.Contains(strings.ToLower(strings.ReplaceAll(a.Dir, "/", `\`))+`\`, dir)
}

// IsExchange reports whether an application belongs to Exchange, front end or back end.
func (a *App) IsExchange() bool {
	return a.IsFrontEnd() || a.isIn(backEnd)
}

// declaration is what configSections says about a section.
type declaration struct {
	allowDefinition string // "Everywhere" when absent
	deny            bool   // overrideModeDefault="Deny"
	noLocation      bool   // allowLocation="false"
	line            int
}

// Parse reads an applicationHost.config. name is used in errors. The error is or wraps *xmldoc.SyntaxError when the file is
// malformed; a list of sites that is kept in other files (childSource) is refused too, because it can't be judged.
func Parse(data []byte, name string) (*Server, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if doc.Root.Name != "configuration" {
		return nil, fmt.Errorf("%s: %w", name, doc.Errorf(doc.Root, "root element is <%s>, not <configuration>", doc.Root.Name))
	}
	s := &Server{file: newSource(name, doc), decl: map[string]declaration{}}
	if s.file.err == nil {
		s.file.err = s.file.misplacedDeclarations()
	}
	if s.file.err != nil {
		return nil, s.file.err
	}
	s.declarations(doc.Root.Child("configSections"), "")
	ah := doc.Root.Child("system.applicationHost")
	sites := ah.Child("sites")
	if _, ok := sites.Lookup("childSource"); ok {
		return nil, fmt.Errorf("%s: %w", name, doc.Errorf(sites, "the list of sites is kept in other files (childSource): this version can't judge it"))
	}
	for _, e := range sites.All("site") {
		s.Sites = append(s.Sites, parseSite(sites, e))
	}
	poolDefaults := ah.Find("applicationPools", "applicationPoolDefaults")
	for _, e := range ah.Find("applicationPools").All("add") {
		p := &Pool{Name: e.Attr("name")}
		if v, ok := e.Lookup("autoStart"); ok {
			b := strings.EqualFold(v, "true")
			p.AutoStart = &b
		}
		override := first("true", e.Attr("enableConfigurationOverride"), poolDefaults.Attr("enableConfigurationOverride"))
		p.IgnoresWebConfig = strings.EqualFold(override, "false")
		s.Pools = append(s.Pools, p)
	}
	return s, nil
}

// parseSite reads a <site>. Values that an element lacks come from the nearest "defaults" element above it.
func parseSite(sites, e *xmldoc.Element) *Site {
	site := &Site{Name: e.Attr("name"), ID: e.Attr("id")}
	for _, a := range e.All("application") {
		app := &App{Site: site, Path: cleanPath(a.AttrOr("path", "/"))}
		app.Pool = first("", a.Attr("applicationPool"), e.Child("applicationDefaults").Attr("applicationPool"), sites.Child("applicationDefaults").Attr("applicationPool"))
		for _, v := range a.All("virtualDirectory") {
			sub := first("true", v.Attr("allowSubDirConfig"), a.Child("virtualDirectoryDefaults").Attr("allowSubDirConfig"),
				e.Child("virtualDirectoryDefaults").Attr("allowSubDirConfig"), sites.Child("virtualDirectoryDefaults").Attr("allowSubDirConfig"))
			vd := VirtualDirectory{Path: join(app.Path, v.AttrOr("path", "/")), Dir: v.Attr("physicalPath"), NoSubDirConfig: strings.EqualFold(sub, "false")}
			if vd.Path == app.Path {
				app.Dir = vd.Dir
			}
			app.Virtual = append(app.Virtual, vd)
		}
		site.Apps = append(site.Apps, app)
	}
	for _, b := range e.Child("bindings").All("binding") {
		part := strings.Split(b.Attr("bindingInformation"), ":")
		if p := strings.ToLower(b.Attr("protocol")); (p == "http" || p == "https") && len(part) == 3 {
			site.Bindings = append(site.Bindings, Binding{p, part[0], part[1], part[2]})
		}
	}
	return site
}

// first returns the first of several values that is not empty, or else absent.
func first(absent string, values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return absent
}

// declarations reads which sections exist, and where each may stand.
func (s *Server) declarations(group *xmldoc.Element, path string) {
	if group == nil {
		return
	}
	for _, e := range group.Children {
		name := path + e.Attr("name")
		switch e.Name {
		case "section":
			line, _ := xmldoc.LineCol(s.file.doc.Data, e.Start)
			s.decl[name] = declaration{
				allowDefinition: e.AttrOr("allowDefinition", "Everywhere"),
				deny:            strings.EqualFold(e.Attr("overrideModeDefault"), "Deny"),
				noLocation:      strings.EqualFold(e.Attr("allowLocation"), "false"),
				line:            line,
			}
		case "sectionGroup":
			s.declarations(e, name+"/")
		}
	}
}

// Registers reports whether URL Rewrite's sections are registered.
func (s *Server) Registers() bool {
	_, ok := s.decl["system.webServer/rewrite/rules"]
	return ok
}

// SharedFrom reads a redirection.config and returns where the configuration of IIS is shared from; "" when it is not shared.
// Source: IIS configuration reference, configurationRedirection.
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
	for _, e := range s.file.doc.Root.Find("system.applicationHost", "applicationPools").All("add") {
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

// FrontEndSites lists the sites that have an application below FrontEnd\HttpProxy.
func (s *Server) FrontEndSites() []*Site {
	var out []*Site
	for _, site := range s.Sites {
		for _, a := range site.Apps {
			if a.IsFrontEnd() {
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
		if IsBelow(urlPath, a.Path) && (best == nil || len(a.Path) > len(best.Path)) {
			best = a
		}
	}
	return best
}

// IsBelow reports whether a URL path is another one or lies below it.
func IsBelow(path, base string) bool {
	if base == "/" || base == "" {
		return true
	}
	return strings.EqualFold(path, base) ||
		len(path) > len(base) && strings.EqualFold(path[:len(base)], base) && path[len(base)] == '/'
}

// join puts a URL path below another one.
func join(base, path string) string {
	path = strings.Trim(path, "/")
	if path == "" {
		return base
	}
	return strings.TrimSuffix(base, "/") + "/" + path
}

func cleanPath(p string) string { return "/" + strings.Trim(p, "/") }
