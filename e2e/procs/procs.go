// Package procs runs the real binaries for the demo and the tests that kill them: it starts, kills and restarts only
// processes of its own, and keeps what they log.
package procs

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
)

// Proc is one process that can be started again.
type Proc struct {
	Name string
	path string
	args []string
	log  string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// New describes a process; its output goes to a log file, appended.
func New(name, path, log string, args ...string) *Proc {
	return &Proc{Name: name, path: path, args: args, log: log}
}

// Start starts it.
func (p *Proc) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		_ = f.Close()
		return err
	}
	p.cmd, p.done = cmd, make(chan struct{})
	done := p.done
	go func() {
		_ = cmd.Wait()
		_ = f.Close()
		close(done)
	}()
	return nil
}

// Kill ends it with SIGKILL and waits.
func (p *Proc) Kill() { p.signal(syscall.SIGKILL) }

// stopTime is how long a process may take to end on an idle machine.
const stopTime = 10 * time.Second

// Stop ends it with SIGTERM, and with SIGKILL if it takes too long.
func (p *Proc) Stop() {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done == nil {
		return
	}
	t := time.AfterFunc(patience.For(stopTime), p.Kill)
	defer t.Stop()
	p.signal(syscall.SIGTERM)
}

func (p *Proc) signal(s os.Signal) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s)
	<-done
}

// Running says whether it runs.
func (p *Proc) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID is its process id; 0 before it was started.
func (p *Proc) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Log is the file that its output goes to.
func (p *Proc) Log() string { return p.log }

// LogTail is the end of its log.
func (p *Proc) LogTail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const n = 2000
	if st, err := f.Stat(); err == nil && st.Size() > n {
		_, _ = f.Seek(-n, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, n))
	return string(data)
}

// Output runs a command to its end and gives what it printed; an error carries what it said.
func Output(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var errText strings.Builder
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(errText.String()))
	}
	return string(out), nil
}

// FreeAddr is a loopback address that nobody listens on now.
func FreeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}
