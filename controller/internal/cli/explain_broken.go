package cli

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// brokenPatterns names the patterns of enabled rules that do not compile. IIS answers 500 to every request of a path that has one.
func brokenPatterns(p *iisconfig.Place) []string {
	var out []string
	for _, s := range []string{"globalRules", "rules", "outboundRules"} {
		for _, i := range p.Section(s).Items {
			if syntax := i.Element.Attr("patternSyntax"); disabled(i) || syntax != "" && !strings.EqualFold(syntax, "ECMAScript") {
				continue
			}
			for _, pattern := range patterns(i.Element, s == "outboundRules") {
				if err := urlrewrite.Compiles(pattern); err != nil {
					out = append(out, fmt.Sprintf("rule %q at %s: %v", i.Name, i.Source, err))
				}
			}
		}
	}
	return out
}

func patterns(rule *xmldoc.Element, outbound bool) []string {
	attr := "url"
	if outbound {
		attr = "pattern"
	}
	var out []string
	if v, ok := rule.Child("match").Lookup(attr); ok {
		out = append(out, v)
	}
	for _, c := range rule.Child("conditions").All("add") {
		if t := c.Attr("matchType"); t == "" || strings.EqualFold(t, "Pattern") {
			out = append(out, c.Attr("pattern"))
		}
	}
	return out
}
