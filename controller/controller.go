// Package controller is the controller of a fleet: New(Config), Run(ctx). It puts the rooms together and holds no logic of its
// own.
package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/stopgap-em/stopgap/controller/internal/access"
	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/fleet"
	"github.com/stopgap-em/stopgap/controller/internal/identity"
	"github.com/stopgap-em/stopgap/controller/internal/operator"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	"github.com/stopgap-em/stopgap/controller/internal/session"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/task"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Config of a controller.
type Config struct {
	// DataDir was made by Init.
	DataDir string
	// Listen is the address for agents and operators, host:port.
	Listen string
	// Listener replaces Listen; for tests.
	Listener net.Listener
	// Heartbeat is how often both sides of a stream send one; default 15 s, at most 19 s so that silence ends a stream
	// within a minute.
	Heartbeat time.Duration
	// MaxAgents bounds the live streams; default 50,000.
	MaxAgents int
	// AgentCertificateLife is how long an agent's certificate is good; default 7 days. Agents renew at half of it.
	AgentCertificateLife time.Duration
	// RolloutTick is how often running rollouts look at the fleet; default 500 ms.
	RolloutTick time.Duration
	// RenewTimestamp is how often the policy's timestamp is renewed; default 20 minutes.
	RenewTimestamp time.Duration
	// Keys names where private keys stand, when not in DataDir.
	Keys   Keys
	Logger hclog.Logger
}

// Keys names the files of private keys that a deployment may put on a secret mount. Empty: in the data directory.
type Keys struct {
	CA, Snapshot, Timestamp string
}

func (k Keys) files() identity.Files {
	return identity.Files{CAKey: k.CA, SnapshotKey: k.Snapshot, TimestampKey: k.Timestamp}
}

// maxHeartbeat keeps three of them under a minute.
const maxHeartbeat = 19 * time.Second

// storeFile is the embedded store in the data directory.
const storeFile = "store.db"

// Controller serves a fleet.
type Controller struct {
	cfg      Config
	store    store.Store
	policy   *policy.Policy
	fleet    *fleet.Fleet
	recorder *fleet.Recorder
	rollout  *rollout.Rollout
	sessions *session.Service
	server   *grpc.Server
	ln       net.Listener
}

// Init makes a data directory: a CA, the server's certificate for the given host names and addresses, the keys that sign
// snapshot and timestamp, and the first admin's credentials, whose directory it returns.
func Init(dataDir, fleetName string, hosts []string) (adminDir string, err error) {
	return identity.Init(dataDir, fleetName, hosts)
}

// OnlinePublic is the file in a data directory with the public halves of the keys that sign snapshot and timestamp.
func OnlinePublic(dataDir string) string {
	return filepath.Join(dataDir, "online", identity.PublicFile)
}

// NewOnlineKeys makes keys for snapshot and timestamp in a directory of their own.
func NewOnlineKeys(dir string) error { return identity.NewOnlineKeys(dir) }

// IssueAgent makes a key and certificate for an agent without a token, and writes its credential directory; it returns the
// agent's id. Whoever can read the CA's key can do that. Such an agent trusts no policy root until it is given one.
func IssueAgent(dataDir, outDir, label string) (id string, err error) {
	a, err := identity.Load(dataDir, identity.Files{})
	if err != nil {
		return "", err
	}
	return a.IssueAgent(outDir, label)
}

// IssueOperator makes credentials for another person: viewer, operator or admin.
func IssueOperator(dataDir, outDir, name string, kind trust.Kind, keys Keys) error {
	a, err := identity.Load(dataDir, keys.files())
	if err != nil {
		return err
	}
	return a.IssueOperator(outDir, name, kind)
}

// BeginCARotation makes a new CA beside the old one; the controller must not run.
func BeginCARotation(dataDir string, keys Keys) error {
	return locked(dataDir, func(store.Store) error { return identity.BeginRotation(dataDir, keys.files()) })
}

// FinishCARotation drops the old CA. Without force it is refused while agents have a certificate of it. The controller must
// not run.
func FinishCARotation(ctx context.Context, dataDir string, keys Keys, force bool) error {
	return locked(dataDir, func(st store.Store) error {
		a, err := identity.Load(dataDir, keys.files())
		if err != nil {
			return err
		}
		reg, err := identity.LoadRegistry(ctx, a, st, nil)
		if err != nil {
			return err
		}
		return identity.FinishRotation(dataDir, keys.files(), reg.OfOtherCA(), force)
	})
}

// locked runs something while no controller does.
func locked(dataDir string, f func(store.Store) error) error {
	st, err := boltstore.Open(filepath.Join(dataDir, storeFile))
	if err != nil {
		return err
	}
	return errors.Join(f(st), st.Close())
}

// New opens the data directory and the listener. Nothing is served before Run; Close releases both if Run is never called.
func New(cfg Config) (_ *Controller, err error) {
	if cfg.DataDir == "" || cfg.Logger == nil || cfg.Listen == "" && cfg.Listener == nil {
		return nil, errors.New("controller: data directory, address and logger are needed")
	}
	if cfg.MaxAgents < 0 || cfg.Heartbeat < 0 {
		return nil, errors.New("controller: a limit is negative")
	}
	if cfg.Heartbeat > maxHeartbeat {
		return nil, fmt.Errorf("controller: heartbeat %s is above %s", cfg.Heartbeat, maxHeartbeat)
	}
	authority, err := identity.Load(cfg.DataDir, cfg.Keys.files())
	if err != nil {
		return nil, err
	}
	authority.AgentLife = cfg.AgentCertificateLife
	tlsConfig, err := authority.ServerTLS(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	c := &Controller{cfg: cfg}
	if c.store, err = boltstore.Open(filepath.Join(cfg.DataDir, storeFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.store.Close()
		}
	}()
	if err = c.build(authority, tlsConfig); err != nil {
		return nil, err
	}
	if c.ln = cfg.Listener; c.ln == nil {
		if c.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("controller: %w", err)
		}
	}
	return c, nil
}

func (c *Controller) build(authority *identity.Authority, tlsConfig *tls.Config) error {
	ctx := context.Background()
	log := c.cfg.Logger
	var err error
	snapshot, timestamp, err := c.cfg.Keys.files().OnlineKeys(c.cfg.DataDir)
	if err != nil {
		return err
	}
	trail, err := audit.Load(ctx, c.store, log.Named("audit"))
	if err != nil {
		return err
	}
	registry, err := identity.LoadRegistry(ctx, authority, c.store, trail)
	if err != nil {
		return err
	}
	// Policy and fleet tell the rollout, the rollout tells the sessions; each is called only after all are made.
	c.policy, err = policy.Load(ctx, policy.Config{Store: c.store, Snapshot: snapshot, Timestamp: timestamp, RenewEvery: c.cfg.RenewTimestamp,
		Logger: log.Named("policy"), Changed: func() {
			c.rollout.PolicyChanged(ctx)
		}})
	if err != nil {
		return err
	}
	c.fleet, err = fleet.Load(ctx, c.store, log.Named("fleet"), func(agents, organisations []string) {
		if len(organisations) > 0 {
			c.rollout.FactsChanged(organisations)
		}
		c.sessions.Wake(agents)
	})
	if err != nil {
		return err
	}
	c.rollout, err = rollout.New(ctx, rollout.Config{Fleet: authority.Fleet, Store: c.store, Policy: c.policy.Current, Agents: servers{c.fleet, registry},
		Outcomes: c.store.Outcomes(), Changed: func() { c.sessions.Changed() }, Wake: func(ids []string) { c.sessions.Wake(ids) },
		Told: func(id, phase, reason string) {
			trail.Append(ctx, audit.Controller, "rollout", id, "%s: %s", phase, reason)
		},
		Tick: c.cfg.RolloutTick, Logger: log.Named("rollout")})
	if err != nil {
		return err
	}
	c.recorder = fleet.NewRecorder(c.store.Outcomes())
	c.sessions = session.New(session.Config{FleetName: authority.Fleet, Fleet: c.fleet, Recorder: c.recorder, Outcomes: c.store.Outcomes(),
		Policy: c.policy, Rollout: c.rollout, Registry: registry, Audit: trail, Bundle: authority.Bundle,
		Heartbeat: c.cfg.Heartbeat, MaxAgents: c.cfg.MaxAgents, Logger: log.Named("session")})
	registry.OnRevoke(func(id string, why error) { c.sessions.End(id, why) })
	gate := access.New(access.Config{Fleet: authority.Fleet, Authenticators: []access.Authenticator{access.Certificates{}},
		CheckAgent: registry.Check, Grace: identity.Grace, Audit: trail, Logger: log.Named("gate")})
	c.server = grpc.NewServer(append(transport.ServerOptions(tlsConfig), gate.Interceptors()...)...)
	stopgapv1.RegisterAgentServiceServer(c.server, c.sessions)
	stopgapv1.RegisterEnrollmentServiceServer(c.server, &session.Enrollment{FleetName: authority.Fleet, Registry: registry, Policy: c.policy,
		Bundle: authority.Bundle, Logger: log.Named("enrollment")})
	stopgapv1.RegisterFleetServiceServer(c.server, operator.New(operator.Config{Fleet: c.fleet, Outcomes: c.store.Outcomes(), Policy: c.policy,
		Rollout: c.rollout, Registry: registry, Audit: trail, Recheck: c.sessions.Recheck, Connected: c.sessions.Holds, Logger: log.Named("operator")}))
	c.rollout.PolicyChanged(ctx)
	trail.Append(ctx, audit.Controller, "start", authority.Fleet, "version %s, policy %d, epoch %s: assignments start over", shared.Version, c.policy.Current().Version, c.rollout.Epoch())
	return nil
}

// servers is the fleet as rollouts see it: with labels, and without who is revoked.
type servers struct {
	*fleet.Fleet
	registry *identity.Registry
}

// Servers implements rollout.Fleet.
func (s servers) Servers() []rollout.Server {
	var out []rollout.Server
	s.Each(func(a *stopgapv1.Agent, connected bool) {
		if srv, ok := s.server(a, connected); ok {
			out = append(out, srv)
		}
	})
	return out
}

// Server implements rollout.Fleet.
func (s servers) Server(id string) (rollout.Server, bool) {
	a, connected := s.Record(id)
	if a == nil {
		return rollout.Server{}, false
	}
	return s.server(a, connected)
}

func (s servers) server(a *stopgapv1.Agent, connected bool) (rollout.Server, bool) {
	srv := rollout.Server{ID: a.GetId(), Name: a.GetName(), Facts: a.GetFacts(), Connected: connected}
	if rec, ok := s.registry.Get(a.GetId()); ok {
		if rec.Revoked != "" {
			return srv, false
		}
		srv.Labels = rec.Labels
	}
	return srv, true
}

// Addr is the address it listens on.
func (c *Controller) Addr() string { return c.ln.Addr().String() }

// Stats is what a running controller counts of itself since its start.
type Stats struct {
	// Connected is the number of live streams.
	Connected int
	// Outcomes committed, and when the last of them was on disk.
	Outcomes     uint64
	LastRecorded time.Time
}

// Stats counts. It may be called at any time.
func (c *Controller) Stats() Stats {
	n, last := c.recorder.Recorded()
	return Stats{Connected: c.sessions.Connected(), Outcomes: n, LastRecorded: last}
}

// Close releases a controller that does not run.
func (c *Controller) Close() error {
	return errors.Join(c.ln.Close(), c.store.Close())
}

// stopWait bounds how long running calls may take after a stop.
const stopWait = 2 * time.Second

// Run serves until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	defer func() { _ = c.store.Close() }()
	c.cfg.Logger.Info("serving", "address", c.Addr(), "version", shared.Version)
	// What records outlives what serves: an outcome that was taken is committed before the store closes.
	rctx, stopRooms := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRooms()
	return task.Run(ctx,
		func(context.Context) error { return c.recorder.Run(rctx) },
		func(context.Context) error { return c.fleet.Run(rctx) },
		c.rollout.Run,
		c.policy.Run,
		func(ctx context.Context) error {
			defer stopRooms()
			sessions := make(chan error, 1)
			go func() { sessions <- c.sessions.Run(ctx) }()
			served := make(chan error, 1)
			go func() { served <- c.server.Serve(c.ln) }()
			select {
			case err := <-served:
				return fmt.Errorf("controller: %w", err)
			case <-ctx.Done():
			}
			<-sessions // everybody was told goodbye
			t := time.AfterFunc(stopWait, c.server.Stop)
			c.server.GracefulStop()
			t.Stop()
			<-served
			return nil
		},
	)
}
