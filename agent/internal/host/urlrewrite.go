package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// urlRewrite is the url_rewrite action.
type urlRewrite struct {
	p       *Pass
	ref     Ref
	spec    *stopgapv1.UrlRewriteAction
	rules   effect.Rules
	attacks []effect.Attack
	// chosen is where Plan decided to put the rules; nil when they stay as they are.
	chosen *placement
	// foreign: Plan found that somebody else's rules do the same.
	foreign bool
	// left says which applications do not get the rules in their file, and why.
	left []string
}

var _ Action = (*urlRewrite)(nil)

// sites are the web sites that the action is for.
func (a *urlRewrite) sites() []*iisconfig.Site {
	if a.p.server == nil {
		return nil
	}
	if name := a.spec.GetLocation().GetSite(); name != "EXCHANGE_FRONT_END" {
		if s := a.p.server.Site(name); s != nil {
			return []*iisconfig.Site{s}
		}
		return nil
	}
	var out []*iisconfig.Site
	for _, s := range a.p.server.FrontEndSites() {
		if s.App(a.spec.GetLocation().GetPath()) != nil {
			out = append(out, s)
		}
	}
	return out
}

// targets finds the applications the action is for.
func (a *urlRewrite) targets() (out []*iisconfig.App, err error) {
	if a.p.serverErr != nil {
		return nil, a.p.serverErr
	}
	loc := a.spec.GetLocation()
	sites := a.sites()
	switch {
	case len(sites) > 0:
	case loc.GetSite() == "EXCHANGE_FRONT_END" && len(a.p.server.FrontEndSites()) > 0:
		return nil, failf("no-application", "site %q has no application %s", a.p.server.FrontEndSites()[0].Name, loc.GetPath())
	case loc.GetSite() == "EXCHANGE_FRONT_END":
		return nil, failf("no-site", `no site has an application below FrontEnd\HttpProxy`)
	default:
		return nil, failf("no-site", "site %q does not exist", loc.GetSite())
	}
	for _, s := range sites {
		app := s.App(loc.GetPath())
		if app == nil || app.Dir == "" {
			return nil, failf("no-application", "site %q has no application %s", s.Name, loc.GetPath())
		}
		out = append(out, app)
	}
	out, a.left, err = a.editable(out)
	return out, err
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
	if !a.p.server.Registers() {
		return failf("config-locked", "URL Rewrite is not registered in IIS (no section group system.webServer/rewrite)")
	}
	if runs, why := a.p.diskModel().At(apps[0].Site, "/").Loaded(); !runs {
		return failf("config-locked", "URL Rewrite is registered in IIS, and its module is not loaded: %s", why)
	}
	for _, app := range apps {
		if err := a.p.bodies(a.spec, app); err != nil {
			return err
		}
	}
	return nil
}

// bodies refuses to rewrite the bodies that the front end, a proxy, passes on: IIS answers 500.52 for compressed ones.
func (p *Pass) bodies(spec *stopgapv1.UrlRewriteAction, app *iisconfig.App) error {
	if spec.GetOutbound() == "" {
		return nil
	}
	sec, _, err := urlrewrite.ParseFragment([]byte(spec.GetOutbound()), true)
	if err != nil {
		return err
	}
	for _, s := range p.server.FrontEndSites() {
		if n := sec.RewritesBody(); n != "" && s == app.Site {
			return failf("body-rewriting", "rule %q rewrites response bodies at %s, which passes on compressed ones: IIS would answer 500.52", n, app)
		}
	}
	return nil
}

// Plan implements Action. It reads what is there, judges where that is in effect, and, if something is missing, finds out where
// the rules would have to go.
func (a *urlRewrite) Plan(context.Context) (Plan, error) {
	apps, err := a.targets()
	if err != nil {
		return Plan{}, err
	}
	home, err := a.at(apps, nil)
	if err != nil {
		return Plan{}, err
	}
	refs := union(home.refs(), a.held())
	standing, everywhere, err := a.inspect(refs, home)
	if err != nil {
		return Plan{}, err
	}
	now := a.judge(a.p.diskModel(), effect.Ours)
	pl := Plan{Now: standing}
	pl.Prior.Files = refs
	if standing.Standing == InPlace && everywhere && now.full() && !now.closed() {
		pl.Now.Evidence = append(pl.Now.Evidence, now.evidence(a.ref.Action)...)
		return pl, a.touches(&pl)
	}
	best, refused := a.best(apps)
	if standing.Standing != InPlace && len(a.held()) == 0 {
		bare, err := a.p.bareModel()
		if err != nil {
			return pl, err
		}
		theirs := a.judge(bare, effect.Foreign)
		enough := false
		if refused != nil { // ours would be nowhere: theirs have to be everywhere
			enough = theirs.full() && len(theirs.elsewhere()) == 0
		} else {
			enough = theirs.ok() > 0 && !best.cover.betterThan(theirs) && a.twins(theirs, best.cover)
		}
		if enough {
			a.foreign = true
			pl.Now = Finding{Standing: Foreign, Detail: "rules of other names do the same, in effect wherever ours would be; found, not ours", Gaps: texts(theirs.gaps())}
			pl.Now.Evidence = append(a.foreignEvidence(bare), theirs.evidence(a.ref.Action)...)
			pl.Prior.Files = home.refs()
			return pl, a.touches(&pl)
		}
	}
	if (refused != nil || best.cover.ok() == 0) && now.ok() == 0 {
		harm, err := a.harm()
		if err != nil {
			return pl, err
		}
		if harm != nil {
			return pl, harm
		}
	}
	if refused != nil {
		return pl, refused
	}
	if best.cover.ok() == 0 {
		return pl, failf("no-effect", "the rules would be in effect nowhere: %s", reasons(best.cover.checks))
	}
	if standing.Standing == InPlace && (!best.cover.betterThan(now) || !a.changes(best)) {
		pl.Now.Gaps = a.gaps(now)
		pl.Now.Evidence = append(pl.Now.Evidence, now.evidence(a.ref.Action)...)
		return pl, a.touches(&pl)
	}
	a.chosen = &best
	pl.Prior.Files = union(best.refs(), a.held())
	pl.Now.Gaps = a.gaps(best.cover)
	if standing.Standing == InPlace { // it is there, and something keeps it from having its effect
		pl.Now.Standing, pl.Now.Detail = Altered, "in place and without effect: "+reasons(append(now.checks, now.elsewhere()...))
	}
	pl.Now.Evidence = append(pl.Now.Evidence, now.evidence(a.ref.Action)...)
	return pl, a.touches(&pl)
}

// gaps lists what gets through, and then the applications whose file could not be given the rules.
func (a *urlRewrite) gaps(c coverage) []string {
	out := texts(c.gaps())
	if len(out) > 0 {
		out = append(out, a.left...)
	}
	return out
}

// harm says where IIS refuses the configuration because of our rules, which it took when they were written: somebody has locked
// the section since, for example. nil where it does not, or where it would refuse it without them too.
func (a *urlRewrite) harm() (*Error, error) {
	bare, err := a.p.bareModel()
	if err != nil {
		return nil, err
	}
	for _, ref := range a.held() {
		dir, _ := SplitRef(ref)
		for _, r := range a.p.diskModel().Readers(dir) {
			bad := r.Place.Invalid()
			if bad == nil || !r.Own && !r.Place.App.IsExchange() || bare.At(r.Place.Site, r.Place.Path).Invalid() != nil {
				continue
			}
			return &Error{Code: refusedCode(bad), TakeOff: true,
				Err: fmt.Errorf("%s%s answers 500.19%s because of our rules: %w", r.Place.Site.Name, r.Place.Path, hresult(bad), bad)}, nil
		}
	}
	return nil, nil //nolint:nilnil // no harm
}

// twins reports whether somebody else's rules are reached wherever ours would be.
func (a *urlRewrite) twins(theirs, ours coverage) bool {
	some := false
	for i, x := range theirs.reach {
		some = some || x.OK
		if ours.reach[i].OK && !x.OK {
			return false
		}
	}
	return some
}

// foreignEvidence names where somebody else's rules are.
func (a *urlRewrite) foreignEvidence(m *iisconfig.Model) []*stopgapv1.Evidence {
	var out []*stopgapv1.Evidence
	seen := map[string]bool{}
	for _, site := range a.sites() {
		p := m.At(site, a.spec.GetLocation().GetPath())
		in, outb, ok := effect.Foreign(p, a.rules)
		if !ok {
			continue
		}
		for section, names := range map[string][]string{"rules": in, "outboundRules": outb} {
			for _, n := range names {
				if it := p.Section(section).Item(n); it != nil && !seen[it.Source.String()] {
					seen[it.Source.String()] = true
					out = append(out, evidence(a.ref.Action, it.Source.File, fmt.Sprintf("rule %q in line %d does the same; found, not ours", n, it.Source.Line), nil))
				}
			}
		}
	}
	return out
}

// touches lists what restarts when the files of a plan are written, and the directories that decide about the effect.
func (a *urlRewrite) touches(pl *Plan) error {
	seen := map[string]bool{}
	for _, site := range a.sites() {
		for _, app := range site.Apps {
			if app.Dir != "" && (app.IsFrontEnd() || app.Path == "/") {
				pl.Watch = append(pl.Watch, app.Dir)
			}
		}
	}
	for _, ref := range pl.Prior.Files {
		dir, _ := SplitRef(ref)
		for _, r := range a.p.diskModel().Readers(dir) {
			if t := "restarts " + r.Place.App.String(); !seen[t] {
				seen[t] = true
				pl.Touches = append(pl.Touches, t)
			}
		}
	}
	return nil
}

// held are the files in which the journal says that something of the action may be.
func (a *urlRewrite) held() []string {
	var out []string
	for _, c := range a.p.inForce {
		if c.Ref == a.ref {
			out = append(out, c.Prior.Files...)
		}
	}
	return out
}

func union(a, b []string) []string {
	out := append([]string(nil), a...)
	for _, x := range b {
		found := false
		for _, y := range out {
			found = found || fileKey(x) == fileKey(y)
		}
		if !found {
			out = append(out, x)
		}
	}
	return out
}

// inspect compares the files that the rules belong in with the rules. A rule of our name with other content is a conflict.
// Rules that are ours may be in applications' own files instead, and the journal also names files that they are no longer
// in: then they are in place, though not everywhere, and where they are in effect decides.
func (a *urlRewrite) inspect(refs []string, home placement) (out Finding, everywhere bool, err error) {
	present, absent, changed := Finding{}, Finding{}, Finding{}
	mine := len(a.held()) > 0
	for _, ref := range refs {
		f, err := a.p.load(ref)
		if err != nil {
			return out, false, err
		}
		frag := home.frag(ref)
		if frag == nil { // an application's own file: it has all of the rules
			w := whole(a.spec, f.root())
			frag = &w
		}
		in, err := iis.Inspect(f.content(), *frag)
		if err == nil && !mine && in.Standing != iis.Absent && len(f.known) > 0 {
			// Rules of ours (an earlier revision, that does the same or has the same names) don't count as somebody else's.
			var base []byte
			if base, err = f.base(); err == nil {
				in, err = iis.Inspect(base, *frag)
			}
		}
		if err != nil {
			return out, false, failf("config-malformed", "%s: %v", f.name, err)
		}
		fd, ev := findingOf(in), a.evidence(f.name, in.Detail, f.content())
		switch {
		case fd.Standing == Altered && !mine:
			return out, false, &Error{Code: "name-taken", Conflict: true,
				Err: fmt.Errorf("%s: %s and is not ours: remove or rename it", f.name, in.Detail)}
		case fd.Standing == Altered:
			changed = worse(changed, fd, ev)
		case fd.Standing == Absent:
			absent = worse(absent, fd, ev)
		default:
			present = worse(present, fd, ev)
		}
	}
	switch {
	case len(changed.Evidence) > 0:
		changed.Evidence = append(append(changed.Evidence, absent.Evidence...), present.Evidence...)
		return changed, false, nil
	case len(absent.Evidence) == 0:
		return present, true, nil
	case mine && len(present.Evidence) > 0:
		return present, false, nil
	}
	absent.Evidence = append(absent.Evidence, present.Evidence...)
	return absent, false, nil
}

func (a *urlRewrite) evidence(name, found string, data []byte) *stopgapv1.Evidence {
	sum := sha256.Sum256(data)
	return evidence(a.ref.Action, name, found, sum[:])
}

func findingOf(in iis.Inspection) Finding {
	st := map[iis.Standing]Standing{iis.InPlace: InPlace, iis.Absent: Absent, iis.Altered: Altered}[in.Standing]
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

// Apply implements Action: it stages the rules where Plan found that they are in effect, and looks once more that IIS would
// take the edit.
func (a *urlRewrite) Apply(context.Context) error {
	apps, err := a.targets()
	if err != nil {
		return err
	}
	if a.chosen == nil {
		best, err := a.best(apps)
		if err != nil {
			return err
		}
		a.chosen = &best
	}
	if err := a.stage(*a.chosen); err != nil {
		a.p.Unstage(a.ref)
		return err
	}
	return nil
}

// Verify implements Action: it reads the files again, judges where the rules are in effect now, and asks IIS if that was not
// done when they were written.
func (a *urlRewrite) Verify(ctx context.Context) (Finding, error) {
	apps, err := a.targets()
	if err != nil {
		return Finding{}, err
	}
	if a.chosen == nil {
		return a.verifyAsFound(ctx, apps)
	}
	out := Finding{}
	for _, s := range a.chosen.spots {
		data, name, err := a.p.disk.ConfigFile(s.dir, s.file)
		if errors.Is(err, fs.ErrNotExist) {
			return out, failf("not-in-place", "%s is not there", name)
		}
		if err != nil {
			return Finding{}, failf("config-unreadable", "%v", err)
		}
		in, err := iis.Inspect(data, s.frag)
		if err != nil {
			return Finding{}, failf("config-malformed", "%s: %v", name, err)
		}
		out = worse(out, findingOf(in), a.evidence(name, in.Detail, data))
		if in.Standing == iis.InPlace {
			f, ok := a.p.files[fileKey(FileRef(s.dir, s.file))]
			if ok && f.asked {
				continue
			}
			if err := a.p.askIIS(ctx, s.dir); err != nil { // a crash came between writing and asking
				return out, failf("config-refused", "%v", err)
			}
			if ok {
				f.asked = true
			}
		}
	}
	return out, a.verifyEffect(&out, effect.Ours)
}

// verifyAsFound is Verify for rules that Plan left as they were: ours, wherever they are, or somebody else's.
func (a *urlRewrite) verifyAsFound(ctx context.Context, apps []*iisconfig.App) (Finding, error) {
	if a.foreign {
		out := Finding{Standing: Foreign, Detail: "rules of other names do the same; found, not ours"}
		return out, a.verifyEffect(&out, effect.Foreign)
	}
	home, err := a.at(apps, nil)
	if err != nil {
		return Finding{}, err
	}
	refs := union(home.refs(), a.held())
	out, _, err := a.inspect(refs, home)
	if err != nil || out.Standing != InPlace {
		return out, err
	}
	for _, ref := range refs {
		f, err := a.p.load(ref)
		if err != nil || f.asked || f.disk == nil {
			continue
		}
		if err := a.p.askIIS(ctx, f.dir); err != nil { // a crash came between writing and asking
			return out, failf("config-refused", "%v", err)
		}
		f.asked = true
	}
	return out, a.verifyEffect(&out, effect.Ours)
}

// verifyEffect adds to a finding where the rules are in effect. Rules that are so nowhere are an error.
func (a *urlRewrite) verifyEffect(out *Finding, match effect.Match) error {
	cover := a.judge(a.p.diskModel(), match)
	out.Evidence = append(out.Evidence, cover.evidence(a.ref.Action)...)
	out.Gaps = a.gaps(cover)
	if out.OK() && cover.ok() == 0 {
		return failf("no-effect", "in place and in effect nowhere: %s", reasons(cover.checks))
	}
	return nil
}

// Revert implements Action.
func (a *urlRewrite) Revert(_ context.Context, prior Prior) error {
	for _, ref := range prior.Files {
		f, err := a.p.load(ref)
		if err != nil {
			var e *Error
			if errors.As(err, &e) && e.Code == "config-missing" {
				continue // with the file gone, so are our rules
			}
			a.p.Unstage(a.ref)
			return err
		}
		f.take(a.ref, whole(a.spec, f.root()))
	}
	return nil
}

// VerifyReverted implements Action.
func (a *urlRewrite) VerifyReverted(_ context.Context, prior Prior) (string, error) {
	for _, ref := range prior.Files {
		dir, file := SplitRef(ref)
		data, name, err := a.p.d.ConfigFile(dir, file)
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
		root := ""
		if file != iisconfig.WebConfig {
			root = doc.Root.Name
		}
		var kept []iis.Fragment
		if f, ok := a.p.files[fileKey(ref)]; ok {
			kept = fragments(without(f.staged, a.ref))
			for _, e := range f.known {
				if e.ref != a.ref && len(without(f.taken, e.ref)) == len(f.taken) {
					kept = append(kept, e.frag)
				}
			}
		}
		if left := iis.Left(doc, whole(a.spec, root), kept...); left != "" {
			return fmt.Sprintf("%s still has %s", name, left), nil
		}
	}
	return "", nil
}
