package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// gate is a dialer whose connections stop reading while it is shut.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil: open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}

func (g *gate) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	return &gatedConn{Conn: c, g: g, done: make(chan struct{})}, err
}

type gatedConn struct {
	net.Conn
	g    *gate
	once sync.Once
	done chan struct{}
}

func (c *gatedConn) wait() {
	c.g.mu.Lock()
	shut := c.g.closed
	c.g.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-c.done:
		}
	}
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wait()
	return n, err
}

func (c *gatedConn) Write(p []byte) (int, error) {
	c.wait()
	return c.Conn.Write(p)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// attacker speaks the protocol by hand with an agent's certificate.
func attacker(t *testing.T, r *rig) (stopgapv1.AgentServiceClient, *trust.Credentials) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "evil")
	if _, err := controller.IssueAgent(r.data, dir, "EVIL"); err != nil {
		t.Fatal(err)
	}
	creds, err := trust.LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	opts := append(transport.DialOptions(trust.ClientTLS(creds, "")), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	conn, err := grpc.NewClient(r.addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return stopgapv1.NewAgentServiceClient(conn), creds
}

func hello(id string) *stopgapv1.ConnectRequest {
	return &stopgapv1.ConnectRequest{Hello: &stopgapv1.Hello{AgentId: id, InstanceId: "i", JournalEpoch: "e", Facts: &stopgapv1.Facts{Organisation: "Contoso"}}}
}

func TestAnAgentThatMisbehavesIsCutOffWithAClearStatusAndOthersDoNotNotice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good := r.add(lab.Spec{Template: lab.ExchangeSE, Host: "GOOD"}, nil)
	r.connected(good)
	client, creds := attacker(t, r)
	me := creds.Identity.ID
	outcome := func(seq uint64, id, reason string) *stopgapv1.SequencedOutcome {
		return &stopgapv1.SequencedOutcome{Sequence: seq, Outcome: &stopgapv1.Outcome{Mitigation: id, State: 2, Reason: reason}}
	}
	batch := func(os ...*stopgapv1.SequencedOutcome) *stopgapv1.ConnectRequest {
		return &stopgapv1.ConnectRequest{Outcomes: &stopgapv1.OutcomeBatch{Epoch: "e", Outcomes: os}}
	}
	var many []*stopgapv1.SequencedOutcome
	for i := range 300 {
		many = append(many, outcome(uint64(i+1), "M1", ""))
	}
	flood := []*stopgapv1.ConnectRequest{hello(me)}
	for range 200 {
		flood = append(flood, &stopgapv1.ConnectRequest{Heartbeat: &stopgapv1.Heartbeat{}})
	}
	for name, c := range map[string]struct {
		frames []*stopgapv1.ConnectRequest
		code   codes.Code
		says   string
	}{
		"no Hello":           {[]*stopgapv1.ConnectRequest{{Heartbeat: &stopgapv1.Heartbeat{}}}, codes.InvalidArgument, "first frame must be Hello"},
		"somebody else's id": {[]*stopgapv1.ConnectRequest{hello(good.id)}, codes.PermissionDenied, "the certificate is for"},
		"two Hellos":         {[]*stopgapv1.ConnectRequest{hello(me), hello(me)}, codes.InvalidArgument, "second Hello"},
		"too many outcomes":  {[]*stopgapv1.ConnectRequest{hello(me), batch(many...)}, codes.ResourceExhausted, "300 outcomes"},
		"sequence backwards": {[]*stopgapv1.ConnectRequest{hello(me), batch(outcome(2, "M1", ""), outcome(1, "M1", ""))}, codes.InvalidArgument, "sequence 1 after 2"},
		"an id with a path":  {[]*stopgapv1.ConnectRequest{hello(me), batch(outcome(1, "../x", ""))}, codes.InvalidArgument, "is not an id"},
		"a long reason":      {[]*stopgapv1.ConnectRequest{hello(me), batch(outcome(1, "M1", strings.Repeat("x", 5000)))}, codes.InvalidArgument, "too long"},
		"an oversized frame": {[]*stopgapv1.ConnectRequest{hello(me), batch(outcome(1, "M1", strings.Repeat("x", 1<<20)))}, codes.ResourceExhausted, "larger than max"},
		"a flood":            {flood, codes.ResourceExhausted, "frames in"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		st, err := client.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range c.frames {
			if st.Send(f) != nil {
				break
			}
		}
		for err == nil {
			_, err = st.Recv()
		}
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v; want %s naming %q", name, err, c.code, c.says)
		}
		cancel()
	}
	// Not an agent's business at all.
	opts := transport.DialOptions(trust.ClientTLS(creds, ""))
	conn, err := grpc.NewClient(r.addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := stopgapv1.NewFleetServiceClient(conn).Withdraw(t.Context(), &stopgapv1.WithdrawRequest{Mitigation: "M1", Revision: 1}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an agent may withdraw: %v", err)
	}
	if recs := r.history(); len(recs) > 0 {
		t.Errorf("something of it was recorded: %v", recs)
	}
	r.publish(catalogue(t, "PING1")...)
	r.expect(good, "PING1", applied, "")
	r.connected(good)
}

// fakeController speaks the controller's side by hand: what it sends no honest controller would.
type fakeController struct {
	stopgapv1.UnimplementedAgentServiceServer
	updates  chan *stopgapv1.PolicyUpdate
	acks     chan *stopgapv1.ConnectRequest
	outcomes chan *stopgapv1.Outcome
}

func (f *fakeController) Connect(st stopgapv1.AgentService_ConnectServer) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	if err := st.Send(&stopgapv1.ConnectResponse{Welcome: &stopgapv1.Welcome{Fleet: "lab", ControllerEpoch: "x", HeartbeatInterval: durationpb.New(5 * time.Second),
		Acknowledged: &stopgapv1.OutcomeAck{Epoch: first.GetHello().GetJournalEpoch()}}}); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-st.Context().Done():
				return
			case u := <-f.updates:
				raw, _ := proto.Marshal(u)
				a := &stopgapv1.Assignment{ControllerEpoch: "x", Generation: u.GetVersion(), PolicyVersion: u.GetVersion()}
				for _, t := range u.GetTargets() {
					p := strings.Split(strings.TrimSuffix(strings.TrimPrefix(t.GetPath(), "mitigations/"), ".yaml"), "/")
					if len(p) == 2 {
						a.Items = append(a.Items, &stopgapv1.AssignmentItem{Mitigation: p[0], Revision: 1, Sha256: t.GetSha256()})
					}
				}
				assignment, _ := proto.Marshal(a)
				_ = st.Send(&stopgapv1.ConnectResponse{PolicyUpdate: raw, Assignment: assignment})
			}
		}
	}()
	for {
		req, err := st.Recv()
		if err != nil {
			return err
		}
		if req.GetPolicyAck() != nil || req.GetPolicyNack() != nil {
			f.acks <- req
		}
		for _, o := range req.GetOutcomes().GetOutcomes() {
			f.outcomes <- o.GetOutcome()
		}
		if b := req.GetOutcomes(); len(b.GetOutcomes()) > 0 {
			last := b.GetOutcomes()[len(b.GetOutcomes())-1].GetSequence()
			_ = st.Send(&stopgapv1.ConnectResponse{OutcomeAck: &stopgapv1.OutcomeAck{Epoch: b.GetEpoch(), Sequence: last}})
		}
	}
}

func target(path string, content []byte) *stopgapv1.PolicyTarget {
	d, _ := mitigation.Parse(path, content)
	t := &stopgapv1.PolicyTarget{Path: path, Length: uint32(len(content)), Content: content}
	sum := sha(content)
	if d != nil {
		sum = d.SHA256[:]
	}
	t.Sha256 = sum
	return t
}

func TestAnAgentOlderThanTheSchemaAppliesWhatItCanReadAndSaysWhatItCannot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	creds, err := trust.LoadCredentials(filepath.Join(r.data, "server"))
	_ = creds
	if err == nil {
		t.Fatal("a server's credentials name a client")
	}
	f := &fakeController{updates: make(chan *stopgapv1.PolicyUpdate, 4), acks: make(chan *stopgapv1.ConnectRequest, 16), outcomes: make(chan *stopgapv1.Outcome, 256)}
	srv, addr := serveFake(t, r, f)
	r.addr = addr
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "OLD"}, nil)
	defer srv.Stop()
	defer n.stop()

	var m1, fixed []byte
	for _, c := range catalogue(t, "M1") {
		if c.GetName() == "M1.yaml" {
			m1 = c.GetContent()
		} else {
			fixed = c.GetContent()
		}
	}
	future := []byte("id: M9\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\nquantumShield: true\n")
	f.updates <- &stopgapv1.PolicyUpdate{Version: 5, Targets: []*stopgapv1.PolicyTarget{target("mitigations/M1/1.yaml", m1),
		target("mitigations/M9/1.yaml", future), target("fixed-builds.yaml", fixed)}}
	if ack := <-f.acks; ack.GetPolicyAck().GetVersion() != 5 {
		t.Fatalf("got %v", ack)
	}
	want := map[string]string{"M1": "OUTCOME_STATE_APPLIED applied", "M9": "OUTCOME_STATE_FAILED needs-newer-agent"}
	for len(want) > 0 {
		o := await(t, f.outcomes)
		if want[o.GetMitigation()] == fmt.Sprint(o.GetState(), " ", o.GetCode()) {
			delete(want, o.GetMitigation())
		}
	}

	// What can't be right is refused for good, and what is held stays.
	bad := target("mitigations/M1/1.yaml", m1)
	bad.Sha256 = make([]byte, 32)
	for name, u := range map[string]*stopgapv1.PolicyUpdate{
		"wrong hash":       {Version: 6, Targets: []*stopgapv1.PolicyTarget{bad}},
		"path out of it":   {Version: 7, Targets: []*stopgapv1.PolicyTarget{{Path: "../../journal.db", Content: m1, Length: uint32(len(m1)), Sha256: target("x", m1).GetSha256()}}},
		"the same twice":   {Version: 8, Targets: []*stopgapv1.PolicyTarget{target("mitigations/M1/1.yaml", m1), target("mitigations/M1/1.yaml", m1)}},
		"too many targets": {Version: 9, Targets: make([]*stopgapv1.PolicyTarget, 1001)},
	} {
		f.updates <- u
		if nack := (<-f.acks).GetPolicyNack(); nack.GetVersion() != u.GetVersion() || !nack.GetPermanent() || nack.GetHeldVersion() != 5 || nack.GetError() == "" {
			t.Errorf("%s: got %v", name, nack)
		}
	}
	// An older version is dropped, one that leaves out what is not held is asked for whole.
	f.updates <- &stopgapv1.PolicyUpdate{Version: 4}
	if ack := (<-f.acks).GetPolicyAck(); ack.GetVersion() != 5 {
		t.Errorf("an older version: %v", ack)
	}
	f.updates <- &stopgapv1.PolicyUpdate{Version: 10, BaseVersion: 5, Targets: []*stopgapv1.PolicyTarget{{Path: "mitigations/M7/1.yaml", Length: 1, Sha256: make([]byte, 32)}}}
	if nack := (<-f.acks).GetPolicyNack(); nack.GetVersion() != 10 || nack.GetPermanent() {
		t.Errorf("left out and not held: %v", nack)
	}
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost to a refused update")
	}
}

func await(t *testing.T, ch chan *stopgapv1.Outcome) *stopgapv1.Outcome {
	t.Helper()
	select {
	case o := <-ch:
		return o
	case <-time.After(patience):
		t.Fatal("no outcome")
		return nil
	}
}
