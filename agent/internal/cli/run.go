package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/stopgap-em/stopgap/agent"
	networkcheck "github.com/stopgap-em/stopgap/agent/internal/check"
	"github.com/stopgap-em/stopgap/agent/internal/event"
	"github.com/stopgap-em/stopgap/agent/internal/service"
	"github.com/stopgap-em/stopgap/agent/internal/settings"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/logging"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// The service's log: STATE/logs/agent.log and some older ones.
const (
	logMegabytes = 10
	logFiles     = 5
)

// removeHold is for an update that is taken back at once.
const removeHold = 10 * time.Minute

// gcPercent trades some processor time, of which an agent takes next to none, for a smaller working set.
const gcPercent = 30

func run(o *options, stderr io.Writer) *cobra.Command {
	cfg := agent.Config{}
	var level, format string
	var asService bool
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: "Runs the agent in the foreground; with --service as the Windows service, which logs to STATE/logs/agent.log and to the event\n" +
			"log. Without --controller the address is that of `install`, or of group policy; without an identity it enrols with their token.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := stderr
			if asService {
				if err := files.MakePrivateDir(o.state); err != nil {
					return err
				}
				file := &lumberjack.Logger{Filename: filepath.Join(o.state, "logs", "agent.log"), MaxSize: logMegabytes, MaxBackups: logFiles}
				defer func() { _ = file.Close() }()
				out = file
			}
			log, err := logging.New("stopgap-agent", level, format, out)
			if err != nil {
				return fmt.Errorf("%w: %w", clirun.ErrUsage, err)
			}
			cfg.StateDir, cfg.Logger = o.state, log
			if !asService {
				return foreground(cmd.Context(), cfg, nil)
			}
			events, err := event.Open()
			if err != nil {
				log.Warn("no event log; what happens stands here only", "error", err)
			}
			tell := event.NewTeller(events, log)
			// Not the context that signals end: a log-off sends one, and is no reason to stop.
			return service.Run(context.WithoutCancel(cmd.Context()), func(ctx context.Context) error {
				err := foreground(ctx, cfg, tell)
				if err != nil {
					log.Error("ended", "error", err)
					tell.Tell(event.Stopped, "The agent ended: %v. Windows starts it again.", err)
					return err
				}
				tell.Tell(event.Stopped, "The agent was stopped. What is applied stays; nothing is repaired or removed until it runs again.")
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Controller, "controller", "", "controller address, host:port (default: that of `install` or group policy)")
	f.StringVar(&cfg.ServerName, "server-name", "", "name in the controller's certificate, if it is not that of the address")
	hostFlag(c, &cfg.Host)
	f.StringVar(&cfg.Credentials, "credentials", "", "directory of ca.pem, cert.pem, key.pem (default STATE/credentials)")
	f.StringVar(&cfg.Name, "name", "", "label for people (default: the name in the certificate)")
	f.DurationVar(&cfg.PullInterval, "pull-interval", 0, "time between pulls while no stream stands (default 1h)")
	f.DurationVar(&cfg.RetryMin, "retry-min", 0, "first bound of the wait before connecting again, which is anything between 0 and it (default 2s)")
	f.DurationVar(&cfg.RetryMax, "retry-max", 0, "what that bound doubles up to (default 2m)")
	f.DurationVar(&cfg.ReconcileInterval, "reconcile-interval", 0, "time between looks at the server without an event (default 1m)")
	f.DurationVar(&cfg.RemoveHold, "remove-hold", removeHold, "how long a fixed build must have been there before mitigations for it come off by themselves")
	f.DurationVar(&cfg.ProbeWithin, "probe-within", 0, "how long a probe is repeated after a change before it counts as failed (default 20s)")
	f.StringVar(&level, "log-level", "info", "trace, debug, info, warn, error, off")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.BoolVar(&asService, "service", false, "run under the Windows service control manager")
	return c
}

// foreground enrols if that is still to be done, and runs the agent until ctx ends.
func foreground(ctx context.Context, cfg agent.Config, tell *event.Teller) error {
	proxy, err := networkcheck.SetEnvironment(os.Setenv)
	if err != nil {
		cfg.Logger.Warn("the proxy of WinHTTP can't be read; connecting without", "error", err)
	} else if proxy != "" {
		cfg.Logger.Info("using the proxy of WinHTTP", "proxy", proxy)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	cfg.Events = tell
	s, err := settings.Load(cfg.StateDir)
	if err != nil {
		return err
	}
	if cfg.Controller == "" {
		cfg.Controller = s.Controller
	}
	if cfg.ServerName == "" {
		cfg.ServerName = s.ServerName
	}
	if cfg.Credentials == "" {
		if err := enrolled(ctx, &cfg, s, tell); err != nil || ctx.Err() != nil {
			return err
		}
	}
	if cfg.Controller == "" {
		return fmt.Errorf("%w: no controller: give --controller, or `stopgap-agent install --controller`", clirun.ErrUsage)
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	tell.Tell(event.Started, "The agent %s started (version %s, controller %s).", a.ID(), shared.Version, cfg.Controller)
	return a.Run(ctx)
}

// How long to wait before trying to enrol again.
const (
	enrolFirst = 5 * time.Second
	enrolMax   = 5 * time.Minute
)

// enrolled waits until there is an identity: it enrols with the token of the installer or of group policy as often as is needed.
// Settings are read again each time, so that a token that comes later is found.
func enrolled(ctx context.Context, cfg *agent.Config, s settings.Settings, tell *event.Teller) error {
	wait, told := enrolFirst, ""
	for {
		trust.Recover(filepath.Join(cfg.StateDir, "credentials"))
		if _, err := os.Stat(filepath.Join(cfg.StateDir, "credentials", trust.KeyFile)); err == nil {
			return settings.Enrolled(cfg.StateDir)
		}
		if cfg.Controller == "" {
			cfg.Controller = s.Controller
		}
		err := tryEnrol(ctx, cfg, s, tell)
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to stop
		case errors.Is(err, errNoToken) && tell == nil: // somebody at a console
			return nil //nolint:nilerr // agent.New says what is missing
		}
		cfg.Logger.Error("not enrolled", "error", err, "again_in", wait)
		if err.Error() != told {
			told = err.Error()
			tell.Tell(event.NotEnrolled, "This server is not protected: the agent is not enrolled. %v. It tries again; `stopgap-agent check` shows where the way to the controller ends.", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, enrolMax)
		if s, err = settings.Load(cfg.StateDir); err != nil {
			return err
		}
	}
}

var errNoToken = errors.New("there is no identity, and no token to get one with")

func tryEnrol(ctx context.Context, cfg *agent.Config, s settings.Settings, tell *event.Teller) error {
	if s.Token == "" || cfg.Controller == "" {
		return errNoToken
	}
	if err := s.CheckToken(); err != nil {
		return err
	}
	id, err := agent.Enroll(ctx, agent.EnrollConfig{StateDir: cfg.StateDir, Controller: cfg.Controller, ServerName: cfg.ServerName, Token: s.Token, Host: cfg.Host, Name: cfg.Name})
	if err != nil {
		return errors.New(clirun.Text(err))
	}
	cfg.Logger.Info("enrolled", "agent", id)
	tell.Tell(event.Enrolled, "This server is enrolled as agent %s with %s.", id, cfg.Controller)
	return settings.Enrolled(cfg.StateDir)
}

// quiet is for commands that print what they have to say themselves.
func quiet() hclog.Logger { return hclog.NewNullLogger() }
