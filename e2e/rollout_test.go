package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/pages"
	"github.com/stopgap-em/stopgap/shared/policydir"
)

// quick is a canary for tests: the same waves, and shorter times.
func quick() *stopgapv1.Strategy {
	second := func(n float64) *durationpb.Duration { return durationpb.New(time.Duration(n * float64(time.Second))) }
	ready := durationpb.New(patience.For(25 * time.Second))
	return &stopgapv1.Strategy{Name: "quick", OnHalt: stopgapv1.OnHalt_ON_HALT_REVERT, Silence: durationpb.New(patience.For(3 * time.Second)),
		Waves: []*stopgapv1.Wave{{Count: 1, Prove: true, MinHealthyTime: second(0.3), HealthyDeadline: ready},
			{Percent: 50, Prove: true, MinHealthyTime: second(0.3), HealthyDeadline: ready},
			{MaxInFlight: 2, MinHealthyTime: second(0.1), HealthyDeadline: ready}}}
}

// document is a rewrite rule for OWA with an effect probe and a health probe. A rule that aborts everything breaks the health probe.
func document(id string, revision int, pattern, onProbeFailure string) policydir.File {
	return policydir.File{Name: fmt.Sprintf("%s-%d.yaml", id, revision), Content: []byte(fmt.Sprintf(`id: %[1]s
revision: %[2]d
title: "a rule for a test"
severity: SEVERITY_HIGH
appliesTo:
  roles: [ROLE_MAILBOX]
actions:
  - id: rule
    urlRewrite:
      location: {site: EXCHANGE_FRONT_END, path: "/"}
      inbound: |
        <rule name="Stopgap %[1]s.%[2]d test - inbound" stopProcessing="true">
          <match url=".*" />
          <conditions>
            <add input="{REQUEST_URI}" pattern="%[3]s" />
          </conditions>
          <action type="AbortRequest" />
        </rule>
probes:
  - effect: {request: "GET /owa/attack-%[1]s", expectAborted: true}
  - health: {request: "GET /owa/healthcheck.htm", expectStatus: 200}
onProbeFailure: %[4]s
sideEffects: ["Nothing that anybody knows of"]
`, id, revision, pattern, onProbeFailure))}
}

const (
	revertOn = "ON_PROBE_FAILURE_REVERT"
	goodRule = "attack-M9"
	badRule  = "^/owa" // the attack, and everything else of OWA
)

func (r *rig) strategy(s *stopgapv1.Strategy) {
	r.t.Helper()
	if _, err := r.fleet.CreateStrategy(r.t.Context(), &stopgapv1.CreateStrategyRequest{Strategy: s}); err != nil {
		r.t.Fatal(err)
	}
}

// publishBy publishes documents with a strategy, and gives the id of the newest rollout.
func (r *rig) publishBy(strategy string, files ...policydir.File) string {
	r.t.Helper()
	if _, err := r.fleet.SetDefaultStrategy(r.t.Context(), &stopgapv1.SetDefaultStrategyRequest{Name: strategy}); err != nil {
		r.t.Fatal(err)
	}
	r.publish(files...)
	l, err := r.fleet.ListRollouts(r.t.Context(), &stopgapv1.ListRolloutsRequest{})
	if err != nil || len(l.GetRollouts()) == 0 {
		r.t.Fatalf("no rollout: %v", err)
	}
	return l.GetRollouts()[0].GetId()
}

// phase waits until a rollout is in a phase, and gives its servers then.
func (r *rig) phase(id, want, reason string) []*stopgapv1.RolloutMember {
	r.t.Helper()
	var members []*stopgapv1.RolloutMember
	r.eventually(func() error {
		got, err := r.fleet.GetRollout(r.t.Context(), &stopgapv1.GetRolloutRequest{RolloutId: id})
		if err != nil {
			return err
		}
		all, err := r.fleet.ListRolloutMembers(r.t.Context(), &stopgapv1.ListRolloutMembersRequest{RolloutId: id, PageSize: pages.Size})
		if err != nil {
			return err
		}
		members = all.GetMembers()
		if x := got.GetRollout(); x.GetPhase().String() != "ROLLOUT_PHASE_"+want || !strings.Contains(x.GetReason(), reason) {
			return fmt.Errorf("%s is %s: %s, want %s %q; %v", id, x.GetPhase(), x.GetReason(), want, reason, members)
		}
		return nil
	})
	return members
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// screen runs a command of the operators' program that only reads. The program's own time limit may be too short on a loaded machine:
// then it is run again.
func (r *rig) screen(args ...string) (out string, err error) {
	r.t.Helper()
	r.eventually(func() error {
		out, err = procs.Output(r.t.Context(), program(r.t, "stopgap"), append([]string{"--controller", r.addr, "--credentials", r.op}, args...)...)
		if err != nil && strings.Contains(err.Error(), "can't be reached") {
			return err
		}
		return nil
	})
	return out, err
}

// served makes servers with a front end and an agent each.
func (r *rig) served(n int) []*node {
	r.t.Helper()
	var out []*node
	for i := range n {
		x := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: fmt.Sprintf("EX%02d", i+1), DAG: fmt.Sprintf("DAG%d", i%2+1)}, func(c *agent.Config) { c.ProbeWithin = patience.For(3 * time.Second) })
		x.web()
		x.start()
		r.connected(x)
		out = append(out, x)
	}
	return out
}

func (r *rig) has(nodes []*node, id string) int {
	r.t.Helper()
	n := 0
	for _, x := range nodes {
		a, err := r.get(x)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, rec := range a.GetOutcomes() {
			if o := rec.GetOutcome(); o.GetMitigation() == id && o.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED {
				n++
			}
		}
	}
	return n
}

func TestABadMitigationStopsAtTheFirstServerWhichHealsItself(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.served(5)
	r.strategy(quick())
	id := r.publishBy("quick", document("M9", 1, badRule, revertOn))
	got := r.phase(id, "REVERTED", "1 of 5 servers failed, tolerated: 0")
	tried := 0
	for _, m := range got {
		if m.GetState() != stopgapv1.MemberState_MEMBER_STATE_WAITING {
			tried++
			if m.GetState() != stopgapv1.MemberState_MEMBER_STATE_FAILED || !strings.Contains(m.GetReason(), "health GET /owa/healthcheck.htm") {
				t.Errorf("%s is %s: %s", m.GetAgentName(), m.GetState(), m.GetReason())
			}
		}
	}
	if tried != 1 {
		t.Errorf("%d servers were tried: %v", tried, got)
	}
	for _, n := range nodes {
		n.asBefore()
		n.people()
	}
	// The operator's screen tells the story, and the server's.
	out, err := r.screen("rollout", "show", id, "--watch")
	for _, want := range []string{"REVERTED", "x", "wave 1", "1 failed", "wave 3", "waiting", "known side effect"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("rollout show has no %q: %v\n%s", want, err, out)
		}
	}
	for _, m := range got {
		out, err := r.screen("agents", "show", m.GetAgentName())
		want := "is taken back by rollout " + id
		if m.GetState() == stopgapv1.MemberState_MEMBER_STATE_WAITING {
			want = "this server is in wave"
		}
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("agents show %s has no %q: %v\n%s", m.GetAgentName(), want, err, out)
		}
	}
	// A better revision goes through, wave by wave, and every canary proved its effect.
	id2 := r.publishBy("quick", document("M9", 2, goodRule, revertOn))
	r.phase(id2, "COMPLETED", "5 done")
	for _, n := range nodes {
		if rec := r.expect(n, "M9", applied, ""); rec.GetOutcome().GetRevision() != 2 || rec.GetOutcome().GetProof() != stopgapv1.Proof_PROOF_EFFECT_PROVEN {
			t.Errorf("%s: %v", n.name, rec.GetOutcome())
		}
	}
	r.phase(id, "REVERTED", "")
}

func TestALoadedServerKeepsItsProtectionAndAlarms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.served(1)[0]
	r.publish(document("M9", 1, badRule, "ON_PROBE_FAILURE_KEEP_AND_ALARM"))
	rec := r.expect(n, "M9", applied, "probe-failed")
	if !strings.Contains(rec.GetOutcome().GetReason(), "it stays") || len(rec.GetOutcome().GetEvidence()) < 3 {
		t.Errorf("%v", rec.GetOutcome())
	}
	r.warned(n, "probe-failed")
}

func TestARolloutGoesOnWhereItWasWhenTheControllerComesBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.served(4)
	r.strategy(&stopgapv1.Strategy{Name: "asked", OnHalt: stopgapv1.OnHalt_ON_HALT_HOLD, Waves: []*stopgapv1.Wave{
		{Count: 1, MinHealthyTime: durationpb.New(100 * time.Millisecond)}, {Count: 1, Approval: true}, {Approval: true}}})
	id := r.publishBy("asked", document("M9", 1, goodRule, revertOn))
	r.phase(id, "WAITING_APPROVAL", "wave 2 waits for approval")
	restart := func() {
		r.stop()
		r.start()
		for _, n := range nodes {
			r.connected(n)
		}
	}
	restart()
	r.phase(id, "WAITING_APPROVAL", "")
	if n := r.has(nodes, "M9"); n != 1 {
		t.Fatalf("%d have it", n)
	}
	_, err := r.fleet.ApproveRollout(t.Context(), &stopgapv1.ApproveRolloutRequest{RolloutId: id})
	r.must(err)
	r.phase(id, "WAITING_APPROVAL", "wave 3 waits for approval")
	_, err = r.fleet.PauseRollout(t.Context(), &stopgapv1.PauseRolloutRequest{RolloutId: id, Reason: "lunch"})
	r.must(err)
	restart()
	r.phase(id, "PAUSED", "lunch")
	if n := r.has(nodes, "M9"); n != 2 {
		t.Fatalf("%d have it", n)
	}
	_, err = r.fleet.HaltRollout(t.Context(), &stopgapv1.HaltRolloutRequest{RolloutId: id, Reason: "enough"})
	r.must(err)
	restart()
	r.phase(id, "HALTED", "enough")
	_, err = r.fleet.FinishRollout(t.Context(), &stopgapv1.FinishRolloutRequest{RolloutId: id, Reason: "the exploit is in the wild"})
	r.must(err)
	r.phase(id, "COMPLETED", "4 done")
	restart()
	r.phase(id, "COMPLETED", "")
	// Back from everybody, which signed policy permits while it is young.
	_, err = r.fleet.RevertRollout(t.Context(), &stopgapv1.RevertRolloutRequest{RolloutId: id, Reason: "printing is broken"})
	r.must(err)
	r.phase(id, "REVERTED", "printing is broken")
	for _, n := range nodes {
		r.expect(n, "M9", "REVERTED", "controller-revert")
		n.asBefore()
	}
	late := r.served(5)[4]
	r.expect(late, "M9", "PENDING", "not-released")
}

func TestSwitchesStopWhatIsNewAndRemoveNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.served(2)
	r.publish(document("M9", 1, goodRule, revertOn))
	for _, n := range nodes {
		r.expect(n, "M9", applied, "")
	}
	everywhere := &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_FLEET}
	first := &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_AGENT, Agent: nodes[0].name}
	_, err := r.fleet.PauseFleet(t.Context(), &stopgapv1.PauseFleetRequest{Scope: first, Reason: "migration"})
	r.must(err)
	_, err = r.fleet.WithholdMitigation(t.Context(), &stopgapv1.WithholdMitigationRequest{MitigationId: "M8", Scope: everywhere, Reason: "breaks the add-in"})
	r.must(err)
	r.publish(document("M7", 1, "attack-M7", revertOn), document("M8", 1, "attack-M8", revertOn))
	r.expect(nodes[1], "M7", applied, "")
	r.expect(nodes[0], "M7", "PENDING", "not-released")
	for _, n := range nodes {
		r.expect(n, "M8", "PENDING", "not-released")
		r.expect(n, "M9", applied, "")
	}
	a, err := r.get(nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	steps := ""
	for _, x := range a.GetExplanations() {
		if x.GetMitigationId() == "M7" {
			steps = strings.Join(x.GetSteps(), "\n")
		}
	}
	if !strings.Contains(steps, "switched off for agent") || !strings.Contains(steps, "migration") || !strings.Contains(steps, "PENDING") {
		t.Errorf("why: %s", steps)
	}
	_, err = r.fleet.ResumeFleet(t.Context(), &stopgapv1.ResumeFleetRequest{Scope: first})
	r.must(err)
	_, err = r.fleet.AllowMitigation(t.Context(), &stopgapv1.AllowMitigationRequest{MitigationId: "M8", Scope: everywhere})
	r.must(err)
	for _, n := range nodes {
		r.expect(n, "M7", applied, "")
		r.expect(n, "M8", applied, "")
	}
}

func TestTwoHundredServersGoWaveByWave(t *testing.T) {
	t.Parallel()
	const servers = 200
	r := newRig(t)
	token := r.token(servers, map[string]string{"site": "lab"})
	base := shortDir(t)
	for i := range servers {
		name := fmt.Sprintf("S%03d", i)
		dir, state := filepath.Join(base, name), filepath.Join(base, name+"a")
		if err := lab.Make(dir, lab.Spec{Template: lab.ExchangeSE, Host: name, Organisation: "Contoso", DAG: fmt.Sprintf("DAG%d", i/8)}); err != nil {
			t.Fatal(err)
		}
		r.eventually(func() error { // beside the agents that run already, a handshake may take too long on a loaded machine
			_, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: state, Controller: r.addr, Token: token, Host: "lab:" + dir})
			return err
		})
		a, err := agent.New(agent.Config{StateDir: state, Host: "lab:" + dir, Controller: r.addr, RetryMin: 100 * time.Millisecond, RetryMax: time.Second, Logger: r.logger(name)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(run(t, a.Run))
	}
	// Only who is there when a wave begins is waited for.
	r.eventually(func() error {
		connected := &stopgapv1.AgentFilter{Presences: []stopgapv1.Presence{stopgapv1.Presence_PRESENCE_CONNECTED}}
		l, err := r.fleet.ListAgents(t.Context(), &stopgapv1.ListAgentsRequest{Filter: connected, PageSize: 1})
		if err == nil && l.GetTotalSize() != servers {
			err = fmt.Errorf("%d are connected", l.GetTotalSize())
		}
		return err
	})
	short := durationpb.New(100 * time.Millisecond)
	r.strategy(&stopgapv1.Strategy{Name: "big", OnHalt: stopgapv1.OnHalt_ON_HALT_HOLD, Waves: []*stopgapv1.Wave{{Count: 1},
		{Percent: 10, MinHealthyTime: short}, {MaxInFlight: 50, MinHealthyTime: short}}})
	id := r.publishBy("big", catalogue(t, "PING1")...)
	// On a loaded machine a stream may have been cut meanwhile: that server gets it when it is back.
	r.phase(id, "COMPLETED", ", 0 failed,")
	r.eventually(func() error {
		done := &stopgapv1.OutcomeFilter{MitigationIds: []string{"PING1"}, States: []stopgapv1.OutcomeState{stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED}}
		n := 0
		err := pages.Each(func(token string) (string, error) {
			l, err := r.fleet.ListOutcomes(t.Context(), &stopgapv1.ListOutcomesRequest{Filter: done, PageSize: 30, PageToken: token})
			n += len(l.GetOutcomes())
			return l.GetNextPageToken(), err
		})
		if err == nil && n != servers {
			err = fmt.Errorf("on %d servers", n)
		}
		return err
	})
}
