// Package uplink is the agent's connection to its controller: one goroutine owns the stream and the pull, so that both
// run into the same code and never at the same time. It decides when to connect; what arrives is its handler's matter.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
)

// Handler is what the uplink serves. Its methods are called one after the other.
type Handler interface {
	// Hello describes the agent as it is now.
	Hello() *stopgapv1.Hello
	// Welcome begins a stream or a pull's answer; it may change the journal's epoch.
	Welcome(*stopgapv1.Welcome) error
	// Policy takes an encoded PolicyUpdate and answers it; both nil: a late answer that was dropped.
	Policy(data []byte) (*stopgapv1.PolicyAck, *stopgapv1.PolicyNack)
	// Assignment takes an encoded Assignment and says whether it is a new one.
	Assignment(data []byte) (changed bool)
	// Acknowledged: outcomes up to the mark are on the controller's disk.
	Acknowledged(*stopgapv1.OutcomeAck)
	// Command is something to do now.
	Command(stopgapv1.CommandKind)
	// Pending gives outcomes after a sequence number, at most n.
	Pending(after uint64, n int) (*stopgapv1.OutcomeBatch, error)
	// Facts gives the server's facts; sent when Wake was called and they differ from those sent last.
	Facts() *stopgapv1.Facts
	// Heartbeat gives what a heartbeat carries.
	Heartbeat() *stopgapv1.Heartbeat
}

// Config of an Uplink.
type Config struct {
	// Addr of the controller, host:port.
	Addr string
	// DialOptions for it: credentials and tuning (package transport). Asked for each connection: certificates are renewed.
	DialOptions func() []grpc.DialOption
	Handler     Handler
	// PullInterval between pulls while no stream stands. Default 1 hour; each is jittered by ±10 %.
	PullInterval time.Duration
	// RetryMin and RetryMax bound the wait before a retry: full jitter between 0 and a bound that doubles from the one to
	// the other. Defaults 2 s and 2 min.
	RetryMin, RetryMax time.Duration
	Logger             hclog.Logger
}

const (
	defaultPull     = time.Hour
	defaultRetryMin = 2 * time.Second
	defaultRetryMax = 2 * time.Minute
	// stood is how long a stream must have stood for the retries to start over.
	stood = time.Minute
	// welcomeTimeout bounds the wait for Welcome, connecting included.
	welcomeTimeout = 20 * time.Second
	pullJitter     = 0.1
	// maxPullCalls bounds the calls of one pull: enough for everything an outbox holds.
	maxPullCalls = 20
	// maxRetryInfo bounds the wait a controller can ask for.
	maxRetryInfo = 30 * time.Minute
)

// Uplink connects.
type Uplink struct {
	cfg  Config
	wake chan struct{}

	mu     sync.Mutex
	status Status
	live   stopgapv1.AgentServiceClient // of the stream that stands
}

// Status is the state of the connection.
type Status struct {
	Connected   bool
	LastContact time.Time
	LastError   string
}

// New makes an uplink.
func New(cfg Config) (*Uplink, error) {
	if cfg.Addr == "" || cfg.Handler == nil || cfg.Logger == nil || cfg.DialOptions == nil {
		return nil, errors.New("uplink: address, handler and logger are needed")
	}
	if cfg.PullInterval == 0 {
		cfg.PullInterval = defaultPull
	}
	if cfg.RetryMin == 0 {
		cfg.RetryMin = defaultRetryMin
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = defaultRetryMax
	}
	return &Uplink{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

// Wake tells that there are outcomes to send or that facts changed. It never blocks.
func (u *Uplink) Wake() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// Status gives the state of the connection.
func (u *Uplink) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

func (u *Uplink) note(connected bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Connected = connected
	if err != nil {
		u.status.LastError = err.Error()
	} else {
		u.status.LastContact = time.Now()
		u.status.LastError = ""
	}
}

// Renew calls RenewCertificate: on the connection of the stream where one stands, else on one of its own.
func (u *Uplink) Renew(ctx context.Context, r *stopgapv1.RenewCertificateRequest) (*stopgapv1.RenewCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, transport.CallTimeout)
	defer cancel()
	u.mu.Lock()
	client := u.live
	u.mu.Unlock()
	if client == nil {
		conn, err := grpc.NewClient(u.cfg.Addr, u.cfg.DialOptions()...)
		if err != nil {
			return nil, err
		}
		defer func() { _ = conn.Close() }()
		client = stopgapv1.NewAgentServiceClient(conn)
	}
	return client.RenewCertificate(ctx, r)
}

func (u *Uplink) setLive(c stopgapv1.AgentServiceClient) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.live = c
}

// newBackOff waits between 0 and a bound that doubles (cenkalti draws up to twice its interval).
func (u *Uplink) newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = u.cfg.RetryMin/2, u.cfg.RetryMax/2
	b.RandomizationFactor, b.Multiplier, b.MaxElapsedTime = 1, 2, 0
	b.Reset()
	return b
}

func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - pullJitter + 2*pullJitter*rand.Float64()))
}

// Run connects until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	b := u.newBackOff()
	var nextPull time.Time // zero: as soon as a stream failed
	for ctx.Err() == nil {
		began := time.Now()
		wait, err := u.stream(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stream that ends with ctx ended well
		}
		if time.Since(began) >= stood {
			b.Reset()
			nextPull = time.Now().Add(jittered(u.cfg.PullInterval))
		}
		wait = max(wait, b.NextBackOff())
		u.note(false, err)
		u.cfg.Logger.Warn("no stream to the controller", "controller", u.cfg.Addr, "error", err, "again_in", wait.Round(time.Millisecond))
		until := time.Now().Add(wait)
		for {
			if !time.Now().Before(nextPull) {
				if nextPull.IsZero() && !sleep(ctx, time.Duration(rand.Int64N(int64(min(u.cfg.RetryMin, u.cfg.PullInterval))))) {
					return nil
				}
				nextPull = time.Now().Add(jittered(u.cfg.PullInterval))
				if err := u.pull(ctx); err != nil && ctx.Err() == nil {
					u.cfg.Logger.Warn("pull failed", "controller", u.cfg.Addr, "error", err, "again_at", nextPull.Format(time.TimeOnly))
				}
			}
			if !time.Now().Before(until) {
				break
			}
			if !sleep(ctx, min(time.Until(until), max(time.Until(nextPull), time.Millisecond))) {
				return nil
			}
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pull is one Pull call, with everything that waits for the controller.
func (u *Uplink) pull(ctx context.Context) error {
	conn, err := grpc.NewClient(u.cfg.Addr, u.cfg.DialOptions()...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := stopgapv1.NewAgentServiceClient(conn)
	// Further calls carry the answer to what the first brought, what came of it, and what else waits.
	for range maxPullCalls {
		batch, err := u.cfg.Handler.Pending(0, transport.MaxOutcomes)
		if err != nil {
			return err
		}
		cctx, cancel := context.WithTimeout(ctx, transport.CallTimeout)
		resp, err := client.Pull(cctx, &stopgapv1.PullRequest{Hello: u.cfg.Handler.Hello(), Outcomes: batch})
		cancel()
		if err != nil {
			return err
		}
		u.note(false, nil)
		if err := u.cfg.Handler.Welcome(resp.GetWelcome()); err != nil {
			return err
		}
		u.cfg.Handler.Acknowledged(resp.GetWelcome().GetAcknowledged())
		changed := len(resp.GetAssignment()) > 0 && u.cfg.Handler.Assignment(resp.GetAssignment())
		if len(resp.GetPolicyUpdate()) > 0 {
			u.cfg.Handler.Policy(resp.GetPolicyUpdate())
			changed = true
		}
		if len(batch.GetOutcomes()) == transport.MaxOutcomes {
			continue
		}
		if !changed {
			return nil
		}
		// Reconciling takes a moment; its outcomes make the second call worth it.
		if !u.waitForOutcomes(ctx) {
			return nil
		}
	}
	return nil
}

// outcomeWait is how long a pull waits for the outcomes of what it brought.
const outcomeWait = 5 * time.Second

func (u *Uplink) waitForOutcomes(ctx context.Context) bool {
	t := time.NewTimer(outcomeWait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-u.wake:
		return true
	case <-t.C:
		return true
	}
}

// maxUnacknowledged bounds the outcomes that are sent and not yet acknowledged; the controller acknowledges within a second.
const maxUnacknowledged = 8 * transport.MaxOutcomes

// session is one stream.
type session struct {
	u      *Uplink
	stream grpc.BidiStreamingClient[stopgapv1.ConnectRequest, stopgapv1.ConnectResponse]
	sent   uint64 // outcomes sent up to here
	acked  uint64
	epoch  string
	facts  *stopgapv1.Facts
}

// stream runs one stream until it ends; wait is how long the controller asked to stay away.
func (u *Uplink) stream(ctx context.Context) (wait time.Duration, err error) {
	conn, err := grpc.NewClient(u.cfg.Addr, u.cfg.DialOptions()...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(welcomeTimeout, func() {
		cancel(fmt.Errorf("no answer within %s", welcomeTimeout))
	})
	defer watchdog.Stop()
	cause := func(err error) error {
		if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
			return c
		}
		return err
	}
	client := stopgapv1.NewAgentServiceClient(conn)
	st, err := client.Connect(ctx)
	if err != nil {
		return retryInfo(err), cause(err)
	}
	hello := u.cfg.Handler.Hello()
	if err := st.Send(&stopgapv1.ConnectRequest{Hello: hello}); err != nil {
		_, err = st.Recv() // the status is there
		return retryInfo(err), cause(err)
	}
	first, err := st.Recv()
	if err != nil {
		return retryInfo(err), cause(err)
	}
	if first.GetWelcome() == nil {
		return 0, errors.New("the controller's first frame is not Welcome")
	}
	if err := u.cfg.Handler.Welcome(first.GetWelcome()); err != nil {
		return 0, err
	}
	u.note(true, nil)
	u.setLive(client)
	defer u.setLive(nil)
	u.cfg.Logger.Info("connected", "controller", u.cfg.Addr, "fleet", first.GetWelcome().GetFleet())
	beat := first.GetWelcome().GetHeartbeatInterval().AsDuration()
	if beat <= 0 || beat > time.Minute {
		beat = transport.HeartbeatInterval
	}
	deadline := transport.MissedHeartbeats * beat
	watchdog.Reset(deadline)

	frames, ended := make(chan *stopgapv1.ConnectResponse), make(chan error, 1)
	go func() {
		for {
			f, err := st.Recv()
			if err != nil {
				ended <- err
				return
			}
			watchdog.Reset(deadline)
			select {
			case frames <- f:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	// The watchdog of the receiver must not outlive us: it cancels a context that is cancelled anyway.
	s := &session{u: u, stream: st, facts: hello.GetFacts()}
	err = s.loop(ctx, first, frames, ended, beat)
	cancel(nil)
	var bye *goodbye
	if errors.As(err, &bye) {
		return time.Duration(rand.Int64N(int64(bye.within) + 1)), err
	}
	return retryInfo(err), cause(err)
}

type goodbye struct{ within time.Duration }

func (g *goodbye) Error() string { return "the controller closes" }

func (s *session) loop(ctx context.Context, first *stopgapv1.ConnectResponse, frames <-chan *stopgapv1.ConnectResponse, ended <-chan error, beat time.Duration) error {
	heartbeat := time.NewTicker(beat)
	defer heartbeat.Stop()
	// What else stood in the first frame, then everything that waits.
	first.Welcome = nil
	if err := s.receive(first); err != nil {
		return err
	}
	if err := s.send(nil); err != nil {
		return s.final(err, ended)
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case f := <-frames:
			s.u.note(true, nil)
			err = s.receive(f)
		case <-s.u.wake:
			err = s.send(nil)
		case <-heartbeat.C:
			err = s.send(&stopgapv1.ConnectRequest{Heartbeat: s.u.cfg.Handler.Heartbeat()})
		}
		if err != nil {
			return s.final(err, ended)
		}
	}
}

// final prefers the stream's status to the error of a Send, which is only io.EOF.
func (s *session) final(err error, ended <-chan error) error {
	var bye *goodbye
	if errors.As(err, &bye) {
		return err
	}
	select {
	case end := <-ended:
		return end
	case <-time.After(time.Second):
		return err
	}
}

// receive acts on every part of a frame and sends what that gives in one frame.
func (s *session) receive(f *stopgapv1.ConnectResponse) error {
	h := s.u.cfg.Handler
	out := &stopgapv1.ConnectRequest{}
	if ack := f.GetOutcomeAck(); ack != nil {
		h.Acknowledged(ack)
		if ack.GetEpoch() == s.epoch {
			s.acked = max(s.acked, ack.GetSequence())
		}
	}
	// The assignment first: it waits for its policy version, and what comes into policy is then released already.
	if len(f.GetAssignment()) > 0 {
		h.Assignment(f.GetAssignment())
	}
	if len(f.GetPolicyUpdate()) > 0 {
		out.PolicyAck, out.PolicyNack = h.Policy(f.GetPolicyUpdate())
	}
	if c := f.GetCommand(); c != nil {
		h.Command(c.GetKind())
	}
	if g := f.GetGoodbye(); g != nil {
		return &goodbye{min(g.GetReconnectWithin().AsDuration(), maxRetryInfo)}
	}
	return s.send(out)
}

// send sends a frame with whatever else is to be said: a batch of outcomes, and changed facts.
func (s *session) send(out *stopgapv1.ConnectRequest) error {
	if out == nil {
		out = &stopgapv1.ConnectRequest{}
	}
	h := s.u.cfg.Handler
	batch, err := h.Pending(s.sent, transport.MaxOutcomes)
	if err != nil {
		return err
	}
	if batch.GetEpoch() != s.epoch { // begun anew
		s.epoch, s.sent, s.acked = batch.GetEpoch(), 0, 0
		if batch, err = h.Pending(0, transport.MaxOutcomes); err != nil {
			return err
		}
		if len(batch.GetOutcomes()) > 0 {
			s.acked = batch.GetOutcomes()[0].GetSequence() - 1
			s.sent = s.acked
		}
	}
	more := false
	if n := len(batch.GetOutcomes()); n > 0 && s.sent-min(s.acked, s.sent) < maxUnacknowledged {
		out.Outcomes = batch
		s.sent = batch.GetOutcomes()[n-1].GetSequence()
		more = n == transport.MaxOutcomes
	}
	if f := h.Facts(); f != nil && f.String() != s.facts.String() {
		out.Facts, s.facts = f, f
	}
	if out.PolicyAck == nil && out.PolicyNack == nil && out.Outcomes == nil && out.Facts == nil && out.Heartbeat == nil {
		return nil
	}
	if err := s.stream.Send(out); err != nil || !more {
		return err
	}
	return s.send(nil)
}

// retryInfo is how long the controller asks to wait before the next try.
func retryInfo(err error) time.Duration {
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.FailedPrecondition && st.Code() != codes.ResourceExhausted && st.Code() != codes.Unavailable {
		return 0
	}
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return min(r.GetRetryDelay().AsDuration(), maxRetryInfo)
		}
	}
	return 0
}
