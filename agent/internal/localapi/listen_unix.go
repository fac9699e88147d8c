//go:build !windows

package localapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// maxSocketPath is the kernel's limit (sockaddr_un.sun_path) less the final NUL.
const maxSocketPath = 103

func socket(stateDir string) string { return filepath.Join(stateDir, "agent.sock") }

// Listen makes the unix socket of a state directory, for its owner only.
func Listen(stateDir string) (net.Listener, error) {
	p := socket(stateDir)
	if len(p) > maxSocketPath {
		return nil, fmt.Errorf("local API: %s is longer than %d bytes, the limit of a unix socket; use a shorter state directory", p, maxSocketPath)
	}
	if c, err := net.DialTimeout("unix", p, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("local API: another agent listens on %s", p)
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("local API: %w", err)
	}
	// The state directory is 0700 already; the socket's own mode is the second lock.
	ln, err := net.Listen("unix", p)
	if err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	if err := os.Chmod(p, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("local API: %w", err)
	}
	return ln, nil
}

func dial(ctx context.Context, stateDir string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket(stateDir))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	return c, nil
}
