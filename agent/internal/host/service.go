package host

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// service is the service action.
type service struct {
	d       Driver
	inForce []Change
	ref     Ref
	spec    *stopgapv1.ServiceAction
}

// stoppedBy is another action that stopped this service with the one it holds; nil when none did.
func (a *service) stoppedBy() *Change {
	for i, c := range a.inForce {
		if c.Ref != a.ref && slices.ContainsFunc(c.Prior.Dependents, func(d string) bool { return strings.EqualFold(d, a.spec.GetName()) }) {
			return &a.inForce[i]
		}
	}
	return nil
}

var _ Action = (*service)(nil)

// HealthManager are the services that would start again what a service or app-pool action stopped: Managed Availability.
// They are stopped in this order, the watcher of the watcher first, and started in the reverse one.
var HealthManager = []string{"MSExchangeHMRecovery", "MSExchangeHM"}

// Validate implements Action.
func (a *service) Validate(context.Context) error { return nil }

func (a *service) wanted(s Service) bool {
	return s.StartType == a.spec.GetStartType() && s.State == a.spec.GetState()
}

func (s Service) String() string {
	if !s.Present {
		return "not present"
	}
	return strings.ToLower(s.State + ", start type " + s.StartType)
}

func (a *service) find(ctx context.Context) (Finding, Service, error) {
	s, err := a.d.Service(ctx, a.spec.GetName())
	if err != nil {
		return Finding{}, s, failf("service-unreadable", "service %s: %v", a.spec.GetName(), err)
	}
	f := Finding{Detail: fmt.Sprintf("service %s is %s", a.spec.GetName(), s),
		Evidence: []*stopgapv1.Evidence{evidence(a.ref.Action, "service "+a.spec.GetName(), s.String(), nil)}}
	switch {
	case !s.Present:
		f.Standing = NotPresent
	case a.wanted(s):
		f.Standing = InPlace
	default:
		f.Standing = Absent
	}
	return f, s, nil
}

// Plan implements Action.
func (a *service) Plan(ctx context.Context) (Plan, error) {
	f, s, err := a.find(ctx)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Now: f, Prior: Prior{Service: &s}, Touches: []string{"stops service " + a.spec.GetName()}}
	if s.Present && s.State == Stopped && a.stoppedBy() != nil {
		p.Prior.Service.State = Running // so it was, before us
	}
	if !s.Present || s.State == Stopped {
		return p, nil
	}
	if p.Prior.Dependents, err = a.d.Dependents(ctx, a.spec.GetName()); err != nil {
		return Plan{}, failf("service-unreadable", "what depends on service %s: %v", a.spec.GetName(), err)
	}
	for _, d := range p.Prior.Dependents {
		p.Touches = append(p.Touches, "stops service "+d+", which depends on it")
	}
	return p, nil
}

// Apply implements Action.
func (a *service) Apply(ctx context.Context) error {
	s, err := a.d.Service(ctx, a.spec.GetName())
	if err != nil || !s.Present || a.wanted(s) {
		return wrapf("service-unreadable", err, "service %s", a.spec.GetName())
	}
	want := Service{Present: true, StartType: a.spec.GetStartType(), State: a.spec.GetState(), Delayed: s.Delayed, Recovery: s.Recovery}
	return wrapf("service-failed", a.d.SetService(ctx, a.spec.GetName(), want), "service %s", a.spec.GetName())
}

func wrapf(code string, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return failf(code, "%s: %v", fmt.Sprintf(format, args...), err)
}

// Verify implements Action.
func (a *service) Verify(ctx context.Context) (Finding, error) {
	f, _, err := a.find(ctx)
	return f, err
}

// theirs: a start type that is neither ours nor the one before was set by somebody else, and stays.
func (a *service) theirs(s Service, prior *Service) bool {
	return s.StartType != a.spec.GetStartType() && s.StartType != prior.StartType
}

// Revert implements Action.
func (a *service) Revert(ctx context.Context, prior Prior) error {
	s, err := a.d.Service(ctx, a.spec.GetName())
	if err != nil {
		return wrapf("service-unreadable", err, "service %s", a.spec.GetName())
	}
	if !s.Present || prior.Service == nil || !prior.Service.Present {
		return nil
	}
	want := *prior.Service
	switch {
	case a.theirs(s, prior.Service): // only what nobody else knows of
		want = s
		want.RecoverOnError = prior.Service.RecoverOnError
	case a.stoppedBy() != nil: // it comes back with what it depends on
		want.State = s.State
	}
	if s != want {
		if err := a.d.SetService(ctx, a.spec.GetName(), want); err != nil {
			return wrapf("service-failed", err, "service %s", a.spec.GetName())
		}
	}
	if want.State != Running {
		return nil
	}
	return a.startDependents(ctx, prior.Dependents)
}

// startDependents starts again what was stopped with the service, last stopped first. One that is disabled now is somebody
// else's, or held by another action.
func (a *service) startDependents(ctx context.Context, names []string) error {
	for i := len(names) - 1; i >= 0; i-- {
		d, err := a.d.Service(ctx, names[i])
		if err != nil {
			return wrapf("service-unreadable", err, "service %s", names[i])
		}
		if !d.Present || d.State == Running || d.StartType == StartDisabled {
			continue
		}
		d.State = Running
		if err := a.d.SetService(ctx, names[i], d); err != nil {
			return wrapf("service-failed", err, "service %s, which depends on %s", names[i], a.spec.GetName())
		}
	}
	return nil
}

// VerifyReverted implements Action.
func (a *service) VerifyReverted(ctx context.Context, prior Prior) (string, error) {
	s, err := a.d.Service(ctx, a.spec.GetName())
	if err != nil {
		return "", wrapf("service-unreadable", err, "service %s", a.spec.GetName())
	}
	if !s.Present || prior.Service == nil || !prior.Service.Present || a.theirs(s, prior.Service) ||
		s.StartType == prior.Service.StartType && (s.State == prior.Service.State || s.State == Running || a.stoppedBy() != nil) {
		return "", nil
	}
	return fmt.Sprintf("service %s is still %s", a.spec.GetName(), s), nil
}

// appPool is the app_pool action.
type appPool struct {
	p    *Pass
	ref  Ref
	spec *stopgapv1.AppPoolAction
}

var _ Action = (*appPool)(nil)

// Validate implements Action.
func (a *appPool) Validate(context.Context) error {
	if a.p.serverErr != nil {
		return a.p.serverErr
	}
	return a.p.newErr
}

func (p Pool) autoStart() bool { return p.AutoStart == nil || *p.AutoStart }

func (p Pool) String() string {
	if !p.Present {
		return "not present"
	}
	return fmt.Sprintf("%s, autoStart %t", strings.ToLower(p.State), p.autoStart())
}

func samePool(a, b Pool) bool {
	return a.State == b.State && (a.AutoStart == nil) == (b.AutoStart == nil) && a.autoStart() == b.autoStart()
}

func stoppedPool(p Pool) bool { return p.State == Stopped && !p.autoStart() }

func (a *appPool) find(ctx context.Context) (Finding, Pool, error) {
	p, err := a.p.d.Pool(ctx, a.spec.GetName())
	if err != nil {
		return Finding{}, p, wrapf("pool-unreadable", err, "application pool %s", a.spec.GetName())
	}
	f := Finding{Detail: fmt.Sprintf("application pool %s is %s", a.spec.GetName(), p),
		Evidence: []*stopgapv1.Evidence{evidence(a.ref.Action, "application pool "+a.spec.GetName(), p.String(), nil)}}
	switch {
	case !p.Present:
		f.Standing = NotPresent
	case stoppedPool(p):
		f.Standing = InPlace
	default:
		f.Standing = Absent
	}
	return f, p, a.elsewhere(ctx, &f)
}

// elsewhere looks for applications of the pool's kind that another pool serves today: stopping this one does not stop them. The
// error means that it would stop none of them.
func (a *appPool) elsewhere(ctx context.Context, f *Finding) error {
	if a.p.server == nil {
		return nil
	}
	apps := a.p.server.AppsOfKind(a.spec.GetName())
	for _, app := range apps {
		if strings.EqualFold(app.Pool, a.spec.GetName()) {
			continue
		}
		other, err := a.p.d.Pool(ctx, app.Pool)
		if err != nil {
			return wrapf("pool-unreadable", err, "application pool %s", app.Pool)
		}
		found := fmt.Sprintf("runs in application pool %s, which is %s", app.Pool, other)
		f.Evidence = append(f.Evidence, evidence(a.ref.Action, "application "+app.String(), found, nil))
		if other.Present && other.State != Stopped {
			f.Gaps = append(f.Gaps, fmt.Sprintf("application %s %s: this mitigation stops %s only", app, found, a.spec.GetName()))
		}
	}
	if len(apps) > 0 && len(f.Gaps) == len(apps) || f.Standing == NotPresent && len(f.Gaps) > 0 {
		return failf("pool-elsewhere", "stopping application pool %s stops nothing that it is for: %s", a.spec.GetName(), strings.Join(f.Gaps, "; "))
	}
	return nil
}

// Plan implements Action.
func (a *appPool) Plan(ctx context.Context) (Plan, error) {
	f, p, err := a.find(ctx)
	if err != nil {
		return Plan{}, err
	}
	pl := Plan{Now: f, Prior: Prior{Pool: &p}}
	if a.p.server != nil {
		for _, app := range a.p.server.AppsOfPool(a.spec.GetName()) {
			pl.Touches = append(pl.Touches, "stops "+app.String())
		}
	}
	return pl, nil
}

// Apply implements Action.
func (a *appPool) Apply(ctx context.Context) error {
	p, err := a.p.d.Pool(ctx, a.spec.GetName())
	if err != nil || !p.Present || stoppedPool(p) {
		return wrapf("pool-unreadable", err, "application pool %s", a.spec.GetName())
	}
	no := false
	return wrapf("pool-failed", a.p.d.SetPool(ctx, a.spec.GetName(), Pool{Present: true, AutoStart: &no, State: Stopped}),
		"application pool %s", a.spec.GetName())
}

// Verify implements Action.
func (a *appPool) Verify(ctx context.Context) (Finding, error) {
	f, _, err := a.find(ctx)
	return f, err
}

// Revert implements Action.
func (a *appPool) Revert(ctx context.Context, prior Prior) error {
	p, err := a.p.d.Pool(ctx, a.spec.GetName())
	if err != nil {
		return wrapf("pool-unreadable", err, "application pool %s", a.spec.GetName())
	}
	if !p.Present || prior.Pool == nil || !prior.Pool.Present || samePool(p, *prior.Pool) {
		return nil
	}
	return wrapf("pool-failed", a.p.d.SetPool(ctx, a.spec.GetName(), *prior.Pool), "application pool %s", a.spec.GetName())
}

// VerifyReverted implements Action.
func (a *appPool) VerifyReverted(ctx context.Context, prior Prior) (string, error) {
	p, err := a.p.d.Pool(ctx, a.spec.GetName())
	if err != nil {
		return "", wrapf("pool-unreadable", err, "application pool %s", a.spec.GetName())
	}
	if !p.Present || prior.Pool == nil || !prior.Pool.Present ||
		p.autoStart() == prior.Pool.autoStart() && (p.State == prior.Pool.State || p.State == Started) {
		return "", nil
	}
	return fmt.Sprintf("application pool %s is still %s", a.spec.GetName(), p), nil
}

// StopOrder is the services that depend on one, directly or not, in the order in which they are to be stopped: none before
// what depends on it. direct lists the running services that directly depend on one. A circle ends where it closes.
func StopOrder(name string, direct func(name string) []string) []string {
	var out []string
	seen := map[string]bool{strings.ToLower(name): true}
	var visit func(string)
	visit = func(n string) {
		next := direct(n)
		sort.Strings(next)
		for _, d := range next {
			if !seen[strings.ToLower(d)] {
				seen[strings.ToLower(d)] = true
				visit(d)
				out = append(out, d)
			}
		}
	}
	visit(name)
	return out
}
