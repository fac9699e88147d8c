package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/e2e/thief"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
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
		ctx, cancel := context.WithTimeout(t.Context(), patience.For(20*time.Second))
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
	if _, err := stopgapv1.NewFleetServiceClient(conn).ReleaseMitigation(t.Context(), &stopgapv1.ReleaseMitigationRequest{Mitigation: ref("M1")}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an agent may hold back: %v", err)
	}
	if recs := r.history(); len(recs) > 0 {
		t.Errorf("something of it was recorded: %v", recs)
	}
	r.publish(catalogue(t, "PING1")...)
	r.expect(good, "PING1", applied, "")
	r.connected(good)
}

// stolen is a controller in the hands of a thief who has its disk: server certificate, CA, online keys.
type stolen struct {
	*thief.Controller
	r       *rig
	version int64 // of timestamps
}

// steal stops the rig's controller and serves a thief's in its place.
func (r *rig) steal() *stolen {
	r.t.Helper()
	r.stop()
	c, err := thief.Serve(r.data, r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Stop)
	// Above what the honest controller signed: it counts by the clock.
	return &stolen{c, r, time.Now().Unix() + 1000}
}

// update makes a policy update with stolen online keys around targets metadata.
func (s *stolen) update(targets []byte, targetsVersion int64, docs map[string][]byte) *stopgapv1.PolicyUpdate {
	s.r.t.Helper()
	s.version++
	ts, sn, err := s.r.online.Sign(targets, targetsVersion, s.version, s.version, time.Now().Add(time.Hour))
	if err != nil {
		s.r.t.Fatal(err)
	}
	u := &stopgapv1.PolicyUpdate{TimestampVersion: uint64(s.version), TargetsVersion: uint64(targetsVersion), Timestamp: ts, Snapshot: sn, Targets: targets}
	for p, data := range docs {
		u.Documents = append(u.Documents, &stopgapv1.PolicyTarget{Path: p, Content: data})
	}
	return u
}

// release is an assignment of everything in an update, in the thief's name.
func (s *stolen) release(u *stopgapv1.PolicyUpdate) *stopgapv1.Assignment {
	a := &stopgapv1.Assignment{ControllerEpoch: "thief", Generation: u.GetTimestampVersion(), PolicyVersion: u.GetTargetsVersion()}
	for _, d := range u.GetDocuments() {
		p := strings.Split(strings.TrimSuffix(strings.TrimPrefix(d.GetPath(), "mitigations/"), ".yaml"), "/")
		if len(p) == 2 {
			a.Items = append(a.Items, &stopgapv1.AssignmentItem{Mitigation: p[0], Revision: 1, Sha256: sha(d.GetContent())})
		}
	}
	return a
}

// try sends an update and gives the agent's answer.
func (s *stolen) try(u *stopgapv1.PolicyUpdate) *stopgapv1.ConnectRequest {
	s.r.t.Helper()
	s.connected()
	if err := s.Send(u, s.release(u)); err != nil {
		s.r.t.Fatal(err)
	}
	return patience.Receive(s.r.t, soon, s.Answers)
}

func (s *stolen) connected() {
	s.r.t.Helper()
	s.r.eventually(func() error {
		if s.Connected() == 0 {
			return errors.New("no agent came")
		}
		return nil
	})
}

func TestAnAgentOlderThanTheSchemaAppliesWhatItCanReadAndSaysWhatItCannot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := trust.LoadCredentials(filepath.Join(r.data, "server")); err == nil {
		t.Fatal("a server's credentials name a client")
	}
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "OLD"}, nil)
	r.connected(n)
	s := r.steal()
	docs := map[string][]byte{
		"policy.yaml":           []byte("mitigations: [{id: M1, revisions: [1]}, {id: M9, revisions: [1]}]\n"),
		"mitigations/M9/1.yaml": []byte("id: M9\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\nquantumShield: true\n"),
	}
	for _, c := range catalogue(t, "M1") {
		if c.Name == "M1.yaml" {
			docs["mitigations/M1/1.yaml"] = c.Content
		} else {
			docs[c.Name] = c.Content
		}
	}
	tg, err := soc.SignTargets(5, time.Now().Add(time.Hour), docs, r.soc.Targets[:soc.Threshold]...)
	if err != nil {
		t.Fatal(err)
	}
	if ack := s.try(s.update(tg, 5, docs)).GetPolicyAck(); ack.GetTargetsVersion() != 5 {
		t.Fatalf("what is signed was not taken: %v", ack)
	}
	want := map[string]string{"M1": "APPLIED applied", "M9": "FAILED needs-newer-agent"}
	for len(want) > 0 {
		o := patience.Receive(t, soon, s.Outcomes)
		if want[o.GetMitigation()] == outcome.Name(o.GetState())+" "+o.GetCode() {
			delete(want, o.GetMitigation())
		}
	}
	// What is left out and not held is asked for whole.
	docs["mitigations/M7/1.yaml"] = []byte("x")
	if tg, err = soc.SignTargets(6, time.Now().Add(time.Hour), docs, r.soc.Targets[:soc.Threshold]...); err != nil {
		t.Fatal(err)
	}
	if nack := s.try(s.update(tg, 6, nil)).GetPolicyNack(); nack.GetTargetsVersion() != 5 || nack.GetPermanent() {
		t.Errorf("left out and not held: %v", nack)
	}
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost to a refused update")
	}
}

func sha(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

func TestAHostNameWithALetterAtTheCutDoesNotKeepOperatorsFromSeeingTheFleet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, creds := attacker(t, r)
	from := func(machine, host string) error {
		h := hello(creds.Identity.ID).GetHello()
		h.Name, h.Facts.MachineId, h.Facts.Host = host, machine, host
		_, err := client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: h})
		return err
	}
	long := strings.Repeat("a", 255) + "é" // 256 bytes end within the letter
	if err := from("one machine", long); err != nil {
		t.Fatal(err)
	}
	if err := from("another machine", long); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("another machine with one identity: %v", err)
	}
	a, err := r.fleet.GetAgent(t.Context(), &stopgapv1.GetAgentRequest{Agent: creds.Identity.ID})
	if err != nil || len(a.GetAgent().GetHealth()) != 1 || !strings.Contains(a.GetAgent().GetHealth()[0].GetText(), "aaa...") {
		t.Errorf("GetAgent: %v, %v; want the warning with the name cut", a.GetAgent().GetHealth(), err)
	}
	if l, err := r.fleet.ListAgents(t.Context(), &stopgapv1.ListAgentsRequest{}); err != nil || len(l.GetAgents()) != 1 {
		t.Errorf("ListAgents: %v, %v", l, err)
	}
	r.audited("clone-detected", creds.Identity.ID, "aaa...")
}
