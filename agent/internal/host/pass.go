package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"strings"

	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// Pass is one look at the server and one set of changes to it. Edits of web.config files are staged and written by
// Flush, once for each file: each write restarts the application and its children. Not safe for concurrent use.
type Pass struct {
	d         Driver
	originals Originals
	server    *iisconfig.Server
	serverErr error
	// newErr refuses what is not there yet; what of ours is there can be read and taken off.
	newErr  error
	inForce []Change
	files   map[string]*file
	nested  map[string][]string // by directory, those below with a web.config
}

// NewPass starts a pass. inForce is every change that the journal knows of, also half-done ones.
func NewPass(ctx context.Context, d Driver, o Originals, inForce []Change) *Pass {
	p := &Pass{d: d, originals: o, inForce: inForce, files: map[string]*file{}, nested: map[string][]string{}}
	p.newErr = shared(ctx, d)
	data, name, err := d.ApplicationHost(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.serverErr = failf("no-iis", "no IIS on this server (%s is missing)", name)
	case err != nil:
		p.serverErr = failf("config-unreadable", "%v", err)
	default:
		if p.server, err = iisconfig.Parse(data, name); err != nil {
			p.serverErr = failf("config-malformed", "%v", err)
		}
	}
	return p
}

// shared refuses a server whose IIS configuration is shared: sites and pools are then not what its own applicationHost.config
// says.
func shared(ctx context.Context, d Driver) error {
	data, name, err := d.Redirection(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	where := ""
	if err == nil {
		where, err = iisconfig.SharedFrom(data, name)
	}
	switch {
	case err != nil:
		return failf("config-unreadable", "%v", err)
	case where != "":
		return failf("config-shared", "the configuration of IIS is shared (%s); change it where it is kept, or end the sharing; nothing is applied", where)
	}
	return nil
}

// Action binds an action of a mitigation to this pass.
func (p *Pass) Action(ref Ref, spec *stopgapv1.Action) (Action, error) {
	switch k := spec.GetKind().(type) {
	case *stopgapv1.Action_UrlRewrite:
		return &urlRewrite{p, ref, k.UrlRewrite}, nil
	case *stopgapv1.Action_Service:
		return &service{p.d, p.inForce, ref, k.Service}, nil
	case *stopgapv1.Action_AppPool:
		return &appPool{p, ref, k.AppPool}, nil
	}
	return nil, failf("unknown-action", "action %s is of a kind this agent does not know", ref)
}

// entry is a fragment of one action in one file.
type entry struct {
	ref  Ref
	frag iis.Fragment
}

// file is one web.config in this pass. What of ours is in it and not mentioned in this pass stays as found, also when
// somebody altered it.
type file struct {
	dir, name string
	asked     bool    // IIS was, after it was written
	disk      []byte  // as read
	orig      []byte  // without anything of ours, as journaled; nil when nothing is
	known     []entry // what the journal says may be in it
	taken     []entry // to be taken out
	staged    []entry // to be put in
}

func key(dir string) string { return strings.ToLower(strings.TrimRight(dir, `\/`)) }

// load reads a file once in a pass and finds out what it is without us.
func (p *Pass) load(dir string) (*file, error) {
	if f, ok := p.files[key(dir)]; ok {
		return f, nil
	}
	f, err := p.read(dir)
	if err != nil {
		return nil, err
	}
	p.files[key(dir)] = f
	return f, nil
}

func (p *Pass) read(dir string) (*file, error) {
	disk, name, err := p.d.WebConfig(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, failf("config-missing", "%s is missing; nothing was created", name)
		}
		return nil, failf("config-unreadable", "%v", err)
	}
	f := &file{dir: dir, name: name, disk: disk}
	if _, err := iisconfig.ParseWebConfig(disk, name); err != nil {
		return nil, failf("config-malformed", "%v; the file was not touched", err)
	}
	for _, c := range p.inForce {
		rw := c.Spec.GetUrlRewrite()
		if rw == nil {
			continue
		}
		for _, d := range c.Prior.Files {
			if key(d) == key(dir) {
				frag, err := p.fragment(rw, dir)
				if err != nil {
					return nil, err
				}
				f.known = append(f.known, entry{c.Ref, frag})
			}
		}
	}
	var ok bool
	if f.orig, ok, err = p.originals.Original(dir); err != nil {
		return nil, fmt.Errorf("original of %s: %w", name, err)
	}
	if !ok {
		f.orig = nil
	}
	return f, nil
}

func fragments(es []entry) []iis.Fragment {
	out := make([]iis.Fragment, len(es))
	for i, e := range es {
		out[i] = e.frag
	}
	return out
}

// fragment places an action's rules for one directory: inside the element that children don't inherit where an
// application below shares the directory and would read the same rules twice; outside where they are to be inherited.
func (p *Pass) fragment(rw *stopgapv1.UrlRewriteAction, dir string) (iis.Fragment, error) {
	f := iis.Fragment{Inbound: rw.GetInbound(), Outbound: rw.GetOutbound()}
	if p.serverErr != nil {
		return f, p.serverErr
	}
	for _, site := range p.server.Sites {
		for _, app := range site.Apps {
			if key(app.Dir) == key(dir) && p.server.SharesDirBelow(app) != nil {
				f.Inside = true
			}
		}
	}
	return f, nil
}

// rendered is the file as this pass wants it.
func (f *file) rendered() ([]byte, error) {
	base, err := iis.Strip(f.disk, f.orig, fragments(f.taken))
	if err != nil || len(f.staged) == 0 {
		return base, err
	}
	return iis.Render(base, fragments(f.staged))
}

// base is the file without anything of ours.
func (f *file) base() ([]byte, error) {
	return iis.Strip(f.disk, f.orig, fragments(append(append([]entry(nil), f.known...), f.taken...)))
}

func without(es []entry, ref Ref) []entry {
	kept := es[:0:0]
	for _, e := range es {
		if e.ref != ref {
			kept = append(kept, e)
		}
	}
	return kept
}

// stage puts an entry in, in place of whatever of it is there.
func (f *file) stage(e entry) {
	f.forget(e.ref)
	f.taken, f.staged = append(f.taken, e), append(f.staged, e)
}

// take takes an entry out.
func (f *file) take(e entry) {
	f.forget(e.ref)
	f.taken = append(f.taken, e)
}

// forget leaves an entry as it was found.
func (f *file) forget(ref Ref) {
	f.taken, f.staged = without(f.taken, ref), without(f.staged, ref)
}

// Unstage leaves an action's rules as they were found, whatever was staged for them.
func (p *Pass) Unstage(ref Ref) {
	for _, f := range p.files {
		f.forget(ref)
	}
}

// overlay reads files as this pass wants them.
type overlay struct{ p *Pass }

// WebConfig implements iisconfig.Files.
func (o overlay) WebConfig(dir string) ([]byte, string, error) {
	if f, ok := o.p.files[key(dir)]; ok {
		data, err := f.rendered()
		return data, f.name, err
	}
	return o.p.d.WebConfig(dir)
}

// check evaluates every application that reads a file, as staged: a duplicate name anywhere is what IIS answers with
// 500.19, and a <clear/> below makes a rule void.
func (p *Pass) check(f *file, e entry, files iisconfig.Files) error {
	_, inbound, err := fragmentRules(e.frag.Inbound, false)
	if err != nil {
		return err
	}
	_, outbound, err := fragmentRules(e.frag.Outbound, true)
	if err != nil {
		return err
	}
	for _, app := range p.server.Readers(f.dir) {
		rs, err := p.effective(app, files)
		if err != nil {
			return err
		}
		if e.frag.Inside && key(app.Dir) != key(f.dir) {
			continue
		}
		if why := void(rs, inbound, outbound); why != "" {
			return failf("rule-void", "%s at %s: a <clear/> or <remove> takes it away there", why, app)
		}
		if err := p.checkBelow(app, inbound, outbound, files); err != nil {
			return err
		}
	}
	return nil
}

// effective evaluates an application, or a directory in it.
func (p *Pass) effective(app *iisconfig.App, files iisconfig.Files, below ...string) (*urlrewrite.Ruleset, error) {
	rs, err := p.server.Effective(app, files, below...)
	if err == nil {
		return rs, nil
	}
	if _, before := p.server.Effective(app, p.d, below...); before != nil {
		return nil, failf("config-invalid", "%s is already invalid before any change: %v", app, before)
	}
	var ce *urlrewrite.ConfigError
	if errors.As(err, &ce) {
		return nil, failf("config-duplicate", "%s would answer 500.19: %v; the file was not touched", app, err)
	}
	return nil, failf("config-invalid", "%s: %v; the file was not touched", app, err)
}

// checkBelow evaluates the directories of an application that have a web.config of their own. One that is invalid without us
// answers 500.19 itself, and is nobody's way past a rule.
func (p *Pass) checkBelow(app *iisconfig.App, inbound, outbound []string, files iisconfig.Files) error {
	dirs, ok := p.nested[key(app.Dir)]
	if !ok {
		var err error
		if dirs, err = p.d.WebConfigsBelow(app.Dir); err != nil {
			return failf("config-unreadable", "%v", err)
		}
		p.nested[key(app.Dir)] = dirs
	}
	for _, way := range p.server.Nested(app, dirs) {
		if _, err := p.server.Effective(app, p.d, way...); err != nil {
			continue
		}
		rs, err := p.effective(app, files, way...)
		if err != nil {
			return err
		}
		if why := void(rs, inbound, outbound); why != "" {
			return failf("rule-void", `%s at %s: a <clear/> or <remove> in %s\web.config takes it away there`, why, app, way[len(way)-1])
		}
	}
	return nil
}

// void names a rule that has no effect in a ruleset; "" when all have.
func void(rs *urlrewrite.Ruleset, inbound, outbound []string) string {
	for _, n := range inbound {
		if ok, on := rs.HasInbound(n); !ok || !on {
			return fmt.Sprintf("rule %q has no effect", n)
		}
	}
	for _, n := range outbound {
		if ok, on := rs.HasOutbound(n); !ok || !on {
			return fmt.Sprintf("outbound rule %q has no effect", n)
		}
	}
	return ""
}

func fragmentRules(xml string, outbound bool) (*urlrewrite.Section, []string, error) {
	if xml == "" {
		return nil, nil, nil
	}
	return urlrewrite.ParseFragment([]byte(xml), outbound)
}

// Changed lists the directories whose web.config Flush would write.
func (p *Pass) Changed() []string {
	var out []string
	for _, f := range p.files {
		if data, err := f.rendered(); err != nil || !bytes.Equal(data, f.disk) {
			out = append(out, f.dir)
		}
	}
	sort.Strings(out)
	return out
}

// flushTries bounds how often a file that somebody else is writing is read again.
const flushTries = 4

// Flush writes every changed file, once, and says which could not be written; those are untouched.
func (p *Pass) Flush(ctx context.Context) map[string]error {
	failed := map[string]error{}
	for _, dir := range p.Changed() {
		if err := p.flushFile(ctx, p.files[key(dir)]); err != nil {
			failed[key(dir)] = err
		}
	}
	return failed
}

func (p *Pass) flushFile(ctx context.Context, f *file) error {
	for try := 1; ; try++ {
		data, err := f.rendered()
		if err != nil {
			return failf("config-malformed", "%s: %v", f.name, err)
		}
		if bytes.Equal(data, f.disk) {
			return nil
		}
		if err := p.original(f); err != nil {
			return err
		}
		err = p.d.ReplaceWebConfig(ctx, f.dir, f.disk, data)
		if err == nil {
			return p.accepted(ctx, f, data)
		}
		if !errors.Is(err, ErrChanged) || try == flushTries {
			code := "write-failed"
			if errors.Is(err, os.ErrPermission) {
				code = "read-only"
			}
			return failf(code, "%v; the file was not touched", err)
		}
		again, err := p.read(f.dir)
		if err != nil {
			return err
		}
		again.taken, again.staged = f.taken, f.staged
		*f = *again
		for _, e := range f.staged {
			if err := p.check(f, e, overlay{p}); err != nil {
				return err
			}
		}
	}
}

// accepted lets IIS itself read what was written, where something was put in, and puts the file back when it can't: a file that
// IIS can't read answers 500.19 for the whole directory.
func (p *Pass) accepted(ctx context.Context, f *file, data []byte) error {
	was := f.disk
	f.disk = data
	if len(f.staged) == 0 || p.server == nil {
		return nil
	}
	if err := p.askIIS(ctx, f.dir); err != nil {
		if rerr := p.d.ReplaceWebConfig(ctx, f.dir, data, was); rerr != nil {
			return failf("config-refused", "%v; and %s can't be put back: %v", err, f.name, rerr)
		}
		f.disk = was
		return failf("config-refused", "%v; the file is as it was", err)
	}
	f.asked = true
	return nil
}

// askIIS lets IIS read the applications that have a directory of their own web.config.
func (p *Pass) askIIS(ctx context.Context, dir string) error {
	for _, app := range p.server.Readers(dir) {
		if key(app.Dir) == key(dir) {
			if err := p.d.CheckConfig(ctx, app.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// original keeps what the file is without us, before it is written.
func (p *Pass) original(f *file) error {
	base, err := f.base()
	if err != nil {
		return failf("config-malformed", "%s: %v", f.name, err)
	}
	if f.orig != nil && bytes.Equal(f.orig, base) {
		return nil
	}
	if err := p.originals.PutOriginal(f.dir, base); err != nil {
		return fmt.Errorf("original of %s can't be kept, so it was not touched: %w", f.name, err)
	}
	f.orig = base
	return nil
}
