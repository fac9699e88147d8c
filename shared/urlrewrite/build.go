package urlrewrite

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Part is one effective element of a rewrite section, with the place it comes from.
type Part struct {
	Element *xmldoc.Element
	Doc     *xmldoc.Document
	// Where names file and line.
	Where string
	// Base is the URL path that the input of a rule's pattern is relative to; "" is the path that the rules are evaluated in.
	Base string
}

// Parts are the effective elements of the rewrite sections of one path, each in order of evaluation.
type Parts struct {
	Global, Inbound, Outbound, PreConditions, Maps, Tags, Allowed, Providers []Part
}

// Build makes a ruleset of elements that were composed already. It refuses nothing: what this version does not know in
// somebody else's element is stepped over and named in the notes, and a rule with such a part counts as one that may match or
// not (Request.Adverse).
func Build(parts Parts) (*Ruleset, []string) {
	rs := &Ruleset{pre: map[string]*preCondition{}, maps: map[string]*rewriteMap{}, tags: map[string]*tagSet{}, allowed: map[string]bool{}}
	b := &builder{rs: rs}
	for _, x := range parts.Maps {
		m, _ := lenient(b, x, (*parser).rewriteMap)
		if m != nil {
			rs.maps[strings.ToLower(m.name)] = m
		}
	}
	for _, x := range parts.Providers {
		if m, _ := lenient(b, x, (*parser).oneProvider); m != nil {
			rs.maps[strings.ToLower(m.name)] = m
		}
	}
	for _, x := range parts.Tags {
		t := &tagSet{name: x.Element.Attr("name")}
		for _, tag := range x.Element.All("tag") {
			t.tags = append(t.tags, [2]string{strings.ToLower(tag.Attr("name")), strings.ToLower(tag.Attr("attribute"))})
		}
		rs.tags[strings.ToLower(t.name)] = t
	}
	for _, x := range parts.Allowed {
		rs.allowed[strings.ToUpper(x.Element.Attr("name"))] = true
	}
	for _, x := range parts.PreConditions {
		pc, unknown := lenient(b, x, (*parser).preCondition)
		if pc == nil {
			pc = &preCondition{name: x.Element.Attr("name"), conditions: []condition{{unknown: true}}}
		}
		for i := range pc.conditions {
			pc.conditions[i].unknown = pc.conditions[i].unknown || unknown
			b.bind(x, &pc.conditions[i])
		}
		rs.pre[strings.ToLower(pc.name)] = pc
	}
	rs.global = b.inbound(parts.Global, true)
	rs.inbound = b.inbound(parts.Inbound, false)
	for _, x := range parts.Outbound {
		rs.outbound = append(rs.outbound, b.outbound(x))
	}
	return rs, b.notes
}

type builder struct {
	rs     *Ruleset
	notes  []string
	global bool
}

func (b *builder) note(format string, args ...any) {
	if len(b.notes) < maxNotes {
		b.notes = append(b.notes, fmt.Sprintf(format, args...))
	}
}

// lenient reads an element of somebody else. unknown: it has a part that was stepped over.
func lenient[T any](b *builder, x Part, read func(*parser, *xmldoc.Element) (*T, error)) (v *T, unknown bool) {
	p := &parser{doc: x.Doc, where: x.Where, tolerant: true, global: b.global}
	v, err := read(p, x.Element)
	if err != nil {
		b.note("%v", err)
		return nil, true
	}
	for _, n := range p.notes {
		b.note("%s", n)
	}
	return v, p.unknown
}

// bind parses a condition's input. One that asks a provider or an unknown function can't be judged.
func (b *builder) bind(x Part, c *condition) {
	if c.input == "" {
		return
	}
	t, err := parseTemplate(c.input, b.rs.maps)
	if err != nil {
		b.note("%s: condition input %v", x.Where, err)
		c.unknown = true
		return
	}
	c.inputT = t
	c.unknown = c.unknown || b.rs.asksProvider(t)
}

func (b *builder) inbound(parts []Part, global bool) []*inboundRule {
	b.global = global
	defer func() { b.global = false }()
	var out []*inboundRule
	for _, x := range parts {
		r, _ := lenient(b, x, (*parser).inboundRule)
		if r == nil {
			r = &inboundRule{name: x.Element.Attr("name"), enabled: !strings.EqualFold(x.Element.Attr("enabled"), "false"), unknown: true, action: "None",
				stop: strings.EqualFold(x.Element.Attr("stopProcessing"), "true")}
		}
		r.base = x.Base
		if global {
			r.base = ""
		}
		for i := range r.conditions {
			b.bind(x, &r.conditions[i])
		}
		r.targetT = b.template(x, r.target)
		for i := range r.setVars {
			r.setVars[i].valueT = b.template(x, r.setVars[i].value)
		}
		out = append(out, r)
	}
	return out
}

// template parses a value; one that can't be computed counts as empty.
func (b *builder) template(x Part, value string) *template {
	t, err := parseTemplate(value, b.rs.maps)
	if err != nil {
		b.note("%s: %v", x.Where, err)
		return &template{}
	}
	return t
}

func (b *builder) outbound(x Part) *outboundRule {
	r, _ := lenient(b, x, (*parser).outboundRule)
	if r == nil {
		return &outboundRule{name: x.Element.Attr("name"), unknown: true, void: true, action: "None"}
	}
	for i := range r.conditions {
		b.bind(x, &r.conditions[i])
	}
	r.valueT = b.template(x, r.value)
	if r.pre != "" && b.rs.pre[strings.ToLower(r.pre)] == nil {
		b.note("%s: outbound rule %q: precondition %q does not exist: the rule counts as void", x.Where, r.name, r.pre)
		r.void = true
	}
	if r.tags&flagCustomTags != 0 && b.rs.tags[strings.ToLower(r.customTags)] == nil {
		b.note("%s: outbound rule %q: custom tags %q do not exist: the rule counts as void", x.Where, r.name, r.customTags)
		r.void = true
	}
	if r.pattern == nil {
		r.void = true
	}
	return r
}

// asksProvider reports whether a value asks a provider, whose answer is not known.
func (rs *Ruleset) asksProvider(t *template) bool {
	if t == nil {
		return false
	}
	for _, n := range t.nodes {
		if n.kind == nodeMap && rs.maps[n.text] != nil && rs.maps[n.text].provider || rs.asksProvider(n.arg) {
			return true
		}
	}
	return false
}
