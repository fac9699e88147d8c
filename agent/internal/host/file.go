package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// skeleton is a web.config that says nothing: what a file that is made for our rules is without them.
var skeleton = []byte("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<configuration>\r\n</configuration>\r\n")

// entry is a fragment of one action in one file.
type entry struct {
	ref  Ref
	frag iis.Fragment
}

// file is one configuration file in this pass. What of ours is in it and not mentioned in this pass stays as found, also when
// somebody altered it.
type file struct {
	ref       string // FileRef
	dir, file string
	name      string  // path, for people
	asked     bool    // IIS was, after it was written
	disk      []byte  // as read; nil: there is no such file
	orig      []byte  // without anything of ours, as journaled; nil when nothing is
	made      bool    // the journal says that there was no such file before ours
	known     []entry // what the journal says may be in it
	taken     []entry // to be taken out
	staged    []entry // to be put in
}

// load reads a file once in a pass and finds out what it is without us.
func (p *Pass) load(ref string) (*file, error) {
	if f, ok := p.files[fileKey(ref)]; ok {
		return f, nil
	}
	f, err := p.readFile(ref)
	if err != nil {
		return nil, err
	}
	p.files[fileKey(ref)] = f
	return f, nil
}

func (p *Pass) readFile(ref string) (*file, error) {
	dir, name := SplitRef(ref)
	f := &file{ref: ref, dir: dir, file: name}
	var err error
	f.disk, f.name, err = p.disk.ConfigFile(dir, name)
	root := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.disk = nil
		if name != iisconfig.WebConfig {
			return nil, failf("config-missing", "%s is missing; nothing was created", f.name)
		}
	case err != nil:
		return nil, failf("config-unreadable", "%v", err)
	default:
		doc, err := xmldoc.Parse(f.disk)
		if err == nil && name == iisconfig.WebConfig {
			doc, err = iisconfig.ParseWebConfig(f.disk, f.name)
		} else if err != nil {
			err = fmt.Errorf("%s: %w", f.name, err)
		}
		if err != nil {
			return nil, failf("config-malformed", "%v; the file was not touched", err)
		}
		if name != iisconfig.WebConfig {
			root = doc.Root.Name
		}
	}
	for _, c := range p.inForce {
		rw := c.Spec.GetUrlRewrite()
		for _, r := range c.Prior.Files {
			if rw != nil && fileKey(r) == fileKey(ref) {
				f.known = append(f.known, entry{c.Ref, whole(rw, root)})
			}
		}
	}
	var ok bool
	if f.orig, ok, err = p.originals.Original(ref); err != nil {
		return nil, fmt.Errorf("original of %s: %w", f.name, err)
	}
	switch {
	case !ok:
		f.orig = nil
	case len(f.orig) == 0:
		f.made, f.orig = true, skeleton
	}
	return f, nil
}

// whole is all of an action's rules that can be in a file. root is the section that the file's root element is; "" for a
// web.config.
func whole(rw *stopgapv1.UrlRewriteAction, root string) iis.Fragment {
	f := iis.Fragment{Inbound: rw.GetInbound(), Outbound: rw.GetOutbound(), Root: root}
	switch root {
	case "":
	case "rules":
		f.Outbound = ""
	case "outboundRules":
		f.Inbound = ""
	default:
		f.Inbound, f.Outbound = "", ""
	}
	return f
}

// root is the section that the file's root element is; "" for a web.config.
func (f *file) root() string {
	if f.file == iisconfig.WebConfig || f.disk == nil {
		return ""
	}
	if doc, err := xmldoc.Parse(f.disk); err == nil {
		return doc.Root.Name
	}
	return ""
}

func fragments(es []entry) []iis.Fragment {
	out := make([]iis.Fragment, len(es))
	for i, e := range es {
		out[i] = e.frag
	}
	return out
}

// content is the file as it is read: nothing of a file that is not there.
func (f *file) content() []byte {
	if f.disk == nil {
		return skeleton
	}
	return f.disk
}

// rendered is the file as this pass wants it; nil: no such file.
func (f *file) rendered() ([]byte, error) {
	base, err := iis.Strip(f.content(), f.orig, fragments(f.taken))
	switch {
	case err != nil:
		return nil, err
	case len(f.staged) > 0:
		return iis.Render(base, fragments(f.staged))
	case f.disk == nil, f.made && bytes.Equal(base, skeleton):
		return nil, nil
	}
	return base, nil
}

// base is the file without anything of ours.
func (f *file) base() ([]byte, error) {
	return iis.Strip(f.content(), f.orig, fragments(append(append([]entry(nil), f.known...), f.taken...)))
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

// take takes an action's rules out.
func (f *file) take(ref Ref, all iis.Fragment) {
	f.forget(ref)
	f.taken = append(f.taken, entry{ref, all})
}

// put puts fragments of an action in, in place of whatever of it is there.
func (f *file) put(ref Ref, all iis.Fragment, frags ...iis.Fragment) {
	f.take(ref, all)
	for _, x := range frags {
		f.staged = append(f.staged, entry{ref, x})
	}
}

// forget leaves an action's rules as they were found.
func (f *file) forget(ref Ref) {
	f.taken, f.staged = without(f.taken, ref), without(f.staged, ref)
}
