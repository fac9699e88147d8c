package windows

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// pools changes application pools through appcmd, so that locking and history of applicationHost.config are IIS's own affair.
// Its exit codes are never trusted alone: what counts is what is read before and after.
type pools struct {
	// appcmd runs the program and gives what it printed.
	appcmd func(ctx context.Context, args ...string) (out string, code int, err error)
	// config reads applicationHost.config, where an attribute that is absent can be told from one that says the default.
	config       func(ctx context.Context) (*iisconfig.Server, error)
	within, poll time.Duration
}

// Exit codes of appcmd that say that it is already so, or that there is none. Source: Win32 error codes, seen in use.
const (
	codeNotFound   = 4312
	codeNotActive  = 1062
	maxAppcmdQuote = 200
)

func (p pools) get(ctx context.Context, name string) (host.Pool, error) {
	srv, err := p.config(ctx)
	if err != nil || srv == nil {
		return host.Pool{}, err
	}
	found := srv.Pool(name)
	if found == nil {
		return host.Pool{}, nil
	}
	out, code, err := p.appcmd(ctx, "list", "apppool", "/apppool.name:"+found.Name, "/text:state")
	if err != nil {
		return host.Pool{}, err
	}
	state := strings.ToUpper(strings.TrimSpace(out))
	switch state {
	case host.Started, host.Stopped:
	case "STARTING", "STOPPING", "UNKNOWN":
		if state != "UNKNOWN" || code == 0 {
			state = host.Started // not stopped
			break
		}
		fallthrough
	default:
		return host.Pool{}, fmt.Errorf("appcmd list apppool: exit code %d, %q", code, cut(out))
	}
	return host.Pool{Present: true, AutoStart: found.AutoStart, State: state}, nil
}

// set changes autoStart and state. A pool is stopped last and started first.
func (p pools) set(ctx context.Context, name string, want host.Pool) error {
	attr := func() error { return p.setAutoStart(ctx, name, want.AutoStart) }
	state := func() error { return p.setState(ctx, name, want.State) }
	if want.State == host.Started {
		return errors.Join(state(), attr())
	}
	if err := attr(); err != nil {
		return err
	}
	return state()
}

const poolsSection = "-section:system.applicationHost/applicationPools"

func (p pools) setAutoStart(ctx context.Context, name string, v *bool) error {
	now, err := p.get(ctx, name)
	if err != nil {
		return err
	}
	if !now.Present {
		return fmt.Errorf("application pool %s does not exist", name)
	}
	same := func(a, b *bool) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	if same(now.AutoStart, v) {
		return nil
	}
	args := []string{"clear", "config", poolsSection, "/[name='" + name + "'].autoStart", "/commit:apphost"}
	if v != nil {
		args = []string{"set", "config", poolsSection, "/[name='" + name + "'].autoStart:" + strconv.FormatBool(*v), "/commit:apphost"}
	}
	out, code, err := p.appcmd(ctx, args...)
	if err != nil {
		return err
	}
	after, err := p.get(ctx, name)
	if err != nil {
		return err
	}
	if !same(after.AutoStart, v) {
		return fmt.Errorf("appcmd %s: exit code %d, and autoStart is not as it should be: %q", args[0]+" "+args[1], code, cut(out))
	}
	return nil
}

func (p pools) setState(ctx context.Context, name, want string) error {
	verb := "stop"
	if want == host.Started {
		verb = "start"
	}
	end := time.Now().Add(p.within)
	for asked := false; ; {
		now, err := p.get(ctx, name)
		if err != nil {
			return err
		}
		if now.State == want {
			return nil
		}
		var out string
		var code int
		if !asked {
			if out, code, err = p.appcmd(ctx, verb, "apppool", "/apppool.name:"+name); err != nil {
				return err
			}
			asked = true
			if code != 0 && code != codeNotActive && code != codeNotFound {
				if now, err = p.get(ctx, name); err == nil && now.State != want {
					return fmt.Errorf("appcmd %s apppool: exit code %d, %q", verb, code, cut(out))
				}
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("application pool %s is still %s after %s", name, strings.ToLower(now.State), p.within)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(p.poll):
		}
	}
}

func cut(s string) string {
	return bounded.Text(strings.Join(strings.Fields(s), " "), maxAppcmdQuote)
}
