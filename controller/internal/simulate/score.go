package simulate

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// Score is how a mitigation does on samples, by their names.
type Score struct {
	// Caught and Missed are the exploits that count: those of the mitigation's CVEs, and those without a CVE.
	Caught []string `json:"caught"`
	Missed []string `json:"missed"`
	// FalsePositives are legitimate requests that the mitigation blocks or changes.
	FalsePositives []string `json:"false_positives"`
	// NoVerdict are samples of both kinds for which a rule has none, with the reason.
	NoVerdict []string `json:"no_verdict"`
	// Others are exploits of other CVEs that it also blocks; NotCounted is how many exploits of other CVEs there are.
	Others     []string `json:"others_blocked"`
	NotCounted int      `json:"exploits_of_other_cves"`
	Legitimate int      `json:"legitimate"`
}

// Good says whether the mitigation does what it is for: it misses no exploit, and leaves legitimate requests alone.
func (s Score) Good() bool { return len(s.Missed)+len(s.FalsePositives)+len(s.NoVerdict) == 0 }

// Samples plays the mitigation over samples.
func (s *Simulation) Samples(in Samples, cves []string) Score {
	none := func() []string { return []string{} } // lists, not null, in JSON
	out := Score{Caught: none(), Missed: none(), FalsePositives: none(), NoVerdict: none(), Others: none(), Legitimate: len(in.Legitimate)}
	for _, x := range in.Exploit {
		counts := x.CVE == "" || slices.ContainsFunc(cves, func(c string) bool { return strings.EqualFold(c, x.CVE) })
		if !counts {
			out.NotCounted++
		}
		hit, why := s.touches(x)
		switch {
		case hit && counts:
			out.Caught = append(out.Caught, x.ID)
		case hit:
			out.Others = append(out.Others, x.ID)
		case counts && why != "":
			out.NoVerdict = append(out.NoVerdict, x.ID+": "+why)
		case counts:
			out.Missed = append(out.Missed, x.ID)
		}
	}
	for _, x := range in.Legitimate {
		switch hit, why := s.touches(x); {
		case hit:
			out.FalsePositives = append(out.FalsePositives, x.ID)
		case why != "":
			out.NoVerdict = append(out.NoVerdict, x.ID+": "+why)
		}
	}
	return out
}

// touches says whether one of the rules blocks or changes a sample; where none does, why says which had no verdict.
func (s *Simulation) touches(x Sample) (hit bool, why string) {
	raw, query, _ := strings.Cut(x.PathAndQuery, "?")
	path := raw
	if d, err := url.PathUnescape(raw); err == nil {
		path = d
	}
	for i := range s.rules {
		r := &s.rules[i]
		if !below(path, r.base) {
			continue
		}
		req := &urlrewrite.Request{Method: x.Method, Scheme: x.Scheme, Host: x.Host,
			Path: path, RawPath: raw, RawQuery: query, Header: http.Header{}}
		for k, v := range x.Headers {
			req.Header.Set(k, v)
		}
		switch v, err := r.judge(req); v {
		case blocked, changed:
			return true, ""
		case overBudget:
			why = "the pattern exceeds its budget"
		case tooLong, failed:
			why = err.Error()
		case untouched, unjudged:
		}
	}
	return false, why
}
