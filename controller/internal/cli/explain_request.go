package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// explainedRequest is the request of --request.
type explainedRequest struct {
	text, method        string
	path, raw, rawQuery string
	host                string
	header              http.Header
}

func parseRequest(s string, headers []string) (*explainedRequest, error) {
	method, target, ok := strings.Cut(strings.TrimSpace(s), " ")
	target, _, _ = strings.Cut(strings.TrimSpace(target), " HTTP/")
	if !ok || !strings.HasPrefix(target, "/") {
		return nil, fmt.Errorf("--request %q: %w", s, errRequest)
	}
	r := &explainedRequest{text: method + " " + target, method: method, host: "mail.example", header: http.Header{}}
	r.raw, r.rawQuery, _ = strings.Cut(target, "?")
	var err error
	if r.path, err = url.PathUnescape(r.raw); err != nil {
		return nil, fmt.Errorf("--request %q: %w", s, err)
	}
	for _, h := range headers {
		name, value, err := parseHeader(h)
		if err != nil {
			return nil, err
		}
		if strings.EqualFold(name, "Host") {
			r.host = value
			continue
		}
		r.header.Add(name, value)
	}
	return r, nil
}

// explainedOutcomes is what becomes of a request: one outcome, or one for each reading where they differ.
type explainedOutcomes struct {
	Request string `json:"request"`
	// Application serves the request.
	Application string             `json:"application"`
	Outcomes    []explainedOutcome `json:"outcomes"`
}

// explainedOutcome is what becomes of a request under some readings.
type explainedOutcome struct {
	// Readings name the readings that lead here; none: all of them do.
	Readings []string `json:"readings,omitempty"`
	// Client is what the client gets.
	Client string `json:"client"`
	// Decides is the rule that decides, with file and line.
	Decides string          `json:"decides,omitempty"`
	Rules   []explainedStep `json:"rules,omitempty"`
	// Outbound are the outbound rules that change an answer of type text/html, and the headers that they set.
	Outbound []string `json:"outbound,omitempty"`
}

// explainedStep is what became of one rule.
type explainedStep struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// explainReading is one way to read what Microsoft's documents leave open, for a client that sends the request as it is or for one
// that changes it to get past the rules.
type explainReading struct{ ownBase, adverse bool }

func (r explainReading) base() string {
	if r.ownBase {
		return "the pattern of an inherited rule sees the URL relative to the level that defines the rule"
	}
	return "the pattern of an inherited rule sees the URL relative to the application"
}

func (r explainReading) client() string {
	if r.adverse {
		return "the client adds what gets it past a rule (a header that the request does not have, another method, host or port), " +
			"or what this version can't judge turns out in its favour"
	}
	return "the client sends the request as it is"
}

// outcomes evaluates a request under every reading.
func (c *explainedConfig) outcomes(site *iisconfig.Site, req *explainedRequest) *explainedOutcomes {
	p := c.model.At(site, req.path)
	out := &explainedOutcomes{Request: req.text, Application: p.App.String()}
	var all [2][2]explainedOutcome // by ownBase, adverse
	for i, ownBase := range []bool{false, true} {
		for j, adverse := range []bool{false, true} {
			all[i][j] = c.outcome(p, req, explainReading{ownBase, adverse})
		}
	}
	sameBase := reflect.DeepEqual(all[0], all[1])
	sameClient := reflect.DeepEqual(all[0][0], all[0][1]) && reflect.DeepEqual(all[1][0], all[1][1])
	for i, row := range all {
		for j, o := range row {
			if sameBase && i == 1 || sameClient && j == 1 {
				continue
			}
			rd := explainReading{i == 1, j == 1}
			if !sameBase {
				o.Readings = append(o.Readings, rd.base())
			}
			if !sameClient {
				o.Readings = append(o.Readings, rd.client())
			}
			out.Outcomes = append(out.Outcomes, o)
		}
	}
	return out
}

func (c *explainedConfig) outcome(p *iisconfig.Place, req *explainedRequest, rd explainReading) explainedOutcome {
	rs, _, err := p.Rules()
	if bad := iisconfig.AsInvalid(err); bad != nil {
		return explainedOutcome{Client: refused(bad)}
	}
	if runs, why := p.Module(); !runs && (!onlyGlobal(p) || rd.adverse) {
		return explainedOutcome{Client: "the application's answer: no rule runs (" + why + ")"}
	} else if broken := brokenPatterns(p); len(broken) > 0 {
		return explainedOutcome{Client: "status 500: a pattern does not compile: " + broken[0]}
	}
	r := &urlrewrite.Request{Method: req.method, Scheme: "https", Host: req.host, Path: req.path, RawPath: req.raw, RawQuery: req.rawQuery,
		Header: req.header.Clone(), RemoteAddr: "192.0.2.1", OwnBase: rd.ownBase, Adverse: rd.adverse}
	served := p // a global rule may send the request to another place
	res, err := rs.InboundAt(r, func(path string) (urlrewrite.Place, error) {
		served = c.model.At(p.Site, path)
		other, _, err := served.Rules()
		if runs, _ := served.Module(); !runs {
			other, _ = urlrewrite.Build(urlrewrite.Parts{})
		}
		return urlrewrite.Place{Rules: other, DefinedAt: func(string) string { return served.App.Path }}, err
	})
	o := explainedOutcome{Decides: decides(served, res), Rules: steps(served, res, err)}
	var runtime *urlrewrite.RuntimeError
	switch bad := iisconfig.AsInvalid(err); {
	case bad != nil:
		o.Client = refused(bad)
		return o
	case errors.As(err, &runtime):
		o.Client = fmt.Sprintf("status 500, substatus %d: %v", runtime.Substatus, err)
		return o
	case err != nil:
		o.Client = "no verdict: " + err.Error()
		return o
	}
	o.Client = client(res)
	if res.Action == urlrewrite.ActionNone || res.Action == urlrewrite.ActionRewrite {
		if final, _, err := served.Rules(); err == nil {
			o.Outbound = outboundEffect(final, r)
		}
	}
	return o
}

// refused is what the client gets where IIS refuses the configuration.
func refused(bad *iisconfig.Invalid) string {
	if bad.Unsure {
		return "not known: the configuration there can't be judged: " + bad.Error()
	}
	return "status 500: IIS refuses the configuration there (substatus 19, or 50 for an error inside a rewrite section): " + bad.Error()
}

func client(res urlrewrite.Result) string {
	switch res.Action {
	case urlrewrite.ActionAbort:
		return "the connection is closed without an answer"
	case urlrewrite.ActionCustomResponse:
		return strings.TrimSpace(fmt.Sprintf("status %d %s", res.Status, res.Reason))
	case urlrewrite.ActionRedirect:
		return fmt.Sprintf("status %d, redirected to %q", res.Status, res.URL)
	case urlrewrite.ActionRewrite:
		return fmt.Sprintf("the application's answer to the rewritten URL %q", res.URL)
	case urlrewrite.ActionNone:
	}
	return "the application's answer: no rule refuses or rewrites the request"
}

// decides names the rule whose action counts.
func decides(p *iisconfig.Place, res urlrewrite.Result) string {
	if len(res.Rules) == 0 || res.Action == urlrewrite.ActionNone {
		return ""
	}
	last := res.Rules[len(res.Rules)-1]
	for _, s := range []string{"rules", "globalRules"} {
		if it := p.Section(s).Item(last); it != nil {
			return fmt.Sprintf("%q, %s", last, it.Source)
		}
	}
	return fmt.Sprintf("%q", last)
}

// steps says of each enabled inbound rule whether it ran.
func steps(p *iisconfig.Place, res urlrewrite.Result, err error) []explainedStep {
	var out []explainedStep
	ran := res.Rules
	over := false // the evaluation ended at a rule
	for _, s := range []string{"globalRules", "rules"} {
		ended := false // stopProcessing ends the set of rules in which it is
		for _, i := range p.Section(s).Items {
			x := explainedStep{Name: i.Name, State: "does not match"}
			switch {
			case disabled(i):
				x.State = "disabled"
			case over || ended:
				x.State = "not reached"
			case len(ran) > 0 && strings.EqualFold(ran[0], i.Name):
				x.State = "runs"
				ran = ran[1:]
				ends := len(ran) == 0 && (err != nil || res.Action == urlrewrite.ActionAbort || res.Action == urlrewrite.ActionCustomResponse ||
					res.Action == urlrewrite.ActionRedirect)
				over = ends
				ended = ends || strings.EqualFold(i.Element.Attr("stopProcessing"), "true")
			}
			out = append(out, x)
		}
	}
	return out
}

// outboundEffect names the outbound rules that change an answer of the usual kind, and the headers that they set.
func outboundEffect(rs *urlrewrite.Ruleset, req *urlrewrite.Request) []string {
	header := http.Header{"Content-Type": {"text/html; charset=utf-8"}}
	ran, _, err := rs.Respond(req, &urlrewrite.Response{Status: http.StatusOK, Header: header})
	if err != nil {
		return []string{"no verdict: " + err.Error()}
	}
	var out []string
	for _, n := range ran {
		out = append(out, fmt.Sprintf("rule %q runs", n))
	}
	if header.Get("Content-Type") == "text/html; charset=utf-8" {
		header.Del("Content-Type")
	}
	names := make([]string, 0, len(header))
	for k := range header {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		out = append(out, fmt.Sprintf("header %s: %s", k, strings.Join(header.Values(k), ", ")))
	}
	return out
}
