package iisconfig

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// locks is what the levels above lock in one section. Source: "How to Use Locking in IIS 7.0 Configuration"; that locks add
// up and bind lower files only: tests of JexusManager, and "More config locking" (andrewbi).
type locks struct {
	k     kind
	mode  *sectionLock
	rules []elementLock
}

// sectionLock: no file below depth may have the section.
type sectionLock struct {
	depth int
	where string
}

// elementLock is one of the four list attributes, on a section or collection.
type elementLock struct {
	depth     int
	attribute bool // about attributes, not child elements
	except    bool // everything but the names
	names     []string
	where     string
}

// The attributes that lock parts of a section.
const (
	lockItem                = "lockItem"
	lockElements            = "lockElements"
	lockAllElementsExcept   = "lockAllElementsExcept"
	lockAttributes          = "lockAttributes"
	lockAllAttributesExcept = "lockAllAttributesExcept"
)

func newLocks(srv *Server, k kind) *locks {
	l := &locks{k: k}
	if d, ok := srv.decl[k.full]; ok && d.deny {
		l.mode = &sectionLock{0, fmt.Sprintf("%s:%d declares it with overrideModeDefault=\"Deny\"", srv.file.name, d.line)}
	}
	return l
}

// enter decides whether a file may have the section here at all, and notes what its <location> locks or unlocks.
func (l *locks) enter(p *Place, k kind, x *contribution) *Invalid {
	d, declared := p.m.srv.decl[k.full]
	if !declared && k.path[1] == "rewrite" {
		return x.src.errorf(x.outer, HResultInvalidData, "section %s is not registered in %s", k.name, p.m.srv.file.name)
	}
	if declared {
		if why := d.forbids(x); why != "" {
			return x.src.errorf(x.outer, HResultLocked, "section %s is not allowed here: %s in %s:%d", k.name, why, p.m.srv.file.name, d.line)
		}
	}
	if l.mode != nil && x.depth > l.mode.depth {
		return x.src.errorf(x.outer, HResultLocked, "section %s is locked: %s", k.name, l.mode.where)
	}
	if !x.in.location {
		return nil
	}
	line := x.src.errorf(x.in.el, 0, "").Line
	switch locationMode(x.in.el) {
	case "deny":
		l.mode = &sectionLock{x.depth, fmt.Sprintf("%s:%d, <location> with overrideMode=\"Deny\" or allowOverride=\"false\"", x.src.name, line)}
	case "allow":
		if l.mode != nil && l.mode.depth != x.depth {
			return x.src.errorf(x.in.el, HResultUnknown, "<location> unlocks section %s, which is locked elsewhere: %s", k.name, l.mode.where)
		}
		l.mode = nil
	}
	return nil
}

func locationMode(e *xmldoc.Element) string {
	mode, old := e.Attr("overrideMode"), e.Attr("allowOverride")
	switch {
	case strings.EqualFold(mode, "Deny"), strings.EqualFold(old, "false"):
		return "deny"
	case strings.EqualFold(mode, "Allow"), strings.EqualFold(old, "true"):
		return "allow"
	}
	return ""
}

// forbids says why a declaration does not allow a section at a place; "" when it does.
func (d declaration) forbids(x *contribution) string {
	if d.noLocation && x.in.location {
		return `allowLocation="false"`
	}
	if x.depth == 0 {
		return ""
	}
	switch strings.ToLower(d.allowDefinition) {
	case "everywhere":
		return ""
	case "machinetoapplication":
		if x.level.app {
			return ""
		}
	}
	return fmt.Sprintf("allowDefinition=%q", d.allowDefinition)
}

// attributes refuses the attributes of a section or collection element that a level above locks.
func (l *locks) attributes(x contribution) *Invalid {
	for _, a := range x.el.Attrs {
		if strings.HasPrefix(a.Name, "lock") || a.Name == "configSource" || strings.HasPrefix(a.Name, "xmlns") {
			continue
		}
		if r := l.find(x.depth, true, a.Name); r != nil {
			return invalidAt(x.name, x.doc, x.el, HResultLocked, "attribute %s of <%s> is locked: %s", a.Name, x.el.Name, r.where)
		}
	}
	return nil
}

// element refuses a child element that a level above locks.
func (l *locks) element(x contribution, e *xmldoc.Element) *Invalid {
	if r := l.find(x.depth, false, e.Name); r != nil {
		return invalidAt(x.name, x.doc, e, HResultLocked, "<%s> in <%s> is locked: %s", e.Name, x.el.Name, r.where)
	}
	return nil
}

func (l *locks) find(depth int, attribute bool, name string) *elementLock {
	for i, r := range l.rules {
		if r.attribute != attribute || r.depth >= depth {
			continue
		}
		listed := slices.ContainsFunc(r.names, func(n string) bool { return strings.EqualFold(n, name) })
		if listed != r.except || !r.except && slices.Contains(r.names, "*") {
			return &l.rules[i]
		}
	}
	return nil
}

// leave notes what an element locks for the levels below. A lock on an attribute that the schema lacks is itself an error.
func (l *locks) leave(x contribution) *Invalid {
	where := fmt.Sprintf("%s:%d", x.name, invalidAt(x.name, x.doc, x.el, 0, "").Line)
	for _, name := range []string{lockElements, lockAllElementsExcept, lockAttributes, lockAllAttributesExcept} {
		v, ok := x.el.Lookup(name)
		if !ok {
			continue
		}
		r := elementLock{depth: x.depth, attribute: name == lockAttributes || name == lockAllAttributesExcept,
			except: name == lockAllElementsExcept || name == lockAllAttributesExcept, where: fmt.Sprintf("%s, %s=%q", where, name, v)}
		for _, n := range strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ';' || c == ' ' }) {
			if r.attribute && n != "*" && !slices.ContainsFunc(l.k.attrs, func(a string) bool { return strings.EqualFold(a, n) }) {
				return invalidAt(x.name, x.doc, x.el, HResultInvalidData, "%s names %q, which is no attribute of <%s>", name, n, x.el.Name)
			}
			r.names = append(r.names, n)
		}
		l.rules = append(l.rules, r)
	}
	if strings.EqualFold(x.el.Attr(lockItem), "true") && (l.mode == nil || x.depth < l.mode.depth) {
		l.mode = &sectionLock{x.depth, where + ", lockItem=\"true\""}
	}
	return nil
}
