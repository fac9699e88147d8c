package windows

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// fakeIIS answers as appcmd does; codes lie where lie says so.
type fakeIIS struct {
	auto    *bool
	state   string
	deaf    bool // says 0 and does nothing
	calls   []string
	missing bool
}

func (f *fakeIIS) appcmd(_ context.Context, args ...string) (string, int, error) {
	f.calls = append(f.calls, strings.Join(args, " "))
	switch args[0] {
	case "list":
		return f.state + "\r\n", 0, nil
	case "clear":
		if !f.deaf {
			f.auto = nil
		}
	case "set":
		if v := strings.HasSuffix(args[3], ":true"); !f.deaf {
			f.auto = &v
		}
	case "stop":
		if f.state == "Stopped" {
			return "ERROR ( message:The object 'P' is already stopped. )", codeNotActive, nil
		}
		if !f.deaf {
			f.state = "Stopped"
		}
	case "start":
		f.state = "Started"
	}
	return "", 0, nil
}

func (f *fakeIIS) config(context.Context) (*iisconfig.Server, error) {
	s := &iisconfig.Server{}
	if !f.missing {
		s.Pools = append(s.Pools, &iisconfig.Pool{Name: "P", AutoStart: f.auto})
	}
	return s, nil
}

func (f *fakeIIS) pools() pools {
	return pools{appcmd: f.appcmd, config: f.config, within: patience.For(50 * time.Millisecond), poll: time.Millisecond}
}

func TestAPoolIsStoppedAndAnAbsentAttributeIsAbsentAgain(t *testing.T) {
	t.Parallel()
	f := &fakeIIS{state: "Started"}
	before, err := f.pools().get(t.Context(), "P")
	if err != nil || before.AutoStart != nil || before.State != host.Started {
		t.Fatalf("%+v %v", before, err)
	}
	no := false
	if err := f.pools().set(t.Context(), "P", host.Pool{AutoStart: &no, State: host.Stopped}); err != nil || f.state != "Stopped" || f.auto == nil || *f.auto {
		t.Fatalf("%+v %v", f, err)
	}
	if err := f.pools().set(t.Context(), "P", before); err != nil || f.state != "Started" || f.auto != nil {
		t.Fatalf("%+v %v", f, err)
	}
}

func TestAnExitCodeIsNeverTrustedAlone(t *testing.T) {
	t.Parallel()
	no := false
	f := &fakeIIS{state: "Started", deaf: true}
	if err := f.pools().set(t.Context(), "P", host.Pool{AutoStart: &no, State: host.Stopped}); err == nil || !strings.Contains(err.Error(), "autoStart is not as it should be") {
		t.Fatal(err)
	}
	f.auto = &no
	if err := f.pools().set(t.Context(), "P", host.Pool{AutoStart: &no, State: host.Stopped}); err == nil || !strings.Contains(err.Error(), "still started") {
		t.Fatal(err)
	}
	if p, err := (&fakeIIS{missing: true}).pools().get(t.Context(), "P"); err != nil || p.Present {
		t.Fatalf("%+v %v", p, err)
	}
}
