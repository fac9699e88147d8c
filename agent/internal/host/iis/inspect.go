package iis

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Standing says how a fragment stands in a file.
type Standing int

// The standings, worst last.
const (
	// InPlace: every element is there, equal to ours.
	InPlace Standing = iota
	// Foreign: rules of other names do the same.
	Foreign
	// Absent: at least one element is not there.
	Absent
	// Altered: an element of our name is there with other content, or disabled, or more than once.
	Altered
)

// Inspection is what Inspect found.
type Inspection struct {
	Standing Standing
	// Detail names the element and what is different; for people.
	Detail string
}

// Inspect says how a fragment stands in a file. The error is a *xmldoc.SyntaxError of the file.
func Inspect(data []byte, f Fragment) (Inspection, error) {
	doc, err := xmldoc.Parse(data)
	if err != nil {
		return Inspection{}, err
	}
	ps, err := f.pieces()
	if err != nil {
		return Inspection{}, err
	}
	var names []string
	absent, foreign := "", 0
	for _, p := range ps {
		what := fmt.Sprintf("<%s> %q", p.el.Name, p.el.Attr("name"))
		names = append(names, fmt.Sprintf("%q", p.el.Attr("name")))
		found := find(doc.Root, p)
		switch {
		case len(found) > 1:
			return Inspection{Altered, what + " stands there more than once"}, nil
		case len(found) == 1 && !xmldoc.Equal(found[0], p.el):
			line, _ := xmldoc.LineCol(data, found[0].Start)
			why := "has other content"
			if strings.EqualFold(found[0].Attr("enabled"), "false") {
				why = "is disabled"
			}
			return Inspection{Altered, fmt.Sprintf("%s in line %d %s", what, line, why)}, nil
		case len(found) == 0 && foreignTwin(doc.Root, p) != nil:
			foreign++
		case len(found) == 0:
			absent = what + " is not there"
		}
	}
	rules := 0
	for _, p := range ps {
		if p.el.Name == "rule" {
			rules++
		}
	}
	if absent == "" && foreign == rules && foreign > 0 {
		return Inspection{Foreign, "rules of other names do the same; found, not ours"}, nil
	}
	if absent != "" || foreign > 0 {
		if absent == "" {
			absent = "only some of the rules are there"
		}
		return Inspection{Absent, absent}, nil
	}
	return Inspection{InPlace, "found " + strings.Join(names, ", ")}, nil
}

// foreignTwin finds an enabled rule of another name with the same content. Outbound rules refer to preconditions by
// name, so only inbound rules can be compared without them.
func foreignTwin(root *xmldoc.Element, p piece) *xmldoc.Element {
	if p.section != "rules" || p.el.Name != "rule" {
		return nil
	}
	for _, scope := range append([]*xmldoc.Element{root}, root.All("location")...) {
		for _, r := range scope.Find("system.webServer", "rewrite", "rules").All("rule") {
			if sameRule(r, p.el) {
				return r
			}
		}
	}
	return nil
}

// defaults of URL Rewrite's schema: an attribute written out with its default means the same as an absent one.
var defaults = map[string]string{
	"enabled": "true", "patternSyntax": "ECMAScript", "stopProcessing": "false", "ignoreCase": "true", "negate": "false",
	"matchType": "Pattern", "logicalGrouping": "MatchAll", "trackAllCaptures": "false", "appendQueryString": "true",
}

func sameRule(a, b *xmldoc.Element) bool {
	if a.Name != b.Name || len(a.Children) != len(b.Children) {
		return false
	}
	norm := func(e *xmldoc.Element) map[string]string {
		m := map[string]string{}
		for _, x := range e.Attrs {
			if e.Name == "rule" && (x.Name == "name" || x.Name == "stopProcessing" && aborts(e)) {
				continue
			}
			if defaults[x.Name] != x.Value {
				m[x.Name] = x.Value
			}
		}
		return m
	}
	na, nb := norm(a), norm(b)
	if len(na) != len(nb) {
		return false
	}
	for k, v := range na {
		if nb[k] != v {
			return false
		}
	}
	for i := range a.Children {
		if !sameRule(a.Children[i], b.Children[i]) {
			return false
		}
	}
	return true
}

// aborts: a rule that ends the request makes stopProcessing meaningless.
func aborts(rule *xmldoc.Element) bool {
	a := rule.Child("action")
	return a != nil && a.Attr("type") == "AbortRequest"
}

// Left names an element of a fragment that is still in a file, in whatever form; "" when none is. Elements that other
// fragments, which stay, have under the same name don't count.
func Left(doc *xmldoc.Document, f Fragment, kept ...Fragment) string {
	ps, err := f.pieces()
	if err != nil {
		return err.Error()
	}
	stays := map[string]bool{}
	for _, k := range kept {
		others, err := k.pieces()
		if err != nil {
			return err.Error()
		}
		for _, o := range others {
			stays[o.section+"\x00"+strings.ToLower(o.el.Attr("name"))] = true
		}
	}
	for _, p := range ps {
		if stays[p.section+"\x00"+strings.ToLower(p.el.Attr("name"))] {
			continue
		}
		if found := find(doc.Root, p); len(found) > 0 {
			line, _ := xmldoc.LineCol(doc.Data, found[0].Start)
			return fmt.Sprintf("<%s> %q in line %d", p.el.Name, p.el.Attr("name"), line)
		}
	}
	return ""
}
