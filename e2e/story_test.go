package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/policydir"
)

func TestTheMainJob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ex1 := r.add(lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01"}, nil)
	edge := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "EDGE01", Edge: true}, nil)
	fx1 := r.add(lab.Spec{Template: lab.Exchange2019CU14, Host: "FX01", Organisation: "Fabrikam"}, nil)
	fx2 := r.add(lab.Spec{Template: lab.Exchange2019CU15, Host: "FX02", Organisation: "Fabrikam"}, nil)
	cves := []string{"CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "CVE-2022-41040", "CVE-2026-42897"}
	for _, n := range []*node{ex1, edge, fx1, fx2} {
		r.connected(n)
	}
	for _, cve := range cves {
		if !ex1.exploited(cve) {
			t.Fatalf("%s does not get through: the test proves nothing", cve)
		}
	}

	r.publish(catalogue(t, "CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2", "PING1")...)
	for _, id := range []string{"CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2", "PING1"} {
		rec := r.expect(ex1, id, applied, "applied")
		if len(rec.GetOutcome().GetEvidence()) == 0 {
			t.Errorf("%s: no evidence", id)
		}
	}
	r.expect(edge, "M1", na, "role")
	r.expect(edge, "PING1", applied, "")
	r.expect(fx1, "M1", na, "fixed")
	r.expect(fx1, "M2", applied, "")
	r.expect(fx2, "M2", applied, "")
	r.warned(ex1, "health-manager-held")
	for _, cve := range cves {
		if ex1.exploited(cve) {
			t.Errorf("%s still gets through", cve)
		}
	}
	ex1.people()
	if n := ex1.front.Restarts("/owa"); n > 2 {
		t.Errorf("/owa was restarted %d times for two files", n)
	}

	// Drift.
	path := filepath.Join(ex1.dir, "C", "inetpub", "wwwroot", "web.config")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	from := bytes.Index(data, []byte(`<rule name="Stopgap M1.1`))
	to := from + bytes.Index(data[from:], []byte("</rule>")) + len("</rule>")
	if err := os.WriteFile(path, append(append([]byte(nil), data[:from]...), data[to:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.expect(ex1, "M1", applied, "drift-repaired")
	if ex1.exploited("CVE-2022-41040") {
		t.Error("the rule is reported as put back and the exploit gets through")
	}

	// Removal by itself.
	if err := lab.InstallUpdate(fx1.dir, "15.2.1544.41", false, func() error {
		r.expect(fx1, "M2", "PENDING", "servicing")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.expect(fx1, "M2", applied, "")
	if err := lab.InstallUpdate(fx2.dir, "15.2.1748.46", false, nil); err != nil {
		t.Fatal(err)
	}
	r.expect(fx1, "M2", reverted, "fixed")
	r.expect(fx2, "M2", reverted, "fixed")
	fx1.asBefore()
	fx2.asBefore()

	// The controller goes and comes back; what happened meanwhile arrives, and nothing is recorded twice.
	before := len(r.history())
	r.stop()
	if err := os.WriteFile(path, data[:from], 0o600); err != nil { // malformed
		t.Fatal(err)
	}
	r.start()
	r.expect(ex1, "M1", failed, "config-malformed")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.expect(ex1, "M1", applied, "")
	if after := len(r.history()); after <= before {
		t.Errorf("%d outcomes before, %d after", before, after)
	}

	// Withdrawn, everything is as it was.
	r.withdraw("CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2")
	for _, id := range []string{"CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2"} {
		r.expect(ex1, id, reverted, "withdrawn")
	}
	ex1.asBefore()
}

func TestASlowAndAStuckAgentHoldUpNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fast := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "FAST"}, nil)
	gate := &gate{}
	stuck := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "STUCK"}, func(c *agent.Config) { c.Dialer = gate.dial })
	r.connected(fast)
	r.connected(stuck)
	gate.shut()
	began := time.Now()
	r.publish(catalogue(t, "M2", "PING1")...)
	r.expect(fast, "M2", applied, "")
	if took := time.Since(began); took > patience.For(10*time.Second) {
		t.Errorf("the fast one waited %s", took)
	}
	if a, err := r.get(stuck); err != nil || len(a.GetOutcomes()) > 0 {
		t.Errorf("the stuck one reported: %v %v", a, err)
	}
	// Silence ends its stream, and once it can read again it catches up.
	r.eventually(func() error {
		a, err := r.get(stuck)
		if err == nil && a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
			err = errors.New("a stuck agent still counts as connected")
		}
		return err
	})
	gate.open()
	r.expect(stuck, "M2", applied, "")
}

func TestAFlappingNetworkLosesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := newProxy(t, r.addr, 0)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, func(c *agent.Config) { c.Controller = p.addr() })
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Each connection may live a little longer than the one before, until the machine is quick enough to get something through.
		for life := 70 * time.Millisecond; ; life += life / 20 {
			select {
			case <-stop:
				return
			case <-time.After(life):
				p.cut()
			}
		}
	}()
	r.publish(catalogue(t, "M1", "M2", "PING1", "CVE-2021-26855")...)
	r.expect(n, "M1", applied, "")
	r.withdraw("M1", "M2")
	r.expect(n, "M1", reverted, "withdrawn")
	close(stop)
	<-done
	r.expect(n, "M2", reverted, "withdrawn")
	r.history()
}

func TestBehindAProxyThatCutsEveryStreamAfterASecond(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := newProxy(t, r.addr, patience.For(time.Second))
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, func(c *agent.Config) {
		c.Controller, c.PullInterval = p.addr(), 500*time.Millisecond
		c.RetryMin, c.RetryMax = 5*time.Minute, 10*time.Minute // streams stay away: what arrives was pulled
	})
	r.eventually(func() error { _, err := r.get(n); return err })
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
			err = errors.New("still connected")
		}
		return err
	})
	r.publish(catalogue(t, "M1", "PING1")...)
	r.expect(n, "M1", applied, "")
	r.withdraw("M1")
	r.expect(n, "M1", reverted, "withdrawn")
	if a, err := r.get(n); err != nil || a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
		t.Errorf("a stream stood: this was no pull (%v)", err)
	}
	r.history()
}

func TestADuplicatedIdentityIsDetectedAndTheHolderStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	original := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "EX01"}, nil)
	r.connected(original)
	clone := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "CLONE"}, nil)
	copyDir(t, filepath.Join(original.state, "credentials"), filepath.Join(clone.state, "credentials"))
	clone.start()
	r.warned(original, "clone-detected")
	// Whoever holds the stream now keeps it: the other is sent away for minutes.
	r.publish(catalogue(t, "PING1")...)
	r.expect(original, "PING1", applied, "")
	a, err := r.get(original)
	if err != nil {
		t.Fatal(err)
	}
	if a.GetAgent().GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED {
		t.Errorf("nobody holds the identity: %v", a.GetAgent())
	}
}

func TestARestoredSnapshotOfAnAgentBeginsANewEpochAndReportsEverything(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.publish(catalogue(t, "PING1")...)
	first := r.expect(n, "PING1", applied, "")
	n.stop()
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	copyDir(t, n.state, snapshot)
	n.start()
	r.publish(catalogue(t, "M1", "M2")...)
	r.expect(n, "M1", applied, "")
	r.expect(n, "M2", applied, "")
	n.stop()
	if err := os.RemoveAll(n.state); err != nil {
		t.Fatal(err)
	}
	copyDir(t, snapshot, n.state)
	n.start()
	r.warned(n, "journal-rolled-back")
	r.eventually(func() error {
		rec := r.expect(n, "PING1", applied, "")
		if rec.GetJournalEpoch() == first.GetJournalEpoch() {
			return errors.New("still the old epoch")
		}
		return nil
	})
	// The rules that the snapshot does not know of are adopted, and can be taken off again.
	r.expect(n, "M1", applied, "adopted")
	r.withdraw("M1", "M2")
	r.expect(n, "M1", reverted, "withdrawn")
	r.expect(n, "M2", reverted, "withdrawn")
	n.asBefore()
	r.history()
}

func TestARestoredControllerLosesNoProtectionAndGetsEveryOutcomeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.publish(catalogue(t, "PING1")...)
	r.expect(n, "PING1", applied, "")
	r.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, r.data, backup)
	r.start()
	r.publish(catalogue(t, "M1")...)
	published := time.Now()
	r.expect(n, "M1", applied, "")
	r.stop()
	if err := os.RemoveAll(r.data); err != nil {
		t.Fatal(err)
	}
	copyDir(t, backup, r.data)
	// Versions count by the clock, in seconds, and once for each of the few signatures so far: a backup is older than that.
	r.eventually(func() error {
		if time.Since(published) < 5*time.Second {
			return errors.New("too early")
		}
		return nil
	})
	r.start()
	r.connected(n)
	r.warned(n, "ahead-of-controller")
	r.expect(n, "M1", applied, "") // reported again, though this controller never heard of it
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost with the controller's memory")
	}
	// The signed directory is what the backup lacks; whoever publishes an older one is told.
	if err := r.soc.Add(catalogue(t, "M2")...); err != nil {
		t.Fatal(err)
	}
	r.publish()
	r.expect(n, "M2", applied, "")
	r.expect(n, "M1", applied, "")
}

func TestTwoPoliciesInQuickSuccessionAreNeverMixed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.connected(n)
	m1 := catalogue(t, "M1")
	r2 := func(rev int) policydir.File {
		for _, f := range m1 {
			if f.Name == "M1.yaml" {
				s := strings.NewReplacer("revision: 1", fmt.Sprintf("revision: %d", rev), "M1.1", fmt.Sprintf("M1.%d", rev)).Replace(string(f.Content))
				return policydir.File{Name: "M1.yaml", Content: []byte(s)}
			}
		}
		t.Fatal("no M1")
		return policydir.File{}
	}
	r.publish(m1...)
	for rev := 2; rev <= 12; rev++ {
		r.publish(r2(rev))
	}
	r.eventually(func() error {
		rec := r.expect(n, "M1", applied, "")
		if rec.GetOutcome().GetRevision() != 12 {
			return fmt.Errorf("at revision %d", rec.GetOutcome().GetRevision())
		}
		return nil
	})
	data, err := os.ReadFile(filepath.Join(n.dir, "C", "inetpub", "wwwroot", "web.config"))
	if err != nil {
		t.Fatal(err)
	}
	if c := bytes.Count(data, []byte("Stopgap M1.")); c != 1 {
		t.Errorf("%d rules of M1 stand there:\n%s", c, data)
	}
	if n.exploited("CVE-2022-41040") {
		t.Error("unprotected after the swaps")
	}
	for _, rec := range r.history() {
		if o := rec.GetOutcome(); o.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_FAILED {
			t.Errorf("failed on the way: %v", o)
		}
	}
}

func TestBadDocumentsAreRefusedByNameLineAndReasonAndNothingIsStored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good := catalogue(t, "M1")
	for name, c := range map[string]struct {
		doc  string
		want string
	}{
		"unknown field":  {"id: X\nrevision: 1\nsurprise: 1\n", `bad.yaml:3:1: unknown field "surprise"`},
		"path in the id": {"id: ../../etc\nrevision: 1\n", "bad.yaml:1:5: id:"},
		"bad build":      {head + "  exchange: [{product: \"15.1\", from: \"15.1.99999.1\"}]\n", "not a number from 0 to 65535"},
		"YAML bomb":      {"a: &a [x,x,x]\nb: &b [*a,*a,*a]\n", "bad.yaml:1:4: anchors (&a) are not allowed"},
		"malformed XML":  {head + rule("<rule name=\"a\">\n          <match url=\".*\">\n        </rule>"), "bad.yaml:14:9: </rule> where </match> should be"},
		"bad pattern":    {head + rule("<rule name=\"a\"><match url=\"(\" /></rule>"), "( without )"},
		"catastrophic":   {head + rule("<rule name=\"a\"><match url=\"(a+)+b\" /></rule>"), "exponential time"},
		"two actions, one id": {head + "actions:\n  - {id: a, service: {name: X, startType: DISABLED, state: STOPPED}}\n" +
			"  - {id: a, service: {name: Y, startType: DISABLED, state: STOPPED}}\n", "two actions have one id"},
	} {
		// The author is told ...
		err := r.soc.Add(append([]policydir.File{{Name: "bad.yaml", Content: []byte(c.doc)}}, good...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		// ... and where two people sign it all the same, the controller does not take it.
		_, err = r.force(2, map[string][]byte{"mitigations/X/1.yaml": []byte(c.doc)}, "mitigations: [{id: X, revisions: [1]}]\n")
		if want := strings.ReplaceAll(c.want, "bad.yaml", "mitigations/X/1.yaml"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, signed: got %v, want %q", name, err, want)
		}
	}
	if _, err := r.force(2, map[string][]byte{"mitigations/X/1.yaml": bytes.Repeat([]byte("#"), 300<<10)}, "mitigations: [{id: X, revisions: [1]}]\n"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("300 KiB: %v", err)
	}
	if _, err := r.force(2, map[string][]byte{"mitigations/X/1.yaml": bytes.Repeat([]byte("#"), 10<<20)}, "mitigations: []\n"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("10 MiB: %v", err)
	}
	l, err := r.fleet.ListMitigations(t.Context(), &stopgapv1.ListMitigationsRequest{})
	if err != nil || len(l.GetMitigations()) != 0 || l.GetPolicy().GetPolicyVersion() != 1 {
		t.Errorf("something was stored: %v %v", l, err)
	}
	r.publish(good...)
	changed := bytes.Replace(good[0].Content, []byte("title:"), []byte("title: "), 1)
	for _, f := range good {
		if f.Name == "M1.yaml" {
			changed = bytes.Replace(f.Content, []byte("ProxyNotShell"), []byte("ProxyNotShel"), 1)
		}
	}
	if err := r.soc.Add(policydir.File{Name: "M1.yaml", Content: changed}); !errors.Is(err, policydir.ErrImmutable) {
		t.Errorf("a revision with other bytes: %v", err)
	}
	if _, err := r.force(3, map[string][]byte{"mitigations/M1/1.yaml": changed}, "mitigations: [{id: M1, revisions: [1]}]\n"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a published revision with other bytes, signed: %v", err)
	}
}

const head = "id: X\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo:\n  roles: [ROLE_MAILBOX]\n"

func rule(xml string) string {
	return "actions:\n  - id: a\n    urlRewrite: {location: {site: EXCHANGE_FRONT_END, path: /}, inbound: x}\n"[:len("actions:\n  - id: a\n")] +
		"    urlRewrite:\n      location: {site: EXCHANGE_FRONT_END, path: /}\n      inbound: |\n        " + xml + "\n"
}
