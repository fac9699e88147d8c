package windows

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
)

// Values of the service control manager. Source: SERVICE_STATUS, QUERY_SERVICE_CONFIGW in the Windows API reference.
const (
	stateStopped      = 1
	stateStartPending = 2
	stateStopPending  = 3
	stateRunning      = 4

	startAuto     = 2
	startDemand   = 3
	startDisabled = 4
)

// Errors of the service control manager that say that it is already so.
const (
	errDependentRunning = syscall.Errno(1051)
	errAlreadyRunning   = syscall.Errno(1056)
	errCannotAccept     = syscall.Errno(1061) // it starts or stops just now
	errNotActive        = syscall.Errno(1062)
)

var errNoService = errors.New("the service does not exist")

// scmStatus is a service as the service control manager shows it.
type scmStatus struct {
	state, startType     uint32
	delayed              bool
	recovery             string
	recoverOnError       bool
	checkPoint, waitHint uint32 // of a pending state; the hint in milliseconds
}

// scm is the service control manager. Errors: errNoService, syscall.Errno.
type scm interface {
	query(name string) (scmStatus, error)
	// setStart changes the start type and nothing else; delayed only for startAuto.
	setStart(name string, startType uint32, delayed bool) error
	setRecoverOnError(name string, on bool) error
	start(name string) error
	stop(name string) error
	// direct lists the running services that directly depend on one.
	direct(name string) ([]string, error)
}

// services brings services to a state and waits until they are there.
type services struct {
	scm scm
	// A pending service must make a step at least every patience, or its wait hint if that is longer, and end within limit.
	patience, limit, poll time.Duration
}

func startName(v uint32) string {
	switch v {
	case startAuto:
		return host.StartAutomatic
	case startDemand:
		return host.StartManual
	case startDisabled:
		return host.StartDisabled
	}
	return fmt.Sprintf("TYPE_%d", v) // boot and system: drivers
}

// get reads a service. One that is starting, stopping or paused counts as running: it is not stopped.
func (s services) get(name string) (host.Service, error) {
	st, err := s.scm.query(name)
	if errors.Is(err, errNoService) {
		return host.Service{}, nil
	}
	if err != nil {
		return host.Service{}, err
	}
	out := host.Service{Present: true, StartType: startName(st.startType), Delayed: st.delayed, State: host.Running, Recovery: st.recovery, RecoverOnError: st.recoverOnError}
	if st.state == stateStopped {
		out.State = host.Stopped
	}
	return out, nil
}

func (s services) dependents(name string) ([]string, error) {
	var failed error
	out := host.StopOrder(name, func(n string) []string {
		d, err := s.scm.direct(n)
		failed = errors.Join(failed, err)
		return d
	})
	return out, failed
}

// set brings a service to a start type and state. The start type comes first: a service that is stopped while it is automatic
// could be started by others, and one that is disabled can't be started.
func (s services) set(ctx context.Context, name string, want host.Service) error {
	st, err := s.scm.query(name)
	if err != nil {
		return err
	}
	types := map[string]uint32{host.StartAutomatic: startAuto, host.StartManual: startDemand, host.StartDisabled: startDisabled}
	start, ok := types[want.StartType]
	if !ok {
		return fmt.Errorf("start type %s can't be set", want.StartType)
	}
	if st.startType != start || start == startAuto && st.delayed != want.Delayed {
		if err := s.scm.setStart(name, start, want.Delayed); err != nil {
			return fmt.Errorf("start type %s: %w", want.StartType, err)
		}
	}
	if st.recoverOnError != want.RecoverOnError {
		if err := s.scm.setRecoverOnError(name, want.RecoverOnError); err != nil {
			return fmt.Errorf("recovery actions: %w", err)
		}
	}
	if want.State == host.Running {
		return s.run(ctx, name)
	}
	deps, err := s.dependents(name)
	if err != nil {
		return err
	}
	for _, d := range append(deps, name) {
		if err := s.halt(ctx, d); err != nil {
			return fmt.Errorf("%s can't be stopped: %w", d, err)
		}
	}
	return nil
}

func (s services) run(ctx context.Context, name string) error {
	return s.bring(ctx, name, stateRunning, func() error {
		if err := s.scm.start(name); !errors.Is(err, errAlreadyRunning) {
			return err
		}
		return nil
	})
}

func (s services) halt(ctx context.Context, name string) error {
	return s.bring(ctx, name, stateStopped, func() error {
		err := s.scm.stop(name)
		if errors.Is(err, errNotActive) || errors.Is(err, errCannotAccept) || errors.Is(err, errDependentRunning) {
			return nil // looked at again
		}
		return err
	})
}

// bring asks for a state, again while the service is in neither it nor on the way, and waits as the service asks to be waited for:
// its checkpoint must move on.
func (s services) bring(ctx context.Context, name string, want uint32, ask func() error) error {
	end := time.Now().Add(s.limit)
	pending := uint32(stateStartPending)
	if want == stateStopped {
		pending = stateStopPending
	}
	var last scmStatus
	step, asked := time.Now(), false
	for {
		st, err := s.scm.query(name)
		if err != nil {
			return err
		}
		switch {
		case st.state == want:
			return nil
		case want == stateRunning && st.state == stateStopPending: // first it must have stopped
		case st.state != pending && (!asked || want == stateStopped):
			if err := ask(); err != nil {
				return err
			}
			asked = true
		case st.state == stateStopped: // asked to start, and stopped again
			return errors.New("it was started and stopped at once; the event log says why")
		}
		now := time.Now()
		if st.state != last.state || st.checkPoint != last.checkPoint {
			last, step = st, now
		}
		wait := max(s.patience, time.Duration(st.waitHint)*time.Millisecond)
		if now.Sub(step) > wait || now.After(end) {
			return fmt.Errorf("state %d for %s without a step (checkpoint %d)", st.state, now.Sub(step).Round(time.Second), st.checkPoint)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.poll):
		}
	}
}
