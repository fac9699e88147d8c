package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/access"
	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/fleet"
	"github.com/stopgap-em/stopgap/controller/internal/identity"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Config of a Service.
type Config struct {
	// FleetName is told to agents.
	FleetName string
	Fleet     *fleet.Fleet
	Recorder  *fleet.Recorder
	Outcomes  store.Outcomes
	Policy    *policy.Policy
	Rollout   *rollout.Rollout
	Registry  *identity.Registry
	Audit     *audit.Log
	// Bundle is the CA certificates that renewed agents are to trust.
	Bundle func() [][]byte
	// Heartbeat is how often both sides send one; default transport.HeartbeatInterval.
	Heartbeat time.Duration
	// MaxAgents bounds the live streams; default 50,000.
	MaxAgents int
	Logger    hclog.Logger
}

const (
	defaultMaxAgents = 50_000
	// Clones: after maxTakeovers of one identity by another process within takeoverWindow the holder stays and others are
	// sent away for cloneWait.
	maxTakeovers   = 3
	takeoverWindow = 10 * time.Minute
	cloneWait      = time.Minute
	// drainSpread is over how long agents spread their reconnecting when the controller stops.
	drainSpread = 5 * time.Second
	drainWait   = 500 * time.Millisecond
	// ackAfter is how long an acknowledgement waits for another frame to take it along.
	ackAfter = time.Second
)

// Service implements AgentService.
type Service struct {
	stopgapv1.UnimplementedAgentServiceServer
	cfg       Config
	nackRetry time.Duration

	mu        sync.Mutex
	live      map[string]*session
	takeovers map[string][]time.Time
	clones    map[string]bool // identities that two processes speak with
}

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = transport.HeartbeatInterval
	}
	if cfg.MaxAgents == 0 {
		cfg.MaxAgents = defaultMaxAgents
	}
	return &Service{cfg: cfg, nackRetry: nackRetry, live: map[string]*session{}, takeovers: map[string][]time.Time{}, clones: map[string]bool{}}
}

// Run ends streams that fell silent, until ctx ends; then it says goodbye to all.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(s.cfg.Heartbeat / 3)
	defer t.Stop()
	acks := time.NewTicker(ackAfter / 4)
	defer acks.Stop()
	for {
		select {
		case now := <-acks.C:
			for _, x := range s.sessions() {
				x.mu.Lock()
				due := x.slot.ack != nil && now.Sub(x.slot.ackSince) >= ackAfter
				x.mu.Unlock()
				if due {
					x.wake()
				}
			}
		case <-ctx.Done():
			s.drain()
			return nil
		case now := <-t.C:
			limit := transport.MissedHeartbeats * s.cfg.Heartbeat
			for _, x := range s.sessions() {
				if now.Sub(time.Unix(0, x.lastSeen.Load())) > limit {
					x.end(status.Errorf(codes.Unavailable, "nothing heard for %s", limit))
				}
			}
			s.forgetTakeovers(now)
		}
	}
}

func (s *Service) forgetTakeovers(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, ts := range s.takeovers {
		if len(ts) == 0 || now.Sub(ts[len(ts)-1]) > takeoverWindow {
			delete(s.takeovers, id)
		}
	}
}

func (s *Service) drain() {
	all := s.sessions()
	for _, x := range all {
		x.set(func(sl *slot) { sl.goodbye = &stopgapv1.Goodbye{ReconnectWithin: durationpb.New(drainSpread)} })
	}
	deadline := time.Now().Add(drainWait)
	for len(s.sessions()) > 0 && time.Now().Before(deadline) {
		time.Sleep(drainWait / 20)
	}
	for _, x := range all {
		x.end(status.Error(codes.Unavailable, "the controller is stopping"))
	}
}

func (s *Service) sessions() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*session, 0, len(s.live))
	for _, x := range s.live {
		out = append(out, x)
	}
	return out
}

// Connected is the number of live streams.
func (s *Service) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// Holds says whether an agent's stream stands.
func (s *Service) Holds(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id] != nil
}

// Changed tells every agent what is new for it: policy, or its assignment.
func (s *Service) Changed() {
	for _, x := range s.sessions() {
		x.wake()
	}
}

// Wake tells some agents.
func (s *Service) Wake(ids []string) {
	s.mu.Lock()
	some := make([]*session, 0, len(ids))
	for _, id := range ids {
		if x := s.live[id]; x != nil {
			some = append(some, x)
		}
	}
	s.mu.Unlock()
	for _, x := range some {
		x.wake()
	}
}

// Recheck asks agents to look at their servers now; an empty id means all. It says how many were asked.
func (s *Service) Recheck(id string) uint32 {
	n := uint32(0)
	for _, x := range s.sessions() {
		if id == "" || x.id == id {
			x.set(func(sl *slot) { sl.command = stopgapv1.CommandKind_COMMAND_KIND_RECHECK })
			n++
		}
	}
	return n
}

// Connect implements AgentService.
func (s *Service) Connect(st stopgapv1.AgentService_ConnectServer) error {
	x := &session{svc: s, stream: st, began: time.Now(), done: make(chan struct{})}
	x.lastSeen.Store(time.Now().UnixNano())
	// For `stopgap-agent check`, which compares clocks before any Hello.
	_ = st.SetHeader(metadata.Pairs(transport.TimeHeader, time.Now().UTC().Format(time.RFC3339)))
	late := time.AfterFunc(transport.HelloTimeout, func() {
		x.mu.Lock()
		waiting := x.id == ""
		x.mu.Unlock()
		if waiting {
			x.end(status.Errorf(codes.DeadlineExceeded, "no Hello within %s", transport.HelloTimeout))
		}
	})
	defer late.Stop()
	go x.receive()
	select {
	case <-x.done:
	case <-st.Context().Done():
		x.end(status.FromContextError(st.Context().Err()).Err())
	}
	s.leave(x)
	if errors.Is(x.ended, errClosed) {
		return nil
	}
	return x.ended
}

// hello begins a session: it checks who speaks, takes over from an older stream, and puts Welcome into the slot.
func (s *Service) hello(x *session, h *stopgapv1.Hello) error {
	ctx := x.stream.Context()
	if err := s.admit(ctx, h); err != nil {
		return err
	}
	mark, err := s.cfg.Outcomes.Mark(ctx, h.GetAgentId(), h.GetJournalEpoch())
	if err != nil {
		s.cfg.Logger.Error("mark of an agent can't be read", "agent", h.GetAgentId(), "error", err)
		return status.Error(codes.Unavailable, "the store can't be read now")
	}
	s.auditRefusal(ctx, h)
	if err := s.enter(x, h); err != nil {
		return err
	}
	s.noteAhead(h)
	renew := s.cfg.Registry.OfOldCA(h.GetAgentId())
	x.set(func(sl *slot) {
		if renew {
			sl.command = stopgapv1.CommandKind_COMMAND_KIND_RENEW
		}
		sl.welcome = s.welcome(mark)
		sl.held = heldBy(h)
		if h.GetAttemptedError() != "" {
			sl.attempted = h.GetAttemptedVersion()
		}
	})
	return nil
}

// admit checks that a Hello is from the agent of the certificate, and from the machine that was enrolled.
func (s *Service) admit(ctx context.Context, h *stopgapv1.Hello) error {
	if err := checkHello(ctx, h); err != nil {
		id := access.From(ctx).ID
		s.cfg.Audit.Append(ctx, audit.Agent(id), "denied", "Hello", "%s", status.Convert(err).Message())
		return err
	}
	err := s.cfg.Registry.Seen(ctx, h.GetAgentId(), clip(h.GetName()), h.GetFacts().GetMachineId(), access.From(ctx).Certificate)
	if errors.Is(err, identity.ErrMachine) {
		s.cfg.Fleet.Raise(h.GetAgentId(), "clone-detected", "another machine speaks with this identity, as after cloning a virtual machine: "+
			clip(h.GetFacts().GetHost())+"; `stopgap agents reenroll` gives the right one a new key")
		s.cfg.Audit.Append(ctx, audit.Agent(h.GetAgentId()), "clone-detected", h.GetAgentId(), "from %s: %v", clip(h.GetFacts().GetHost()), err)
		s.cfg.Logger.Error("another machine speaks with an agent's identity", "agent", h.GetAgentId(), "host", clip(h.GetFacts().GetHost()), "error", err)
		return waitStatus(codes.FailedPrecondition, cloneWait, "clone detected: %v; an operator can order re-enrolment", err)
	}
	if err != nil {
		s.cfg.Logger.Error("the record of an agent can't be written", "agent", h.GetAgentId(), "error", err)
		return status.Error(codes.Unavailable, "the store can't be written now")
	}
	return nil
}

// auditRefusal puts what an agent refused before this connection into the audit log, once: it may have been another
// controller's, a thief's.
func (s *Service) auditRefusal(ctx context.Context, h *stopgapv1.Hello) {
	if h.GetAttemptedError() == "" {
		return
	}
	a, err := s.cfg.Fleet.Find(h.GetAgentId())
	if u := a.GetRefusedUpdate(); err == nil && u != nil && u.GetTimestampVersion() == h.GetAttemptedVersion() {
		return
	}
	s.cfg.Audit.Append(ctx, audit.Agent(h.GetAgentId()), "policy-refused", fmt.Sprintf("timestamp %d", h.GetAttemptedVersion()), "%s", clip(h.GetAttemptedError()))
}

// heldBy is what an agent says it holds.
func heldBy(h *stopgapv1.Hello) tufpolicy.Versions {
	return tufpolicy.Versions{Root: h.GetRootVersion(), Timestamp: h.GetTimestampVersion(), Snapshot: h.GetSnapshotVersion(), Targets: h.GetPolicyVersion()}
}

// RenewCertificate implements AgentService.
func (s *Service) RenewCertificate(ctx context.Context, r *stopgapv1.RenewCertificateRequest) (*stopgapv1.RenewCertificateResponse, error) {
	id := access.From(ctx).ID
	cert, err := s.cfg.Registry.Renew(ctx, id, access.From(ctx).Certificate, r.GetCsr())
	if err != nil {
		if st := identity.ToStatus(err); st != nil {
			s.cfg.Audit.Append(ctx, audit.Agent(id), "renew-refused", id, "%v", err)
			return nil, st
		}
		s.cfg.Logger.Error("a certificate can't be renewed", "agent", id, "error", err)
		return nil, status.Error(codes.Unavailable, "certificates can't be issued now")
	}
	return &stopgapv1.RenewCertificateResponse{Certificate: cert.Raw, Ca: s.cfg.Bundle()}, nil
}

// End ends an agent's stream, and says whether there was one.
func (s *Service) End(id string, err error) bool {
	s.mu.Lock()
	x := s.live[id]
	delete(s.clones, id)
	delete(s.takeovers, id)
	s.mu.Unlock()
	if x == nil {
		return false
	}
	x.end(status.Error(codes.PermissionDenied, err.Error()))
	return true
}

func (s *Service) welcome(mark store.Mark) *stopgapv1.Welcome {
	return &stopgapv1.Welcome{Fleet: s.cfg.FleetName, ControllerEpoch: s.cfg.Rollout.Epoch(), ServerTime: timestamppb.Now(),
		HeartbeatInterval: durationpb.New(s.cfg.Heartbeat), Acknowledged: &stopgapv1.OutcomeAck{Epoch: mark.Epoch, Sequence: mark.Sequence}}
}

// noteAhead warns of an agent that holds a newer policy than this controller has: one of the two was restored from an
// older copy. Its word moves nothing; publishing the newer policy directory does.
func (s *Service) noteAhead(h *stopgapv1.Hello) {
	if cur := s.cfg.Policy.Current().Version; h.GetPolicyVersion() > cur {
		s.cfg.Logger.Error("an agent holds a newer policy than this controller; was the controller restored from a backup?",
			"agent", h.GetAgentId(), "holds", h.GetPolicyVersion(), "controller", cur)
		s.cfg.Fleet.Raise(h.GetAgentId(), "ahead-of-controller", "holds a newer policy than the controller knows; publish the newest policy directory")
	}
}

// enter makes x the live stream of its identity.
func (s *Service) enter(x *session, h *stopgapv1.Hello) error {
	id := h.GetAgentId()
	s.mu.Lock()
	old := s.live[id]
	if old == nil && len(s.live) >= s.cfg.MaxAgents {
		s.mu.Unlock()
		return waitStatus(codes.ResourceExhausted, cloneWait, "%d agents are connected, which is the limit", s.cfg.MaxAgents)
	}
	cloned := false
	if old != nil && old.instance != h.GetInstanceId() {
		now := time.Now()
		recent := s.takeovers[id][:0:0]
		for _, t := range s.takeovers[id] {
			if now.Sub(t) < takeoverWindow {
				recent = append(recent, t)
			}
		}
		// Once detected it stays so while the controller runs: only an operator can tell which of the two is the server.
		if cloned = s.clones[id] || len(recent) >= maxTakeovers; cloned {
			s.clones[id] = true
		} else {
			recent = append(recent, now)
		}
		s.takeovers[id] = recent
	}
	if cloned {
		s.mu.Unlock()
		s.cfg.Audit.Append(x.stream.Context(), audit.Agent(id), "clone-detected", id, "two processes; the one connected stays, sent away: %s", clip(h.GetFacts().GetHost()))
		s.cfg.Logger.Error("two processes speak with one identity; the one connected stays", "agent", id, "host", clip(h.GetFacts().GetHost()))
		s.cfg.Fleet.Raise(id, "clone-detected", "two processes speak with this identity, as after cloning a virtual machine; `stopgap agents reenroll` gives the right one a new key")
		return waitStatus(codes.FailedPrecondition, cloneWait, "clone detected: another process speaks with this identity and is connected")
	}
	x.mu.Lock()
	x.id, x.instance = id, h.GetInstanceId()
	x.mu.Unlock()
	s.live[id] = x
	s.cfg.Fleet.Connected(h, true) // in the order in which streams come and go
	s.mu.Unlock()
	if old != nil {
		old.end(status.Error(codes.Aborted, "a newer stream of this identity took over"))
	}
	// It may have been revoked between opening the stream and now: whoever revokes looks for a live stream after the record
	// is written, so one of the two sees the other.
	if err := s.cfg.Registry.Check(id, access.From(x.stream.Context()).Certificate); err != nil {
		s.cfg.Audit.Append(x.stream.Context(), audit.Agent(id), "denied", "Hello", "%v", err)
		x.end(status.Error(codes.PermissionDenied, err.Error()))
	}
	select {
	case <-x.done: // it ended meanwhile, and its handler found nothing to take out
		s.leave(x)
	default:
	}
	return nil
}

// leave takes a session out, unless another took its place.
func (s *Service) leave(x *session) {
	x.mu.Lock()
	id := x.id
	x.mu.Unlock()
	s.mu.Lock()
	mine := id != "" && s.live[id] == x
	if mine {
		delete(s.live, id)
		s.cfg.Fleet.Disconnected(id)
	}
	s.mu.Unlock()
}

// Pull implements AgentService.
func (s *Service) Pull(ctx context.Context, r *stopgapv1.PullRequest) (*stopgapv1.PullResponse, error) {
	h := r.GetHello()
	if err := s.admit(ctx, h); err != nil {
		return nil, err
	}
	// A clone that is sent away from the stream must not speak for the holder here.
	s.mu.Lock()
	holder := s.live[h.GetAgentId()]
	s.mu.Unlock()
	if holder != nil && holder.instance != h.GetInstanceId() {
		return nil, waitStatus(codes.FailedPrecondition, cloneWait, "another process speaks with this identity and is connected")
	}
	batch, err := checkBatch(h.GetAgentId(), r.GetOutcomes())
	if err != nil {
		return nil, err
	}
	if len(batch.Outcomes) > 0 {
		done := make(chan error, 1)
		if err := s.cfg.Recorder.Record(ctx, batch, func(_ store.Mark, err error) { done <- err }); err != nil {
			return nil, status.FromContextError(err).Err()
		}
		select {
		case err = <-done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return nil, status.Error(codes.Unavailable, "outcomes can't be recorded now; keep them")
		}
	}
	mark, err := s.cfg.Outcomes.Mark(ctx, h.GetAgentId(), h.GetJournalEpoch())
	if err != nil {
		return nil, status.Error(codes.Unavailable, "the store can't be read now")
	}
	s.cfg.Fleet.Connected(h, false)
	s.noteAhead(h)
	resp := &stopgapv1.PullResponse{Welcome: s.welcome(mark)}
	data, version := s.cfg.Policy.Update(heldBy(h), false)
	if h.GetAttemptedError() == "" || h.GetAttemptedVersion() != version {
		resp.PolicyUpdate = data
	}
	resp.Assignment, _ = s.cfg.Rollout.For(h.GetAgentId())
	return resp, nil
}
