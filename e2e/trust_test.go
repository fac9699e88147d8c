package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/e2e/thief"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/pages"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// replaceOnlineKeys is the drill of docs/keys.md after the online keys were stolen: new keys, a root that names them, both put
// in place with the controller stopped.
func (r *rig) replaceOnlineKeys() {
	r.t.Helper()
	fresh := filepath.Join(r.t.TempDir(), "online")
	if err := controller.NewOnlineKeys(fresh); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if r.online, err = soc.LoadOnline(fresh); err != nil {
		r.t.Fatal(err)
	}
	if err := r.soc.Rotate(policydir.RotateConfig{Snapshot: &r.online.Snapshot.Public, Timestamp: &r.online.Timestamp.Public}); err != nil {
		r.t.Fatal(err)
	}
	r.stop()
	online := filepath.Join(r.data, "online")
	if err := os.RemoveAll(online); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(fresh, online); err != nil {
		r.t.Fatal(err)
	}
	r.start()
	r.publish()
}

func TestDrillOnlineKeysWereStolenAndCountedFarAhead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	r.connected(n)
	d, err := r.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	s := r.steal()
	s.version = 1 << 40
	if ack := s.try(s.update(d.Signed().Targets, 2, nil)).GetPolicyAck(); ack.GetVersion() != uint64(s.version) {
		t.Fatalf("the signed policy with a high timestamp was not taken: %v", ack)
	}
	s.Stop()
	stolenKeys := r.online
	r.start()
	r.connected(n)
	// Honest timestamps are below the thief's now: only a new root makes an end of that.
	r.replaceOnlineKeys()
	r.publish(catalogue(t, "M2")...)
	r.expect(n, "M2", applied, "")
	r.expect(n, "M1", applied, "")
	unchangedBut(t, file, content)
	// The stolen keys are worth nothing any more.
	s = r.steal()
	r.online = stolenKeys
	s.version = 1 << 41
	if nack := s.try(s.update(d.Signed().Targets, 2, nil)).GetPolicyNack(); !strings.Contains(nack.GetError(), "timestamp refused") {
		t.Errorf("with the old online keys: %v", nack)
	}
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost")
	}
}

// unchangedBut checks that what M1 put into the file still stands there.
func unchangedBut(t *testing.T, file string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(got), "Stopgap M1.1") || !strings.Contains(string(want), "Stopgap M1.1") {
		t.Errorf("M1 is gone from %s (%v)", file, err)
	}
}

func TestDrillAnAgentWasAwayForAYear(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, _, _ := protected(t, r)
	n.stop()
	// Meanwhile: twelve roots, other targets keys, and a certificate that ended beyond its grace, which its key's refusal stands for.
	gone, added := r.soc.Targets[0], r.soc.Targets[2]
	if err := r.soc.Rotate(policydir.RotateConfig{Remove: map[string][]string{signkey.RoleTargets: {gone.ID}}}, added); err != nil {
		t.Fatal(err)
	}
	if err := r.soc.Sign(r.soc.Targets[1]); err != nil {
		t.Fatal(err)
	}
	r.soc.Targets = []*signkey.Key{r.soc.Targets[1], added}
	for range 11 {
		if err := r.soc.Rotate(policydir.RotateConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	r.publish(catalogue(t, "M2")...)
	again, err := r.fleet.ReenrollAgent(t.Context(), &stopgapv1.ReenrollAgentRequest{Agent: n.id, Ttl: durationpb.New(10 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	n.start()
	n.says("enrol again")
	n.stop()
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost while away")
	}
	id, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: n.state, Controller: r.addr, Token: again.GetTokenSecret(), Host: "lab:" + n.dir, Again: true})
	if err != nil || id != n.id {
		t.Fatalf("enrolled as %s (%v), want %s", id, err, n.id)
	}
	n.start()
	r.connected(n)
	r.expect(n, "M2", applied, "") // by root 13, followed from root 1
	r.expect(n, "M1", applied, "")
	r.withdraw("M1", "M2")
	r.expect(n, "M1", reverted, "withdrawn")
	r.expect(n, "M2", reverted, "withdrawn")
	n.asBefore() // the journal was kept: the originals came back
}

func TestAnAgentThatLostItsJournalKeepsRootAndFloor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	older, err := r.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	old := older.Signed()
	r.publish(catalogue(t, "PING1")...)
	r.expect(n, "PING1", applied, "")
	n.stop()
	for _, f := range []string{"journal.db"} {
		if err := os.Remove(filepath.Join(n.state, f)); err != nil {
			t.Fatal(err)
		}
	}
	s := r.steal()
	n.start()
	s.connected()
	if nack := s.try(s.update(old.Targets, 2, old.Documents)).GetPolicyNack(); !strings.Contains(nack.GetError(), "is below") {
		t.Errorf("yesterday's policy to an agent without its journal: %v", nack)
	}
	unchanged(t, file, content) // and without a policy nothing is removed
	s.Stop()
	r.start()
	r.expect(n, "M1", applied, "")
	r.warned(n, "trust-restored")
}

func TestAnExpiredPolicyAppliesNothingNewAndTakesNothingOff(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	if err := r.soc.Add(catalogue(t, "M1", "M2")...); err != nil {
		t.Fatal(err)
	}
	if _, err := r.soc.Publish(t.Context(), r.fleet); err != nil {
		t.Fatal(err)
	}
	r.expect(n, "M1", applied, "")
	r.expect(n, "M2", applied, "")
	r.withdraw("M2")
	r.expect(n, "M2", reverted, "withdrawn")
	// M2 comes back, held by the controller, in a policy that ends soon.
	if _, err := r.fleet.HoldMitigation(t.Context(), &stopgapv1.HoldMitigationRequest{Mitigation: ref("M1")}); err != nil {
		t.Fatal(err)
	}
	if err := r.soc.Add(catalogue(t, "M2")...); err != nil {
		t.Fatal(err)
	}
	r.publishHeld("M2")
	if err := r.soc.Refresh(patience.For(4 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r.publish()
	r.warned(n, "policy-expired")
	if _, err := r.fleet.ReleaseMitigation(t.Context(), &stopgapv1.ReleaseMitigationRequest{Mitigation: ref("M2")}); err != nil {
		t.Fatal(err)
	}
	r.expect(n, "M2", "PENDING", "policy-expired")
	// What is applied is still repaired.
	file := filepath.Join(n.dir, "C", "inetpub", "wwwroot", "web.config")
	if err := os.WriteFile(file, n.beforeFiles[file], 0o600); err != nil {
		t.Fatal(err)
	}
	r.expect(n, "M1", applied, "drift-repaired")
	// A fresh policy, and it goes on.
	if err := r.soc.Refresh(time.Hour); err != nil {
		t.Fatal(err)
	}
	r.publish()
	r.expect(n, "M2", applied, "")
}

// publishHeld publishes with a revision held back from the first moment: it must be in policy to be held.
func (r *rig) publishHeld(id string) {
	r.t.Helper()
	r.publish()
	if _, err := r.fleet.RevertMitigation(r.t.Context(), &stopgapv1.RevertMitigationRequest{Mitigation: ref(id), Reason: "not yet"}); err != nil {
		r.t.Fatal(err)
	}
	r.eventually(func() error {
		for _, a := range r.agents() {
			resp, err := r.fleet.GetAgent(r.t.Context(), &stopgapv1.GetAgentRequest{Agent: a})
			if err != nil {
				return err
			}
			for _, rec := range resp.GetOutcomes() {
				if o := rec.GetOutcome(); o.GetMitigation() == id && o.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED {
					return fmt.Errorf("%s is still applied", id)
				}
			}
		}
		return nil
	})
}

func (r *rig) agents() (ids []string) {
	r.t.Helper()
	l, err := r.fleet.ListAgents(r.t.Context(), &stopgapv1.ListAgentsRequest{PageSize: pages.Size})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range l.GetAgents() {
		ids = append(ids, a.GetId())
	}
	return ids
}

// ref is the first revision of a mitigation.
func ref(id string) *stopgapv1.MitigationRef {
	return &stopgapv1.MitigationRef{MitigationId: id, Revision: 1}
}

func TestTheControllerTakesOffOnlyWhatSignedPolicyLetsIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.publish(catalogue(t, "M1")...)
	r.expect(n, "M1", applied, "")
	revert := &stopgapv1.RevertMitigationRequest{Mitigation: ref("M1"), Reason: "calendar printing"}
	if _, err := r.fleet.RevertMitigation(t.Context(), &stopgapv1.RevertMitigationRequest{Mitigation: ref("M1")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a reason: %v", err)
	}
	// During the rollout, which the agent's own record says it is, it may.
	if _, err := r.fleet.RevertMitigation(t.Context(), revert); err != nil {
		t.Fatal(err)
	}
	if rec := r.expect(n, "M1", reverted, "controller-revert"); !strings.Contains(rec.GetOutcome().GetReason(), "calendar printing") {
		t.Errorf("the reason is not told: %v", rec)
	}
	n.asBefore()
	if _, err := r.fleet.ReleaseMitigation(t.Context(), &stopgapv1.ReleaseMitigationRequest{Mitigation: ref("M1")}); err != nil {
		t.Fatal(err)
	}
	r.expect(n, "M1", applied, "")
	// Signed policy says never: it may not.
	if err := r.soc.Permit("never"); err != nil {
		t.Fatal(err)
	}
	r.publish()
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && a.GetAgent().GetPolicyVersion() != 3 {
			err = fmt.Errorf("at policy %d", a.GetAgent().GetPolicyVersion())
		}
		return err
	})
	if _, err := r.fleet.RevertMitigation(t.Context(), revert); err != nil {
		t.Fatal(err)
	}
	r.expect(n, "M1", applied, "revert-refused")
	if n.exploited("CVE-2022-41040") {
		t.Error("the controller took it off all the same")
	}
	r.audited("set-release", "M1@1", "REVERTED", "calendar printing")
	// The keys can.
	r.withdraw("M1")
	r.expect(n, "M1", reverted, "withdrawn")
	n.asBefore()
}

func TestARevokedAgentsStreamIsClosedAtOnceAndTheNextIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	r.connected(n)
	resp, err := r.fleet.RevokeAgent(t.Context(), &stopgapv1.RevokeAgentRequest{Agent: "EX01", Reason: "stolen laptop"})
	if err != nil || !resp.GetWasConnected() {
		t.Fatalf("%v %v", resp, err)
	}
	n.says("revoked")
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && (a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED || !strings.Contains(a.GetAgent().GetRevocation().GetReason(), "stolen laptop")) {
			err = fmt.Errorf("%v", a.GetAgent())
		}
		return err
	})
	client, creds := attackerFor(t, r, n)
	if _, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: hello(creds.Identity.ID).GetHello()}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a pull: %v", err)
	}
	r.stop()
	r.start() // a restart forgets nothing
	if _, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: hello(creds.Identity.ID).GetHello()}, grpc.WaitForReady(true)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a pull after a restart: %v", err)
	}
	r.audited("agent-revoke", n.id, "stolen laptop")
	unchanged(t, file, content)
}

func TestAStreamThatWaitedForItsAgentsRevocationIsNotLetIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	client, creds := attackerFor(t, r, n)
	st, err := client.Connect(t.Context()) // open, and silent
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: hello(creds.Identity.ID).GetHello()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.fleet.RevokeAgent(t.Context(), &stopgapv1.RevokeAgentRequest{Agent: n.id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	if err := st.Send(hello(creds.Identity.ID)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		var f *stopgapv1.ConnectResponse
		if f, err = st.Recv(); err == nil && (len(f.GetPolicyUpdate()) > 0 || len(f.GetAssignment()) > 0) {
			t.Error("a revoked agent was sent policy")
		}
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
			err = errors.New("a revoked agent counts as connected")
		}
		return err
	})
	r.audited("denied", n.id)
}

func TestLabelsComeWithTheTokenAndAreSeenByTheOperators(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	if err := os.RemoveAll(n.state); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.id, err = agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: n.state, Controller: r.addr, Token: r.token(1, map[string]string{"site": "berlin"}), Host: "lab:" + n.dir}); err != nil {
		t.Fatal(err)
	}
	n.start()
	r.connected(n)
	a, err := r.get(n)
	if err != nil || a.GetAgent().GetLabels()["site"] != "berlin" || a.GetAgent().GetCertificateExpiresAt() == nil {
		t.Errorf("%v %v", a, err)
	}
	if _, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: n.state, Controller: r.addr, Token: r.token(1, nil)}); err == nil || !strings.Contains(err.Error(), "--again") {
		t.Errorf("over an identity that is there: %v", err)
	}
}

// certificate is the end of the certificate that an agent has on its disk.
func (n *node) certificate() time.Time {
	n.r.t.Helper()
	c, err := trust.LoadCredentials(filepath.Join(n.state, "credentials"))
	if err != nil {
		n.r.t.Fatal(err)
	}
	return c.Cert.Leaf.NotAfter
}

// shortLived is a rig whose agents' certificates are good for so long.
func shortLived(t *testing.T, life time.Duration) *rig {
	t.Helper()
	r := newRig(t)
	r.stop()
	r.life = life
	r.start()
	return r
}

func TestCertificatesAreRenewedAtHalfOfTheirLifeOverTheStream(t *testing.T) {
	t.Parallel()
	r := shortLived(t, patience.For(6*time.Second))
	n := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	r.connected(n)
	first := n.certificate()
	r.eventually(func() error {
		if now := n.certificate(); !now.After(first) {
			return errors.New("not renewed")
		}
		return nil
	})
	r.publish(catalogue(t, "PING1")...)
	r.expect(n, "PING1", applied, "")
	a, err := r.get(n)
	if err != nil || !a.GetAgent().GetCertificateExpiresAt().AsTime().After(first) {
		t.Errorf("the operators see %v (%v)", a.GetAgent().GetCertificateExpiresAt(), err)
	}
}

func TestACertificateThatExpiredLessThanThirtyDaysAgoIsRenewedAndNothingElse(t *testing.T) {
	t.Parallel()
	r := shortLived(t, 2*time.Second)
	n := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	r.eventually(func() error {
		if time.Now().Before(n.certificate().Add(time.Second)) {
			return errors.New("not expired yet")
		}
		return nil
	})
	client, creds := attackerFor(t, r, n)
	if _, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: hello(creds.Identity.ID).GetHello()}); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "renew") {
		t.Errorf("a pull with an expired certificate: %v", err)
	}
	r.stop()
	r.life = time.Hour
	r.start()
	n.start()
	r.connected(n)
	if left := time.Until(n.certificate()); left < 30*time.Minute {
		t.Errorf("the certificate has %s left", left)
	}
}

func TestTheCAIsReplacedWithOverlap(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	r.connected(n)
	late := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "LATE"}, nil)
	r.stop()
	if err := controller.BeginCARotation(r.data, controller.Keys{}); err != nil {
		t.Fatal(err)
	}
	if err := controller.FinishCARotation(t.Context(), r.data, controller.Keys{}, false); err == nil || !strings.Contains(err.Error(), "enrol again") {
		t.Errorf("finished while agents have certificates of the old CA: %v", err)
	}
	r.start()
	late.start() // enrolled by the old CA, connects during the overlap
	r.connected(late)
	during := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "DURING"}, nil) // enrols during the overlap
	r.connected(during)
	r.connected(n)
	// Both are told to renew when they connect, and have the new CA then.
	for _, x := range []*node{n, late} {
		r.eventually(func() error {
			ca, err := os.ReadFile(filepath.Join(x.state, "credentials", trust.CAFile))
			if err == nil && strings.Count(string(ca), "BEGIN CERTIFICATE") != 2 {
				err = errors.New("only one CA")
			}
			return err
		})
	}
	r.stop()
	if err := controller.FinishCARotation(t.Context(), r.data, controller.Keys{}, false); err != nil {
		t.Fatal(err)
	}
	r.start()
	creds, err := trust.LoadCredentials(r.op)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(r.addr, transport.DialOptions(trust.ClientTLS(creds, ""))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.fleet = stopgapv1.NewFleetServiceClient(conn)
	r.publish(catalogue(t, "PING1")...)
	for _, x := range []*node{n, late, during} {
		r.connected(x)
		r.expect(x, "PING1", applied, "")
	}
}

func TestACloneOfAWholeMachineIsDetectedAndTheRightOneEnrolsAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.publish(catalogue(t, "M1")...)
	r.expect(n, "M1", applied, "")
	n.stop()
	base := shortDir(t)
	clone := &node{r: r, name: "CLONE", dir: filepath.Join(base, "server"), state: filepath.Join(base, "agent"), id: n.id, cfg: n.cfg}
	copyDir(t, n.dir, clone.dir)
	copyDir(t, n.state, clone.state)
	clone.cfg.StateDir, clone.cfg.Host = clone.state, "lab:"+clone.dir
	n.start()
	clone.start()
	r.warned(n, "clone-detected")
	again, err := r.fleet.ReenrollAgent(t.Context(), &stopgapv1.ReenrollAgentRequest{Agent: n.id, Ttl: durationpb.New(10 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	says("enrol again", n, clone) // the one that holds the identity; the other keeps away for a minute
	n.stop()
	if _, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: n.state, Controller: r.addr, Token: again.GetTokenSecret(), Host: "lab:" + n.dir, Again: true}); err != nil {
		t.Fatal(err)
	}
	n.start()
	r.connected(n)
	r.publish(catalogue(t, "PING1")...)
	r.expect(n, "PING1", applied, "")
	client, creds := attackerFor(t, r, clone)
	if _, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: hello(creds.Identity.ID).GetHello()}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "enrol again") {
		t.Errorf("the clone is still let in: %v", err)
	}
}

func TestAClockThatDiffersIsSaidAndWorkGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	r.connected(n)
	s := r.steal()
	s.SetClock(func() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(2 * time.Hour)) })
	n.says("clock-skew")
	d, err := r.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if ack := s.try(s.update(d.Signed().Targets, 2, nil)).GetPolicyAck(); ack.GetTargetsVersion() != 2 {
		t.Errorf("with a clock that differs: %v", ack)
	}
	unchanged(t, file, content)
	s.Stop()
	r.start()
	r.connected(n)
	r.eventually(func() error {
		out, err := n.tells()
		if err == nil && strings.Contains(out, "clock-skew") {
			err = errors.New("still said")
		}
		return err
	})
}

func TestAnAgentOfferedAnotherFleetsRootDoesNotEnrol(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	mine, err := trust.ParseToken(r.token(1, nil))
	if err != nil {
		t.Fatal(err)
	}
	// A thief has this fleet's CA and tries to hand out a root of its own: the token names the right one.
	d, err := other.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	c, err := thief.Serve(r.data, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	c.OfferRoot(d.FirstRoot())
	state := filepath.Join(t.TempDir(), "state")
	if _, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: state, Controller: c.Addr(), Token: mine.String(), Name: "X"}); err == nil || !strings.Contains(err.Error(), "another policy root") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, "trust.json")); err == nil {
		t.Error("the other root was kept")
	}
}
