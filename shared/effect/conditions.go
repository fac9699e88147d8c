package effect

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// conditionsNever says why conditions, or a precondition, can never hold; "" when they may.
func (r *Review) conditionsNever(group *xmldoc.Element, patternSyntax string, outbound bool) string {
	matchAny := strings.EqualFold(group.Attr("logicalGrouping"), "MatchAny")
	first := ""
	for _, add := range group.All("add") {
		why := r.conditionNever(add, patternSyntax, outbound)
		switch {
		case why == "" && matchAny:
			return ""
		case why == "":
			continue
		case !matchAny:
			return why
		case first == "":
			first = why
		}
	}
	return first
}

var (
	// oneVariable is an input that is one server variable, perhaps decoded or in small letters.
	oneVariable = regexp.MustCompile(`^(?i:\{(?:UrlDecode|ToLower):)*\{([A-Za-z0-9_]+)\}+$`)
	// pathVariables begin with the path; those with true end with it too.
	pathVariables = map[string]bool{"URL": true, "PATH_INFO": true, "SCRIPT_NAME": true, "REQUEST_URI": false, "HTTP_URL": false,
		"UNENCODED_URL":       false,
		"HTTP_X_ORIGINAL_URL": false}
	// signedInVariables are empty while inbound rules run: URL Rewrite comes before authentication.
	signedInVariables = []string{"AUTH_PASSWORD", "AUTH_TYPE", "AUTH_USER", "LOGON_USER", "REMOTE_USER", "UNMAPPED_REMOTE_USER"}
	// knownVariables are server variables of IIS besides the headers. Source: "IIS Server Variables" on Microsoft Learn, and the
	// URL Rewrite configuration reference.
	knownVariables = strings.Fields("ALL_HTTP ALL_RAW APPL_MD_PATH APPL_PHYSICAL_PATH APP_POOL_ID AUTH_PASSWORD AUTH_TYPE AUTH_USER CACHE_URL " +
		"CERT_COOKIE CERT_FLAGS CERT_ISSUER CERT_KEYSIZE CERT_SECRETKEYSIZE CERT_SERIALNUMBER CERT_SERVER_ISSUER " +
		"CERT_SERVER_SUBJECT CERT_SUBJECT CONTENT_LENGTH CONTENT_TYPE DOCUMENT_ROOT GATEWAY_INTERFACE HTTPS " +
		"HTTPS_KEYSIZE HTTPS_SECRETKEYSIZE HTTPS_SERVER_ISSUER HTTPS_SERVER_SUBJECT INSTANCE_ID INSTANCE_META_PATH " +
		"INSTANCE_NAME LOCAL_ADDR LOGON_USER ORIGINAL_PATH PATH_INFO PATH_TRANSLATED QUERY_STRING REMOTE_ADDR " +
		"REMOTE_HOST REMOTE_PORT REMOTE_USER REQUEST_FILENAME REQUEST_METHOD REQUEST_URI SCRIPT_FILENAME SCRIPT_NAME " +
		"SCRIPT_TRANSLATED SERVER_ADDR SERVER_NAME SERVER_PORT SERVER_PORT_SECURE SERVER_PROTOCOL SERVER_SOFTWARE " +
		"SSI_EXEC_DISABLED UNENCODED_URL UNMAPPED_REMOTE_USER URL URL_PATH_INFO WARMUP_REQUEST")
)

func (r *Review) conditionNever(add *xmldoc.Element, patternSyntax string, outbound bool) string {
	if t := add.Attr("matchType"); t != "" && !strings.EqualFold(t, "Pattern") {
		return "" // what exists on disk is not known here
	}
	input, pattern := add.Attr("input"), add.Attr("pattern")
	m := newMatcher(pattern, patternSyntax, add.Attr("ignoreCase"))
	if m == nil {
		return ""
	}
	negate := strings.EqualFold(add.Attr("negate"), "true")
	constant := func(value string) bool { return m.matches(value) == negate }
	if !strings.Contains(input, "{") {
		if constant(input) {
			return fmt.Sprintf("the condition compares the text %q, which is no variable; write {%s}", input, input)
		}
		return ""
	}
	found := oneVariable.FindStringSubmatch(input)
	if found == nil {
		return ""
	}
	name := strings.ToUpper(found[1])
	response := strings.HasPrefix(name, "RESPONSE_")
	switch {
	case !outbound && slices.Contains(signedInVariables, name):
		if constant("") {
			return fmt.Sprintf("the condition on %s can't hold: the rules run before anybody is authenticated, and the variable is empty then",
				input)
		}
		return ""
	case response && !outbound:
		if constant("") {
			return fmt.Sprintf("the condition on %s can't hold: before the request is answered there is no response, and the variable is empty",
				input)
		}
		return ""
	case !response && !strings.HasPrefix(name, "HTTP_") && !slices.Contains(knownVariables, name) && !r.sets(name):
		if constant("") {
			return fmt.Sprintf("the condition on %s can't hold: IIS has no server variable of that name, so that it is always empty", input)
		}
		return ""
	case name == "HTTPS":
		if constant("on") && constant("off") && constant("ON") && constant("OFF") {
			return fmt.Sprintf("the condition on %s can't hold: its value is on or off", input)
		}
		return ""
	case name == "SERVER_PORT_SECURE":
		if constant("0") && constant("1") {
			return fmt.Sprintf("the condition on %s can't hold: its value is 0 or 1", input)
		}
		return ""
	}
	if negate {
		return ""
	}
	return formNever(m, input, name)
}

// formNever says why a pattern matches no value that a variable can have, by the form of the values.
func formNever(m *matcher, input, name string) string {
	texts, complete := m.examples()
	if !complete {
		return ""
	}
	pathOnly, isPath := pathVariables[name]
	possible := func(t string) bool { return true }
	why := ""
	switch {
	case isPath:
		why = "its value begins with a slash"
		if pathOnly {
			why += " and has no query string"
		}
		possible = func(t string) bool {
			return strings.HasPrefix(t, "/") && (!pathOnly || !strings.Contains(t, "?"))
		}
	case name == "QUERY_STRING":
		why = "its value has no question mark in front"
		possible = func(t string) bool { return !strings.HasPrefix(t, "?") }
	case name == "HTTP_HOST" || name == "SERVER_NAME":
		why = "its value has no scheme and no path"
		possible = func(t string) bool { return !strings.Contains(t, "/") }
	}
	for _, t := range texts {
		for _, v := range []string{t, "/" + t, "/x" + t, "x" + t, "x" + t + "x", "/x/" + t + "/x"} {
			if possible(v) && m.matches(v) {
				return ""
			}
		}
	}
	return fmt.Sprintf("the condition on %s can't hold: pattern %q matches %q, and %s", input, m.source, texts[0], why)
}

// sets reports whether a rule of the document sets a server variable.
func (r *Review) sets(name string) bool {
	return slices.ContainsFunc(r.rules, func(x *PlacedRule) bool {
		return slices.ContainsFunc(x.Element.Child("serverVariables").All("set"),
			func(s *xmldoc.Element) bool { return strings.EqualFold(s.Attr("name"), name) })
	})
}

// clientVariables say where a request comes from, or by which name the server was called: a document may know what is
// right in its organisation, and the samples do not.
var clientVariables = []string{"REMOTE_ADDR", "REMOTE_HOST", "HTTP_HOST", "SERVER_NAME", "HTTP_X_FORWARDED_FOR"}

// exempts returns the input of a condition that lets clients through by their address or the host name they ask for; "" for
// none.
func (x *PlacedRule) exempts() string {
	group := x.Element.Child("conditions")
	if strings.EqualFold(group.Attr("logicalGrouping"), "MatchAny") {
		return ""
	}
	for _, add := range group.All("add") {
		found := oneVariable.FindStringSubmatch(add.Attr("input"))
		if found != nil && strings.EqualFold(add.Attr("negate"), "true") && slices.Contains(clientVariables, strings.ToUpper(found[1])) {
			return add.Attr("input")
		}
	}
	return ""
}
