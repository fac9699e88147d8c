package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// killer stops everything at the Nth call that changes something, before or after that call took effect, as a killed
// process would: nothing works any more until the "restart".
type killer struct {
	at    int
	after bool
	calls int
	dead  bool
}

var errKilled = errors.New("killed")

func (k *killer) do(f func() error) error {
	if k.dead {
		return errKilled
	}
	k.calls++
	if k.calls == k.at {
		k.dead = true
		if k.after {
			_ = f()
		}
		return errKilled
	}
	return f()
}

type killJournal struct {
	Journal
	k *killer
}

func (j *killJournal) Put(c []journal.Change) error {
	return j.k.do(func() error { return j.Journal.Put(c) })
}
func (j *killJournal) Settle(s journal.Settlement) error {
	return j.k.do(func() error { return j.Journal.Settle(s) })
}
func (j *killJournal) PutOriginal(d string, b []byte) error {
	return j.k.do(func() error { return j.Journal.PutOriginal(d, b) })
}
func (j *killJournal) PutRepairs(id string, ts []time.Time) error {
	return j.k.do(func() error { return j.Journal.PutRepairs(id, ts) })
}

type killDriver struct {
	host.Driver
	k *killer
}

func (d *killDriver) ReplaceConfig(ctx context.Context, dir, file string, old, data []byte) error {
	return d.k.do(func() error { return d.Driver.ReplaceConfig(ctx, dir, file, old, data) })
}

// SetService dies in the middle too: the start type is changed and the state is not.
func (d *killDriver) SetService(ctx context.Context, name string, want host.Service) error {
	now, err := d.Service(ctx, name)
	if err != nil {
		return err
	}
	half := now
	half.StartType = want.StartType
	if half.State == host.Running && half.StartType == host.StartDisabled || half.State == host.Stopped {
		if err := d.k.do(func() error { return d.Driver.SetService(ctx, name, half) }); err != nil {
			return err
		}
	}
	return d.k.do(func() error { return d.Driver.SetService(ctx, name, want) })
}

// SetPool dies in the middle too, in the order that the interface promises: stopped last, started first.
func (d *killDriver) SetPool(ctx context.Context, name string, want host.Pool) error {
	now, err := d.Pool(ctx, name)
	if err != nil {
		return err
	}
	half := now
	if want.State == host.Started {
		half.State = host.Started
	} else {
		half.AutoStart = want.AutoStart
	}
	if err := d.k.do(func() error { return d.Driver.SetPool(ctx, name, half) }); err != nil {
		return err
	}
	return d.k.do(func() error { return d.Driver.SetPool(ctx, name, want) })
}

// TestAKillAtAnyStepLosesNothing plays: apply the catalogue, swap M1 for its second revision, withdraw everything; killed
// at every step before and after its effect, restarted, and looked at: the prior state is known, nothing is half done,
// each outcome is reported once.
func TestAKillAtAnyStepLosesNothing(t *testing.T) {
	t.Parallel()
	story := func(t *testing.T, g *rig, restart func()) {
		step := func(states map[string]stopgapv1.OutcomeState) {
			for try := 0; ; try++ {
				err := g.r.Pass(context.Background())
				if err == nil && !died(g) {
					break
				}
				if try > 3 {
					t.Fatalf("pass: %v", err)
				}
				restart()
			}
			for id, st := range states {
				g.expect(id, st, "")
			}
		}
		before := g.snapshot()
		g.publish("M1", "M2", "CVE-2021-26857", "CVE-2021-27065")
		step(map[string]stopgapv1.OutcomeState{"M1": applied, "M2": applied, "CVE-2021-26857": applied, "CVE-2021-27065": applied})
		r2 := strings.NewReplacer("revision: 1", "revision: 2", "M1.1", "M1.2").Replace(string(g.targets["mitigations/M1/1.yaml"]))
		g.targets["mitigations/M1/2.yaml"] = []byte(r2)
		g.release(false)
		step(map[string]stopgapv1.OutcomeState{"M1": applied})
		if g.outcome("M1").GetRevision() != 2 {
			t.Fatal("M1 is not at revision 2")
		}
		clear(g.targets)
		g.release(false)
		step(map[string]stopgapv1.OutcomeState{"M1": reverted, "M2": reverted, "CVE-2021-26857": reverted, "CVE-2021-27065": reverted})
		g.same(before)
		if cs, _ := g.journal.Changes(); len(cs) != 0 {
			t.Errorf("left in the journal: %v", cs)
		}
		reportedOnce(t, g)
	}
	steps := 0
	t.Run("counting", func(t *testing.T) {
		g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
		k := &killer{}
		_ = g.journal.Close()
		g.open(func(j Journal) Journal { return &killJournal{j, k} }, func(d host.Driver) host.Driver { return &killDriver{d, k} })
		story(t, g, func() { t.Fatal("nobody was killed") })
		steps = k.calls
	})
	if steps < 30 {
		t.Fatalf("only %d steps: the story does too little", steps)
	}
	for at := 1; at <= steps; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("at %d after=%t", at, after), func(t *testing.T) {
				t.Parallel()
				g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
				k := &killer{at: at, after: after}
				_ = g.journal.Close()
				g.open(func(j Journal) Journal { return &killJournal{j, k} }, func(d host.Driver) host.Driver { return &killDriver{d, k} })
				killed := false
				story(t, g, func() {
					killed = true
					_ = g.journal.Close()
					g.open(nil, nil)
				})
				if !killed {
					t.Error("the kill never came")
				}
			})
		}
	}
}

func died(g *rig) bool {
	j, ok := g.r.cfg.Journal.(*killJournal)
	return ok && j.k.dead
}

// reportedOnce: in the outbox no outcome follows an equal one of the same mitigation.
func reportedOnce(t *testing.T, g *rig) {
	t.Helper()
	_, out, err := g.journal.Pending(0, journal.MaxOutbox)
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]*stopgapv1.Outcome{}
	for _, s := range out {
		o := s.GetOutcome()
		if same(last[o.GetMitigation()], o) {
			t.Errorf("reported twice: %v", o)
		}
		last[o.GetMitigation()] = o
	}
}
