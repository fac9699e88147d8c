package vector

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Bounds on the configuration of one vector. A URL has few levels; a file with more rewrite sections than this is not one that IIS runs.
const (
	maxLevels = 64
	maxPlaces = 1024
)

// configError is a configuration that IIS refuses: nothing at that place is served.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

// place is one rewrite section and the URL path it is for.
type place struct {
	path    string
	depth   int // of the path; the section of a server's own level comes before all others
	where   string
	section *urlrewrite.Section
	// beforeCache is the section's rewriteBeforeCache; nil where it does not set it.
	beforeCache *bool
}

// configuration is what a vector says about all levels, parent before child.
type configuration struct {
	places []place
	scope  string // the URL path that the vector is about
}

// base is the URL path of a scope: "server", "site" or a path.
func base(scope string) string {
	if strings.HasPrefix(scope, "/") {
		return scope
	}
	return "/"
}

// read reads a vector's configuration. The error is a *configError where IIS refuses the configuration; other errors are the vector's.
func read(v Vector, config []byte) (*configuration, error) {
	kind := urlrewrite.ApplicationHost
	if strings.EqualFold(v.File, "web.config") {
		kind = urlrewrite.WebConfig
	}
	levels := v.Levels
	switch {
	case levels != nil:
	case v.ConfigXML != nil:
		levels = []Level{{v.Scope, *v.ConfigXML}}
	case config != nil:
		levels = []Level{{v.Scope, string(config)}}
	default:
		return nil, errors.New("the vector has no configuration, and none was given")
	}
	if len(levels) > maxLevels {
		return nil, fmt.Errorf("the vector has %d levels, limit %d", len(levels), maxLevels)
	}
	c := &configuration{scope: base(v.Scope)}
	for i, l := range levels {
		where := ""
		if len(levels) > 1 {
			where = fmt.Sprintf("level %d (%s)", i+1, l.Scope)
		}
		if err := c.add(l, kind, i == 0, where); err != nil {
			return nil, err
		}
	}
	// Within a depth the order of the files stays: a <location> of a file above comes before the level's own file.
	sort.SliceStable(c.places, func(i, j int) bool { return c.places[i].depth < c.places[j].depth })
	return c, nil
}

// add reads one level.
func (c *configuration) add(l Level, kind urlrewrite.Kind, first bool, where string) error {
	prefix := ""
	if where != "" {
		prefix = where + ": "
	}
	refuse := func(err error) error { return &configError{fmt.Errorf("%s%w", prefix, err)} }
	doc, err := xmldoc.Parse([]byte(l.ConfigXML))
	if err != nil {
		return refuse(err)
	}
	found, err := elements(doc, base(l.Scope), kind)
	if err != nil {
		return refuse(err)
	}
	if len(c.places)+len(found) > maxPlaces {
		return fmt.Errorf("the vector has more than %d rewrite sections", maxPlaces)
	}
	site, seen := "", map[string]bool{}
	for _, f := range found {
		if f.site != "" && site != "" && !strings.EqualFold(f.site, site) {
			return fmt.Errorf("%s<location> elements of two sites, %q and %q, and a vector asks about one", prefix, site, f.site)
		}
		if f.site != "" {
			site = f.site
		}
		for _, sec := range f.rewrite.Children {
			key := strings.ToLower(strings.Join([]string{f.site, f.path, sec.Name}, "\n"))
			if seen[key] {
				return refuse(doc.Errorf(sec, "a second <%s> for the same place", sec.Name))
			}
			seen[key] = true
		}
		if err := locked(doc, f.rewrite, kind); err != nil {
			return refuse(err)
		}
		s, err := urlrewrite.ParseSection(doc, f.rewrite, where)
		if err != nil {
			return &configError{err}
		}
		line, col := xmldoc.LineCol(doc.Data, f.rewrite.Start)
		p := place{path: f.path, depth: strings.Count(strings.TrimSuffix(f.path, "/"), "/"), section: s,
			where: fmt.Sprintf("%sline %d, column %d", prefix, line, col)}
		if first && kind == urlrewrite.ApplicationHost && !f.location {
			p.depth = 0
		}
		if o := f.rewrite.Child("outboundRules"); o != nil {
			if set, ok := o.Lookup("rewriteBeforeCache"); ok {
				before := strings.EqualFold(set, "true")
				p.beforeCache = &before
			}
		}
		c.places = append(c.places, p)
	}
	return nil
}

// element is a <rewrite> element and the path it is for.
type element struct {
	rewrite  *xmldoc.Element
	path     string
	site     string // the site that a <location> of applicationHost.config names
	location bool
}

// elements finds the <rewrite> elements of a whole file or a fragment. A <location> is relative to its file's level; in
// applicationHost.config its path begins with the site's name. Source: Microsoft, "Deep Dive into IIS Configuration".
func elements(doc *xmldoc.Document, own string, kind urlrewrite.Kind) ([]element, error) {
	var out []element
	take := func(parent *xmldoc.Element, e element) {
		for _, ws := range parent.All("system.webServer") {
			for _, rw := range ws.All("rewrite") {
				e.rewrite = rw
				out = append(out, e)
			}
		}
	}
	switch doc.Root.Name {
	case "rewrite":
		return []element{{rewrite: doc.Root, path: own}}, nil
	case "system.webServer":
		for _, rw := range doc.Root.All("rewrite") {
			out = append(out, element{rewrite: rw, path: own})
		}
		return out, nil
	case "configuration":
	default:
		return nil, doc.Errorf(doc.Root, "<%s> is neither <configuration> nor <rewrite>", doc.Root.Name)
	}
	take(doc.Root, element{path: own})
	for _, l := range doc.Root.All("location") {
		e := element{path: own, location: true}
		p := strings.Trim(l.Attr("path"), "/")
		switch {
		case p == "" || p == ".":
		case kind == urlrewrite.ApplicationHost:
			e.site, p, _ = strings.Cut(p, "/")
			e.path = "/" + p
		default:
			e.path = strings.TrimSuffix(own, "/") + "/" + p
		}
		take(l, e)
	}
	return out, nil
}

// locked refuses what URL Rewrite's setup locks out of web.config.
func locked(doc *xmldoc.Document, rewrite *xmldoc.Element, kind urlrewrite.Kind) error {
	for _, name := range []string{"globalRules", "allowedServerVariables"} {
		if e := rewrite.Child(name); e != nil && kind == urlrewrite.WebConfig {
			return doc.Errorf(e, "<%s> is locked in web.config: it belongs into applicationHost.config", name)
		}
	}
	return nil
}

// above gives the places that a path belongs to, parent before child.
func (c *configuration) above(path string) []place {
	var out []place
	for _, p := range c.places {
		if urlrewrite.Within(path, p.path) {
			out = append(out, p)
		}
	}
	return out
}

// at composes the configuration of a path. The error is a *configError.
func (c *configuration) at(path string) (urlrewrite.Place, error) {
	places := c.above(path)
	var sections []*urlrewrite.Section
	for _, p := range places {
		sections = append(sections, p.section)
	}
	rs, err := urlrewrite.Merge(sections...)
	if err != nil {
		var ce *urlrewrite.ConfigError
		if errors.As(err, &ce) && ce.Where == "" && len(places) > 0 {
			err = &urlrewrite.ConfigError{Where: places[len(places)-1].where, Msg: ce.Msg}
		}
		return urlrewrite.Place{}, &configError{err}
	}
	definedAt := map[string]string{}
	for _, p := range places {
		for _, name := range p.section.InboundNames() {
			definedAt[strings.ToLower(name)] = p.path
		}
	}
	return urlrewrite.Place{Rules: rs, DefinedAt: func(rule string) string { return definedAt[strings.ToLower(rule)] }}, nil
}

// check composes the configuration of every place. The error is a *configError.
func (c *configuration) check() error {
	done := map[string]bool{}
	for _, p := range c.places {
		if key := strings.ToLower(p.path); !done[key] {
			done[key] = true
			if _, err := c.at(p.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// beforeCache says whether outbound rules run before the output cache at a path.
func (c *configuration) beforeCache(path string) bool {
	before := false
	for _, p := range c.above(path) {
		if p.beforeCache != nil {
			before = *p.beforeCache
		}
	}
	return before
}
