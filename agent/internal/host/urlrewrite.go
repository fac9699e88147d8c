package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// urlRewrite is the url_rewrite action.
type urlRewrite struct {
	p    *Pass
	ref  Ref
	spec *stopgapv1.UrlRewriteAction
}

var _ Action = (*urlRewrite)(nil)

// targets finds the applications the action is for.
func (a *urlRewrite) targets() ([]*iisconfig.App, error) {
	if a.p.serverErr != nil {
		return nil, a.p.serverErr
	}
	loc := a.spec.GetLocation()
	var sites []*iisconfig.Site
	if loc.GetSite() == "EXCHANGE_FRONT_END" {
		if sites = a.p.server.FrontEndSites(); len(sites) == 0 {
			return nil, failf("no-site", `no site has an application below FrontEnd\HttpProxy`)
		}
	} else if s := a.p.server.Site(loc.GetSite()); s != nil {
		sites = append(sites, s)
	} else {
		return nil, failf("no-site", "site %q does not exist", loc.GetSite())
	}
	var out []*iisconfig.App
	for _, s := range sites {
		app := s.App(loc.GetPath())
		if app == nil || app.Dir == "" {
			return nil, failf("no-application", "site %q has no application %s", s.Name, loc.GetPath())
		}
		out = append(out, app)
	}
	return out, nil
}

// Validate implements Action.
func (a *urlRewrite) Validate(context.Context) error {
	apps, err := a.targets()
	if err != nil {
		return err
	}
	if a.p.newErr != nil {
		return a.p.newErr
	}
	for _, app := range apps {
		if err := a.p.bodies(a.spec, app); err != nil {
			return err
		}
		for section, xml := range map[string]string{"rules": a.spec.GetInbound(), "outboundRules": a.spec.GetOutbound()} {
			if xml == "" {
				continue
			}
			if why := a.p.server.Locked(app, section); why != "" {
				return failf("config-locked", "%s: section %s can't be set: %s", app, section, why)
			}
		}
		if _, err := a.p.load(app.Dir); err != nil {
			return err
		}
	}
	return nil
}

// bodies refuses to rewrite the bodies that the front end, a proxy, passes on: IIS answers 500.52 for compressed ones.
func (p *Pass) bodies(spec *stopgapv1.UrlRewriteAction, app *iisconfig.App) error {
	sec, _, err := fragmentRules(spec.GetOutbound(), true)
	if err != nil || sec == nil {
		return err
	}
	for _, s := range p.server.FrontEndSites() {
		if n := sec.RewritesBody(); n != "" && s == app.Site {
			return failf("body-rewriting", "rule %q rewrites response bodies at %s, which passes on compressed ones: IIS would answer 500.52", n, app)
		}
	}
	return nil
}

func (a *urlRewrite) mine(f *file) bool {
	return len(without(f.known, a.ref)) < len(f.known)
}

// Plan implements Action.
func (a *urlRewrite) Plan(ctx context.Context) (Plan, error) {
	apps, err := a.targets()
	if err != nil {
		return Plan{}, err
	}
	pl := Plan{}
	for _, app := range apps {
		f, err := a.p.load(app.Dir)
		if err != nil {
			return Plan{}, err
		}
		pl.Prior.Files = append(pl.Prior.Files, f.dir)
		frag, err := a.p.fragment(a.spec, f.dir)
		if err != nil {
			return Plan{}, err
		}
		in, err := iis.Inspect(f.disk, frag)
		if err != nil {
			return Plan{}, failf("config-malformed", "%s: %v", f.name, err)
		}
		if !a.mine(f) && in.Standing != iis.Absent && len(f.known) > 0 {
			// Rules of ours (an earlier revision, that does the same or has the same names) don't count as somebody else's.
			base, err := f.base()
			if err == nil {
				in, err = iis.Inspect(base, frag)
			}
			if err != nil {
				return Plan{}, failf("config-malformed", "%s: %v", f.name, err)
			}
		}
		fd := findingOf(in)
		if fd.Standing == Altered && !a.mine(f) {
			return Plan{}, &Error{Code: "name-taken", Conflict: true,
				Err: fmt.Errorf("%s: %s and is not ours: remove or rename it", f.name, in.Detail)}
		}
		if fd.Standing == InPlace {
			// There and equal is not yet in force: a <clear/> after it, or a child that adds it again, undoes it too.
			if err := a.p.check(f, entry{a.ref, frag}, a.p.d); err != nil {
				return Plan{}, err
			}
		}
		pl.Now = worse(pl.Now, fd, a.evidence(f.name, in.Detail, f.disk))
		for _, r := range a.p.server.Readers(f.dir) {
			pl.Touches = append(pl.Touches, "restarts "+r.String())
		}
	}
	return pl, nil
}

func (a *urlRewrite) evidence(name, found string, data []byte) *stopgapv1.Evidence {
	sum := sha256.Sum256(data)
	return evidence(a.ref.Action, name, found, sum[:])
}

func findingOf(in iis.Inspection) Finding {
	st := map[iis.Standing]Standing{iis.InPlace: InPlace, iis.Foreign: Foreign, iis.Absent: Absent, iis.Altered: Altered}[in.Standing]
	return Finding{Standing: st, Detail: in.Detail}
}

// worse combines the findings of several files.
func worse(a, b Finding, ev *stopgapv1.Evidence) Finding {
	if b.Standing >= a.Standing {
		a.Standing, a.Detail = b.Standing, ev.GetSubject()+": "+b.Detail
	}
	a.Evidence = append(a.Evidence, ev)
	return a
}

// Apply implements Action: it stages the rules and evaluates every application that reads the files.
func (a *urlRewrite) Apply(context.Context) error {
	apps, err := a.targets()
	if err != nil {
		return err
	}
	for _, app := range apps {
		f, err := a.p.load(app.Dir)
		var frag iis.Fragment
		if err == nil {
			frag, err = a.p.fragment(a.spec, f.dir)
		}
		if err == nil {
			f.stage(entry{a.ref, frag})
			err = a.p.check(f, entry{a.ref, frag}, overlay{a.p})
		}
		if err != nil {
			a.p.Unstage(a.ref)
			return err
		}
	}
	return nil
}

// Verify implements Action.
func (a *urlRewrite) Verify(ctx context.Context) (Finding, error) {
	apps, err := a.targets()
	if err != nil {
		return Finding{}, err
	}
	out := Finding{}
	for _, app := range apps {
		data, name, err := a.p.d.WebConfig(app.Dir)
		if err != nil {
			return Finding{}, failf("config-unreadable", "%v", err)
		}
		frag, err := a.p.fragment(a.spec, app.Dir)
		if err != nil {
			return Finding{}, err
		}
		in, err := iis.Inspect(data, frag)
		if err != nil {
			return Finding{}, failf("config-malformed", "%s: %v", name, err)
		}
		out = worse(out, findingOf(in), a.evidence(name, in.Detail, data))
		if in.Standing == iis.InPlace {
			if err := a.p.check(&file{dir: app.Dir, name: name}, entry{a.ref, frag}, a.p.d); err != nil {
				return out, err
			}
			if f, ok := a.p.files[key(app.Dir)]; !ok || !f.asked { // a crash came between writing and asking
				if err := a.p.askIIS(ctx, app.Dir); err != nil {
					return out, failf("config-refused", "%v", err)
				}
				if ok {
					f.asked = true
				}
			}
		}
	}
	return out, nil
}

// Revert implements Action.
func (a *urlRewrite) Revert(_ context.Context, prior Prior) error {
	for _, dir := range prior.Files {
		f, err := a.p.load(dir)
		if err != nil {
			var e *Error
			if errors.As(err, &e) && e.Code == "config-missing" {
				continue // with the file gone, so are our rules
			}
			a.p.Unstage(a.ref)
			return err
		}
		frag, err := a.p.fragment(a.spec, f.dir)
		if err != nil {
			return err
		}
		f.take(entry{a.ref, frag})
	}
	return nil
}

// VerifyReverted implements Action.
func (a *urlRewrite) VerifyReverted(_ context.Context, prior Prior) (string, error) {
	for _, dir := range prior.Files {
		data, name, err := a.p.d.WebConfig(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", failf("config-unreadable", "%v", err)
		}
		doc, err := xmldoc.Parse(data)
		if err != nil {
			return "", failf("config-malformed", "%s: %v", name, err)
		}
		var kept []iis.Fragment
		if f, ok := a.p.files[key(dir)]; ok {
			kept = fragments(without(f.staged, a.ref))
			for _, e := range f.known {
				if e.ref != a.ref && len(without(f.taken, e.ref)) == len(f.taken) {
					kept = append(kept, e.frag)
				}
			}
		}
		if left := iis.Left(doc, iis.Fragment{Inbound: a.spec.GetInbound(), Outbound: a.spec.GetOutbound()}, kept...); left != "" {
			return fmt.Sprintf("%s still has %s", name, left), nil
		}
	}
	return "", nil
}
