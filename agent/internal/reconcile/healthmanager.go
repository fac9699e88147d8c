package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
)

// Exchange's Health Manager (Managed Availability) starts again what it finds stopped. While any service or app-pool
// action is in force it is stopped and disabled; with the last one it comes back as it was.

// wantsHealthManagerHeld says whether after this pass something stopped stays stopped.
func (p *pass) wantsHealthManagerHeld() bool {
	gone := map[host.Ref]bool{}
	for _, w := range p.works {
		if w.failed != nil {
			continue
		}
		for _, s := range w.revert {
			gone[s.ref] = true
		}
		for _, s := range w.apply {
			if s.todo && !s.file {
				return true
			}
		}
	}
	for _, c := range p.changes {
		if stopping(c) && !gone[c.Ref] {
			return true
		}
	}
	return false
}

// holdTries is how often the services of the health manager are looked at until both are found stopped. Two rounds are enough unless
// something else starts them too.
const holdTries = 5

// holdHealthManager stops what is not yet stopped. A health manager that an administrator disabled before is theirs.
//
// The two services start each other, and there is a moment in which one is stopped and the other is not: what was stopped first may run
// again when the second is stopped. So it looks again until a round finds both as they should be.
func (p *pass) holdHealthManager(ctx context.Context) error {
	held := map[host.Ref]*journal.Change{} // what was recorded here, with the state before the first round
	found := ""
	for range holdTries {
		var err error
		if found, err = p.holdOnce(ctx, held); err != nil || found == "" {
			return err
		}
	}
	return fmt.Errorf("the Exchange Health Manager can't be held, its services run again as soon as they are stopped: %s", found)
}

// holdOnce stops what is not stopped. It says what it found so, "" for nothing.
func (p *pass) holdOnce(ctx context.Context, held map[host.Ref]*journal.Change) (found string, err error) {
	for _, name := range host.HealthManager {
		ref := host.Ref{Mitigation: healthManager, Action: name}
		spec := healthManagerAction(name)
		a, err := p.host.Action(ref, spec, nil)
		if err != nil {
			return found, err
		}
		plan, err := a.Plan(ctx)
		if err != nil {
			return found, err
		}
		rec := held[ref]
		if rec == nil {
			rec = p.record(ref)
		}
		if plan.Now.OK() && (rec == nil || rec.Phase == journal.Applied) {
			continue
		}
		c, err := journal.NewChange(ref, spec, plan.Prior)
		if err != nil {
			return found, err
		}
		c.Since, c.Build = p.now, p.facts.GetExchangeBuild()
		if rec != nil {
			c.Since, c.Prior = rec.Since, rec.Prior
		}
		if err := p.r.cfg.Journal.Put([]journal.Change{c}); err != nil {
			return found, err
		}
		found, held[ref] = name+": "+plan.Now.Detail, &c
		if err := a.Apply(ctx); err != nil {
			return found, err
		}
		f, err := a.Verify(ctx)
		if err != nil {
			return found, err
		}
		if !f.OK() {
			found = name + ": " + f.Detail
			continue // it was started again meanwhile
		}
		c.Phase = journal.Applied
		if err := p.r.cfg.Journal.Put([]journal.Change{c}); err != nil {
			return found, err
		}
	}
	return found, nil
}

// balanceHealthManager holds it or lets it go, by what the journal says is in force now.
func (p *pass) balanceHealthManager(ctx context.Context) error {
	frozen, _, err := p.r.cfg.Journal.Frozen()
	if err != nil {
		return err
	}
	if p.changes, err = p.r.cfg.Journal.Changes(); err != nil {
		return err
	}
	needed := false
	for _, c := range p.changes {
		needed = needed || stopping(c)
	}
	if !frozen {
		if needed {
			err = p.holdHealthManager(ctx)
		} else {
			err = p.releaseHealthManager(ctx)
		}
		if err != nil {
			return err
		}
		if p.changes, err = p.r.cfg.Journal.Changes(); err != nil {
			return err
		}
	}
	p.heldTill = time.Time{}
	if held := p.healthManagerRecords(); len(held) > 0 {
		p.heldTill = held[0].Since
		p.alarms["health-manager-held"] = "the Exchange Health Manager is stopped while a service or app-pool mitigation is in force: it would start again what was stopped"
	}
	return nil
}

// releaseHealthManager brings it back as it was, last stopped first.
func (p *pass) releaseHealthManager(ctx context.Context) error {
	held := p.healthManagerRecords()
	if len(held) == 0 {
		return nil
	}
	var refs []host.Ref
	var errs []error
	for i := len(host.HealthManager) - 1; i >= 0; i-- {
		for _, c := range held {
			if c.Ref.Action != host.HealthManager[i] {
				continue
			}
			a, err := p.host.Action(c.Ref, healthManagerAction(c.Ref.Action), nil)
			if err == nil {
				err = a.Revert(ctx, c.Prior)
			}
			if err == nil {
				var why string
				if why, err = a.VerifyReverted(ctx, c.Prior); err == nil && why != "" {
					err = errors.New(why)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("the Exchange Health Manager can't be started again: %w", err))
				continue
			}
			refs = append(refs, c.Ref)
		}
	}
	if err := p.r.cfg.Journal.Settle(journal.Settlement{Remove: refs}); err != nil {
		return err
	}
	return errors.Join(errs...)
}
