package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/pages"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// tells is what the agent tells its administrator.
func (n *node) tells() (string, error) {
	return procs.Output(n.r.t.Context(), program(n.r.t, "stopgap-agent"), "--state", n.state, "status")
}

func (n *node) status() string {
	n.r.t.Helper()
	out, err := n.tells()
	if err != nil {
		n.r.t.Fatal(err)
	}
	return out
}

// says waits until the status of one of the nodes has a text.
func says(text string, ns ...*node) {
	r := ns[0].r
	r.t.Helper()
	r.eventually(func() error {
		all := ""
		for _, n := range ns {
			out, err := n.tells()
			if strings.Contains(out, text) {
				return nil
			}
			all += fmt.Sprint(out, err)
		}
		return fmt.Errorf("the agent does not say %q:\n%s", text, all)
	})
}

func (n *node) says(text string) {
	n.r.t.Helper()
	says(text, n)
}

// audited waits until the audit log has an entry with these texts, and checks that its chain holds.
func (r *rig) audited(action string, texts ...string) {
	r.t.Helper()
	r.eventually(func() error {
		resp, err := r.fleet.ListAudit(r.t.Context(), &stopgapv1.ListAuditRequest{PageSize: pages.Size})
		if err != nil {
			return err
		}
		if !resp.GetChainHolds() {
			r.t.Fatalf("the audit log's chain breaks at %d", resp.GetBrokenAtSequence())
		}
	entries:
		for _, e := range resp.GetEntries() {
			line := e.GetActorKind().String() + " " + e.GetActorName() + " " + e.GetSubject() + " " + e.GetDetail()
			for _, want := range texts {
				if !strings.Contains(line, want) {
					continue entries
				}
			}
			if e.GetAction() == action {
				return nil
			}
		}
		return fmt.Errorf("no audit entry %s with %q", action, texts)
	})
}

// protected is a server with M1 applied, and what its file looks like with it.
func protected(t *testing.T, r *rig) (n *node, file string, content []byte) {
	t.Helper()
	n = r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, nil)
	r.publish(catalogue(t, "M1")...)
	r.expect(n, "M1", applied, "")
	file = filepath.Join(n.dir, "C", "inetpub", "wwwroot", "web.config")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return n, file, content
}

func unchanged(t *testing.T, file string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s was changed (%v)", file, err)
	}
}

func TestWhoOwnsTheControllerCanNotInventAlterDowngradeFreezeMixDropOrFlood(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	r.connected(n)
	older, err := r.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	old := older.Signed()
	r.publish(catalogue(t, "PING1")...)
	r.expect(n, "PING1", applied, "")
	newer, err := r.soc.Dir()
	if err != nil {
		t.Fatal(err)
	}
	now := newer.Signed()
	s := r.steal()

	own, err := signkey.Generate(signkey.RoleTargets)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	forge := func(version int64, docs map[string][]byte, keys ...*signkey.Key) *stopgapv1.PolicyUpdate {
		tg, err := soc.SignTargets(version, end, docs, keys...)
		if err != nil {
			t.Fatal(err)
		}
		return s.update(tg, version, docs)
	}
	evil := map[string][]byte{"policy.yaml": []byte("mitigations: [{id: EVIL, revisions: [1]}]\n"),
		"mitigations/EVIL/1.yaml": []byte("id: EVIL\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\nactions:\n  - {id: a, service: {name: MSExchangeTransport, startType: DISABLED, state: STOPPED}}\n")}
	altered := map[string][]byte{}
	for p, d := range now.Documents {
		altered[p] = bytes.Replace(d, []byte("AbortRequest"), []byte("None"), 1)
	}
	mixed := s.update(old.Targets, 2, nil)
	mixed.Targets, mixed.Documents = now.Targets, nil
	frozen := s.update(now.Targets, 3, nil)
	if frozen.Timestamp, frozen.Snapshot, err = r.online.Sign(now.Targets, 3, s.version, s.version, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	huge := s.update(now.Targets, 3, nil)
	huge.Documents = []*stopgapv1.PolicyTarget{{Path: "mitigations/M1/1.yaml", Content: make([]byte, 20<<20)}}
	endless := s.update(now.Targets, 3, nil)
	for range 300 {
		endless.Roots = append(endless.Roots, now.Roots[0])
	}
	hole := s.update(now.Targets, 3, nil)
	hole.Roots = [][]byte{[]byte(`{"signed":{"_type":"root","spec_version":"1.0.31","consistent_snapshot":true,"version":2,"expires":"2030-01-01T00:00:00Z","keys":{"x":null},"roles":{"root":null}},"signatures":[]}`)}
	empty := s.update(now.Targets, 3, nil)
	empty.Snapshot = []byte(`{"signed":{"_type":"snapshot","spec_version":"1.0.31","version":9,"expires":"2030-01-01T00:00:00Z","meta":{"targets.json":null}},"signatures":[]}`)
	garbage := s.update([]byte(`{"signed":{},"signatures":[]}`), 9, nil)
	for _, c := range []struct {
		name string
		u    *stopgapv1.PolicyUpdate
		want string
	}{
		{"invents, with a key of its own", forge(9, evil, own), "not enough signatures"},
		{"invents, unsigned", forge(9, evil), "not enough signatures"},
		{"alters a document", s.update(now.Targets, 3, altered), "is not what targets 3 says"},
		{"downgrades", s.update(old.Targets, 2, old.Documents), "version"},
		{"freezes", frozen, "expired"},
		{"mixes an old snapshot with new targets", mixed, "version"},
		{"drops a mitigation", forge(9, map[string][]byte{"policy.yaml": []byte("mitigations: []\n")}, own), "not enough signatures"},
		{"with one of two targets keys", forge(9, evil, r.soc.Targets[0]), "not enough signatures, got 1, want 2"},
		{"with one targets key, twice", forge(9, evil, r.soc.Targets[0], r.soc.Targets[0]), "targets"},
		{"a target of 20 MB", huge, "limit"},
		{"an endless root chain", endless, "300 roots, limit 256"},
		{"a root with holes in it", hole, "missing or malformed"},
		{"a snapshot of nothing", empty, "names no targets"},
		{"garbage", garbage, "targets"},
	} {
		nack := s.try(c.u).GetPolicyNack()
		if nack == nil || !nack.GetPermanent() || nack.GetTargetsVersion() != 3 || !strings.Contains(nack.GetError(), c.want) {
			t.Errorf("%s: got %v, want a refusal with %q", c.name, nack, c.want)
		}
		if out := n.status(); !strings.Contains(out, "policy-refused") {
			t.Errorf("%s: the agent's status does not say so:\n%s", c.name, out)
		}
		unchanged(t, file, content)
	}
	// A target of a gigabyte does not even fit the wire.
	big := s.update(now.Targets, 3, nil)
	big.Documents = []*stopgapv1.PolicyTarget{{Path: "mitigations/M1/1.yaml", Content: make([]byte, 64<<20)}}
	if err := s.Send(big, nil); err == nil {
		t.Error("64 MiB were sent")
	}
	// Assignments: what is not in signed policy is not applied, absence reverts nothing, a revert goes as far as permitted.
	r.eventually(func() error {
		s.connected()
		return s.Send(nil, &stopgapv1.Assignment{ControllerEpoch: "thief", Generation: 1 << 40, PolicyVersion: 3,
			Items: []*stopgapv1.AssignmentItem{{Mitigation: "EVIL", Revision: 1, Sha256: sha(evil["mitigations/EVIL/1.yaml"])}}})
	})
	n.says("M1")
	unchanged(t, file, content)
	if n.exploited("CVE-2022-41040") {
		t.Error("protection was lost")
	}
	// The honest controller comes back, and is believed.
	s.Stop()
	r.start()
	r.connected(n)
	r.audited("policy-refused", n.id) // what the thief tried is on record now
	r.publish(catalogue(t, "M2")...)
	r.expect(n, "M2", applied, "")
	r.expect(n, "M1", applied, "")
}

func TestWhatAnAgentRefusesIsInTheAuditLogOfTheControllerAndInTheFleetView(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n, file, content := protected(t, r)
	// Two people sign a table that this agent can't read; the controller, which is newer in this story, would take it.
	n.stop()
	c, creds := attackerFor(t, r, n)
	st, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := hello(creds.Identity.ID)
	h.Hello.Facts.MachineId, h.Hello.RootVersion = n.machine(), 1
	if err := st.Send(h); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&stopgapv1.ConnectRequest{PolicyNack: &stopgapv1.PolicyNack{Version: 77, RootVersion: 1, Permanent: true, Error: "policy: not enough signatures"}}); err != nil {
		t.Fatal(err)
	}
	r.audited("policy-refused", n.id, "timestamp 77", "not enough signatures")
	r.eventually(func() error {
		a, err := r.get(n)
		if err == nil && !strings.Contains(a.GetAgent().GetRefusedUpdate().GetError(), "not enough signatures") {
			err = errors.New("the operators don't see it")
		}
		return err
	})
	unchanged(t, file, content)
}

// attackerFor speaks with a server's own credentials.
func attackerFor(t *testing.T, r *rig, n *node) (stopgapv1.AgentServiceClient, *trust.Credentials) {
	t.Helper()
	creds, err := trust.LoadCredentials(filepath.Join(n.state, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(r.addr, transport.DialOptions(trust.ClientTLS(creds, ""))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return stopgapv1.NewAgentServiceClient(conn), creds
}

func (n *node) machine() string {
	n.r.t.Helper()
	f, err := lab.Facts(n.dir)
	if err != nil {
		n.r.t.Fatal(err)
	}
	return f.ID
}

func TestWhoHasAnAgentsCertificateSpeaksForThatAgentOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	victim, file, content := protected(t, r)
	thief := r.prepare(lab.Spec{Template: lab.ExchangeSE, Host: "STOLEN", Organisation: "Elsewhere"}, nil)
	client, creds := attackerFor(t, r, thief)
	me := creds.Identity.ID
	pull := func(h *stopgapv1.ConnectRequest) (*stopgapv1.PullResponse, error) {
		return client.Pull(t.Context(), &stopgapv1.PullRequest{Hello: h.GetHello()})
	}
	if _, err := pull(hello(victim.id)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("speaks for another: %v", err)
	}
	// Its own assignment is that of the organisation it names; another's tells nothing of another server, and moves nothing.
	h := hello(me)
	h.Hello.Facts.Organisation = "Contoso"
	resp, err := pull(h)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(resp.GetAssignment(), []byte(victim.id)) {
		t.Error("an assignment names another agent")
	}
	// Labels come with the token and nowhere else.
	if a, err := r.get(thief); err != nil || len(a.GetAgent().GetLabels()) != 0 {
		t.Errorf("labels %v %v", a.GetAgent().GetLabels(), err)
	}
	// Renewal is for its own key.
	other, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := trust.NewRequest(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.RenewCertificate(t.Context(), &stopgapv1.RenewCertificateRequest{Csr: csr}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a certificate for another key: %v", err)
	}
	r.audited("renew-refused", me)
	if _, err := client.RenewCertificate(t.Context(), &stopgapv1.RenewCertificateRequest{Csr: []byte("rubbish")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a certificate for rubbish: %v", err)
	}
	// A flood is its own.
	limited := false
	for range 200 {
		_, err := pull(hello(me))
		limited = limited || status.Code(err) == codes.ResourceExhausted
	}
	if !limited {
		t.Error("200 pulls at once are not limited")
	}
	r.publish(catalogue(t, "PING1")...)
	r.expect(victim, "PING1", applied, "")
	unchanged(t, file, content)
}

func TestATokenIsGoodForItsUsesItsTimeAndItsFleet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	enrol := func(token, host string) error {
		dir := t.TempDir()
		if err := lab.Make(filepath.Join(dir, "server"), lab.Spec{Template: lab.ExchangeSE, Host: host, Organisation: "Contoso"}); err != nil {
			return err
		}
		_, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: filepath.Join(dir, "state"), Controller: r.addr, Token: token, Host: "lab:" + filepath.Join(dir, "server")})
		if err != nil {
			if _, serr := os.Stat(filepath.Join(dir, "state", "credentials")); serr == nil {
				t.Error("a refused enrolment left credentials behind")
			}
		}
		return err
	}
	once := r.token(1, nil)
	if err := enrol(once, "A"); err != nil {
		t.Fatal(err)
	}
	if err := enrol(once, "B"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after its use: %v", err)
	}
	r.audited("enroll-refused", "not valid")
	// In parallel from 50 machines, with three uses.
	three := r.token(3, map[string]string{"site": "berlin"})
	var wg sync.WaitGroup
	var in atomic.Int32
	for i := range 50 {
		wg.Go(func() {
			switch err := enrol(three, fmt.Sprintf("P%d", i)); {
			case err == nil:
				in.Add(1)
			case status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.ResourceExhausted:
				t.Errorf("machine %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if in.Load() != 3 {
		t.Errorf("%d of 50 machines enrolled with a token of three uses", in.Load())
	}
	// Taken back; another fleet's; altered; too long; a controller that shows another CA, or another root.
	back := r.token(1, nil)
	l, err := r.fleet.ListTokens(t.Context(), &stopgapv1.ListTokensRequest{})
	if err != nil || len(l.GetTokens()) != 1 {
		t.Fatalf("%v %v", l, err)
	}
	if _, err := r.fleet.RevokeToken(t.Context(), &stopgapv1.RevokeTokenRequest{TokenId: l.GetTokens()[0].GetId()}); err != nil {
		t.Fatal(err)
	}
	if err := enrol(back, "C"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("taken back: %v", err)
	}
	tok, err := trust.ParseToken(r.token(1, nil))
	if err != nil {
		t.Fatal(err)
	}
	ca, root := tok, tok
	ca.CA[0]++
	root.Root[0]++
	if err := enrol(ca.String(), "D"); err == nil || !strings.Contains(err.Error(), "CA that the token names") {
		t.Errorf("another CA: %v", err)
	}
	if err := enrol(root.String(), "E"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("another root: %v", err)
	}
	if err := enrol(tok.String()[:100], "F"); err == nil || !strings.Contains(err.Error(), "copied in part") {
		t.Errorf("half a token: %v", err)
	}
	if err := enrol(tok.String(), "G"); err != nil {
		t.Errorf("the honest one: %v", err)
	}
	r.log.mu.Lock()
	logged := string(r.log.data)
	r.log.mu.Unlock()
	for _, secret := range []string{once, three, back, tok.String(), fmt.Sprintf("%x", tok.Secret), "PRIVATE KEY"} {
		if strings.Contains(logged, secret) {
			t.Error("a secret was logged")
		}
	}
	// A root with holes, from an operator: refused, and the controller goes on.
	files := map[string][]byte{"metadata/2.root.json": []byte(`{"signed":{"_type":"root","keys":{"x":null},"roles":{"root":null}},"signatures":[]}`),
		"metadata/9.targets.json": []byte(`{"signed":{"_type":"targets","targets":{"policy.yaml":null}},"signatures":[]}`)}
	if _, err := soc.Send(t.Context(), r.fleet, files); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a root with holes was published: %v", err)
	}
	if _, err := r.fleet.CreateToken(t.Context(), &stopgapv1.CreateTokenRequest{Ttl: durationpb.New(time.Second), Uses: 1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of a second: %v", err)
	}
}

func TestAMachineInALoopIsSlowedDownAndFillsNoInventory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dir := filepath.Join(t.TempDir(), "server")
	if err := lab.Make(dir, lab.Spec{Template: lab.ExchangeSE, Host: "LOOP", Organisation: "Contoso"}); err != nil {
		t.Fatal(err)
	}
	token := r.token(1000, nil)
	got := 0
	for range 20 {
		_, err := agent.Enroll(t.Context(), agent.EnrollConfig{StateDir: t.TempDir(), Controller: r.addr, Token: token, Host: "lab:" + dir})
		switch {
		case err == nil:
			got++
		case status.Code(err) != codes.ResourceExhausted:
			t.Fatal(err)
		}
	}
	if got != 5 {
		t.Errorf("one machine enrolled %d times", got)
	}
}

// cutter closes a connection after so many bytes have come through it.
type cutter struct {
	net.Conn
	left *atomic.Int64
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if left := c.left.Add(-int64(n)); left < 0 {
		n = max(0, n+int(left))
		_ = c.Close()
	}
	return n, err
}

func TestWhoOwnsTheNetworkCanCutAtAnyByteAndNothingIsHalfDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var left atomic.Int64
	left.Store(1 << 40)
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, func(c *agent.Config) {
		c.RetryMin, c.RetryMax = time.Millisecond, 5*time.Millisecond
		c.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return &cutter{conn, &left}, err
		}
	})
	r.connected(n)
	for i := range int64(12) {
		// Truncated at a byte further on each time: in the handshake, in Welcome, in the middle of the policy.
		left.Store(300 + i*250)
		if i%2 == 0 {
			r.publish(catalogue(t, "M1", "M2")...)
		} else {
			r.withdraw("M1", "M2")
		}
		r.eventually(func() error {
			if left.Load() > 0 {
				return errors.New("not cut yet")
			}
			return nil
		})
	}
	left.Store(1 << 40)
	r.publish(catalogue(t, "M1", "M2")...)
	r.expect(n, "M1", applied, "")
	r.expect(n, "M2", applied, "")
	r.withdraw("M1", "M2")
	r.expect(n, "M1", reverted, "withdrawn")
	r.expect(n, "M2", reverted, "withdrawn")
	n.asBefore()
	r.history()
}

func TestWhatWasRecordedOnTheWireCanNotBeReplayed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	// TLS 1.3 without tickets: what was recorded of one connection is nothing to another.
	var tape bytes.Buffer
	var mu sync.Mutex
	n := r.add(lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01"}, func(c *agent.Config) {
		c.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return &taped{conn, &tape, &mu}, err
		}
	})
	r.publish(catalogue(t, "M1")...)
	r.expect(n, "M1", applied, "")
	before := len(r.history())
	n.stop()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	mu.Lock()
	_, _ = conn.Write(tape.Bytes())
	mu.Unlock()
	_ = conn.SetReadDeadline(time.Now().Add(patience.For(5 * time.Second)))
	buf := make([]byte, 64<<10)
	for err == nil {
		_, err = conn.Read(buf)
	}
	if got := len(r.history()); got != before {
		t.Errorf("%d outcomes after the replay, %d before", got, before)
	}
	a, err := r.get(n)
	if err != nil || a.GetAgent().GetPresence() == stopgapv1.Presence_PRESENCE_CONNECTED {
		t.Errorf("the replay counts as the agent: %v", err)
	}
	// And no session is resumed: a second handshake shows the whole chain again.
	creds, err := trust.LoadCredentials(filepath.Join(n.state, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := trust.ClientTLS(creds, "127.0.0.1")
	cfg.NextProtos = []string{"h2"}
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 2 {
		c, err := tls.Dial("tcp", r.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience.For(200 * time.Millisecond)))
		_, _ = c.Read(buf)
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = c.Close()
	}
}

type taped struct {
	net.Conn
	tape *bytes.Buffer
	mu   *sync.Mutex
}

func (c *taped) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.tape.Write(p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

func TestACertificateOfAnotherCAGetsNoConnection(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	_, creds := attacker(t, other)
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(r.op, trust.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	creds.CA = pool
	cfg := trust.ClientTLS(creds, "")
	// Shown though the controller does not ask for one of that CA.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &creds.Cert, nil }
	conn, err := grpc.NewClient(r.addr, transport.DialOptions(cfg)...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience.For(5*time.Second))
	defer cancel()
	if _, err := stopgapv1.NewAgentServiceClient(conn).Pull(ctx, &stopgapv1.PullRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
