package mitigation

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestTheCatalogueIsFineAndNamesItsRulesAfterItself(t *testing.T) {
	t.Parallel()
	files, err := Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"CVE-2021-26855": true, "CVE-2021-26857": true, "CVE-2021-27065": true, "CVE-2021-26858": true, "M1": true, "M2": true, "PING1": true}
	var table *FixedBuilds
	for _, f := range files {
		if IsFixedBuilds(f.Content) {
			if table, err = ParseFixedBuilds(f.Name, f.Content); err != nil {
				t.Fatal(err)
			}
			continue
		}
		d, err := Parse(f.Name, f.Content)
		if err != nil {
			t.Fatal(err)
		}
		delete(want, d.GetId())
		for _, f := range Lint(d) {
			t.Errorf("%v", f)
		}
	}
	if len(want) > 0 || table == nil {
		t.Errorf("missing: %v, table %v", want, table)
	}
}

const head = "id: X\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo:\n  roles: [ROLE_MAILBOX]\n"

func TestWhatIsWrongIsNamedByLineAndColumn(t *testing.T) {
	t.Parallel()
	action := func(xml string) string {
		return head + "actions:\n  - id: a\n    urlRewrite:\n      location: {site: S, path: /}\n      inbound: |\n        " + xml + "\n"
	}
	for name, c := range map[string]struct{ doc, want string }{
		"empty":                               {"", "x:1:1: the file is empty"},
		"not YAML":                            {"a: [", "x:1:1: not YAML"},
		"a key twice":                         {"id: X\nid: Y\n", `x:2:1: key "id" a second time`},
		"two documents":                       {head + "---\nid: Y\n", "x:7:1: a second YAML document"},
		"an anchor":                           {"id: &a X\n", "x:1:5: anchors"},
		"an alias":                            {"id: X\ntitle: *a\n", "unknown anchor"},
		"a tag":                               {"id: !!str X\n", "x:1:5: tags"},
		"a merge key":                         {"<<: {id: X}\n", "merge keys"},
		"a NUL":                               {"id: X\x00\n", "x:1:6: a NUL byte"},
		"unknown field":                       {head + "foo: 1\n", `x:7:1: unknown field "foo"`},
		"unknown enum":                        {strings.Replace(head, "SEVERITY_LOW", "BAD", 1), `x:4:11: unknown enum value "BAD"`},
		"id with a slash":                     {strings.Replace(head, "id: X", "id: a/b", 1), "x:1:5: id:"},
		"id with dots":                        {strings.Replace(head, "id: X", "id: a..b", 1), "x:1:5: id:"},
		"bad CVE":                             {head + "cves: [CVE-1]\n", "x:7:8: cves[0]"},
		"build too large":                     {head + "  exchange: [{product: \"15.1\", from: \"15.1.70000.1\"}]\n", `x:7:38: build "15.1.70000.1"`},
		"build of another":                    {head + "  exchange: [{product: \"15.1\", from: \"15.2.1.1\"}]\n", "not of product 15.1"},
		"range backwards":                     {head + "  exchange: [{product: \"15.1\", from: \"15.1.2.1\", to: \"15.1.1.1\"}]\n", "before it begins"},
		"no fragment":                         {head + "actions:\n  - id: a\n    urlRewrite: {location: {site: S, path: /}}\n", "needs inbound or outbound"},
		"malformed XML":                       {action("<rule name=\"a\">"), "x:12:9: <rule> is not closed"},
		"two roots fine, a stray element not": {action("<rule name=\"a\"/><foo/>"), "x:12:25: <foo>"},
		"bad pattern":                         {action("<rule name=\"a\"><match url=\"(?i)x\"/></rule>"), "x:12:24: pattern"},
		"entity bomb":                         {action("<!DOCTYPE x><rule name=\"a\"/>"), "<!DOCTYPE"},
		"path traversal":                      {strings.Replace(action("<rule name=\"a\"/>"), "path: /", "path: /../..", 1), "x:10:33: actions[0].url_rewrite.location.path"},
		"body rewriting": {strings.NewReplacer("site: S", "site: EXCHANGE_FRONT_END", "inbound:", "outbound:").Replace(action(
			"<rule name=\"a\"><match pattern=\"x\"/><action type=\"Rewrite\" value=\"y\"/></rule>")), "500.52"},
		"rule twice":       {action("<rule name=\"a\"/>\n        <rule name=\"A\"/>"), "x:13:9: a second <rule>"},
		"service name":     {head + "actions:\n  - {id: a, service: {name: \"a b\", startType: DISABLED, state: STOPPED}}\n", "actions[0].service.name"},
		"same service":     {head + "actions:\n  - {id: a, service: {name: S, startType: DISABLED, state: STOPPED}}\n  - {id: b, service: {name: s, startType: DISABLED, state: STOPPED}}\n", "already the target"},
		"pool that starts": {head + "actions:\n  - {id: a, appPool: {name: P, autoStart: true, state: STOPPED}}\n", "autoStart must be false"},
	} {
		_, err := Parse("x", []byte(c.doc))
		var ps Problems
		if !errors.As(err, &ps) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", name, err, c.want)
		}
	}
	_, err := Parse("x", bytes.Repeat([]byte("#"), MaxBytes+1))
	if err == nil || !strings.Contains(err.Error(), "that is the limit") {
		t.Errorf("too large: %v", err)
	}
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	if _, err := Parse("x", []byte("id: "+deep)); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("deep: %v", err)
	}
	_, err = Parse("x", []byte("a: ["+strings.Repeat("1,", 30000)+"1]"))
	if err == nil || !strings.Contains(err.Error(), "more than 20000 values") {
		t.Errorf("wide: %v", err)
	}
	if _, err := Parse("x", []byte(head+"foo: 1\n")); !IsNewer(err) {
		t.Error("an unknown field is not taken for a newer document")
	}
}

func FuzzParse(f *testing.F) {
	files, err := Catalogue()
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range files {
		f.Add(c.Content)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := Parse("f", data); err == nil {
			if again, err := Parse("f", d.Content); err != nil || again.SHA256 != d.SHA256 {
				t.Fatalf("accepted once and then not: %v", err)
			}
			Lint(d)
		}
		_, _ = ParseFixedBuilds("f", data)
	})
}
