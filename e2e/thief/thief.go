// Package thief is a controller in the wrong hands: it shows a fleet's own server certificate, which agents believe, and sends
// what no honest controller would. Tests and the demo show with it that agents refuse.
package thief

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	heartbeat = 5 * time.Second
	buffer    = 1024
)

// Controller answers every agent, and gives each the frames it is told to send.
type Controller struct {
	stopgapv1.UnimplementedAgentServiceServer
	stopgapv1.UnimplementedEnrollmentServiceServer
	// Answers are the acknowledgements and refusals that came back, Outcomes what agents reported.
	Answers  chan *stopgapv1.ConnectRequest
	Outcomes chan *stopgapv1.Outcome

	srv  *grpc.Server
	addr string

	mu      sync.Mutex
	root    []byte
	clock   func() *timestamppb.Timestamp
	ends    map[stopgapv1.AgentService_ConnectServer]chan struct{}
	streams map[stopgapv1.AgentService_ConnectServer]string
}

// Serve begins to serve with the server certificate of a controller's data directory.
func Serve(dataDir, addr string) (*Controller, error) {
	dir := filepath.Join(dataDir, "server")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, trust.CertFile), filepath.Join(dir, trust.KeyFile))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, trust.CAFile))
	if err != nil {
		return nil, err
	}
	for b, rest := pem.Decode(ca); b != nil; b, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, b.Bytes)
	}
	c := &Controller{Answers: make(chan *stopgapv1.ConnectRequest, buffer), Outcomes: make(chan *stopgapv1.Outcome, buffer),
		streams: map[stopgapv1.AgentService_ConnectServer]string{}, clock: timestamppb.Now,
		ends: map[stopgapv1.AgentService_ConnectServer]chan struct{}{}}
	anybody := func(*x509.Certificate) error { return nil }
	c.srv = grpc.NewServer(transport.ServerOptions(trust.ServerTLS(cert, x509.NewCertPool(), anybody))...)
	stopgapv1.RegisterAgentServiceServer(c.srv, c)
	stopgapv1.RegisterEnrollmentServiceServer(c.srv, c)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	c.addr = ln.Addr().String()
	go func() { _ = c.srv.Serve(ln) }()
	return c, nil
}

// Addr is where it listens.
func (c *Controller) Addr() string { return c.addr }

// Stop ends it.
func (c *Controller) Stop() { c.srv.Stop() }

// Connected is the number of agents that believe in it.
func (c *Controller) Connected() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// SetClock makes it tell another time, and ends the streams that were told the right one.
func (c *Controller) SetClock(clock func() *timestamppb.Timestamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock = clock
	for st, end := range c.ends {
		close(end)
		delete(c.ends, st)
	}
}

// OfferRoot is what it hands out to who enrols.
func (c *Controller) OfferRoot(root []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.root = root
}

// Enroll implements EnrollmentService: everybody gets the thief's root.
func (c *Controller) Enroll(context.Context, *stopgapv1.EnrollRequest) (*stopgapv1.EnrollResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &stopgapv1.EnrollResponse{AgentId: "x", Fleet: "lab", Root: c.root}, nil
}

// Send sends a policy update and an assignment, either nil, to every agent.
func (c *Controller) Send(u *stopgapv1.PolicyUpdate, a *stopgapv1.Assignment) error {
	f := &stopgapv1.ConnectResponse{}
	var err error
	if u != nil {
		if f.PolicyUpdate, err = proto.Marshal(u); err != nil {
			return err
		}
	}
	if a != nil {
		if f.Assignment, err = proto.Marshal(a); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for st := range c.streams {
		if err := st.Send(f); err != nil {
			return fmt.Errorf("thief: %w", err)
		}
	}
	return nil
}

// Connect implements AgentService.
func (c *Controller) Connect(st stopgapv1.AgentService_ConnectServer) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	h := first.GetHello()
	c.mu.Lock()
	clock := c.clock
	c.mu.Unlock()
	if err := st.Send(&stopgapv1.ConnectResponse{Welcome: &stopgapv1.Welcome{Fleet: "lab", ControllerEpoch: "thief", ServerTime: clock(),
		HeartbeatInterval: durationpb.New(heartbeat), Acknowledged: &stopgapv1.OutcomeAck{Epoch: h.GetJournalEpoch()}}}); err != nil {
		return err
	}
	end, failed := make(chan struct{}), make(chan error, 1)
	c.mu.Lock()
	c.streams[st], c.ends[st] = h.GetAgentId(), end
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.streams, st)
		delete(c.ends, st)
		c.mu.Unlock()
	}()
	go func() { failed <- c.serve(st) }()
	select {
	case <-end:
		return nil
	case err := <-failed:
		return err
	}
}

func (c *Controller) serve(st stopgapv1.AgentService_ConnectServer) error {
	for {
		req, err := st.Recv()
		if err != nil {
			return err
		}
		if req.GetPolicyAck() != nil || req.GetPolicyNack() != nil {
			c.Answers <- req
		}
		for _, o := range req.GetOutcomes().GetOutcomes() {
			c.Outcomes <- o.GetOutcome()
		}
		answer := &stopgapv1.ConnectResponse{}
		if b := req.GetOutcomes(); len(b.GetOutcomes()) > 0 {
			answer.OutcomeAck = &stopgapv1.OutcomeAck{Epoch: b.GetEpoch(), Sequence: b.GetOutcomes()[len(b.GetOutcomes())-1].GetSequence()}
		}
		if req.GetHeartbeat() != nil {
			answer.Heartbeat = &stopgapv1.Heartbeat{}
		}
		if answer.OutcomeAck != nil || answer.Heartbeat != nil {
			c.mu.Lock()
			err = st.Send(answer)
			c.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}
