package lab

import (
	"context"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/shared/labdir"
)

// HealthManager plays Managed Availability until ctx ends: its recovery service starts it when it is stopped, and it
// starts what it finds stopped.
func HealthManager(ctx context.Context, dir string, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			recoverServices(labdir.Dir(dir))
		}
	}
}

// recoverServices does one round. It decides by what it reads under the lock: acting on an older reading would start a service
// that the agent has disabled in between, which Managed Availability, being stopped then, can't do.
func recoverServices(d labdir.Dir) {
	runs := false
	_ = d.UpdateServices(func(m map[string]labdir.Service) error {
		up := func(n string) bool { return m[n].State == labdir.Running }
		if up("MSExchangeHMRecovery") && !up("MSExchangeHM") {
			hm := m["MSExchangeHM"]
			hm.StartType, hm.State = labdir.StartAutomatic, labdir.Running
			m["MSExchangeHM"] = hm
			return nil
		}
		if runs = up("MSExchangeHM"); !runs {
			return nil
		}
		for n, v := range m {
			if strings.HasPrefix(n, "MSExchange") && v.State == labdir.Stopped {
				v.StartType, v.State = labdir.StartAutomatic, labdir.Running
				m[n] = v
			}
		}
		return nil
	})
	if !runs {
		return
	}
	_ = d.UpdatePools(func(m map[string]string) error {
		if services, err := d.Services(); err == nil && services["MSExchangeHM"].State == labdir.Running {
			clear(m)
		}
		return nil
	})
}
