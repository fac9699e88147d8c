// Package e2e runs both sides in one process: a real controller, real agents, lab servers, over real TLS on loopback.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/pages"
	"github.com/stopgap-em/stopgap/shared/policydir"
)

func TestMain(m *testing.M) {
	// regexp2's clock runs on for a while after the last match with a timeout.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/dlclark/regexp2.runClock"))
}

const (
	applied  = "APPLIED"
	reverted = "REVERTED"
	blocked  = "BLOCKED"
	failed   = "FAILED"
	na       = "NOT_APPLICABLE"

	// soon is how long something that happens at once may take, and heartbeat the controller's, both on an idle machine.
	soon      = 30 * time.Second
	heartbeat = time.Second
)

// rig is a controller and its fleet.
type rig struct {
	t      testing.TB
	data   string
	addr   string
	op     string
	soc    *soc.SOC
	online soc.Online
	life   time.Duration // of agents' certificates; 0: the default
	fleet  stopgapv1.FleetServiceClient
	log    *logBuffer
	stopFn func()
}

// logBuffer keeps the end of what both sides log, printed when a test fails.
type logBuffer struct {
	mu   sync.Mutex
	data []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if over := len(b.data) - 64<<10; over > 0 {
		b.data = b.data[over:]
	}
	return len(p), nil
}

func (r *rig) logger(name string) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Info, Output: r.log})
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, data: filepath.Join(t.TempDir(), "controller"), log: &logBuffer{}}
	var err error
	if r.op, err = controller.Init(r.data, "lab", []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if r.online, err = soc.LoadOnline(filepath.Join(r.data, "online")); err != nil {
		t.Fatal(err)
	}
	if r.soc, err = r.online.For(filepath.Join(t.TempDir(), "policy")); err != nil {
		t.Fatal(err)
	}
	if r.addr, err = procs.FreeAddr(); err != nil {
		t.Fatal(err)
	}
	conn, err := soc.Dial(r.op, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.fleet = stopgapv1.NewFleetServiceClient(conn)
	r.start()
	r.publish() // an empty policy: tokens name its root
	t.Cleanup(func() {
		r.stop()
		_ = conn.Close()
		if t.Failed() {
			t.Logf("log:\n%s", r.log.data)
		}
	})
	return r
}

// start starts the controller on its data directory.
func (r *rig) start() {
	r.t.Helper()
	c, err := controller.New(controller.Config{DataDir: r.data, Listen: r.addr, Heartbeat: patience.For(heartbeat), AgentCertificateLife: r.life, Logger: r.logger("controller")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.stopFn = run(r.t, c.Run)
}

// stop stops it.
func (r *rig) stop() {
	if r.stopFn != nil {
		r.stopFn()
		r.stopFn = nil
	}
}

// run runs something until the returned function is called.
func run(t testing.TB, f func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	return func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// node is one server with its agent.
type node struct {
	r            *rig
	name         string
	dir, state   string
	id           string
	cfg          agent.Config
	stopFn       func()
	beforeFiles  map[string][]byte
	frontEndOnce sync.Once
	front        *lab.Server
}

// add makes a lab server and starts an agent on it.
func (r *rig) add(spec lab.Spec, change func(*agent.Config)) *node {
	r.t.Helper()
	n := r.prepare(spec, change)
	n.start()
	return n
}

// prepare makes a lab server and an agent's credentials.
func (r *rig) prepare(spec lab.Spec, change func(*agent.Config)) *node {
	r.t.Helper()
	base := shortDir(r.t)
	n := &node{r: r, name: spec.Host, dir: filepath.Join(base, "server"), state: filepath.Join(base, "agent")}
	if spec.Organisation == "" {
		spec.Organisation = "Contoso"
	}
	var err error
	if err = lab.Make(n.dir, spec); err != nil {
		r.t.Fatal(err)
	}
	if n.id, err = agent.Enroll(r.t.Context(), agent.EnrollConfig{StateDir: n.state, Controller: r.addr, Token: r.token(1, nil), Host: "lab:" + n.dir}); err != nil {
		r.t.Fatal(err)
	}
	if n.beforeFiles, err = lab.WebConfigs(n.dir); err != nil && !spec.Edge {
		r.t.Fatal(err)
	}
	n.cfg = agent.Config{StateDir: n.state, Host: "lab:" + n.dir, Controller: r.addr, Name: spec.Host, RetryMin: 50 * time.Millisecond,
		RetryMax: 500 * time.Millisecond, Logger: r.logger(spec.Host)}
	if change != nil {
		change(&n.cfg)
	}
	return n
}

// shortDir is a directory whose path leaves room for a unix socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sg") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (n *node) start() {
	n.r.t.Helper()
	a, err := agent.New(n.cfg)
	if err != nil {
		n.r.t.Fatal(err)
	}
	n.stopFn = run(n.r.t, a.Run)
	n.r.t.Cleanup(n.stop)
}

func (n *node) stop() {
	if n.stopFn != nil {
		n.stopFn()
		n.stopFn = nil
	}
}

// web is the front end of the server.
func (n *node) web() string {
	n.frontEndOnce.Do(func() {
		s, err := lab.Serve(n.dir, "127.0.0.1:0")
		if err != nil {
			n.r.t.Fatal(err)
		}
		n.front = s
		n.r.t.Cleanup(func() { _ = s.Close() })
	})
	return n.front.URL()
}

// exploited says whether a CVE's exploit gets through.
func (n *node) exploited(cve string) bool {
	n.r.t.Helper()
	for _, a := range lab.Exploit(n.r.t.Context(), n.web()) {
		if a.Name == cve {
			return a.Through
		}
	}
	n.r.t.Fatalf("no exploit for %s", cve)
	return false
}

func (n *node) people() {
	n.r.t.Helper()
	for _, a := range lab.Work(n.r.t.Context(), n.web()) {
		if !a.Through {
			n.r.t.Errorf("%s does not work on %s: %s", a.Name, n.name, a.Got)
		}
	}
}

// asBefore checks that every web.config is byte for byte what it was.
func (n *node) asBefore() {
	n.r.t.Helper()
	now, err := lab.WebConfigs(n.dir)
	if err != nil {
		n.r.t.Fatal(err)
	}
	for p, data := range n.beforeFiles {
		if string(now[p]) != string(data) {
			n.r.t.Errorf("%s is not what it was", p)
		}
	}
}

// token makes an enrolment token.
func (r *rig) token(uses uint32, labels map[string]string) string {
	r.t.Helper()
	resp, err := r.fleet.CreateToken(r.t.Context(), &stopgapv1.CreateTokenRequest{Ttl: durationpb.New(time.Hour), Uses: uses, Labels: labels})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.GetTokenSecret()
}

// catalogue gives files of the catalogue by id; fixed-builds always among them.
func catalogue(t testing.TB, ids ...string) []policydir.File {
	t.Helper()
	files, err := soc.Catalogue(ids...)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// publish adds documents to the policy, has it signed by two people, and publishes it.
func (r *rig) publish(files ...policydir.File) *stopgapv1.PublishResponse {
	r.t.Helper()
	if len(files) > 0 {
		if err := r.soc.Add(files...); err != nil {
			r.t.Fatal(err)
		}
	}
	resp, err := r.soc.Publish(r.t.Context(), r.fleet)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

// force publishes targets that two people signed without looking: any documents, any table.
func (r *rig) force(version int64, docs map[string][]byte, table string) (*stopgapv1.PublishResponse, error) {
	r.t.Helper()
	docs["policy.yaml"] = []byte(table)
	tg, err := soc.SignTargets(version, time.Now().Add(time.Hour), docs, r.soc.Targets[:soc.Threshold]...)
	if err != nil {
		r.t.Fatal(err)
	}
	files := map[string][]byte{fmt.Sprintf("metadata/%d.targets.json", version): tg}
	for p, data := range docs {
		files["targets/"+p] = data
	}
	return soc.Send(r.t.Context(), r.fleet, files)
}

// withdraw takes revision 1 of mitigations out of the signed policy.
func (r *rig) withdraw(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		if err := r.soc.Remove(id, 1); err != nil {
			r.t.Fatal(err)
		}
	}
	r.publish()
}

func (r *rig) get(n *node) (*stopgapv1.GetAgentResponse, error) {
	return r.fleet.GetAgent(r.t.Context(), &stopgapv1.GetAgentRequest{Agent: n.id})
}

// eventually waits for a condition.
func (r *rig) eventually(cond func() error) {
	r.t.Helper()
	patience.Eventually(r.t, soon, cond)
}

// expect waits until the controller has this outcome of a server.
func (r *rig) expect(n *node, id, state, code string) *stopgapv1.OutcomeRecord {
	r.t.Helper()
	var got *stopgapv1.OutcomeRecord
	r.eventually(func() error {
		a, err := r.get(n)
		if err != nil {
			return err
		}
		for _, rec := range a.GetOutcomes() {
			o := rec.GetOutcome()
			if o.GetMitigation() != id {
				continue
			}
			if outcome.Name(o.GetState()) == state && (code == "" || o.GetCode() == code) {
				got = rec
				return nil
			}
			return fmt.Errorf("%s on %s is %s (%s: %s), want %s %s", id, n.name, o.GetState(), o.GetCode(), o.GetReason(), state, code)
		}
		return fmt.Errorf("%s on %s: no outcome", id, n.name)
	})
	return got
}

func (r *rig) connected(n *node) {
	r.t.Helper()
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && a.GetAgent().GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED {
			err = fmt.Errorf("%s is %s", n.name, a.GetAgent().GetPresence())
		}
		return err
	})
}

func (r *rig) warned(n *node, code string) {
	r.t.Helper()
	r.eventually(func() error {
		a, err := r.get(n)
		if err != nil {
			return err
		}
		for _, h := range a.GetAgent().GetHealth() {
			if h.GetCode() == code {
				return nil
			}
		}
		return fmt.Errorf("%s has no warning %s: %v", n.name, code, a.GetAgent().GetHealth())
	})
}

// history reads every outcome recorded so far and checks that none was recorded twice.
func (r *rig) history() []*stopgapv1.OutcomeRecord {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	// The newest outcome of all is the newest of its server and mitigation: the history is read up to that one.
	newest := map[string]bool{}
	err := pages.Each(func(token string) (string, error) {
		l, err := r.fleet.ListOutcomes(ctx, &stopgapv1.ListOutcomesRequest{PageSize: pages.Size, PageToken: token})
		for _, rec := range l.GetOutcomes() {
			newest[outcomeKey(rec)] = true
		}
		return l.GetNextPageToken(), err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	// Revision 1 is the first there is; what it recorded, if anything, is no outcome in these tests.
	st, err := r.fleet.Watch(ctx, &stopgapv1.WatchRequest{AfterStoreRevision: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []*stopgapv1.OutcomeRecord
	seen := map[string]bool{}
	stuck := time.AfterFunc(patience.For(soon), cancel)
	defer stuck.Stop()
	for len(newest) > 0 {
		ev, err := st.Recv()
		if err != nil {
			r.t.Fatalf("the history ends before %d outcomes that are listed: %v", len(newest), err)
		}
		stuck.Reset(patience.For(soon))
		rec := ev.GetOutcome()
		k := outcomeKey(rec)
		if seen[k] {
			r.t.Errorf("recorded twice: %v", rec)
		}
		seen[k] = true
		delete(newest, k)
		out = append(out, rec)
	}
	return out
}

func outcomeKey(r *stopgapv1.OutcomeRecord) string {
	return fmt.Sprint(r.GetAgentId(), r.GetJournalEpoch(), r.GetJournalSequence())
}

// proxy is a TCP proxy that a test can make worse.
type proxy struct {
	ln     net.Listener
	target string
	mu     sync.Mutex
	life   time.Duration // of a connection; 0: no limit
	conns  map[net.Conn]bool
}

func newProxy(t testing.TB, target string, life time.Duration) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, target: target, life: life, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.cut()
		wg.Wait()
	})
	return p
}

func (p *proxy) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	p.mu.Lock()
	p.conns[c], p.conns[up] = true, true
	life := p.life
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, c)
		delete(p.conns, up)
		p.mu.Unlock()
	}()
	if life > 0 {
		t := time.AfterFunc(life, func() { _ = c.Close(); _ = up.Close() })
		defer t.Stop()
	}
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.Close()
		close(done)
	}()
	_, _ = io.Copy(c, up)
	_ = c.Close()
	<-done
}

// cut closes every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

// copyDir copies a directory tree of regular files.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(dst, 0o700)
		case !e.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(p)
		return errors.Join(err, os.WriteFile(dst, data, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
}
