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
	ID              string            `json:"id"`
	Action          string            `json:"action"` // none, rewrite, redirect, custom_response, abort, error
	Status          int               `json:"status,omitempty"`
	URL             string            `json:"url,omitempty"`
	MatchedRule     string            `json:"matched_rule,omitempty"`
	MatchedRules    []string          `json:"matched_rules,omitempty"`
	Headers         map[string]string `json:"headers,omitempty"`
	Body            *string           `json:"body,omitempty"`
	ServerVariables map[string]string `json:"server_variables,omitempty"`
	RequestHeaders  map[string]string `json:"request_headers,omitempty"`
	Error           string            `json:"error,omitempty"`
}

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
	rs, err := ruleset(v, config)
	if err != nil {
		a.Action, a.Error = "error", err.Error()
		if v.Phase != "config" {
			a.Status = http.StatusInternalServerError
		}
		return a
	}
	if v.Phase == "config" {
		return a
	}
	if v.Request == nil {
		a.Action, a.Error = "error", "the vector has no request"
		return a
	}
	req := request(v.Request)
	if v.Phase == "outbound" {
		outbound(rs, req, v.Response, &a)
		return a
	}
	inbound(rs, req, base(v.Scope), v.Request, &a)
	return a
}

func base(scope string) string {
	if strings.HasPrefix(scope, "/") {
		return scope
	}
	return "/"
}

func ruleset(v Vector, config []byte) (*urlrewrite.Ruleset, error) {
	kind := urlrewrite.ApplicationHost
	if strings.EqualFold(v.File, "web.config") {
		kind = urlrewrite.WebConfig
	}
	var levels []Level
	switch {
	case v.Levels != nil:
		levels = v.Levels
	case v.ConfigXML != nil:
		levels = []Level{{v.Scope, *v.ConfigXML}}
	case config != nil:
		levels = []Level{{v.Scope, string(config)}}
	default:
		return nil, errors.New("the vector has no configuration, and none was given")
	}
	var sections []*urlrewrite.Section
	for i, l := range levels {
		s, err := urlrewrite.ParseConfig([]byte(l.ConfigXML), kind)
		if err != nil && len(levels) > 1 {
			err = fmt.Errorf("level %d (%s): %w", i+1, l.Scope, err)
		}
		if err != nil {
			return nil, err
		}
		sections = append(sections, s...)
	}
	return urlrewrite.Merge(sections...)
}

func request(r *Request) *urlrewrite.Request {
	raw, query, _ := strings.Cut(r.PathAndQuery, "?")
	path := raw
	if decoded, err := url.PathUnescape(path); err == nil {
		path = decoded
	}
	req := &urlrewrite.Request{Method: or(r.Method, http.MethodGet), Scheme: or(r.Scheme, "http"), Host: r.Host, Path: path, RawPath: raw, RawQuery: query,
		Header: http.Header{}, Vars: map[string]string{}}
	for k, v := range r.Headers {
		req.Header.Set(k, v)
	}
	for k, v := range r.ServerVariables {
		req.Vars[strings.ToUpper(k)] = v
	}
	if fs := r.Filesystem; fs != nil {
		req.IsFile = func(p string) bool { return has(fs.Files, p) }
		req.IsDir = func(p string) bool { return has(fs.Directories, p) }
	}
	return req
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

func (a *Answer) fail(err error) {
	a.Action, a.Error = "error", err.Error()
	var rt *urlrewrite.RuntimeError
	if errors.As(err, &rt) {
		a.Status = http.StatusInternalServerError
	}
}

func (a *Answer) ran(rules []string) {
	a.MatchedRules = rules
	if len(rules) > 0 {
		a.MatchedRule = rules[len(rules)-1]
	}
}

func inbound(rs *urlrewrite.Ruleset, req *urlrewrite.Request, base string, in *Request, a *Answer) {
	res, err := rs.Inbound(req, base)
	a.ran(res.Rules)
	if err != nil {
		a.fail(err)
		return
	}
	a.Action = map[urlrewrite.Action]string{urlrewrite.ActionNone: "none", urlrewrite.ActionRewrite: "rewrite", urlrewrite.ActionRedirect: "redirect",
		urlrewrite.ActionCustomResponse: "custom_response", urlrewrite.ActionAbort: "abort"}[res.Action]
	a.Status, a.URL = res.Status, res.URL
	if len(res.Set) == 0 {
		return
	}
	a.ServerVariables, a.RequestHeaders = map[string]string{}, map[string]string{}
	for k, v := range in.Headers {
		a.RequestHeaders[strings.ToLower(k)] = v
	}
	sort.Strings(res.Set)
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

func outbound(rs *urlrewrite.Ruleset, req *urlrewrite.Request, r *Response, a *Answer) {
	if r == nil {
		r = &Response{}
	}
	resp := &urlrewrite.Response{Status: r.Status, Header: http.Header{}, Body: r.Body}
	for k, v := range r.Headers {
		resp.Header.Set(k, v)
	}
	if r.ContentType != "" {
		resp.Header.Set("Content-Type", r.ContentType)
	}
	ran, rewrote, err := rs.Respond(req, resp)
	a.ran(ran)
	if err != nil {
		a.fail(err)
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
