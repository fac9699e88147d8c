package appcmdxml

import (
	"fmt"
	"regexp"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Difference is the first thing in which the two sides differ.
type Difference struct {
	// Text says what differs, in one line.
	Text string
	// Model and IIS are both sides, shortened.
	Model, IIS string
}

// Compare returns the first difference between the model's view of a section and IIS's; nil when they agree. Names are
// compared first, in order, then what each rule says.
func Compare(model, iis View, section string) *Difference {
	for _, list := range []struct {
		what       string
		model, iis []*xmldoc.Element
	}{{"rule", model.Rules, iis.Rules}, {"precondition", model.PreConditions, iis.PreConditions}} {
		if d := order(list.what, list.model, list.iis); d != nil {
			return d
		}
		for i, e := range list.model {
			if d := Element(e, list.iis[i], section); d != nil {
				return d
			}
		}
	}
	return nil
}

// order compares the names of two lists.
func order(what string, model, iis []*xmldoc.Element) *Difference {
	for i := 0; i < len(model) || i < len(iis); i++ {
		if i < len(model) && i < len(iis) && sameText(model[i].Attr("name"), iis[i].Attr("name"), true) {
			continue
		}
		d := &Difference{Model: names(model), IIS: names(iis)}
		switch {
		case i < len(model) && !has(iis, model[i].Attr("name")):
			d.Text = fmt.Sprintf("IIS does not list %s %q", what, short(model[i].Attr("name")))
		case i < len(iis) && !has(model, iis[i].Attr("name")):
			d.Text = fmt.Sprintf("IIS lists %s %q, which the model does not have", what, short(iis[i].Attr("name")))
		case i < len(model) && i < len(iis):
			d.Text = fmt.Sprintf("IIS has another order: place %d is %s %q in the model and %q for IIS", i+1, what, short(model[i].Attr("name")), short(iis[i].Attr("name")))
		default:
			d.Text = fmt.Sprintf("IIS lists %d %ss and the model has %d", len(iis), what, len(model))
		}
		return d
	}
	return nil
}

func has(list []*xmldoc.Element, name string) bool {
	for _, e := range list {
		if sameText(name, e.Attr("name"), true) || sameText(e.Attr("name"), name, true) {
			return true
		}
	}
	return false
}

// maxNames bounds how many names a list of them shows.
const maxNames = 6

func names(list []*xmldoc.Element) string {
	var out []string
	for _, e := range list[:min(len(list), maxNames)] {
		out = append(out, fmt.Sprintf("%q", short(e.Attr("name"))))
	}
	if n := len(list) - maxNames; n > 0 {
		out = append(out, fmt.Sprintf("and %d more", n))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// Element returns the first difference between a rule (or a precondition) of the model and IIS's view of it; nil when they
// mean the same. Defaults of the schema count as written out on both sides; comments, blanks and the order of attributes do not
// count, and neither do attributes that this version does not know and that only one side has.
func Element(model, iis *xmldoc.Element, section string) *Difference {
	what := fmt.Sprintf("%s %q", strings.ToLower(model.Name), short(model.Attr("name")))
	if d := attributes(what, model, iis, section); d != nil {
		return d
	}
	for _, part := range parts {
		if model.Name != "rule" {
			break
		}
		a, b := model.Child(part.name), iis.Child(part.name)
		if d := attributes(what+", <"+part.name+">", a, b, section); d != nil {
			return d
		}
		if d := items(what+", <"+part.name+">", a.All(part.item), b.All(part.item), section); d != nil {
			return d
		}
	}
	if model.Name != "rule" {
		return items(what, model.All("add"), iis.All("add"), section)
	}
	return nil
}

// parts are the child elements of a rule, and what each of them is a list of.
var parts = []struct{ name, item string }{{"match", ""}, {"conditions", "add"}, {"serverVariables", "set"}, {"action", ""}}

func items(what string, model, iis []*xmldoc.Element, section string) *Difference {
	if len(model) != len(iis) {
		return &Difference{Text: fmt.Sprintf("%s: the model has %d entries and IIS lists %d", what, len(model), len(iis)),
			Model: fmt.Sprintf("%d entries", len(model)), IIS: fmt.Sprintf("%d entries", len(iis))}
	}
	for i := range model {
		if d := attributes(fmt.Sprintf("%s, entry %d", what, i+1), model[i], iis[i], section); d != nil {
			return d
		}
	}
	return nil
}

// kind is how the values of an attribute are compared.
type kind int

const (
	text   kind = iota // exactly
	word               // without case: a bool, an enum, a key
	number             // as a number
	flags              // as a set of words
)

// schema has every attribute that this version knows, with its default. Source: rewrite_schema.xml of URL Rewrite 2.1.
var schema = map[string]struct {
	kind   kind
	absent string
}{
	"name": {word, ""}, "preCondition": {word, ""}, "enabled": {word, "true"}, "patternSyntax": {word, "ECMAScript"}, "stopProcessing": {word, "false"},
	"url": {text, ""}, "pattern": {text, ""}, "ignoreCase": {word, "true"}, "negate": {word, "false"},
	"filterByTags": {flags, "None"}, "customTags": {word, ""}, "serverVariable": {word, ""}, "occurrences": {number, "0"},
	"logicalGrouping": {word, "MatchAll"}, "trackAllCaptures": {word, "false"}, "input": {text, ""}, "matchType": {word, "Pattern"},
	"value": {text, ""}, "replace": {word, "true"}, "type": {word, "None"}, "appendQueryString": {word, "true"}, "logRewrittenUrl": {word, "false"},
	"redirectType": {word, "Permanent"}, "statusCode": {number, "0"}, "subStatusCode": {number, "0"}, "statusReason": {text, ""}, "statusDescription": {text, ""},
	"responseCacheDirective": {word, "Auto"},
}

// attributes compares what two elements say themselves. An element that one side lacks has its defaults.
func attributes(what string, model, iis *xmldoc.Element, section string) *Difference {
	all := map[string]bool{}
	for _, e := range []*xmldoc.Element{model, iis} {
		if e != nil {
			for _, a := range e.Attrs {
				all[a.Name] = true
			}
		}
	}
	var sorted []string
	for n := range all {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		absent, known := absentValue(n, section)
		a, inModel := model.Lookup(n)
		b, inIIS := iis.Lookup(n)
		if !known && (!inModel || !inIIS) {
			continue
		}
		if !inModel {
			a = absent
		}
		if !inIIS {
			b = absent
		}
		if !equal(schema[n].kind, a, b) {
			return &Difference{Text: fmt.Sprintf("%s: %s is %q in the model and %q for IIS", what, short(n), short(a), short(b)),
				Model: fmt.Sprintf("%s: %s=%q", what, short(n), short(a)), IIS: fmt.Sprintf("%s: %s=%q", what, short(n), short(b))}
		}
	}
	return nil
}

// equal compares two values. model is the model's.
func equal(k kind, model, iis string) bool {
	switch k {
	case word:
		return sameText(model, iis, true)
	case number:
		return strings.TrimLeft(strings.TrimSpace(model), "0") == strings.TrimLeft(strings.TrimSpace(iis), "0")
	case flags:
		return set(model) == set(iis)
	case text:
	}
	return sameText(model, iis, false)
}

func set(s string) string {
	words := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r == ',' || r == ' ' })
	sort.Strings(words)
	return strings.Join(words, ",")
}

var blanks = strings.NewReplacer("\r\n", " ", "\n", " ", "\r", " ", "\t", " ")

// maxLossy bounds a text that is compared in spite of a code page.
const maxLossy = 16 << 10

var notASCII = regexp.MustCompile(`[^\x00-\x7f]+`)

// sameText compares a text of the model with what a console made of it. Line breaks in attributes are blanks to an XML reader.
// A code page turns a character that is not ASCII into another one, or into several: whatever IIS has in its place counts as
// the same.
func sameText(model, console string, fold bool) bool {
	model, console = blanks.Replace(model), blanks.Replace(console)
	if fold {
		model, console = strings.ToLower(model), strings.ToLower(console)
	}
	if model == console || len(model) > maxLossy || !notASCII.MatchString(model) {
		return model == console
	}
	parts := notASCII.Split(model, -1)
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	re, err := regexp.Compile(`(?s)\A` + strings.Join(parts, ".+") + `\z`)
	return err == nil && re.MatchString(console)
}

// maxShort bounds a value in a text for people.
const maxShort = 80

func short(s string) string {
	if len(s) > maxShort {
		s = s[:maxShort] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// Plain returns a copy of an element without what says nothing: attributes with their default, and empty containers. What is
// left is how a person would write it.
func Plain(e *xmldoc.Element, section string) *xmldoc.Element {
	out := *e
	out.Attrs, out.Children = nil, nil
	for _, a := range e.Attrs {
		absent, known := absentValue(a.Name, section)
		if !known || !equal(schema[a.Name].kind, absent, a.Value) {
			out.Attrs = append(out.Attrs, a)
		}
	}
	for _, c := range e.Children {
		if p := Plain(c, section); len(p.Attrs)+len(p.Children) > 0 || p.Name == "match" || p.Name == "action" {
			out.Children = append(out.Children, p)
		}
	}
	return &out
}

// absentValue is what an attribute means that is not there.
func absentValue(name, section string) (value string, known bool) {
	s, known := schema[name]
	if name == "trackAllCaptures" && section == "outboundRules" {
		return "true", known
	}
	return s.absent, known
}
