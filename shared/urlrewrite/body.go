package urlrewrite

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// MaxBody bounds a response body that is evaluated, in bytes: patterns are run over all of it.
const MaxBody = 1 << 20

// Tags whose attributes an outbound rule can look into (filterByTags), with their values and attributes. Source:
// rewrite_schema.xml of URL Rewrite 2.1.
var tagFlags = []struct {
	name  string
	value uint32
	attrs []string
}{
	{"None", 0, nil},
	{"A", 1, []string{"href"}}, {"Area", 2, []string{"href"}}, {"Base", 4, []string{"href"}}, {"Form", 8, []string{"action"}},
	{"Frame", 16, []string{"src", "longdesc"}}, {"Head", 32, []string{"profile"}}, {"IFrame", 64, []string{"src", "longdesc"}},
	{"Img", 128, []string{"src", "longdesc", "usemap"}}, {"Input", 256, []string{"src", "usemap"}}, {"Link", 512, []string{"href"}},
	{"Script", 1024, []string{"src"}}, {"CustomTags", flagCustomTags, nil},
}

const flagCustomTags = 32768

// tagSet is one <tags> of <customTags>: pairs of tag and attribute, lower case.
type tagSet struct {
	name string
	tags [][2]string
}

func (p *parser) customTags(e *xmldoc.Element, s *Section) error {
	if err := errors.Join(p.attrs(e), p.children(e, "tags", "clear", "remove")); err != nil {
		return err
	}
	return eachOp(p, e, "tags", "name", &s.tags, func(t *xmldoc.Element) (*tagSet, error) {
		if err := errors.Join(p.attrs(t, "name"), p.children(t, "tag", "clear", "remove")); err != nil {
			return nil, err
		}
		out := &tagSet{name: t.Attr("name")}
		seen := map[[2]string]bool{}
		for _, x := range t.All("tag") {
			if err := errors.Join(p.attrs(x, "name", "attribute"), p.children(x)); err != nil {
				return nil, err
			}
			pair := [2]string{strings.ToLower(x.Attr("name")), strings.ToLower(x.Attr("attribute"))}
			if pair[0] == "" || pair[1] == "" {
				return nil, p.errorf(x, "<tag> needs name and attribute")
			}
			if seen[pair] {
				return nil, p.errorf(x, "a second <tag> with name %q and attribute %q", x.Attr("name"), x.Attr("attribute"))
			}
			seen[pair] = true
			out.tags = append(out.tags, pair)
		}
		return out, nil
	})
}

// bodyMatch reads what of a <match> is about bodies.
func (p *parser) bodyMatch(m *xmldoc.Element, r *outboundRule) (err error) {
	if err := p.children(m); err != nil {
		return err
	}
	for _, word := range strings.Split(m.AttrOr("filterByTags", "None"), ",") {
		word = strings.TrimSpace(word)
		known := false
		for _, f := range tagFlags {
			if strings.EqualFold(word, f.name) {
				r.tags |= f.value
				known = true
			}
		}
		if !known {
			return p.errorf(m, "filterByTags: %q is no tag that can be filtered by", word)
		}
	}
	r.customTags = m.Attr("customTags")
	if r.tags&flagCustomTags != 0 && r.customTags == "" {
		return p.errorf(m, "filterByTags has CustomTags, and customTags names none")
	}
	r.occurrences, err = p.number(m, "occurrences", 0, math.MaxInt64)
	return err
}

// RewritesBody says which outbound rule of a mitigation rewrites response bodies; "" for none. IIS answers 500.52 where such a
// body arrives compressed, as those behind a proxy do.
func (s *Section) RewritesBody() string {
	for _, o := range s.outbound.ops {
		if r := o.add; r != nil && r.rewritesBody() {
			return r.name
		}
	}
	return ""
}

func (r *outboundRule) rewritesBody() bool { return r.variable == "" && r.action != "None" }

// contentEncoding is the first coding of a body other than identity; "" for none.
func contentEncoding(h http.Header) string {
	for _, v := range h.Values("Content-Encoding") {
		for _, coding := range strings.Split(v, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
				return coding
			}
		}
	}
	return ""
}

// encodedBody is why a rule can't rewrite a body. Source: Microsoft, "HTTP status codes in IIS" (500.52), and the module's own message
// that outbound rules can't be applied to encoded content.
func encodedBody(rule, encoding string) *RuntimeError {
	return &RuntimeError{Rule: rule, Substatus: SubstatusOutbound,
		Msg: fmt.Sprintf("it rewrites the body, and the body is encoded (Content-Encoding: %s)", encoding)}
}

// Response is a response that outbound rules look at and change.
type Response struct {
	Status int
	Header http.Header
	// Body is the whole body, uncompressed. It is not evaluated when Header has a Content-Encoding.
	Body string
}

// attributes are the pairs of tag and attribute that a rule looks into.
func (rs *Ruleset) attributes(r *outboundRule) map[[2]string]bool {
	out := map[[2]string]bool{}
	for _, f := range tagFlags {
		if f.value != flagCustomTags && r.tags&f.value != 0 {
			for _, a := range f.attrs {
				out[[2]string{strings.ToLower(f.name), a}] = true
			}
		}
	}
	if t := rs.tags[strings.ToLower(r.customTags)]; r.tags&flagCustomTags != 0 && t != nil {
		for _, pair := range t.tags {
			out[pair] = true
		}
	}
	return out
}

var (
	startTag  = regexp.MustCompile(`(?s)<!--.*?-->|<([A-Za-z][A-Za-z0-9:-]*)((?:"[^"]*"|'[^']*'|[^'">])*)>`)
	attribute = regexp.MustCompile(`([A-Za-z_:][-A-Za-z0-9_:.]*)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)`)
)

// body evaluates a rule over a body. It says whether the rule ran.
func (rs *Ruleset) body(r *outboundRule, req *Request, resp *Response) (ran bool, err error) {
	if len(resp.Body) > MaxBody {
		return false, fmt.Errorf("%w: a body of %d bytes, limit %d", ErrInput, len(resp.Body), MaxBody)
	}
	left := r.occurrences
	if left == 0 {
		left = math.MaxInt64
	}
	if r.tags != 0 {
		resp.Body, ran, err = rs.inTags(r, req, resp, left)
		return ran, err
	}
	var out strings.Builder
	at := 0
	for left > 0 {
		from, to, caps, err := r.pattern.find(resp.Body, at)
		if err != nil || from < 0 {
			if err != nil {
				return ran, err
			}
			break
		}
		value, ok, err := rs.value(r, req, resp, caps)
		if err != nil {
			return ran, err
		}
		out.WriteString(resp.Body[at:from])
		if ok {
			ran = true
			left--
		}
		if ok && r.action == "Rewrite" {
			out.WriteString(value)
		} else {
			out.WriteString(resp.Body[from:to])
		}
		if at = to; from == to { // nothing was matched: go on behind the next character
			if to == len(resp.Body) {
				break
			}
			out.WriteByte(resp.Body[to])
			at++
		}
	}
	out.WriteString(resp.Body[min(at, len(resp.Body)):])
	resp.Body = out.String()
	return ran, nil
}

// inTags evaluates a rule over the values of attributes; the value is what the pattern sees and what is replaced.
func (rs *Ruleset) inTags(r *outboundRule, req *Request, resp *Response, left int64) (string, bool, error) {
	want := rs.attributes(r)
	ran := false
	var failed error
	body := startTag.ReplaceAllStringFunc(resp.Body, func(tag string) string {
		m := startTag.FindStringSubmatch(tag)
		if m[1] == "" || failed != nil {
			return tag
		}
		name := strings.ToLower(m[1])
		return "<" + m[1] + attribute.ReplaceAllStringFunc(m[2], func(a string) string {
			am := attribute.FindStringSubmatch(a)
			if left <= 0 || failed != nil || !want[[2]string{name, strings.ToLower(am[1])}] {
				return a
			}
			quote, raw := "", am[2]
			if raw[0] == '"' || raw[0] == '\'' {
				quote, raw = raw[:1], raw[1:len(raw)-1]
			}
			caps, err := r.pattern.match(raw)
			if err == nil && (caps != nil) == r.negate {
				return a
			}
			value, ok := "", false
			if err == nil {
				value, ok, err = rs.value(r, req, resp, caps)
			}
			if err != nil || !ok {
				failed = err
				return a
			}
			ran = true
			left--
			if r.action != "Rewrite" {
				return a
			}
			return a[:len(a)-len(am[2])] + quote + value + quote
		}) + ">"
	})
	return body, ran, failed
}

// value checks a rule's conditions for one match and gives what to put in its place.
func (rs *Ruleset) value(r *outboundRule, req *Request, resp *Response, caps []string) (string, bool, error) {
	sc := &scope{variable: req.variable(resp, req.Path, req.RawQuery), maps: rs.maps, rule: caps}
	ok, err := matchAllOf(r.conditions, r.matchAny, r.trackAll, sc, req)
	if err != nil || !ok {
		return "", false, err
	}
	return r.valueT.expand(sc), true, nil
}
