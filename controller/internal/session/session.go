// Package session is the agents' streams: one live stream for each agent, with a slot for what it is to be told. A slot
// holds the newest state, not a queue: a slow agent costs one slot and holds up nobody.
//
// It knows what to send from the rooms it is given, and records what it hears through them; it keeps nothing itself that
// outlives a stream, but for who took over from whom.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/access"
	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// session is one stream.
//
// Two goroutines serve it: the handler, which waits for its end, and the receiver. There is no sender: whoever has
// something for an agent marks it in the slot and, if nobody is sending, starts a goroutine that sends until the slot is
// empty. An idle agent costs no sender, and a send that blocks on an agent's full window blocks that agent's only.
type session struct {
	svc      *Service
	id       string
	instance string
	began    time.Time
	stream   stream
	done     chan struct{}
	lastSeen atomic.Int64 // unix nanoseconds

	mu      sync.Mutex
	ended   error // why it ended; set once, before done is closed
	sending bool
	slot    slot

	nacks       int
	frames      int // within the window; only the receiver touches these
	windowStart time.Time
}

type stream interface {
	Context() context.Context
	Send(*stopgapv1.ConnectResponse) error
	Recv() (*stopgapv1.ConnectRequest, error)
}

// slot is what an agent is still to be told.
type slot struct {
	ready     bool // Welcome was sent
	welcome   *stopgapv1.Welcome
	ack       *stopgapv1.OutcomeAck
	ackSince  time.Time // since when it waits for a frame to ride on
	heartbeat bool
	command   stopgapv1.CommandKind
	goodbye   *stopgapv1.Goodbye

	// Policy: at most one update is unanswered; the answer opens the next. A version that was refused for good is not
	// sent again.
	held       tufpolicy.Versions
	attempted  uint64 // timestamp version
	unanswered bool
	full       bool // the agent could not use what was left out: send everything
	assigned   uint64
	looked     uint64 // the generation at which it was assigned
	settled    bool   // the agent's facts are on disk
}

// errClosed is the end of a stream that its agent closed.
var errClosed = errors.New("session: closed by the agent")

// end ends the stream with a status; errClosed is the good end.
func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = err
		close(s.done)
	}
}

// wake sends what the slot holds, unless somebody is at it.
func (s *session) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending || s.ended != nil {
		return
	}
	if frame := s.next(); frame != nil {
		s.sending = true
		go s.flush(frame)
	}
}

// set marks something in the slot and wakes.
func (s *session) set(mark func(*slot)) {
	s.mu.Lock()
	mark(&s.slot)
	s.mu.Unlock()
	s.wake()
}

// flush sends a frame, and then whatever else the slot holds by then.
func (s *session) flush(frame *stopgapv1.ConnectResponse) {
	for frame != nil {
		if err := s.stream.Send(frame); err != nil {
			s.end(status.Error(codes.Unavailable, "the stream can't be written"))
			return
		}
		s.mu.Lock()
		if frame = s.next(); frame == nil || s.ended != nil {
			s.sending, frame = false, nil
		}
		s.mu.Unlock()
	}
}

// next takes everything that is due out of the slot, as one frame; nil when nothing is. The caller holds the lock.
func (s *session) next() *stopgapv1.ConnectResponse {
	sl := &s.slot
	if sl.welcome == nil && !sl.ready {
		return nil
	}
	f := &stopgapv1.ConnectResponse{Welcome: sl.welcome, OutcomeAck: sl.ack, Goodbye: sl.goodbye}
	some := f.Welcome != nil || f.OutcomeAck != nil || f.Goodbye != nil
	sl.welcome, sl.ack, sl.goodbye, sl.ready = nil, nil, nil, true
	if sl.command != 0 {
		f.Command, some = &stopgapv1.Command{Kind: sl.command}, true
		sl.command = 0
	}
	// Nothing is released before the facts it is decided by are on disk; until then policy has time too.
	if !sl.settled {
		sl.settled = s.svc.cfg.Fleet.Settled(s.id)
	}
	if sl.settled && !sl.unanswered {
		data, version := s.svc.cfg.Policy.Update(sl.held, sl.full)
		if data != nil && version != sl.attempted {
			f.PolicyUpdate, some = data, true
			sl.unanswered, sl.attempted = true, version
		}
	}
	// Asked again only when something may have changed: each frame of each agent comes by here.
	if g := s.svc.cfg.Rollout.Generation(); sl.settled && g != sl.looked {
		sl.looked = g
		if data, content := s.svc.cfg.Rollout.For(s.id); data != nil && content != sl.assigned {
			f.Assignment, some = data, true
			sl.assigned = content
		}
	}
	if sl.heartbeat {
		f.Heartbeat, some = &stopgapv1.Heartbeat{ServerTime: timestamppb.Now()}, true
		sl.heartbeat = false
	}
	if !some {
		return nil
	}
	return f
}

// receive reads until the stream ends.
func (s *session) receive() {
	for {
		f, err := s.stream.Recv()
		if err == nil {
			err = s.frame(f)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errClosed
			}
			s.end(err)
			return
		}
	}
}

func (s *session) frame(f *stopgapv1.ConnectRequest) error {
	now := time.Now()
	s.lastSeen.Store(now.UnixNano())
	if now.Sub(s.windowStart) > transport.FrameWindow {
		s.windowStart, s.frames = now, 0
	}
	if s.frames++; s.frames > transport.MaxFrames {
		return status.Errorf(codes.ResourceExhausted, "more than %d frames in %s", transport.MaxFrames, transport.FrameWindow)
	}
	if s.id == "" {
		if f.GetHello() == nil {
			return status.Error(codes.InvalidArgument, "the first frame must be Hello")
		}
		return s.svc.hello(s, f.GetHello())
	}
	if f.GetHello() != nil {
		return status.Error(codes.InvalidArgument, "a second Hello")
	}
	if a := f.GetPolicyAck(); a != nil {
		s.acked(a)
	}
	if n := f.GetPolicyNack(); n != nil {
		s.nacked(n)
	}
	if facts := f.GetFacts(); facts != nil {
		s.svc.cfg.Fleet.Facts(s.id, facts)
		s.mu.Lock()
		s.slot.settled, s.slot.looked = false, 0
		s.mu.Unlock()
		s.wake()
	}
	if b := f.GetOutcomes(); b != nil {
		if err := s.outcomes(b); err != nil {
			return err
		}
	}
	if hb := f.GetHeartbeat(); hb != nil {
		s.svc.cfg.Fleet.Heartbeat(s.id, hb)
		s.set(func(sl *slot) { sl.heartbeat = true })
	}
	return nil
}

func (s *session) acked(a *stopgapv1.PolicyAck) {
	s.svc.cfg.Fleet.Holds(s.id, a.GetTargetsVersion())
	s.set(func(sl *slot) {
		sl.held = tufpolicy.Versions{Root: a.GetRootVersion(), Timestamp: a.GetVersion(), Targets: a.GetTargetsVersion()}
		sl.unanswered, sl.full = false, false
	})
}

// maxAuditedNacks bounds what one stream can write into the audit log.
const maxAuditedNacks = 20

// nackRetry is the wait before a version that was refused for the time being is sent again.
const nackRetry = 30 * time.Second

func (s *session) nacked(n *stopgapv1.PolicyNack) {
	s.svc.cfg.Logger.Error("policy refused by an agent", "agent", s.id, "version", n.GetVersion(), "permanent", n.GetPermanent(), "error", clip(n.GetError()))
	s.svc.cfg.Fleet.Refused(s.id, n.GetTargetsVersion(), n.GetVersion(), n.GetError())
	if s.nacks++; s.nacks <= maxAuditedNacks {
		s.svc.cfg.Audit.Append(s.stream.Context(), audit.Agent(s.id), "policy-refused", fmt.Sprintf("timestamp %d", n.GetVersion()), "%s", clip(n.GetError()))
	}
	held := tufpolicy.Versions{Root: n.GetRootVersion(), Timestamp: n.GetHeldVersion(), Targets: n.GetTargetsVersion()}
	if n.GetPermanent() {
		s.set(func(sl *slot) { sl.held, sl.unanswered = held, false })
		return
	}
	s.mu.Lock()
	again := !s.slot.full // at once with everything in it, the first time
	s.slot.held, s.slot.full = held, true
	s.mu.Unlock()
	retry := func() { s.set(func(sl *slot) { sl.unanswered, sl.attempted = false, 0 }) }
	if again {
		retry()
		return
	}
	time.AfterFunc(s.svc.nackRetry, retry)
}

const maxLogged = 256

func clip(s string) string { return bounded.Text(s, maxLogged) }

func (s *session) outcomes(b *stopgapv1.OutcomeBatch) error {
	batch, err := checkBatch(s.id, b)
	if err != nil || len(batch.Outcomes) == 0 {
		return err
	}
	return s.svc.cfg.Recorder.Record(s.stream.Context(), batch, func(m store.Mark, err error) {
		if err != nil {
			s.svc.cfg.Logger.Error("outcomes can't be recorded; the agent keeps them", "agent", s.id, "error", err)
			s.end(status.Error(codes.Unavailable, "outcomes can't be recorded now; keep them"))
			return
		}
		// Not urgent: the agent keeps what it reported until then, and whoever is still to be told of a policy goes first.
		// It rides on the next frame, or on one of its own after ackAfter.
		s.mu.Lock()
		if s.slot.ack == nil {
			s.slot.ackSince = time.Now()
		}
		s.slot.ack = &stopgapv1.OutcomeAck{Epoch: m.Epoch, Sequence: m.Sequence}
		s.mu.Unlock()
	})
}

// Bounds on a batch of outcomes, besides transport.MaxOutcomes.
const (
	maxEpochLen      = 64
	maxMitigationLen = 64
	maxReasonLen     = 2 << 10
	maxEvidence      = 64
)

// checkBatch bounds what an agent reports.
func checkBatch(agent string, b *stopgapv1.OutcomeBatch) (store.Batch, error) {
	bad := func(format string, args ...any) (store.Batch, error) {
		return store.Batch{}, status.Errorf(codes.InvalidArgument, "outcomes: "+format, args...)
	}
	if len(b.GetOutcomes()) > transport.MaxOutcomes {
		return store.Batch{}, status.Errorf(codes.ResourceExhausted, "%d outcomes in a batch, limit %d", len(b.GetOutcomes()), transport.MaxOutcomes)
	}
	if n := len(b.GetEpoch()); len(b.GetOutcomes()) > 0 && (n == 0 || n > maxEpochLen) {
		return bad("an epoch of %d bytes, want 1 to %d", n, maxEpochLen)
	}
	last := uint64(0)
	for i, so := range b.GetOutcomes() {
		o := so.GetOutcome()
		switch {
		case so.GetSequence() <= last:
			return bad("entry %d: sequence %d after %d", i, so.GetSequence(), last)
		case o.GetMitigation() == "" || len(o.GetMitigation()) > maxMitigationLen || !plain(o.GetMitigation()):
			return bad("entry %d: mitigation %q is not an id", i, clip(o.GetMitigation()))
		case o.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_UNSPECIFIED:
			return bad("entry %d: no state", i)
		case len(o.GetReason()) > maxReasonLen || len(o.GetCode()) > maxMitigationLen || len(o.GetEvidence()) > maxEvidence || len(o.GetDocumentSha256()) > maxMitigationLen:
			return bad("entry %d: a text or list is too long", i)
		}
		for _, e := range o.GetEvidence() {
			if len(e.GetAction())+len(e.GetSubject())+len(e.GetFound())+len(e.GetSha256()) > maxReasonLen {
				return bad("entry %d: evidence is too long", i)
			}
		}
		last = so.GetSequence()
	}
	return store.Batch{Agent: agent, Epoch: b.GetEpoch(), Outcomes: b.GetOutcomes()}, nil
}

func plain(id string) bool {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// checkHello compares the id that an agent claims with that of its certificate.
func checkHello(ctx context.Context, h *stopgapv1.Hello) error {
	caller := access.From(ctx)
	if h.GetAgentId() != caller.ID {
		return status.Errorf(codes.PermissionDenied, "Hello is from agent %q, the certificate is for %q", clip(h.GetAgentId()), caller.ID)
	}
	if n := len(h.GetInstanceId()); n == 0 || n > maxEpochLen {
		return status.Errorf(codes.InvalidArgument, "instance id of %d bytes, want 1 to %d", n, maxEpochLen)
	}
	if n := len(h.GetJournalEpoch()); n == 0 || n > maxEpochLen {
		return status.Errorf(codes.InvalidArgument, "journal epoch of %d bytes, want 1 to %d", n, maxEpochLen)
	}
	return nil
}

// waitStatus is a refusal that says how long to stay away.
func waitStatus(code codes.Code, wait time.Duration, format string, args ...any) error {
	st, err := status.New(code, fmt.Sprintf(format, args...)).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil {
		return status.Errorf(code, format, args...)
	}
	return st.Err()
}
