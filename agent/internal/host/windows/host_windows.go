package windows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/host/fswatch"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// Host is this machine.
type Host struct {
	inetsrv  string // %windir%\system32\inetsrv
	replacer replacer
	services services
	pools    pools

	buildFile string // keeps settled

	mu      sync.Mutex
	settled settling
	// Services read so far, as they were: Watch looks at them.
	seen map[string]host.Service
}

var _ host.Driver = (*Host)(nil)

// Bounds.
const (
	maxFile       = 4 << 20
	replaceWithin = 15 * time.Second
	replacePause  = 200 * time.Millisecond
	poolWithin    = 2 * time.Minute
	poolPoll      = 500 * time.Millisecond
	appcmdTimeout = time.Minute
	// appcmdPipes is how long appcmd's output is read after it ended.
	appcmdPipes = 5 * time.Second
	// crashed is the first exit code that Windows gives to a program that crashed (an NTSTATUS of severity error).
	crashed = 0xC0000000
	// How long a service may take: for a step, and altogether.
	servicePatience = 20 * time.Second
	serviceLimit    = 3 * time.Minute
	serviceStep     = 100 * time.Millisecond
	// servicePoll is how often Watch looks at services.
	servicePoll = 10 * time.Second
)

// Open opens this machine. stateDir is the agent's; proven backups of replaced files are kept below it.
func Open(stateDir string) (host.Driver, error) {
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return nil, fmt.Errorf("host windows: %w", err)
	}
	h := &Host{buildFile: filepath.Join(stateDir, "build.json"), inetsrv: filepath.Join(system, "inetsrv"), seen: map[string]host.Service{}}
	h.replacer = replacer{fs: winFS{keep: filepath.Join(stateDir, "backups")}, within: replaceWithin, pause: replacePause}
	h.services = services{scm: winSCM{}, patience: servicePatience, limit: serviceLimit, poll: serviceStep}
	h.pools = pools{appcmd: h.appcmd, config: h.server, within: poolWithin, poll: poolPoll}
	if raw, err := os.ReadFile(h.buildFile); err == nil && json.Unmarshal(raw, &h.settled) != nil {
		h.settled = settling{} // as on the first day
	}
	return h, nil
}

func (h *Host) appcmd(ctx context.Context, args ...string) (string, int, error) {
	ctx, cancel := context.WithTimeout(ctx, appcmdTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(h.inetsrv, "appcmd.exe"), args...)
	cmd.WaitDelay = appcmdPipes
	var out boundedOutput
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	code := 0
	var exit *exec.ExitError
	switch {
	case err != nil && ctx.Err() != nil:
		return out.text.String(), 0, fmt.Errorf("appcmd: %w", ctx.Err())
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		return "", 0, fmt.Errorf("appcmd: %w", err)
	}
	if out.cut {
		return "", 0, fmt.Errorf("appcmd: it prints more than %d bytes", maxOutput)
	}
	return out.text.String(), code, nil
}

func (h *Host) server(ctx context.Context) (*iisconfig.Server, error) {
	data, name, err := h.ApplicationHost(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no IIS
	}
	if err != nil {
		return nil, err
	}
	return iisconfig.Parse(data, name)
}

// ApplicationHost implements host.Driver.
func (h *Host) ApplicationHost(context.Context) ([]byte, string, error) {
	return readBounded(filepath.Join(h.inetsrv, "config", "applicationHost.config"))
}

// Redirection implements host.Driver.
func (h *Host) Redirection(context.Context) ([]byte, string, error) {
	return readBounded(filepath.Join(h.inetsrv, "config", "redirection.config"))
}

func readBounded(p string) ([]byte, string, error) {
	st, err := os.Stat(p)
	if err == nil && st.Size() > maxFile {
		err = fmt.Errorf("%s: %d bytes, limit %d: %w", p, st.Size(), maxFile, iisconfig.ErrTooLarge)
	}
	if err != nil {
		return nil, p, err
	}
	data, err := os.ReadFile(p)
	return data, p, err
}

// expand gives the real path of a physical path as written in applicationHost.config.
func expand(dir string) (string, error) {
	p, err := registry.ExpandString(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	p = filepath.Clean(p)
	if !filepath.IsAbs(p) || strings.HasPrefix(p, `\\`) {
		return "", fmt.Errorf("%s is not a path on a disk of this server", dir)
	}
	return p, nil
}

// ConfigFile implements host.Driver.
func (h *Host) ConfigFile(dir, file string) ([]byte, string, error) {
	d, err := expand(dir)
	if err != nil {
		return nil, dir, err
	}
	p := filepath.Join(d, file)
	data, err := h.replacer.read(p)
	return data, p, err
}

// Canonical implements host.Driver: variables expanded, links followed, short names written out.
func (h *Host) Canonical(dir string) string {
	p, err := expand(dir)
	if err != nil {
		return strings.ToLower(strings.TrimRight(dir, `\/`))
	}
	if real, err := filepath.EvalSymlinks(p); err == nil {
		p = real
	}
	return strings.ToLower(strings.TrimRight(p, `\`))
}

// MaxConfigBytes implements host.Driver. Source: IIS support blog, "Web.config file maximum size and count".
func (h *Host) MaxConfigBytes() int {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\InetStp\Configuration`, registry.QUERY_VALUE)
	if err != nil {
		return iisconfig.DefaultMaxBytes
	}
	defer func() { _ = k.Close() }()
	kb, _, err := k.GetIntegerValue("MaxWebConfigFileSizeInKB")
	if err != nil || kb == 0 || kb > maxFile/1024 {
		return iisconfig.DefaultMaxBytes
	}
	return int(kb) * 1024
}

// ReplaceConfig implements host.Driver.
func (h *Host) ReplaceConfig(ctx context.Context, dir, file string, old, data []byte) error {
	d, err := expand(dir)
	if err != nil {
		return err
	}
	p := filepath.Join(d, file)
	switch {
	case old == nil:
		return h.replacer.create(p, data)
	case data == nil:
		return h.replacer.remove(p, old)
	}
	return h.replacer.replace(ctx, p, old, data)
}

// Effective implements host.Driver. Source: "Getting Started with AppCmd.exe" (Microsoft Learn); /config:* adds the schema's
// defaults.
func (h *Host) Effective(ctx context.Context, app, section string) ([]byte, error) {
	out, code, err := h.appcmd(ctx, "list", "config", app, "-section:system.webServer/rewrite/"+section, "/config:*", "/xml")
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(out) == "" && code != 0 || code < 0 || code >= crashed {
		return nil, fmt.Errorf("appcmd: it ended with exit code %#x and printed %q", uint32(code), cut(out))
	}
	if code != 0 {
		return nil, &host.IISError{Text: fmt.Sprintf("IIS can't read %s of %s: exit code %d, %q", section, app, code, cut(out))}
	}
	return []byte(out), nil
}

// FrontEnd implements host.Driver.
func (h *Host) FrontEnd(ctx context.Context) (base, name string, err error) {
	srv, err := h.server(ctx)
	if err != nil || srv == nil {
		return "", "", err
	}
	for _, s := range srv.FrontEndSites() {
		if base, name := s.Loopback(); base != "" {
			return base, name, nil
		}
	}
	return "", "", nil
}

// Service implements host.Driver.
func (h *Host) Service(_ context.Context, name string) (host.Service, error) {
	s, err := h.services.get(name)
	if err == nil {
		h.mu.Lock()
		h.seen[name] = s
		h.mu.Unlock()
	}
	return s, err
}

// Dependents implements host.Driver.
func (h *Host) Dependents(_ context.Context, name string) ([]string, error) {
	return h.services.dependents(name)
}

// SetService implements host.Driver.
func (h *Host) SetService(ctx context.Context, name string, want host.Service) error {
	return h.services.set(ctx, name, want)
}

// Pool implements host.Driver.
func (h *Host) Pool(ctx context.Context, name string) (host.Pool, error) {
	return h.pools.get(ctx, name)
}

// SetPool implements host.Driver.
func (h *Host) SetPool(ctx context.Context, name string, want host.Pool) error {
	return h.pools.set(ctx, name, want)
}

// Watch implements host.Driver. Files are watched; services that were read are looked at every few seconds; what a running pool
// does is seen at the next pass.
func (h *Host) Watch(ctx context.Context, dirs []string, changed func()) error {
	add := []string{filepath.Join(h.inetsrv, "config")}
	for _, d := range dirs {
		if p, err := expand(d); err == nil {
			add = append(add, p)
		}
	}
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-wctx.Done():
				return
			case <-time.After(servicePoll):
				if h.servicesChanged() {
					changed()
				}
			}
		}
	})
	err := fswatch.Watch(wctx, add, fswatch.IISConfig, changed)
	stop()
	wg.Wait()
	return err
}

func (h *Host) servicesChanged() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := false
	for name, was := range h.seen {
		if now, err := h.services.get(name); err == nil && now != was {
			h.seen[name], found = now, true
		}
	}
	return found
}
