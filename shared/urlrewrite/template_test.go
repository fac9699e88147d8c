package urlrewrite

import (
	"strings"
	"testing"
)

func TestCapturesAreNumberedFromZeroToNine(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"R", "C"} {
		for _, n := range []string{"0", "1", "9"} {
			if _, err := parseTemplate("x{"+name+":"+n+"}", nil); err != nil {
				t.Errorf("{%s:%s}: %v", name, n, err)
			}
		}
		for _, n := range []string{"10", "99", "-1", "+1", "01", "", "a", " 1", "{R:1}"} {
			if _, err := parseTemplate("x{"+name+":"+n+"}", nil); err == nil || !strings.Contains(err.Error(), "from 0 to 9") {
				t.Errorf("{%s:%s}: %v", name, n, err)
			}
		}
	}
}

func TestFunctionsChangeTheirArgument(t *testing.T) {
	t.Parallel()
	sc := &scope{variable: func(string) string { return `<A href="x&y">` }, rule: []string{"a%26b", "A B"}}
	for in, want := range map[string]string{
		"{HtmlEncode:{HTTP_X}}":           "&lt;A href=&quot;x&amp;y&quot;&gt;",
		"{htmlencode:{ToLower:<Y>{R:1}}}": "&lt;y&gt;a b",
		"{HtmlEncode:{UrlDecode:{R:0}}}":  "a&amp;b",
		"[{HtmlEncode:}]":                 "[]",
		"{UrlEncode:{R:1}}":               "A%20B",
	} {
		tpl, err := parseTemplate(in, nil)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got := tpl.expand(sc); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
