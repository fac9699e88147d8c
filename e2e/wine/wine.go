// Package wine runs the agent that ships, a Windows program, on Linux: it makes a Wine prefix that looks like an Exchange server and
// drives it. What Wine can't show is listed in docs/windows-verification.md. Tests only (build tag wine: `make test-windows`).
package wine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
)

// Prefix is one Wine prefix: a Windows of its own.
type Prefix struct {
	Dir string
	env []string
}

// commandTimeout bounds one command in a prefix on an idle machine.
const commandTimeout = 90 * time.Second

// New makes a prefix.
func New(ctx context.Context, dir string) (*Prefix, error) {
	p := &Prefix{Dir: dir}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "DISPLAY=") && !strings.HasPrefix(e, "WINE") {
			p.env = append(p.env, e)
		}
	}
	// Neither .NET nor a browser engine is asked for.
	p.env = append(p.env, "WINEPREFIX="+dir, "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=")
	if _, err := p.Run(ctx, "wineboot", "-i"); err != nil {
		return nil, err
	}
	if err := p.server(ctx, "-w"); err != nil {
		return nil, fmt.Errorf("wineserver -w: %w", err)
	}
	// Go's random numbers come from ProcessPrng, which Wine 8 lacks.
	dll, err := forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036")
	if err != nil {
		return nil, err
	}
	if err := p.Write(`C:\windows\system32\bcryptprimitives.dll`, dll); err != nil {
		return nil, err
	}
	// Keeps services alive between commands.
	if err := p.server(ctx, "-p"); err != nil {
		return nil, fmt.Errorf("wineserver -p: %w", err)
	}
	// Without it Wine says it is Windows 7.
	_, err = p.Run(ctx, "reg", "add", `HKCU\Software\Wine`, "/v", "Version", "/d", "win10", "/f")
	return p, err
}

func (p *Prefix) server(ctx context.Context, arg string) error {
	cmd := exec.CommandContext(ctx, "wineserver", arg)
	cmd.Env = p.env
	return cmd.Run()
}

// Close ends everything in the prefix.
func (p *Prefix) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience.For(commandTimeout))
	defer cancel()
	_ = p.server(ctx, "-k")
	_ = p.server(ctx, "-w")
}

// Command is a Windows program, by name or Windows path. The process is the program itself: killing it kills that.
func (p *Prefix) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "wine", append([]string{name}, args...)...)
	cmd.Env = p.env
	return cmd
}

// Run runs a Windows program to its end and gives what it printed; the error says so too.
func (p *Prefix) Run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience.For(commandTimeout))
	defer cancel()
	// A file, not a pipe: what the program starts (a service) keeps it open.
	f, err := os.CreateTemp("", "wine")
	if err != nil {
		return "", err
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	cmd := p.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, rerr := os.ReadFile(f.Name())
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), rerr
}

// Path is where a Windows path on drive C is on this machine.
func (p *Prefix) Path(windows string) string {
	return filepath.Join(p.Dir, "drive_c", filepath.FromSlash(strings.ReplaceAll(strings.TrimPrefix(windows, `C:\`), `\`, "/")))
}

// Write writes a file by its Windows path.
func (p *Prefix) Write(windows string, data []byte) error {
	path := p.Path(windows)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o755)
}

// Read reads a file by its Windows path.
func (p *Prefix) Read(windows string) ([]byte, error) { return os.ReadFile(p.Path(windows)) }

// Reg sets a registry value.
func (p *Prefix) Reg(ctx context.Context, key, name, kind, value string) error {
	_, err := p.Run(ctx, "reg", "add", key, "/v", name, "/t", kind, "/d", value, "/f")
	return err
}

// ServiceState is what `sc query` says: RUNNING, STOPPED, ...; "" when there is no such service.
func (p *Prefix) ServiceState(ctx context.Context, name string) string {
	out, err := p.Run(ctx, "sc", "query", name)
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) >= 4 && f[0] == "STATE" {
			return f[3]
		}
	}
	return ""
}
