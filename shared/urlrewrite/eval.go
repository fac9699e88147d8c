package urlrewrite

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Ruleset is the effective configuration at one place, ready to evaluate. It is safe for concurrent use.
type Ruleset struct {
	global   []*inboundRule
	inbound  []*inboundRule
	outbound []*outboundRule
	pre      map[string]*preCondition
	maps     map[string]*rewriteMap
	tags     map[string]*tagSet
	allowed  map[string]bool
}

// Merge builds the effective configuration from the sections of all levels, server first. The error is a *ConfigError
// (or names a template); IIS would answer 500.19.
func Merge(levels ...*Section) (*Ruleset, error) {
	rs := &Ruleset{pre: map[string]*preCondition{}, maps: map[string]*rewriteMap{}, tags: map[string]*tagSet{}, allowed: map[string]bool{}}
	var in, glob []*list[*inboundRule]
	var out []*list[*outboundRule]
	var pre []*list[*preCondition]
	var maps []*list[*rewriteMap]
	var tags []*list[*tagSet]
	var allowed []*list[string]
	var providers []*list[*rewriteMap]
	for _, s := range levels {
		if s == nil {
			continue
		}
		in, glob, out = append(in, &s.inbound), append(glob, &s.global), append(out, &s.outbound)
		pre, maps = append(pre, &s.pre), append(maps, &s.maps)
		tags, allowed = append(tags, &s.tags), append(allowed, &s.allowed)
		providers = append(providers, &s.provider)
	}
	var err error
	if rs.global, err = merge("global rule", glob); err != nil {
		return nil, err
	}
	if rs.inbound, err = merge("rule", in); err != nil {
		return nil, err
	}
	if rs.outbound, err = merge("outbound rule", out); err != nil {
		return nil, err
	}
	pcs, err := merge("preCondition", pre)
	if err != nil {
		return nil, err
	}
	ms, err := merge("rewrite map", maps)
	if err != nil {
		return nil, err
	}
	for _, m := range ms {
		rs.maps[strings.ToLower(m.name)] = m
	}
	ps, err := merge("provider", providers)
	if err != nil {
		return nil, err
	}
	for _, m := range ps {
		rs.maps[strings.ToLower(m.name)] = m
	}
	ts, err := merge("custom tags", tags)
	if err != nil {
		return nil, err
	}
	for _, t := range ts {
		rs.tags[strings.ToLower(t.name)] = t
	}
	names, err := merge("allowed server variable", allowed)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		rs.allowed[strings.ToUpper(n)] = true
	}
	for _, pc := range pcs {
		cp := *pc
		if cp.conditions, err = rs.bind(pc.conditions); err != nil {
			return nil, &ConfigError{Msg: fmt.Sprintf("preCondition %q: %v", pc.name, err)}
		}
		rs.pre[strings.ToLower(pc.name)] = &cp
	}
	return rs, rs.bindRules()
}

// bind parses the templates, which need the merged maps. It copies: sections are shared between rulesets.
func (rs *Ruleset) bind(cs []condition) ([]condition, error) {
	out := make([]condition, len(cs))
	for i, c := range cs {
		t, err := parseTemplate(c.input, rs.maps)
		if err != nil {
			return nil, fmt.Errorf("condition input %w", err)
		}
		c.inputT = t
		c.unknown = c.unknown || rs.asksProvider(t)
		out[i] = c
	}
	return out, nil
}

func (rs *Ruleset) bindRules() (err error) {
	for _, rules := range [][]*inboundRule{rs.global, rs.inbound} {
		for i, r := range rules {
			cp := *r
			if cp.conditions, err = rs.bind(r.conditions); err == nil {
				cp.targetT, err = parseTemplate(r.target, rs.maps)
			}
			cp.setVars = append([]setVar(nil), r.setVars...)
			for j := range cp.setVars {
				if err == nil {
					cp.setVars[j].valueT, err = parseTemplate(cp.setVars[j].value, rs.maps)
				}
			}
			if err != nil {
				return &ConfigError{Msg: fmt.Sprintf("rule %q: %v", r.name, err)}
			}
			rules[i] = &cp
		}
	}
	for i, r := range rs.outbound {
		cp := *r
		if cp.conditions, err = rs.bind(r.conditions); err == nil {
			cp.valueT, err = parseTemplate(r.value, rs.maps)
		}
		if _, ok := rs.pre[strings.ToLower(r.pre)]; err == nil && r.pre != "" && !ok {
			err = fmt.Errorf("preCondition %q does not exist", r.pre)
		}
		if err == nil && r.tags&flagCustomTags != 0 && rs.tags[strings.ToLower(r.customTags)] == nil {
			err = fmt.Errorf("custom tags %q do not exist", r.customTags)
		}
		if err != nil {
			return &ConfigError{Msg: fmt.Sprintf("outbound rule %q: %v", r.name, err)}
		}
		rs.outbound[i] = &cp
	}
	return nil
}

// HasInbound says whether a rule of that name is in force, and enabled.
func (rs *Ruleset) HasInbound(name string) (present, enabled bool) {
	for _, r := range rs.inbound {
		if strings.EqualFold(r.name, name) {
			return true, r.enabled
		}
	}
	return false, false
}

// HasOutbound says whether an outbound rule of that name is in force, and enabled.
func (rs *Ruleset) HasOutbound(name string) (present, enabled bool) {
	for _, r := range rs.outbound {
		if strings.EqualFold(r.name, name) {
			return true, r.enabled
		}
	}
	return false, false
}

// Request is what the rules see of a request.
type Request struct {
	Method, Scheme, Host string
	// Path is the percent-decoded path with its leading slash, site-absolute; RawQuery the query as sent.
	Path, RawQuery string
	// RawPath is the path as sent; empty: Path.
	RawPath    string
	Header     http.Header
	RemoteAddr string
	// Vars override computed server variables, by upper-case name.
	Vars map[string]string
	// Unknown, if set, says that nobody knows a variable (by upper-case name): it is empty then, and Asked becomes true.
	Unknown func(name string) bool
	Asked   bool
	// Adverse evaluates the rules as they are for a client that wants to get past them. A rule that ends the evaluation
	// without refusing the request counts as matching when it depends on what the client chooses (a header that the request
	// does not have, the method, the host, the port) or on what this version can't judge. A rule that refuses counts as not
	// matching when it depends on either of them, the method apart: the attack needs its own. An outbound rule that ends the
	// evaluation and depends on them ends it without its effect.
	Adverse bool
	// IgnoreRedirects: rules that redirect do not match. A client that is redirected has not got past the rules behind.
	IgnoreRedirects bool
	// OwnBase: each rule's pattern sees the URL relative to the level that defines the rule, rather than to the application.
	// Microsoft's reference leaves open which of the two IIS does for an inherited rule.
	OwnBase bool
	// freeQuery: the client chooses the query too.
	freeQuery bool
	// IsFile and IsDir answer for REQUEST_FILENAME; nil means no.
	IsFile, IsDir func(path string) bool
}

// Action is what the rules do to a request.
type Action int

// The actions.
const (
	ActionNone Action = iota
	ActionRewrite
	ActionRedirect
	ActionCustomResponse
	ActionAbort
)

// Result is what the inbound rules did.
type Result struct {
	Action Action
	// Rules that ran, in order.
	Rules []string
	// URL is the rewritten path and query, or the redirect's Location.
	URL string
	// Status of a redirect or custom response.
	Status int
	Reason string
	// Set are the server variables that were set, by upper-case name; their values are in Request.Vars.
	Set []string
}

// RuntimeError is a rule that IIS can't carry out for one request. IIS answers 500; the place itself keeps working.
type RuntimeError struct {
	Rule, Msg string
	// Substatus is the number behind 500: 50 for an inbound rule, 52 for an outbound rule. Source: Microsoft, "HTTP status codes
	// in IIS".
	Substatus int
}

// The substatus codes of a RuntimeError.
const (
	SubstatusInbound  = 50
	SubstatusOutbound = 52
)

func (e *RuntimeError) Error() string { return fmt.Sprintf("rule %q: %s", e.Rule, e.Msg) }

func (r *Request) variable(resp *Response, path, query string) func(string) string {
	return func(name string) string {
		up := strings.ToUpper(name)
		if v, ok := r.Vars[up]; ok {
			return v
		}
		if r.Unknown != nil && r.Unknown(up) {
			r.Asked = true
			return ""
		}
		switch up {
		case "UNENCODED_URL", "HTTP_URL":
			raw := r.RawPath
			if raw == "" {
				raw = r.Path
			}
			if r.RawQuery != "" {
				raw += "?" + r.RawQuery
			}
			return raw
		case "REQUEST_URI":
			if query != "" {
				return path + "?" + query
			}
			return path
		case "URL", "SCRIPT_NAME", "PATH_INFO", "REQUEST_FILENAME":
			return path
		case "QUERY_STRING":
			return query
		case "REQUEST_METHOD":
			return r.Method
		case "HTTPS":
			if r.Scheme == "https" {
				return "on"
			}
			return "off"
		case "SERVER_PORT_SECURE":
			if r.Scheme == "https" {
				return "1"
			}
			return "0"
		case "HTTP_HOST":
			return r.Host
		case "SERVER_NAME":
			host, _, _ := strings.Cut(r.Host, ":")
			return host
		case "SERVER_PORT":
			if _, port, ok := strings.Cut(r.Host, ":"); ok {
				return port
			}
			if r.Scheme == "https" {
				return "443"
			}
			return "80"
		case "REMOTE_ADDR", "REMOTE_HOST":
			return r.RemoteAddr
		case "CONTENT_TYPE", "CONTENT_LENGTH":
			return r.Header.Get(headerName(up))
		case "HTTP_X_ORIGINAL_URL":
			// What came in, before any rule: path decoded, query as sent.
			if r.RawQuery != "" {
				return r.Path + "?" + r.RawQuery
			}
			return r.Path
		case "RESPONSE_STATUS":
			if resp != nil && resp.Status != 0 {
				return strconv.Itoa(resp.Status)
			}
			return ""
		}
		if h, ok := strings.CutPrefix(up, "RESPONSE_"); ok && resp != nil {
			return strings.Join(resp.Header.Values(headerName(h)), ", ")
		}
		if h, ok := strings.CutPrefix(up, "HTTP_"); ok {
			sep := ", "
			if h == "COOKIE" {
				sep = "; "
			}
			return strings.Join(r.Header.Values(headerName(h)), sep)
		}
		return ""
	}
}

func headerName(variable string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(variable, "_", "-"))
}

// Inbound evaluates the global rules and then the rules of one place. base is the path of that place ("/" or "/owa"): its rules
// run only for requests below it, and the url that <match> sees is relative to it, without a leading slash. The error is a
// *RuntimeError or means "no verdict".
func (rs *Ruleset) Inbound(req *Request, base string) (Result, error) {
	run := inboundRun{req: req, path: req.Path, query: req.RawQuery}
	done, err := rs.stage(&run, rs.global, true, "/", nil)
	if err == nil && !run.over(done) && Within(run.path, base) {
		_, err = rs.stage(&run, rs.inbound, false, base, nil)
	}
	return run.res, err
}

// inboundRun is a request on its way through the rules: rules change path and query.
type inboundRun struct {
	req         *Request
	res         Result
	path, query string
}

// over reports whether no distributed rule runs after the global ones: the request is answered, or has gone to another server.
// That a global rule with stopProcessing ends only its own set of rules is inferred, so Adverse counts it as the end.
func (r *inboundRun) over(stopped bool) bool {
	if stopped && r.req.Adverse {
		return true
	}
	switch r.res.Action {
	case ActionAbort, ActionCustomResponse, ActionRedirect:
		return true
	case ActionRewrite:
		path, _, _ := strings.Cut(r.res.URL, "?")
		return strings.Contains(path, "://")
	case ActionNone:
	}
	return false
}

// stage evaluates one set of rules. It says whether nothing after it is evaluated.
func (rs *Ruleset) stage(run *inboundRun, rules []*inboundRule, global bool, base string, definedAt func(string) string) (bool, error) {
	for _, r := range rules {
		if !r.enabled {
			continue
		}
		if definedAt != nil {
			base = definedAt(r.name)
		}
		done, err := rs.inboundOne(r, run.req, &run.res, base, global, &run.path, &run.query)
		var rt *RuntimeError
		if errors.As(err, &rt) {
			return true, err
		}
		if err != nil {
			return true, fmt.Errorf("rule %q: %w", r.name, err)
		}
		if done {
			return true, nil
		}
	}
	return false, nil
}

// Relative returns the part of a URL path that a rule at base sees: below base, without the leading slash.
func Relative(path, base string) string {
	if Within(path, base) {
		path = path[len(strings.TrimSuffix(base, "/")):]
	}
	return strings.TrimPrefix(path, "/")
}

func (rs *Ruleset) inboundOne(r *inboundRule, req *Request, res *Result, base string, global bool, path, query *string) (done bool, err error) {
	if req.IgnoreRedirects && r.action == "Redirect" {
		return false, nil
	}
	sc := &scope{variable: req.variable(nil, *path, *query), maps: rs.maps, adverse: req.Adverse && r.passes(), wary: req.Adverse && !r.passes()}
	// What is open is the base of an inherited rule. A rule of a level below the application is relative to its own level.
	if r.base != "" && (req.OwnBase || Within(r.base, base)) {
		base = r.base
	}
	if r.url != nil {
		caps, err := r.url.match(Relative(*path, base))
		if err != nil {
			return false, err
		}
		if (caps != nil) == r.urlNegate {
			return false, nil
		}
		sc.rule = caps
	}
	ok, err := matchAllOf(r.conditions, r.matchAny, r.trackAll, sc, req)
	if err != nil || !ok || r.unknown && !sc.adverse {
		return false, err
	}
	res.Rules = append(res.Rules, r.name)
	for _, v := range r.setVars {
		if up := strings.ToUpper(v.name); !global && !rs.allowed[up] {
			return false, &RuntimeError{Rule: r.name, Substatus: SubstatusInbound,
				Msg: fmt.Sprintf("the server variable %q is not allowed to be set: it is not in allowedServerVariables", v.name)}
		}
		if req.Vars == nil {
			req.Vars = map[string]string{}
		}
		name := strings.ToUpper(v.name)
		if old := sc.variable(name); v.replace || old == "" {
			req.Vars[name] = v.valueT.expand(sc)
			res.Set = append(res.Set, name)
		}
	}
	switch r.action {
	case "AbortRequest":
		res.Action = ActionAbort
		return true, nil
	case "CustomResponse":
		res.Action, res.Status, res.Reason = ActionCustomResponse, r.status, r.reason
		return true, nil
	case "Redirect":
		res.Action, res.Status = ActionRedirect, r.redirectStatus
		res.URL = withQuery(absolute(r.targetT.expand(sc), base), *query, r.appendQuery)
		return true, nil
	case "Rewrite":
		res.Action = ActionRewrite
		res.URL = withQuery(absolute(r.targetT.expand(sc), base), *query, r.appendQuery)
		p, q, _ := strings.Cut(res.URL, "?")
		if strings.Contains(p, "://") {
			return true, nil // another server: nothing below evaluates it
		}
		*path, *query = percentDecode(p), q
	}
	return r.stop, nil
}

func absolute(target, base string) string {
	if strings.HasPrefix(target, "/") || strings.Contains(target, "://") {
		return target
	}
	return strings.TrimSuffix(base, "/") + "/" + target
}

func withQuery(target, query string, appendIt bool) string {
	if !appendIt || query == "" {
		return target
	}
	if strings.Contains(target, "?") {
		return target + "&" + query
	}
	return target + "?" + query
}

func matchAllOf(cs []condition, matchAny, trackAll bool, sc *scope, req *Request) (bool, error) {
	if len(cs) == 0 {
		return true, nil
	}
	var tracked []string
	for _, c := range cs {
		if c.unknown || sc.adverse && req.chooses(c.inputT, true) || sc.wary && req.chooses(c.inputT, false) {
			if sc.adverse && matchAny {
				return true, nil
			}
			if !sc.adverse && !matchAny {
				return false, nil
			}
			continue
		}
		in := c.inputT.expand(sc)
		var caps []string
		switch c.matchType {
		case "IsFile":
			if req.IsFile != nil && req.IsFile(in) {
				caps = []string{in}
			}
		case "IsDirectory":
			if req.IsDir != nil && req.IsDir(in) {
				caps = []string{in}
			}
		default:
			var err error
			if caps, err = c.pattern.match(in); err != nil {
				return false, err
			}
		}
		ok := (caps != nil) != c.negate
		if ok && caps != nil {
			if trackAll {
				if len(tracked) == 0 {
					tracked = caps[:1:1]
				}
				tracked = append(tracked, caps[1:]...)
				sc.cond = tracked
			} else {
				sc.cond = caps
			}
		}
		if ok && matchAny {
			return true, nil
		}
		if !ok && !matchAny {
			return false, nil
		}
	}
	return !matchAny, nil
}

// Outbound evaluates the outbound rules and changes the response's headers in place. It returns the names of the rules
// that ran. The error is a *RuntimeError or means "no verdict"; a rule that rewrites bodies needs Respond.
func (rs *Ruleset) Outbound(req *Request, resp http.Header) ([]string, error) {
	ran, _, err := rs.respond(req, &Response{Header: resp}, false)
	return ran, err
}

// Respond evaluates the outbound rules and changes the response in place. It returns the names of the rules that ran, and
// whether one of them had something to rewrite. The error is a *RuntimeError or means "no verdict".
func (rs *Ruleset) Respond(req *Request, resp *Response) (ran []string, rewrote bool, err error) {
	return rs.respond(req, resp, true)
}

func (rs *Ruleset) respond(req *Request, resp *Response, bodies bool) (ran []string, rewrote bool, err error) {
	encoding := contentEncoding(resp.Header) // before the rules: they may change the header, and the body stays encoded
	for _, r := range rs.outbound {
		if !r.enabled || r.void || r.unknown {
			if r.enabled && !r.void && r.stop && req.Adverse {
				break
			}
			continue
		}
		if req.Adverse && r.stop && rs.chosenBy(r, req) {
			break
		}
		applies, err := rs.preConditionHolds(r, req, resp)
		did := false
		if err == nil && applies {
			switch {
			case r.variable != "":
				did, err = rs.header(r, req, resp)
			case encoding != "" && r.rewritesBody():
				return ran, rewrote, encodedBody(r.name, encoding)
			case !bodies:
				err = fmt.Errorf("%w: it rewrites bodies, and there is none here", ErrInput)
			default:
				did, err = rs.body(r, req, resp)
			}
		}
		if err != nil {
			return ran, rewrote, fmt.Errorf("outbound rule %q: %w", r.name, err)
		}
		if !did {
			continue
		}
		ran = append(ran, r.name)
		rewrote = rewrote || r.action == "Rewrite"
		if r.stop {
			break
		}
	}
	return ran, rewrote, nil
}

// chosenBy reports whether it depends on the client that an outbound rule runs.
func (rs *Ruleset) chosenBy(r *outboundRule, req *Request) bool {
	all := r.conditions
	if pc := rs.pre[strings.ToLower(r.pre)]; pc != nil {
		all = append(all[:len(all):len(all)], pc.conditions...)
	}
	return slices.ContainsFunc(all, func(c condition) bool { return req.chooses(c.inputT, false) })
}

func (rs *Ruleset) preConditionHolds(r *outboundRule, req *Request, resp *Response) (bool, error) {
	if r.pre == "" {
		return true, nil
	}
	pc := rs.pre[strings.ToLower(r.pre)]
	sc := &scope{variable: req.variable(resp, req.Path, req.RawQuery), maps: rs.maps}
	return matchAllOf(pc.conditions, pc.matchAny, false, sc, req)
}

// header evaluates a rule over a server variable; only response headers are changed.
func (rs *Ruleset) header(r *outboundRule, req *Request, resp *Response) (bool, error) {
	sc := &scope{variable: req.variable(resp, req.Path, req.RawQuery), maps: rs.maps}
	caps, err := r.pattern.match(sc.variable(r.variable))
	if err != nil || (caps != nil) == r.negate {
		return false, err
	}
	sc.rule = caps
	ok, err := matchAllOf(r.conditions, r.matchAny, r.trackAll, sc, req)
	if err != nil || !ok {
		return false, err
	}
	if h, isHeader := strings.CutPrefix(strings.ToUpper(r.variable), "RESPONSE_"); isHeader && r.action == "Rewrite" {
		if r.replace || resp.Header.Get(headerName(h)) == "" {
			resp.Header.Set(headerName(h), r.valueT.expand(sc))
		}
	}
	return true, nil
}
