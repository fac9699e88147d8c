package simulate

import (
	"bytes"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/shared/bounded"
)

// Bounds on what a report remembers: of more different values than this the rest is counted together.
const (
	maxKinds   = 2000
	maxSamples = 3
	maxText    = 300
	others     = "(others)"
)

// Tally counts by name, bounded.
type Tally map[string]int64

func (t Tally) add(k string, n int64) {
	if _, ok := t[k]; !ok && len(t) >= maxKinds {
		k = others
	}
	t[k] += n
}

// Count is one line of a tally.
type Count struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}

// Top gives the largest n, the rest of them together last.
func (t Tally) Top(n int) []Count {
	var out []Count
	rest := t[others]
	for k, c := range t {
		if k != others {
			out = append(out, Count{k, c})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Count != out[j].Count {
			return out[i].Count > out[j].Count
		}
		return out[i].Name < out[j].Name
	})
	for len(out) > n {
		rest += out[len(out)-1].Count
		out = out[:len(out)-1]
	}
	if rest > 0 {
		out = append(out, Count{others, rest})
	}
	return out
}

// RuleReport is what one rule would have done.
type RuleReport struct {
	Rule string `json:"rule"`
	// Path is the place it applies to.
	Path string `json:"path"`
	// Blocked and Changed requests, and those that could not be judged: never "fine".
	Blocked  int64 `json:"blocked"`
	Changed  int64 `json:"changed"`
	Unjudged int64 `json:"unjudged"`
	// Of the blocked and changed ones, by endpoint (first part of the path), user agent, client network (/24, /48), and URL.
	Endpoints Tally `json:"-"`
	Agents    Tally `json:"-"`
	Networks  Tally `json:"-"`
	URLs      Tally `json:"-"`
	// Samples are whole URLs, as logged.
	Samples []string `json:"samples,omitempty"`
	// Encoded are blocked or changed requests whose logged path has a percent sign: whether it was logged decoded is unknown.
	Encoded int64 `json:"encoding_unknown"`
}

// Report is what a mitigation would have done.
type Report struct {
	Files int `json:"files"`
	// Requests that were read; Unreadable are lines that were none.
	Requests   int64         `json:"requests"`
	Unreadable int64         `json:"unreadable_lines"`
	Rules      []*RuleReport `json:"rules"`
}

func newReport(s *Simulation) *Report {
	r := &Report{}
	for _, x := range s.rules {
		r.Rules = append(r.Rules, &RuleReport{Rule: x.name, Path: x.base, Endpoints: Tally{}, Agents: Tally{}, Networks: Tally{}, URLs: Tally{}})
	}
	return r
}

// lines plays the rules over a block of lines.
func (r *Report) lines(s *Simulation, f *fields, data []byte) {
	var cols [][]byte
	for len(data) > 0 {
		line := data
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line, data = data[:i], data[i+1:]
		} else {
			data = nil
		}
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			continue
		}
		var e entry
		var ok bool
		if e, cols, ok = f.parseLine(line, cols); !ok {
			r.Unreadable++
			continue
		}
		r.Requests++
		req := f.request(e)
		for i := range s.rules {
			switch v := s.rules[i].judge(req); v {
			case unjudged:
				r.Rules[i].Unjudged++
			case blocked, changed:
				r.Rules[i].hit(v, e)
			case untouched:
			}
		}
	}
}

func (r *RuleReport) hit(v verdict, e entry) {
	if v == blocked {
		r.Blocked++
	} else {
		r.Changed++
	}
	if strings.Contains(e.stem, "%") {
		r.Encoded++
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(e.stem, "/"), "/")
	r.Endpoints.add("/"+clip(strings.ToLower(first)), 1)
	r.Agents.add(clip(strings.ReplaceAll(e.agent, "+", " ")), 1)
	r.Networks.add(network(e.client), 1)
	r.URLs.add(clip(e.stem), 1)
	if len(r.Samples) < maxSamples {
		u := e.stem
		if e.query != "" {
			u += "?" + e.query
		}
		r.Samples = append(r.Samples, clip(e.method+" "+u))
	}
}

func clip(s string) string { return bounded.Text(s, maxText) }

// network is a client's /24 or /48.
func network(client string) string {
	a, err := netip.ParseAddr(client)
	if err != nil {
		return "unknown"
	}
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

func (r *Report) merge(o *Report) {
	r.Requests += o.Requests
	r.Unreadable += o.Unreadable
	for i, x := range o.Rules {
		y := r.Rules[i]
		y.Blocked += x.Blocked
		y.Changed += x.Changed
		y.Unjudged += x.Unjudged
		y.Encoded += x.Encoded
		for _, pair := range [][2]Tally{{y.Endpoints, x.Endpoints}, {y.Agents, x.Agents}, {y.Networks, x.Networks}, {y.URLs, x.URLs}} {
			for k, n := range pair[1] {
				pair[0].add(k, n)
			}
		}
		y.Samples = append(y.Samples, x.Samples...)
		y.Samples = y.Samples[:min(len(y.Samples), maxSamples)]
	}
}

// Verdict is one line about a rule.
func (r *RuleReport) Verdict(requests int64) string {
	what := fmt.Sprintf("would have touched none of %d requests", requests)
	if n := r.Blocked + r.Changed; n > 0 {
		what = fmt.Sprintf("would have blocked %d and changed %d of %d requests (%.4g %%)", r.Blocked, r.Changed, requests, 100*float64(n)/float64(max(requests, 1)))
	}
	if r.Unjudged > 0 {
		what += fmt.Sprintf("; %d could not be judged: the log lacks what the rule asks for (cookies, say), so nothing is said about them", r.Unjudged)
	}
	if r.Encoded > 0 {
		what += fmt.Sprintf("; of %d the encoding is unknown", r.Encoded)
	}
	return what
}
