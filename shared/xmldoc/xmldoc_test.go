package xmldoc

import (
	"errors"
	"strings"
	"testing"
)

func TestOffsetsCoverWhatTheyName(t *testing.T) {
	t.Parallel()
	src := "\xef\xbb\xbf<?xml version=\"1.0\"?>\r\n<a  x = '1' >\r\n  <b/><!-- </a> --><c>t</c>\r\n</a>\r\n"
	doc, err := Parse([]byte(src))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(doc.Bytes(doc.Root.Children[0])); got != "<b/>" || !doc.Root.Children[0].SelfClosing {
		t.Errorf("b: %q", got)
	}
	if got := string(doc.Bytes(doc.Root.Children[1])); got != "<c>t</c>" || !doc.Root.Children[1].HasText {
		t.Errorf("c: %q", got)
	}
	if got := src[doc.Root.Start:doc.Root.OpenEnd]; got != "<a  x = '1' >" {
		t.Errorf("start tag: %q", got)
	}
	if got := src[doc.Root.CloseStart:doc.Root.End]; got != "</a>" {
		t.Errorf("end tag: %q", got)
	}
	if line, col := LineCol([]byte(src), doc.Root.Children[1].Start); line != 3 || col != 20 {
		t.Errorf("c is at %d:%d", line, col)
	}
}

func TestWhatIISWouldRefuseIsRefused(t *testing.T) {
	t.Parallel()
	for src, want := range map[string]string{
		"":                          "no root element",
		"<a>":                       "not closed",
		"<a></b>":                   "where </a> should be",
		"</a>":                      "without a start tag",
		"<a/><b/>":                  "second root",
		"<a x='1' x='2'/>":          "twice",
		"<!DOCTYPE a><a/>":          "not allowed",
		"<a>&unknown;</a>":          "entity",
		"text<a/>":                  "text outside",
		"<a>\xff</a>":               "not UTF-8",
		"\xff\xfe<\x00a\x00":        "UTF-16",
		"<a/><?xml version='1.0'?>": "must come first",
		"<?xml version='1.0' encoding='windows-1252'?><a/>":    "not supported",
		strings.Repeat("<a>", 70) + strings.Repeat("</a>", 70): "nested deeper",
	} {
		_, err := Parse([]byte(src))
		var se *SyntaxError
		if !errors.As(err, &se) || !strings.Contains(err.Error(), want) || se.Line < 1 {
			t.Errorf("%.30q: got %v, want %q", src, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("<a b='c'><d/>text<!-- x --></a>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := Parse(data)
		if err != nil {
			return
		}
		var walk func(e *Element)
		walk = func(e *Element) {
			if e.Start < 0 || e.Start >= e.OpenEnd || e.OpenEnd > e.CloseStart || e.CloseStart > e.End || e.End > len(data) || data[e.Start] != '<' || data[e.End-1] != '>' {
				t.Fatalf("offsets of <%s>: %+v", e.Name, e)
			}
			for _, c := range e.Children {
				if c.Parent != e || c.Start < e.OpenEnd || c.End > e.CloseStart {
					t.Fatalf("<%s> is not inside <%s>", c.Name, e.Name)
				}
				walk(c)
			}
		}
		walk(doc.Root)
	})
}
