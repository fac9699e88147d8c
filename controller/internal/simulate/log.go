package simulate

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// fields is where in a line what stands, from the `#Fields:` line; -1: the log does not have it.
type fields struct {
	count                                              int
	method, stem, query, client, forwarded, host, port int
	agent, cookie, referer, status                     int
	// other request headers that are logged, by place: cs(Name) fields.
	other map[int]string
}

func noFields() fields {
	return fields{method: -1, stem: -1, query: -1, client: -1, forwarded: -1, host: -1, port: -1, agent: -1, cookie: -1, referer: -1, status: -1}
}

// parseFields reads a `#Fields:` line (W3C extended log file format), in any order.
func parseFields(line []byte) fields {
	f := noFields()
	f.other = map[int]string{}
	for i, name := range strings.Fields(string(line)) {
		f.count++
		switch low := strings.ToLower(name); low {
		case "cs-method":
			f.method = i
		case "cs-uri-stem":
			f.stem = i
		case "cs-uri-query":
			f.query = i
		case "c-ip":
			f.client = i
		case "x-forwarded-for", "cs(x-forwarded-for)":
			f.forwarded = i
		case "cs-host":
			f.host = i
		case "s-port":
			f.port = i
		case "cs(user-agent)":
			f.agent = i
		case "cs(cookie)":
			f.cookie = i
		case "cs(referer)":
			f.referer = i
		case "sc-status":
			f.status = i
		default:
			if h, ok := strings.CutPrefix(low, "cs("); ok {
				f.other[i] = strings.TrimSuffix(h, ")")
			}
		}
	}
	return f
}

// Exchange appends what it wants to remember to the query that IIS logs; the client never sent it. Source: IIS logs of
// Exchange 2016 and 2019 front ends.
var appended = [][]byte{[]byte("&CorrelationID=<"), []byte("&cafeReqId="), []byte("&ActID="), []byte("&encoding=;"), []byte("&ClientId="), []byte("&ClientRequestId=")}

// appendedAlone are the same where there was no query: then the text begins it.
var appendedAlone = [][]byte{[]byte("CorrelationID=<"), []byte("cafeReqId="), []byte("ActID="), []byte("encoding=;")}

// clientQuery cuts off what Exchange appended.
func clientQuery(q []byte) []byte {
	for _, a := range appendedAlone {
		if bytes.HasPrefix(q, a) {
			return nil
		}
	}
	cut := len(q)
	for _, a := range appended {
		if i := bytes.Index(q[:cut], a); i >= 0 {
			cut = i
		}
	}
	return q[:cut]
}

// entry is one request of a log.
type entry struct {
	method, stem, query, client, host, agent, cookie, referer, port string
	other                                                           map[string]string
}

func value(cols [][]byte, i int) string {
	if i < 0 || i >= len(cols) || len(cols[i]) == 1 && cols[i][0] == '-' {
		return ""
	}
	return string(cols[i])
}

// parseLine reads one line. ok is false for a line that has not the columns that were announced.
func (f *fields) parseLine(line []byte, cols [][]byte) (e entry, rest [][]byte, ok bool) {
	cols = cols[:0]
	for len(line) > 0 && len(cols) <= f.count {
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			cols = append(cols, line)
			break
		}
		cols = append(cols, line[:i])
		line = line[i+1:]
	}
	if len(cols) != f.count || f.stem < 0 {
		return e, cols, false
	}
	e = entry{method: value(cols, f.method), stem: value(cols, f.stem), client: value(cols, f.forwarded), host: value(cols, f.host),
		agent: value(cols, f.agent), cookie: value(cols, f.cookie), referer: value(cols, f.referer), port: value(cols, f.port)}
	if f.query >= 0 && (len(cols[f.query]) != 1 || cols[f.query][0] != '-') {
		e.query = string(clientQuery(cols[f.query]))
	}
	if e.client == "" {
		e.client = value(cols, f.client)
	}
	for i, name := range f.other {
		if v := value(cols, i); v != "" {
			if e.other == nil {
				e.other = map[string]string{}
			}
			e.other[name] = v
		}
	}
	return e, cols, true
}

// request is an entry as the rules see it. A stem is logged decoded, or as it came: which, no log says, so that a percent sign in
// it counts as encoded.
func (f *fields) request(e entry) *urlrewrite.Request {
	path := e.stem
	if strings.Contains(path, "%") {
		if d, err := url.PathUnescape(path); err == nil {
			path = d
		}
	}
	scheme := "https"
	if e.port == "80" {
		scheme = "http"
	}
	h := http.Header{}
	set := func(name, v string) {
		if v != "" {
			h.Set(name, v)
		}
	}
	// Blanks are logged as plus signs; what was a plus sign is one too.
	set("User-Agent", strings.ReplaceAll(e.agent, "+", " "))
	set("Cookie", strings.ReplaceAll(e.cookie, "+", " "))
	set("Referer", e.referer)
	for name, v := range e.other {
		set(name, v)
	}
	return &urlrewrite.Request{Method: e.method, Scheme: scheme, Host: e.host, Path: path, RawPath: e.stem, RawQuery: e.query, Header: h,
		RemoteAddr: e.client, Unknown: f.unknown}
}

// unknown says whether the log does not have what a server variable is.
func (f *fields) unknown(name string) bool {
	switch name {
	case "HTTP_COOKIE":
		return f.cookie < 0
	case "HTTP_USER_AGENT":
		return f.agent < 0
	case "HTTP_REFERER":
		return f.referer < 0
	case "HTTP_HOST", "SERVER_NAME":
		return f.host < 0
	case "QUERY_STRING":
		return f.query < 0
	case "REQUEST_METHOD":
		return f.method < 0
	case "REMOTE_ADDR", "REMOTE_HOST":
		return f.client < 0 && f.forwarded < 0
	case "REQUEST_URI", "UNENCODED_URL", "HTTP_URL", "URL", "SCRIPT_NAME", "PATH_INFO", "HTTPS", "SERVER_PORT", "SERVER_PORT_SECURE":
		return false
	}
	if h, ok := strings.CutPrefix(name, "HTTP_"); ok {
		h = strings.ToLower(strings.ReplaceAll(h, "_", "-"))
		for _, have := range f.other {
			if have == h {
				return false
			}
		}
	}
	return true // REQUEST_FILENAME and whatever else a log can't know
}

// isNumber says whether a value is a number, of any size.
func isNumber(v []byte) bool { return len(v) > 0 && only(v, "0123456789") }

func only(v []byte, set string) bool {
	for _, c := range v {
		if strings.IndexByte(set, c) < 0 {
			return false
		}
	}
	return true
}
