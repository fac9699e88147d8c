// Package agent is the agent on an Exchange server: New(Config), Run(ctx). It puts the rooms together and holds no logic of its own.
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
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/stopgap-em/stopgap/agent/internal/event"
	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/host/lab"
	"github.com/stopgap-em/stopgap/agent/internal/host/windows"
	"github.com/stopgap-em/stopgap/agent/internal/identity"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/localapi"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	"github.com/stopgap-em/stopgap/agent/internal/probe"
	"github.com/stopgap-em/stopgap/agent/internal/protocol"
	"github.com/stopgap-em/stopgap/agent/internal/reconcile"
	"github.com/stopgap-em/stopgap/agent/internal/uplink"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/task"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
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
	// Events receives what happens; it may be nil.
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
	policy    *policy.Keeper
	warnings  *protocol.Warnings
	protocol  *protocol.Handler
	log       hclog.Logger

	mu   sync.Mutex
	tidy *time.Timer
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
	a := &Agent{cfg: cfg, id: who.Identity.ID, creds: creds, log: cfg.Logger, warnings: protocol.NewWarnings()}
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
		a.warnings.Raise("journal-damaged", n)
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
	keeper, warnings, err := policy.NewKeeper(a.cfg.StateDir, a.journal, a.log)
	if err != nil {
		return err
	}
	for code, text := range warnings {
		a.warnings.Raise(code, text)
	}
	a.policy = keeper
	a.reconcile, err = reconcile.New(reconcile.Config{
		Driver: a.driver, Journal: a.journal, Policy: a.policy.Policy, Interval: a.cfg.ReconcileInterval,
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
	a.protocol = protocol.New(protocol.Config{ID: a.id, Instance: a.instance, Name: a.cfg.Name, Journal: a.journal, Policy: a.policy,
		Reconciler: a.reconcile, Warnings: a.warnings, Renew: a.creds.RenewSoon, Wake: func() { a.uplink.Wake() }, Parsed: a.tidySoon,
		Events: a.cfg.Events, Logger: a.log})
	dial := func() []grpc.DialOption {
		opts := transport.DialOptions(trust.ClientTLS(a.creds.Get(), a.cfg.ServerName))
		if a.cfg.Dialer != nil {
			opts = append(opts, grpc.WithContextDialer(a.cfg.Dialer))
		}
		return opts
	}
	a.uplink, err = uplink.New(uplink.Config{
		Addr: a.cfg.Controller, DialOptions: dial, Handler: a.protocol, PullInterval: a.cfg.PullInterval,
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
			return a.creds.Run(ctx, a.uplink, a.warnings.Set, a.log.Named("identity"))
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
			a.cfg.Events.Tell(event.ControllerLost, "The agent has no stream to %s: %s. What is applied stays and is repaired; the policy is "+
				"asked for hourly. `stopgap-agent check` shows where the way ends.",
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
