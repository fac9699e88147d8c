// Package vector evaluates URL Rewrite test vectors: a configuration, a request (and a response), and what comes of it. It is
// what `stopgap rewrite eval` reads and prints, one JSON object for each vector.
package vector

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// MaxBytes bounds a vectors file.
const MaxBytes = 64 << 20

// File is a vectors file.
type File struct {
	Format  string   `json:"format"`
	Vectors []Vector `json:"vectors"`
}

// Level is one configuration level.
type Level struct {
	Scope     string `json:"scope"`
	ConfigXML string `json:"config_xml"`
}

// Vector is one test vector. Phase is "inbound", "outbound" or "config".
type Vector struct {
	ID        string  `json:"id"`
	Phase     string  `json:"phase"`
	ConfigXML *string `json:"config_xml"`
	Levels    []Level `json:"levels"`
	// File is "web.config" when the configuration stands in one: sections that are locked there are refused.
	File string `json:"file"`
	// Scope is "server", "site" or the path of a virtual directory.
	Scope    string    `json:"scope"`
	Request  *Request  `json:"request"`
	Response *Response `json:"response"`
}

// Request of a vector.
type Request struct {
	Method          string            `json:"method"`
	Scheme          string            `json:"scheme"`
	Host            string            `json:"host"`
	PathAndQuery    string            `json:"path_and_query"`
	Headers         map[string]string `json:"headers"`
	ServerVariables map[string]string `json:"server_variables"`
	Filesystem      *Filesystem       `json:"filesystem"`
}

// Filesystem is the URL paths that exist.
type Filesystem struct {
	Files       []string `json:"files"`
	Directories []string `json:"directories"`
}

// Response of a vector.
type Response struct {
	Status      int               `json:"status"`
	ContentType string            `json:"content_type"`
	Headers     map[string]string `json:"headers"`
	Body        string            `json:"body"`
}

// Answer is what came of a vector. Fields that don't apply are absent.
type Answer struct {
	ID string `json:"id"`
	// Action is none, rewrite, redirect, custom_response or abort; config_error where IIS refuses the configuration and answers 500 to
	// everything at that place; runtime_error where a rule can't be carried out for this request; error where there is no verdict.
	Action string `json:"action"`
	Status int    `json:"status,omitempty"`
	// Substatus is the number behind a 500: 19 for a config_error; for a runtime_error 50 inbound, 52 outbound, 53 outbound before
	// the cache. Source: Microsoft, "HTTP status codes in IIS".
	Substatus    int               `json:"substatus,omitempty"`
	URL          string            `json:"url,omitempty"`
	MatchedRule  string            `json:"matched_rule,omitempty"`
	MatchedRules []string          `json:"matched_rules,omitempty"`
	Headers      map[string]string `json:"headers,omitempty"`
	Body         *string           `json:"body,omitempty"`
	// ServerVariables are those that rules set.
	ServerVariables map[string]string `json:"server_variables,omitempty"`
	// RequestHeaders are all headers of the request after the inbound rules, with lower-case names.
	RequestHeaders map[string]string `json:"request_headers,omitempty"`
	Error          string            `json:"error,omitempty"`
}

// Substatus codes that only a vector's answer has; the others are urlrewrite's.
const (
	substatusConfig      = 19
	substatusBeforeCache = 53
)

// Read reads a vectors file: an object with "vectors", or a bare list.
func Read(in io.Reader) ([]Vector, error) {
	data, err := io.ReadAll(io.LimitReader(in, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("vectors: more than %d bytes", MaxBytes)
	}
	var list []Vector
	if strings.HasPrefix(strings.TrimSpace(string(data)), "[") {
		err = json.Unmarshal(data, &list)
	} else {
		var f File
		err = json.Unmarshal(data, &f)
		list = f.Vectors
	}
	if err != nil {
		return nil, fmt.Errorf("vectors: %w", err)
	}
	return list, nil
}

// Evaluate evaluates a vector. config is the configuration for vectors that carry none; nil: there is none.
func Evaluate(v Vector, config []byte) Answer {
	a := Answer{ID: v.ID, Action: "none"}
	c, err := read(v, config)
	if err == nil && v.Phase == "config" {
		err = c.check()
	}
	switch {
	case err != nil:
		a.fail(err)
	case v.Phase == "config":
	case v.Request == nil:
		a.fail(errors.New("the vector has no request"))
	case v.Phase == "outbound":
		outbound(c, request(v.Request), v.Response, &a)
	default:
		inbound(c, v.Request, &a)
	}
	return a
}

func request(r *Request) *urlrewrite.Request {
	raw, query, _ := strings.Cut(r.PathAndQuery, "?")
	path := raw
	if decoded, err := url.PathUnescape(path); err == nil {
		path = decoded
	}
	req := &urlrewrite.Request{Method: or(r.Method, http.MethodGet), Scheme: or(r.Scheme, "http"), Host: r.Host,
		Path: path, RawPath: raw, RawQuery: query, Header: http.Header{}, Vars: map[string]string{}}
	for _, k := range names(r.Headers) {
		req.Header.Set(k, r.Headers[k])
	}
	for _, k := range names(r.ServerVariables) {
		req.Vars[strings.ToUpper(k)] = r.ServerVariables[k]
	}
	if fs := r.Filesystem; fs != nil {
		req.IsFile = func(p string) bool { return has(fs.Files, p) }
		req.IsDir = func(p string) bool { return has(fs.Directories, p) }
	}
	return req
}

// names gives the keys of a map in order: where two differ only by case, the last one counts every time.
func names(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// has compares as Windows does: without case, and a directory with or without its slash.
func has(list []string, p string) bool {
	for _, x := range list {
		if strings.EqualFold(strings.TrimSuffix(x, "/"), strings.TrimSuffix(p, "/")) {
			return true
		}
	}
	return false
}

// fail records an error. What IIS refuses or can't carry out is a 500; other errors are the vector's or a limit of the evaluator.
func (a *Answer) fail(err error) {
	a.Action, a.Error = "error", err.Error()
	var ce *configError
	var rt *urlrewrite.RuntimeError
	switch {
	case errors.As(err, &ce):
		a.Action, a.Status, a.Substatus = "config_error", http.StatusInternalServerError, substatusConfig
	case errors.As(err, &rt):
		a.Action, a.Status, a.Substatus = "runtime_error", http.StatusInternalServerError, rt.Substatus
	}
}

func (a *Answer) ran(rules []string) {
	a.MatchedRules = rules
	if len(rules) > 0 {
		a.MatchedRule = rules[len(rules)-1]
	}
}

func inbound(c *configuration, in *Request, a *Answer) {
	start, err := c.at(c.scope)
	if err != nil {
		a.fail(err)
		return
	}
	req := request(in)
	res, err := start.Rules.InboundAt(req, c.at)
	a.ran(res.Rules)
	if err != nil {
		a.fail(err)
		return
	}
	a.Action = map[urlrewrite.Action]string{urlrewrite.ActionNone: "none", urlrewrite.ActionRewrite: "rewrite",
		urlrewrite.ActionRedirect: "redirect", urlrewrite.ActionCustomResponse: "custom_response", urlrewrite.ActionAbort: "abort"}[res.Action]
	a.Status, a.URL = res.Status, res.URL
	a.ServerVariables, a.RequestHeaders = map[string]string{}, map[string]string{}
	for _, k := range names(in.Headers) {
		a.RequestHeaders[strings.ToLower(k)] = in.Headers[k]
	}
	for _, name := range res.Set {
		a.ServerVariables[name] = req.Vars[name]
		if h, ok := strings.CutPrefix(name, "HTTP_"); ok {
			h = strings.ToLower(strings.ReplaceAll(h, "_", "-"))
			if a.RequestHeaders[h] = req.Vars[name]; req.Vars[name] == "" {
				delete(a.RequestHeaders, h)
			}
		}
	}
}

func outbound(c *configuration, req *urlrewrite.Request, r *Response, a *Answer) {
	here, err := c.at(req.Path)
	if err == nil && !urlrewrite.Within(req.Path, c.scope) {
		_, err = c.at(c.scope) // as for inbound rules: a vector whose own scope is refused has no other answer
	}
	if err != nil {
		a.fail(err)
		return
	}
	if r == nil {
		r = &Response{}
	}
	resp := &urlrewrite.Response{Status: r.Status, Header: http.Header{}, Body: r.Body}
	for _, k := range names(r.Headers) {
		resp.Header.Set(k, r.Headers[k])
	}
	if r.ContentType != "" {
		resp.Header.Set("Content-Type", r.ContentType)
	}
	ran, rewrote, err := here.Rules.Respond(req, resp)
	a.ran(ran)
	if err != nil {
		a.fail(err)
		if a.Substatus == urlrewrite.SubstatusOutbound && c.beforeCache(req.Path) {
			a.Substatus = substatusBeforeCache
		}
		return
	}
	if rewrote {
		a.Action = "rewrite"
	}
	a.Headers = map[string]string{}
	for k, vs := range resp.Header {
		a.Headers[k] = strings.Join(vs, ", ")
	}
	a.Body = &resp.Body
}
