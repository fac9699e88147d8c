package reconcile

import (
	"context"
	"testing"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// quickHealthManager starts the recovery service again in the moment between the stop of one and the stop of the other.
type quickHealthManager struct {
	host.Driver
	dir   labdir.Dir
	times int
}

func (d *quickHealthManager) SetService(ctx context.Context, name string, want host.Service) error {
	if err := d.Driver.SetService(ctx, name, want); err != nil || name != "MSExchangeHMRecovery" || want.State != host.Stopped || d.times == 0 {
		return err
	}
	d.times--
	return d.dir.UpdateServices(func(m map[string]labdir.Service) error {
		r := m[name]
		r.StartType, r.State = labdir.StartAutomatic, labdir.Running
		m[name] = r
		return nil
	})
}

func TestTheHealthManagerIsHeldThoughItsServicesStartEachOther(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	before := g.snapshot()
	_ = g.journal.Close()
	g.open(nil, func(d host.Driver) host.Driver { return &quickHealthManager{d, labdir.Dir(g.dir), 2} })
	g.publish("CVE-2021-26857")
	if err := g.r.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.expect("CVE-2021-26857", applied, "")
	services, err := labdir.Dir(g.dir).Services()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range host.HealthManager {
		if services[name].State != labdir.Stopped {
			t.Errorf("%s is %v", name, services[name])
		}
	}
	clear(g.targets)
	g.release(false)
	if err := g.r.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.expect("CVE-2021-26857", reverted, "")
	g.same(before)
}
