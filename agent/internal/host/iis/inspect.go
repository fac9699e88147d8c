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
	absent := ""
	for _, p := range ps {
		what := fmt.Sprintf("<%s> %q", p.el.Name, p.el.Attr("name"))
		names = append(names, fmt.Sprintf("%q", p.el.Attr("name")))
		found := find(doc.Root, p, f.Root)
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
		case len(found) == 0:
			absent = what + " is not there"
		}
	}
	if absent != "" {
		return Inspection{Absent, absent}, nil
	}
	return Inspection{InPlace, "found " + strings.Join(names, ", ")}, nil
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
		if found := find(doc.Root, p, f.Root); len(found) > 0 {
			line, _ := xmldoc.LineCol(doc.Data, found[0].Start)
			return fmt.Sprintf("<%s> %q in line %d", p.el.Name, p.el.Attr("name"), line)
		}
	}
	return ""
}
