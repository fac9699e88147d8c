package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host/appcmdxml"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// The second witness: IIS's own merged view of the rewrite sections, compared with the model's.

// Bounds of a look. A call of appcmd takes some tenths of a second.
const (
	askWithin  = 20 * time.Second // one call
	lookWithin = 2 * time.Minute  // all calls of a look
	maxAsked   = 40               // applications
	// maxBothSides bounds the evidence about differences.
	maxBothSides = 12
)

// witnessed are the sections that IIS is asked for.
var witnessed = []string{"rules", "outboundRules"}

// Testimony is what IIS's view says about one action.
type Testimony struct {
	// Gaps are the attack requests (or applications) for which the model has the action in effect and IIS's view has not, with
	// the reason.
	Gaps []string
	// Nothing: IIS's view has the action in effect nowhere where the model has.
	Nothing bool
	// Differs is what IIS sees otherwise at the applications that decide about the action; "" when the two agree.
	Differs string
	// Evidence is both sides.
	Evidence []*stopgapv1.Evidence
	// Unanswered: IIS gave no answer about one of these applications; what it said before counts.
	Unanswered bool

	doubts map[string]string // why a check does not hold by IIS's view, by what is checked
}

// Look is what one look at IIS's view showed. It is not changed after it was made.
type Look struct {
	apps    map[string]*appLook
	by      map[Ref]Testimony
	unasked string          // why there was no answer
	over    map[string]bool // applications more than maxAsked
	moving  bool            // a file was changed while IIS was asked
	last    *Look           // the look before; nil for none, and when this one is made
}

// appLook is what IIS answered about one application.
type appLook struct {
	model, iis map[string]appcmdxml.View
	// differs has the first difference of a section; refused says that IIS can't read one.
	differs map[string]*appcmdxml.Difference
	refused string
	// silent: there is no answer.
	silent bool
}

// Of returns what the look says about an action; false when the action was no part of it.
func (l *Look) Of(ref Ref) (Testimony, bool) {
	if l == nil {
		return Testimony{}, false
	}
	t, ok := l.by[ref]
	return t, ok
}

// Unasked says why IIS was not asked about everything; "" when it was, and where there is no IIS to ask.
func (l *Look) Unasked() string {
	switch {
	case l == nil:
		return ""
	case l.unasked == "" && len(l.over) > 0:
		return fmt.Sprintf("%d applications decide about what is in force; IIS was asked about %d of them", len(l.apps)+len(l.over), len(l.apps))
	}
	return l.unasked
}

// Settled reports whether IIS answered and agrees, so that another look can wait.
func (l *Look) Settled() bool { return l == nil || l.unasked == "" && !l.moving && l.Differs() == "" }

// Differs is one line about the first difference, with both sides; "" for none.
func (l *Look) Differs() string {
	if l == nil {
		return ""
	}
	first, n := "", 0
	for _, app := range sortedKeys(l.apps) {
		for _, section := range witnessed {
			if d := l.apps[app].differs[section]; d != nil {
				if n++; n == 1 {
					first = fmt.Sprintf("%s, %s: %s (model: %s; IIS: %s)", app, section, d.Text, d.Model, d.IIS)
				}
			}
		}
	}
	if n > 1 {
		first = fmt.Sprintf("%s; and %d more", cutText(first), n-1)
	}
	return strings.ToValidUTF8(first, "?")
}

func sortedKeys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// Wrote reports whether the pass wrote a configuration file.
func (p *Pass) Wrote() bool { return p.changed }

type answer struct {
	data []byte
	err  error
}

// ask asks IIS for a section of an application, once unless a file is written in between. IIS is not asked again in this pass
// after it could not be asked: what hangs once would hang for each application.
func (p *Pass) ask(ctx context.Context, app, section string) ([]byte, error) {
	k := app + "\x00" + section
	if a, ok := p.answers[k]; ok {
		return a.data, a.err
	}
	if p.mute != nil {
		return nil, p.mute
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var a answer
	a.data, a.err = p.d.Effective(ctx, app, section)
	if refused := (*IISError)(nil); a.err != nil && !errors.As(a.err, &refused) {
		p.mute = a.err
		return nil, a.err
	}
	if p.answers == nil {
		p.answers = map[string]answer{}
	}
	p.answers[k] = a
	return a.data, a.err
}

// Look asks IIS for its own view at every application that decides about the effect of actions that are in place, and compares
// it with the model. last is the look before, nil for none: what it showed counts where IIS gives no answer now.
func (p *Pass) Look(ctx context.Context, actions []Action, last *Look) *Look {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	l := &Look{apps: map[string]*appLook{}, by: map[Ref]Testimony{}, over: map[string]bool{}, last: last}
	for _, x := range actions {
		if a, ok := x.(*urlRewrite); ok && p.server != nil {
			l.by[a.ref] = l.testimony(ctx, a)
		}
	}
	l.last = nil
	return l
}

// at asks about one application.
func (l *Look) at(ctx context.Context, p *Pass, app *iisconfig.App) *appLook {
	name := app.String()
	if s, ok := l.apps[name]; ok {
		return s
	}
	s := &appLook{model: map[string]appcmdxml.View{}, iis: map[string]appcmdxml.View{}, differs: map[string]*appcmdxml.Difference{}}
	if len(l.apps) >= maxAsked {
		l.over[name] = true
		return s
	}
	l.apps[name] = s
	place := p.diskModel().At(app.Site, app.Path)
	if place.IgnoresWebConfig() {
		return s // appcmd does not know that the pool ignores web.config files
	}
	for _, section := range witnessed {
		s.model[section] = modelView(place, section)
		d := l.section(ctx, p, s, place, section)
		if d != nil && l.stale(p, app, section, s.model[section]) {
			l.moving, s.silent, d = true, true, nil
			delete(s.iis, section)
		}
		if d != nil {
			s.differs[section] = d
		}
	}
	if l.last != nil && l.last.apps[name] != nil && s.silent && len(s.differs) == 0 {
		s.differs = l.last.apps[name].differs
	}
	return s
}

// section asks about one section and compares.
func (l *Look) section(ctx context.Context, p *Pass, s *appLook, place *iisconfig.Place, section string) *appcmdxml.Difference {
	out, err := p.ask(ctx, place.App.String(), section)
	bad := place.Section(section).Err
	refused := (*IISError)(nil)
	switch {
	case errors.Is(err, ErrNoWitness):
		return nil
	case errors.As(err, &refused) && bad != nil:
		return nil
	case errors.As(err, &refused):
		s.refused = cutText(refused.Text)
		return &appcmdxml.Difference{Text: "IIS can't read it, and the model can", Model: "it is read", IIS: s.refused}
	case err == nil:
		s.iis[section], err = appcmdxml.Parse(out, section)
	}
	if err != nil {
		s.silent, l.unasked = true, fmt.Sprintf("IIS could not be asked for %s of %s: %s", section, place.App, cutText(err.Error()))
		return nil
	}
	if bad != nil {
		return &appcmdxml.Difference{Text: "IIS reads it, and the model says that IIS refuses it", Model: cutText(bad.Error()), IIS: "it is read"}
	}
	return appcmdxml.Compare(s.model[section], s.iis[section], section)
}

// stale reports whether a file was changed while IIS was asked, so that the two sides speak of different configurations.
func (l *Look) stale(p *Pass, app *iisconfig.App, section string, was appcmdxml.View) bool {
	fresh := iisconfig.NewModel(p.server, newCached(p.d)).At(app.Site, app.Path)
	now := p.diskModel().At(app.Site, app.Path)
	return (fresh.Section(section).Err == nil) != (now.Section(section).Err == nil) || appcmdxml.Compare(was, modelView(fresh, section), section) != nil
}

func modelView(place *iisconfig.Place, section string) appcmdxml.View {
	v := appcmdxml.View{Rules: elements(place.Section(section))}
	if section == "outboundRules" {
		v.PreConditions = elements(place.Section("preConditions"))
	}
	return v
}

func elements(s *iisconfig.Section) []*xmldoc.Element {
	out := make([]*xmldoc.Element, len(s.Items))
	for i, it := range s.Items {
		out[i] = it.Element
	}
	return out
}

// testimony asks about one action.
func (l *Look) testimony(ctx context.Context, a *urlRewrite) Testimony {
	t := Testimony{doubts: map[string]string{}}
	was, _ := l.last.Of(a.ref)
	held, failed := 0, 0
	m := a.p.diskModel()
	cover := a.judge(m, effect.Ours)
	if len(a.attacks) == 0 && cover.ok() == 0 {
		cover = a.judge(m, effect.Foreign)
	}
	told := map[string]bool{}
	for i, x := range cover.checks {
		if !x.OK && !x.Closed || x.App == nil {
			continue
		}
		s := l.at(ctx, a.p, x.App)
		t.Unanswered = t.Unanswered || s.silent
		if !told[x.App.String()] {
			told[x.App.String()] = true
			t.differs(a.ref.Action, x.App.String(), s)
		}
		var attack *effect.Attack
		if n := len(a.attacks); n > 0 {
			attack = &a.attacks[i%n]
		}
		why := s.doubt(a, m, x, attack)
		if why == "" && s.silent {
			why = was.doubts[x.What]
		}
		if why != "" {
			t.doubts[x.What] = why
			t.Gaps = append(t.Gaps, fmt.Sprintf("%s: IIS sees something else at %s: %s", x.What, x.App, why))
		}
		switch {
		case why != "":
			failed++
		case x.OK:
			held++
		}
	}
	t.Nothing = failed > 0 && held == 0
	return t
}

// differs notes both sides of what differs at an application.
func (t *Testimony) differs(action, app string, s *appLook) {
	for _, section := range witnessed {
		d := s.differs[section]
		if d == nil {
			continue
		}
		if t.Differs == "" {
			t.Differs = fmt.Sprintf("%s, %s: %s", app, section, d.Text)
		}
		if len(t.Evidence) < maxBothSides {
			t.Evidence = append(t.Evidence, evidence(action, "model: "+section+" of "+app, d.Model, nil), evidence(action, "IIS: "+section+" of "+app, d.IIS, nil))
		}
	}
}

// doubt says why a check that holds by the model does not hold by IIS's view; "" when it does.
func (s *appLook) doubt(a *urlRewrite, m *iisconfig.Model, x effect.Check, attack *effect.Attack) string {
	switch {
	case len(s.differs) == 0:
		return ""
	case s.refused != "":
		return "it can't read the configuration: " + s.refused
	}
	place := m.At(x.App.Site, x.App.Path)
	if x.Closed {
		return s.unlisted(own(a.rules))
	}
	in, out, ok := effect.Ours(place, a.rules)
	if !ok {
		in, out, ok = effect.Foreign(place, a.rules)
	}
	if !ok { // several rules together do it
		in, out = nil, nil
	}
	if why := s.unlisted(s.named(in, out)); why != "" {
		return why
	}
	return s.otherwise(place, m, in, out, attack)
}

// expected are rules that IIS's view must have, by section.
type expected map[string][]*xmldoc.Element

// own are the rules of an action as its document has them.
func own(r effect.Rules) expected {
	e := expected{}
	for _, x := range r.Inbound {
		e["rules"] = append(e["rules"], x.Element)
	}
	for _, x := range r.Outbound {
		e["outboundRules"] = append(e["outboundRules"], x.Element)
	}
	return e
}

// named are rules of the model, by their names.
func (s *appLook) named(in, out []string) expected {
	e := expected{}
	for section, names := range map[string][]string{"rules": in, "outboundRules": out} {
		for _, n := range names {
			if x := s.model[section].Rule(n); x != nil {
				e[section] = append(e[section], x)
			}
		}
	}
	return e
}

// unlisted names the first rule that IIS does not list, or that is another one for IIS; "" when it has them all. A section about
// which there is no answer is left out.
func (s *appLook) unlisted(rules expected) string {
	for _, section := range witnessed {
		iis, answered := s.iis[section]
		if !answered {
			continue
		}
		for _, x := range rules[section] {
			got := iis.Rule(x.Attr("name"))
			if got == nil {
				return fmt.Sprintf("it does not list rule %q", x.Attr("name"))
			}
			if d := appcmdxml.Element(x, got, section); d != nil {
				return d.Text
			}
			pre := s.model[section].PreCondition(x.Attr("preCondition"))
			if pre == nil {
				continue
			}
			gotPre := iis.PreCondition(x.Attr("preCondition"))
			if gotPre == nil {
				return fmt.Sprintf("it does not list precondition %q", x.Attr("preCondition"))
			}
			if d := appcmdxml.Element(pre, gotPre, section); d != nil {
				return d.Text
			}
		}
	}
	return ""
}

// otherwise evaluates the rules that IIS lists in place of the model's, and says what comes out differently: a rule in front
// that ends the evaluation, or another answer to the attack request.
func (s *appLook) otherwise(place *iisconfig.Place, m *iisconfig.Model, in, out []string, attack *effect.Attack) string {
	at := place
	if attack != nil {
		at = m.At(place.Site, attack.Path)
	}
	for _, section := range witnessed {
		if _, answered := s.iis[section]; !answered || !sameItems(at.Section(section), place.Section(section)) {
			return "" // no answer, or a directory below changes it, which IIS was not asked about
		}
	}
	mine, _, err := at.Rules()
	if err != nil {
		return ""
	}
	theirs, _ := urlrewrite.Build(urlrewrite.Parts{
		Global: itemParts(at, "globalRules"), Inbound: s.parts(at, "rules", s.iis["rules"].Rules), Outbound: s.parts(at, "outboundRules", s.iis["outboundRules"].Rules),
		PreConditions: s.parts(at, "preConditions", s.iis["outboundRules"].PreConditions), Maps: itemParts(at, "rewriteMaps"), Tags: itemParts(at, "customTags"),
		Allowed: itemParts(at, "allowedServerVariables"), Providers: itemParts(at, "providers"),
	})
	ours := func(rule string) bool { return slices.Contains(in, rule) }
	for _, n := range in {
		if stop := theirs.InboundStopper(n, place.App.Path, ours); stop != "" && mine.InboundStopper(n, place.App.Path, ours) == "" {
			return fmt.Sprintf("it lists rule %q first, which ends the evaluation of every request", stop)
		}
	}
	for _, n := range out {
		if stop := theirs.OutboundStopper(n); stop != "" && mine.OutboundStopper(n) == "" {
			return fmt.Sprintf("it lists rule %q first, which ends the evaluation of every response", stop)
		}
	}
	if attack != nil && !sameAnswer(mine, theirs, *attack, place.App.Path) {
		return "by the rules that it lists, the request is answered in another way"
	}
	return ""
}

func sameItems(a, b *iisconfig.Section) bool {
	if len(a.Items) != len(b.Items) {
		return false
	}
	for i := range a.Items {
		if a.Items[i].Source != b.Items[i].Source {
			return false
		}
	}
	return true
}

func itemParts(p *iisconfig.Place, section string) []urlrewrite.Part {
	var out []urlrewrite.Part
	for _, i := range p.Section(section).Items {
		out = append(out, urlrewrite.Part{Element: i.Element, Doc: i.Doc, Where: i.Source.String(), Base: i.Base})
	}
	return out
}

// parts are elements of IIS's view. IIS does not say which level a rule comes from: that is taken from the model.
func (s *appLook) parts(at *iisconfig.Place, section string, iis []*xmldoc.Element) []urlrewrite.Part {
	schema := section
	if section == "preConditions" {
		schema = "outboundRules"
	}
	var out []urlrewrite.Part
	for _, e := range iis {
		x := urlrewrite.Part{Element: appcmdxml.Plain(e, schema), Doc: s.iis[schema].Doc, Where: "IIS", Base: at.App.Path}
		if it := at.Section(section).Item(e.Attr("name")); it != nil {
			x.Base = it.Base
			if appcmdxml.Element(it.Element, e, schema) == nil {
				x.Element, x.Doc = it.Element, it.Doc
			}
		}
		out = append(out, x)
	}
	return out
}

// sameAnswer reports whether two rulesets do the same to an attack request, by every reading of what the sources leave open.
func sameAnswer(mine, theirs *urlrewrite.Ruleset, a effect.Attack, base string) bool {
	for _, ownBase := range []bool{false, true} {
		for _, adverse := range []bool{false, true} {
			if answered(mine, a, base, ownBase, adverse) != answered(theirs, a, base, ownBase, adverse) {
				return false
			}
		}
	}
	return true
}

func answered(rs *urlrewrite.Ruleset, a effect.Attack, base string, ownBase, adverse bool) string {
	req := &urlrewrite.Request{Method: a.Method, Scheme: "https", Host: "mail.example", Path: a.Path, RawPath: a.RawPath, RawQuery: a.Query,
		Header: a.Header.Clone(), RemoteAddr: "192.0.2.1", OwnBase: ownBase, Adverse: adverse, IgnoreRedirects: true}
	res, err := rs.Inbound(req, base)
	if err != nil {
		return err.Error()
	}
	out := fmt.Sprint(res.Action, res.Status)
	if len(a.WantHeader) > 0 {
		header := http.Header{"Content-Type": {"text/html; charset=utf-8"}}
		if _, _, err := rs.Respond(req, &urlrewrite.Response{Status: http.StatusOK, Header: header}); err != nil {
			return out + err.Error()
		}
		for _, k := range sortedKeys(a.WantHeader) {
			out += "\x00" + strings.Join(header.Values(k), ", ")
		}
	}
	return out
}
