package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// site answers probes as the rules in wwwroot's web.config make it: a rule with "breaks" in its pattern breaks everything.
type site struct {
	driver host.Driver
	broken bool   // whatever the rules
	die    string // dies when this is asked with a rule that breaks in place
	asked  []string
}

type killed struct{}

func (s *site) Until(_ context.Context, p *stopgapv1.Probe, _ bool) probe.Result {
	data, _, err := s.driver.ConfigFile(`%SystemDrive%\inetpub\wwwroot`, "web.config")
	r := probe.Result{Name: probe.Name(p), Got: "500"}
	s.asked = append(s.asked, r.Name)
	bad := bytes.Contains(data, []byte("breaks"))
	if bad && s.die != "" && strings.HasPrefix(r.Name, s.die) {
		panic(killed{})
	}
	if r.OK = err == nil && !s.broken && (p.GetEffect() != nil || !bad); r.OK {
		r.Got = "200"
	}
	return r
}

func probedDoc(id, pattern, severity, onProbeFailure string) []byte {
	return []byte(fmt.Sprintf(`id: %s
revision: 1
title: "t"
severity: %s
appliesTo: {roles: [ROLE_MAILBOX]}
actions:
  - id: rule
    urlRewrite:
      location: {site: EXCHANGE_FRONT_END, path: "/"}
      inbound: |
        <rule name="Stopgap %s.1 - inbound" stopProcessing="true"><match url="^(attack|%s)" /><action type="AbortRequest" /></rule>
probes:
  - effect: {request: "GET /attack", expectAborted: true}
  - health: {request: "GET /owa/healthcheck.htm", expectStatus: 200}
%s`, id, severity, id, pattern, onProbeFailure))
}

const (
	onRevert = "onProbeFailure: ON_PROBE_FAILURE_REVERT\n"
	onKeep   = "onProbeFailure: ON_PROBE_FAILURE_KEEP_AND_ALARM\n"
	wasOff   = stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED
)

func probedRig(t *testing.T, docs map[string][]byte) (*rig, *site) {
	t.Helper()
	g := newRig(t, e2elab.Spec{Template: e2elab.ExchangeSE, Host: "EX01"})
	s := &site{driver: g.driver}
	g.prober = s
	_ = g.journal.Close()
	g.open(nil, nil)
	for id, d := range docs {
		g.targets["mitigations/"+id+"/1.yaml"] = d
	}
	g.release(false)
	return g, s
}

func TestOfTwoThatComeTogetherOnlyTheOneThatBreaksIsTakenOffAndDoesNotComeBack(t *testing.T) {
	t.Parallel()
	g, s := probedRig(t, map[string][]byte{"A": probedDoc("A", "fine-a", "SEVERITY_HIGH", onRevert), "B": probedDoc("B", "breaks", "SEVERITY_HIGH", onRevert),
		"C": probedDoc("C", "fine-c", "SEVERITY_HIGH", onRevert)})
	for range 4 {
		g.pass()
	}
	g.expect("A", applied, "applied")
	g.expect("B", wasOff, codeProbeFailed)
	g.expect("C", applied, "applied")
	if p := g.outcome("A").GetProof(); p != stopgapv1.Proof_PROOF_EFFECT_PROVEN {
		t.Errorf("proof of A: %s", p)
	}
	ev := fmt.Sprint(g.outcome("B").GetEvidence())
	if !strings.Contains(ev, "before: 200; after: 500") {
		t.Errorf("evidence of B: %s", ev)
	}
	n := len(s.asked)
	g.pass()
	g.expect("B", wasOff, codeProbeFailed)
	if len(s.asked) != n {
		t.Errorf("a pass that changes nothing asked %v", s.asked[n:])
	}
}

func TestWhatADocumentKeepsStaysAndAlarms(t *testing.T) {
	t.Parallel()
	for name, doc := range map[string][]byte{"as it says": probedDoc("K", "breaks", "SEVERITY_HIGH", onKeep), "critical, in an emergency": probedDoc("K", "breaks", "SEVERITY_CRITICAL", "")} {
		g, _ := probedRig(t, map[string][]byte{"K": doc})
		g.emergency(t)
		g.pass()
		g.pass()
		g.expect("K", applied, codeProbeFailed)
		found := false
		for _, h := range g.r.Health() {
			found = found || h.GetCode() == codeProbeFailed
		}
		if !found {
			t.Errorf("%s: no warning in %v", name, g.r.Health())
		}
	}
	g, _ := probedRig(t, map[string][]byte{"K": probedDoc("K", "breaks", "SEVERITY_CRITICAL", "")})
	g.pass()
	g.expect("K", wasOff, codeProbeFailed)
}

// emergency marks everything released as released to everybody at once.
func (g *rig) emergency(t *testing.T) {
	t.Helper()
	a, err := g.journal.Assignment()
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range a.GetItems() {
		it.Emergency = true
	}
	if err := g.journal.PutAssignment(a); err != nil {
		t.Fatal(err)
	}
}

func TestAHealthProbeThatFailedBeforeCountsForNothing(t *testing.T) {
	t.Parallel()
	g, s := probedRig(t, map[string][]byte{"B": probedDoc("B", "breaks", "SEVERITY_HIGH", onRevert)})
	s.broken = true
	g.pass()
	g.expect("B", applied, "applied")
}

func TestAnAgentKilledWhileItProbesStillHealsItsServer(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"effect", "health"} {
		g, s := probedRig(t, map[string][]byte{"B": probedDoc("B", "breaks", "SEVERITY_HIGH", onRevert)})
		before := g.snapshot()
		s.die = at
		func() {
			defer func() {
				if r := recover(); r != (killed{}) {
					t.Fatalf("%s: it did not die: %v", at, r)
				}
			}()
			_ = g.r.Pass(t.Context())
		}()
		s.die = ""
		_ = g.journal.Close()
		g.open(nil, nil)
		g.pass()
		g.expect("B", wasOff, codeProbeFailed)
		g.same(before)
	}
}

func TestARepairIsNotUndoneByWhatFailsMeanwhile(t *testing.T) {
	t.Parallel()
	g, s := probedRig(t, map[string][]byte{"A": probedDoc("A", "fine-a", "SEVERITY_HIGH", onRevert)})
	orig, _, err := g.driver.ConfigFile(`%SystemDrive%\inetpub\wwwroot`, "web.config")
	if err != nil {
		t.Fatal(err)
	}
	g.pass()
	now, _, err := g.driver.ConfigFile(`%SystemDrive%\inetpub\wwwroot`, "web.config")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.driver.ReplaceConfig(t.Context(), `%SystemDrive%\inetpub\wwwroot`, "web.config", now, orig); err != nil {
		t.Fatal(err)
	}
	// The site works when it is asked before the repair, and not after.
	g.prober = &flips{s}
	_ = g.journal.Close()
	g.open(nil, nil)
	g.pass()
	g.expect("A", applied, codeProbeFailed)
}

// flips breaks after the first question.
type flips struct{ s *site }

func (f *flips) Until(ctx context.Context, p *stopgapv1.Probe, answered bool) probe.Result {
	r := f.s.Until(ctx, p, answered)
	f.s.broken = true
	return r
}
