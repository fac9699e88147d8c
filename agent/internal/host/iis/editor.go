// Package iis edits web.config files as byte splices: what it puts in is an element with its own line break and
// indentation, what it takes out is exactly that, and every other byte stays. It works on bytes and knows no server;
// where a file lies, and whether the result is one IIS accepts, is decided by its caller.
package iis

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Fragment is what one url_rewrite action puts into one configuration file.
type Fragment struct {
	// Inbound goes into <rules>, Outbound into <outboundRules>: IIS's own XML. Either may be empty.
	Inbound, Outbound string
	// Scope is where in the file it goes.
	Scope Scope
	// Root is the section whose element is the file's root ("rules", "outboundRules"): a file that configSource names. "" is a
	// web.config.
	Root string
}

// Scope is a part of a web.config that applies to the file's own level.
type Scope int

// The scopes.
const (
	// Outside is outside of every <location>: applications below inherit it.
	Outside Scope = iota
	// Inside is the path-less <location inheritInChildApplications="false">: applications below, which may share the
	// directory and so read the same file again, do not inherit it.
	Inside
	// Location is a path-less <location> that applications below inherit.
	Location
)

func (s Scope) String() string {
	switch s {
	case Inside:
		return `<location inheritInChildApplications="false">`
	case Location:
		return `<location path=".">`
	case Outside:
	}
	return "<configuration>"
}

// matches reports whether a <location> is the scope's.
func (s Scope) matches(e *xmldoc.Element) bool {
	p := e.Attr("path")
	closed := strings.EqualFold(e.Attr("inheritInChildApplications"), "false")
	return e.Name == "location" && (p == "" || p == ".") && closed == (s == Inside)
}

// SectionAt finds the scope in which a web.config has a section for its own level, and the file that the section's
// configSource names; found is false when it has none.
func SectionAt(doc *xmldoc.Document, section string) (in Scope, source string, line int, found bool) {
	for _, s := range []Scope{Outside, Inside, Location} {
		scopes := []*xmldoc.Element{doc.Root}
		if s != Outside {
			scopes = scopes[:0]
			for _, l := range doc.Root.All("location") {
				if s.matches(l) {
					scopes = append(scopes, l)
				}
			}
		}
		for _, sc := range scopes {
			for _, ws := range sc.All("system.webServer") {
				for _, rw := range ws.All("rewrite") {
					if e := rw.Child(section); e != nil {
						line, _ := xmldoc.LineCol(doc.Data, e.Start)
						return s, e.Attr("configSource"), line, true
					}
				}
			}
		}
	}
	return Outside, "", 0, false
}

// piece is one element to put in: where, and its text.
type piece struct {
	section string // "rules", "outboundRules", or "outboundRules/preConditions"
	text    []byte
	el      *xmldoc.Element // in the fragment's own document
	doc     *xmldoc.Document
}

// path leads from a scope to the element that the piece goes into.
func (p piece) path(root string) []string {
	parts := strings.Split(p.section, "/")
	if root != "" {
		return parts[1:] // the section is the root
	}
	return append([]string{"system.webServer", "rewrite"}, parts...)
}

func (f Fragment) pieces() ([]piece, error) {
	var out []piece
	add := func(section string, doc *xmldoc.Document, el *xmldoc.Element) {
		out = append(out, piece{section, doc.Bytes(el), el, doc})
	}
	for _, part := range []struct{ section, xml string }{{"rules", f.Inbound}, {"outboundRules", f.Outbound}} {
		doc, err := xmldoc.ParseFragment([]byte(part.xml))
		if err != nil {
			return nil, fmt.Errorf("iis: fragment for <%s>: %w", part.section, err)
		}
		for _, el := range doc.Root.Children {
			if el.Name == "preConditions" {
				for _, pc := range el.Children {
					add(part.section+"/preConditions", doc, pc)
				}
				continue
			}
			add(part.section, doc, el)
		}
	}
	return out, nil
}

// Render puts fragments into a file. Our rules come before those that are there (after leading <clear/> and <remove>):
// an earlier rule with stopProcessing would let a request past them. Missing parents are made.
func Render(base []byte, frags []Fragment) ([]byte, error) {
	cur := base
	for i := len(frags) - 1; i >= 0; i-- {
		ps, err := frags[i].pieces()
		if err != nil {
			return nil, err
		}
		for j := len(ps) - 1; j >= 0; j-- {
			if cur, err = insert(cur, ps[j], frags[i]); err != nil {
				return nil, err
			}
		}
	}
	return cur, nil
}

// step is one level of the path to a section.
type step struct {
	name string
	open string // start tag, when it has to be made
}

func steps(p piece, f Fragment) []step {
	var out []step
	if f.Root == "" && f.Scope == Inside {
		out = append(out, step{"location", `<location path="." inheritInChildApplications="false">`})
	}
	if f.Root == "" && f.Scope == Location {
		out = append(out, step{"location", `<location path=".">`})
	}
	for _, n := range p.path(f.Root) {
		out = append(out, step{n, "<" + n + ">"})
	}
	return out
}

// descend follows the steps as far as they exist.
func descend(root *xmldoc.Element, ss []step, scope Scope) (at *xmldoc.Element, missing []step) {
	at = root
	for i, s := range ss {
		var next *xmldoc.Element
		for _, c := range at.All(s.name) {
			if s.name == "location" && !scope.matches(c) {
				continue
			}
			if next == nil || len(ss) > i+1 && next.Child(ss[i+1].name) == nil && c.Child(ss[i+1].name) != nil {
				next = c
			}
		}
		if next == nil {
			return at, ss[i:]
		}
		at = next
	}
	return at, nil
}

func insert(data []byte, p piece, f Fragment) ([]byte, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return nil, err
	}
	st := styleOf(data, doc)
	if f.Root != "" && doc.Root.Name != f.Root {
		return nil, fmt.Errorf("iis: root element is <%s>, not <%s>", doc.Root.Name, f.Root)
	}
	at, missing := descend(doc.Root, steps(p, f), f.Scope)
	indent := st.indentOf(data, at) + st.unit
	var text bytes.Buffer
	for _, m := range missing {
		text.WriteString(st.eol + indent + m.open)
		indent += st.unit
	}
	text.WriteString(st.eol)
	text.Write(reindent(p.text, indent, st.eol))
	for i := len(missing) - 1; i >= 0; i-- {
		indent = strings.TrimSuffix(indent, st.unit)
		text.WriteString(st.eol + indent + "</" + missing[i].name + ">")
	}
	return splice(data, at, text.Bytes(), len(missing) == 0 && p.el.Name == "rule", st), nil
}

// splice puts text into an element: first (after leading clear and remove) or last.
func splice(data []byte, at *xmldoc.Element, text []byte, first bool, st style) []byte {
	closeLine := []byte(st.eol + st.indentOf(data, at))
	if at.SelfClosing {
		tag := bytes.TrimRight(data[at.Start:at.OpenEnd-2], " \t\r\n")
		return concat(data[:at.Start], tag, []byte(">"), text, closeLine, []byte("</"+at.Name+">"), data[at.End:])
	}
	off := at.OpenEnd
	if first {
		for _, c := range at.Children {
			if c.Name != "clear" && c.Name != "remove" {
				break
			}
			off = c.End
		}
	} else {
		inner := data[at.OpenEnd:at.CloseStart]
		off = at.OpenEnd + len(bytes.TrimRight(inner, " \t\r\n"))
	}
	rest := data[off:at.CloseStart]
	if len(bytes.TrimSpace(rest)) == 0 && !bytes.ContainsRune(rest, '\n') {
		text = concat(text, closeLine)
	}
	return concat(data[:off], text, data[off:])
}

func concat(parts ...[]byte) []byte {
	return bytes.Join(parts, nil)
}

// style is how a file is written.
type style struct {
	eol, unit string
}

func styleOf(data []byte, doc *xmldoc.Document) style {
	st := style{eol: "\n", unit: "  "}
	if i := bytes.IndexByte(data, '\n'); i > 0 && data[i-1] == '\r' {
		st.eol = "\r\n"
	}
	if len(doc.Root.Children) > 0 {
		rootIndent := st.indentOf(data, doc.Root)
		if in := st.indentOf(data, doc.Root.Children[0]); len(in) > len(rootIndent) && strings.HasPrefix(in, rootIndent) {
			st.unit = in[len(rootIndent):]
		}
	}
	return st
}

// indentOf is the white space before an element that starts its line; else "".
func (st style) indentOf(data []byte, e *xmldoc.Element) string {
	line := data[bytes.LastIndexByte(data[:e.Start], '\n')+1 : e.Start]
	line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	if len(bytes.Trim(line, " \t")) > 0 {
		line = line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	}
	return string(line)
}

// reindent gives an element's lines the indentation and line ends of the file it goes into.
func reindent(text []byte, indent, eol string) []byte {
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	common := -1
	for _, l := range lines[1:] {
		if t := strings.TrimLeft(l, " \t"); t != "" && (common < 0 || len(l)-len(t) < common) {
			common = len(l) - len(t)
		}
	}
	for i, l := range lines {
		if i > 0 {
			l = l[min(max(common, 0), len(l)):]
		}
		lines[i] = indent + l
	}
	return []byte(strings.Join(lines, eol))
}

// Strip takes fragments out of a file and gives it back as it was before Render, wherever in the file they stand now and
// whoever changed the rest. orig is the file before the first Render; it says which parents were there before. Elements
// are found by name, so that ones altered by somebody else go too.
func Strip(cur, orig []byte, frags []Fragment) ([]byte, error) {
	var before *xmldoc.Document
	if orig != nil {
		var err error
		if before, err = xmldoc.Parse(orig); err != nil {
			return nil, fmt.Errorf("iis: original: %w", err)
		}
	}
	for _, f := range frags {
		ps, err := f.pieces()
		if err != nil {
			return nil, err
		}
		for _, p := range ps {
			if cur, err = remove(cur, before, p, f.Root); err != nil {
				return nil, err
			}
		}
	}
	return cur, nil
}

// find gives every element that a piece could be, in any scope of the file. An element that the original already had
// under that name was never ours.
func find(root *xmldoc.Element, p piece, fileRoot string) []*xmldoc.Element {
	var out []*xmldoc.Element
	for _, scope := range append([]*xmldoc.Element{root}, root.All("location")...) {
		level := []*xmldoc.Element{scope}
		for _, n := range p.path(fileRoot) {
			var next []*xmldoc.Element
			for _, e := range level {
				next = append(next, e.All(n)...)
			}
			level = next
		}
		for _, e := range level {
			for _, c := range e.All(p.el.Name) {
				if strings.EqualFold(c.Attr("name"), p.el.Attr("name")) {
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func remove(cur []byte, before *xmldoc.Document, p piece, root string) ([]byte, error) {
	for {
		doc, err := xmldoc.Parse(cur)
		if err != nil {
			return nil, err
		}
		found := find(doc.Root, p, root)
		if len(found) == 0 {
			return cur, nil
		}
		cur = cut(doc, found[0], before)
	}
}

// cut removes an element with its line, and its parents as far up as they are empty then and were not in the original.
func cut(doc *xmldoc.Document, e *xmldoc.Element, before *xmldoc.Document) []byte {
	for e.Parent != nil && len(e.Parent.Children) == 1 && !e.Parent.HasText && !hasComment(doc.Data, e) {
		parent := e.Parent
		old := counterpart(before, parent)
		if old == nil {
			// Without the original, empty sections are taken to be ours: they mean nothing either way. A <location> can mean
			// something (a lock) and stays.
			if before == nil && parent.Name == "location" || parent.Parent == nil {
				break
			}
			e = parent
			continue
		}
		if len(old.Children) == 0 && !old.HasText {
			// The parent was there and empty: give back exactly how its emptiness was written.
			return concat(doc.Data[:parent.Start], before.Bytes(old), doc.Data[parent.End:])
		}
		break
	}
	start := e.Start
	for start > 0 && (doc.Data[start-1] == ' ' || doc.Data[start-1] == '\t') {
		start--
	}
	switch {
	case start > 0 && doc.Data[start-1] == '\n':
		start--
		if start > 0 && doc.Data[start-1] == '\r' {
			start--
		}
	default:
		start = e.Start
	}
	end := e.End
	if start == e.Start { // it shared its line: somebody reformatted the file
		return concat(doc.Data[:start], doc.Data[end:])
	}
	if old := counterpart(before, e.Parent); old != nil && !old.SelfClosing {
		// Our closing line break, made because the parent's end tag stood on the line of its last child.
		tail := doc.Data[end:e.Parent.CloseStart]
		inner := before.Data[old.OpenEnd:old.CloseStart]
		white := inner[len(bytes.TrimRight(inner, " \t\r\n")):]
		if len(bytes.TrimSpace(tail)) == 0 && !bytes.ContainsRune(white, '\n') && len(tail) >= len(white) {
			end = e.Parent.CloseStart - len(white)
		}
	}
	return concat(doc.Data[:start], doc.Data[end:])
}

// hasComment says whether a comment stands beside an only child: then its parent is not empty without it.
func hasComment(data []byte, e *xmldoc.Element) bool {
	p := e.Parent
	return len(bytes.TrimSpace(data[p.OpenEnd:e.Start])) > 0 || len(bytes.TrimSpace(data[e.End:p.CloseStart])) > 0
}

// counterpart finds the element of the original that stands at the same place by names (and, for locations, by path).
func counterpart(before *xmldoc.Document, e *xmldoc.Element) *xmldoc.Element {
	if before == nil || e == nil {
		return nil
	}
	if e.Parent == nil {
		return before.Root
	}
	parent := counterpart(before, e.Parent)
	nth := 0
	for _, c := range e.Parent.All(e.Name) {
		if c == e {
			break
		}
		if sameLocation(c, e) {
			nth++
		}
	}
	for _, c := range parent.All(e.Name) {
		if sameLocation(c, e) {
			if nth == 0 {
				return c
			}
			nth--
		}
	}
	return nil
}

func sameLocation(a, b *xmldoc.Element) bool {
	return a.Attr("path") == b.Attr("path") && a.Attr("inheritInChildApplications") == b.Attr("inheritInChildApplications")
}
