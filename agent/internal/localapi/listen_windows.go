package localapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A blocking named pipe through x/sys/windows: go-winio's Accept never returns under Wine.

// pipeSDDL lets in SYSTEM and Administrators, nobody else.
const pipeSDDL = "D:P(A;;GA;;;SY)(A;;GA;;;BA)"

const pipeBuffer = 64 << 10

func pipeName(stateDir string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(stateDir)))
	return fmt.Sprintf(`\\.\pipe\stopgap-agent-%x`, sum[:6])
}

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

type pipeListener struct {
	name   string
	sa     *windows.SecurityAttributes
	mu     sync.Mutex
	next   windows.Handle
	closed bool
}

// Listen makes the named pipe of a state directory, for SYSTEM and Administrators only.
func Listen(stateDir string) (net.Listener, error) {
	sd, err := windows.SecurityDescriptorFromString(pipeSDDL)
	if err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	l := &pipeListener{name: pipeName(stateDir), sa: &windows.SecurityAttributes{SecurityDescriptor: sd}}
	l.sa.Length = uint32(unsafe.Sizeof(*l.sa))
	if l.next, err = l.create(windows.FILE_FLAG_FIRST_PIPE_INSTANCE); err != nil {
		return nil, fmt.Errorf("local API: %s: %w", l.name, err)
	}
	return l, nil
}

func (l *pipeListener) create(flags uint32) (windows.Handle, error) {
	n, err := windows.UTF16PtrFromString(l.name)
	if err != nil {
		return 0, err
	}
	return windows.CreateNamedPipe(n, windows.PIPE_ACCESS_DUPLEX|flags,
		windows.PIPE_TYPE_BYTE|windows.PIPE_WAIT|windows.PIPE_REJECT_REMOTE_CLIENTS,
		windows.PIPE_UNLIMITED_INSTANCES, pipeBuffer, pipeBuffer, 0, l.sa)
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		h, closed := l.next, l.closed
		l.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		err := windows.ConnectNamedPipe(h, nil)
		l.mu.Lock()
		if l.closed {
			_ = windows.CloseHandle(h)
			l.mu.Unlock()
			return nil, net.ErrClosed
		}
		next, cerr := l.create(0)
		if cerr != nil {
			l.mu.Unlock()
			return nil, cerr
		}
		l.next = next
		l.mu.Unlock()
		if err != nil && !errors.Is(err, windows.ERROR_PIPE_CONNECTED) {
			_ = windows.CloseHandle(h)
			continue
		}
		return newPipeConn(h, l.name), nil
	}
}

// Close implements net.Listener. A blocked Accept is woken by a connection of our own.
func (l *pipeListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	if c, err := open(l.name); err == nil {
		return windows.CloseHandle(c)
	}
	return nil
}

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.name) }

func open(name string) (windows.Handle, error) {
	n, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	return windows.CreateFile(n, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, 0, 0)
}

// pipeConn is a pipe's end. Deadlines are not supported by blocking pipes; the calls have contexts. Reads and writes of a
// synchronous handle wait for each other, so a reader looks (PeekNamedPipe) before it reads.
type pipeConn struct {
	*os.File
	h    windows.Handle
	name string
	once sync.Once
	done chan struct{}
}

func newPipeConn(h windows.Handle, name string) *pipeConn {
	return &pipeConn{File: os.NewFile(uintptr(h), name), h: h, name: name, done: make(chan struct{})}
}

const peekEvery = 5 * time.Millisecond

var peekNamedPipe = windows.NewLazySystemDLL("kernel32.dll").NewProc("PeekNamedPipe")

// Read implements net.Conn.
func (c *pipeConn) Read(p []byte) (int, error) {
	for {
		var avail uint32
		if r, _, err := peekNamedPipe.Call(uintptr(c.h), 0, 0, 0, uintptr(unsafe.Pointer(&avail)), 0); r == 0 {
			select {
			case <-c.done:
				return 0, net.ErrClosed
			default:
				return 0, err
			}
		}
		if avail > 0 {
			return c.File.Read(p[:min(len(p), int(avail))])
		}
		select {
		case <-c.done:
			return 0, net.ErrClosed
		case <-time.After(peekEvery):
		}
	}
}

// Close implements net.Conn.
func (c *pipeConn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.done)
		err = c.File.Close()
	})
	return err
}

func (c *pipeConn) LocalAddr() net.Addr              { return pipeAddr(c.name) }
func (c *pipeConn) RemoteAddr() net.Addr             { return pipeAddr(c.name) }
func (c *pipeConn) SetDeadline(time.Time) error      { return nil }
func (c *pipeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }

func dial(ctx context.Context, stateDir string) (net.Conn, error) {
	name := pipeName(stateDir)
	for {
		h, err := open(name)
		if err == nil {
			return newPipeConn(h, name), nil
		}
		if !errors.Is(err, windows.ERROR_PIPE_BUSY) {
			return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(peekEvery):
		}
	}
}
