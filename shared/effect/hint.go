package effect

import (
	"fmt"
	"strings"
)

// Hint says what may be wrong with the rules that do not refuse an attack request, where one of them looks for the right words
// in the wrong part of it; "" for no idea.
func (r *Review) Hint(a Attack) string {
	if a.Query == "" {
		return ""
	}
	for _, x := range r.rules {
		match := x.Element.Child("match")
		src := match.Attr("url")
		if x.Outbound || src == "" || strings.EqualFold(match.Attr("negate"), "true") || !x.at(r.m.At(x.site, a.Path)) {
			continue
		}
		m := newMatcher(src, x.Element.Attr("patternSyntax"), match.Attr("ignoreCase"))
		if r.sees(x, m, a.Path) == "" && r.sees(x, m, a.Path+"?"+a.Query) != "" {
			return fmt.Sprintf("url=%q of rule %q matches the URL with its query string, and the pattern gets the path only; "+
				"look for the rest in a condition on {UrlDecode:{REQUEST_URI}}",
				src, x.Name)
		}
	}
	return ""
}
