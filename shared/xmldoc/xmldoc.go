// Package xmldoc reads an XML document into elements that know the byte offsets they came from, so that a reader can
// name line and column and an editor can splice bytes without touching the rest. It never writes XML.
//
// It is stricter than encoding/xml, as IIS is: one root, matching tags, no duplicate attributes, no DOCTYPE, UTF-8 only.
package xmldoc

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Bounds on a document. A real applicationHost.config of an Exchange server has 180 KB and 5,000 elements.
const (
	MaxBytes    = 4 << 20
	MaxElements = 100_000
	MaxDepth    = 64
)

// Attr is one attribute, with its value unescaped.
type Attr struct {
	Name, Value string
}

// Element is one element and the bytes it covers.
type Element struct {
	// Name as written, with any prefix.
	Name string
	// Attrs in document order.
	Attrs []Attr
	// Children elements in document order.
	Children []*Element
	// Parent is nil for the root.
	Parent *Element
	// Start is the offset of '<'; OpenEnd is the offset after the start tag's '>'.
	Start, OpenEnd int
	// CloseStart is the offset of the end tag's '<'; End the offset after the element. For a self-closing element
	// CloseStart equals OpenEnd.
	CloseStart, End int
	// SelfClosing is true for <a/>.
	SelfClosing bool
	// HasText is true when character data other than white space, or CDATA, stands directly inside.
	HasText bool
}

// Document is a parsed document.
type Document struct {
	// Data is what was parsed.
	Data []byte
	// Root is the document element.
	Root *Element

	once   sync.Once // makes breaks
	breaks []int     // offsets of the line breaks
}

// SyntaxError says where a document is malformed.
type SyntaxError struct {
	Line, Col int
	Msg       string
	// Unsupported: the document may be well-formed; it goes past what this package reads (encoding, size, depth).
	Unsupported bool
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Col, e.Msg)
}

var errEncoding = errors.New("encoding is not supported")

var bom = []byte("\xef\xbb\xbf")

// Parse reads a whole document. The error is a *SyntaxError.
func Parse(data []byte) (*Document, error) {
	return parse(data, false)
}

// ParseFragment reads a sequence of elements, as a mitigation document carries them; the returned root is nameless and
// covers everything.
func ParseFragment(data []byte) (*Document, error) {
	return parse(data, true)
}

func parse(data []byte, fragment bool) (*Document, error) {
	if len(data) > MaxBytes {
		return nil, &SyntaxError{Line: 1, Col: 1, Msg: fmt.Sprintf("larger than %d bytes", MaxBytes), Unsupported: true}
	}
	fail := func(off int, format string, args ...any) error {
		line, col := LineCol(data, off)
		return &SyntaxError{Line: line, Col: col, Msg: fmt.Sprintf(format, args...)}
	}
	unsupported := func(off int, format string, args ...any) error {
		line, col := LineCol(data, off)
		return &SyntaxError{Line: line, Col: col, Msg: fmt.Sprintf(format, args...), Unsupported: true}
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, unsupported(0, "UTF-16 is not supported: save the file as UTF-8")
	}
	base := 0
	if bytes.HasPrefix(data, bom) {
		base = len(bom)
	}
	body := data[base:]
	if !utf8.Valid(body) {
		for i := 0; i < len(body); {
			r, n := utf8.DecodeRune(body[i:])
			if r == utf8.RuneError && n == 1 {
				return nil, fail(base+i, "not UTF-8")
			}
			i += n
		}
	}
	dec := xml.NewDecoder(bytes.NewReader(body))
	dec.Strict = true
	dec.CharsetReader = func(label string, in io.Reader) (io.Reader, error) {
		if strings.EqualFold(label, "us-ascii") {
			return in, nil
		}
		return nil, fmt.Errorf("%w: %q: save the file as UTF-8", errEncoding, label)
	}
	root := &Element{End: len(data), OpenEnd: base, CloseStart: len(data)}
	cur, depth, count := root, 0, 0
	for {
		at := base + int(dec.InputOffset())
		tok, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			var se *xml.SyntaxError
			msg := err.Error()
			if errors.As(err, &se) {
				msg = se.Msg
			}
			if errors.Is(err, errEncoding) {
				return nil, unsupported(base+int(dec.InputOffset()), "%s", msg)
			}
			return nil, fail(base+int(dec.InputOffset()), "%s", msg)
		}
		end := base + int(dec.InputOffset())
		switch t := tok.(type) {
		case xml.StartElement:
			if !fragment && cur == root && len(root.Children) > 0 {
				return nil, fail(at, "a second root element <%s>", name(t.Name))
			}
			if depth++; depth > MaxDepth {
				return nil, unsupported(at, "nested deeper than %d elements", MaxDepth)
			}
			if count++; count > MaxElements {
				return nil, unsupported(at, "more than %d elements", MaxElements)
			}
			el := &Element{Name: name(t.Name), Parent: cur, Start: at, OpenEnd: end}
			el.SelfClosing = end-at >= 2 && data[end-2] == '/'
			for _, a := range t.Attr {
				n := name(a.Name)
				if _, dup := el.Lookup(n); dup {
					return nil, fail(at, "attribute %q twice on <%s>", n, el.Name)
				}
				el.Attrs = append(el.Attrs, Attr{n, a.Value})
			}
			cur.Children = append(cur.Children, el)
			cur = el
		case xml.EndElement:
			if cur == root {
				return nil, fail(at, "</%s> without a start tag", name(t.Name))
			}
			if n := name(t.Name); n != cur.Name {
				return nil, fail(at, "</%s> where </%s> should be", n, cur.Name)
			}
			cur.CloseStart, cur.End = at, end
			cur = cur.Parent
			depth--
		case xml.CharData:
			if len(bytes.TrimSpace(t)) == 0 && !bytes.HasPrefix(data[at:], []byte("<![CDATA[")) {
				break
			}
			if cur == root {
				return nil, fail(at, "text outside the elements")
			}
			cur.HasText = true
		case xml.Directive:
			return nil, fail(at, "<!%s...> is not allowed", firstWord(string(t)))
		case xml.ProcInst:
			if t.Target == "xml" && at != base {
				return nil, fail(at, "the XML declaration must come first")
			}
		}
	}
	if cur != root {
		return nil, fail(cur.Start, "<%s> is not closed", cur.Name)
	}
	if fragment {
		return &Document{Data: data, Root: root}, nil
	}
	if len(root.Children) == 0 {
		return nil, fail(len(data), "no root element")
	}
	doc := root.Children[0]
	doc.Parent = nil
	return &Document{Data: data, Root: doc}, nil
}

func name(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

func firstWord(s string) string {
	w, _, _ := strings.Cut(s, " ")
	return w
}

// LineCol gives the line and column (both from 1, columns in bytes) of an offset.
func LineCol(data []byte, off int) (line, col int) {
	off = min(max(off, 0), len(data))
	before := data[:off]
	line = 1 + bytes.Count(before, []byte("\n"))
	col = off - (bytes.LastIndexByte(before, '\n') + 1) + 1
	if line == 1 && bytes.HasPrefix(data, bom) && off >= len(bom) {
		col -= len(bom)
	}
	return line, col
}

// Line gives the line of an element, from 1. Unlike LineCol it does not read the file again each time.
func (d *Document) Line(e *Element) int {
	d.once.Do(func() {
		for i, b := range d.Data {
			if b == '\n' {
				d.breaks = append(d.breaks, i)
			}
		}
	})
	before, _ := slices.BinarySearch(d.breaks, e.Start)
	return 1 + before
}

// Errorf is a *SyntaxError at an element.
func (d *Document) Errorf(e *Element, format string, args ...any) error {
	line, col := LineCol(d.Data, e.Start)
	return &SyntaxError{Line: line, Col: col, Msg: fmt.Sprintf(format, args...)}
}

// Bytes gives the element's own bytes.
func (d *Document) Bytes(e *Element) []byte { return d.Data[e.Start:e.End] }

// Lookup gives an attribute's value. A nil element has none.
func (e *Element) Lookup(name string) (string, bool) {
	if e == nil {
		return "", false
	}
	for _, a := range e.Attrs {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Attr gives an attribute's value, or "" when it is absent.
func (e *Element) Attr(name string) string {
	v, _ := e.Lookup(name)
	return v
}

// AttrOr gives an attribute's value, or a default when it is absent.
func (e *Element) AttrOr(name, absent string) string {
	if v, ok := e.Lookup(name); ok {
		return v
	}
	return absent
}

// Child gives the first child of a name, or nil.
func (e *Element) Child(name string) *Element {
	if e == nil {
		return nil
	}
	for _, c := range e.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Find follows a path of child names, taking the first of each; nil when one is missing.
func (e *Element) Find(path ...string) *Element {
	for _, p := range path {
		e = e.Child(p)
	}
	return e
}

// All gives the children of a name.
func (e *Element) All(name string) []*Element {
	if e == nil {
		return nil
	}
	var out []*Element
	for _, c := range e.Children {
		if c.Name == name {
			out = append(out, c)
		}
	}
	return out
}

// Equal says whether two elements mean the same: names, attributes in any order, children in order. Comments, white
// space and the spelling of entities don't count; text other than white space makes them unequal.
func Equal(a, b *Element) bool {
	if a.Name != b.Name || len(a.Attrs) != len(b.Attrs) || len(a.Children) != len(b.Children) || a.HasText || b.HasText {
		return false
	}
	for _, x := range a.Attrs {
		if v, ok := b.Lookup(x.Name); !ok || v != x.Value {
			return false
		}
	}
	for i := range a.Children {
		if !Equal(a.Children[i], b.Children[i]) {
			return false
		}
	}
	return true
}
