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
	case "configuration":
		found, err = rewriteElements(doc)
	case "system.webServer":
		found = doc.Root.All("rewrite")
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

func rewriteElements(doc *xmldoc.Document) ([]*xmldoc.Element, error) {
	var out []*xmldoc.Element
	take := func(parent *xmldoc.Element) error {
		seen := false
		for _, ws := range parent.All("system.webServer") {
			for _, rw := range ws.All("rewrite") {
				if seen {
					return doc.Errorf(rw, "a second <rewrite> for the same place")
				}
				seen = true
				out = append(out, rw)
			}
		}
		return nil
	}
	if err := take(doc.Root); err != nil {
		return nil, err
	}
	for _, l := range doc.Root.All("location") {
		if err := take(l); err != nil {
			return nil, err
		}
	}
	return out, nil
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
