package simulate

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// entry is one request of a log, in the form in which rules are evaluated on it. It is reused for the next line: a text that must
// outlive the line is copied.
type entry struct {
	f      *fields
	line   string
	cols   []span
	quoted bool
	req    urlrewrite.Request
	// headers says that req.Header is filled: only if a rule asks for one, since hardly any request gets that far.
	headers bool
	// queryAsked says that a rule read a variable that contains the query.
	queryAsked bool
}

// set makes it the entry of a line. A stem is logged decoded, or as it came: which, no log says, so that a percent sign in it
// counts as encoded.
func (e *entry) set(line string, cols []span, quoted bool) {
	e.line, e.cols, e.quoted = line, cols, quoted
	e.headers, e.queryAsked = false, false
	raw := e.value(e.f.stem)
	path := raw
	if strings.Contains(path, "%") {
		if d, err := url.PathUnescape(path); err == nil {
			path = d
		}
	}
	scheme := "https"
	if e.value(e.f.port) == "80" {
		scheme = "http"
	}
	unknown := e.req.Unknown
	if unknown == nil {
		unknown = e.unknown
	}
	e.req = urlrewrite.Request{Method: e.value(e.f.method), Scheme: scheme, Host: e.value(e.f.host), Path: path, RawPath: raw,
		RawQuery: e.value(e.f.query), RemoteAddr: e.value(e.f.client), Unknown: unknown}
}

// value is a column's value; "" where the log has none for this request.
func (e *entry) value(i int) string {
	if i < 0 {
		return ""
	}
	v := e.line[e.cols[i].from:e.cols[i].to]
	if e.quoted && len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		if v = v[1 : len(v)-1]; strings.Contains(v, `""`) {
			v = strings.ReplaceAll(v, `""`, `"`)
		}
		return v
	}
	if v == "-" {
		return ""
	}
	return v
}

// prose is the value of a header that may hold blanks. They are logged as plus signs; what was a plus sign is one too. In quotes
// they are logged as they are.
func (e *entry) prose(i int) string {
	v := e.value(i)
	if e.quoted && i >= 0 && e.line[e.cols[i].from] == '"' {
		return v
	}
	return strings.ReplaceAll(v, "+", " ")
}

// client is the address of the client: the first of X-Forwarded-For where that is logged, else the peer's.
func (e *entry) client() string {
	if v := e.value(e.f.forwarded); v != "" {
		return v
	}
	return e.value(e.f.client)
}

// unknown says whether the log lacks the value of a server variable. It is called before a rule reads a variable, so it also
// notes whether the query was read, and fills in the headers.
func (e *entry) unknown(name string) bool {
	f := e.f
	switch name {
	case "HTTP_COOKIE":
		e.fill()
		return f.cookie < 0
	case "HTTP_USER_AGENT":
		e.fill()
		return f.agent < 0
	case "HTTP_REFERER":
		e.fill()
		return f.referer < 0
	case "HTTP_X_FORWARDED_FOR":
		e.fill()
		return f.forwarded < 0
	case "HTTP_HOST", "SERVER_NAME":
		return f.host < 0
	case "QUERY_STRING", "REQUEST_URI", "UNENCODED_URL", "HTTP_URL", "HTTP_X_ORIGINAL_URL":
		e.queryAsked = true
		return f.query < 0
	case "REQUEST_METHOD":
		return f.method < 0
	case "REMOTE_ADDR", "REMOTE_HOST":
		return f.client < 0
	case "URL", "SCRIPT_NAME", "PATH_INFO", "HTTPS", "SERVER_PORT", "SERVER_PORT_SECURE":
		return false
	}
	if h, ok := strings.CutPrefix(name, "HTTP_"); ok {
		e.fill()
		h = strings.ToLower(strings.ReplaceAll(h, "_", "-"))
		for _, have := range f.other {
			if have == h {
				return false
			}
		}
	}
	return true // REQUEST_FILENAME and whatever else a log can't know
}

func (e *entry) fill() {
	if e.headers {
		return
	}
	e.headers = true
	e.req.Header = http.Header{}
	set := func(name, v string) {
		if v != "" {
			e.req.Header.Set(name, v)
		}
	}
	set("User-Agent", e.prose(e.f.agent))
	set("Cookie", e.prose(e.f.cookie))
	set("Referer", e.value(e.f.referer))
	set("X-Forwarded-For", e.prose(e.f.forwarded))
	for i, name := range e.f.other {
		set(name, e.value(i))
	}
}
