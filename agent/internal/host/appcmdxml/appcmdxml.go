// Package appcmdxml reads what `appcmd list config ... -section:system.webServer/rewrite/...` prints, IIS's own merged view of a
// rewrite section, and compares it with the elements that Stopgap's model has in effect there. It runs nothing and decides
// nothing: what a difference means is its caller's decision.
//
// Sources: "Getting Started with AppCmd.exe" and "Configuration Extensibility" on Microsoft Learn for the two forms of the
// output. No output of a real server was seen; docs/windows-verification.md says how to record some.
package appcmdxml

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// MaxBytes bounds what is read of one answer. The merged rules of a real server have some kilobytes.
const MaxBytes = xmldoc.MaxBytes

// View is a rewrite section as one side sees it, each list in the order in which IIS evaluates it.
type View struct {
	// Rules are <rule> elements.
	Rules []*xmldoc.Element
	// PreConditions are <preCondition> elements; only outboundRules has them.
	PreConditions []*xmldoc.Element
	// Doc is what the elements were read from; nil for the model's side, whose elements come from several files.
	Doc *xmldoc.Document
}

// Rule finds a rule by its name, which IIS compares without case; nil for none.
func (v View) Rule(name string) *xmldoc.Element { return named(v.Rules, name) }

// PreCondition finds a precondition by its name; nil for none.
func (v View) PreCondition(name string) *xmldoc.Element { return named(v.PreConditions, name) }

func named(list []*xmldoc.Element, name string) *xmldoc.Element {
	for _, e := range list {
		if strings.EqualFold(e.Attr("name"), name) {
			return e
		}
	}
	return nil
}

// errNoSection: the output has no such section. IIS prints an empty element for a section that nobody sets.
var errNoSection = errors.New("no such section in it")

// Parse reads the merged view of a section ("rules" or "outboundRules"), in the form of `/config:* /xml` or in appcmd's default
// form, a fragment. Bytes that are not UTF-8, because the console has another code page, are read as U+FFFD. The error means
// that this is no answer: nothing follows from it for the configuration.
func Parse(out []byte, section string) (View, error) {
	if len(out) > MaxBytes {
		return View{}, fmt.Errorf("appcmd: %d bytes about %s, limit %d", len(out), section, MaxBytes)
	}
	text := strings.TrimSpace(strings.TrimPrefix(strings.ToValidUTF8(string(out), "\uFFFD"), "\ufeff"))
	if strings.HasPrefix(text, "<?xml") {
		// The declaration names an encoding that is not necessarily that of the bytes.
		_, rest, ok := strings.Cut(text, "?>")
		if !ok {
			return View{}, fmt.Errorf("appcmd: the output about %s is cut off", section)
		}
		text = rest
	}
	doc, err := xmldoc.ParseFragment([]byte(text))
	if err != nil {
		return View{}, fmt.Errorf("appcmd: the output about %s is not XML: %w", section, err)
	}
	e := find(doc.Root, section)
	if e == nil {
		return View{}, fmt.Errorf("appcmd: the output about %s can't be used: %w", section, errNoSection)
	}
	return View{Rules: e.All("rule"), PreConditions: e.Child("preConditions").All("preCondition"), Doc: doc}, nil
}

// find finds the element of a section: in <appcmd><CONFIG> under its full name, or below the section groups of a fragment.
func find(root *xmldoc.Element, section string) *xmldoc.Element {
	full := "system.webServer-rewrite-" + section
	for _, c := range root.Child("appcmd").All("CONFIG") {
		if e := c.Child(full); e != nil {
			return e
		}
	}
	return root.Find("system.webServer", "rewrite", section)
}
