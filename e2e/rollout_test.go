package e2e

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/policydir"
)

// quick is a canary for tests: the same waves, and shorter times.
func quick() string {
	return fmt.Sprintf(`{"name":"quick","onHalt":"revert","maxFailures":{},"silence":"%[1]s","waves":[
  {"count":1,"prove":true,"minHealthyTime":"300ms","healthyDeadline":"%[2]s"},
  {"percent":50,"prove":true,"minHealthyTime":"300ms","healthyDeadline":"%[2]s"},
  {"maxInFlight":2,"minHealthyTime":"100ms","healthyDeadline":"%[2]s"}]}`, patience.For(3*time.Second), patience.For(25*time.Second))
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

func (r *rig) strategy(json string) {
	r.t.Helper()
	if _, err := r.fleet.SetStrategy(r.t.Context(), &stopgapv1.SetStrategyRequest{StrategyJson: json}); err != nil {
		r.t.Fatal(err)
	}
}

// publishBy publishes documents with a strategy, and gives the id of the newest rollout.
func (r *rig) publishBy(strategy string, files ...policydir.File) string {
	r.t.Helper()
	if _, err := r.fleet.SetStrategy(r.t.Context(), &stopgapv1.SetStrategyRequest{MakeDefault: strategy}); err != nil {
		r.t.Fatal(err)
	}
	r.publish(files...)
	l, err := r.fleet.ListRollouts(r.t.Context(), &stopgapv1.ListRolloutsRequest{})
	if err != nil || len(l.GetRollouts()) == 0 {
		r.t.Fatalf("no rollout: %v", err)
	}
	return l.GetRollouts()[0].GetId()
}

func (r *rig) phase(id, want, reason string) *stopgapv1.GetRolloutResponse {
	r.t.Helper()
	var got *stopgapv1.GetRolloutResponse
	r.eventually(func() error {
		var err error
		if got, err = r.fleet.GetRollout(r.t.Context(), &stopgapv1.GetRolloutRequest{Id: id}); err != nil {
			return err
		}
		if x := got.GetRollout(); x.GetPhase() != want || !strings.Contains(x.GetReason(), reason) {
			return fmt.Errorf("%s is %s: %s, want %s %q; %v", id, x.GetPhase(), x.GetReason(), want, reason, got.GetMembers())
		}
		return nil
	})
	return got
}

func (r *rig) act(id, verb, reason string) {
	r.t.Helper()
	if _, err := r.fleet.ActOnRollout(r.t.Context(), &stopgapv1.ActOnRolloutRequest{Id: id, Verb: verb, Reason: reason}); err != nil {
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
	for _, m := range got.GetMembers() {
		if m.GetState() != "waiting" {
			tried++
			if m.GetState() != "failed" || !strings.Contains(m.GetReason(), "health GET /owa/healthcheck.htm") {
				t.Errorf("%s is %s: %s", m.GetName(), m.GetState(), m.GetReason())
			}
		}
	}
	if tried != 1 {
		t.Errorf("%d servers were tried: %v", tried, got.GetMembers())
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
	for _, m := range got.GetMembers() {
		out, err := r.screen("agents", "show", m.GetName())
		want := "is taken back by rollout " + id
		if m.GetState() == "waiting" {
			want = "this server is in wave"
		}
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("agents show %s has no %q: %v\n%s", m.GetName(), want, err, out)
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
	r.strategy(`{"name":"asked","onHalt":"hold","maxFailures":{},"waves":[{"count":1,"minHealthyTime":"100ms"},{"count":1,"approval":true},{"approval":true}]}`)
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
	r.act(id, "approve", "")
	r.phase(id, "WAITING_APPROVAL", "wave 3 waits for approval")
	r.act(id, "pause", "lunch")
	restart()
	r.phase(id, "PAUSED", "lunch")
	if n := r.has(nodes, "M9"); n != 2 {
		t.Fatalf("%d have it", n)
	}
	r.act(id, "halt", "enough")
	restart()
	r.phase(id, "HALTED", "enough")
	r.act(id, "finish-now", "the exploit is in the wild")
	r.phase(id, "COMPLETED", "4 done")
	restart()
	r.phase(id, "COMPLETED", "")
	// Back from everybody, which signed policy permits while it is young.
	r.act(id, "revert", "printing is broken")
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
	set := func(req *stopgapv1.SetSwitchRequest) {
		t.Helper()
		if _, err := r.fleet.SetSwitch(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	set(&stopgapv1.SetSwitchRequest{Off: true, Agent: nodes[0].name, Reason: "migration"})
	set(&stopgapv1.SetSwitchRequest{Off: true, Mitigation: "M8", Reason: "breaks the add-in"})
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
		if x.GetMitigation() == "M7" {
			steps = strings.Join(x.GetSteps(), "\n")
		}
	}
	if !strings.Contains(steps, "switched off for agent") || !strings.Contains(steps, "migration") || !strings.Contains(steps, "PENDING") {
		t.Errorf("why: %s", steps)
	}
	set(&stopgapv1.SetSwitchRequest{Agent: nodes[0].name})
	set(&stopgapv1.SetSwitchRequest{Mitigation: "M8"})
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
		st, err := r.fleet.ListAgents(t.Context(), &stopgapv1.ListAgentsRequest{})
		if err != nil {
			return err
		}
		there := 0
		for {
			m, err := st.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if m.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
				there++
			}
		}
		if there != servers {
			return fmt.Errorf("%d are connected", there)
		}
		return nil
	})
	r.strategy(`{"name":"big","onHalt":"hold","maxFailures":{},"waves":[{"count":1},{"percent":10,"minHealthyTime":"100ms"},{"maxInFlight":50,"minHealthyTime":"100ms"}]}`)
	id := r.publishBy("big", catalogue(t, "PING1")...)
	// On a loaded machine a stream may have been cut meanwhile: that server gets it when it is back.
	r.phase(id, "COMPLETED", ", 0 failed,")
	r.eventually(func() error {
		st, err := r.fleet.ListOutcomes(t.Context(), &stopgapv1.ListOutcomesRequest{Mitigation: "PING1", States: []stopgapv1.OutcomeState{stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED}})
		if err != nil {
			return err
		}
		n := 0
		for {
			if _, err = st.Recv(); err != nil {
				break
			}
			n++
		}
		if n != servers || !errors.Is(err, io.EOF) {
			return fmt.Errorf("on %d servers: %w", n, err)
		}
		return nil
	})
}
