package host

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// attacksOf returns the attack requests by which one action of a document is judged: those that its rules alone would stop,
// and, for the first url_rewrite action, those that no action of the document stops.
func attacksOf(doc *stopgapv1.Mitigation, spec *stopgapv1.Action) []effect.Attack {
	if doc == nil {
		return nil
	}
	stoppedBy := func(a effect.Attack, x *stopgapv1.UrlRewriteAction) bool {
		r, err := effect.ParseRules(x.GetInbound(), x.GetOutbound())
		return err == nil && r.Stops(a, x.GetLocation().GetPath())
	}
	pools := slices.ContainsFunc(doc.GetActions(), func(x *stopgapv1.Action) bool { return x.GetAppPool() != nil })
	var out []effect.Attack
	for _, a := range effect.Attacks(doc) {
		if pools && a.WantStatus == http.StatusServiceUnavailable {
			continue // that is the stopped pool's answer
		}
		mine, any, first := stoppedBy(a, spec.GetUrlRewrite()), false, ""
		for _, x := range doc.GetActions() {
			if rw := x.GetUrlRewrite(); rw != nil {
				if first == "" {
					first = x.GetId()
				}
				any = any || stoppedBy(a, rw)
			}
		}
		if mine || !any && spec.GetId() == first {
			out = append(out, a)
		}
	}
	return out
}

// coverage is where the rules of an action are in effect.
type coverage struct {
	// checks decide: the attack requests at each site, or, where the document has none, the applications.
	checks []effect.Check
	// reach are the applications below the action's location.
	reach []effect.Check
	// byReach: the document has no attack requests, so that reach decides.
	byReach bool
}

// judge looks where rules are in effect: those that match finds (ours, or somebody else's that do the same).
func (a *urlRewrite) judge(m *iisconfig.Model, match effect.Match) coverage {
	var c coverage
	for _, site := range a.sites() {
		for _, x := range a.attacks {
			c.checks = append(c.checks, effect.Judge(m, site, x, a.rules))
		}
		for _, app := range site.Apps {
			if iisconfig.IsBelow(app.Path, a.spec.GetLocation().GetPath()) && (app.IsFrontEnd() || app.Path == a.spec.GetLocation().GetPath()) {
				c.reach = append(c.reach, effect.Reach(m, app, a.rules, match))
			}
		}
	}
	if len(a.attacks) == 0 {
		c.checks, c.byReach = c.reach, true
	}
	return c
}

// ok counts the checks that hold.
func (c coverage) ok() (n int) {
	for _, x := range c.checks {
		if x.OK {
			n++
		}
	}
	return n
}

// gaps are the checks that do not hold and leave a way through.
func (c coverage) gaps() (out []effect.Check) {
	for _, x := range c.checks {
		if !x.OK && !x.Closed {
			out = append(out, x)
		}
	}
	return out
}

// full: in effect wherever it decides. A place at which IIS answers every request with an error is no way through.
func (c coverage) full() bool { return c.ok() > 0 && len(c.gaps()) == 0 }

// closed reports whether IIS answers every request with an error somewhere: it may be our own rules that it refuses there.
func (c coverage) closed() bool {
	isClosed := func(x effect.Check) bool { return x.Closed }
	return slices.ContainsFunc(c.checks, isClosed) || slices.ContainsFunc(c.reach, isClosed)
}

// betterThan reports whether more is covered here than there, by the checks that decide or else by the applications reached.
func (c coverage) betterThan(o coverage) bool {
	if c.ok() != o.ok() {
		return c.ok() > o.ok()
	}
	for i := range c.reach {
		if i < len(o.reach) && c.reach[i].OK && !o.reach[i].OK {
			return true
		}
	}
	return false
}

// elsewhere are the applications below the location at which the rules are not in effect, though no check fails for it.
func (c coverage) elsewhere() (out []effect.Check) {
	decided := map[string]bool{}
	for _, x := range c.checks {
		decided[x.What] = true
	}
	for _, x := range c.reach {
		if !x.OK && !decided[x.What] {
			out = append(out, x)
		}
	}
	return out
}

func texts(checks []effect.Check) []string {
	var out []string
	for _, x := range checks {
		out = append(out, x.What+": "+x.Why)
	}
	return out
}

// reasons joins why nothing is in effect, each reason once.
func reasons(checks []effect.Check) string {
	var out []string
	seen := map[string]bool{}
	for _, x := range checks {
		if x.OK || seen[x.Why] {
			continue
		}
		seen[x.Why] = true
		out = append(out, x.What+": "+x.Why)
	}
	const most = 4
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("and %d more", len(out)-most))
	}
	return strings.Join(out, "; ")
}

// evidence says what the verdict rests on.
func (c coverage) evidence(action string) []*stopgapv1.Evidence {
	what := "attack requests are stopped"
	if c.byReach {
		what = "applications have the rules in effect"
	}
	found := fmt.Sprintf("%d of %d %s by the configuration as IIS composes it", c.ok(), len(c.checks), what)
	for _, x := range c.checks {
		if x.OK && x.By != "" {
			found += ", for example by " + x.By
			break
		}
	}
	out := []*stopgapv1.Evidence{evidence(action, "effect", found, nil)}
	for _, x := range c.checks {
		if !x.OK {
			out = append(out, evidence(action, x.What, "not in effect: "+x.Why, nil))
		}
	}
	notes := map[string]bool{}
	for _, x := range append(c.elsewhere(), c.checks...) {
		if !x.OK && !x.Closed && x.Cause != effect.CauseNone && len(out) < maxPlaces && !listed(c.checks, x) {
			out = append(out, evidence(action, x.What, "not in effect there, and no attack request goes there: "+x.Why, nil))
		} else if x.Closed && !listed(c.checks, x) && len(out) < maxPlaces {
			out = append(out, evidence(action, x.What, x.Why, nil))
		}
		for _, n := range x.Notes {
			if !notes[n] && len(out) < maxPlaces {
				notes[n] = true
				out = append(out, evidence(action, "not known to this version, stepped over", n, nil))
			}
		}
	}
	return out
}

// maxPlaces bounds the evidence about places.
const maxPlaces = 24

func listed(checks []effect.Check, x effect.Check) bool {
	for _, c := range checks {
		if c.What == x.What {
			return true
		}
	}
	return false
}
