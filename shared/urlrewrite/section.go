// Package urlrewrite reads IIS URL Rewrite configuration and says what it does to a request and its response. It owns
// the semantics of Microsoft's URL Rewrite 2.1 configuration reference; where a file lies, and who inherits what, is the
// room of iisconfig.
//
// What a provider returns (code of third parties that runs inside IIS) is unknown: a condition that asks one may hold or not.
package urlrewrite

import (
	"errors"
	"fmt"
	"math"
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
	tags     list[*tagSet]
	allowed  list[string]
	provider list[*rewriteMap]
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
	name          string
	enabled, stop bool
	// unknown: the rule has a part that this version does not know; it may match or not.
	unknown bool
	// base is the URL path that the pattern's input is relative to, where the rule was composed; "" elsewhere.
	base           string
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
	unknown   bool // whether it holds depends on what this version does not know
}

type outboundRule struct {
	name          string
	enabled, stop bool
	unknown       bool // it has a part that this version does not know
	void          bool // its precondition or its tags are missing: it never runs
	pre           string
	variable      string
	tags          uint32 // which tags' attributes, of bodies; 0: the whole body
	customTags    string
	occurrences   int64 // how many in a body; 0: all
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
	provider   bool // not a map: what it returns is unknown
}

func (m *rewriteMap) key(k string) string {
	if m.ignoreCase {
		return strings.ToLower(k)
	}
	return k
}

func (m *rewriteMap) get(key string) string {
	if v, ok := m.entries[m.key(key)]; ok {
		return v
	}
	return m.absent
}

// parser reads one section and keeps the first problem.
type parser struct {
	doc   *xmldoc.Document
	where string
	// careful: these are rules of a mitigation, whose patterns must not take exponential time.
	careful bool
	// global: the rules are global ones, whose schema differs a little.
	global bool
	// tolerant: these are rules of somebody else. What this version does not know is noted and stepped over.
	tolerant bool
	notes    []string
	// unknown becomes true when something of the rule being read was stepped over.
	unknown bool
}

// soft decides about a problem in one rule: an error, or in somebody else's rule a note.
func (p *parser) soft(err error) error {
	if err == nil || !p.tolerant {
		return err
	}
	p.unknown = true
	if len(p.notes) < maxNotes {
		p.notes = append(p.notes, err.Error())
	}
	return nil
}

// maxNotes bounds what one configuration can make us say.
const maxNotes = 32

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
	p := &parser{doc: doc, where: where}
	s := &Section{}
	if rewrite.HasText {
		return nil, p.errorf(rewrite, "text inside <rewrite>")
	}
	if err := p.attrs(rewrite); err != nil {
		return nil, err
	}
	for _, c := range rewrite.Children {
		var err error
		if _, ok := c.Lookup("configSource"); ok {
			if len(c.Children) > 0 || len(c.Attrs) > 1 {
				return nil, p.errorf(c, "<%s> has configSource and something else besides", c.Name)
			}
			continue // what it says stands in another file
		}
		switch c.Name {
		case "rules":
			err = p.rules(c, &s.inbound)
		case "globalRules":
			p.global = true
			err = p.rules(c, &s.global)
			p.global = false
		case "outboundRules":
			err = p.outboundRules(c, s)
		case "rewriteMaps":
			err = p.rewriteMaps(c, s)
		case "allowedServerVariables":
			err = p.allowedVariables(c, s)
		case "providers":
			err = p.providers(c, s)
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
	p, s := &parser{doc: doc, careful: true}, &Section{}
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
			if err := p.attrs(c); err != nil {
				return err
			}
			l.ops = append(l.ops, op[T]{clear: true, where: where})
			seen = map[string]bool{}
		case "remove":
			if err := p.attrs(c, key); err != nil {
				return err
			}
			if c.Attr(key) == "" {
				return p.errorf(c, "<remove> without %s", key)
			}
			delete(seen, strings.ToLower(c.Attr(key)))
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
	return absent, p.soft(p.errorf(e, "%s=%q is neither true nor false", attr, v))
}

func (p *parser) attrs(e *xmldoc.Element, allowed ...string) error {
	for _, a := range e.Attrs {
		ok := strings.HasPrefix(a.Name, "xmlns") || strings.HasPrefix(a.Name, "lock")
		for _, x := range allowed {
			ok = ok || a.Name == x
		}
		if !ok {
			if err := p.soft(p.errorf(e, "<%s> has no attribute %q", e.Name, a.Name)); err != nil {
				return err
			}
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
			if err := p.soft(p.errorf(c, "<%s> does not belong into <%s>", c.Name, e.Name)); err != nil {
				return err
			}
		}
	}
	if e.HasText {
		return p.soft(p.errorf(e, "text inside <%s>", e.Name))
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
	if err := p.attrs(e, "name", "enabled", "patternSyntax", "stopProcessing", "responseCacheDirective"); err != nil {
		return nil, err
	}
	if _, err := p.enum(e, "responseCacheDirective", "Auto", "Auto", "Always", "Never", "NotIfRuleMatched"); err != nil {
		return nil, err
	}
	if err := p.children(e, "match", "conditions", "serverVariables", "action"); err != nil {
		return nil, err
	}
	if err := p.once(e); err != nil {
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
		if err := p.children(m); err != nil {
			return nil, err
		}
		if u, ok := m.Lookup("url"); ok && u == "" {
			if err := p.soft(p.errorf(m, "url is empty")); err != nil {
				return nil, err
			}
		}
		if r.url, r.urlNegate, err = p.matcher(m, "url", syn); err != nil {
			return nil, err
		}
	}
	if r.conditions, r.matchAny, r.trackAll, err = p.conditions(e.Child("conditions"), syn, false); err != nil {
		return nil, err
	}
	if r.setVars, err = p.serverVariables(e.Child("serverVariables")); err != nil {
		return nil, err
	}
	if a := e.Child("action"); a != nil {
		err = p.inboundAction(a, r)
	}
	r.unknown = p.unknown
	return r, err
}

func (p *parser) serverVariables(e *xmldoc.Element) (out []setVar, err error) {
	if e == nil {
		return nil, nil
	}
	if err := errors.Join(p.attrs(e), p.children(e, "set")); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, sv := range e.Children {
		if err := errors.Join(p.attrs(sv, "name", "value", "replace"), p.children(sv)); err != nil {
			return nil, err
		}
		name := sv.Attr("name")
		if name == "" || strings.TrimSpace(name) != name {
			if err := p.soft(p.errorf(sv, "<set> needs a name without blanks around it")); err != nil {
				return nil, err
			}
		}
		if up := strings.ToUpper(name); seen[up] {
			if err := p.soft(p.errorf(sv, "a second <set> with name %q", name)); err != nil {
				return nil, err
			}
		} else {
			seen[up] = true
		}
		replace, err := p.boolean(sv, "replace", true)
		if err != nil {
			return nil, err
		}
		out = append(out, setVar{name: name, value: sv.Attr("value"), replace: replace})
	}
	return out, nil
}

// once refuses a second element of one name below a rule.
func (p *parser) once(e *xmldoc.Element) error {
	seen := map[string]bool{}
	for _, c := range e.Children {
		if seen[c.Name] {
			if err := p.soft(p.errorf(c, "a second <%s> in <%s>", c.Name, e.Name)); err != nil {
				return err
			}
		}
		seen[c.Name] = true
	}
	return nil
}

// enum reads an enumerated attribute. IIS's documentation and tools write values in any case.
func (p *parser) enum(e *xmldoc.Element, attr, absent string, values ...string) (string, error) {
	v, ok := e.Lookup(attr)
	if !ok {
		return absent, nil
	}
	for _, x := range values {
		if strings.EqualFold(v, x) {
			return x, nil
		}
	}
	return absent, p.soft(p.errorf(e, "%s=%q is none of %s", attr, v, strings.Join(values, ", ")))
}

func (p *parser) number(e *xmldoc.Element, attr string, lo, hi int64) (int64, error) {
	v, ok := e.Lookup(attr)
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, p.soft(p.errorf(e, "%s=%q is not a number from %d to %d", attr, v, lo, hi))
	}
	return n, nil
}

// allowedVariables reads which server variables rules of sites may set.
func (p *parser) allowedVariables(e *xmldoc.Element, s *Section) error {
	if err := errors.Join(p.attrs(e), p.children(e, "add", "clear", "remove")); err != nil {
		return err
	}
	return eachOp(p, e, "add", "name", &s.allowed, func(a *xmldoc.Element) (string, error) {
		return a.Attr("name"), errors.Join(p.attrs(a, "name"), p.children(a))
	})
}

func (p *parser) inboundAction(a *xmldoc.Element, r *inboundRule) (err error) {
	if err := p.attrs(a, "type", "url", "appendQueryString", "logRewrittenUrl", "redirectType", "statusCode", "subStatusCode",
		"statusReason", "statusDescription"); err != nil {
		return err
	}
	if err := p.children(a); err != nil {
		return err
	}
	if r.action, err = p.enum(a, "type", "None", "None", "Rewrite", "Redirect", "CustomResponse", "AbortRequest"); err != nil {
		return err
	}
	r.target = a.Attr("url")
	if strings.TrimSpace(r.target) != r.target {
		if err := p.soft(p.errorf(a, "url=%q has blanks around it", r.target)); err != nil {
			return err
		}
	}
	if r.appendQuery, err = p.boolean(a, "appendQueryString", true); err != nil {
		return err
	}
	if _, ok := a.Lookup("logRewrittenUrl"); ok && p.global {
		if err := p.soft(p.errorf(a, "<action> of a global rule has no attribute \"logRewrittenUrl\"")); err != nil {
			return err
		}
	}
	if _, err = p.boolean(a, "logRewrittenUrl", false); err != nil {
		return err
	}
	kind, err := p.enum(a, "redirectType", "Permanent", "Permanent", "Found", "SeeOther", "Temporary", "301", "302", "303", "307")
	if err != nil {
		return err
	}
	r.redirectStatus = map[string]int{"Permanent": 301, "301": 301, "Found": 302, "302": 302, "SeeOther": 303, "303": 303, "Temporary": 307, "307": 307}[kind]
	code, err := p.number(a, "statusCode", 0, math.MaxUint32)
	if err != nil {
		return err
	}
	if code >= 300 && code <= 307 {
		if err := p.soft(p.errorf(a, "statusCode=%d: 300 to 307 are not allowed here", code)); err != nil {
			return err
		}
	}
	if _, err := p.number(a, "subStatusCode", 0, 999); err != nil {
		return err
	}
	switch r.action {
	case "Rewrite", "Redirect":
		if r.target == "" {
			if err := p.soft(p.errorf(a, "action %s needs a url", r.action)); err != nil {
				return err
			}
		}
	case "CustomResponse":
		if code < 1 || code > 999 {
			if err := p.soft(p.errorf(a, "statusCode=%q is not a status", a.Attr("statusCode"))); err != nil {
				return err
			}
		}
		r.status, r.reason = int(code), a.Attr("statusReason")
	}
	return nil
}

func (p *parser) syntax(e *xmldoc.Element) (syntax, error) {
	v, err := p.enum(e, "patternSyntax", "ECMAScript", "ECMAScript", "Wildcard", "ExactMatch")
	if err != nil {
		return 0, err
	}
	syn, _ := parseSyntax(v)
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
	pat, err := compilePattern(e.Attr(attr), syn, fold, p.careful)
	if err != nil {
		return nil, false, p.soft(p.errorf(e, "%v", err))
	}
	return pat, negate, nil
}

func (p *parser) grouping(e *xmldoc.Element) (matchAny bool, err error) {
	v, err := p.enum(e, "logicalGrouping", "MatchAll", "MatchAll", "MatchAny")
	return v == "MatchAny", err
}

func (p *parser) conditions(e *xmldoc.Element, syn syntax, trackByDefault bool) (cs []condition, matchAny, trackAll bool, err error) {
	if e == nil {
		return nil, false, trackByDefault, nil
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
	if trackAll, err = p.boolean(e, "trackAllCaptures", trackByDefault); err != nil {
		return nil, false, false, err
	}
	for _, a := range e.Children {
		if err = p.attrs(a, "input", "matchType", "pattern", "ignoreCase", "negate"); err != nil {
			return nil, false, false, err
		}
		if err = p.children(a); err != nil {
			return nil, false, false, err
		}
		c := condition{input: a.Attr("input")}
		if c.input == "" {
			if err := p.soft(p.errorf(a, "a condition without input")); err != nil {
				return nil, false, false, err
			}
		}
		if c.matchType, err = p.enum(a, "matchType", "Pattern", "Pattern", "IsFile", "IsDirectory", "0", "1", "2"); err != nil {
			return nil, false, false, err
		}
		if i := strings.Index("012", c.matchType); i >= 0 {
			c.matchType = []string{"Pattern", "IsFile", "IsDirectory"}[i]
		}
		if c.pattern, c.negate, err = p.matcher(a, "pattern", syn); err != nil {
			return nil, false, false, err
		}
		c.unknown = c.pattern == nil || c.input == ""
		if _, ok := a.Lookup("pattern"); !ok && c.matchType == "Pattern" {
			if err := p.soft(p.errorf(a, "a condition without pattern")); err != nil {
				return nil, false, false, err
			}
		}
		cs = append(cs, c)
	}
	// Rules of sites may repeat a condition; elsewhere the schema makes all of its attributes together a key.
	if p.global || trackByDefault {
		err = p.distinct(e)
	}
	return cs, matchAny, trackAll, err
}

// distinct refuses a condition that says the same as one before it.
func (p *parser) distinct(e *xmldoc.Element) error {
	seen := map[string]bool{}
	for _, a := range e.Children {
		key := strings.Join([]string{strings.ToLower(a.Attr("input")), strings.ToLower(a.AttrOr("matchType", "Pattern")), strings.ToLower(a.Attr("pattern")),
			strings.ToLower(a.AttrOr("ignoreCase", "true")), strings.ToLower(a.AttrOr("negate", "false"))}, "\x00")
		if seen[key] {
			if err := p.soft(p.errorf(a, "the same condition a second time")); err != nil {
				return err
			}
		}
		seen[key] = true
	}
	return nil
}

func (p *parser) outboundRules(e *xmldoc.Element, s *Section) error {
	if e.Name != "" {
		if err := errors.Join(p.attrs(e, "rewriteBeforeCache"), p.children(e, "rule", "preConditions", "customTags", "clear", "remove")); err != nil {
			return err
		}
		if _, err := p.boolean(e, "rewriteBeforeCache", false); err != nil {
			return err
		}
	}
	if tags := e.Child("customTags"); tags != nil {
		if err := p.customTags(tags, s); err != nil {
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
		if err := errors.Join(p.attrs(a, "input", "matchType", "pattern", "ignoreCase", "negate"), p.children(a)); err != nil {
			return nil, err
		}
		c := condition{input: a.Attr("input"), matchType: "Pattern"}
		if _, err := p.enum(a, "matchType", "Pattern", "Pattern", "IsFile", "IsDirectory"); err != nil {
			return nil, err
		}
		if c.input == "" {
			if err := p.soft(p.errorf(a, "a condition without input")); err != nil {
				return nil, err
			}
		}
		if c.pattern, c.negate, err = p.matcher(a, "pattern", syn); err != nil {
			return nil, err
		}
		c.unknown = c.pattern == nil || c.input == ""
		pc.conditions = append(pc.conditions, c)
	}
	return pc, p.distinct(e)
}

func (p *parser) outboundRule(e *xmldoc.Element) (*outboundRule, error) {
	if err := p.attrs(e, "name", "preCondition", "enabled", "patternSyntax", "stopProcessing"); err != nil {
		return nil, err
	}
	if err := errors.Join(p.children(e, "match", "conditions", "action"), p.once(e)); err != nil {
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
	if err := p.bodyMatch(m, r); err != nil {
		return nil, err
	}
	r.variable = m.Attr("serverVariable")
	if r.pattern, r.negate, err = p.matcher(m, "pattern", syn); err != nil {
		return nil, err
	}
	if r.conditions, r.matchAny, r.trackAll, err = p.conditions(e.Child("conditions"), syn, true); err != nil {
		return nil, err
	}
	if a := e.Child("action"); a != nil {
		if err := p.attrs(a, "type", "value", "replace"); err != nil {
			return nil, err
		}
		if err := p.children(a); err != nil {
			return nil, err
		}
		r.value = a.Attr("value")
		if r.action, err = p.enum(a, "type", "None", "None", "Rewrite"); err != nil {
			return nil, err
		}
		if r.replace, err = p.boolean(a, "replace", true); err != nil {
			return nil, err
		}
	}
	r.unknown = p.unknown
	return r, nil
}

// providers reads the names of providers. Source: "Using Custom Rewrite Providers" (Microsoft Learn).
func (p *parser) providers(e *xmldoc.Element, s *Section) error {
	if err := errors.Join(p.attrs(e), p.children(e, "provider", "clear", "remove")); err != nil {
		return err
	}
	return eachOp(p, e, "provider", "name", &s.provider, p.oneProvider)
}

func (p *parser) oneProvider(e *xmldoc.Element) (*rewriteMap, error) {
	if err := errors.Join(p.attrs(e, "name", "type"), p.children(e, "settings")); err != nil {
		return nil, err
	}
	if e.Attr("type") == "" {
		if err := p.soft(p.errorf(e, "<provider> without type")); err != nil {
			return nil, err
		}
	}
	for _, set := range e.All("settings") {
		if err := errors.Join(p.attrs(set), p.children(set, "add", "clear", "remove")); err != nil {
			return nil, err
		}
		for _, a := range set.All("add") {
			if err := errors.Join(p.attrs(a, "key", "value", "encryptedValue"), p.children(a)); err != nil {
				return nil, err
			}
		}
	}
	return &rewriteMap{name: e.Attr("name"), provider: true}, nil
}

func (p *parser) rewriteMaps(e *xmldoc.Element, s *Section) error {
	if err := errors.Join(p.attrs(e), p.children(e, "rewriteMap", "clear", "remove")); err != nil {
		return err
	}
	return eachOp(p, e, "rewriteMap", "name", &s.maps, p.rewriteMap)
}

func (p *parser) rewriteMap(m *xmldoc.Element) (*rewriteMap, error) {
	if err := errors.Join(p.attrs(m, "name", "defaultValue", "ignoreCase"), p.children(m, "add", "clear", "remove")); err != nil {
		return nil, err
	}
	if n := m.Attr("name"); strings.TrimSpace(n) != n {
		return nil, p.errorf(m, "name=%q has blanks around it", n)
	}
	fold, err := p.boolean(m, "ignoreCase", true)
	if err != nil {
		return nil, err
	}
	out := &rewriteMap{name: m.Attr("name"), entries: map[string]string{}, absent: m.Attr("defaultValue"), ignoreCase: fold}
	exact := map[string]bool{} // the schema compares keys by case, the look-up as the map says
	for _, a := range m.Children {
		switch a.Name {
		case "clear":
			out.entries, exact = map[string]string{}, map[string]bool{}
			continue
		case "remove":
			delete(out.entries, out.key(a.Attr("key")))
			delete(exact, a.Attr("key"))
			continue
		}
		key, ok := a.Lookup("key")
		if err := errors.Join(p.attrs(a, "key", "value"), p.children(a)); err != nil {
			return nil, err
		}
		if !ok {
			return nil, p.errorf(a, "<add> without key")
		}
		if exact[key] {
			return nil, p.errorf(a, "a second key %q", key)
		}
		exact[key] = true
		if _, dup := out.entries[out.key(key)]; !dup {
			out.entries[out.key(key)] = a.Attr("value")
		}
	}
	return out, nil
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
