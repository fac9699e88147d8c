package effect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Never says why a rule can never do anything where the document puts it; "" when it may. It tries examples of what the
// patterns match, so that it objects only to what it can show; what it can't judge it lets pass.
func (r *Review) Never(x *PlacedRule, attacks []Attack) string {
	if strings.EqualFold(x.Element.Attr("enabled"), "false") {
		return `it is disabled (enabled="false")`
	}
	match := x.Element.Child("match")
	if x.Outbound {
		if v := match.Attr("serverVariable"); v != "" && !strings.HasPrefix(strings.ToUpper(v), "RESPONSE_") {
			return fmt.Sprintf("serverVariable=%q names no header of the response; write RESPONSE_ and the header's name, with _ for each hyphen", v)
		}
		if x.Pre != nil {
			if why := r.conditionsNever(x.Pre, x.Pre.Attr("patternSyntax"), true); why != "" {
				return "its precondition never holds: " + why
			}
		}
	} else if why := r.urlNever(x, match, attacks); why != "" {
		return why
	}
	if c := x.Element.Child("conditions"); c != nil {
		return r.conditionsNever(c, x.Element.Attr("patternSyntax"), x.Outbound)
	}
	return ""
}

// oddInputs are URLs of every shape, relative to an application.
var oddInputs = []string{"", "a", "x/y/z-1.html", "owa/auth/logon.aspx", "Q_7.zz", "autodiscover/autodiscover.json", "exchange.asmx", "%",
	"9", "~!$'()*+,;="}

func (r *Review) urlNever(x *PlacedRule, match *xmldoc.Element, attacks []Attack) string {
	src, ok := match.Lookup("url")
	if !ok {
		return ""
	}
	m := newMatcher(src, x.Element.Attr("patternSyntax"), match.Attr("ignoreCase"))
	if m == nil {
		return ""
	}
	if strings.EqualFold(match.Attr("negate"), "true") {
		if !slices.ContainsFunc(oddInputs, func(in string) bool { return !m.matches(in) }) {
			return fmt.Sprintf("url=%q matches every URL, and the match is negated", src)
		}
		return ""
	}
	for _, s := range Samples() {
		attacks = append(attacks, s.Attack)
	}
	for _, a := range attacks {
		if r.sees(x, m, a.Path) != "" {
			return ""
		}
	}
	texts, complete := m.examples()
	if !complete {
		return ""
	}
	apps := r.apps(x)
	for _, t := range texts {
		t = strings.TrimLeft(t, "/")
		for _, app := range apps {
			base := strings.TrimSuffix(app.Path, "/")
			for _, path := range []string{base + "/" + t, base + "/x/" + t, base + "/" + t + "/x", base + "/x/" + t + "/x"} {
				if r.late() || r.plausible(x, path) && r.sees(x, m, path) != "" {
					return ""
				}
			}
		}
	}
	return r.misread(x, src, texts)
}

// sees returns "yes" when the pattern of a rule matches the URL that it gets for a path, by either reading.
func (r *Review) sees(x *PlacedRule, m *matcher, path string) string {
	p := r.m.At(x.site, path)
	it := p.Section("rules").Item(x.Name)
	if it == nil {
		return ""
	}
	for _, base := range []string{it.Base, p.App.Path} {
		if m.matches(urlrewrite.Relative(path, base)) {
			return "yes"
		}
	}
	return ""
}

// plausible reports whether a rule may be meant for a path. Below an application, a path that repeats the application's name,
// or begins with the name of another one, comes from a pattern that was written as if it got the whole path.
func (r *Review) plausible(x *PlacedRule, path string) bool {
	if strings.ContainsAny(path, `?\`) || strings.Contains(path, "://") {
		return false
	}
	app := r.m.At(x.site, path).App
	if x.path == "/" || app.Path == "/" {
		return true
	}
	own := strings.ToLower(app.Path[strings.LastIndexByte(app.Path, '/')+1:])
	rest := strings.Split(strings.ToLower(strings.Trim(path[min(len(app.Path), len(path)):], "/")), "/")
	return !slices.Contains(rest, own) && !slices.ContainsFunc(x.site.Apps, func(a *iisconfig.App) bool {
		return a.Path != "/" && strings.EqualFold(a.Path, "/"+rest[0])
	})
}

// misread says what the author of a pattern that never matches took its input for, and what the pattern gets.
func (r *Review) misread(x *PlacedRule, src string, texts []string) string {
	all := func(f func(string) bool) bool {
		return !slices.ContainsFunc(texts, func(t string) bool { return !f(t) })
	}
	lead := func(cut string) string {
		for _, anchor := range []string{"^", ""} {
			if n := len(anchor + cut); len(src) == n && strings.EqualFold(src, anchor+cut) {
				return `; write url=".*"`
			} else if len(src) > n && strings.EqualFold(src[:n], anchor+cut) {
				return fmt.Sprintf("; write url=%q", anchor+src[n:])
			}
		}
		return ""
	}
	own := strings.ToLower(x.path[strings.LastIndexByte(x.path, '/')+1:])
	switch {
	case all(func(t string) bool { return strings.Contains(t, "://") }):
		return fmt.Sprintf("url=%q looks for scheme and host, and the pattern gets the path only", src)
	case all(func(t string) bool { return strings.Contains(t, "?") }):
		return fmt.Sprintf("url=%q looks for a question mark, and the pattern gets the path without the query string; "+
			"look for what is behind it in a condition on "+
			"{UrlDecode:{QUERY_STRING}}", src)
	case own != "" && all(func(t string) bool { return strings.Contains("/"+strings.ToLower(t)+"/", "/"+own+"/") }):
		cut := own + "/"
		if strings.HasPrefix(strings.TrimPrefix(src, "^"), "/") {
			cut = "/" + cut
		}
		hint := lead(cut)
		if hint == "" {
			hint = "; leave that part out"
		}
		return fmt.Sprintf("url=%q looks for %q, and at %s the pattern gets the URL relative to %s, without it (of %s/x it gets \"x\")%s",
			src, own, x.path, x.path, x.path, hint)
	case all(func(t string) bool { return strings.HasPrefix(t, "/") }):
		return fmt.Sprintf("url=%q begins with a slash, and the pattern gets the URL without the slash in front%s", src, lead("/"))
	}
	return fmt.Sprintf("url=%q matches %q, and at %s the pattern gets the URL relative to %s, without a slash in front; "+
		"if the attack has this form there, add an effect probe that shows it", src, texts[0], x.path, x.path)
}
