// Package hosttest is the behaviour every host driver must have.
package hosttest

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// Server is a server that a suite may play with: a Mailbox server with the service MSExchangeTransport (running, automatic)
// and the pool MSExchangeOWAAppPool (started, autoStart absent).
type Server struct {
	Driver host.Driver
	// Dir is the physical directory of an application with a web.config.
	Dir string
	// Change changes that web.config as somebody else would.
	Change func(t *testing.T, data []byte)
}

// Run runs the suite. fresh gives a new server each time.
func Run(t *testing.T, fresh func(t *testing.T) Server) {
	t.Run("facts name build and roles", func(t *testing.T) {
		t.Parallel()
		f, err := fresh(t).Driver.Facts(t.Context())
		if err != nil || f.GetExchangeBuild() == "" || len(f.GetRoles()) == 0 || f.GetMachineId() == "" {
			t.Fatalf("got %v, %v", f, err)
		}
	})

	t.Run("a web.config is replaced whole, and not when somebody changed it meanwhile", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		old, _, err := s.Driver.ConfigFile(s.Dir, iisconfig.WebConfig)
		if err != nil {
			t.Fatal(err)
		}
		next := append(append([]byte(nil), old...), "<!-- x -->"...)
		if err := s.Driver.ReplaceConfig(t.Context(), s.Dir, iisconfig.WebConfig, old, next); err != nil {
			t.Fatal(err)
		}
		if now, _, err := s.Driver.ConfigFile(s.Dir, iisconfig.WebConfig); err != nil || string(now) != string(next) {
			t.Fatalf("%v\n%s", err, now)
		}
		theirs := []byte("<configuration>theirs</configuration>")
		s.Change(t, theirs)
		if err := s.Driver.ReplaceConfig(t.Context(), s.Dir, iisconfig.WebConfig, next, old); !errors.Is(err, host.ErrChanged) {
			t.Fatalf("over somebody else's change: %v", err)
		}
		if now, _, _ := s.Driver.ConfigFile(s.Dir, iisconfig.WebConfig); string(now) != string(theirs) {
			t.Fatalf("their change was lost:\n%s", now)
		}
	})

	t.Run("a missing web.config is fs.ErrNotExist", func(t *testing.T) {
		t.Parallel()
		if _, _, err := fresh(t).Driver.ConfigFile(`C:\no\such\dir`, iisconfig.WebConfig); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	})

	t.Run("a service is stopped and disabled, and brought back as it was", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		before, err := s.Driver.Service(t.Context(), "MSExchangeTransport")
		if err != nil || !before.Present || before.State != host.Running {
			t.Fatalf("%+v %v", before, err)
		}
		off := before
		off.StartType, off.State = host.StartDisabled, host.Stopped
		for _, want := range []host.Service{off, off, before} {
			if err := s.Driver.SetService(t.Context(), "MSExchangeTransport", want); err != nil {
				t.Fatal(err)
			}
			if now, err := s.Driver.Service(t.Context(), "MSExchangeTransport"); err != nil || now != want {
				t.Fatalf("%+v, want %+v, %v", now, want, err)
			}
		}
		if now, err := s.Driver.Service(t.Context(), "NoSuchService"); err != nil || now.Present {
			t.Fatalf("a service that does not exist: %+v %v", now, err)
		}
		if err := s.Driver.SetService(t.Context(), "NoSuchService", off); err == nil {
			t.Fatal("a service that does not exist was set")
		}
	})

	t.Run("what depends on a service is listed, and stopped before it", func(t *testing.T) {
		t.Parallel()
		d := fresh(t).Driver
		deps, err := d.Dependents(t.Context(), "MSExchangeADTopology")
		if err != nil || !slices.Contains(deps, "MSExchangeTransport") {
			t.Fatalf("%v %v", deps, err)
		}
		s, err := d.Service(t.Context(), "MSExchangeADTopology")
		if err != nil {
			t.Fatal(err)
		}
		s.StartType, s.State = host.StartDisabled, host.Stopped
		if err := d.SetService(t.Context(), "MSExchangeADTopology", s); err != nil {
			t.Fatal(err)
		}
		if dep, err := d.Service(t.Context(), "MSExchangeTransport"); err != nil || dep.State != host.Stopped || dep.StartType != host.StartAutomatic {
			t.Fatalf("the dependent is %+v, %v", dep, err)
		}
		if deps, err := d.Dependents(t.Context(), "MSExchangeADTopology"); err != nil || len(deps) != 0 {
			t.Fatalf("none runs, listed %v %v", deps, err)
		}
	})
	t.Run("a file is made only where there is none, and deleted only as it was made", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		d, made := s.Driver, []byte("<rules />")
		const name = "stopgap-test.config"
		if _, _, err := d.ConfigFile(s.Dir, name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := d.ReplaceConfig(t.Context(), s.Dir, name, nil, made); err != nil {
			t.Fatal(err)
		}
		if now, _, err := d.ConfigFile(s.Dir, name); err != nil || string(now) != string(made) {
			t.Fatalf("%q %v", now, err)
		}
		if err := d.ReplaceConfig(t.Context(), s.Dir, name, nil, []byte("<other />")); !errors.Is(err, host.ErrChanged) {
			t.Fatalf("a file that is there was made again: %v", err)
		}
		if err := d.ReplaceConfig(t.Context(), s.Dir, name, []byte("<other />"), nil); !errors.Is(err, host.ErrChanged) {
			t.Fatalf("a file of other content was deleted: %v", err)
		}
		if err := d.ReplaceConfig(t.Context(), s.Dir, name, made, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.ConfigFile(s.Dir, name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	})

	t.Run("a directory has one canonical spelling", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		want := s.Driver.Canonical(s.Dir)
		for _, other := range []string{s.Dir + `\`, strings.ToUpper(s.Dir), strings.ToLower(s.Dir)} {
			if got := s.Driver.Canonical(other); got != want {
				t.Errorf("%q: %q, want %q", other, got, want)
			}
		}
	})

	t.Run("a pool is stopped, and applicationHost.config is byte for byte what it was when it is back", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		config, _, err := s.Driver.ApplicationHost(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before, err := s.Driver.Pool(t.Context(), "MSExchangeOWAAppPool")
		if err != nil || !before.Present || before.State != host.Started || before.AutoStart != nil {
			t.Fatalf("%+v %v", before, err)
		}
		no := false
		if err := s.Driver.SetPool(t.Context(), "MSExchangeOWAAppPool", host.Pool{Present: true, AutoStart: &no, State: host.Stopped}); err != nil {
			t.Fatal(err)
		}
		if now, err := s.Driver.Pool(t.Context(), "MSExchangeOWAAppPool"); err != nil || now.State != host.Stopped || now.AutoStart == nil || *now.AutoStart {
			t.Fatalf("%+v %v", now, err)
		}
		if err := s.Driver.SetPool(t.Context(), "MSExchangeOWAAppPool", before); err != nil {
			t.Fatal(err)
		}
		if now, _, err := s.Driver.ApplicationHost(t.Context()); err != nil || string(now) != string(config) {
			t.Fatalf("applicationHost.config differs, %v", err)
		}
		if now, err := s.Driver.Pool(t.Context(), "NoSuchPool"); err != nil || now.Present {
			t.Fatalf("a pool that does not exist: %+v %v", now, err)
		}
	})

	t.Run("a watch tells when it begins and of every change", func(t *testing.T) {
		t.Parallel()
		s := fresh(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		told := make(chan struct{}, 8)
		done := make(chan struct{}, 1)
		go func() {
			if err := s.Driver.Watch(ctx, []string{s.Dir}, func() { told <- struct{}{} }); err != nil {
				t.Error(err)
			}
			done <- struct{}{}
		}()
		for _, what := range []string{"begin", "change"} {
			select {
			case <-told:
			case <-ctx.Done():
				t.Fatalf("not told of the %s", what)
			}
			s.Change(t, []byte("<configuration/>"))
		}
		cancel()
		<-done
	})
}
