package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// stats is what a child says of itself.
type stats struct {
	Goroutines int     `json:"goroutines"`
	RSSKiB     float64 `json:"rss_kib"`
	CPUSeconds float64 `json:"cpu_s"`
	// LastMS is the floor's answer to "push".
	LastMS float64 `json:"last_ms"`
	// Outcomes committed so far, and when the last was on disk (nanoseconds since 1970).
	Outcomes     uint64 `json:"outcomes"`
	LastRecorded int64  `json:"last_recorded"`
	Error        string `json:"error,omitempty"`
}

// self reads what the kernel knows of this process.
func self() stats {
	s := stats{Goroutines: runtime.NumGoroutine()}
	if rss, cpu, err := procs.Usage(os.Getpid()); err == nil {
		s.RSSKiB, s.CPUSeconds = rss, cpu.Seconds()
	}
	return s
}

// answer serves commands on standard input, one JSON line each on standard output.
func answer(extra map[string]func() stats) error {
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var s stats
		switch cmd := in.Text(); cmd {
		case "stats":
			s = self()
		case "gc":
			debug.FreeOSMemory()
			s = self()
		default:
			f := extra[cmd]
			if f == nil {
				return fmt.Errorf("no command %q", cmd)
			}
			s = f()
		}
		if err := out.Encode(s); err != nil {
			return err
		}
	}
	return in.Err()
}

func controllerChild(ctx context.Context, dir string) error {
	log := hclog.New(&hclog.LoggerOptions{Name: "controller", Level: hclog.Error, Output: os.Stderr})
	c, err := controller.New(controller.Config{DataDir: filepath.Join(dir, "controller"), Listen: "127.0.0.1:0", Logger: log})
	if err != nil {
		return err
	}
	fmt.Println(c.Addr())
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	if err := answer(map[string]func() stats{
		"recorded": func() stats {
			s := c.Stats()
			return stats{Outcomes: s.Outcomes, LastRecorded: s.LastRecorded.UnixNano()}
		},
		"heap": profile(dir, "heap.prof", pprof.WriteHeapProfile),
		"cpu":  profile(dir, "cpu.prof", pprof.StartCPUProfile),
		"cpu-stop": func() stats {
			pprof.StopCPUProfile()
			return self()
		},
	}); err != nil {
		cancel()
		return err
	}
	cancel()
	return <-done
}

// profile writes, or begins to write, a profile of the controller beside its data.
func profile(dir, name string, write func(io.Writer) error) func() stats {
	return func() stats {
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			err = write(f)
		}
		if err != nil {
			return stats{Error: err.Error()}
		}
		return self()
	}
}

// child is a process of this program in another mode.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	addr  string
}

// Modes of children.
const (
	modeController = "controller"
	modeFloor      = "floor"
)

func startChild(mode, dir string, agents int) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(exe, "-mode", mode, "-dir", dir, "-agents", strconv.Itoa(agents))}
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("%s: %w", mode, err)
	}
	c.addr = strings.TrimSpace(line)
	return c, nil
}

func (c *child) ask(cmd string) (stats, error) {
	var s stats
	if _, err := fmt.Fprintln(c.stdin, cmd); err != nil {
		return s, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, err
	}
	if s.Error != "" {
		return s, fmt.Errorf("child: %s", s.Error)
	}
	return s, nil
}

func (c *child) stop() {
	_ = c.stdin.Close()
	t := time.AfterFunc(patience.For(15*time.Second), func() { _ = c.cmd.Process.Kill() })
	_ = c.cmd.Wait()
	t.Stop()
}
