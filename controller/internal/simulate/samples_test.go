package simulate

import (
	"bytes"
	"strings"
	"testing"
)

func TestSamplesWithoutACVECountForEveryMitigation(t *testing.T) {
	t.Parallel()
	in, err := ReadSamples(strings.NewReader(`{"exploit": [
		{"id": "own", "cve": "cve-2022-41040", "path_and_query": "/autodiscover/x?powershell"},
		{"id": "fresh", "path_and_query": "/autodiscover/x?powershell", "notes": "no number yet"},
		{"id": "through", "path_and_query": "/owa/?x"},
		{"path_and_query": "/owa/?y"},
		{"id": "other", "cve": "CVE-2021-26855", "path_and_query": "/owa/?x"},
		{"id": "also", "cve": "CVE-2021-26855", "path_and_query": "/autodiscover/x?powershell"}],
		"legitimate": [{"id": "l1", "path_and_query": "/owa/"}, {"id": "l2", "path_and_query": "/owa/?autodiscover&powershell"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := sim(t, "M1").Samples(in, []string{"CVE-2022-41040"})
	join := func(x []string) string { return strings.Join(x, " ") }
	if join(got.Caught) != "own fresh" || join(got.Missed) != "through exploit[3]" || join(got.FalsePositives) != "l2" ||
		join(got.Others) != "also" || got.NotCounted != 2 || got.Legitimate != 2 || got.Good() {
		t.Errorf("%+v", got)
	}
	// A mitigation whose CVE has no number yet is tried with those alone.
	if got := sim(t, "M1").Samples(in, nil); join(got.Caught) != "fresh" || got.NotCounted != 3 {
		t.Errorf("%+v", got)
	}
	if !(Score{Caught: []string{"a"}, Others: []string{"b"}}).Good() ||
		(Score{Missed: []string{"a"}}).Good() || (Score{FalsePositives: []string{"a"}}).Good() {
		t.Error("what is good")
	}
}

func TestAFileOfSamplesThatIsNotUnderstoodIsRefusedWithThePlace(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"{\"exploit\": [\n  {\"id\": \"x\", \"url\": \"/a\"}]}": `line 2, column 15: exploit[0].url: ` +
			`there is no key "url"; it can be one of id, cve, method, scheme, host, path_and_query, headers`,
		"{\n\"exploits\": []}":                                         `line 2, column 1: exploits: there is no key "exploits"`,
		`{"exploit": [{"ID": "x", "path_and_query": "/"}]}`:            `exploit[0].ID: there is no key "ID"`,
		`{"exploit": [{"id": "x", "id": "y", "path_and_query": "/"}]}`: `exploit[0].id: the key is there twice`,
		`{"exploit": [{"path_and_query": "/"}], "exploit": []}`:        `exploit: the key is there twice`,
		`[{"id": "x"}]`:                                               `line 1, column 2: the file must hold one object`,
		`{"exploit": {"id": "x"}}`:                                    `exploit must be a list`,
		`{"exploit": ["/a"]}`:                                         `exploit[0] must be an object`,
		"{\"exploit\": [{\"path_and_query\":\n 5}]}":                  `line 2, column 3: exploit.path_and_query must be a text, and is of type number`,
		`{"exploit": [{"path_and_query": "/", "headers": ["A: b"]}]}`: `headers must be an object of texts, and is of type array`,
		`{"exploit": [{"id": "x"}]}`:                                  `exploit[0]: "path_and_query" must begin with a slash`,
		`{"legitimate": [{"path_and_query": "https://a.example/"}]}`:  `legitimate[0]: "path_and_query" must begin with a slash`,
		`{}`:                                   `no requests in it`,
		`{"exploit": [], "legitimate": null}`:  `no requests in it`,
		``:                                     `ends too early`,
		`{"exploit": [{"path_and_query": "/"}`: `ends too early`,
		"{\"exploit\":\n [}":                   `line 2, column`,
		`{"exploit": [{"path_and_query": "/"}]} {}`:                              `something follows`,
		`{"notes": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`: `nested deeper`,
	} {
		_, err := ReadSamples(strings.NewReader(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", in, err, want)
		}
	}
	_, err := ReadSamples(bytes.NewReader(bytes.Repeat([]byte(" "), maxSamplesFile+1)))
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
}

func TestAFileOfSamplesMayHaveAByteOrderMark(t *testing.T) {
	t.Parallel()
	const text = `{"exploit": [{"path_and_query": "/a"}]}`
	for name, data := range map[string][]byte{
		"UTF-8":  append([]byte("\xef\xbb\xbf"), text...),
		"UTF-16": wide("\ufeff"+text, false),
	} {
		if s, err := ReadSamples(bytes.NewReader(data)); err != nil || len(s.Exploit) != 1 ||
			s.Exploit[0].Method != "GET" || s.Exploit[0].Scheme != "https" {
			t.Errorf("%s: %+v %v", name, s, err)
		}
	}
}
