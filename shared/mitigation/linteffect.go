package mitigation

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/effect"
)

// effect judges what the document does on a standard Exchange server.
func (l *linter) effect() {
	placed, actions, known := l.placements()
	pools := l.pools()
	if len(placed) == 0 && len(pools) == 0 {
		return
	}
	review, err := effect.NewReview(placed, pools)
	if err != nil {
		l.say(true, l.node("actions"), "on a standard Exchange server: %v", err)
		return
	}
	if n := len(review.Rules()); n > maxLintRules {
		l.say(true, l.node("actions"), "it has %d rules: the effect of more than %d is not judged; make several documents of it", n, maxLintRules)
		return
	}
	attacks := effect.Attacks(l.d.Mitigation)
	l.harms(review, actions)
	if known {
		l.attacks(review, attacks)
	}
	unsafe := review.CutOff()
	idle := l.idle(review, actions, attacks)
	if known {
		l.useless(review, actions, attacks, idle)
	}
	if review.CutOff() {
		l.say(unsafe, l.node("actions"), "its patterns take so long to match that its effect was not judged to the end (%s)",
			effect.MaxReviewTime)
	}
}

// placements are the url_rewrite actions on the standard server, with their indices in the document. known is false when an
// action is for a place that this server does not have, so that what the document as a whole does is not known.
func (l *linter) placements() (placed []effect.Placement, actions []int, known bool) {
	known = true
	for i, a := range l.d.GetActions() {
		rw := a.GetUrlRewrite()
		if rw == nil {
			continue
		}
		p := effect.Placement{Site: rw.GetLocation().GetSite(), Path: rw.GetLocation().GetPath(), Inbound: rw.GetInbound(),
			Outbound: rw.GetOutbound()}
		if p.Site == frontEnd {
			p.Site = effect.StandardFrontEnd
		}
		if _, err := effect.Standard(effect.Placement{Site: p.Site, Path: p.Path}); err != nil {
			known = false
			severe := rw.GetLocation().GetSite() == frontEnd
			what := "the agent would refuse the document; put the rules at an application, with the rest of the path in their patterns"
			if !severe {
				what = "what the rules do there was not judged"
			}
			l.say(severe, l.node("actions", i, "urlRewrite", "location"), "a standard Exchange server has no application %s on site %q: %s",
				p.Path, p.Site, what)
			continue
		}
		placed, actions = append(placed, p), append(actions, i)
	}
	return placed, actions, known
}

func (l *linter) pools() []string {
	var out []string
	for _, a := range l.d.GetActions() {
		if p := a.GetAppPool(); p != nil {
			out = append(out, p.GetName())
		}
	}
	return out
}

// idle finds the rules that can't do anything where they are, or may not do what they do. It returns them.
func (l *linter) idle(review *effect.Review, actions []int, attacks []effect.Attack) map[*effect.PlacedRule]bool {
	idle := map[*effect.PlacedRule]bool{}
	for _, x := range review.Rules() {
		action := actions[x.Action]
		if why := review.Never(x, attacks); why != "" {
			idle[x] = true
			l.rule(true, action, x.Outbound, x.Name, "never does anything at %s: %s", l.path(action), why)
		} else if by := review.Shadow(x); by != "" {
			idle[x] = true
			l.rule(true, action, x.Outbound, x.Name, "is never reached: rule %q in front of it ends the evaluation of every request", by)
		}
		for _, v := range review.Unallowed(x) {
			l.rule(true, action, x.Outbound, x.Name,
				"sets the server variable %s, which a standard server does not allow to be set: IIS answers 500.50 to every request that "+
					"the rule matches, so that agents refuse the document (allowedServerVariables in applicationHost.config)", v)
		}
	}
	return idle
}

func (l *linter) path(action int) string {
	return l.d.GetActions()[action].GetUrlRewrite().GetLocation().GetPath()
}

// harms names the rules that keep legitimate requests from Exchange, the document's own health probes included.
func (l *linter) harms(review *effect.Review, actions []int) {
	var own []effect.Sample
	for _, p := range l.d.GetProbes() {
		if h := p.GetHealth(); h != nil && h.GetExpectStatus() < 300 {
			if a, err := effect.NewAttack("the document's own health probe", h.GetRequest(), nil); err == nil {
				own = append(own, effect.Sample{Attack: a, Status: int(h.GetExpectStatus())})
			}
		}
	}
	for _, h := range review.Harms(own...) {
		named := strings.Join(h.Requests[:min(len(h.Requests), maxNamed)], "; ")
		if n := len(h.Requests) - maxNamed; n > 0 {
			named += fmt.Sprintf("; and %d more", n)
		}
		what := "stops legitimate requests"
		if h.Every {
			what = "stops every request at " + h.Path + ", legitimate ones too"
		}
		if h.Rule.Outbound {
			what = "breaks answers to legitimate requests"
		}
		if h.Unless != "" {
			what += ", unless " + h.Unless + " is as the rule wants it"
		}
		l.rule(h.Unless == "", actions[h.Rule.Action], h.Rule.Outbound, h.Rule.Name, "%s: %s: %s", what, named, h.What)
	}
}

// attacks judges the document's effect probes and the published attack requests for its CVEs.
func (l *linter) attacks(review *effect.Review, attacks []effect.Attack) {
	for _, p := range attacks {
		if p.CVE != "" {
			continue
		}
		if v := review.Attack(p); !v.OK && !v.Unjudged {
			n := l.node("probes", p.Probe, "effect")
			if len(p.WantHeader) > 0 {
				l.say(true, n, "the rules do not add the header that this probe wants: %s", l.why(v))
			} else {
				l.say(true, n, "the document does not stop the request of this probe: %s", l.why(v))
			}
		}
	}
	for i, cve := range l.d.GetCves() {
		var open []effect.Refusal
		all := effect.Published(cve)
		for _, a := range all {
			if v := review.Attack(a); !v.OK && !v.Unjudged {
				open = append(open, v)
			}
		}
		switch n := l.node("cves", i); {
		case len(open) == 0:
		case len(open) == len(all):
			why := l.why(open[0])
			if hint := review.Hint(open[0].Attack); hint != "" {
				why += ": " + hint
			}
			l.say(true, n, "the document stops none of the published attack requests for %s, for example %s: %s", cve, request(open[0].Attack), why)
		default:
			for _, v := range open {
				l.say(false, n, "the document does not stop a published attack request for %s: %s: %s", cve, request(v.Attack), l.why(v))
			}
		}
	}
}

func request(a effect.Attack) string { return strings.TrimPrefix(a.Name, a.CVE+" ") }

func (l *linter) why(v effect.Refusal) string {
	switch {
	case v.Elsewhere:
		var at []string
		for _, a := range l.d.GetActions() {
			if rw := a.GetUrlRewrite(); rw != nil {
				at = append(at, rw.GetLocation().GetPath())
			}
		}
		if len(at) == 0 {
			return "the application there runs in another pool"
		}
		return "the request goes to another application than the rules, which are at " + strings.Join(at, ", ")
	case v.OneReading:
		return v.Why + ` if IIS gives the pattern the URL relative to the application (Microsoft's reference leaves that open ` +
			`for inherited rules); write url=".*" and a condition on ` +
			"{UrlDecode:{REQUEST_URI}}"
	}
	return v.Why
}

// useless names the rules that refuse none of the requests that the document is for, where others do.
func (l *linter) useless(review *effect.Review, actions []int, attacks []effect.Attack, idle map[*effect.PlacedRule]bool) {
	var stopping, without []*effect.PlacedRule
	for _, x := range review.Rules() {
		kind := x.Element.Child("action").Attr("type")
		switch {
		case idle[x]:
		case x.Outbound:
			if !x.Ran() {
				l.rule(false, actions[x.Action], true, x.Name,
					"changes the answer to none of the sample requests; give it an effect probe with expectHeader")
			}
		case kind != "AbortRequest" && kind != "CustomResponse" && kind != "Redirect":
		case len(attacks) == 0:
		default:
			stops := false
			for _, a := range attacks {
				stops = stops || len(a.WantHeader) == 0 && review.Stops(x, a)
			}
			if stops {
				stopping = append(stopping, x)
			} else {
				without = append(without, x)
			}
		}
	}
	for _, x := range without {
		if len(stopping) > 0 {
			l.rule(false, actions[x.Action], false, x.Name,
				"refuses none of the document's attack requests and probes, other rules do; "+
					"remove it, or add an effect probe that shows what it is for")
		}
	}
	if len(attacks) == 0 && len(l.d.GetActions()) > 0 {
		l.inert(review, actions, idle)
	}
}

// inert says when no rule of a document refuses or changes anything.
func (l *linter) inert(review *effect.Review, actions []int, idle map[*effect.PlacedRule]bool) {
	for _, x := range review.Rules() {
		kind := x.Element.Child("action").Attr("type")
		if x.Outbound && kind == "Rewrite" || kind == "AbortRequest" || kind == "CustomResponse" || kind == "Redirect" || kind == "Rewrite" ||
			idle[x] {
			return
		}
	}
	for _, x := range review.Rules() {
		l.rule(true, actions[x.Action], x.Outbound, x.Name, "refuses no request and changes no answer, and no other rule of the document does")
		return
	}
}
