package simulate

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// Sample is one request of a file of exploits and of people's work.
type Sample struct {
	ID           string            `json:"id"`
	CVE          string            `json:"cve"`
	Method       string            `json:"method"`
	Scheme       string            `json:"scheme"`
	Host         string            `json:"host"`
	PathAndQuery string            `json:"path_and_query"`
	Headers      map[string]string `json:"headers"`
}

// Samples is such a file.
type Samples struct {
	Exploit    []Sample `json:"exploit"`
	Legitimate []Sample `json:"legitimate"`
}

const maxSamplesFile = 16 << 20

// ReadSamples reads one, bounded.
func ReadSamples(in io.Reader) (Samples, error) {
	var s Samples
	data, err := io.ReadAll(io.LimitReader(in, maxSamplesFile+1))
	if err == nil && len(data) > maxSamplesFile {
		err = fmt.Errorf("more than %d bytes", maxSamplesFile)
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// Score is how a mitigation does on samples.
type Score struct {
	// Caught and Missed exploits of the mitigation's CVEs, FalsePositives among people's requests; by id.
	Caught         []string `json:"caught"`
	Missed         []string `json:"missed"`
	FalsePositives []string `json:"false_positives"`
	// Others are exploits of other CVEs that it also blocks.
	Others     []string `json:"others_blocked"`
	Legitimate int      `json:"legitimate"`
}

// Samples plays the mitigation over samples.
func (s *Simulation) Samples(in Samples, cves []string) Score {
	out := Score{Legitimate: len(in.Legitimate)}
	for _, x := range in.Exploit {
		hit, of := s.touches(x), slices.Contains(cves, x.CVE)
		switch {
		case hit && of:
			out.Caught = append(out.Caught, x.ID)
		case hit:
			out.Others = append(out.Others, x.ID)
		case of:
			out.Missed = append(out.Missed, x.ID)
		}
	}
	for _, x := range in.Legitimate {
		if s.touches(x) {
			out.FalsePositives = append(out.FalsePositives, x.ID)
		}
	}
	return out
}

func (s *Simulation) touches(x Sample) bool {
	raw, query, _ := strings.Cut(x.PathAndQuery, "?")
	path := raw
	if d, err := url.PathUnescape(raw); err == nil {
		path = d
	}
	for i := range s.rules {
		req := &urlrewrite.Request{Method: x.Method, Scheme: x.Scheme, Host: x.Host, Path: path, RawPath: raw, RawQuery: query, Header: http.Header{}}
		for k, v := range x.Headers {
			req.Header.Set(k, v)
		}
		if v, _ := s.rules[i].judge(req); v.hit() && below(path, s.rules[i].base) {
			return true
		}
	}
	return false
}
