package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// Pass is one look at the server and one set of changes to it. Edits of configuration files are staged and written by
// Flush, once for each file: each write restarts the application and its children. Not safe for concurrent use.
type Pass struct {
	d         Driver
	disk      *cached
	originals Originals
	server    *iisconfig.Server
	serverErr error
	// newErr refuses what is not there yet; what of ours is there can be read and taken off.
	newErr  error
	inForce []Change
	files   map[string]*file
	model   *iisconfig.Model  // of the disk, as read in this pass; nil: to be made
	answers map[string]answer // of IIS, since the last write
	mute    error             // why IIS can't be asked; it is not asked again in this pass
	changed bool              // a file was written
}

// NewPass starts a pass. inForce is every change that the journal knows of, also half-done ones.
func NewPass(ctx context.Context, d Driver, o Originals, inForce []Change) *Pass {
	p := &Pass{d: d, disk: newCached(d), originals: o, inForce: inForce, files: map[string]*file{}}
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

// Action binds an action of a mitigation to this pass. doc is the document that the action is of: its attack requests say
// whether rules are in effect. nil, where an action is only to be undone.
func (p *Pass) Action(ref Ref, spec *stopgapv1.Action, doc *stopgapv1.Mitigation) (Action, error) {
	switch k := spec.GetKind().(type) {
	case *stopgapv1.Action_UrlRewrite:
		rules, err := effect.ParseRules(k.UrlRewrite.GetInbound(), k.UrlRewrite.GetOutbound())
		if err != nil {
			return nil, failf("document-unreadable", "%v", err)
		}
		return &urlRewrite{p: p, ref: ref, spec: k.UrlRewrite, rules: rules, attacks: attacksOf(doc, spec)}, nil
	case *stopgapv1.Action_Service:
		return &service{p.d, p.inForce, ref, k.Service}, nil
	case *stopgapv1.Action_AppPool:
		return &appPool{p, ref, k.AppPool}, nil
	}
	return nil, failf("unknown-action", "action %s is of a kind this agent does not know", ref)
}

// Unstage leaves an action's rules as they were found, whatever was staged for them.
func (p *Pass) Unstage(ref Ref) {
	for _, f := range p.files {
		f.forget(ref)
	}
}

// diskModel composes the configuration as it is on the server.
func (p *Pass) diskModel() *iisconfig.Model {
	if p.model == nil {
		p.model = iisconfig.NewModel(p.server, p.disk)
	}
	return p.model
}

// stagedModel composes the configuration as this pass wants it.
func (p *Pass) stagedModel() *iisconfig.Model {
	var changed [][2]string
	for _, f := range p.files {
		if data, err := f.rendered(); err != nil || !bytes.Equal(data, f.disk) || (data == nil) != (f.disk == nil) {
			changed = append(changed, [2]string{f.dir, f.file})
		}
	}
	files := map[string]*file{}
	for _, f := range p.files {
		files[p.disk.key(f.dir, f.file)] = f
	}
	return p.diskModel().With(overlay{p.disk, files}, changed...)
}

// bareModel composes the configuration without anything of ours: what is in effect there is somebody else's.
func (p *Pass) bareModel() (*iisconfig.Model, error) {
	bare := map[string][]byte{}
	var changed [][2]string
	for _, c := range p.inForce {
		for _, ref := range c.Prior.Files {
			key := p.disk.key(SplitRef(ref))
			if _, done := bare[key]; done {
				continue
			}
			f, err := p.load(ref)
			var e *Error
			if errors.As(err, &e) && e.Code == "config-missing" {
				continue
			}
			if err != nil {
				return nil, err
			}
			base, err := f.base()
			if err != nil {
				return nil, failf("config-malformed", "%s: %v", f.name, err)
			}
			if f.disk == nil || f.made && bytes.Equal(base, skeleton) {
				base = nil
			}
			bare[key] = base
			changed = append(changed, [2]string{f.dir, f.file})
		}
	}
	if len(bare) == 0 {
		return p.diskModel(), nil
	}
	return p.diskModel().With(stripped{p.disk, bare}, changed...), nil
}

// stripped reads files without anything of ours, however their directory is written.
type stripped struct {
	*cached
	bare map[string][]byte
}

// ConfigFile implements iisconfig.Files.
func (s stripped) ConfigFile(dir, name string) ([]byte, string, error) {
	data, path, err := s.cached.ConfigFile(dir, name)
	if b, ok := s.bare[s.key(dir, name)]; ok {
		if b == nil {
			return nil, path, fs.ErrNotExist
		}
		return b, path, nil
	}
	return data, path, err
}

// overlay reads files as this pass wants them, however their directory is written.
type overlay struct {
	*cached
	files map[string]*file
}

// ConfigFile implements iisconfig.Files.
func (o overlay) ConfigFile(dir, name string) ([]byte, string, error) {
	f, ok := o.files[o.key(dir, name)]
	if !ok {
		return o.cached.ConfigFile(dir, name)
	}
	data, err := f.rendered()
	if err == nil && data == nil {
		err = fs.ErrNotExist
	}
	return data, f.name, err
}

// Changed lists the files that Flush would write, by their FileRef.
func (p *Pass) Changed() []string {
	var out []string
	for _, f := range p.files {
		if data, err := f.rendered(); err != nil || !bytes.Equal(data, f.disk) || (data == nil) != (f.disk == nil) {
			out = append(out, f.ref)
		}
	}
	sort.Strings(out)
	return out
}

// flushTries bounds how often a file that somebody else is writing is read again.
const flushTries = 4

// Flush writes every changed file, once, and returns which could not be written and why, by FileKey; those are untouched.
func (p *Pass) Flush(ctx context.Context) map[string]error {
	failed := map[string]error{}
	for _, ref := range p.Changed() {
		if err := p.flushFile(ctx, p.files[fileKey(ref)]); err != nil {
			failed[fileKey(ref)] = err
		}
	}
	return failed
}

// FileKey is the key of a file, by its FileRef, in what Flush returns.
func FileKey(ref string) string { return fileKey(ref) }

func (p *Pass) flushFile(ctx context.Context, f *file) error {
	for try := 1; ; try++ {
		data, err := f.rendered()
		if err != nil {
			return failf("config-malformed", "%s: %v", f.name, err)
		}
		if bytes.Equal(data, f.disk) && (data == nil) == (f.disk == nil) {
			return nil
		}
		if err := p.original(f); err != nil {
			return err
		}
		err = p.d.ReplaceConfig(ctx, f.dir, f.file, f.disk, data)
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
		if err := p.again(f); err != nil {
			return err
		}
	}
}

// again reads a file that somebody else has written since, and looks once more whether IIS would take the edit.
func (p *Pass) again(f *file) error {
	p.disk.forget(f.ref)
	p.model = nil
	fresh, err := p.readFile(f.ref)
	if err != nil {
		return err
	}
	staged := f.staged
	fresh.taken = f.taken
	*f = *fresh
	before := p.stagedModel()
	f.staged = staged
	if len(staged) == 0 {
		return nil
	}
	after := p.stagedModel()
	_, err = p.breaks(before, after, []string{f.dir}, effect.Rules{})
	return err
}

// accepted lets IIS itself read what was written, where something was put in, and puts the file back when it can't: a file that
// IIS can't read answers 500.19 for the whole directory.
func (p *Pass) accepted(ctx context.Context, f *file, data []byte) error {
	was := f.disk
	p.wrote(f, data)
	if len(f.staged) == 0 || p.server == nil {
		return nil
	}
	if err := p.askIIS(ctx, f.dir); err != nil {
		if rerr := p.d.ReplaceConfig(ctx, f.dir, f.file, data, was); rerr != nil {
			return failf("config-refused", "%v; and %s can't be put back: %v", err, f.name, rerr)
		}
		p.wrote(f, was)
		return failf("config-refused", "%v; the file is as it was", err)
	}
	f.asked = true
	return nil
}

// wrote notes what is in a file now. The rest of the pass reads it anew from the server.
func (p *Pass) wrote(f *file, data []byte) {
	p.changed, p.answers = true, nil
	f.disk = data
	p.disk.forget(f.ref)
	p.model = nil
}

// original keeps what the file is without us, before it is written. For a file that is not there, that is nothing.
func (p *Pass) original(f *file) error {
	var base []byte
	if f.disk == nil {
		if f.made {
			return nil
		}
		f.made, f.orig = true, skeleton
	} else {
		var err error
		if base, err = f.base(); err != nil {
			return failf("config-malformed", "%s: %v", f.name, err)
		}
		if f.orig != nil && bytes.Equal(f.orig, base) {
			return nil
		}
		if f.made && len(base) > 0 { // somebody else wrote to a file that we made: it is theirs now
			f.made = false
		}
		f.orig = base
	}
	if err := p.originals.PutOriginal(f.ref, base); err != nil {
		return fmt.Errorf("original of %s can't be kept, so it was not touched: %w", f.name, err)
	}
	return nil
}
