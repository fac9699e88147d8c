package windows

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/e2e/patience"
)

// fakeService counts down: it is pending for that many looks.
type fakeService struct {
	scmStatus
	dependsOn []string
	pending   int
	stuck     bool
}

// fakeSCM refuses what Windows refuses.
type fakeSCM struct {
	all map[string]*fakeService
	did []string
}

func (f *fakeSCM) query(name string) (scmStatus, error) {
	s := f.all[name]
	if s == nil {
		return scmStatus{}, errNoService
	}
	if (s.state == stateStopPending || s.state == stateStartPending) && !s.stuck {
		s.checkPoint++
		if s.pending--; s.pending <= 0 {
			s.state = map[uint32]uint32{stateStopPending: stateStopped, stateStartPending: stateRunning}[s.state]
		}
	}
	return s.scmStatus, nil
}

func (f *fakeSCM) setStart(name string, v uint32, delayed bool) error {
	f.did = append(f.did, "type "+name)
	f.all[name].startType, f.all[name].delayed = v, delayed
	return nil
}

func (f *fakeSCM) setRecoverOnError(name string, on bool) error {
	f.all[name].recoverOnError = on
	return nil
}

func (f *fakeSCM) start(name string) error {
	s := f.all[name]
	switch {
	case s.startType == startDisabled:
		return syscall.Errno(1058)
	case s.state != stateStopped:
		return errAlreadyRunning
	}
	f.did = append(f.did, "start "+name)
	s.state, s.pending = stateStartPending, 2
	return nil
}

func (f *fakeSCM) stop(name string) error {
	s := f.all[name]
	if d, _ := f.direct(name); len(d) > 0 {
		return errDependentRunning
	}
	switch s.state {
	case stateStopped:
		return errNotActive
	case stateRunning:
	default:
		return errCannotAccept
	}
	f.did = append(f.did, "stop "+name)
	s.state, s.pending = stateStopPending, 3
	return nil
}

func (f *fakeSCM) direct(name string) ([]string, error) {
	var out []string
	for n, s := range f.all {
		if s.state != stateStopped && slices.Contains(s.dependsOn, name) {
			out = append(out, n)
		}
	}
	return out, nil
}

func quick(f *fakeSCM) services {
	return services{scm: f, patience: patience.For(50 * time.Millisecond), limit: patience.For(5 * time.Second), poll: time.Millisecond}
}

func running(deps ...string) *fakeService {
	return &fakeService{scmStatus: scmStatus{state: stateRunning, startType: startAuto, delayed: true, recoverOnError: true}, dependsOn: deps}
}

func TestAServiceIsStoppedAfterWhatDependsOnItAndComesBackAsItWas(t *testing.T) {
	t.Parallel()
	f := &fakeSCM{all: map[string]*fakeService{"base": running(), "mid": running("base"), "top": running("mid", "base"), "other": running()}}
	s := quick(f)
	before, err := s.get("base")
	if err != nil || !before.Delayed || !before.RecoverOnError {
		t.Fatalf("%+v %v", before, err)
	}
	if deps, err := s.dependents("base"); err != nil || !slices.Equal(deps, []string{"top", "mid"}) {
		t.Fatalf("%v %v", deps, err)
	}
	off := host.Service{Present: true, StartType: host.StartDisabled, State: host.Stopped}
	if err := s.set(t.Context(), "base", off); err != nil {
		t.Fatal(err)
	}
	if want := "type base, stop top, stop mid, stop base"; strings.Join(f.did, ", ") != want {
		t.Errorf("did %v, want %s", f.did, want)
	}
	if f.all["base"].recoverOnError || f.all["other"].state != stateRunning || f.all["top"].startType != startAuto {
		t.Errorf("%+v %+v %+v", f.all["base"], f.all["other"], f.all["top"])
	}
	if err := s.set(t.Context(), "base", before); err != nil {
		t.Fatal(err)
	}
	if now, err := s.get("base"); err != nil || now != before {
		t.Errorf("%+v, before %+v, %v", now, before, err)
	}
}

func TestAServiceThatHangsIsGivenUpWithWhatItShowed(t *testing.T) {
	t.Parallel()
	hung := running()
	hung.state, hung.stuck, hung.checkPoint = stateStopPending, true, 7
	f := &fakeSCM{all: map[string]*fakeService{"hung": hung}}
	err := quick(f).set(t.Context(), "hung", host.Service{StartType: host.StartDisabled, State: host.Stopped})
	if err == nil || !strings.Contains(err.Error(), "without a step (checkpoint 7)") {
		t.Fatal(err)
	}
	// One that asks for more time gets it.
	slow := running()
	slow.state, slow.pending, slow.waitHint = stateStopPending, 100, 60_000
	f = &fakeSCM{all: map[string]*fakeService{"slow": slow}}
	if err := quick(f).set(t.Context(), "slow", host.Service{StartType: host.StartDisabled, State: host.Stopped}); err != nil {
		t.Fatal(err)
	}
}

func TestAServiceThatStartsJustNowIsStoppedWhenItCanBe(t *testing.T) {
	t.Parallel()
	starting := running()
	starting.state, starting.pending = stateStartPending, 3
	f := &fakeSCM{all: map[string]*fakeService{"s": starting}}
	if err := quick(f).set(t.Context(), "s", host.Service{StartType: host.StartDisabled, State: host.Stopped}); err != nil || starting.state != stateStopped {
		t.Fatalf("%+v %v", starting, err)
	}
	if err := quick(f).set(t.Context(), "gone", host.Service{StartType: host.StartDisabled, State: host.Stopped}); err == nil {
		t.Fatal("a service that does not exist was set")
	}
}
