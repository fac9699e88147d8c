// Package agent is the agent on an Exchange server: New(Config), Run(ctx). It puts the rooms together and holds no logic of
// its own beyond what passes between them.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/event"
	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/host/lab"
	"github.com/stopgap-em/stopgap/agent/internal/host/windows"
	"github.com/stopgap-em/stopgap/agent/internal/identity"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/localapi"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	"github.com/stopgap-em/stopgap/agent/internal/reconcile"
	"github.com/stopgap-em/stopgap/agent/internal/uplink"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/task"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Config of an agent.
type Config struct {
	// StateDir holds the journal, the plain copies of original values, UNDO.txt, and the local API's socket.
	StateDir string
	// Host is the server to look after: "windows" for this one, "lab:DIR" for a lab server.
	Host string
	// Controller is its address, host:port.
	Controller string
	// ServerName is the name in the controller's certificate, when it is not that of the address.
	ServerName string
	// Credentials is the directory of ca.pem, cert.pem and key.pem; default StateDir/credentials.
	Credentials string
	// Name is a label for people; default the one in the certificate, then the host name from the server's facts.
	Name string
	// PullInterval while no stream stands; default 1 hour.
	PullInterval time.Duration
	// RetryMin and RetryMax bound the wait before connecting again; defaults 2 s and 2 min.
	RetryMin, RetryMax time.Duration
	// ReconcileInterval between passes without an event; default 1 minute.
	ReconcileInterval time.Duration
	// RemoveHold is how long a fixed build must have been there before mitigations for it come off by themselves; default: not at all.
	RemoveHold time.Duration
	// ProbeWithin bounds how long a probe is repeated after a change; default 20 s.
	ProbeWithin time.Duration
	// Dialer replaces the network; nil: TCP. For a proxy, or a network in a test.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
	// Events is told what happens; nil: nobody.
	Events *event.Teller
	Logger hclog.Logger
}

// Agent looks after one server.
type Agent struct {
	cfg       Config
	id        string
	instance  string
	creds     *identity.Credentials
	journal   *journal.Journal
	driver    host.Driver
	reconcile *reconcile.Reconciler
	uplink    *uplink.Uplink
	policy    atomic.Pointer[policy.Policy]
	log       hclog.Logger

	mu    sync.Mutex
	held  policy.Held
	full  bool                         // what was left out of an update is not held here: ask for everything
	notes map[string]*stopgapv1.Health // raised here, not by the reconciler
	tidy  *time.Timer
}

// OpenHost opens a host driver by Config.Host. stateDir is the agent's, for what a driver keeps.
func OpenHost(spec, stateDir string) (host.Driver, error) {
	if dir, ok := strings.CutPrefix(spec, "lab:"); ok {
		return lab.Open(dir)
	}
	if spec == "windows" {
		return windows.Open(stateDir)
	}
	return nil, fmt.Errorf("agent: host %q is not known; want windows, or lab:DIR", spec)
}

// New opens the journal and makes an agent. Nothing runs before Run; Close releases the journal if Run is never called.
func New(cfg Config) (*Agent, error) {
	if cfg.StateDir == "" || cfg.Controller == "" || cfg.Logger == nil {
		return nil, errors.New("agent: state directory, controller address and logger are needed")
	}
	if min(cfg.PullInterval, cfg.RetryMin, cfg.RetryMax, cfg.ReconcileInterval) < 0 {
		return nil, errors.New("agent: an interval is negative")
	}
	if cfg.Credentials == "" {
		cfg.Credentials = filepath.Join(cfg.StateDir, identity.CredentialsDir)
	}
	creds, err := identity.Open(cfg.Credentials)
	if err != nil {
		return nil, fmt.Errorf("agent: %w (`stopgap-agent enroll` gets them)", err)
	}
	who := creds.Get()
	if who.Identity.Kind != trust.KindAgent {
		return nil, fmt.Errorf("agent: the certificate in %s is for an %s", cfg.Credentials, who.Identity.Kind)
	}
	if cfg.Name == "" {
		cfg.Name = who.Cert.Leaf.Subject.CommonName
	}
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, id: who.Identity.ID, creds: creds, log: cfg.Logger, notes: map[string]*stopgapv1.Health{}}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	a.instance = hex.EncodeToString(b[:])
	if a.driver, err = OpenHost(cfg.Host, cfg.StateDir); err != nil {
		return nil, err
	}
	if a.journal, err = journal.Open(cfg.StateDir, cfg.Logger.Named("journal")); err != nil {
		return nil, err
	}
	if err := a.build(); err != nil {
		_ = a.journal.Close()
		return nil, err
	}
	return a, nil
}

func (a *Agent) build() error {
	for _, n := range a.journal.Notes() {
		a.raise("journal-damaged", n)
		a.cfg.Events.Tell(event.Damaged, "The agent's journal: %s", n)
	}
	machine := ""
	if f, err := a.driver.Facts(context.Background()); err == nil {
		machine = f.GetMachineId()
	}
	if err := a.journal.Bind(machine, undoCommand(a.cfg.StateDir, a.cfg.Host)); err != nil {
		return err
	}
	putBack(a.driver, a.journal, a.log)
	if err := a.anchor(); err != nil {
		return err
	}
	a.policy.Store(policy.Parse(a.held))
	var err error
	a.reconcile, err = reconcile.New(reconcile.Config{
		Driver: a.driver, Journal: a.journal, Policy: a.policy.Load, Interval: a.cfg.ReconcileInterval,
		Reported:     func() { a.uplink.Wake() },
		FactsChanged: func(*stopgapv1.Facts) { a.uplink.Wake() },
		Told:         a.cfg.Events.Outcome,
		Prober:       a.prober(),
		RemoveHold:   a.cfg.RemoveHold,
		Logger:       a.log.Named("reconcile"),
	})
	if err != nil {
		return err
	}
	dial := func() []grpc.DialOption {
		opts := transport.DialOptions(trust.ClientTLS(a.creds.Get(), a.cfg.ServerName))
		if a.cfg.Dialer != nil {
			opts = append(opts, grpc.WithContextDialer(a.cfg.Dialer))
		}
		return opts
	}
	a.uplink, err = uplink.New(uplink.Config{
		Addr: a.cfg.Controller, DialOptions: dial, Handler: (*handler)(a), PullInterval: a.cfg.PullInterval,
		RetryMin: a.cfg.RetryMin, RetryMax: a.cfg.RetryMax, Logger: a.log.Named("uplink"),
	})
	return err
}

// prober asks the server that the agent looks after.
func (a *Agent) prober() probe.Prober {
	return probe.Prober{Inactive: a.driver.Inactive, Within: a.cfg.ProbeWithin, Find: func(ctx context.Context) (probe.FrontEnd, error) {
		base, name, err := a.driver.FrontEnd(ctx)
		return probe.FrontEnd{URL: base, Host: name}, err
	}}
}

// anchor brings what the journal holds together with the trust anchor beside it.
func (a *Agent) anchor() error {
	held, notes, err := trusted(a.cfg.StateDir, a.journal)
	for code, text := range notes {
		a.raise(code, text)
	}
	a.held = held
	return err
}

// trusted reads the policy that the journal holds and brings it together with the trust anchor beside it. notes are warnings, by
// code.
func trusted(stateDir string, j *journal.Journal) (held policy.Held, notes map[string]string, err error) {
	notes = map[string]string{}
	if err := j.HeldPolicy(&held); err != nil {
		return held, notes, err
	}
	anchor, err := policy.ReadAnchor(stateDir)
	if err != nil {
		return held, notes, err
	}
	held, lacked, err := policy.Restore(held, anchor)
	if err != nil {
		return held, notes, err
	}
	if lacked {
		notes["trust-restored"] = "the journal knew an older policy root or no policy; root and version floor were taken from " + policy.AnchorFile
	}
	if len(held.Root) == 0 {
		notes["no-root"] = "no policy root is trusted: no policy can be accepted, and nothing is removed; enrol (again), or apply a bundle with its pin"
	}
	if !anchor.Replace && !anchor.Fresh {
		if len(held.Root) > 0 && (string(anchor.Root) != string(held.Root) || anchor.Floor != held.Floor) { // a crash came between the two files
			anchor.Root, anchor.Floor = held.Root, held.Floor
			return held, notes, anchor.Write(stateDir)
		}
		return held, notes, nil
	}
	if err := j.PutPolicy(held); err != nil {
		return held, notes, err
	}
	anchor.Replace, anchor.Fresh = false, false
	return held, notes, anchor.Write(stateDir)
}

// ID is the agent's id: the fingerprint of its key.
func (a *Agent) ID() string { return a.id }

// Close releases the journal of an agent that does not run.
func (a *Agent) Close() error { return a.journal.Close() }

// Run looks after the server until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	defer func() { _ = a.journal.Close() }()
	// The first pass reads the server, so that Hello carries facts and what a crash left half done is finished first.
	if err := a.reconcile.Pass(ctx); err != nil {
		a.log.Error("the first look at the server failed; trying again", "error", err)
	}
	ln, err := localapi.Listen(a.cfg.StateDir)
	if err != nil {
		return err
	}
	a.tidySoon()
	defer a.tidy.Stop()
	a.log.Info("running", "agent", a.id, "host", a.cfg.Host, "version", shared.Version)
	return task.Run(ctx,
		a.reconcile.Run,
		a.uplink.Run,
		a.watchController,
		func(ctx context.Context) error {
			return a.creds.Run(ctx, a.uplink, a.set, a.log.Named("identity"))
		},
		func(ctx context.Context) error {
			return localapi.Serve(ctx, ln, (*local)(a), a.log.Named("localapi"))
		},
	)
}

// The controller is lost when no stream has stood for this long: a restart of it is no event.
const (
	lostAfter = 2 * time.Minute
	lostPoll  = 10 * time.Second
)

// watchController tells when the controller is lost and found.
func (a *Agent) watchController(ctx context.Context) error {
	tick := time.NewTicker(lostPoll)
	defer tick.Stop()
	last, lost := time.Now(), false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch s := a.uplink.Status(); {
		case s.Connected:
			last = time.Now()
			if lost {
				lost = false
				a.cfg.Events.Tell(event.ControllerFound, "The agent is connected to %s again.", a.cfg.Controller)
			}
		case !lost && time.Since(last) > lostAfter:
			lost = true
			a.cfg.Events.Tell(event.ControllerLost, "The agent has no stream to %s: %s. What is applied stays and is repaired; the policy is asked for hourly. `stopgap-agent check` shows where the way ends.",
				a.cfg.Controller, s.LastError)
		}
	}
}

// tidyAfter is when what reading a policy took, some times what holding it takes, is given back to the server.
const tidyAfter = 20 * time.Second

func (a *Agent) tidySoon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tidy == nil {
		a.tidy = time.AfterFunc(tidyAfter, debug.FreeOSMemory)
		return
	}
	a.tidy.Reset(tidyAfter)
}

// raise adds a standing warning.
func (a *Agent) raise(code, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.notes[code] == nil {
		a.notes[code] = &stopgapv1.Health{Code: code, Text: text, Since: timestamppb.Now()}
	}
}

// set raises a standing warning with this text, or takes it away when there is none.
func (a *Agent) set(code, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch old := a.notes[code]; {
	case text == "":
		delete(a.notes, code)
	case old == nil:
		a.notes[code] = &stopgapv1.Health{Code: code, Text: text, Since: timestamppb.Now()}
	default:
		a.notes[code] = &stopgapv1.Health{Code: code, Text: text, Since: old.GetSince()}
	}
}

// staleAfter is when a policy whose timestamp was not renewed is worth a warning: two pulls late.
const staleAfter = 2*time.Hour + 20*time.Minute

// policyHealth warns of a policy that ended, or that nobody has confirmed to be the newest for a while.
func policyHealth(held policy.Held, now time.Time) []*stopgapv1.Health {
	var out []*stopgapv1.Health
	switch {
	case held.Versions.Targets == 0:
	case now.After(held.Expires):
		out = append(out, &stopgapv1.Health{Code: "policy-expired", Since: timestamppb.New(held.Expires), Text: fmt.Sprintf(
			"the signed policy ended on %s (%s); what is applied stays and is repaired, nothing new is applied", held.Expires.Format(time.RFC3339), held.ExpiresFirst)})
	case held.Source == policy.SourceBundle: // whoever brought it vouches for its being the newest
	case now.Sub(held.AcceptedAt) > staleAfter:
		out = append(out, &stopgapv1.Health{Code: "policy-stale", Since: timestamppb.New(held.AcceptedAt.Add(staleAfter)), Text: fmt.Sprintf(
			"nobody has confirmed since %s that the policy held (version %d) is the newest", held.AcceptedAt.Format(time.RFC3339), held.Versions.Targets)})
	}
	if held.AttemptedError != "" {
		out = append(out, &stopgapv1.Health{Code: "policy-refused", Since: timestamppb.New(held.RefusedAt), Text: held.AttemptedError})
	}
	return out
}

// maxHealth bounds the warnings in a message.
const maxHealth = 32

func (a *Agent) health() []*stopgapv1.Health {
	a.mu.Lock()
	var out []*stopgapv1.Health
	for _, h := range a.notes {
		out = append(out, h)
	}
	held := a.held
	a.mu.Unlock()
	out = append(out, policyHealth(held, time.Now())...)
	out = append(out, a.reconcile.Health()...)
	return out[:min(len(out), maxHealth)]
}

// handler is the agent as its uplink sees it.
type handler Agent

var _ uplink.Handler = (*handler)(nil)

func (h *handler) a() *Agent { return (*Agent)(h) }

// Hello implements uplink.Handler.
func (h *handler) Hello() *stopgapv1.Hello {
	epoch, seq := h.journal.Mark()
	h.mu.Lock()
	held := h.held
	if h.full {
		held.Versions.Targets = 0
	}
	h.mu.Unlock()
	facts := h.reconcile.Facts()
	name := h.cfg.Name
	if name == "" {
		name = facts.GetHost()
	}
	return &stopgapv1.Hello{
		AgentId: h.id, InstanceId: h.instance, AgentVersion: shared.Version, Name: name, Facts: facts,
		RootVersion: held.Versions.Root, TimestampVersion: held.Versions.Timestamp, SnapshotVersion: held.Versions.Snapshot,
		PolicyVersion: held.Versions.Targets, AttemptedVersion: held.Attempted, AttemptedError: held.AttemptedError,
		JournalEpoch: epoch, JournalSequence: seq, Health: h.a().health(),
	}
}

// clockSkew is from which difference of the clocks on it is worth a warning.
const clockSkew = 5 * time.Minute

// Welcome implements uplink.Handler: what the controller has of us may be more than we know (this journal is an older copy
// of itself) or less (the controller is).
func (h *handler) Welcome(w *stopgapv1.Welcome) error {
	if t := w.GetServerTime(); t != nil {
		if d := time.Since(t.AsTime()); d.Abs() > clockSkew {
			h.a().set("clock-skew", fmt.Sprintf("this server's clock differs from the controller's by %s; the end of the signed policy is judged by this server's", d.Round(time.Second)))
		} else {
			h.a().set("clock-skew", "")
		}
	}
	epoch, last := h.journal.Mark()
	ack := w.GetAcknowledged()
	if ack.GetEpoch() == epoch && ack.GetSequence() > last {
		h.a().raise("journal-rolled-back", "the journal is an older copy of itself (a restored snapshot?); the server was read again and everything reported anew")
		if err := h.journal.RollBack(); err != nil {
			return err
		}
		h.reconcile.Kick()
		return nil
	}
	acked := uint64(0)
	if ack.GetEpoch() == epoch {
		acked = ack.GetSequence()
	}
	_, pending, err := h.journal.Pending(0, 1)
	if err != nil {
		return err
	}
	oldest := last + 1
	if len(pending) > 0 {
		oldest = pending[0].GetSequence()
	}
	if acked+1 < oldest {
		h.log.Warn("the controller knows less than it acknowledged (restored from a backup?); reporting everything again", "acknowledged", acked, "reported", oldest-1)
		return h.journal.ReportAll()
	}
	return nil
}

// Policy implements uplink.Handler.
func (h *handler) Policy(data []byte) (*stopgapv1.PolicyAck, *stopgapv1.PolicyNack) {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	u, err := policy.Decode(data)
	next := held
	if err == nil {
		next, err = policy.Accept(held, u, time.Now().UTC())
	}
	if errors.Is(err, policy.ErrUnchanged) {
		return ackOf(held), nil
	}
	if err == nil {
		// Parsed before it is kept: reading it must not be what breaks the next start.
		parsed := policy.Parse(next)
		if err = h.keep(held, next); err == nil {
			h.policy.Store(parsed)
			h.mu.Lock()
			h.held, h.full = next, false
			h.mu.Unlock()
			h.a().set("no-root", "")
			if next.Versions.Targets != held.Versions.Targets || next.Versions.Root != held.Versions.Root {
				h.log.Info("policy accepted", "version", next.Versions.Targets, "root", next.Versions.Root, "documents", len(next.Documents))
			}
			if next.Versions.Targets != held.Versions.Targets || held.Expires.Before(time.Now()) {
				h.reconcile.Kick()
				h.a().tidySoon()
			}
			return ackOf(next), nil
		}
	}
	var ref *tufpolicy.Refusal
	permanent := errors.As(err, &ref) && !ref.Retry || errors.Is(err, tufpolicy.ErrNoRoot)
	h.log.Error("policy refused; what is held stays", "timestamp", u.GetTimestampVersion(), "held", held.Versions.Targets, "error", err)
	why := bounded.Text(err.Error(), 1<<10)
	h.cfg.Events.Tell(event.PolicyRefused, "A policy update was refused; what is held (version %d) stays. %s", held.Versions.Targets, why)
	if permanent {
		held.Attempted, held.AttemptedError, held.RefusedAt = u.GetTimestampVersion(), why, time.Now().UTC()
		h.mu.Lock()
		h.held = held
		h.mu.Unlock()
		if perr := h.journal.PutPolicy(held); perr != nil {
			h.log.Error("the refusal could not be kept", "error", perr)
		}
	} else {
		h.mu.Lock()
		h.full = true
		h.mu.Unlock()
	}
	return nil, &stopgapv1.PolicyNack{Version: u.GetTimestampVersion(), HeldVersion: held.Versions.Timestamp, TargetsVersion: held.Versions.Targets,
		RootVersion: held.Versions.Root, Error: why, Permanent: permanent}
}

func ackOf(held policy.Held) *stopgapv1.PolicyAck {
	return &stopgapv1.PolicyAck{Version: held.Versions.Timestamp, TargetsVersion: held.Versions.Targets, RootVersion: held.Versions.Root}
}

// keep writes an accepted policy: into the journal in one transaction, and then root and floor beside it, where they changed.
func (h *handler) keep(held, next policy.Held) error {
	if err := h.journal.PutPolicy(next); err != nil {
		return err
	}
	if next.Versions.Root == held.Versions.Root && next.Floor == held.Floor && held.Versions.Targets > 0 {
		return nil
	}
	anchor, err := policy.ReadAnchor(h.cfg.StateDir)
	if err == nil {
		if anchor.Replace { // somebody enrolled with --new-root beside this agent: the next start obeys that
			return nil
		}
		anchor.Root, anchor.Floor = next.Root, max(anchor.Floor, next.Floor)
		err = anchor.Write(h.cfg.StateDir)
	}
	if err != nil { // the journal has it; the next change tries again
		h.log.Error("the trust anchor could not be written", "error", err)
	}
	return nil
}

// Assignment implements uplink.Handler.
func (h *handler) Assignment(data []byte) bool {
	next := &stopgapv1.Assignment{}
	if err := proto.Unmarshal(data, next); err != nil {
		h.log.Error("assignment can't be decoded", "error", err)
		return false
	}
	old, err := h.journal.Assignment()
	if err != nil {
		h.log.Error("assignment", "error", err)
		return false
	}
	if old.GetControllerEpoch() == next.GetControllerEpoch() && next.GetGeneration() <= old.GetGeneration() && old != nil {
		return false
	}
	if len(next.GetItems()) > tufpolicy.MaxTargets {
		h.log.Error("assignment refused", "items", len(next.GetItems()), "limit", tufpolicy.MaxTargets)
		return false
	}
	if err := h.journal.PutAssignment(next); err != nil {
		h.log.Error("assignment can't be kept", "error", err)
		return false
	}
	h.reconcile.Kick()
	return true
}

// Acknowledged implements uplink.Handler.
func (h *handler) Acknowledged(ack *stopgapv1.OutcomeAck) {
	if err := h.journal.Acknowledged(ack.GetEpoch(), ack.GetSequence()); err != nil {
		h.log.Error("acknowledgement can't be kept; the outcomes are sent again", "error", err)
	}
}

// Command implements uplink.Handler.
func (h *handler) Command(k stopgapv1.CommandKind) {
	switch k {
	case stopgapv1.CommandKind_COMMAND_KIND_RECHECK:
		h.reconcile.Kick()
	case stopgapv1.CommandKind_COMMAND_KIND_SEND_EVERYTHING:
		if err := h.journal.ReportAll(); err != nil {
			h.log.Error("reporting everything again failed", "error", err)
		}
		h.uplink.Wake()
	case stopgapv1.CommandKind_COMMAND_KIND_RENEW:
		h.creds.RenewSoon()
	case stopgapv1.CommandKind_COMMAND_KIND_UNSPECIFIED:
	default:
		h.log.Warn("a command of a newer controller", "kind", int(k))
	}
}

// Pending implements uplink.Handler.
func (h *handler) Pending(after uint64, n int) (*stopgapv1.OutcomeBatch, error) {
	epoch, out, err := h.journal.Pending(after, n)
	return &stopgapv1.OutcomeBatch{Epoch: epoch, Outcomes: out}, err
}

// Facts implements uplink.Handler.
func (h *handler) Facts() *stopgapv1.Facts { return h.reconcile.Facts() }

// Heartbeat implements uplink.Handler.
func (h *handler) Heartbeat() *stopgapv1.Heartbeat {
	h.mu.Lock()
	v := h.held.Versions.Timestamp
	h.mu.Unlock()
	return &stopgapv1.Heartbeat{Health: h.a().health(), TimestampVersion: v}
}
