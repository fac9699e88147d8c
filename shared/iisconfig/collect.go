package iisconfig

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// collector works off the elements of one collection.
type collector struct {
	k     kind
	out   Section
	locks *locks          // of a collection inside a section
	names map[string]bool // keys of out.Items
	done  int             // elements worked off
}

func newCollector(k kind) *collector {
	return &collector{k: k, out: Section{Name: k.name}, locks: &locks{k: k}, names: map[string]bool{}}
}

// key is an element's name as it is compared.
func (c *collector) key(name string) string {
	if c.k.caseSensitive {
		return name
	}
	return fold(name)
}

func (c *collector) item(x contribution, e *xmldoc.Element) Item {
	return Item{Name: e.Attr(c.k.key), Element: e, Doc: x.doc, Source: Source{x.name, x.file.line(e.Start)}, Level: x.level.path, Base: x.base,
		depth: x.depth, locked: strings.EqualFold(e.Attr("lockItem"), "true")}
}

// add works off one child element: an element of the collection, <remove> or <clear/>.
func (c *collector) add(x contribution, e *xmldoc.Element) *Invalid {
	if c.done++; c.done > maxElements {
		return &Invalid{File: x.name, Line: x.file.line(e.Start), Unsure: true,
			Msg: fmt.Sprintf("more than %d elements of <%s> take part here: this version reads no more", maxElements, c.k.name)}
	}
	it := c.item(x, e)
	refuse := func(hresult uint32, format string, args ...any) *Invalid {
		return invalidAt(x.name, x.doc, e, hresult, format, args...)
	}
	drop := func(clear bool, goes func(Item) bool) *Invalid {
		for _, old := range c.out.Items {
			if old.locked && old.depth < x.depth && goes(old) {
				return refuse(HResultLocked, "%q of %s is locked (lockItem) and can't be removed here", old.Name, old.Source)
			}
		}
		kept := c.out.Items[:0]
		for _, old := range c.out.Items {
			if !goes(old) {
				kept = append(kept, old)
				continue
			}
			delete(c.names, c.key(old.Name))
			c.out.Removed = append(c.out.Removed, Removal{Item: old, By: it.Source, Clear: clear, Level: x.level.path})
		}
		c.out.Items = kept
		return nil
	}
	switch e.Name {
	case "clear":
		return drop(true, func(Item) bool { return true })
	case "remove":
		if it.Name == "" {
			return refuse(HResultInvalidData, "<remove> without %s", c.k.key)
		}
		key := c.key(it.Name)
		if !c.names[key] {
			return nil
		}
		return drop(false, func(o Item) bool { return c.key(o.Name) == key })
	case c.k.element:
		if it.Name == "" {
			return refuse(HResultInvalidData, "<%s> without %s", e.Name, c.k.key)
		}
		key := c.key(it.Name)
		if c.names[key] {
			return refuse(HResultDuplicate, "%s %q is defined a second time; the first is at %s", c.k.element, it.Name, c.first(key))
		}
		if at, hresult, why := c.k.violates(e); why != "" {
			return invalidAt(x.name, x.doc, at, hresult, "%s %q: %s", c.k.element, it.Name, why)
		}
		c.names[key] = true
		c.out.Items = append(c.out.Items, it)
	default:
		if len(c.k.path) == 0 || c.k.path[1] == "rewrite" {
			return refuse(HResultInvalidData, "<%s> is no element of <%s>", e.Name, c.k.name)
		}
		c.out.Notes = append(c.out.Notes, fmt.Sprintf("%s: <%s> in <%s> is not known to this version", it.Source, e.Name, c.k.name))
	}
	return nil
}

// first returns where the element of a key is.
func (c *collector) first(key string) Source {
	for _, o := range c.out.Items {
		if c.key(o.Name) == key {
			return o.Source
		}
	}
	return Source{}
}
