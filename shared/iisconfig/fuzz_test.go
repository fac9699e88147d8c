package iisconfig_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// FuzzCompose composes arbitrary bytes as applicationHost.config and web.config: no panic, bounded time, and the same answers
// twice.
func FuzzCompose(f *testing.F) {
	for _, w := range []world{
		{files: files{"apphost": "globalRules +G\n@S/owa[overrideMode=Deny] rules +L", "W": "rules{lockElements=remove} +A{lockItem=true}\n@owa rules clear", "O": "rules -A +B"}},
		{files: files{"apphost": "allowedServerVariables +V", "W": "outboundRules +R pre:+P\n@.[inheritInChildApplications=false] rules +A", "O": "rewriteMaps +M\nproviders +D"}},
		{files: files{"W": "rules{configSource=r.config}", "O": "modules -RewriteModule"}},
	} {
		texts := w.texts()
		f.Add([]byte(w.appHost()), []byte(texts[strings.ToLower(dirs["W"]+`\web.config`)]), []byte(texts[strings.ToLower(dirs["O"]+`\web.config`)]), "/owa/auth")
	}
	f.Add([]byte(world{}.appHost()), []byte("<configuration><configSections><section/></configSections><location/></configuration>"), []byte{0xff, 0xfe}, "//..//a\x00b\\c")
	f.Fuzz(func(t *testing.T, appHost, site, app []byte, path string) {
		if len(appHost) > 1<<16 || len(site) > 1<<16 || len(app) > 1<<16 {
			t.Skip("the size is not the point")
		}
		began := time.Now()
		srv, err := iisconfig.Parse(appHost, "applicationHost.config")
		if err != nil {
			return
		}
		m := iisconfig.NewModel(srv, bytesFiles{site, app})
		for _, s := range srv.Sites {
			for _, p := range append(s.Places(), path) {
				composeAll(t, m, s, p)
			}
			if len(s.Apps) > 0 {
				m.Readers(s.Apps[0].Dir)
				m.SharesDirBelow(s.Apps[0])
			}
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func composeAll(t *testing.T, m *iisconfig.Model, s *iisconfig.Site, path string) {
	p := m.At(s, path)
	var first []string
	for _, n := range iisconfig.SectionNames() {
		first = append(first, answer(p, n))
	}
	_ = p.Levels()
	_, _ = p.Module()
	if _, _, err := p.Rules(); (err != nil) != (p.Invalid() != nil) {
		t.Errorf("%s: the rules say %v, the place %v", path, err, p.Invalid())
	}
	for i, n := range iisconfig.SectionNames() {
		if again := answer(m.At(s, path), n); again != first[i] {
			t.Errorf("%s %s: %q, then %q", path, n, first[i], again)
		}
		for _, it := range p.Section(n).Items {
			if it.Source.Line < 1 {
				t.Errorf("%s %s: %q has no line", path, n, it.Name)
			}
			p.Inputs(n, it.Name)
		}
	}
}

// bytesFiles gives one file to the directories at the top, and another one to all below them.
type bytesFiles struct{ top, below []byte }

func (b bytesFiles) ConfigFile(dir, file string) ([]byte, string, error) {
	if strings.Count(dir, `\`) > 2 {
		return b.below, dir + `\` + file, nil
	}
	return b.top, dir + `\` + file, nil
}

func (bytesFiles) Canonical(dir string) string { return strings.ToLower(dir) }
func (bytesFiles) MaxConfigBytes() int         { return iisconfig.DefaultMaxBytes }
