package iis

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stopgap-em/stopgap/e2e/realdata"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

// catalogueFragments gives the fragments of every url_rewrite action of the catalogue.
func catalogueFragments(t testing.TB) map[string]Fragment {
	t.Helper()
	files, err := mitigation.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Fragment{}
	for _, f := range files {
		if mitigation.IsFixedBuilds(f.Content) {
			continue
		}
		d, err := mitigation.Parse(f.Name, f.Content)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range d.GetActions() {
			if rw := a.GetUrlRewrite(); rw != nil {
				out[d.GetId()] = Fragment{Inbound: rw.GetInbound(), Outbound: rw.GetOutbound(), Scope: map[bool]Scope{true: Inside}[rw.GetLocation().GetPath() != "/"]}
			}
		}
	}
	if len(out) < 3 {
		t.Fatalf("catalogue has %d url_rewrite actions", len(out))
	}
	return out
}

// roundTrip applies fragments one after the other and takes them out in the given order; the file must come back.
func roundTrip(t interface{ Fatalf(string, ...any) }, orig []byte, frags []Fragment, order []int) {
	cur, err := Render(orig, frags)
	if err != nil {
		t.Fatalf("render: %v\n%s", err, orig)
	}
	for _, f := range frags {
		in, err := Inspect(cur, f)
		if err != nil || in.Standing != InPlace {
			t.Fatalf("after render: %v %v\n%s", in, err, cur)
		}
	}
	for _, i := range order {
		if cur, err = Strip(cur, orig, frags[i:i+1]); err != nil {
			t.Fatalf("strip: %v", err)
		}
		if in, _ := Inspect(cur, frags[i]); in.Standing != Absent {
			t.Fatalf("after strip: %v", in)
		}
	}
	if !bytes.Equal(cur, orig) {
		t.Fatalf("not the original bytes:\n%q\n%q", orig, cur)
	}
}

func TestApplyThenRevertIsTheIdentityOnRealFiles(t *testing.T) {
	t.Parallel()
	frags := catalogueFragments(t)
	all := []Fragment{frags["M1"], frags["M2"], frags["CVE-2021-26855"]}
	paths, _ := filepath.Glob(filepath.Join(realdata.Dir(t), "exchange", "*", "*web.config"))
	if len(paths) == 0 {
		t.Fatal("no real web.config found")
	}
	for _, p := range paths {
		orig, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
			roundTrip(t, orig, all, order)
		}
	}
}

func TestApplyThenRevertIsTheIdentityOnGeneratedFiles(t *testing.T) {
	t.Parallel()
	frags := catalogueFragments(t)
	names := []string{"M1", "M2", "CVE-2021-26855"}
	rapid.Check(t, func(rt *rapid.T) {
		orig := generate(rt)
		n := rapid.IntRange(1, 3).Draw(rt, "n")
		fs := make([]Fragment, n)
		for i := range fs {
			fs[i] = frags[names[i]]
			fs[i].Scope = rapid.SampledFrom([]Scope{Outside, Inside, Location}).Draw(rt, "scope")
		}
		roundTrip(rt, orig, fs, rapid.Permutation([]int{0, 1, 2}[:n]).Draw(rt, "order"))
	})
}

// generate writes a web.config in one of the ways people and tools write them.
func generate(rt *rapid.T) []byte {
	eol := rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(rt, "eol")
	unit := rapid.SampledFrom([]string{"  ", "\t", "    ", ""}).Draw(rt, "unit")
	var b strings.Builder
	if rapid.Bool().Draw(rt, "bom") {
		b.WriteString("\xef\xbb\xbf")
	}
	if rapid.Bool().Draw(rt, "decl") {
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + eol)
	}
	if rapid.Bool().Draw(rt, "comment") {
		b.WriteString("<!-- a > comment -->" + eol)
	}
	line := func(depth int, s string) { b.WriteString(strings.Repeat(unit, depth) + s + eol) }
	section := func(depth int) {
		switch rapid.IntRange(0, 7).Draw(rt, "section") {
		case 0:
			line(depth, "<system.webServer />")
		case 1:
			line(depth, "<system.webServer></system.webServer>")
		case 2:
			line(depth, "<system.webServer>")
			line(depth+1, "<rewrite>")
			line(depth+2, "<rules/>")
			line(depth+1, "</rewrite>")
			line(depth, "</system.webServer>")
		case 3:
			line(depth, "<system.webServer>")
			line(depth+1, "<rewrite><rules><clear /><rule name='x'><match url='.*'/><action type='None'/></rule></rules></rewrite> <!-- tail -->")
			line(depth, "</system.webServer>")
		case 4:
			line(depth, "<system.webServer>")
			line(depth+1, "<rewrite>")
			line(depth+2, "<rules>")
			line(depth+3, "<remove name=\"y\" />")
			line(depth+3, `<rule name="x &amp; y"   enabled = "true" ><match url="a&gt;b" /></rule>`)
			line(depth+2, "</rules>")
			line(depth+2, "<outboundRules>")
			line(depth+3, "<preConditions><preCondition name=\"p\"><add input=\"{X}\" pattern=\"1\" /></preCondition></preConditions>")
			line(depth+2, "</outboundRules>")
			line(depth+1, "</rewrite>")
			line(depth, "</system.webServer>")
		case 5:
			line(depth, "<system.webServer>")
			line(depth+1, "<!-- nothing but a comment -->")
			line(depth, "</system.webServer>")
		case 6:
			line(depth, "<system.webServer><httpErrors /></system.webServer>")
		}
	}
	line(0, "<configuration>")
	if rapid.Bool().Draw(rt, "location") {
		line(1, fmt.Sprintf("<location %sinheritInChildApplications=\"false\">", rapid.SampledFrom([]string{"", `path="." `}).Draw(rt, "path")))
		section(2)
		line(1, "</location>")
	}
	section(1)
	b.WriteString("</configuration>")
	if rapid.Bool().Draw(rt, "newline") {
		b.WriteString(eol)
	}
	return []byte(b.String())
}

func TestStripTakesOutOursAndLeavesWhatOthersAddedMeanwhile(t *testing.T) {
	t.Parallel()
	f := catalogueFragments(t)["M1"]
	orig := []byte("<configuration>\n  <system.webServer>\n    <httpErrors />\n  </system.webServer>\n</configuration>\n")
	cur, err := Render(orig, []Fragment{f})
	if err != nil {
		t.Fatal(err)
	}
	theirs := []byte("<rule name=\"theirs\"><match url=\"x\" /></rule>")
	cur = bytes.Replace(cur, []byte("</rules>"), append(theirs, []byte("</rules>")...), 1)
	got, err := Strip(cur, orig, []Fragment{f})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(got, theirs) || bytes.Contains(got, []byte("Stopgap")) {
		t.Fatalf("want theirs and nothing of ours:\n%s", got)
	}
}

func TestInspectTellsDisabledAlteredForeignAndAbsent(t *testing.T) {
	t.Parallel()
	f := catalogueFragments(t)["M1"]
	base := []byte("<configuration>\n</configuration>\n")
	in, err := Render(base, []Fragment{f})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, new string
		want     Standing
	}{
		"as rendered":        {"", "", InPlace},
		"disabled":           {`stopProcessing="true"`, `stopProcessing="true" enabled="false"`, Altered},
		"other pattern":      {"powershell)", "nothing)", Altered},
		"renamed":            {"Stopgap M1.1 PowerShell - inbound", "EEMS M1.1 PowerShell - inbound", Absent},
		"renamed, disabled":  {`name="Stopgap M1.1`, `enabled="false" name="EEMS M1.1`, Absent},
		"attributes swapped": {`<match url=".*" />`, `<match   url='.*'></match>`, InPlace},
	} {
		data := bytes.Replace(in, []byte(c.old), []byte(c.new), 1)
		got, err := Inspect(data, f)
		if err != nil || got.Standing != c.want {
			t.Errorf("%s: got %v, %v; want standing %d", name, got, err, c.want)
		}
	}
	if got, _ := Inspect(base, f); got.Standing != Absent {
		t.Errorf("empty file: %v", got)
	}
}

func FuzzRenderStrip(f *testing.F) {
	f.Add([]byte("<configuration>\n  <system.webServer/>\n</configuration>"))
	f.Add([]byte("\xef\xbb\xbf<configuration><location inheritInChildApplications='false'></location></configuration>"))
	m1, m2 := catalogueFragments(f)["M1"], catalogueFragments(f)["M2"]
	f.Fuzz(func(t *testing.T, data []byte) {
		frags := []Fragment{m1, m2}
		frags[0].Scope, frags[1].Scope = Scope(len(data)%3), Scope(len(data)/3%3)
		cur, err := Render(data, frags)
		if err != nil {
			return
		}
		got, err := Strip(cur, data, frags)
		if err != nil {
			t.Fatalf("rendered but can't be stripped: %v\n%s", err, cur)
		}
		for _, f := range frags {
			if in, err := Inspect(data, f); err != nil || in.Standing != Absent {
				return
			}
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("not what it was:\n%q\nrendered\n%q\nstripped\n%q", data, cur, got)
		}
	})
}
