package simulate

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/e2e/realdata"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

func catalogue(t testing.TB, id string) *mitigation.Document {
	t.Helper()
	files, err := mitigation.Catalogue()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name == id+".yaml" {
			d, err := mitigation.Parse(f.Name, f.Content)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatalf("no %s", id)
	return nil
}

func sim(t testing.TB, id string) *Simulation {
	t.Helper()
	s, err := New(catalogue(t, id))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const head = "#Software: Microsoft Internet Information Services 10.0\n" +
	"#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username " +
	"c-ip cs(User-Agent) cs(Referer) sc-status sc-substatus sc-win32-status time-taken\n"

func line(method, stem, query, client string) string {
	return fmt.Sprintf("2026-11-25 03:00:00 10.0.0.1 %s %s %s 443 - %s Mozilla/5.0+(x) - 200 0 0 15\n", method, stem, query, client)
}

const exploit = "a@foo.var/owa/?&Email=autodiscover/autodiscover.json?a@foo.var&Protocol=XYZ&FooProtocol=%50owershell"

func write(t testing.TB, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	data := []byte(text)
	if strings.HasSuffix(name, ".gz") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		data = b.Bytes()
	}
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLogsOfAnyFieldOrderPackedOrNotAreJudgedAndWhatCannotBeIsSaid(t *testing.T) {
	t.Parallel()
	plain := write(t, "u_ex1.log", head+
		line("GET", "/autodiscover/autodiscover.json", exploit, "192.0.2.7")+
		line("POST", "/ews/exchange.asmx", "&CorrelationID=<empty>;&cafeReqId=1;powershell;autodiscover;", "198.51.100.1")+
		line("POST", "/owa/service.svc", "CorrelationID=<empty>;autodiscover;powershell", "198.51.100.1")+
		"half a line\n"+strings.Repeat("x", 100<<10)+"\n"+line("GET", "/owa/", "-", "2001:db8::1"))
	packed := write(t, "u_ex2.log.gz", "#Fields: cs-uri-query cs-uri-stem X-Forwarded-For c-ip cs-method\r\n"+
		exploit+" /autodiscover/autodiscover.json 203.0.113.9,+10.0.0.5 10.0.0.5 GET\r\n")
	r, err := sim(t, "M1").Logs(t.Context(), []string{plain, packed}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m1 := r.Rules[0]
	// Two of the four have their words in text that Exchange may have appended.
	if r.Requests != 5 || r.Unreadable != 2 || m1.Blocked != 4 || m1.Depends != 2 || m1.Unjudged != 0 {
		t.Errorf("%+v %+v", r, m1)
	}
	if m1.Networks["192.0.2.0/24"] != 1 || m1.Networks["203.0.113.0/24"] != 1 || m1.Endpoints["/autodiscover"] != 2 {
		t.Errorf("%v %v", m1.Networks, m1.Endpoints)
	}
	// What the log lacks is never "fine".
	r, err = sim(t, "CVE-2021-26855").Logs(t.Context(), []string{plain}, nil)
	if err != nil || r.Rules[0].Unjudged != 4 || !strings.Contains(r.Rules[0].Verdict(r.Requests), "could not be judged") {
		t.Errorf("without cookies: %+v %v", r.Rules[0], err)
	}
	if _, err := New(catalogue(t, "M2")); err == nil {
		t.Error("an outbound rule is judged from requests")
	}
}

func TestPublishedExploitsAreCaughtAndPeopleAreNot(t *testing.T) {
	t.Parallel()
	f, err := os.Open(filepath.Join(realdata.Dir(t), "rewrite", "requests.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	all, err := ReadSamples(f)
	if err != nil {
		t.Fatal(err)
	}
	// Microsoft's final rule decodes once; a request that is encoded twice passes it.
	missed := map[string]string{"M1": "x31-pns-double-encoded", "CVE-2021-26855": ""}
	for id := range missed {
		d := catalogue(t, id)
		score := sim(t, id).Samples(all, d.GetCves())
		if len(score.Caught) == 0 || strings.Join(score.Missed, " ") != missed[id] || len(score.FalsePositives) > 0 || score.Legitimate < 10 {
			t.Errorf("%s: %+v", id, score)
		}
	}
}

func TestAMillionDifferentValuesAreCountedInBoundedMemory(t *testing.T) {
	t.Parallel()
	ta := Tally{}
	for i := range 100_000 {
		ta.add(fmt.Sprint(i), 1)
	}
	var sum int64
	for _, c := range ta.Top(10) {
		sum += c.Count
	}
	if len(ta) > maxKinds+1 || sum != 100_000 {
		t.Errorf("%d kinds, %d in all", len(ta), sum)
	}
}

// million is a log of ordinary requests.
func million(b *testing.B, n int) string {
	var s strings.Builder
	s.WriteString(head)
	paths := []string{"/owa/service.svc", "/ews/exchange.asmx", "/Microsoft-Server-ActiveSync/default.eas",
		"/mapi/emsmdb/", "/autodiscover/autodiscover.xml", "/rpc/rpcproxy.dll"}
	for i := range n {
		query := fmt.Sprintf("Cmd=Ping&User=user%d@contoso.com&DeviceId=%032d&CorrelationID=<empty>;&cafeReqId=%d;", i%5000, i, i)
		s.WriteString(line("POST", paths[i%len(paths)], query, fmt.Sprintf("10.%d.%d.7", i%200, i%250)))
	}
	return write(b, "million.log", s.String())
}

func BenchmarkM1OverAMillionLogLines(b *testing.B) {
	const n = 1_000_000
	file := million(b, n)
	s := sim(b, "M1")
	b.ResetTimer()
	for range b.N {
		r, err := s.Logs(b.Context(), []string{file}, nil)
		if err != nil || r.Requests != n {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
