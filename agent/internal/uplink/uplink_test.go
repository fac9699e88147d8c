package uplink

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a controller's side with a clock of the test's.
type peer struct {
	stopgapv1.UnimplementedAgentServiceServer
	connect func(stopgapv1.AgentService_ConnectServer) error
	mu      sync.Mutex
	streams []time.Time
	pulls   []time.Time
}

func (p *peer) Connect(s stopgapv1.AgentService_ConnectServer) error {
	p.mu.Lock()
	p.streams = append(p.streams, time.Now())
	p.mu.Unlock()
	return p.connect(s)
}

func (p *peer) Pull(context.Context, *stopgapv1.PullRequest) (*stopgapv1.PullResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulls = append(p.pulls, time.Now())
	return &stopgapv1.PullResponse{Welcome: &stopgapv1.Welcome{}}, nil
}

func (p *peer) seen() (streams, pulls []time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]time.Time(nil), p.streams...), append([]time.Time(nil), p.pulls...)
}

// nobody is a handler that has nothing to say and counts what it is told.
type nobody struct {
	mu      sync.Mutex
	welcome int
}

func (n *nobody) Hello() *stopgapv1.Hello { return &stopgapv1.Hello{AgentId: "a"} }
func (n *nobody) Welcome(*stopgapv1.Welcome) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.welcome++
	return nil
}
func (n *nobody) Policy([]byte) (*stopgapv1.PolicyAck, *stopgapv1.PolicyNack) { return nil, nil }
func (n *nobody) Assignment([]byte) bool                                      { return false }
func (n *nobody) Acknowledged(*stopgapv1.OutcomeAck)                          {}
func (n *nobody) Command(stopgapv1.CommandKind)                               {}
func (n *nobody) Pending(uint64, int) (*stopgapv1.OutcomeBatch, error) {
	return &stopgapv1.OutcomeBatch{Epoch: "e"}, nil
}
func (n *nobody) Facts() *stopgapv1.Facts         { return nil }
func (n *nobody) Heartbeat() *stopgapv1.Heartbeat { return &stopgapv1.Heartbeat{} }

// play runs an uplink against a peer for some (virtual) time.
func play(t *testing.T, p *peer, cfg Config, span time.Duration) (*nobody, time.Time) {
	t.Helper()
	ln := bufconn.Listen(1 << 20)
	srv := grpc.NewServer()
	stopgapv1.RegisterAgentServiceServer(srv, p)
	go func() { _ = srv.Serve(ln) }()
	h := &nobody{}
	cfg.Addr, cfg.Handler, cfg.Logger = "passthrough:///bufconn", h, hclog.NewNullLogger()
	cfg.DialOptions = func() []grpc.DialOption {
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) })}
	}
	u, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	if err := u.Run(ctx); err != nil {
		t.Error(err)
	}
	srv.Stop()
	synctest.Wait()
	return h, began
}

func TestWithoutAStreamItPullsAtOnceAndThenHourlyWithJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &peer{connect: func(stopgapv1.AgentService_ConnectServer) error {
			return status.Error(codes.Unavailable, "no streams here")
		}}
		_, began := play(t, p, Config{}, 10*time.Hour)
		streams, pulls := p.seen()
		if len(pulls) < 10 || len(pulls) > 12 {
			t.Fatalf("%d pulls in ten hours", len(pulls))
		}
		if first := pulls[0].Sub(began); first > defaultRetryMin+time.Second {
			t.Errorf("the first pull came after %s", first)
		}
		same := true
		for i := 2; i < len(pulls); i++ {
			gap := pulls[i].Sub(pulls[i-1])
			if gap < 53*time.Minute || gap > 67*time.Minute {
				t.Errorf("pull %d after %s", i, gap)
			}
			same = same && gap == pulls[2].Sub(pulls[1])
		}
		if same {
			t.Error("no jitter between pulls")
		}
		// Full jitter between 0 and two minutes is a minute on average.
		if n := len(streams); n < 300 || n > 1200 {
			t.Errorf("%d streams tried in ten hours", n)
		}
		for i := 1; i < len(streams); i++ {
			if gap := streams[i].Sub(streams[i-1]); gap > defaultRetryMax+time.Second {
				t.Errorf("stream %d after %s", i, gap)
			}
		}
	})
}

func welcome(s stopgapv1.AgentService_ConnectServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	return s.Send(&stopgapv1.ConnectResponse{Welcome: &stopgapv1.Welcome{HeartbeatInterval: durationpb.New(10 * time.Second)}})
}

func TestASilentControllerIsLeftAfterThreeHeartbeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &peer{connect: func(s stopgapv1.AgentService_ConnectServer) error {
			if err := welcome(s); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		}}
		_, began := play(t, p, Config{RetryMin: time.Second, RetryMax: time.Second}, 40*time.Second)
		streams, _ := p.seen()
		if len(streams) != 2 {
			t.Fatalf("%d streams in 40 s", len(streams))
		}
		if gap := streams[1].Sub(began); gap < 30*time.Second || gap > 32*time.Second {
			t.Errorf("left after %s", gap)
		}
	})
}

func TestAStreamWithHeartbeatsStandsAndNothingIsPulledMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		beats := 0
		p := &peer{connect: func(s stopgapv1.AgentService_ConnectServer) error {
			if err := welcome(s); err != nil {
				return err
			}
			for {
				r, err := s.Recv()
				if err != nil {
					return err
				}
				if r.GetHeartbeat() != nil {
					beats++
					if err := s.Send(&stopgapv1.ConnectResponse{Heartbeat: &stopgapv1.Heartbeat{}}); err != nil {
						return err
					}
				}
			}
		}}
		h, _ := play(t, p, Config{}, 3*time.Hour)
		streams, pulls := p.seen()
		if len(streams) != 1 || len(pulls) != 0 || h.welcome != 1 {
			t.Errorf("%d streams, %d pulls, %d welcomes", len(streams), len(pulls), h.welcome)
		}
		if beats < 1000 || beats > 1090 {
			t.Errorf("%d heartbeats in three hours", beats)
		}
	})
}

func TestRefusedForAWhileItStaysAwayThatLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &peer{connect: func(stopgapv1.AgentService_ConnectServer) error {
			st, err := status.New(codes.FailedPrecondition, "clone detected").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(10 * time.Minute)})
			if err != nil {
				return err
			}
			return st.Err()
		}}
		play(t, p, Config{}, time.Hour)
		streams, _ := p.seen()
		if len(streams) < 5 || len(streams) > 6 {
			t.Errorf("%d streams in an hour of ten-minute refusals", len(streams))
		}
	})
}
