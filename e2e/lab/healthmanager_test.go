package lab

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/stopgap-em/stopgap/shared/labdir"
)

// TestTheHealthManagerNeverActsOnAnOldReading plays the agent's order (recovery service off, health manager off, then the service)
// against a health manager that does one round after another: once the health manager is off, nothing is started any more.
func TestTheHealthManagerNeverActsOnAnOldReading(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "server")
	if err := Make(dir, Spec{Template: Exchange2016CU19, Host: "EX01"}); err != nil {
		t.Fatal(err)
	}
	d := labdir.Dir(dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				recoverServices(d)
			}
		}
	})
	set := func(name, start, state string) {
		if err := d.UpdateServices(func(m map[string]labdir.Service) error {
			s := m[name]
			s.StartType, s.State = start, state
			m[name] = s
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for range 200 {
		set("MSExchangeHMRecovery", labdir.StartDisabled, labdir.Stopped)
		// The recovery service may have started the health manager's recovery in between, as it does on a server.
		for {
			set("MSExchangeHMRecovery", labdir.StartDisabled, labdir.Stopped)
			set("MSExchangeHM", labdir.StartDisabled, labdir.Stopped)
			m, err := d.Services()
			if err != nil {
				t.Fatal(err)
			}
			if m["MSExchangeHM"].State == labdir.Stopped && m["MSExchangeHMRecovery"].State == labdir.Stopped {
				break
			}
		}
		set("MSExchangeUM", labdir.StartDisabled, labdir.Stopped)
		for range 3 {
			if m, err := d.Services(); err != nil || m["MSExchangeUM"].State != labdir.Stopped {
				t.Fatalf("the service was started by a health manager that is stopped: %+v, %v", m["MSExchangeUM"], err)
			}
		}
		for _, n := range []string{"MSExchangeUM", "MSExchangeHM", "MSExchangeHMRecovery"} {
			set(n, labdir.StartAutomatic, labdir.Running)
		}
	}
	close(stop)
	wg.Wait()
}
