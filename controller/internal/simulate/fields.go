package simulate

import (
	"bytes"
	"strings"
)

// Bounds on a line. IIS's own limits on URL, query and headers together are below maxLine. IIS has about thirty fields, and
// custom ones come on top.
const (
	maxLine    = 64 << 10
	maxColumns = 128
)

// kind is the kind of values in a column, as far as they can be told from those of other columns.
type kind uint8

const (
	text      kind = iota // anything; only such a column can hold blanks
	queryText             // the query, to which Exchange appends text with blanks
	link                  // a Referer: mostly an absolute URL
	date
	clock
	address
	method
	stem
	number
	protocol
)

// fields says where in a line each value is, from the `#Fields:` line. -1 means that the log does not have it.
type fields struct {
	kinds []kind
	// format is the kind of log, from `#Software:` and the names of the fields.
	format                                             format
	method, stem, query, client, forwarded, host, port int
	agent, cookie, referer, status                     int
	// other request headers that are logged, by place: cs(Name) fields.
	other map[int]string
}

// format is how the values of a line are written.
type format uint8

const (
	// unsaid: no #Software line. A value may be in quotes if the line makes sense only then.
	unsaid format = iota
	// plain is the W3C format of IIS: blanks in a value are written as plus signs.
	plain
	// advanced is the format of the IIS Advanced Logging module: blank or tab between the values, and quotes around those that
	// may hold blanks. Source: samples in matomo-log-analytics issue 43 and matomo pull request 261.
	advanced
)

// formatOf reads a `#Software:` line.
func formatOf(software []byte) format {
	if bytes.Contains(bytes.ToLower(software), []byte("advanced logging")) {
		return advanced
	}
	return plain
}

func noFields() fields {
	return fields{method: -1, stem: -1, query: -1, client: -1, forwarded: -1, host: -1, port: -1,
		agent: -1, cookie: -1, referer: -1, status: -1}
}

func (f *fields) count() int { return len(f.kinds) }

// parseFields reads a `#Fields:` line (W3C extended log file format), in any order. Names that only Advanced Logging uses are
// the identifiers of its fields, which it writes where no other name was configured.
func parseFields(line []byte) fields {
	f := noFields()
	f.other = map[int]string{}
	names := strings.Fields(string(line))
	if len(names) > maxColumns {
		return f
	}
	for i, name := range names {
		low := strings.ToLower(name)
		f.kinds = append(f.kinds, kindOf(low))
		switch low {
		case "cs-method", "method":
			f.method = i
		case "cs-uri-stem", "uri-stem":
			f.stem = i
		case "cs-uri-query", "uri-querystring", "uri-query":
			f.query = i
		case "c-ip", "client-ip":
			f.client = i
		case "x-forwarded-for", "cs(x-forwarded-for)":
			f.forwarded = i
		case "cs-host", "cs(host)", "host":
			f.host = i
		case "s-port", "server-port":
			f.port = i
		case "cs(user-agent)", "user-agent":
			f.agent = i
		case "cs(cookie)", "cookie":
			f.cookie = i
		case "cs(referer)", "referer":
			f.referer = i
		case "sc-status":
			f.status = i
		case "date-local", "time-local", "date-utc", "time-utc", "timetakenms":
			f.format = advanced
		default:
			if h, ok := strings.CutPrefix(low, "cs("); ok {
				f.other[i] = strings.TrimSuffix(h, ")")
			}
		}
	}
	return f
}

// kindOf returns the kind of a column of that name, which is in lower case.
func kindOf(name string) kind {
	switch name {
	case "date", "date-local", "date-utc":
		return date
	case "time", "time-local", "time-utc":
		return clock
	case "s-ip", "c-ip", "client-ip":
		return address
	case "cs-method", "method":
		return method
	case "cs-uri-stem", "uri-stem":
		return stem
	case "cs-uri-query", "uri-querystring", "uri-query":
		return queryText
	case "s-port", "server-port", "sc-status", "sc-substatus", "sc-win32-status", "sc-bytes", "cs-bytes", "time-taken", "timetakenms":
		return number
	case "cs-version":
		return protocol
	case "cs(referer)", "referer":
		return link
	}
	return text
}

// misfit is how badly a value fits the kind of its column: 0 is well, impossible not at all.
func (k kind) misfit(v []byte) int {
	ok := false
	switch k {
	case text, queryText:
		return 0
	case link:
		if len(v) == 1 && v[0] == '-' || bytes.Contains(v, []byte("://")) {
			return 0
		}
		return 2
	case number:
		ok = isNumber(v)
	case date:
		ok = len(v) == 10 && v[4] == '-' && v[7] == '-' && only(v, "0123456789-")
	case clock:
		ok = len(v) >= 8 && v[2] == ':' && v[5] == ':' && only(v, "0123456789:.")
	case address:
		ip, _, _ := bytes.Cut(v, []byte("%")) // fe80::1%4
		ok = bytes.ContainsAny(ip, ".:") && only(ip, "0123456789abcdefABCDEF.:[]")
	case method:
		ok = len(v) > 0 && len(v) <= 32 && only(v, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-")
	case stem:
		ok = len(v) > 0 && (v[0] == '/' || v[0] == '*')
	case protocol:
		ok = bytes.HasPrefix(v, []byte("HTTP/"))
	}
	switch {
	case ok:
		return 0
	case len(v) == 1 && v[0] == '-':
		return 2 // not logged for this request
	}
	return impossible
}

// isNumber says whether a value is a number, of any size: sc-win32-status has up to ten digits.
func isNumber(v []byte) bool { return len(v) > 0 && only(v, "0123456789") }

func only(v []byte, set string) bool {
	for _, c := range v {
		if strings.IndexByte(set, c) < 0 {
			return false
		}
	}
	return true
}
