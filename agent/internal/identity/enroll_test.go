package identity

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// tokenFor is a token of an issuer, for what it serves now.
func (i *issuer) tokenFor(floor uint64) string {
	i.t.Helper()
	tok, err := trust.NewToken(trust.KeyFingerprint(i.ca), tufpolicy.RootFingerprint(i.root), floor)
	if err != nil {
		i.t.Fatal(err)
	}
	return tok.String()
}

func (i *issuer) config(state string) Config {
	return Config{StateDir: state, Controller: "127.0.0.1:443", ServerName: "controller", Token: i.tokenFor(7), Dialer: i.dial,
		Facts: func(context.Context) (*stopgapv1.Facts, error) {
			return &stopgapv1.Facts{Host: "EX 01.contoso.com", MachineId: "m-1"}, nil
		}}
}

func TestEnrollingGivesCredentialsAndTheAnchorOfTheToken(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.root = root(t)
	i.serve()
	state := filepath.Join(t.TempDir(), "state")
	id, err := Enroll(t.Context(), i.config(state))
	if err != nil {
		t.Fatal(err)
	}
	if i.asked.GetName() != "EX-01.contoso.com" || i.asked.GetMachineId() != "m-1" {
		t.Errorf("it asked for %v", i.asked)
	}
	c, err := Open(filepath.Join(state, CredentialsDir))
	if err != nil || c.Get().Identity != (trust.Identity{Fleet: "lab", Kind: trust.KindAgent, ID: id}) {
		t.Errorf("%+v %v", c.Get().Identity, err)
	}
	a, err := policy.ReadAnchor(state)
	if err != nil || !bytes.Equal(a.Root, i.root) || a.Floor != 7 || !a.Fresh || a.Replace {
		t.Errorf("anchor %+v %v", a, err)
	}
	if _, err := Enroll(t.Context(), i.config(state)); err == nil || !strings.Contains(err.Error(), "--again") {
		t.Errorf("a second time: %v", err)
	}
	again := i.config(state)
	again.Again = true
	if other, err := Enroll(t.Context(), again); err != nil || other == id {
		t.Errorf("again: %s %v; want another key", other, err)
	}
	if left, err := filepath.Glob(filepath.Join(state, CredentialsDir+".*")); err != nil || len(left) > 0 {
		t.Errorf("left beside the credentials: %v %v", left, err)
	}
}

func TestWhatTheTokenDoesNotVouchForIsNotBelieved(t *testing.T) {
	t.Parallel()
	i, stranger := newIssuer(t), newIssuer(t)
	i.root = root(t)
	other := root(t)
	i.serve()
	foreign := &newKey(t).PublicKey
	for name, c := range map[string]struct {
		alter func(*stopgapv1.EnrollResponse)
		want  string
	}{
		"another root":                  {func(r *stopgapv1.EnrollResponse) { r.Root = other }, "another policy root"},
		"a CA bundle without the CA":    {func(r *stopgapv1.EnrollResponse) { r.Ca = [][]byte{stranger.ca.Raw} }, "not in the bundle"},
		"a certificate of another key":  {func(r *stopgapv1.EnrollResponse) { r.Certificate = i.agent(foreign, r.AgentId).Raw }, "another key"},
		"another id":                    {func(r *stopgapv1.EnrollResponse) { r.AgentId = "00ff" }, "names agent"},
		"a certificate that is rubbish": {func(r *stopgapv1.EnrollResponse) { r.Certificate = []byte("x") }, "not to be believed"},
	} {
		i.alter = c.alter
		state := filepath.Join(t.TempDir(), "state")
		if _, err := Enroll(t.Context(), i.config(state)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was written: %v", name, err)
		}
	}
	i.alter = func(*stopgapv1.EnrollResponse) {}
	wrong := i.config(t.TempDir())
	stranger.root = i.root
	wrong.Token = stranger.tokenFor(0)
	if _, err := Enroll(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "does not show the CA") {
		t.Errorf("a token of another CA: %v", err)
	}
}

func TestARootThatIsHeldStaysUnlessItIsGivenUp(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.root = root(t)
	i.serve()
	state := t.TempDir()
	held := root(t)
	if err := (policy.Anchor{Fleet: "lab", Root: held, Floor: 99}).Write(state); err != nil {
		t.Fatal(err)
	}
	cfg := i.config(state)
	cfg.Again = true
	if _, err := Enroll(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--new-root") {
		t.Errorf("another first root: %v", err)
	}
	if a, err := policy.ReadAnchor(state); err != nil || !bytes.Equal(a.Root, held) {
		t.Errorf("the refused enrolment changed the anchor: %v", err)
	}
	cfg.NewRoot = true
	if _, err := Enroll(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if a, err := policy.ReadAnchor(state); err != nil || !bytes.Equal(a.Root, i.root) || a.Floor != 7 || !a.Replace {
		t.Errorf("anchor %+v %v", a, err)
	}
	// The same root again: it stays, with the higher floor.
	if err := (policy.Anchor{Fleet: "lab", Root: i.root, Floor: 99}).Write(state); err != nil {
		t.Fatal(err)
	}
	cfg.NewRoot = false
	if _, err := Enroll(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if a, err := policy.ReadAnchor(state); err != nil || a.Floor != 99 || a.Replace {
		t.Errorf("anchor %+v %v", a, err)
	}
}

func TestAnAgentThatRunsIsNotEnrolledAgainUnderIt(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	i.root = root(t)
	i.serve()
	state := t.TempDir()
	j, err := journal.Open(state, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	cfg := i.config(state)
	cfg.Again = true
	if _, err := Enroll(t.Context(), cfg); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("beside an open journal: %v", err)
	}
}
