package rollout

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// What the engine is shown: every server a rollout is for, and what it said last.

// reports gives the current outcomes of the mitigations of a rollout, by agent and mitigation.
func (r *Rollout) reports(ctx context.Context, items []engine.Item) (map[string]map[string]*stopgapv1.OutcomeRecord, error) {
	out := map[string]map[string]*stopgapv1.OutcomeRecord{}
	for _, it := range items {
		recs, _, err := r.cfg.Outcomes.Current(ctx, it.Mitigation)
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			if out[rec.GetAgentId()] == nil {
				out[rec.GetAgentId()] = map[string]*stopgapv1.OutcomeRecord{}
			}
			out[rec.GetAgentId()][it.Mitigation] = rec
		}
	}
	return out, nil
}

// see is every server that one of the items is for.
func (r *Rollout) see(items []engine.Item, reports map[string]map[string]*stopgapv1.OutcomeRecord) []engine.Seen {
	cur := r.cfg.Policy()
	var docs []*mitigation.Document
	for _, it := range items {
		if d := cur.Documents[tufpolicy.DocumentPath(it.Mitigation, it.Revision)]; d != nil {
			docs = append(docs, d)
		}
	}
	var out []engine.Seen
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, srv := range r.cfg.Agents.Servers() {
		x := engine.Seen{ID: srv.ID, Name: srv.Name, Connected: srv.Connected, Attrs: attributes(srv)}
		var of []engine.Report
		for _, d := range docs {
			if !mitigation.Applies(d.Mitigation, srv.Facts) {
				continue
			}
			one := report(d, reports[srv.ID][d.GetId()])
			if why := r.held(d, srv); why != "" && !one.Has { // it is given nothing of this one
				x.Held = why
				continue
			}
			of = append(of, one)
		}
		if len(of) > 0 {
			x.Held, x.Report = "", together(of)
		}
		if len(of) > 0 || x.Held != "" {
			out = append(out, x)
		}
	}
	return out
}

// held says why a server is given nothing new of a revision, by a switch or an operator's hold; "" when it is. The caller holds the lock.
func (r *Rollout) held(d *mitigation.Document, srv Server) string {
	if sw := r.switchedOff(d.GetId(), srv); sw != nil {
		return fmt.Sprintf("switched off for %s by %s: %s", sw.Scope, sw.By, sw.Reason)
	}
	if dec := r.releases[d.Ref()]; dec.Release == stopgapv1.Release_RELEASE_HELD || dec.Release == stopgapv1.Release_RELEASE_REVERTED {
		return fmt.Sprintf("%s by %s", strings.ToLower(strings.TrimPrefix(dec.Release.String(), "RELEASE_")), dec.By)
	}
	return ""
}

// attributes are what selectors look at: labels, and facts over them.
func attributes(srv Server) map[string]string {
	out := maps.Clone(srv.Labels)
	if out == nil {
		out = map[string]string{}
	}
	roles := make([]string, 0, 2)
	for _, x := range srv.Facts.GetRoles() {
		roles = append(roles, strings.ToLower(strings.TrimPrefix(x.String(), "ROLE_")))
	}
	for k, v := range map[string]string{"name": srv.Name, "build": srv.Facts.GetExchangeBuild(), "dag": srv.Facts.GetDag(), "organisation": srv.Facts.GetOrganisation(),
		"role": strings.Join(roles, ",")} {
		if v != "" {
			out[k] = v
		}
	}
	return out
}

// codeProbeFailed is the agent's word for a probe that passed before and failed after.
const codeProbeFailed = "probe-failed"

// report says what an outcome means for a release.
func report(d *mitigation.Document, rec *stopgapv1.OutcomeRecord) engine.Report {
	o := rec.GetOutcome()
	if o == nil || o.GetRevision() != d.GetRevision() {
		return engine.Report{}
	}
	m := outcome.Of(o.GetState())
	out := engine.Report{State: m.Rollout, Has: m.MayBeInForce, Reason: o.GetReason(), At: rec.GetRecordedAt().AsTime()}
	reverted := o.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED
	switch {
	case (m.Applied || reverted) && o.GetCode() == codeProbeFailed: // kept in spite of it, or reverted because of it
		out.State = engine.HasFailed
	case reverted && o.GetCode() == "fixed":
		out.State = engine.NotForIt
	}
	out.Proven = m.Protected && (o.GetProof() == stopgapv1.Proof_PROOF_EFFECT_PROVEN || !hasEffect(d))
	return out
}

func hasEffect(d *mitigation.Document) bool {
	for _, p := range d.GetProbes() {
		if p.GetEffect() != nil {
			return true
		}
	}
	return false
}

// together is what a server says of all items: the worst of it.
func together(of []engine.Report) engine.Report {
	out := engine.Report{Proven: true, State: engine.NotForIt}
	count := map[engine.ReportState]int{}
	for _, x := range of {
		count[x.State]++
		out.Has = out.Has || x.Has
		if x.At.After(out.At) {
			out.At = x.At
		}
		out.Proven = out.Proven && (x.Proven || x.State != engine.OnTarget)
	}
	for _, worst := range []engine.ReportState{engine.HasFailed, engine.None, engine.HasPartly, engine.OnTarget, engine.HasRefused} {
		if count[worst] > 0 {
			out.State = worst
			break
		}
	}
	for _, x := range of { // the reason is that of the last failed (or PARTIAL) item, else of the first that has one
		decides := x.State == out.State && (x.State == engine.HasFailed || x.State == engine.HasPartly)
		if decides || out.Reason == "" {
			out.Reason = x.Reason
		}
	}
	return out
}
