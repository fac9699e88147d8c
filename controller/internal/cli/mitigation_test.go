package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/clirun"
)

func TestLintFailsForADocumentThatDoesHarmAndNotForAWarning(t *testing.T) {
	t.Parallel()
	write := func(pattern string) string {
		f := filepath.Join(t.TempDir(), "d.yaml")
		text := "id: D\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\ncves: [CVE-2031-12345]\nactions:\n  - id: a\n    urlRewrite:\n" +
			"      location: {site: EXCHANGE_FRONT_END, path: /OAB}\n      inbound: |\n" +
			"        <rule name=\"Stopgap D.1 a\"><match url=\"" + pattern + "\" /><action type=\"AbortRequest\" /></rule>\n"
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		file string
		code int
		want string
	}{
		{write(`\.lzx$`), clirun.Failed, "d.yaml:12:9: rule \"Stopgap D.1 a\" stops legitimate requests: offline address book, data"},
		{write(`^gone\.xml$`), clirun.OK, "d.yaml:8:5: it has no effect probe"},
		{"catalogue", clirun.OK, ""},
	} {
		var out, errs bytes.Buffer
		code := clirun.Main(context.Background(), lint(), []string{c.file}, &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.want) || c.want == "" && errs.Len() > 0 {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.file, code, c.code, &out, &errs)
		}
		if fine := strings.Contains(out.String(), ": fine"); fine != (code == clirun.OK) {
			t.Errorf("%s: exit %d and %q", c.file, code, &out)
		}
	}
}
