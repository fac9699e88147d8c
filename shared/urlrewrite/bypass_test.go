package urlrewrite

import (
	"fmt"
	"strings"
	"testing"
)

// The five versions of the rule for CVE-2022-41040 that Microsoft published in a week (microsoft/CSS-Exchange, EOMTv2.ps1):
// all but the last have a way past them.
func TestWeaknessesFindsThePublishedBypasses(t *testing.T) {
	const rule = `<rule name="r" stopProcessing="true"><match url=".*" /><conditions><add input="%s" pattern="%s" ignoreCase="%v" /></conditions><action type="AbortRequest" /></rule>`
	for _, c := range []struct {
		name, input, pattern string
		fold                 bool
		want                 []string
	}{
		{"v1", "{REQUEST_URI}", `.*autodiscover\.json.*\@.*Powershell.*`, true, []string{"percent-encode", "without the @", "letter percent-encoded", "other order"}},
		{"v2", "{REQUEST_URI}", `.*autodiscover\.json.*Powershell.*`, true, []string{"percent-encode", "letter percent-encoded", "other order"}},
		{"v3", "{UrlDecode:{REQUEST_URI}}", `.*autodiscover\.json.*Powershell.*`, true, []string{"other order"}},
		{"v5", "{UrlDecode:{REQUEST_URI}}", `(?=.*autodiscover)(?=.*powershell)`, true, nil},
		{"one case", "{UrlDecode:{REQUEST_URI}}", `(?=.*autodiscover)(?=.*Powershell)`, false, []string{"exactly this case", "in capitals"}},
		{"lowered", "{ToLower:{UrlDecode:{REQUEST_URI}}}", `(?=.*autodiscover)(?=.*powershell)`, false, nil},
		{"alternatives", "{HTTP_URL}", `(autodiscover.*mailbox|mailbox.*autodiscover)`, true, []string{"percent-encode"}},
		{"alternatives, one case", "{UrlDecode:{QUERY_STRING}}", `mapi|ewsx`, false, []string{"exactly this case"}},
		{"a class", "{QUERY_STRING}", `[abcdef]+\d`, true, nil},
		{"nothing looked for", "{QUERY_STRING}", `.*`, true, nil},
		{"header", "{HTTP_COOKIE}", `X-BEResource`, true, nil},
		{"not of this attack", "{QUERY_STRING}", `schema=ews`, true, []string{"percent-encode"}},
	} {
		got, err := Weaknesses(fmt.Appendf(nil, rule, c.input, c.pattern, c.fold))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		text := fmt.Sprint(got)
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is not in %s", c.name, w, text)
			}
		}
		if len(c.want) == 0 && len(got) > 0 || len(c.want) > 0 && len(got) < len(c.want) {
			t.Errorf("%s: got %d: %s", c.name, len(got), text)
		}
	}
	exact := `<rule name="e" patternSyntax="ExactMatch"><match url="ecp/Default.flt" ignoreCase="false" /><action type="AbortRequest" /></rule>`
	if got, err := Weaknesses([]byte(exact)); err != nil || len(got) != 1 || !strings.Contains(got[0].Text, "ECP/DEFAULT.FLT") {
		t.Errorf("exact: %v, %v", got, err)
	}
	wild := `<rule name="w" patternSyntax="Wildcard"><match url="*" /><conditions><add input="{QUERY_STRING}" pattern="*exploit*" /></conditions><action type="AbortRequest" /></rule>`
	if got, err := Weaknesses([]byte(wild)); err != nil || len(got) != 1 || !strings.Contains(got[0].Text, `"%65xploit"`) {
		t.Errorf("wildcard: %v, %v", got, err)
	}
}
