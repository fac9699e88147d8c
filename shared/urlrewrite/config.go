package urlrewrite

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Kind is which file a configuration stands in: some sections are allowed in one only.
type Kind int

// The kinds.
const (
	ApplicationHost Kind = iota
	WebConfig
)

// ParseConfig reads a whole configuration file or a bare <rewrite> fragment, and gives the rewrite sections in it: in a whole
// file that of the file itself, then those of its <location> elements. Errors are or wrap *xmldoc.SyntaxError, with line and
// column. What is fine alone may still collide with another level: that is Merge's matter.
func ParseConfig(data []byte, kind Kind) ([]*Section, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return nil, err
	}
	var found []*xmldoc.Element
	switch doc.Root.Name {
	case "rewrite":
		found = []*xmldoc.Element{doc.Root}
		err = sectionsOnce(doc, found)
	case "configuration":
		found, err = rewriteElements(doc)
	case "system.webServer":
		found = doc.Root.All("rewrite")
		err = sectionsOnce(doc, found)
	default:
		return nil, doc.Errorf(doc.Root, "<%s> is neither <configuration> nor <rewrite>", doc.Root.Name)
	}
	if err != nil {
		return nil, err
	}
	var out []*Section
	for _, e := range found {
		if err := locked(doc, e, kind); err != nil {
			return nil, err
		}
		s, err := ParseSection(doc, e, "")
		if err != nil {
			return nil, err
		}
		if _, err := Merge(s); err != nil {
			return nil, at(doc, e, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// at gives an error that has no place of its own that of an element.
func at(doc *xmldoc.Document, e *xmldoc.Element, err error) error {
	var ce *ConfigError
	if errors.As(err, &ce) && ce.Where == "" {
		return doc.Errorf(e, "%s", ce.Msg)
	}
	return err
}

// rewriteElements finds the <rewrite> elements of a file. A section may stand once for each path; the groups around it may
// repeat. The file itself and a <location> without a path, or with the path ".", are the same path. Source: "Deep Dive into
// IIS Configuration", location tags; "How to Use Locking in IIS Configuration".
func rewriteElements(doc *xmldoc.Document) ([]*xmldoc.Element, error) {
	byPath := map[string][]*xmldoc.Element{}
	var all []*xmldoc.Element
	for _, scope := range append([]*xmldoc.Element{doc.Root}, doc.Root.All("location")...) {
		path := ""
		if scope != doc.Root && scope.Attr("path") != "." {
			path = strings.ToLower(scope.Attr("path"))
		}
		for _, ws := range scope.All("system.webServer") {
			byPath[path] = append(byPath[path], ws.All("rewrite")...)
			all = append(all, ws.All("rewrite")...)
		}
	}
	for _, same := range byPath {
		if err := sectionsOnce(doc, same); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// sectionsOnce refuses a section that several <rewrite> elements for one path have.
func sectionsOnce(doc *xmldoc.Document, rewrites []*xmldoc.Element) error {
	seen := map[string]*xmldoc.Element{}
	for _, rw := range rewrites {
		for _, c := range rw.Children {
			if f := seen[c.Name]; f != nil {
				line, _ := xmldoc.LineCol(doc.Data, f.Start)
				return doc.Errorf(c, "section <%s> is defined a second time for the same path (first in line %d): IIS answers 500.19, 0x800700b7", c.Name, line)
			}
			seen[c.Name] = c
		}
	}
	return nil
}

// locked refuses the sections that URL Rewrite's setup locks out of web.config (overrideModeDefault="Deny" and
// allowDefinition="AppHostOnly" in applicationHost.config).
func locked(doc *xmldoc.Document, e *xmldoc.Element, kind Kind) error {
	if kind != WebConfig {
		return nil
	}
	for _, name := range []string{"globalRules", "allowedServerVariables"} {
		if c := e.Child(name); c != nil {
			return doc.Errorf(c, "<%s> is locked in web.config: it belongs into applicationHost.config", name)
		}
	}
	return nil
}

// KindOf says which kind of file a name is: web.config by its name, everything else applicationHost.config.
func KindOf(name string) Kind {
	if strings.EqualFold(name[strings.LastIndexAny(name, `/\`)+1:], "web.config") {
		return WebConfig
	}
	return ApplicationHost
}

// ParseKind reads a kind's file name.
func ParseKind(s string) (Kind, error) {
	switch strings.ToLower(s) {
	case "applicationhost.config":
		return ApplicationHost, nil
	case "web.config":
		return WebConfig, nil
	}
	return 0, fmt.Errorf("%q is neither applicationHost.config nor web.config", s)
}

// Inbound is one inbound rule of a mitigation, alone.
type Inbound struct {
	Name string
	Set  *Ruleset
}

// EachInbound reads the inbound rules of a mitigation, each as a set of its own, so that one can be told from another.
func EachInbound(fragment []byte) ([]Inbound, error) {
	s, names, err := ParseFragment(fragment, false)
	if err != nil {
		return nil, err
	}
	var out []Inbound
	for _, name := range names {
		alone := &Section{}
		for _, o := range s.inbound.ops {
			if strings.EqualFold(o.name, name) {
				alone.inbound.ops = append(alone.inbound.ops, o)
			}
		}
		rs, err := Merge(alone)
		if err != nil {
			return nil, err
		}
		out = append(out, Inbound{name, rs})
	}
	return out, nil
}
