package iisconfig

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// inner is a collection inside an element of a section. Source: URL Rewrite's rewrite_schema.xml.
type inner struct {
	// in is the child element that has the collection; "" for the element itself.
	in string
	// element and keys name the collection's elements and the attributes that tell them apart, with their defaults. All but the
	// condition's are required.
	element string
	keys    [][2]string
	// directives: <clear/> and <remove> are allowed.
	directives    bool
	optional      bool // a key attribute may be absent
	caseSensitive bool
}

var conditionKeys = [][2]string{{"input", ""}, {"matchType", "Pattern"}, {"pattern", ""}, {"ignoreCase", "true"}, {"negate", "false"}}

// inners lists the collections inside the elements of a section. Conditions of distributed rules have no key.
var inners = map[string][]inner{
	"globalRules": {{in: "conditions", element: "add", keys: conditionKeys, optional: true},
		{in: "serverVariables", element: "set", keys: [][2]string{{"name", ""}}}},
	"rules":         {{in: "serverVariables", element: "set", keys: [][2]string{{"name", ""}}}},
	"outboundRules": {{in: "conditions", element: "add", keys: conditionKeys, optional: true}},
	"preConditions": {{element: "add", keys: conditionKeys, optional: true}},
	"customTags":    {{element: "tag", keys: [][2]string{{"name", ""}, {"attribute", ""}}, directives: true}},
	"rewriteMaps":   {{element: "add", keys: [][2]string{{"key", ""}}, directives: true, caseSensitive: true}},
	"providers":     {{in: "settings", element: "add", keys: [][2]string{{"key", ""}}, directives: true}},
}

// enums are the values of attributes, by element ("" for the rule, precondition, ... itself) and name.
var enums = map[[2]string][]string{
	{"", "patternSyntax"}:             {"ECMAScript", "Wildcard", "ExactMatch"},
	{"", "logicalGrouping"}:           {"MatchAll", "MatchAny"}, // of a precondition
	{"conditions", "logicalGrouping"}: {"MatchAll", "MatchAny"},
	{"add", "matchType"}:              {"Pattern", "IsFile", "IsDirectory"},
	{"action", "redirectType"}:        {"Permanent", "Found", "SeeOther", "Temporary"},
	{"action", "type"}:                {"None", "Rewrite", "Redirect", "CustomResponse", "AbortRequest"},
}

// bools are the attributes that are true or false, in whichever element.
var bools = []string{"enabled", "stopProcessing", "ignoreCase", "negate", "trackAllCaptures", "appendQueryString", "logRewrittenUrl",
	"replace"}

// ruled are the sections whose elements are checked for values out of range.
var ruled = []string{"globalRules", "rules", "outboundRules", "preConditions"}

// violates says why the schema does not allow an element of a collection: a value out of range, a required attribute that is
// missing, or the same key twice inside. What the schema does not know (an attribute, an element) is no violation: a newer version
// of URL Rewrite may know it. The element returned is the offending one; hresult is 0 when there is none.
func (k kind) violates(e *xmldoc.Element) (at *xmldoc.Element, hresult uint32, why string) {
	if slices.Contains(ruled, k.name) {
		if at, why := badValue(e, "", k.name == "outboundRules"); why != "" {
			return at, HResultInvalidData, why
		}
	}
	for _, in := range inners[k.name] {
		for _, c := range collections(e, in.in) {
			if at, hresult, why := in.violates(c); why != "" {
				return at, hresult, why
			}
		}
	}
	return nil, 0, ""
}

func collections(e *xmldoc.Element, name string) []*xmldoc.Element {
	if name == "" {
		return []*xmldoc.Element{e}
	}
	return e.All(name)
}

func (in inner) violates(c *xmldoc.Element) (at *xmldoc.Element, hresult uint32, why string) {
	seen := map[string]bool{}
	for _, e := range c.Children {
		switch {
		case e.Name == "clear" && in.directives:
			clear(seen)
			continue
		case e.Name != in.element && (e.Name != "remove" || !in.directives):
			continue // not known to the schema
		}
		key, values := "", make([]string, 0, len(in.keys))
		for _, k := range in.keys {
			v, ok := e.Lookup(k[0])
			if !ok {
				if !in.optional {
					return e, HResultInvalidData, fmt.Sprintf("<%s> without %s", e.Name, k[0])
				}
				v = k[1]
			}
			if !in.caseSensitive {
				v = fold(v)
			}
			key += strconv.Quote(v)
			values = append(values, v)
		}
		if e.Name == "remove" {
			delete(seen, key)
			continue
		}
		if seen[key] {
			return e, HResultDuplicate, fmt.Sprintf("<%s> with %s %q is there a second time", e.Name, in.keys[0][0], values[0])
		}
		seen[key] = true
	}
	return nil, 0, ""
}

// badValue finds an attribute whose value its type does not allow, in an element or below it.
func badValue(e *xmldoc.Element, name string, outbound bool) (*xmldoc.Element, string) {
	for _, a := range e.Attrs {
		allowed := enums[[2]string{name, a.Name}]
		switch {
		case outbound && name == "action" && a.Name == "type":
			allowed = allowed[:2]
		case name == "action" && (a.Name == "statusCode" || a.Name == "subStatusCode"):
			if why := badStatus(a); why != "" {
				return e, why
			}
			continue
		case slices.Contains(bools, a.Name):
			allowed = []string{"true", "false"}
		}
		if allowed != nil && !slices.ContainsFunc(allowed, func(v string) bool { return strings.EqualFold(v, a.Value) }) {
			return e, fmt.Sprintf("%s=%q of <%s> is none of %s", a.Name, a.Value, e.Name, strings.Join(allowed, ", "))
		}
	}
	for _, c := range e.Children {
		if slices.Contains([]string{"match", "conditions", "action", "serverVariables", "add", "set"}, c.Name) {
			if at, why := badValue(c, c.Name, outbound); why != "" {
				return at, why
			}
		}
	}
	return nil, ""
}

func badStatus(a xmldoc.Attr) string {
	n, err := strconv.ParseUint(a.Value, 10, 32)
	if err != nil {
		return fmt.Sprintf("%s=%q is no number", a.Name, a.Value)
	}
	if a.Name == "statusCode" && n >= 300 && n <= 307 || a.Name == "subStatusCode" && n > 999 {
		return fmt.Sprintf("%s=%q is out of range", a.Name, a.Value)
	}
	return ""
}
