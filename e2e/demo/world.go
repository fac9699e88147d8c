package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/pages"
)

// server is one lab server of the demo.
type server struct {
	name  string
	spec  lab.Spec
	dir   string // the lab server
	state string // its agent's
	web   *lab.Server
	agent *procs.Proc
	id    string
}

// demo is the world the steps play in.
type demo struct {
	bin, dir, addr string
	servers        []*server
	controller     *procs.Proc
	conn           *grpc.ClientConn
	fleet          stopgapv1.FleetServiceClient
	cancel         context.CancelFunc
	originals      map[string][]byte // of the smaller organisation's web.config files, by path
	published      time.Time
}

var cast = []lab.Spec{
	{Template: lab.Exchange2016CU19, Host: "EX01", Organisation: "Contoso", DAG: "DAG1"},
	{Template: lab.Exchange2016CU23, Host: "EX02", Organisation: "Contoso", DAG: "DAG1"},
	{Template: lab.ExchangeSE, Build: "15.2.2562.43", Host: "EX03", Organisation: "Contoso"},
	{Template: lab.Exchange2019CU15, Host: "EDGE01", Organisation: "Contoso", Edge: true},
	{Template: lab.Exchange2019CU14, Host: "FX01", Organisation: "Fabrikam"},
	{Template: lab.Exchange2019CU15, Host: "FX02", Organisation: "Fabrikam"},
}

// fixedBuild is what the smaller organisation installs.
var fixedBuild = map[string]string{"FX01": "15.2.1544.41", "FX02": "15.2.1748.46"}

func (d *demo) program(name string) string { return filepath.Join(d.bin, name) }

func (d *demo) operatorDir() string { return filepath.Join(d.dir, "controller", "operators", "admin") }

// stopgap runs the operators' program.
func (d *demo) stopgap(ctx context.Context, args ...string) (string, error) {
	return procs.Output(ctx, d.program("stopgap"), append([]string{"--controller", d.addr, "--credentials", d.operatorDir()}, args...)...)
}

// admin runs the server administrator's program on one server.
func (d *demo) admin(ctx context.Context, s *server, args ...string) (string, error) {
	return procs.Output(ctx, d.program("stopgap-agent"), append([]string{"--state", s.state}, args...)...)
}

func (d *demo) server(name string) *server {
	for _, s := range d.servers {
		if s.name == name {
			return s
		}
	}
	panic("demo: no server " + name)
}

// maxHeartbeat is below what agents and controller accept at most.
const maxHeartbeat = 15 * time.Second

// start makes the fleet and starts everything.
func (d *demo) start(ctx context.Context) error {
	if err := clean(d.dir); err != nil {
		return err
	}
	for _, p := range []string{"stopgap", "stopgap-agent", "stopgap-controller"} {
		if _, err := os.Stat(d.program(p)); err != nil {
			return fmt.Errorf("%w: `make build` makes it", err)
		}
	}
	var err error
	if d.addr, err = procs.FreeAddr(); err != nil {
		return err
	}
	data := filepath.Join(d.dir, "controller")
	if _, err := procs.Output(ctx, d.program("stopgap-controller"), "--data", data, "init", "--fleet", "demo"); err != nil {
		return err
	}
	d.controller = procs.New("controller", d.program("stopgap-controller"), filepath.Join(d.dir, "controller.log"),
		"--data", data, "run", "--listen", d.addr, "--heartbeat", min(patience.For(2*time.Second), maxHeartbeat).String())
	if err := d.controller.Start(); err != nil {
		return err
	}
	if err := d.ceremony(ctx); err != nil {
		return err
	}
	token, err := d.stopgap(ctx, "token", "create", "--uses", fmt.Sprint(len(cast)), "--ttl", "10m", "--labels", "site=demo")
	if err != nil {
		return err
	}
	hctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	for _, spec := range cast {
		s := &server{name: spec.Host, spec: spec, dir: filepath.Join(d.dir, spec.Host, "server"), state: filepath.Join(d.dir, spec.Host, "agent")}
		if err := lab.Make(s.dir, spec); err != nil {
			return err
		}
		if !spec.Edge {
			if s.web, err = lab.Serve(s.dir, "127.0.0.1:0"); err != nil {
				return err
			}
			go lab.HealthManager(hctx, s.dir, 250*time.Millisecond)
		}
		out, err := d.admin(ctx, s, "enroll", "--controller", d.addr, "--token", strings.TrimSpace(token), "--host", "lab:"+s.dir, "--name", s.name)
		if err != nil {
			return err
		}
		s.id = strings.TrimSuffix(strings.Fields(out)[3], ";")
		s.agent = procs.New(s.name, d.program("stopgap-agent"), filepath.Join(d.dir, s.name, "agent.log"),
			"--state", s.state, "run", "--controller", d.addr, "--host", "lab:"+s.dir, "--name", s.name, "--retry-min", "200ms", "--retry-max", "1s",
			"--probe-within", patience.For(3*time.Second).String(), "--remove-hold", "0s")
		if err := s.agent.Start(); err != nil {
			return err
		}
		d.servers = append(d.servers, s)
	}
	if d.conn, err = soc.Dial(d.operatorDir(), d.addr); err != nil {
		return err
	}
	d.fleet = stopgapv1.NewFleetServiceClient(d.conn)
	return nil
}

// passphrase is that of all keys of the demo; people choose their own.
const passphrase = "only for the demo, not for you"

// offline runs a command of the operators' program that needs no controller, as the people with the keys do.
func (d *demo) offline(ctx context.Context, args ...string) (string, error) {
	return procs.Output(ctx, d.program("stopgap"), args...)
}

func (d *demo) policyDir() string { return filepath.Join(d.dir, "policy") }

func (d *demo) key(role string, i int) string {
	return filepath.Join(d.dir, "keys", fmt.Sprintf("%s-%d", role, i))
}

// ceremony makes three root keys and three targets keys, and a policy that two of each must sign; then publishes it, empty.
func (d *demo) ceremony(ctx context.Context) error {
	if err := os.Setenv("STOPGAP_KEY_PASSPHRASE", passphrase); err != nil {
		return err
	}
	init := []string{"policy", "--dir", d.policyDir(), "init", "--root-threshold", "2", "--targets-threshold", "2",
		"--online", filepath.Join(d.dir, "controller", "online", "public.json")}
	for _, role := range []string{"root", "targets"} {
		for i := range 3 {
			dir := d.key(role, i)
			if _, err := d.offline(ctx, "keys", "generate", "--role", role, "--out", dir); err != nil {
				return err
			}
			pub, err := filepath.Glob(filepath.Join(dir, "*.pub"))
			if err != nil || len(pub) != 1 {
				return fmt.Errorf("no public key in %s", dir)
			}
			init = append(init, "--key", pub[0])
		}
	}
	if _, err := d.offline(ctx, init...); err != nil {
		return err
	}
	if err := d.sign(ctx, "root"); err != nil {
		return err
	}
	if err := d.sign(ctx, "targets"); err != nil {
		return err
	}
	return patience.Wait(ctx, soon, func() error {
		_, err := d.stopgap(ctx, "publish", d.policyDir())
		if err != nil && !d.controller.Running() {
			err = patience.InVain(errors.New("the controller has ended: its log says why"))
		}
		return err
	})
}

// sign lets two of the three people with keys of a role sign, one after the other.
func (d *demo) sign(ctx context.Context, role string) error {
	for i := range 2 {
		key, err := filepath.Glob(filepath.Join(d.key(role, i), "*.key"))
		if err != nil || len(key) != 1 {
			return fmt.Errorf("no key in %s", d.key(role, i))
		}
		if _, err := d.offline(ctx, "sign", "--key", key[0], d.policyDir()); err != nil {
			return err
		}
	}
	return nil
}

const (
	marker = "made-by-stopgap-demo"
	// aside is added to the name of a failed demo's directory, of which the last is kept.
	aside = ".failed"
)

// clean removes what an earlier demo left, and nothing else. What a failed one left is kept beside it.
func clean(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, failedFile)); err == nil {
		if err := remove(dir + aside); err != nil {
			return err
		}
		if err := os.Rename(dir, dir+aside); err != nil {
			return err
		}
	}
	if err := remove(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, marker), nil, 0o600)
}

// remove removes a directory that a demo made, if it is there.
func remove(dir string) error {
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fmt.Errorf("%s exists and was not made by the demo; name another with --dir", dir)
	}
	return os.RemoveAll(dir)
}

// stop ends everything that start started.
func (d *demo) stop() {
	if d.conn != nil {
		_ = d.conn.Close()
	}
	for _, s := range d.servers {
		s.agent.Stop()
		if s.web != nil {
			_ = s.web.Close()
		}
	}
	if d.controller != nil {
		d.controller.Stop()
	}
	if d.cancel != nil {
		d.cancel()
	}
}

func (d *demo) agents(ctx context.Context) (map[string]*stopgapv1.Agent, error) {
	l, err := d.fleet.ListAgents(ctx, &stopgapv1.ListAgentsRequest{PageSize: pages.Size})
	if err != nil {
		return nil, err
	}
	out := map[string]*stopgapv1.Agent{}
	for _, a := range l.GetAgents() {
		out[a.GetName()] = a
	}
	return out, nil
}

// outcomes gives the current outcomes by server and mitigation.
func (d *demo) outcomes(ctx context.Context) (map[string]map[string]*stopgapv1.OutcomeRecord, error) {
	out := map[string]map[string]*stopgapv1.OutcomeRecord{}
	return out, pages.Each(func(token string) (string, error) {
		l, err := d.fleet.ListOutcomes(ctx, &stopgapv1.ListOutcomesRequest{PageSize: pages.Size, PageToken: token})
		for _, rec := range l.GetOutcomes() {
			if out[rec.GetAgentName()] == nil {
				out[rec.GetAgentName()] = map[string]*stopgapv1.OutcomeRecord{}
			}
			out[rec.GetAgentName()][rec.GetOutcome().GetMitigation()] = rec
		}
		return l.GetNextPageToken(), err
	})
}

func state(r *stopgapv1.OutcomeRecord) string {
	if r == nil {
		return "-"
	}
	s := r.GetOutcome().GetState()
	if outcome.Of(s).Rollout == outcome.NotForIt {
		return "n/a " + r.GetOutcome().GetCode()
	}
	return outcome.Name(s)
}

// table draws servers against mitigations.
func (d *demo) table(outs map[string]map[string]*stopgapv1.OutcomeRecord) string {
	ids := map[string]bool{}
	for _, m := range outs {
		for id := range m {
			ids[id] = true
		}
	}
	cols := make([]string, 0, len(ids))
	for id := range ids {
		cols = append(cols, id)
	}
	sort.Strings(cols)
	var b strings.Builder
	fmt.Fprintf(&b, "   %-8s %-14s %-9s", "SERVER", "BUILD", "ORG")
	for _, c := range cols {
		fmt.Fprintf(&b, " %-14s", c)
	}
	b.WriteString("\n")
	for _, s := range d.servers {
		build := s.spec.Build
		if a, err := lab.Facts(s.dir); err == nil {
			build = a.ExchangeBuild
		}
		fmt.Fprintf(&b, "   %-8s %-14s %-9s", s.name, build, s.spec.Organisation)
		for _, c := range cols {
			fmt.Fprintf(&b, " %-14s", state(outs[s.name][c]))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// live shows the table as it fills, redrawn in place on a terminal, until done says so.
func (d *demo) live(ctx context.Context, limit time.Duration, done func(map[string]map[string]*stopgapv1.OutcomeRecord) error) error {
	terminal := false
	if st, err := os.Stdout.Stat(); err == nil {
		terminal = st.Mode()&os.ModeCharDevice != 0
	}
	drawn := 0
	last := ""
	err := patience.Wait(ctx, limit, func() error {
		outs, err := d.outcomes(ctx)
		if err != nil {
			return err
		}
		last = d.table(outs)
		if terminal {
			if drawn > 0 {
				fmt.Printf("\x1b[%dA\x1b[J", drawn)
			}
			fmt.Print(last)
			drawn = strings.Count(last, "\n")
		}
		return done(outs)
	})
	if !terminal {
		fmt.Print(last)
	}
	return err
}

func (d *demo) instructions() {
	fmt.Printf("\nEverything runs until you press Ctrl-C. In another terminal:\n\n"+
		"  export STOPGAP_CONTROLLER=%s STOPGAP_CREDENTIALS=%s\n  cd %s\n"+
		"  ./stopgap agents list\n  ./stopgap agents show EX01\n  ./stopgap outcomes\n  ./stopgap watch\n  ./stopgap audit\n"+
		"  export STOPGAP_POLICY=%s STOPGAP_KEY_PASSPHRASE='%s'\n  ./stopgap policy remove M1@1; ./stopgap policy diff\n  ./stopgap sign --key %s/*.key; ./stopgap sign --key %s/*.key; ./stopgap publish\n\n",
		d.addr, d.operatorDir(), d.bin, d.policyDir(), passphrase, d.key("targets", 0), d.key("targets", 1))
	for _, s := range d.servers {
		if s.web != nil {
			fmt.Printf("  %-7s %s   ./stopgap-agent --state %s status\n", s.name, s.web.URL(), s.state)
		}
	}
}
