package simulate

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/bounded"
)

// Bounds on the requests that a report shows.
const (
	maxSamples = 3
	maxText    = 300
)

// RuleReport is what one rule would have done.
type RuleReport struct {
	Rule string `json:"rule"`
	// Path is the place it applies to.
	Path string `json:"path"`
	// OwnPath is the number of requests for that place; the rule does not see the others.
	OwnPath int64 `json:"own_path_requests"`
	// Nothing says that the rule's <match> matched none of these.
	Nothing  bool `json:"does_nothing"`
	Disabled bool `json:"disabled,omitempty"`
	// Blocked and Changed requests, with those that Depends counts.
	Blocked int64 `json:"blocked"`
	Changed int64 `json:"changed"`
	// Depends are the blocked or changed requests of which the log does not say whether the rule would have seen what it matches:
	// Exchange may have appended it to the query.
	Depends int64 `json:"depends_on_appended"`
	// Requests without a verdict, never "fine". Unjudged: the log lacks what the rule asks for. OverBudget: a pattern took longer
	// than it may. TooLong: a value is longer than patterns are matched against. Failed: IIS would answer 500.50, because the rule
	// can't be carried out.
	Unjudged   int64 `json:"unjudged"`
	OverBudget int64 `json:"over_budget"`
	TooLong    int64 `json:"too_long"`
	Failed     int64 `json:"failed"`
	// Of the blocked and changed ones, by endpoint (first part of the path), user agent, client network (/24, /48), and URL.
	Endpoints Tally `json:"-"`
	Agents    Tally `json:"-"`
	Networks  Tally `json:"-"`
	URLs      Tally `json:"-"`
	// Samples are whole URLs, as logged; SamplesDepending of those that Depends counts.
	Samples          []string `json:"samples,omitempty"`
	SamplesDepending []string `json:"samples_depending_on_appended,omitempty"`
	// Encoded are blocked or changed requests whose logged path has a percent sign: whether it was logged decoded is unknown.
	Encoded int64 `json:"encoding_unknown"`

	matched bool
}

// Report is what a mitigation would have done.
type Report struct {
	// Files is the number of files that were to be read; DamagedFiles of those that could not, or only in part. Unread names the
	// first of these.
	Files        int       `json:"files"`
	DamagedFiles int64     `json:"damaged_files"`
	Unread       []Problem `json:"unread,omitempty"`
	// Requests that were read; Unreadable are lines that were none, and DamagedLines names the first of these.
	Requests     int64         `json:"requests"`
	Unreadable   int64         `json:"unreadable_lines"`
	DamagedLines []Problem     `json:"damaged_lines,omitempty"`
	Rules        []*RuleReport `json:"rules"`
}

func newReport(s *Simulation) *Report {
	r := &Report{}
	for _, x := range s.rules {
		r.Rules = append(r.Rules, &RuleReport{Rule: x.name, Path: x.base, Disabled: x.disabled,
			Endpoints: Tally{}, Agents: Tally{}, Networks: Tally{}, URLs: Tally{}})
	}
	return r
}

// Lose names something else that could not be read, before a report is shown: a directory of the pattern, say.
func (r *Report) Lose(name, what string) { r.lose(r.Files, name, what) }

func (r *RuleReport) count(v verdict, depends bool, e *entry) {
	switch v {
	case untouched:
	case blocked:
		r.Blocked++
	case changed:
		r.Changed++
	case unjudged:
		r.Unjudged++
	case overBudget:
		r.OverBudget++
	case tooLong:
		r.TooLong++
	case failed:
		r.Failed++
	}
	if v.hit() {
		r.hit(depends, e)
	}
}

// hit counts where a request that is blocked or changed came from.
func (r *RuleReport) hit(depends bool, e *entry) {
	stem, query := e.value(e.f.stem), e.req.RawQuery
	if strings.Contains(stem, "%") {
		r.Encoded++
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(stem, "/"), "/")
	r.Endpoints.add("/"+clip(strings.ToLower(first)), 1)
	r.Agents.add(clip(e.prose(e.f.agent)), 1)
	r.Networks.add(network(e.client()), 1)
	r.URLs.add(clip(stem), 1)
	samples := &r.Samples
	if depends {
		r.Depends++
		samples = &r.SamplesDepending
	}
	if len(*samples) < maxSamples {
		if query != "" {
			stem += "?" + query
		}
		*samples = append(*samples, clip(e.value(e.f.method)+" "+stem))
	}
}

// clip copies the beginning of a text, so that a report does not keep whole lines in memory.
func clip(s string) string { return strings.Clone(bounded.Text(s, maxText)) }

func (r *Report) merge(o *Report) {
	r.Requests += o.Requests
	r.Unreadable += o.Unreadable
	r.DamagedLines = append(r.DamagedLines, o.DamagedLines...)
	for i, x := range o.Rules {
		r.Rules[i].merge(x)
	}
}

func (r *RuleReport) merge(x *RuleReport) {
	r.matched = r.matched || x.matched
	for _, n := range [][2]*int64{{&r.OwnPath, &x.OwnPath}, {&r.Blocked, &x.Blocked}, {&r.Changed, &x.Changed}, {&r.Depends, &x.Depends},
		{&r.Unjudged, &x.Unjudged}, {&r.OverBudget, &x.OverBudget}, {&r.TooLong, &x.TooLong}, {&r.Failed, &x.Failed}, {&r.Encoded, &x.Encoded}} {
		*n[0] += *n[1]
	}
	for _, t := range [][2]Tally{{r.Endpoints, x.Endpoints}, {r.Agents, x.Agents}, {r.Networks, x.Networks}, {r.URLs, x.URLs}} {
		for k, n := range t[1] {
			t[0].add(k, n)
		}
	}
	for _, s := range [][2]*[]string{{&r.Samples, &x.Samples}, {&r.SamplesDepending, &x.SamplesDepending}} {
		all := append(*s[0], *s[1]...)
		*s[0] = all[:min(len(all), maxSamples)]
	}
}

// finish computes the results that depend on all requests.
func (r *Report) finish() {
	r.sortProblems()
	for _, x := range r.Rules {
		x.Nothing = x.OwnPath > 0 && (x.Disabled || !x.matched && x.OverBudget+x.TooLong == 0)
	}
}

// Verdict is a few words about a rule, in one line.
func (r *RuleReport) Verdict(requests int64) string {
	what := fmt.Sprintf("would have touched none of %d requests", requests)
	switch n := r.Blocked + r.Changed; {
	case n > 0:
		what = fmt.Sprintf("would have blocked %d and changed %d of %d requests (%.4g %%)",
			r.Blocked, r.Changed, requests, 100*float64(n)/float64(max(requests, 1)))
	case r.Disabled:
		what += `; this rule does nothing: it has enabled="false"`
	case r.Nothing:
		what += fmt.Sprintf("; its <match> matched none of the %d requests for its own path: this rule does nothing", r.OwnPath)
		if base := strings.Trim(r.Path, "/"); base != "" {
			what += fmt.Sprintf(" (at /%s the url that <match> sees begins behind %s/)", base, base)
		} else {
			what += " (the url that <match> sees has no leading slash, and no query)"
		}
	case r.OwnPath == 0:
		what += fmt.Sprintf("; none of them is for %s, so nothing is known about this rule", r.Path)
	}
	if r.Depends > 0 {
		what += fmt.Sprintf("; %d of these depend on text that Exchange may have appended to the query", r.Depends)
	}
	if r.Unjudged > 0 {
		what += fmt.Sprintf("; %d could not be judged: the log lacks what the rule asks for (cookies, say), so nothing is said about them",
			r.Unjudged)
	}
	if r.OverBudget > 0 {
		what += fmt.Sprintf("; %d without a verdict: the pattern exceeds its budget", r.OverBudget)
		if r.OverBudget >= maxOverruns {
			what += fmt.Sprintf(" (after %d such requests the rule was no longer evaluated)", maxOverruns)
		}
	}
	if r.TooLong > 0 {
		what += fmt.Sprintf("; %d without a verdict: their URL or a header is longer than patterns are matched against", r.TooLong)
	}
	if r.Failed > 0 {
		what += fmt.Sprintf("; to %d IIS would answer 500.50: the rule sets a server variable that the server must allow first", r.Failed)
	}
	if r.Encoded > 0 {
		what += fmt.Sprintf("; of %d the encoding is unknown", r.Encoded)
	}
	return what
}
