package iisconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Files reads configuration files by physical directory, as written in applicationHost.config.
type Files interface {
	// ConfigFile returns the bytes of a file of a directory, and its path for people. file is "web.config", or what a
	// configSource attribute names. The error is fs.ErrNotExist when there is no such file, and wraps ErrTooLarge when the
	// file is larger than the reader's bound.
	ConfigFile(dir, file string) (data []byte, name string, err error)
	// Canonical returns one spelling for all the ways to write a directory: variables expanded, links and short names
	// followed, in lower case. What can't be resolved is returned in lower case.
	Canonical(dir string) string
	// MaxConfigBytes is the size from which IIS refuses a web.config file: 256,000 unless the registry says otherwise.
	MaxConfigBytes() int
}

// WebConfig is the name of the file that a directory's configuration is in.
const WebConfig = "web.config"

// DefaultMaxBytes is the size of a web.config that IIS still reads, 250 KB, unless MaxWebConfigFileSizeInKB below
// HKLM\SOFTWARE\Microsoft\InetStp\Configuration says otherwise. Source: IIS support blog, "Web.config file maximum size and
// count".
const DefaultMaxBytes = 250 * 1024

// ErrTooLarge is wrapped by the error of a reader that does not read a file of this size.
var ErrTooLarge = errors.New("too large")

// The codes that IIS shows for a configuration that it refuses. Source: Microsoft support article 942055.
const (
	HResultInvalidData   = 0x8007000d // malformed, or something that the schema does not know
	HResultDuplicate     = 0x800700b7 // the same element or section twice
	HResultLocked        = 0x80070021 // a locked section, element or attribute
	HResultAccessDenied  = 0x80070005
	HResultPathNotFound  = 0x80070003
	HResultUnknown       = 0 // no source names the code
	maxConfigSourceBytes = 200
)

// Invalid is why IIS refuses the configuration of a path: it answers 500.19, or 500.50 for what stands inside a rewrite
// section.
type Invalid struct {
	// HResult is the code that IIS shows; 0 when no source names one.
	HResult uint32
	// File and Line name the place, from 1; Line is 0 when the whole file is meant.
	File string
	Line int
	Msg  string
	// Unsure: this version can't read the file, and IIS perhaps can.
	Unsure bool
}

func (e *Invalid) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// source is one configuration file, read once.
type source struct {
	name string
	dir  string // physical directory, as written; "" for applicationHost.config
	doc  *xmldoc.Document
	// err is why IIS refuses the file as a whole.
	err *Invalid
	// scopes are the root and every <location>, in document order; byTarget finds them by their target, without case.
	scopes   []scope
	byTarget map[string][]int
	// newlines are the offsets of the line ends, once they are needed.
	newlines []int
}

// scope is the root of a file, or one <location> in it.
type scope struct {
	el *xmldoc.Element
	// target is the URL path relative to the file's own level, without slashes around it; "" is the level itself.
	target string
	// inherits is false for a <location> with inheritInChildApplications="false".
	inherits bool
	location bool
}

// errorf is a refusal at an element of the file.
func (s *source) errorf(e *xmldoc.Element, hresult uint32, format string, args ...any) *Invalid {
	return invalidAt(s.name, s.doc, e, hresult, format, args...)
}

func invalidAt(name string, doc *xmldoc.Document, e *xmldoc.Element, hresult uint32, format string, args ...any) *Invalid {
	return &Invalid{HResult: hresult, File: name, Line: doc.Line(e), Msg: fmt.Sprintf(format, args...)}
}

// newSource finds the scopes of a parsed file.
func newSource(name string, doc *xmldoc.Document) *source {
	s := &source{name: name, doc: doc, scopes: []scope{{el: doc.Root, inherits: true}}, byTarget: map[string][]int{"": {0}}}
	for _, l := range doc.Root.All("location") {
		_, old := l.Lookup("allowOverride")
		_, mode := l.Lookup("overrideMode")
		if old && mode && s.err == nil {
			s.err = s.errorf(l, HResultInvalidData, "<location> has both allowOverride and overrideMode")
		}
		target, ok := locationTarget(l.Attr("path"))
		if !ok {
			continue // matches nothing
		}
		s.byTarget[fold(target)] = append(s.byTarget[fold(target)], len(s.scopes))
		s.scopes = append(s.scopes, scope{el: l, target: target, location: true,
			inherits: !strings.EqualFold(l.Attr("inheritInChildApplications"), "false")})
	}
	return s
}

// locationTarget reads a <location>'s path. A path with a slash, a dot or a blank at its ends, or with a character that no
// path has, matches nothing; .NET refuses such a file, and what IIS does is not documented.
func locationTarget(path string) (string, bool) {
	if path == "" || path == "." {
		return "", true
	}
	if strings.Trim(path, `/\. `) != path || strings.ContainsAny(path, `?:*"<>|\`) {
		return "", false
	}
	return path, true
}

// OddLocation names a <location> of a file whose path matches nothing, so that the file should not be edited; "" for none.
func OddLocation(doc *xmldoc.Document) string {
	for _, l := range doc.Root.All("location") {
		if _, ok := locationTarget(l.Attr("path")); !ok {
			line, _ := xmldoc.LineCol(doc.Data, l.Start)
			return fmt.Sprintf("line %d: <location path=%q>: no such path can exist", line, l.Attr("path"))
		}
	}
	return ""
}

// sections returns every element of a section that the file has for one target.
func (s *source) sections(target string, path []string) (found []*xmldoc.Element, in []scope) {
	for _, i := range s.byTarget[fold(target)] {
		sc := s.scopes[i]
		for _, e := range descend(sc.el, path) {
			found, in = append(found, e), append(in, sc)
		}
	}
	return found, in
}

// descend follows names through all elements of each name.
func descend(e *xmldoc.Element, path []string) []*xmldoc.Element {
	level := []*xmldoc.Element{e}
	for _, n := range path {
		var next []*xmldoc.Element
		for _, x := range level {
			next = append(next, x.All(n)...)
		}
		level = next
	}
	return level
}

// read reads a file of a directory; nil when there is none.
func (m *Model) read(dir, file string) *source {
	key := m.canonical(dir) + "|" + strings.ToLower(file)
	if s, ok := m.sources[key]; ok {
		return s
	}
	s := m.load(dir, file)
	m.sources[key] = s
	m.held += s.size()
	return s
}

func (m *Model) load(dir, file string) *source {
	data, name, err := m.files.ConfigFile(dir, file)
	refuse := func(hresult uint32, unsure bool, format string, args ...any) *source {
		return &source{name: name, dir: dir, err: &Invalid{HResult: hresult, File: name, Msg: fmt.Sprintf(format, args...), Unsure: unsure}}
	}
	limit := m.files.MaxConfigBytes()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrTooLarge):
		return refuse(HResultUnknown, false, "%v; IIS reads at most %d bytes", err, limit)
	case errors.Is(err, fs.ErrPermission):
		return refuse(HResultAccessDenied, true, "can't be read: %v", err)
	case err != nil:
		return refuse(HResultUnknown, true, "can't be read: %v", err)
	case len(data) > limit:
		return refuse(HResultUnknown, false, "it has %d bytes, IIS reads at most %d", len(data), limit)
	}
	doc, err := xmldoc.Parse(data)
	if err != nil {
		var se *xmldoc.SyntaxError
		if errors.As(err, &se) {
			s := refuse(HResultInvalidData, se.Unsupported, "%s", se.Msg)
			s.err.Line = se.Line
			return s
		}
		return refuse(HResultInvalidData, false, "%v", err)
	}
	if file == WebConfig && doc.Root.Name != "configuration" {
		s := refuse(HResultInvalidData, false, "root element is <%s>, not <configuration>", doc.Root.Name)
		s.err.Line, _ = xmldoc.LineCol(data, doc.Root.Start)
		return s
	}
	s := newSource(name, doc)
	s.dir = dir
	if file != WebConfig {
		return s
	}
	for _, refuses := range []func(*source) *Invalid{(*source).misplacedDeclarations, m.redeclares, m.unknownSections} {
		if s.err == nil {
			s.err = refuses(s)
		}
	}
	return s
}

// unknownSections refuses what stands below <rewrite> and is registered nowhere: IIS answers 500.19 for the whole file.
func (m *Model) unknownSections(s *source) *Invalid {
	own := &Server{file: s, decl: map[string]declaration{}}
	own.declarations(s.doc.Root.Child("configSections"), "")
	for _, sc := range s.scopes {
		for _, rw := range descend(sc.el, []string{"system.webServer", "rewrite"}) {
			for _, c := range rw.Children {
				name := "system.webServer/rewrite/" + c.Name
				if _, ok := own.decl[name]; ok {
					continue
				}
				if _, ok := m.srv.decl[name]; !ok {
					return s.errorf(c, HResultInvalidData, "<%s> below <rewrite> is not registered in %s", c.Name, m.srv.file.name)
				}
			}
			if len(rw.Children) == 0 && !m.srv.Registers() {
				return s.errorf(rw, HResultInvalidData, "<rewrite> is not registered in %s", m.srv.file.name)
			}
		}
	}
	return nil
}
