package iisconfig

import "github.com/stopgap-em/stopgap/shared/xmldoc"

// misplacedDeclarations refuses a file whose <configSections> is not the first child of <configuration>, or is there twice.
// Source: tests of JexusManager.
func (s *source) misplacedDeclarations() *Invalid {
	for i, e := range s.doc.Root.Children {
		if e.Name == "configSections" && i > 0 {
			return s.errorf(e, HResultInvalidData, "<configSections> must be the first element of <configuration>, and there once")
		}
	}
	return nil
}

// redeclares refuses a web.config that declares a section that applicationHost.config declares already, or that removes
// declarations: it may only add some. Source: "Introduction to ApplicationHost.config"; IIS shows 0x800700b7 for a section that is
// declared twice.
func (m *Model) redeclares(s *source) *Invalid {
	return m.redeclared(s, s.doc.Root.Child("configSections"), "")
}

func (m *Model) redeclared(s *source, group *xmldoc.Element, path string) *Invalid {
	if group == nil {
		return nil
	}
	for _, e := range group.Children {
		name := path + e.Attr("name")
		switch e.Name {
		case "section":
			if d, ok := m.srv.decl[name]; ok {
				return s.errorf(e, HResultDuplicate, "section %s is declared a second time; the first is at %s:%d", name, m.srv.file.name, d.line)
			}
		case "sectionGroup":
			if bad := m.redeclared(s, e, name+"/"); bad != nil {
				return bad
			}
		case "remove", "clear":
			return s.errorf(e, HResultInvalidData, "<%s> in <%s>: a web.config can't remove declarations", e.Name, group.Name)
		}
	}
	return nil
}
