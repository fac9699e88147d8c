package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// spot is one place that rules go to: a fragment in a file.
type spot struct {
	dir, file string
	frag      iis.Fragment
}

// placement is where the rules of an action go, and where they are in effect then.
type placement struct {
	spots []spot
	cover coverage
}

// refs are the files of a placement, each once.
func (pl placement) refs() []string {
	var out []string
	for _, s := range pl.spots {
		out = union(out, []string{FileRef(s.dir, s.file)})
	}
	return out
}

// frag is all that a placement puts into one file; nil when it puts nothing there.
func (pl placement) frag(ref string) *iis.Fragment {
	var out *iis.Fragment
	for _, s := range pl.spots {
		if fileKey(FileRef(s.dir, s.file)) != fileKey(ref) {
			continue
		}
		if out == nil {
			f := s.frag
			out = &f
			continue
		}
		out.Inbound, out.Outbound = out.Inbound+s.frag.Inbound, out.Outbound+s.frag.Outbound
	}
	return out
}

// at places the rules in the own files of applications. scope is where in a file they go unless the file has the section
// elsewhere already; nil: inside the element that children don't inherit where an application below shares the directory and
// would read the same rules twice, outside where they are to be inherited.
func (a *urlRewrite) at(apps []*iisconfig.App, scope *iis.Scope) (placement, error) {
	var pl placement
	seen := map[string]bool{}
	for _, app := range apps {
		if dir := a.p.disk.Canonical(app.Dir); seen[dir] {
			continue
		} else {
			seen[dir] = true
		}
		f, err := a.p.load(app.Dir)
		if err != nil {
			return pl, err
		}
		if f.disk == nil && app.Path != "/" {
			return pl, failf("config-missing", "%s is missing; nothing was created", f.name)
		}
		base, err := f.base()
		if err != nil {
			return pl, failf("config-malformed", "%s: %v", f.name, err)
		}
		doc, err := xmldoc.Parse(base)
		if err != nil {
			return pl, failf("config-malformed", "%s: %v", f.name, err)
		}
		if odd := iisconfig.OddLocation(doc); odd != "" {
			return pl, failf("config-odd", "%s: %s; the file is not touched", f.name, odd)
		}
		in := iis.Outside
		if a.p.diskModel().SharesDirBelow(app) != "" {
			in = iis.Inside
		}
		if scope != nil {
			in = *scope
		}
		spots, err := a.spots(app, doc, f.name, in)
		if err != nil {
			return pl, err
		}
		pl.spots = append(pl.spots, spots...)
	}
	return pl, nil
}

// spots places inbound and outbound rules in one directory. IIS refuses a file that has a section both inside and outside of a
// path-less <location>: where it has the section already, the rules go there. A section that is kept in another file is edited
// there.
func (a *urlRewrite) spots(app *iisconfig.App, doc *xmldoc.Document, name string, in iis.Scope) ([]spot, error) {
	var out []spot
	for _, part := range []struct {
		section string
		frag    iis.Fragment
	}{{"rules", iis.Fragment{Inbound: a.spec.GetInbound()}}, {"outboundRules", iis.Fragment{Outbound: a.spec.GetOutbound()}}} {
		if part.frag.Inbound == "" && part.frag.Outbound == "" {
			continue
		}
		s := spot{dir: app.Dir, file: iisconfig.WebConfig, frag: part.frag}
		s.frag.Scope = in
		scope, source, line, found := iis.SectionAt(doc, part.section)
		if found {
			s.frag.Scope = scope
		}
		if source != "" {
			if !iisconfig.SourceFile(source) {
				return nil, failf("config-source", "%s, line %d: configSource=%q of <%s> is not a file of the same directory or below it", name, line, source, part.section)
			}
			s.file, s.frag.Scope, s.frag.Root = source, iis.Outside, part.section
			f, err := a.p.load(FileRef(app.Dir, source))
			if err != nil {
				return nil, failf("config-source", "%s, line %d: <%s> is kept in another file (configSource): %v", name, line, part.section, err)
			}
			if f.root() != part.section {
				return nil, failf("config-source", "%s: root element is <%s>; configSource of <%s> needs <%s>", f.name, f.root(), part.section, part.section)
			}
		}
		if n := len(out); n > 0 && out[n-1].file == s.file && out[n-1].frag.Scope == s.frag.Scope && s.frag.Root == "" {
			out[n-1].frag.Outbound = s.frag.Outbound
			continue
		}
		out = append(out, s)
	}
	return out, nil
}

// editable leaves out the applications whose file can't be edited, so that one site does not keep the others unprotected. It
// returns the reason for each of them. Where none can be edited, the first reason is the error.
func (a *urlRewrite) editable(apps []*iisconfig.App) (able []*iisconfig.App, reasons []string, err error) {
	for _, app := range apps {
		if _, e := a.at([]*iisconfig.App{app}, nil); e != nil {
			reasons = append(reasons, app.String()+" is left as it is: "+e.Error())
			if err == nil {
				err = e
			}
			continue
		}
		able = append(able, app)
	}
	if len(able) > 0 {
		err = nil
	}
	return able, reasons, err
}

// accepting leaves out the applications where IIS would refuse the rules, if it takes them elsewhere.
func (a *urlRewrite) accepting(before *iisconfig.Model, apps []*iisconfig.App) []*iisconfig.App {
	var able []*iisconfig.App
	for _, app := range apps {
		pl, err := a.at([]*iisconfig.App{app}, nil)
		if err != nil {
			continue
		}
		others, err := a.try(before, &pl)
		if err == nil || len(others) > 0 {
			able = append(able, app)
			continue
		}
		a.left = append(a.left, app.String()+" is left as it is: "+err.Error())
	}
	if len(able) == 0 {
		return apps
	}
	return able
}

// stage puts a placement into the files, and takes the rules out of every other file that has them.
func (a *urlRewrite) stage(pl placement) error {
	a.p.Unstage(a.ref)
	for _, ref := range union(pl.refs(), a.held()) {
		f, err := a.p.load(ref)
		if err != nil {
			return err
		}
		var frags []iis.Fragment
		for _, s := range pl.spots {
			if fileKey(FileRef(s.dir, s.file)) == fileKey(ref) {
				frags = append(frags, s.frag)
			}
		}
		f.put(a.ref, whole(a.spec, f.root()), frags...)
	}
	return nil
}

// bare stages that nothing of the action is there, and composes that.
func (a *urlRewrite) bare() (*iisconfig.Model, error) {
	if err := a.stage(placement{}); err != nil {
		return nil, err
	}
	return a.p.stagedModel(), nil
}

// maxOwnFiles bounds how many applications get the rules in their own file besides.
const maxOwnFiles = 32

// best finds where the rules have to go. First the file of the action's location. Where attack requests still get through,
// because an application does not inherit the rules, its own file too. Where only somebody else's application would break by
// inheriting them, the own files of Exchange's applications instead. Nothing stays staged. The error says what IIS would
// refuse, when there is no way that it accepts.
func (a *urlRewrite) best(apps []*iisconfig.App) (placement, error) {
	defer a.p.Unstage(a.ref)
	for _, old := range a.superseded() {
		defer a.p.Unstage(old.Ref)
		for _, ref := range old.Prior.Files {
			if f, err := a.p.load(ref); err == nil {
				f.take(old.Ref, whole(old.Spec.GetUrlRewrite(), f.root()))
			}
		}
	}
	before, err := a.bare()
	if err != nil {
		return placement{}, err
	}
	if len(apps) > 1 {
		apps = a.accepting(before, apps)
	}
	var best placement
	var refused error
	found := false
	tried := map[string]bool{}
	for _, scope := range []*iis.Scope{nil, scopeOf(iis.Outside), scopeOf(iis.Inside)} {
		pl, err := a.at(apps, scope)
		if err != nil {
			return placement{}, err
		}
		if k := fmt.Sprint(pl.spots); tried[k] {
			continue
		} else {
			tried[k] = true
		}
		others, err := a.try(before, &pl)
		if len(others) > 0 {
			own, oerr := a.at(a.ownFiles(), scopeOf(iis.Inside))
			if oerr == nil {
				pl = own
				if others, err = a.try(before, &pl); err == nil && len(others) > 0 {
					err = others[0]
				}
			} else {
				err = oerr
			}
		}
		if err != nil && scope == nil {
			return placement{}, err
		}
		if err != nil {
			if refused == nil {
				refused = err
			}
			continue
		}
		pl = a.lean(before, apps, a.widen(before, pl))
		if !found || pl.cover.betterThan(best.cover) {
			best, found = pl, true
		}
		if best.cover.ok() > 0 {
			break // the other scopes are only for where the rules would have no effect at all
		}
	}
	if found {
		return best, nil // where it is in effect nowhere, its own reasons say more than why another scope is refused
	}
	return placement{}, refused
}

// superseded are the changes of other revisions of the same mitigation. They go in the same step, so that the rules are judged
// without them.
func (a *urlRewrite) superseded() []Change {
	var out []Change
	for _, c := range a.p.inForce {
		if c.Ref.Mitigation == a.ref.Mitigation && c.Ref.Revision != a.ref.Revision && c.Spec.GetUrlRewrite() != nil {
			out = append(out, c)
		}
	}
	return out
}

func scopeOf(s iis.Scope) *iis.Scope { return &s }

// ownFiles returns Exchange's front-end applications at or below the action's location. The rules go inside the element that
// applications below do not inherit, so that none of them has the rules twice.
func (a *urlRewrite) ownFiles() []*iisconfig.App {
	var out []*iisconfig.App
	for _, site := range a.sites() {
		for _, app := range site.Apps {
			if app.IsFrontEnd() && iisconfig.IsBelow(app.Path, a.spec.GetLocation().GetPath()) {
				out = append(out, app)
			}
		}
	}
	return out
}

// try stages a placement and judges it: err is what IIS would newly refuse at an Exchange application or at a place that reads
// an edited file itself, others are somebody else's applications that would break by inheriting the rules.
func (a *urlRewrite) try(before *iisconfig.Model, pl *placement) (others []error, err error) {
	if err := a.stage(*pl); err != nil {
		return nil, err
	}
	after := a.p.stagedModel()
	var dirs []string
	for _, s := range pl.spots {
		dirs = append(dirs, s.dir)
	}
	others, err = a.p.breaks(before, after, dirs, a.rules)
	if err == nil {
		err = a.breaksAttacked(before, after)
	}
	if err == nil {
		pl.cover = a.judge(after, effect.Ours)
	}
	return others, err
}

// breaksAttacked looks at the directories that attack requests go to, which are no applications of their own.
func (a *urlRewrite) breaksAttacked(before, after *iisconfig.Model) error {
	for _, site := range a.sites() {
		for _, x := range a.attacks {
			bad := after.At(site, x.Path).Invalid()
			if bad != nil && before.At(site, x.Path).Invalid() == nil {
				return failf(refusedCode(bad), "%s%s would answer 500.19%s: %v; the file was not touched", site.Name, x.Path, hresult(bad), bad)
			}
		}
	}
	return nil
}

// widen adds the own files of applications that attack requests go to and that do not have the rules in effect.
func (a *urlRewrite) widen(before *iisconfig.Model, pl placement) placement {
	tried := map[string]bool{}
	for range maxOwnFiles {
		var next *iisconfig.App
		for _, g := range pl.cover.gaps() {
			able := g.Cause == effect.CauseRemoved || g.Cause == effect.CauseNotInherited || g.Cause == effect.CauseAbsent
			if able && g.App != nil && g.App.Dir != "" && g.App.IsFrontEnd() && !tried[g.App.String()] {
				next = g.App
				break
			}
		}
		if next == nil {
			break
		}
		tried[next.String()] = true
		more, err := a.at([]*iisconfig.App{next}, nil)
		if err != nil {
			continue // that file can't be edited: the gap stays
		}
		wider := placement{spots: append(append([]spot(nil), pl.spots...), more.spots...)}
		if others, err := a.try(before, &wider); err == nil && len(others) == 0 && wider.cover.betterThan(pl.cover) {
			pl = wider
		}
	}
	return pl
}

// lean leaves a file alone that two applications, one below the other, read, where the rules are no less in effect without it.
func (a *urlRewrite) lean(before *iisconfig.Model, apps []*iisconfig.App, pl placement) placement {
	for _, app := range apps {
		if a.p.diskModel().SharesDirBelow(app) == "" {
			continue
		}
		less := placement{}
		for _, s := range pl.spots {
			if s.dir != app.Dir {
				less.spots = append(less.spots, s)
			}
		}
		if len(less.spots) == 0 || len(less.spots) == len(pl.spots) {
			continue
		}
		if others, err := a.try(before, &less); err == nil && len(others) == 0 && less.cover.ok() >= pl.cover.ok() {
			pl = less
		}
	}
	return pl
}

// changes reports whether a placement would change a file.
func (a *urlRewrite) changes(pl placement) bool {
	a.p.Unstage(a.ref)
	defer a.p.Unstage(a.ref)
	was := map[string][]byte{}
	for _, f := range a.p.files {
		was[f.ref], _ = f.rendered()
	}
	if a.stage(pl) != nil {
		return true
	}
	for _, f := range a.p.files {
		if now, err := f.rendered(); err != nil || !bytes.Equal(now, was[f.ref]) {
			return true
		}
	}
	return false
}

// breaks finds what IIS would newly refuse if the staged edits of some directories were written.
func (p *Pass) breaks(before, after *iisconfig.Model, dirs []string, rules effect.Rules) (others []error, err error) {
	for _, dir := range dirs {
		for _, r := range after.Readers(dir) {
			refused := refusal(before, r.Place, rules)
			if refused == nil {
				continue
			}
			if r.Own || r.Place.App.IsExchange() {
				return nil, refused
			}
			others = append(others, refused)
		}
	}
	return others, nil
}

// refusal says why IIS would answer requests to a place with an error that it did not answer before; nil when it would not.
func refusal(before *iisconfig.Model, place *iisconfig.Place, rules effect.Rules) error {
	where := place.Site.Name + place.Path
	bad := place.Invalid()
	if bad == nil {
		if v := effect.Unallowed(place, rules); v != "" {
			return failf("server-variable-not-allowed", "%s would answer 500.50 to every request that the rule matches: server variable %s is not in "+
				"allowedServerVariables; the file was not touched", where, v)
		}
		return nil
	}
	if was := before.At(place.Site, place.Path).Invalid(); was != nil {
		return nil //nolint:nilerr // it was so before, and is not made worse
	}
	return failf(refusedCode(bad), "%s would answer 500.19%s: %v; the file was not touched", where, hresult(bad), bad)
}

func hresult(bad *iisconfig.Invalid) string {
	if bad.HResult == iisconfig.HResultUnknown {
		return ""
	}
	return fmt.Sprintf(" (0x%08x)", bad.HResult)
}

func refusedCode(bad *iisconfig.Invalid) string {
	switch bad.HResult {
	case iisconfig.HResultLocked:
		return "config-locked"
	case iisconfig.HResultDuplicate:
		return "config-duplicate"
	}
	return "config-invalid"
}

// askIIS lets IIS read the applications that have a directory of their own. The error is what IIS refuses. That IIS can't be
// asked is no error: nothing follows from it for the file, and Look reports it.
func (p *Pass) askIIS(ctx context.Context, dir string) error {
	for _, r := range p.diskModel().Readers(dir) {
		if !r.Own {
			continue
		}
		for _, section := range witnessed {
			if r.Place.Section(section).Err != nil {
				continue // the model says that IIS refuses it, and did before
			}
			_, err := p.ask(ctx, r.Place.App.String(), section)
			if refused := (*IISError)(nil); errors.As(err, &refused) {
				return err
			}
			if err != nil {
				return nil //nolint:nilerr // it can't be asked
			}
		}
	}
	return nil
}
