package urlrewrite

import (
	"fmt"
	"slices"
	"testing"
)

func TestAPrefilterLooksForWhatEveryMatchMustContain(t *testing.T) {
	t.Parallel()
	for src, want := range map[string][]string{
		`(?=.*autodiscover)(?=.*powershell)`:     {"autodiscover", "powershell"},
		`.*autodiscover\.json.*\@.*Powershell.*`: {"autodiscover.json", "powershell"},
		`(.*)X-BEResource=(.+)/(.+)~(.+)`:        {"x-beresource="},
		`abc|def`:                                nil,
		`(abc|def)ghi`:                           {"ghi"},
		`abcd*`:                                  {"abc"},
		`abcd?efg`:                               {"abc", "efg"},
		`(?!abc)def`:                             {"def"},
		`(abc)+`:                                 {"abc"},
		`(abc)*`:                                 nil,
		`(abc){2,3}x`:                            {"abc"},
		`^abc$`:                                  {"abc"},
		`ab[cd]ef`:                               nil,
		`.*`:                                     nil,
	} {
		if err := checkPattern(src, false); err != nil {
			t.Fatal(err)
		}
		if got := newPrefilter(src, true).literals; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
}

// plain is a pattern without its prefilter.
func plain(p *pattern) *pattern {
	q := *p
	q.pre = nil
	return &q
}

func FuzzPrefilter(f *testing.F) {
	for _, p := range []string{`(?=.*abc)(?=.*def)`, `(abc|d)+ef{2}`, `a\.b?cd*e`, `[ab]cde$`, `\bkk\x41`, `(?!abc)ab|cde`} {
		f.Add(p, "xxabcdefKK", true)
	}
	f.Fuzz(func(t *testing.T, src, in string, fold bool) {
		if len(src) > 60 || len(in) > 60 {
			return
		}
		p, err := compilePattern(src, ecmaScript, fold, true)
		if err != nil {
			return
		}
		a, err1 := p.match(in)
		b, err2 := plain(p).match(in)
		if err1 == nil && err2 == nil && (a == nil) != (b == nil) {
			t.Fatalf("%q on %q: with the prefilter %v, without %v; it looks for %q", src, in, a, b, p.pre.literals)
		}
	})
}

// line is an ordinary request of an Exchange server, one of many.
func line(i int) *Request {
	paths := []string{"/owa/service.svc", "/ews/exchange.asmx", "/Microsoft-Server-ActiveSync/default.eas", "/mapi/emsmdb/", "/autodiscover/autodiscover.xml", "/rpc/rpcproxy.dll"}
	return &Request{Method: "POST", Scheme: "https", Host: "mail.contoso.com", Path: paths[i%len(paths)],
		RawQuery: fmt.Sprintf("action=GetItem&EP=1&ID=-%d&AC=1&Cmd=Ping&User=user%d@contoso.com&DeviceId=%032d", i, i%5000, i)}
}

func benchmarkM1(b *testing.B, filtered bool) {
	s, _, err := ParseFragment([]byte(`<rule name="M1" stopProcessing="true"><match url=".*"/><conditions><add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)"/></conditions><action type="AbortRequest"/></rule>`), false)
	if err != nil {
		b.Fatal(err)
	}
	rs, err := Merge(s)
	if err != nil {
		b.Fatal(err)
	}
	if !filtered {
		for _, r := range rs.inbound {
			r.url = plain(r.url)
			for i := range r.conditions {
				r.conditions[i].pattern = plain(r.conditions[i].pattern)
			}
		}
	}
	for i := 0; b.Loop(); i++ {
		if res, err := rs.Inbound(line(i%1_000_000), "/"); err != nil || res.Action != ActionNone {
			b.Fatal(res, err)
		}
	}
}

func BenchmarkM1OverOrdinaryTraffic(b *testing.B) {
	b.Run("prefilter", func(b *testing.B) { benchmarkM1(b, true) })
	b.Run("every pattern plainly", func(b *testing.B) { benchmarkM1(b, false) })
}
