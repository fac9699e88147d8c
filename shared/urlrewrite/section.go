// Package urlrewrite reads IIS URL Rewrite configuration and says what it does to a request and its response. It owns
// the semantics of Microsoft's URL Rewrite 2.1 configuration reference; where a file lies, and who inherits what, is the
// room of iisconfig.
//
// Not evaluated yet, and refused rather than guessed: outbound rules that rewrite bodies, and providers.
package urlrewrite

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Section is what one configuration level says below <rewrite>. Parsing checks everything that does not depend on
// other levels.
type Section struct {
	inbound  list[*inboundRule]
	global   list[*inboundRule]
	outbound list[*outboundRule]
	pre      list[*preCondition]
	maps     list[*rewriteMap]
}

// list is one collection with its clear and remove instructions, in order.
type list[T any] struct {
	ops []op[T]
}

type op[T any] struct {
	clear  bool
	remove string
	add    T
	name   string
	where  string
}

// ConfigError is what IIS answers with 500.19: the configuration can't be used.
type ConfigError struct {
	// Where names file and position, when known.
	Where string
	Msg   string
}

func (e *ConfigError) Error() string {
	if e.Where == "" {
		return e.Msg
	}
	return e.Where + ": " + e.Msg
}

type inboundRule struct {
	name           string
	enabled, stop  bool
	url            *pattern
	urlNegate      bool
	conditions     []condition
	matchAny       bool
	trackAll       bool
	setVars        []setVar
	action         string
	target         string
	appendQuery    bool
	redirectStatus int
	status         int
	reason         string
	targetT        *template
}

type setVar struct {
	name    string
	value   string
	replace bool
	valueT  *template
}

type condition struct {
	input     string
	inputT    *template
	matchType string
	pattern   *pattern
	negate    bool
}

type outboundRule struct {
	name          string
	enabled, stop bool
	pre           string
	variable      string
	pattern       *pattern
	negate        bool
	conditions    []condition
	matchAny      bool
	trackAll      bool
	action        string
	value         string
	replace       bool
	valueT        *template
}

type preCondition struct {
	name       string
	conditions []condition
	matchAny   bool
}

type rewriteMap struct {
	name       string
	entries    map[string]string
	absent     string
	ignoreCase bool
}

func (m *rewriteMap) get(key string) string {
	if m.ignoreCase {
		key = strings.ToLower(key)
	}
	if v, ok := m.entries[key]; ok {
		return v
	}
	return m.absent
}

// parser reads one section and keeps the first problem.
type parser struct {
	doc   *xmldoc.Document
	where string
}

func (p *parser) errorf(e *xmldoc.Element, format string, args ...any) error {
	return fmt.Errorf("%s%w", p.prefix(), p.doc.Errorf(e, format, args...))
}

func (p *parser) prefix() string {
	if p.where == "" {
		return ""
	}
	return p.where + ": "
}

// ParseSection reads a <rewrite> element. where names the file for errors; it may be empty.
func ParseSection(doc *xmldoc.Document, rewrite *xmldoc.Element, where string) (*Section, error) {
	p := &parser{doc, where}
	s := &Section{}
	for _, c := range rewrite.Children {
		var err error
		switch c.Name {
		case "rules":
			err = p.rules(c, &s.inbound)
		case "globalRules":
			err = p.rules(c, &s.global)
		case "outboundRules":
			err = p.outboundRules(c, s)
		case "rewriteMaps":
			err = p.rewriteMaps(c, s)
		case "allowedServerVariables":
		case "providers":
			if len(c.Children) > 0 {
				err = p.errorf(c, "rewrite providers are not supported")
			}
		default:
			err = p.errorf(c, "<%s> does not belong into <rewrite>", c.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// ParseFragment reads what a mitigation document carries for <rules> (outbound false) or <outboundRules> (true), and
// returns the names of the rules in order. Errors are *xmldoc.SyntaxError or wrap one, with line and column inside the
// fragment.
func ParseFragment(data []byte, outbound bool) (*Section, []string, error) {
	doc, err := xmldoc.ParseFragment(data)
	if err != nil {
		return nil, nil, err
	}
	p, s := &parser{doc: doc}, &Section{}
	if outbound {
		err = p.outboundRules(doc.Root, s)
	} else {
		err = p.rules(doc.Root, &s.inbound)
	}
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, c := range doc.Root.Children {
		switch c.Name {
		case "rule":
			names = append(names, c.Attr("name"))
		case "preConditions":
		default:
			return nil, nil, p.errorf(c, "<%s> can't be part of a mitigation: only <rule> and, for outbound rules, <preConditions>", c.Name)
		}
	}
	if len(names) == 0 {
		return nil, nil, p.errorf(doc.Root, "no <rule>")
	}
	if _, err := Merge(s); err != nil {
		return nil, nil, err
	}
	return s, names, nil
}

// eachOp walks a collection's children: clear, remove, and the elements it is made of.
func eachOp[T any](p *parser, e *xmldoc.Element, element, key string, l *list[T], add func(*xmldoc.Element) (T, error)) error {
	seen := map[string]bool{}
	for _, c := range e.Children {
		line, col := xmldoc.LineCol(p.doc.Data, c.Start)
		where := fmt.Sprintf("%sline %d, column %d", p.prefix(), line, col)
		switch c.Name {
		case "clear":
			l.ops = append(l.ops, op[T]{clear: true, where: where})
		case "remove":
			l.ops = append(l.ops, op[T]{remove: c.Attr(key), where: where})
		case element:
			name, ok := c.Lookup(key)
			if !ok || name == "" {
				return p.errorf(c, "<%s> without %s", element, key)
			}
			if k := strings.ToLower(name); seen[k] {
				return p.errorf(c, "a second <%s> with %s %q", element, key, name)
			} else {
				seen[k] = true
			}
			v, err := add(c)
			if err != nil {
				return err
			}
			l.ops = append(l.ops, op[T]{add: v, name: name, where: where})
		default:
			continue
		}
	}
	return nil
}

func (p *parser) boolean(e *xmldoc.Element, attr string, absent bool) (bool, error) {
	v, ok := e.Lookup(attr)
	if !ok {
		return absent, nil
	}
	switch strings.ToLower(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, p.errorf(e, "%s=%q is neither true nor false", attr, v)
}

func (p *parser) attrs(e *xmldoc.Element, allowed ...string) error {
	for _, a := range e.Attrs {
		ok := strings.HasPrefix(a.Name, "xmlns") || strings.HasPrefix(a.Name, "lock")
		for _, x := range allowed {
			ok = ok || a.Name == x
		}
		if !ok {
			return p.errorf(e, "<%s> has no attribute %q", e.Name, a.Name)
		}
	}
	return nil
}

func (p *parser) children(e *xmldoc.Element, allowed ...string) error {
	for _, c := range e.Children {
		ok := false
		for _, x := range allowed {
			ok = ok || c.Name == x
		}
		if !ok {
			return p.errorf(c, "<%s> does not belong into <%s>", c.Name, e.Name)
		}
	}
	if e.HasText {
		return p.errorf(e, "text inside <%s>", e.Name)
	}
	return nil
}

func (p *parser) rules(e *xmldoc.Element, l *list[*inboundRule]) error {
	if e.Name != "" {
		if err := p.children(e, "rule", "clear", "remove"); err != nil {
			return err
		}
	}
	return eachOp(p, e, "rule", "name", l, p.inboundRule)
}

func (p *parser) inboundRule(e *xmldoc.Element) (*inboundRule, error) {
	r := &inboundRule{name: e.Attr("name"), action: "None", appendQuery: true, redirectStatus: 301}
	if err := p.attrs(e, "name", "enabled", "patternSyntax", "stopProcessing"); err != nil {
		return nil, err
	}
	if err := p.children(e, "match", "conditions", "serverVariables", "action"); err != nil {
		return nil, err
	}
	syn, err := p.syntax(e)
	if err != nil {
		return nil, err
	}
	if r.enabled, err = p.boolean(e, "enabled", true); err != nil {
		return nil, err
	}
	if r.stop, err = p.boolean(e, "stopProcessing", false); err != nil {
		return nil, err
	}
	if m := e.Child("match"); m != nil {
		if err := p.attrs(m, "url", "ignoreCase", "negate"); err != nil {
			return nil, err
		}
		if r.url, r.urlNegate, err = p.matcher(m, "url", syn); err != nil {
			return nil, err
		}
	}
	if r.conditions, r.matchAny, r.trackAll, err = p.conditions(e.Child("conditions"), syn); err != nil {
		return nil, err
	}
	for _, sv := range e.Child("serverVariables").All("set") {
		replace, err := p.boolean(sv, "replace", true)
		if err != nil {
			return nil, err
		}
		r.setVars = append(r.setVars, setVar{name: sv.Attr("name"), value: sv.Attr("value"), replace: replace})
	}
	if a := e.Child("action"); a != nil {
		err = p.inboundAction(a, r)
	}
	return r, err
}

func (p *parser) inboundAction(a *xmldoc.Element, r *inboundRule) (err error) {
	if err := p.attrs(a, "type", "url", "appendQueryString", "logRewrittenUrl", "redirectType", "statusCode", "subStatusCode",
		"statusReason", "statusDescription"); err != nil {
		return err
	}
	r.action = a.AttrOr("type", "None")
	r.target = a.Attr("url")
	if r.appendQuery, err = p.boolean(a, "appendQueryString", true); err != nil {
		return err
	}
	switch r.action {
	case "None", "AbortRequest":
	case "Rewrite", "Redirect":
		if r.target == "" {
			return p.errorf(a, "action %s needs a url", r.action)
		}
		switch v := a.AttrOr("redirectType", "Permanent"); v {
		case "Permanent", "301":
			r.redirectStatus = 301
		case "Found", "302":
			r.redirectStatus = 302
		case "SeeOther", "303":
			r.redirectStatus = 303
		case "Temporary", "307":
			r.redirectStatus = 307
		default:
			return p.errorf(a, "redirectType=%q is not known", v)
		}
	case "CustomResponse":
		code, err := strconv.Atoi(a.Attr("statusCode"))
		if err != nil || code < 1 || code > 999 {
			return p.errorf(a, "statusCode=%q is not a status", a.Attr("statusCode"))
		}
		if code == 301 || code == 302 || code == 303 || code == 307 {
			return p.errorf(a, "statusCode=%d is a redirect", code)
		}
		r.status, r.reason = code, a.Attr("statusReason")
	default:
		return p.errorf(a, "action type %q is not known", r.action)
	}
	return nil
}

func (p *parser) syntax(e *xmldoc.Element) (syntax, error) {
	syn, ok := parseSyntax(e.Attr("patternSyntax"))
	if !ok {
		return 0, p.errorf(e, "patternSyntax=%q is not known", e.Attr("patternSyntax"))
	}
	return syn, nil
}

func (p *parser) matcher(e *xmldoc.Element, attr string, syn syntax) (*pattern, bool, error) {
	fold, err := p.boolean(e, "ignoreCase", true)
	if err != nil {
		return nil, false, err
	}
	negate, err := p.boolean(e, "negate", false)
	if err != nil {
		return nil, false, err
	}
	pat, err := compilePattern(e.Attr(attr), syn, fold)
	if err != nil {
		return nil, false, p.errorf(e, "%v", err)
	}
	return pat, negate, nil
}

func (p *parser) grouping(e *xmldoc.Element) (matchAny bool, err error) {
	switch v := e.AttrOr("logicalGrouping", "MatchAll"); v {
	case "MatchAll":
		return false, nil
	case "MatchAny":
		return true, nil
	default:
		return false, p.errorf(e, "logicalGrouping=%q is neither MatchAll nor MatchAny", v)
	}
}

func (p *parser) conditions(e *xmldoc.Element, syn syntax) (cs []condition, matchAny, trackAll bool, err error) {
	if e == nil {
		return nil, false, false, nil
	}
	if err = p.attrs(e, "logicalGrouping", "trackAllCaptures"); err != nil {
		return nil, false, false, err
	}
	if err = p.children(e, "add"); err != nil {
		return nil, false, false, err
	}
	if matchAny, err = p.grouping(e); err != nil {
		return nil, false, false, err
	}
	if trackAll, err = p.boolean(e, "trackAllCaptures", false); err != nil {
		return nil, false, false, err
	}
	for _, a := range e.Children {
		if err = p.attrs(a, "input", "matchType", "pattern", "ignoreCase", "negate"); err != nil {
			return nil, false, false, err
		}
		c := condition{input: a.Attr("input"), matchType: a.AttrOr("matchType", "Pattern")}
		switch c.matchType {
		case "Pattern", "0":
			c.matchType = "Pattern"
		case "IsFile", "IsDirectory":
		default:
			return nil, false, false, p.errorf(a, "matchType=%q is not known", c.matchType)
		}
		if c.pattern, c.negate, err = p.matcher(a, "pattern", syn); err != nil {
			return nil, false, false, err
		}
		cs = append(cs, c)
	}
	return cs, matchAny, trackAll, nil
}

func (p *parser) outboundRules(e *xmldoc.Element, s *Section) error {
	if e.Name != "" {
		if err := p.children(e, "rule", "preConditions", "customTags", "clear", "remove"); err != nil {
			return err
		}
	}
	if pre := e.Child("preConditions"); pre != nil {
		if err := p.children(pre, "preCondition", "clear", "remove"); err != nil {
			return err
		}
		if err := eachOp(p, pre, "preCondition", "name", &s.pre, p.preCondition); err != nil {
			return err
		}
	}
	return eachOp(p, e, "rule", "name", &s.outbound, p.outboundRule)
}

func (p *parser) preCondition(e *xmldoc.Element) (*preCondition, error) {
	if err := p.attrs(e, "name", "logicalGrouping", "patternSyntax"); err != nil {
		return nil, err
	}
	if err := p.children(e, "add"); err != nil {
		return nil, err
	}
	syn, err := p.syntax(e)
	if err != nil {
		return nil, err
	}
	pc := &preCondition{name: e.Attr("name")}
	if pc.matchAny, err = p.grouping(e); err != nil {
		return nil, err
	}
	for _, a := range e.Children {
		if err := p.attrs(a, "input", "pattern", "ignoreCase", "negate"); err != nil {
			return nil, err
		}
		c := condition{input: a.Attr("input"), matchType: "Pattern"}
		if c.pattern, c.negate, err = p.matcher(a, "pattern", syn); err != nil {
			return nil, err
		}
		pc.conditions = append(pc.conditions, c)
	}
	return pc, nil
}

func (p *parser) outboundRule(e *xmldoc.Element) (*outboundRule, error) {
	if err := p.attrs(e, "name", "preCondition", "enabled", "patternSyntax", "stopProcessing"); err != nil {
		return nil, err
	}
	if err := p.children(e, "match", "conditions", "action"); err != nil {
		return nil, err
	}
	r := &outboundRule{name: e.Attr("name"), pre: e.Attr("preCondition"), action: "None"}
	syn, err := p.syntax(e)
	if err != nil {
		return nil, err
	}
	if r.enabled, err = p.boolean(e, "enabled", true); err != nil {
		return nil, err
	}
	if r.stop, err = p.boolean(e, "stopProcessing", false); err != nil {
		return nil, err
	}
	m := e.Child("match")
	if m == nil {
		return nil, p.errorf(e, "outbound rule without <match>")
	}
	if err := p.attrs(m, "serverVariable", "filterByTags", "customTags", "pattern", "ignoreCase", "negate", "occurrences"); err != nil {
		return nil, err
	}
	r.variable = m.Attr("serverVariable")
	if r.pattern, r.negate, err = p.matcher(m, "pattern", syn); err != nil {
		return nil, err
	}
	if r.conditions, r.matchAny, r.trackAll, err = p.conditions(e.Child("conditions"), syn); err != nil {
		return nil, err
	}
	if a := e.Child("action"); a != nil {
		if err := p.attrs(a, "type", "value", "replace"); err != nil {
			return nil, err
		}
		r.action, r.value = a.AttrOr("type", "None"), a.Attr("value")
		if r.action != "None" && r.action != "Rewrite" {
			return nil, p.errorf(a, "action type %q is not known for an outbound rule", r.action)
		}
		if r.replace, err = p.boolean(a, "replace", true); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (p *parser) rewriteMaps(e *xmldoc.Element, s *Section) error {
	return eachOp(p, e, "rewriteMap", "name", &s.maps, func(m *xmldoc.Element) (*rewriteMap, error) {
		fold, err := p.boolean(m, "ignoreCase", true)
		if err != nil {
			return nil, err
		}
		out := &rewriteMap{name: m.Attr("name"), entries: map[string]string{}, absent: m.Attr("defaultValue"), ignoreCase: fold}
		for _, a := range m.All("add") {
			key := a.Attr("key")
			if fold {
				key = strings.ToLower(key)
			}
			if _, dup := out.entries[key]; dup {
				return nil, p.errorf(a, "a second key %q", a.Attr("key"))
			}
			out.entries[key] = a.Attr("value")
		}
		return out, nil
	})
}

// merge plays the collections of all levels, parent first. A name added twice is what IIS answers with 500.19.
func merge[T any](kind string, levels []*list[T]) ([]T, error) {
	type entry struct {
		name string
		v    T
	}
	var out []entry
	for _, l := range levels {
		for _, o := range l.ops {
			switch {
			case o.clear:
				out = out[:0]
			case o.remove != "":
				kept := out[:0]
				for _, e := range out {
					if !strings.EqualFold(e.name, o.remove) {
						kept = append(kept, e)
					}
				}
				out = kept
			default:
				for _, e := range out {
					if strings.EqualFold(e.name, o.name) {
						return nil, &ConfigError{o.where, fmt.Sprintf("%s %q is defined twice: it is inherited and added again", kind, o.name)}
					}
				}
				out = append(out, entry{o.name, o.add})
			}
		}
	}
	vs := make([]T, len(out))
	for i, e := range out {
		vs[i] = e.v
	}
	return vs, nil
}
