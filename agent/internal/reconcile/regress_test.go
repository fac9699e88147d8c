package reconcile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// revise puts another revision of a document into the policy, with replacements.
func (g *rig) revise(id string, revision string, replace ...string) {
	g.t.Helper()
	doc := string(g.targets["mitigations/"+id+"/1.yaml"])
	g.targets["mitigations/"+id+"/"+revision+".yaml"] = []byte(strings.NewReplacer(append([]string{"revision: 1", "revision: " + revision}, replace...)...).Replace(doc))
	g.release(false)
}

func (g *rig) poolStopped() bool {
	g.t.Helper()
	p, err := g.driver.Pool(g.t.Context(), "MSExchangeECPAppPool")
	if err != nil {
		g.t.Fatal(err)
	}
	return p.State == host.Stopped && p.AutoStart != nil && !*p.AutoStart
}

func TestANewRevisionOfAPoolMitigationDoesNotStartThePool(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	before := g.snapshot()
	g.publish("CVE-2021-27065")
	g.pass()
	g.revise("CVE-2021-27065", "2")
	g.pass()
	g.expect("CVE-2021-27065", applied, "")
	if o := g.outcome("CVE-2021-27065"); o.GetRevision() != 2 || o.GetCode() == "found" || !g.poolStopped() {
		t.Fatalf("pool stopped %t, outcome %v", g.poolStopped(), o)
	}
	clear(g.targets)
	g.release(false)
	g.pass()
	g.same(before)
}

func TestAPoolThatTwoMitigationsStopStaysStoppedUntilBothAreGone(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	before := g.snapshot()
	g.publish("CVE-2021-27065")
	g.pass()
	g.targets["mitigations/X/1.yaml"] = []byte(strings.Replace(string(g.targets["mitigations/CVE-2021-27065/1.yaml"]), "id: CVE-2021-27065", "id: X", 1))
	g.release(false)
	g.pass()
	delete(g.targets, "mitigations/CVE-2021-27065/1.yaml")
	g.release(false)
	g.pass()
	g.expect("CVE-2021-27065", reverted, "withdrawn")
	g.expect("X", applied, "")
	if !g.poolStopped() {
		t.Fatal("the pool runs though X wants it stopped")
	}
	clear(g.targets)
	g.release(false)
	g.pass()
	g.same(before)
}

func TestARevisionThatKeepsItsRuleNamesReplacesTheOld(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string][]string{
		"other pattern":      {"(?=.*powershell)", "(?=.*powershell.*)"},
		"only the title":     {"ProxyNotShell:", "ProxyNotShell (again):"},
		"stopProcessing off": {`stopProcessing="true"`, `stopProcessing="false"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
			before := g.snapshot()
			g.publish("M1")
			g.pass()
			g.revise("M1", "2", replace...)
			g.pass()
			g.expect("M1", applied, "")
			if o := g.outcome("M1"); o.GetRevision() != 2 || o.GetCode() == "found" {
				t.Fatalf("got %v", o)
			}
			g.pass()
			g.expect("M1", applied, "")
			clear(g.targets)
			g.release(false)
			g.pass()
			g.expect("M1", reverted, "withdrawn")
			g.same(before)
		})
	}
}

func TestARevisionThatIsNotForThisServerDoesNotReplaceOneThatIs(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	g.publish("M1")
	g.pass()
	g.revise("M1", "2", "M1.1", "M1.2", `    - {product: "15.1", from: "15.1.225.42"}`+"\n", "")
	g.pass()
	g.expect("M1", applied, "applied")
	if o := g.outcome("M1"); o.GetRevision() != 1 {
		t.Fatalf("got %v", o)
	}
	delete(g.targets, "mitigations/M1/1.yaml")
	g.release(false)
	g.pass()
	g.expect("M1", reverted, "withdrawn")
	if cs, _ := g.journal.Changes(); len(cs) > 0 {
		t.Errorf("left in the journal: %v", cs)
	}
}

func TestWhatAKilledPassBeganGoesWhenTheRestCannotBeDone(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	g.publish("M1")
	doc := strings.Replace(string(g.targets["mitigations/M1/1.yaml"]), "actions:\n", "actions:\n  - id: um\n    service: {name: MSExchangeUM, startType: DISABLED, state: STOPPED}\n", 1)
	g.targets["mitigations/M1/1.yaml"] = []byte(doc)
	g.release(false)
	// As a pass leaves it that was killed after the first action.
	was, err := g.driver.Service(t.Context(), "MSExchangeUM")
	if err != nil {
		t.Fatal(err)
	}
	c, err := journal.NewChange(host.Ref{Mitigation: "M1", Revision: 1, Action: "um"}, &stopgapv1.Action{Id: "um", Kind: &stopgapv1.Action_Service{
		Service: &stopgapv1.ServiceAction{Name: "MSExchangeUM", StartType: "DISABLED", State: "STOPPED"}}}, host.Prior{Service: &was})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Put([]journal.Change{c}); err != nil {
		t.Fatal(err)
	}
	if err := g.driver.SetService(t.Context(), "MSExchangeUM", host.Service{Present: true, StartType: host.StartDisabled, State: host.Stopped}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "C", "inetpub", "wwwroot", "web.config"), []byte("<configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("M1", failed, "config-malformed")
	if now, err := g.driver.Service(t.Context(), "MSExchangeUM"); err != nil || now != was {
		t.Errorf("half of it stays: %+v, %v", now, err)
	}
	if services, _ := labdir.Dir(g.dir).Services(); services["MSExchangeHM"].State != labdir.Running {
		t.Error("the health manager is held for nothing")
	}
	if cs, _ := g.journal.Changes(); len(cs) > 0 {
		t.Errorf("left in the journal: %v", cs)
	}
}
