package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sort"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/localapi"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/agent/internal/reconcile"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bundle"
	"github.com/stopgap-em/stopgap/shared/task"
)

// Standalone works on a server and an agent's state directory while no agent runs there: for servers without a service or a
// controller, and for an administrator whose agent is down. Same journal, same drivers, same verification.
type Standalone struct {
	stateDir string
	driver   host.Driver // nil: settings and status only
	journal  *journal.Journal
	log      hclog.Logger
}

var _ localapi.Agent = (*Standalone)(nil)

// OpenStandalone opens a state directory, which must exist unless create is set, and the host. While the agent runs it is refused:
// journal.ErrLocked.
func OpenStandalone(ctx context.Context, stateDir, hostSpec string, create bool, log hclog.Logger) (*Standalone, error) {
	if _, err := os.Stat(stateDir); err != nil && !create {
		return nil, fmt.Errorf("agent: state directory: %w", err)
	}
	d, err := OpenHost(hostSpec, stateDir)
	if err != nil {
		return nil, err
	}
	facts, err := d.Facts(ctx)
	if err != nil {
		return nil, err
	}
	j, err := journal.Open(stateDir, log)
	if errors.Is(err, journal.ErrLocked) {
		return nil, fmt.Errorf("%w: stop the agent first, or use `stopgap-agent block ID` while it runs", err)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range j.Notes() {
		log.Warn(n)
	}
	if err := j.Bind(facts.GetMachineId(), undoCommand(stateDir, hostSpec)); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return &Standalone{stateDir: stateDir, driver: d, journal: j, log: log}, nil
}

// OpenStored opens a state directory for status and settings: no server is looked at. A damaged journal is refused and left as it
// is.
func OpenStored(stateDir string, log hclog.Logger) (*Standalone, error) {
	j, err := journal.OpenIntact(stateDir, log)
	if err != nil {
		return nil, err
	}
	return &Standalone{stateDir: stateDir, journal: j, log: log}, nil
}

func undoCommand(stateDir, hostSpec string) string {
	program, err := os.Executable()
	if err != nil {
		program = "stopgap-agent"
	}
	if runtime.GOOS == "windows" { // for a PowerShell
		return fmt.Sprintf(`& "%s" --state "%s" panic-revert --host "%s"`, program, stateDir, hostSpec)
	}
	return fmt.Sprintf("%q --state %q panic-revert --host %q", program, stateDir, hostSpec)
}

// Close releases the journal.
func (s *Standalone) Close() error { return s.journal.Close() }

// ErrNoPin is returned by ApplyBundle where no policy is trusted yet and no pin was given.
var ErrNoPin = errors.New("this server trusts no policy yet: give --pin, which `stopgap bundle` printed and which came to you by another way than the bundle")

// ApplyBundle verifies a bundle, keeps it, and makes this server be as it says: what it allows is released by its being carried
// here (reconcile.Released says which revision), what it does not list any more is taken off. pin, as policy.ParsePin reads it, is
// needed where no policy is trusted yet. A bundle that has ended and is the one held repairs what it applied and applies nothing
// new. It gives the outcome of every mitigation that the server knows of, and standing warnings. A refused bundle changes nothing
// on the server. Errors: *tufpolicy.Refusal, ErrNoPin, what journal and server say.
func (s *Standalone) ApplyBundle(ctx context.Context, data []byte, pin string) ([]*stopgapv1.Outcome, []*stopgapv1.Health, error) {
	signed, err := bundle.Unpack(data)
	if err != nil {
		return nil, nil, err
	}
	held, _, err := policy.Load(s.stateDir, s.journal)
	if err != nil {
		return nil, nil, err
	}
	var pinned *policy.Pin
	if pin != "" {
		p, err := policy.ParsePin(pin)
		if err != nil {
			return nil, nil, err
		}
		pinned = &p
	} else if len(held.Root) == 0 {
		return nil, nil, ErrNoPin
	}
	now := time.Now().UTC()
	next, err := policy.AcceptBundle(held, signed, pinned, now)
	if err != nil && held.Source == policy.SourceBundle && now.After(held.Expires) && bytes.Equal(signed.Targets, held.Targets) {
		next, err = held, nil
	}
	if err != nil {
		return nil, nil, err
	}
	parsed := policy.Parse(next) // before it is kept: reading it must not be what breaks the next start
	if err := s.journal.PutPolicy(next); err != nil {
		return nil, nil, err
	}
	if _, _, err := policy.Load(s.stateDir, s.journal); err != nil { // writes root and floor beside it
		return nil, nil, err
	}
	r, err := s.reconciler(ctx, parsed)
	if err != nil {
		return nil, nil, err
	}
	if err := r.Pass(ctx); err != nil {
		return nil, nil, err
	}
	out, err := s.outcomes()
	return out, append(next.Health(now), r.Health()...), err
}

func (s *Standalone) reconciler(ctx context.Context, p *policy.Policy) (*reconcile.Reconciler, error) {
	facts, err := s.driver.Facts(ctx)
	if err != nil {
		return nil, err
	}
	return reconcile.New(reconcile.Config{Driver: s.driver, Journal: carried{s.journal, p, facts},
		Policy: func() *policy.Policy { return p }, Logger: s.log})
}

// carried is a journal in which everything that a bundle allows is released, by its having been carried here. It is kept
// nowhere; what a controller said before counts no more (View.item).
type carried struct {
	*journal.Journal
	policy *policy.Policy
	facts  *stopgapv1.Facts
}

// Assignment implements reconcile.Journal.
func (c carried) Assignment() (*stopgapv1.Assignment, error) {
	a := &stopgapv1.Assignment{PolicyVersion: c.policy.Version}
	for id, revs := range c.policy.Revisions {
		n := reconcile.Released(c.policy, c.facts, id)
		a.Items = append(a.Items, &stopgapv1.AssignmentItem{Mitigation: id, Revision: n, Sha256: revs[n].SHA256[:]})
	}
	return a, nil
}

// Revert takes one mitigation off and nothing else; it needs no policy. With block, it also never comes back, neither with a
// bundle nor by a controller; then nothing to take off is no error, and the outcome is nil. It gives standing warnings too. Errors:
// reconcile.ErrNotInForce.
func (s *Standalone) Revert(ctx context.Context, id string, block bool, reason string) (*stopgapv1.Outcome, []*stopgapv1.Health, error) {
	r, err := s.reconciler(ctx, policy.Parse(policy.Held{}))
	if err != nil {
		return nil, nil, err
	}
	if block {
		if err := setBlock(s.journal, &stopgapv1.BlockRequest{Mitigation: id, Reason: reason}); err != nil {
			return nil, nil, err
		}
	}
	why := "taken off by the server's administrator with `stopgap-agent revert`"
	if reason != "" {
		why += ": " + reason
	}
	switch err := r.TakeOff(ctx, id, why); {
	case block && errors.Is(err, reconcile.ErrNotInForce):
		return nil, r.Health(), nil
	case block && err != nil:
		return nil, r.Health(), fmt.Errorf("%s is blocked from now on, and was not taken off: %w", id, err)
	case err != nil:
		return nil, r.Health(), err
	}
	all, err := s.journal.Outcomes()
	return all[id], r.Health(), err
}

func (s *Standalone) outcomes() ([]*stopgapv1.Outcome, error) {
	all, err := s.journal.Outcomes()
	var out []*stopgapv1.Outcome
	for _, o := range all {
		out = append(out, o)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].GetMitigation() < out[j].GetMitigation() })
	return out, err
}

// Serve answers local calls from the journal, until f returns.
func (s *Standalone) Serve(ctx context.Context, f func(context.Context) error) error {
	ln, err := localapi.Listen(s.stateDir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var ferr error
	err = task.Run(ctx,
		func(ctx context.Context) error { return localapi.Serve(ctx, ln, s, s.log) },
		func(ctx context.Context) error {
			defer cancel()
			ferr = f(ctx)
			return nil
		})
	return errors.Join(ferr, err)
}

// Status implements localapi.Agent.
func (s *Standalone) Status(context.Context) (*stopgapv1.StatusResponse, error) {
	held, notes, err := policy.Load(s.stateDir, s.journal)
	if err != nil { // told, with what the journal has all the same
		notes = map[string]string{"trust-unreadable": err.Error()}
		if err := s.journal.HeldPolicy(&held); err != nil {
			return nil, err
		}
	}
	out, err := storedStatus(s.stateDir, s.journal, held)
	if err != nil {
		return nil, err
	}
	out.Stored = true
	for code, text := range notes {
		out.Health = append(out.Health, &stopgapv1.Health{Code: code, Text: text, Since: timestamppb.Now()})
	}
	out.Health = append(out.Health, held.Health(time.Now())...)
	return out, nil
}

// Block implements localapi.Agent. Nothing is taken off by it: no agent runs.
func (s *Standalone) Block(_ context.Context, r *stopgapv1.BlockRequest) (*stopgapv1.BlockResponse, error) {
	if err := setBlock(s.journal, r); err != nil {
		return nil, err
	}
	all, err := s.journal.Outcomes()
	return &stopgapv1.BlockResponse{Outcome: all[r.GetMitigation()]}, err
}

// Unblock implements localapi.Agent.
func (s *Standalone) Unblock(_ context.Context, r *stopgapv1.UnblockRequest) (*stopgapv1.UnblockResponse, error) {
	if err := unblock(s.journal, r); err != nil {
		return nil, err
	}
	all, err := s.journal.Outcomes()
	return &stopgapv1.UnblockResponse{Outcome: all[r.GetMitigation()]}, err
}

// SetFrozen implements localapi.Agent.
func (s *Standalone) SetFrozen(_ context.Context, r *stopgapv1.SetFrozenRequest) (*stopgapv1.SetFrozenResponse, error) {
	if err := s.journal.SetFrozen(r.GetFrozen(), time.Now().UTC()); err != nil {
		return nil, err
	}
	return frozenResponse(s.journal, r.GetFrozen())
}

// PanicRevert takes off everything the journal knows of, with service and controller down, and freezes the agent so that
// its next start puts nothing back. It needs no credentials.
func PanicRevert(ctx context.Context, stateDir, hostSpec string, log hclog.Logger) ([]string, error) {
	s, err := OpenStandalone(ctx, stateDir, hostSpec, false, log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	if err := s.journal.SetFrozen(true, time.Now().UTC()); err != nil {
		return nil, err
	}
	return reconcile.PanicRevert(ctx, s.driver, s.journal)
}

// Uninstall ends the look after a server whose agent does not run: with revert it takes off everything that the journal knows of, and
// says what; without, it says what stays. State is kept. An error means that not everything could be taken off.
func Uninstall(ctx context.Context, stateDir, hostSpec string, revert bool, log hclog.Logger) ([]string, error) {
	if !revert {
		s, err := OpenStored(stateDir, log)
		if err != nil {
			return nil, err
		}
		if d, err := OpenHost(hostSpec, stateDir); err == nil {
			putBack(d, s.journal, log)
		}
		r, err := frozenResponse(s.journal, false)
		return r.GetInForce(), errors.Join(err, s.Close())
	}
	s, err := OpenStandalone(ctx, stateDir, hostSpec, false, log)
	if err != nil {
		return nil, err
	}
	done, err := reconcile.PanicRevert(ctx, s.driver, s.journal)
	return done, errors.Join(err, s.Close())
}

// putBack reads every web.config that the journal knows of: a driver puts back one that a crash in the middle of replacing it left under
// another name.
func putBack(d host.Driver, j *journal.Journal, log hclog.Logger) {
	changes, err := j.Changes()
	for _, c := range changes {
		for _, dir := range c.Prior.Files {
			if _, name, rerr := d.ConfigFile(host.SplitRef(dir)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("%s: %w", name, rerr))
			}
		}
	}
	if err != nil {
		log.Error("a web.config can't be read", "error", err)
	}
}
