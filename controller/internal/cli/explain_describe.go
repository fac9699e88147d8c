package cli

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// describeRule says in words when a rule runs and what it does then.
func describeRule(e *xmldoc.Element, outbound bool) (when []string, then string) {
	match, action, conditions := e.Child("match"), e.Child("action"), e.Child("conditions")
	syntax := ""
	if s := e.Attr("patternSyntax"); s != "" && !strings.EqualFold(s, "ECMAScript") {
		syntax = " (" + s + ")"
	}
	if outbound {
		if pre := e.Attr("preCondition"); pre != "" {
			when = append(when, fmt.Sprintf("precondition %q holds", pre))
		}
		what := "the body"
		if v := match.Attr("serverVariable"); v != "" {
			what = v
		} else if tags := match.Attr("filterByTags"); tags != "" && !strings.EqualFold(tags, "None") {
			what = "the body, in tags " + tags
		}
		when = append(when, fmt.Sprintf("%s %s %q%s", what, verb(match), match.Attr("pattern"), syntax))
	} else {
		when = append(when, fmt.Sprintf("the URL %s %q%s", verb(match), match.Attr("url"), syntax))
	}
	when = append(when, describeConditions(conditions, conditions.All("add"))...)
	return when, describeAction(action, outbound) + describeVariables(e) + describeStop(e, action)
}

func verb(e *xmldoc.Element) string {
	if strings.EqualFold(e.Attr("negate"), "true") {
		return "does not match"
	}
	return "matches"
}

func describeConditions(group *xmldoc.Element, adds []*xmldoc.Element) []string {
	out := make([]string, 0, len(adds))
	anyOf := strings.EqualFold(group.Attr("logicalGrouping"), "MatchAny") && len(adds) > 1
	for i, c := range adds {
		s := fmt.Sprintf("%s %s %q", c.Attr("input"), verb(c), c.Attr("pattern"))
		switch strings.ToLower(c.Attr("matchType")) {
		case "isfile":
			s = c.Attr("input") + " " + strings.Replace(verb(c), "matches", "is", 1) + " a file"
		case "isdirectory":
			s = c.Attr("input") + " " + strings.Replace(verb(c), "matches", "is", 1) + " a directory"
		}
		if anyOf && i == 0 {
			s = "one of: " + s
		} else if anyOf {
			s = "or: " + s
		}
		out = append(out, s)
	}
	return out
}

func describeAction(a *xmldoc.Element, outbound bool) string {
	kind := a.Attr("type")
	switch strings.ToLower(kind) {
	case "abortrequest":
		return "closes the connection"
	case "customresponse":
		code := a.Attr("statusCode")
		if sub := a.Attr("subStatusCode"); sub != "" && sub != "0" {
			code += "." + sub
		}
		if reason := a.Attr("statusReason"); reason != "" {
			code += " " + reason
		}
		return "answers " + code
	case "redirect":
		return fmt.Sprintf("redirects to %q (%s)", a.Attr("url"), a.AttrOr("redirectType", "Permanent"))
	case "rewrite":
		if outbound {
			return fmt.Sprintf("writes %q", a.Attr("value"))
		}
		return fmt.Sprintf("rewrites the URL to %q", a.Attr("url"))
	case "", "none":
		return "does nothing"
	}
	return fmt.Sprintf("has the action %q, which this version does not know", kind)
}

func describeVariables(e *xmldoc.Element) string {
	var names []string
	for _, s := range e.Child("serverVariables").All("set") {
		names = append(names, s.Attr("name"))
	}
	if len(names) == 0 {
		return ""
	}
	return ", sets " + strings.Join(names, ", ")
}

// describeStop names stopProcessing where the action does not end the evaluation anyway.
func describeStop(e, action *xmldoc.Element) string {
	switch strings.ToLower(action.Attr("type")) {
	case "abortrequest", "customresponse", "redirect":
		return ""
	}
	if strings.EqualFold(e.Attr("stopProcessing"), "true") {
		return ", and no later rule runs"
	}
	return ""
}
