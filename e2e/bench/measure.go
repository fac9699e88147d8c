package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

const (
	dialers    = 128
	settleTime = 3 * time.Second
	// pause between broadcasts: longer than acknowledgements take.
	pause = 2 * time.Second
	// burst is the outcomes each agent reports at once when commits are measured.
	burst     = 50
	stuckEach = 20 // one in twenty: 5 %
	waitLimit = time.Minute
)

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// localAddr spreads connections over 127.0.0.0/8, so that no address runs out of ports.
func localAddr(i int) net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250), byte(1+i%250))}
}

// parallel runs f for every index with a bounded number at once; the first error ends it.
func parallel(ctx context.Context, n int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for range dialers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					once.Do(func() { first = fmt.Errorf("agent %d: %w", i, err) })
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(first, ctx.Err())
}

func measure(ctx context.Context, dir string, n, rounds int) (*Result, error) {
	if err := fileLimit(n); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "controller")
	op, err := controller.Init(data, "bench", []string{"127.0.0.1"})
	if err != nil {
		return nil, err
	}
	progress("issuing %d certificates", n)
	creds := make([]*trust.Credentials, n)
	err = parallel(ctx, n, func(i int) error {
		d := filepath.Join(dir, "agents", fmt.Sprint(i))
		if _, err := controller.IssueAgent(data, d, fmt.Sprintf("A%05d", i)); err != nil {
			return err
		}
		var err error
		creds[i], err = trust.LoadCredentials(d)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, c := range creds {
		c.CA = creds[0].CA // one pool for all
	}
	r := &Result{Agents: n, Cores: runtime.NumCPU(), PayloadBytes: payloadBytes}
	if err := fleetRun(ctx, dir, op, creds, rounds, r); err != nil {
		return nil, err
	}
	progress("the floor: %d plain TLS connections", n)
	runtime.GC()
	if r.FloorRoundsMS, err = floor(ctx, dir, creds, rounds); err != nil {
		return nil, err
	}
	r.FloorLastMS = median(r.FloorRoundsMS)
	r.TimesFloor = r.PublishLastMS / r.FloorLastMS
	return r, nil
}

func median(in []float64) float64 {
	s := append([]float64(nil), in...)
	sort.Float64s(s)
	return s[len(s)/2]
}

func fleetRun(ctx context.Context, dir, op string, creds []*trust.Credentials, rounds int, r *Result) error {
	child, err := startChild(modeController, dir, len(creds))
	if err != nil {
		return err
	}
	defer child.stop()
	base, err := child.ask("gc")
	if err != nil {
		return err
	}
	conn, err := soc.Dial(op, child.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	online, err := soc.LoadOnline(filepath.Join(dir, "controller", "online"))
	if err != nil {
		return err
	}
	people, err := online.For(filepath.Join(dir, "policy"))
	if err != nil {
		return err
	}
	f := &fleet{addr: child.addr, op: stopgapv1.NewFleetServiceClient(conn), soc: people, acked: make(chan time.Time, len(creds))}
	defer f.close()
	if _, err := people.Publish(ctx, f.op); err != nil {
		return err
	}

	progress("connecting")
	began := time.Now()
	f.agents = make([]*light, len(creds))
	if err := parallel(ctx, len(creds), func(i int) error {
		a, err := f.connect(ctx, i, creds[i])
		f.agents[i] = a
		return err
	}); err != nil {
		return err
	}
	r.ConnectAllMS = ms(time.Since(began))
	r.ConnectsPerS = float64(len(creds)) / time.Since(began).Seconds()
	go f.heartbeats(ctx)

	time.Sleep(settleTime)
	idle, err := child.ask("stats")
	if err != nil {
		return err
	}
	idleGC, err := child.ask("gc")
	if err != nil {
		return err
	}
	if _, err := child.ask("heap"); err != nil {
		return err
	}
	n := float64(len(creds))
	r.RSSPerAgentKiB = (idle.RSSKiB - base.RSSKiB) / n
	r.RSSPerAgentGCKiB = (idleGC.RSSKiB - base.RSSKiB) / n
	r.GoroutinesPer = float64(idle.Goroutines-base.Goroutines) / n

	progress("publishing, %d rounds; profiles of the controller are in %s", rounds, dir)
	if _, err := child.ask("cpu"); err != nil {
		return err
	}
	var all []float64
	var cpu float64
	for i := range rounds {
		before, err := child.ask("stats")
		if err != nil {
			return err
		}
		times, recorded, err := f.broadcast(ctx, child, uint32(i+1), len(f.agents))
		if err != nil {
			return err
		}
		time.Sleep(pause)
		after, err := child.ask("stats")
		if err != nil {
			return err
		}
		cpu += after.CPUSeconds - before.CPUSeconds
		all = append(all, times...)
		r.PublishRoundsMS = append(r.PublishRoundsMS, recorded)
	}
	sort.Float64s(all)
	r.AckP50MS, r.AckP99MS, r.AckMaxMS = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	r.PublishLastMS = median(r.PublishRoundsMS)
	r.CPUPerBroadcast = cpu / float64(rounds)

	if _, err := child.ask("cpu-stop"); err != nil {
		return err
	}
	progress("a burst of %d outcomes from each agent", burst)
	took, err := f.burst(ctx)
	if err != nil {
		return err
	}
	r.OutcomesPerS = n * burst / took.Seconds()

	progress("with 5 %% of the agents stuck")
	reading := 0
	for i, a := range f.agents {
		if i%stuckEach == 0 {
			a.conn.stick()
		} else {
			reading++
		}
	}
	// Whoever is inside a read gets one more: the first round only makes them stick.
	if _, _, err := f.broadcast(ctx, child, uint32(rounds+1), reading); err != nil {
		return err
	}
	time.Sleep(pause)
	var last, p99 []float64
	for i := range 3 {
		times, recorded, err := f.broadcast(ctx, child, uint32(rounds+i+2), reading)
		if err != nil {
			return err
		}
		last, p99 = append(last, recorded), append(p99, times[len(times)*99/100])
		time.Sleep(pause)
	}
	r.StuckLastMS, r.StuckP99MS = median(last), median(p99)
	return nil
}

// fleet is the light agents of a run.
type fleet struct {
	addr   string
	op     stopgapv1.FleetServiceClient
	soc    *soc.SOC
	agents []*light
	acked  chan time.Time
}

// document is a mitigation of payloadBytes that changes nothing.
func document(revision uint32) []byte {
	doc := fmt.Sprintf("id: BENCH\nrevision: %d\ntitle: \"Measures\"\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n", revision)
	return []byte(doc + "#" + strings.Repeat("x", payloadBytes-len(doc)-2) + "\n")
}

// broadcast publishes and waits until the outcomes of so many agents are acknowledged; it gives the times of that, sorted,
// and when the controller had the last on disk.
func (f *fleet) broadcast(ctx context.Context, c *child, revision uint32, want int) (acked []float64, recorded float64, err error) {
	before, err := c.ask("recorded")
	if err != nil {
		return nil, 0, err
	}
	for len(f.acked) > 0 {
		<-f.acked
	}
	// The revision before goes, so that every broadcast carries one document of the same size.
	if err := f.soc.Add(policydir.File{Name: "bench.yaml", Content: document(revision)}); err != nil {
		return nil, 0, err
	}
	if revision > 1 {
		if err := f.soc.Remove("BENCH", revision-1); err != nil {
			return nil, 0, err
		}
	}
	began := time.Now()
	_, err = f.soc.Publish(ctx, f.op)
	if err == nil {
		acked, err = f.collect(ctx, began, want)
	}
	if err != nil {
		return nil, 0, err
	}
	after, err := c.ask("recorded")
	if err == nil && after.Outcomes-before.Outcomes < uint64(want) {
		err = fmt.Errorf("%d outcomes recorded, want %d at least", after.Outcomes-before.Outcomes, want)
	}
	return acked, ms(time.Unix(0, after.LastRecorded).Sub(began)), err
}

// missing says what those who are behind have and have not.
func (f *fleet) missing() string {
	var newest uint64
	for _, a := range f.agents {
		a.mu.Lock()
		newest = max(newest, a.targets)
		a.mu.Unlock()
	}
	policy, ack, ended := 0, 0, 0
	for _, a := range f.agents {
		a.mu.Lock()
		switch {
		case a.ended != nil:
			ended++
		case a.targets < newest:
			policy++
		case a.answered < a.sequence:
			ack++
		}
		a.mu.Unlock()
	}
	return fmt.Sprintf("policy %d: %d ended, %d have not got it, %d were not acknowledged", newest, ended, policy, ack)
}

func (f *fleet) collect(ctx context.Context, began time.Time, want int) ([]float64, error) {
	var out []float64
	limit := patience.For(waitLimit)
	late := time.After(limit)
	for len(out) < want {
		select {
		case t := <-f.acked:
			out = append(out, ms(t.Sub(began)))
		case <-late:
			return nil, fmt.Errorf("%d of %d outcomes acknowledged within %s; %s", len(out), want, limit, f.missing())
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	sort.Float64s(out)
	return out, nil
}

// burst lets every agent report many outcomes at once.
func (f *fleet) burst(ctx context.Context) (time.Duration, error) {
	for len(f.acked) > 0 {
		<-f.acked
	}
	began := time.Now()
	if err := parallel(ctx, len(f.agents), func(i int) error { return f.agents[i].report(burst) }); err != nil {
		return 0, err
	}
	if _, err := f.collect(ctx, began, len(f.agents)); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

func (f *fleet) heartbeats(ctx context.Context) {
	t := time.NewTicker(transport.HeartbeatInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			for _, a := range f.agents {
				if !a.conn.stuck.Load() {
					_ = a.send(&stopgapv1.ConnectRequest{Heartbeat: &stopgapv1.Heartbeat{}})
				}
			}
		}
	}
}

func (f *fleet) close() {
	for _, a := range f.agents {
		if a != nil {
			a.conn.unstick()
			a.cancel()
			_ = a.cc.Close()
		}
	}
}

// light is one agent: it answers every policy with an acknowledgement and one outcome, in one frame.
type light struct {
	f      *fleet
	id     string
	cc     *grpc.ClientConn
	conn   *gatedConn
	cancel context.CancelFunc

	mu       sync.Mutex
	stream   stopgapv1.AgentService_ConnectClient
	sequence uint64
	targets  uint64
	ended    error
	answered uint64 // sequence of the last acknowledgement
}

func (f *fleet) connect(ctx context.Context, i int, c *trust.Credentials) (*light, error) {
	a := &light{f: f, id: c.Identity.ID}
	opts := append(transport.DialOptions(trust.ClientTLS(c, "127.0.0.1")), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		raw, err := (&net.Dialer{LocalAddr: localAddr(i)}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		a.conn = &gatedConn{Conn: raw, open: make(chan struct{})}
		return a.conn, nil
	}))
	cc, err := grpc.NewClient(f.addr, opts...)
	if err != nil {
		return nil, err
	}
	a.cc = cc
	sctx, cancel := context.WithCancel(ctx)
	a.cancel = cancel
	if a.stream, err = stopgapv1.NewAgentServiceClient(cc).Connect(sctx); err != nil {
		return a, err
	}
	err = a.stream.Send(&stopgapv1.ConnectRequest{Hello: &stopgapv1.Hello{AgentId: a.id, InstanceId: "bench", AgentVersion: shared.Version, JournalEpoch: "bench", RootVersion: 1,
		Name: fmt.Sprintf("A%05d", i), Facts: &stopgapv1.Facts{Host: fmt.Sprintf("A%05d", i), Organisation: "Bench", ExchangeBuild: "15.2.1748.10",
			Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}, UrlRewrite: "7.1.1993.2351", Os: "Windows Server 2022"}}})
	if err != nil {
		return a, err
	}
	first, err := a.stream.Recv()
	if err != nil {
		return a, err
	}
	if first.GetWelcome() == nil {
		return a, errors.New("no Welcome")
	}
	a.take(first) // it may bring the policy already
	go a.run()
	return a, nil
}

func (a *light) send(r *stopgapv1.ConnectRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stream.Send(r)
}

// batch makes outcomes with the next sequence numbers; the caller holds the lock.
func (a *light) batch(n int) *stopgapv1.OutcomeBatch {
	b := &stopgapv1.OutcomeBatch{Epoch: "bench"}
	for i := range n {
		a.sequence++
		id := "BENCH"
		if n > 1 {
			id = fmt.Sprintf("BENCH-%d", i)
		}
		b.Outcomes = append(b.Outcomes, &stopgapv1.SequencedOutcome{Sequence: a.sequence, Outcome: &stopgapv1.Outcome{Mitigation: id, Revision: 1,
			State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, Code: "applied", Reason: "applied and read back", Proof: stopgapv1.Proof_PROOF_CONFIGURATION_ONLY,
			Evidence: []*stopgapv1.Evidence{{Action: "x", Subject: `C:\inetpub\wwwroot\web.config`, Found: "found", Sha256: make([]byte, 32)}}}})
	}
	return b
}

func (a *light) report(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stream.Send(&stopgapv1.ConnectRequest{Outcomes: a.batch(n)})
}

func (a *light) run() {
	for {
		f, err := a.stream.Recv()
		if err != nil {
			a.mu.Lock()
			a.ended = err
			a.mu.Unlock()
			if !errors.Is(err, io.EOF) && a.stream.Context().Err() == nil {
				progress("agent %s: %v", a.id, err)
			}
			return
		}
		a.take(f)
	}
}

// take does with a frame what an agent does.
func (a *light) take(f *stopgapv1.ConnectResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ack := f.GetOutcomeAck(); ack != nil {
		a.answered = ack.GetSequence()
	}
	if ack := f.GetOutcomeAck(); ack != nil && ack.GetSequence() == a.sequence {
		a.f.acked <- time.Now()
	}
	if len(f.GetPolicyUpdate()) > 0 {
		timestamp, targets := versions(f.GetPolicyUpdate())
		answer := &stopgapv1.ConnectRequest{PolicyAck: &stopgapv1.PolicyAck{Version: timestamp, TargetsVersion: targets, RootVersion: 1}}
		if targets > a.targets { // a renewed timestamp brings nothing to report
			a.targets = targets
			answer.Outcomes = a.batch(1)
		}
		_ = a.stream.Send(answer)
	}
}

// versions reads the two versions off the front of an encoded PolicyUpdate (fields 1 and 2, varints), as cheaply as a real
// agent is not asked to: the bench measures the controller.
func versions(b []byte) (timestamp, targets uint64) {
	_, _, n := protowire.ConsumeTag(b)
	timestamp, m := protowire.ConsumeVarint(b[n:])
	b = b[n+m:]
	_, _, n = protowire.ConsumeTag(b)
	targets, _ = protowire.ConsumeVarint(b[n:])
	return timestamp, targets
}

// gatedConn can stop reading, as a stuck process does.
type gatedConn struct {
	net.Conn
	stuck atomic.Bool
	open  chan struct{}
	once  sync.Once
}

func (c *gatedConn) stick() { c.stuck.Store(true) }

func (c *gatedConn) unstick() {
	if c != nil {
		c.stuck.Store(false)
		c.once.Do(func() { close(c.open) })
	}
}

// Read implements net.Conn.
func (c *gatedConn) Read(p []byte) (int, error) {
	if c.stuck.Load() {
		<-c.open
	}
	return c.Conn.Read(p)
}

// Close implements net.Conn.
func (c *gatedConn) Close() error {
	c.unstick()
	return c.Conn.Close()
}
