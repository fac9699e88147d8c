package urlrewrite

import (
	"errors"
	"net/http"
	"testing"
)

func TestARuleThatRewritesAnEncodedBodyIsAnError(t *testing.T) {
	t.Parallel()
	const (
		body   = `<rule name="body"><match pattern="a"/><action type="Rewrite" value="b"/></rule>`
		html   = `<rule name="body" preCondition="html"><match filterByTags="A" pattern="a"/><action type="Rewrite" value="b"/></rule>`
		looks  = `<rule name="body"><match pattern="a"/></rule>`
		header = `<rule name="header"><match serverVariable="RESPONSE_X" pattern=".*"/><action type="Rewrite" value="b"/></rule>`
		clears = `<rule name="clears"><match serverVariable="RESPONSE_CONTENT_ENCODING" pattern=".+"/><action type="Rewrite" value=""/></rule>`
		stops  = `<rule name="stops" stopProcessing="true"><match serverVariable="RESPONSE_X" pattern=".*"/><action type="None"/></rule>`
		pre    = `<preConditions><preCondition name="html"><add input="{RESPONSE_CONTENT_TYPE}" pattern="^text/html"/></preCondition>
			</preConditions>`
	)
	for _, c := range []struct {
		what, rules, encoding, contentType string
		fails                              bool
	}{
		{"gzip", body, "gzip", "text/html", true},
		{"brotli", body, "br", "text/html", true},
		{"two codings", body, "identity, Deflate", "text/html", true},
		{"tags, as the precondition says", html + pre, "gzip", "text/html", true},
		{"the header is changed before", clears + body, "gzip", "text/html", true},
		{"not encoded", body, "", "text/html", false},
		{"identity", body, "identity", "text/html", false},
		{"the precondition does not hold", html + pre, "gzip", "application/json", false},
		{"the rule changes nothing", looks, "gzip", "text/html", false},
		{"only headers", header, "gzip", "text/html", false},
		{"not reached", stops + body, "gzip", "text/html", false},
	} {
		rs, err := ruleset(t, "<rewrite><outboundRules>"+c.rules+"</outboundRules></rewrite>")
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{"Content-Type": {c.contentType}}
		if c.encoding != "" {
			h.Set("Content-Encoding", c.encoding)
		}
		_, _, err = rs.Respond(get("/"), &Response{Status: 200, Header: h.Clone(), Body: `<a href="a">`})
		var rt *RuntimeError
		if errors.As(err, &rt) != c.fails || !c.fails && err != nil || c.fails && (rt.Substatus != SubstatusOutbound || rt.Rule != "body") {
			t.Errorf("%s: %v", c.what, err)
		}
		if _, err := rs.Outbound(get("/"), h.Clone()); errors.As(err, &rt) != c.fails {
			t.Errorf("%s, headers alone: %v", c.what, err)
		}
	}
}
