// Package lab drives a lab server: a directory that looks like an Exchange server (package labdir says how). It edits
// the same configuration files with the same editor as on Windows; services and running pools are files.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/host/fswatch"
	"github.com/stopgap-em/stopgap/agent/internal/host/iis"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// Host is a lab server.
type Host struct {
	dir labdir.Dir
}

var _ host.Driver = (*Host)(nil)

// Open opens a lab server's directory.
func Open(dir string) (*Host, error) {
	d, err := labdir.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Host{d}, nil
}

// Facts implements host.Driver.
func (h *Host) Facts(context.Context) (*stopgapv1.Facts, error) {
	s, err := h.dir.Server()
	if err != nil {
		return nil, err
	}
	f := &stopgapv1.Facts{
		Host: s.Host, Organisation: s.Organisation, ExchangeBuild: s.ExchangeBuild, UrlRewrite: s.URLRewrite,
		Os: s.OS, Dag: s.DAG, MachineId: s.ID, Servicing: h.dir.Servicing(),
	}
	for _, r := range s.Roles {
		if v, ok := stopgapv1.Role_value["ROLE_"+strings.ToUpper(r)]; ok && v != 0 {
			f.Roles = append(f.Roles, stopgapv1.Role(v))
		}
	}
	return f, nil
}

// ApplicationHost implements host.Driver.
func (h *Host) ApplicationHost(context.Context) ([]byte, string, error) {
	return h.dir.ReadFile(labdir.ApplicationHost)
}

// Redirection implements host.Driver.
func (h *Host) Redirection(context.Context) ([]byte, string, error) {
	return h.dir.ReadFile(labdir.Redirection)
}

// ConfigFile implements host.Driver.
func (h *Host) ConfigFile(dir, file string) ([]byte, string, error) {
	return h.dir.ConfigFile(dir, file)
}

// Canonical implements host.Driver.
func (h *Host) Canonical(dir string) string { return h.dir.Canonical(dir) }

// MaxConfigBytes implements host.Driver.
func (h *Host) MaxConfigBytes() int { return h.dir.MaxConfigBytes() }

// ReplaceConfig implements host.Driver.
func (h *Host) ReplaceConfig(_ context.Context, dir, file string, old, data []byte) error {
	p, err := h.dir.Path(strings.TrimRight(dir, `\/`) + `\` + file)
	switch {
	case err != nil:
		return err
	case old == nil:
		return create(p, data)
	case data == nil:
		return remove(p, old)
	}
	return replace(p, old, data)
}

// create writes a file that must not be there yet.
func create(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // as every web.config, for the worker process to read
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// remove deletes a file whose content is old.
func remove(path string, old []byte) error {
	cur, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(cur, old) {
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replace writes a new file beside the old one, flushed, and renames it over. The old content is compared as late as
// possible: a writer between that and the rename, a few microseconds, would be lost; Windows' ReplaceFileW keeps a backup
// for that case, a rename has none.
func replace(path string, old, data []byte) (err error) {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o200 == 0 {
		return fmt.Errorf("%s is read-only: %w", path, os.ErrPermission)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".stopgap-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(st.Mode().Perm())
	}
	if err == nil {
		err = keepOwner(f, st)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	cur, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(cur, old) {
		return fmt.Errorf("%s: %w", path, host.ErrChanged)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Effective implements host.Driver: there is no IIS; the lab's front end composes the configuration itself.
func (h *Host) Effective(context.Context, string, string) ([]byte, error) {
	return nil, host.ErrNoWitness
}

// FrontEnd implements host.Driver: who serves the lab server writes its address.
func (h *Host) FrontEnd(context.Context) (base, name string, err error) {
	base, err = h.dir.FrontEnd()
	return base, "", err
}

// Inactive implements host.Driver.
func (h *Host) Inactive(component string) bool {
	s, err := h.dir.Server()
	return err == nil && slices.Contains(s.Inactive, component)
}

// Service implements host.Driver.
func (h *Host) Service(_ context.Context, name string) (host.Service, error) {
	all, err := h.dir.Services()
	if err != nil {
		return host.Service{}, err
	}
	s, ok := all[name]
	if !ok {
		return host.Service{}, nil
	}
	return host.Service{Present: true, StartType: s.StartType, Delayed: s.Delayed, State: s.State}, nil
}

// Dependents implements host.Driver.
func (h *Host) Dependents(_ context.Context, name string) ([]string, error) {
	all, err := h.dir.Services()
	if err != nil {
		return nil, err
	}
	return dependents(all, name), nil
}

func dependents(all map[string]labdir.Service, name string) []string {
	return host.StopOrder(name, func(of string) []string {
		var out []string
		for n, s := range all {
			if s.State == host.Running && slices.ContainsFunc(s.DependsOn, func(d string) bool { return strings.EqualFold(d, of) }) {
				out = append(out, n)
			}
		}
		return out
	})
}

// SetService implements host.Driver.
func (h *Host) SetService(_ context.Context, name string, want host.Service) error {
	return h.dir.UpdateServices(func(all map[string]labdir.Service) error {
		s, ok := all[name]
		if !ok {
			return fmt.Errorf("service %s does not exist", name)
		}
		if want.State == host.Stopped {
			for _, n := range dependents(all, name) {
				d := all[n]
				d.State = host.Stopped
				all[n] = d
			}
		}
		if want.State == host.Running && s.State != host.Running && want.StartType == host.StartDisabled {
			return fmt.Errorf("service %s is disabled and can't be started (error 1058)", name)
		}
		s.StartType, s.Delayed, s.State = want.StartType, want.Delayed, want.State
		all[name] = s
		return nil
	})
}

// Pool implements host.Driver.
func (h *Host) Pool(ctx context.Context, name string) (host.Pool, error) {
	data, file, err := h.ApplicationHost(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return host.Pool{}, nil
	}
	if err != nil {
		return host.Pool{}, err
	}
	srv, err := iisconfig.Parse(data, file)
	if err != nil {
		return host.Pool{}, err
	}
	p := srv.Pool(name)
	if p == nil {
		return host.Pool{}, nil
	}
	running, err := h.dir.Pools()
	if err != nil {
		return host.Pool{}, err
	}
	state := running[p.Name]
	if state == "" {
		state = host.Started
	}
	return host.Pool{Present: true, AutoStart: p.AutoStart, State: state}, nil
}

// SetPool implements host.Driver. The attribute is spliced into applicationHost.config, as IIS itself would leave it.
func (h *Host) SetPool(ctx context.Context, name string, want host.Pool) error {
	set := func() error { return h.setAutoStart(ctx, name, want.AutoStart) }
	state := func() error {
		return h.dir.UpdatePools(func(all map[string]string) error {
			if want.State == host.Started {
				delete(all, name)
			} else {
				all[name] = want.State
			}
			return nil
		})
	}
	order := []func() error{set, state}
	if want.State == host.Started {
		order = []func() error{state, set}
	}
	for _, f := range order {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

const replaceTries = 4

func (h *Host) setAutoStart(ctx context.Context, name string, value *bool) error {
	for try := 1; ; try++ {
		data, path, err := h.ApplicationHost(ctx)
		if err != nil {
			return err
		}
		srv, err := iisconfig.Parse(data, path)
		if err != nil {
			return err
		}
		e := srv.PoolElement(name)
		if e == nil {
			return fmt.Errorf("application pool %s does not exist", name)
		}
		var text *string
		if value != nil {
			s := strconv.FormatBool(*value)
			text = &s
		}
		out, err := iis.SetAttr(data, e, "autoStart", text)
		if err != nil {
			return err
		}
		if bytes.Equal(out, data) {
			return nil
		}
		if err := replace(path, data, out); err == nil || !errors.Is(err, host.ErrChanged) || try == replaceTries {
			return err
		}
	}
}

// Watch implements host.Driver.
func (h *Host) Watch(ctx context.Context, dirs []string, changed func()) error {
	add := []string{string(h.dir)}
	if p, err := h.dir.Path(labdir.ApplicationHost); err == nil {
		add = append(add, filepath.Dir(p))
	}
	for _, d := range dirs {
		if p, err := h.dir.Path(d); err == nil {
			add = append(add, p)
		}
	}
	return fswatch.Watch(ctx, add, relevant, changed)
}

func relevant(name string) bool {
	switch name {
	case labdir.ServerFile, labdir.ServicesFile, labdir.PoolsFile, labdir.ServicingFile:
		return true
	default:
		return fswatch.IISConfig(name) || strings.HasPrefix(name, labdir.ServicingFile+".") // a sign of servicing
	}
}
