package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// binaries builds the real programs once for all tests that need them.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "stopgap-bin")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-tags", "cheapkeys", "-ldflags", "-s -w", "-o", dir+"/", "../agent/cmd/stopgap-agent", "../controller/cmd/stopgap", "../controller/cmd/stopgap-controller", "./cmd/stopgap-lab")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// kills is how often the agent is killed; a few hundred were played by hand without a finding.
const kills = 25

func TestAnAgentKilledAtRandomMomentsLosesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.prepare(lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01"}, nil)
	p := procs.New("agent", program(t, "stopgap-agent"), filepath.Join(t.TempDir(), "agent.log"), "--state", n.state, "run", "--controller", r.addr,
		"--host", "lab:"+n.dir, "--retry-min", "10ms", "--retry-max", "50ms")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	ids := []string{"M1", "M2", "CVE-2021-26857", "CVE-2021-27065"}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range kills {
		if i%2 == 0 {
			r.publish(catalogue(t, ids...)...)
		} else {
			r.withdraw(ids...)
		}
		wait := time.NewTimer(time.Duration(rnd.Int64N(int64(patience.For(250 * time.Millisecond)))))
		<-wait.C
		p.Kill()
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if kills%2 == 1 { // the last was a publish
		for _, id := range ids {
			r.expect(n, id, applied, "")
		}
		r.withdraw(ids...)
	}
	for _, id := range ids {
		r.eventually(func() error {
			a, err := r.get(n)
			if err != nil {
				return err
			}
			for _, rec := range a.GetOutcomes() {
				o := rec.GetOutcome()
				if o.GetMitigation() == id && o.GetCode() != "withdrawn" {
					return fmt.Errorf("%s is %s (%s)", id, o.GetState(), o.GetReason())
				}
			}
			return nil
		})
	}
	n.asBefore()
	r.history()
	services, err := os.ReadFile(filepath.Join(n.dir, "services.json"))
	if err != nil || strings.Contains(string(services), "STOPPED") || strings.Contains(string(services), "DISABLED") {
		t.Errorf("services are not as before: %s %v", services, err)
	}
}

func TestTheAdministratorCanSayNoWithAgentAndControllerDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01"}, nil)
	r.publish(catalogue(t, "M1", "M2", "CVE-2021-27065")...)
	for _, id := range []string{"M1", "M2", "CVE-2021-27065"} {
		r.expect(n, id, applied, "")
	}
	ctl := func(args ...string) (string, error) {
		return procs.Output(t.Context(), program(t, "stopgap-agent"), append([]string{"--state", n.state}, args...)...)
	}
	if _, err := ctl("panic-revert", "--host", "lab:"+n.dir); err == nil || !strings.Contains(err.Error(), "stop the agent first") {
		t.Errorf("panic-revert beside a running agent: %v", err)
	}
	r.stop()
	out, err := ctl("block", "M1", "--reason", "no")
	if err != nil || !strings.Contains(out, "now BLOCKED") || !n.exploited("CVE-2022-41040") {
		t.Errorf("block with the controller down: %q %v", out, err)
	}
	out, err = ctl("disable")
	if err != nil || !strings.Contains(out, "is frozen") || !strings.Contains(out, "M2@1") {
		t.Errorf("disable: %q %v", out, err)
	}
	out, err = ctl("status")
	if err != nil || !strings.Contains(out, "FROZEN") || !strings.Contains(out, "no stream") || !strings.Contains(out, "DISABLED") {
		t.Errorf("status: %q %v", out, err)
	}
	n.stop()
	undo, err := os.ReadFile(filepath.Join(n.state, "UNDO.txt"))
	if err != nil || !bytes.Contains(undo, []byte("Stopgap M2.1 OWA CSP - outbound")) || !bytes.Contains(undo, []byte("appcmd.exe start apppool")) {
		t.Errorf("UNDO.txt: %s %v", undo, err)
	}
	// The journal damaged on top of it: the plain copies are enough.
	if err := os.WriteFile(filepath.Join(n.state, "journal.db"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = ctl("panic-revert", "--host", "lab:"+n.dir)
	if err != nil || !strings.Contains(out, "taken off: M2@1/csp") || !strings.Contains(out, "taken off: CVE-2021-27065@1/ecp") {
		t.Errorf("panic-revert: %q %v", out, err)
	}
	n.asBefore()
	if out, err := ctl("status"); err != nil || !strings.Contains(out, "NOT RUNNING") || !strings.Contains(out, "FROZEN") || strings.Contains(out, "APPLIED") {
		t.Errorf("status without an agent: %q %v", out, err)
	}
	// The next start puts nothing back until it is told to.
	r.start()
	n.start()
	r.connected(n)
	r.expect(n, "M2", "DISABLED", "frozen")
	n.asBefore()
	if out, err = ctl("enable"); err != nil {
		t.Errorf("enable: %q %v", out, err)
	}
	r.expect(n, "M2", applied, "")
}
