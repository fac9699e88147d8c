package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

// handler runs a function under the service control manager.
type handler struct {
	ctx context.Context
	run func(context.Context) error
	err error
}

const accepted = svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown

// Run runs a function as the service: its context ends when Windows stops the service or shuts down. An error of run ends the
// service with an exit code, so that its recovery actions start it again.
func Run(ctx context.Context, run func(context.Context) error) error {
	h := &handler{ctx: ctx, run: run}
	if err := svc.Run(Name, h); err != nil {
		return fmt.Errorf("service control manager: %w (a service is started by it, not by hand: `stopgap-agent run` without --service)", err)
	}
	return h.err
}

// Execute implements svc.Handler.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	status <- svc.Status{State: svc.Running, Accepts: accepted}
	for {
		select {
		case h.err = <-done:
			if h.err == nil {
				h.err = errors.New("the agent ended without being told to")
			}
			return true, 1 // so that recovery actions start it again
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				status <- svc.Status{State: svc.StopPending, WaitHint: uint32(StopWithin / time.Millisecond)}
				cancel()
				select {
				case h.err = <-done:
				case <-time.After(StopWithin):
				}
				return false, 0
			default:
			}
		}
	}
}

// minBuild is Windows Server 2016's: Go needs it.
const minBuild = 14393

// Supported says why this machine can't have the agent; nil when it can.
func Supported() error {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	text, _, err := k.GetStringValue("CurrentBuildNumber")
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(text); err != nil || n < minBuild {
		return fmt.Errorf("this is Windows build %s; Stopgap needs Windows Server 2016 (build %d) or later: use Microsoft's EOMT here, https://aka.ms/eomt", text, minBuild)
	}
	e, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\ExchangeServer\v15\Setup`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return nil // Exchange may come later
	}
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	if minor, _, err := e.GetIntegerValue("MsiProductMinor"); err == nil && minor == 0 {
		return errors.New("this is Exchange 2013, which Stopgap does not support: use Microsoft's EOMT here, https://aka.ms/eomt")
	}
	return nil
}

func withManager(f func(*mgr.Mgr) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service control manager: %w (an elevated prompt is needed)", err)
	}
	return errors.Join(f(m), m.Disconnect())
}

// Register makes the service, or gives the one that is there (the MSI's) this program, its path quoted; then it is tuned: recovery
// (restart, also when the service ends with an error) and a delayed start can't be said in the tables of an MSI.
func Register(exe string, delayed bool) error {
	err := withManager(func(m *mgr.Mgr) error {
		if s, err := m.OpenService(Name); err == nil {
			defer func() { _ = s.Close() }()
			path, err := windows.UTF16PtrFromString(windows.ComposeCommandLine([]string{exe, "run", "--service"}))
			if err != nil {
				return err
			}
			return windows.ChangeServiceConfig(s.Handle, windows.SERVICE_NO_CHANGE, windows.SERVICE_AUTO_START, windows.SERVICE_NO_CHANGE, path, nil, nil, nil, nil, nil, nil)
		}
		s, err := m.CreateService(Name, exe, mgr.Config{StartType: mgr.StartAutomatic, DisplayName: displayName, Description: description}, "run", "--service")
		if err != nil {
			return fmt.Errorf("the service can't be made: %w", err)
		}
		return s.Close()
	})
	if err != nil {
		return err
	}
	return tune(delayed)
}

func tune(delayed bool) error {
	return withManager(func(m *mgr.Mgr) error {
		s, err := m.OpenService(Name)
		if err != nil {
			return fmt.Errorf("service %s: %w", Name, err)
		}
		defer func() { _ = s.Close() }()
		restart := func(d time.Duration) mgr.RecoveryAction {
			return mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: d}
		}
		if err := s.SetRecoveryActions([]mgr.RecoveryAction{restart(5 * time.Second), restart(30 * time.Second), restart(5 * time.Minute)}, 24*60*60); err != nil {
			return fmt.Errorf("recovery actions: %w", err)
		}
		if err := s.SetRecoveryActionsOnNonCrashFailures(true); err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) { // Wine has none
			return fmt.Errorf("recovery actions: %w", err)
		}
		info := windows.SERVICE_DELAYED_AUTO_START_INFO{}
		if delayed {
			info.IsDelayedAutoStartUp = 1
		}
		err = windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, (*byte)(unsafe.Pointer(&info)))
		if err == nil || !errors.Is(err, windows.ERROR_INVALID_LEVEL) || !delayed {
			if errors.Is(err, windows.ERROR_INVALID_LEVEL) {
				err = nil // Wine has none
			}
			return err
		}
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+Name, registry.SET_VALUE)
		if err != nil {
			return err
		}
		return errors.Join(k.SetDWordValue("DelayedAutostart", 1), k.Close())
	})
}

// Start starts the service.
func Start() error {
	return withManager(func(m *mgr.Mgr) error {
		s, err := m.OpenService(Name)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		if err := s.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return err
		}
		return nil
	})
}

// Unregister stops the service and removes it; that there is none is no error.
func Unregister(ctx context.Context) error {
	return withManager(func(m *mgr.Mgr) error {
		s, err := m.OpenService(Name)
		if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			return fmt.Errorf("the service can't be stopped: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, 2*StopWithin)
		defer cancel()
		for {
			st, err := s.Query()
			if err != nil {
				return err
			}
			if st.State == svc.Stopped {
				return s.Delete()
			}
			select {
			case <-ctx.Done():
				return errors.New("the service does not stop")
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}
