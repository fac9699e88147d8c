package simulate

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// packed is data in a gzip member.
func packed(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wide is a text in UTF-16, without a byte order mark.
func wide(text string, big bool) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(text)) {
		if big {
			out = append(out, byte(u>>8), byte(u))
		} else {
			out = append(out, byte(u), byte(u>>8))
		}
	}
	return out
}

func FuzzLog(f *testing.F) {
	attack := head + line("GET", "/autodiscover/autodiscover.json", exploit, "192.0.2.7")
	blanks := head + line("POST", "/EWS/Exchange.asmx", `SoapAction="Get";ADRequests=2; ADLatency=0; "`, "192.0.2.7")
	for _, x := range []string{
		attack, blanks, "#Fields: cs-uri-stem\n/%zz\n", "#Fields: cs-uri-stem cs-uri-query X-Forwarded-For\n/a b c d, e\n",
		advancedHead + `2026-11-20 08:00:01.1 - GET /owa/ - 443 - "192.0.2.7" "a ""b"" c" - "mail.example" 200 0 0 1` + "\n",
		"\xef\xbb\xbf" + attack, attack[:len(attack)-30], attack + strings.Repeat("\x00", 100) + attack, "PK\x03\x04",
	} {
		f.Add([]byte(x))
	}
	f.Add(wide("\ufeff"+attack, false))
	f.Add(wide(attack, true))
	f.Add(packed(f, []byte(attack)))
	f.Add(append(packed(f, []byte(attack))[:60], packed(f, wide(attack, false))...))
	s := sim(f, "M1")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		p := filepath.Join(dir, "x.log")
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.Logs(t.Context(), []string{p}, nil)
		if err != nil {
			t.Fatal(err)
		}
		rule := r.Rules[0]
		// Lines of packed and of wide text are not counted here: they end elsewhere than newlines in data.
		text := !bytes.HasPrefix(data, gzipMagic) && !bytes.Contains(data, []byte{0})
		if text && r.Requests+r.Unreadable > int64(bytes.Count(data, []byte("\n"))+1) {
			t.Fatal("more requests than lines")
		}
		if n := int64(len(r.DamagedLines)); n > min(maxNamedLines, r.Unreadable) || n == 0 && r.Unreadable > 0 {
			t.Fatalf("%d lines named of %d", n, r.Unreadable)
		}
		sum := rule.Blocked + rule.Changed + rule.Unjudged + rule.OverBudget + rule.TooLong + rule.Failed
		if rule.OwnPath > r.Requests || sum > rule.OwnPath || rule.Depends > rule.Blocked+rule.Changed {
			t.Fatalf("%+v of %d requests", rule, r.Requests)
		}
	})
}

func FuzzColumns(f *testing.F) {
	f.Add(head[strings.Index(head, "#Fields:")+8:], line("GET", "/owa/", "a=1; b c", "192.0.2.7"), uint8(0))
	f.Add("cs-uri-stem cs(User-Agent) cs(Referer) c-ip", `/a "b c" "d ""e" 192.0.2.7`, uint8(advanced))
	f.Add("cs-uri-query cs-username", "a\tb \t c", uint8(plain))
	f.Fuzz(func(t *testing.T, names, line string, kind uint8) {
		fields := parseFields([]byte(names))
		fields.format = format(kind % 3)
		s := splitter{f: &fields}
		cols, _, why := s.split([]byte(line))
		if why != "" {
			return
		}
		if len(cols) != fields.count() {
			t.Fatalf("%d columns of %d", len(cols), fields.count())
		}
		at := int32(0)
		for _, c := range cols {
			if c.from < at || c.to < c.from || int(c.to) > len(line) {
				t.Fatalf("%v of %q", cols, line)
			}
			at = c.to
		}
		if len(cols) > 0 && strings.Trim(line, " \t") == line && (cols[0].from != 0 || int(at) != len(line)) {
			t.Fatalf("%v leaves something of %q out", cols, line)
		}
	})
}

func FuzzSamples(f *testing.F) {
	f.Add([]byte(`{"exploit": [{"path_and_query": "/a?b"}], "legitimate": [{"id": "x", "headers": {"A": "b"}, "path_and_query": "/"}]}`))
	f.Add([]byte(`{"exploit": [{"url": "/a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ReadSamples(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, x := range append(s.Exploit, s.Legitimate...) {
			if x.ID == "" || !strings.HasPrefix(x.PathAndQuery, "/") {
				t.Fatalf("%+v", x)
			}
		}
	})
}
