package urlrewrite

import "strings"

// Place is the configuration at one URL path, composed of the levels above it.
type Place struct {
	Rules *Ruleset
	// DefinedAt gives the path of the level that defines an inbound rule. The rule's pattern and its relative targets are relative
	// to that level, also where a level below inherits the rule. Source: Microsoft, "Using Global and Distributed Rewrite Rules".
	DefinedAt func(rule string) string
}

// InboundAt is Inbound where the levels matter: rs has the global rules, and at gives the place that a path belongs to. The path is
// the one that the request has after the global rules. An error of at is returned as it is.
func (rs *Ruleset) InboundAt(req *Request, at func(path string) (Place, error)) (Result, error) {
	run := inboundRun{req: req, path: req.Path, query: req.RawQuery}
	if done, err := rs.stage(&run, rs.global, true, "/", nil); err != nil || run.over(done) {
		return run.res, err
	}
	place, err := at(run.path)
	if err == nil {
		_, err = place.Rules.stage(&run, place.Rules.inbound, false, "/", place.DefinedAt)
	}
	return run.res, err
}

// InboundNames gives the names of the inbound rules that the section adds, in order.
func (s *Section) InboundNames() []string {
	var out []string
	for _, o := range s.inbound.ops {
		if o.name != "" {
			out = append(out, o.name)
		}
	}
	return out
}

// Within says whether a URL path is a place ("/", "/owa") or below it. Paths are compared without case.
func Within(path, base string) bool {
	base = strings.TrimSuffix(base, "/")
	return len(path) >= len(base) && strings.EqualFold(path[:len(base)], base) && (len(path) == len(base) || path[len(base)] == '/')
}
