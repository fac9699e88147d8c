//go:build wine

package wine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller"
	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
	"github.com/stopgap-em/stopgap/e2e/soc"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Paths on the server.
const (
	exchange   = `C:\Program Files\Microsoft\Exchange Server\V15`
	owaConfig  = exchange + `\FrontEnd\HttpProxy\owa\web.config`
	rootConfig = `C:\inetpub\wwwroot\web.config`
	inetsrv    = `C:\windows\system32\inetsrv`
	state      = `C:\ProgramData\Stopgap`
	program    = `C:\Program Files\Stopgap\stopgap-agent.exe`
	standin    = `C:\standin.exe`

	// soon is how long something that happens at once may take on an idle machine.
	soon = 40 * time.Second
)

// catalogue is what is for an Exchange 2016 server of early 2021.
var catalogue = []string{"CVE-2021-26855", "CVE-2021-26857", "CVE-2021-26858", "CVE-2021-27065", "M1", "M2"}

// world is a native controller and a Windows server.
type world struct {
	*Prefix
	t      testing.TB
	addr   string
	soc    *soc.SOC
	fleet  stopgapv1.FleetServiceClient
	before map[string][]byte // IIS's configuration files, by path on this machine
	log    bytes.Buffer
}

func env(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run `make test-windows`", name)
	}
	return v
}

func newWorld(t testing.TB, heartbeat time.Duration) *world {
	t.Helper()
	w := &world{t: t}
	w.controller(heartbeat)
	var err error
	if w.Prefix, err = New(t.Context(), filepath.Join(t.TempDir(), "pfx")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.exchange()
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(cond func() error) {
	w.t.Helper()
	patience.Eventually(w.t, soon, cond)
}

// controller starts a controller in this process and publishes an empty policy.
func (w *world) controller(heartbeat time.Duration) {
	data := filepath.Join(w.t.TempDir(), "controller")
	op, err := controller.Init(data, "wine", []string{"127.0.0.1"})
	w.must(err)
	online, err := soc.LoadOnline(filepath.Join(data, "online"))
	w.must(err)
	w.soc, err = online.For(filepath.Join(w.t.TempDir(), "policy"))
	w.must(err)
	w.addr, err = procs.FreeAddr()
	w.must(err)
	c, err := controller.New(controller.Config{DataDir: data, Listen: w.addr, Heartbeat: patience.For(heartbeat),
		Logger: hclog.New(&hclog.LoggerOptions{Output: &w.log, Level: hclog.Warn})})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	conn, err := soc.Dial(op, w.addr)
	w.must(err)
	w.t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.fleet = stopgapv1.NewFleetServiceClient(conn)
	w.eventually(func() error { return w.publish() })
}

func (w *world) publish(ids ...string) error {
	if len(ids) > 0 {
		files, err := soc.Catalogue(ids...)
		if err != nil {
			return err
		}
		if err := w.soc.Add(files...); err != nil {
			return err
		}
	}
	_, err := w.soc.Publish(w.t.Context(), w.fleet)
	return err
}

func (w *world) withdraw(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		w.must(w.soc.Remove(id, 1))
	}
	w.must(w.publish())
}

// exchange makes the prefix look like an Exchange 2016 server of early 2021: files of a lab server (of a real one, where there is real
// data), what the registry says of Exchange and IIS, services, and a stand-in for appcmd.
func (w *world) exchange() {
	dir := filepath.Join(w.t.TempDir(), "lab")
	w.must(lab.Make(dir, lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01", Organisation: "Contoso"}))
	if data := os.Getenv("STOPGAP_TESTDATA"); data != "" {
		real := filepath.Join(data, "exchange", "E19")
		for from, to := range map[string]string{"DefaultWebSite_web.config": "C/inetpub/wwwroot/web.config",
			"DefaultWebSite-OWA_web.config": "C/Program Files/Microsoft/Exchange Server/V15/FrontEnd/HttpProxy/owa/web.config",
			"applicationHost.config":        "C/Windows/System32/inetsrv/config/applicationHost.config"} {
			content, err := os.ReadFile(filepath.Join(real, from))
			w.must(err)
			w.must(os.WriteFile(filepath.Join(dir, to), content, 0o600))
		}
		w.t.Log("REAL DATA: IIS configuration of a real server")
	}
	w.before = map[string][]byte{}
	root := filepath.Join(dir, "C")
	w.must(filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		// Wine's own directories are in lower case.
		rel = strings.Replace(rel, filepath.Join("Windows", "System32"), filepath.Join("windows", "system32"), 1)
		windows := `C:\` + strings.ReplaceAll(rel, "/", `\`)
		w.before[w.Path(windows)] = data
		return w.Write(windows, data)
	}))
	ctx := w.t.Context()
	exe, err := versioned("15.1.2176.2")
	w.must(err)
	w.must(w.Write(exchange+`\Bin\ExSetup.exe`, exe))
	stand, err := os.ReadFile(env(w.t, "STOPGAP_WINE_STANDIN"))
	w.must(err)
	w.must(w.Write(standin, stand))
	w.must(w.Write(inetsrv+`\appcmd.exe`, stand))
	v15 := `HKLM\SOFTWARE\Microsoft\ExchangeServer\v15`
	for _, v := range [][4]string{
		{v15 + `\Setup`, "MsiInstallPath", "REG_SZ", exchange + `\`},
		{v15 + `\Setup`, "MsiProductMinor", "REG_DWORD", "1"},
		{v15 + `\MailboxRole`, "ConfiguredVersion", "REG_SZ", "15.1.2176.2"},
		{`HKLM\SOFTWARE\Microsoft\IIS Extensions\URL Rewrite`, "Version", "REG_SZ", "7.1.1993.2336"},
		{`HKLM\SOFTWARE\Microsoft\InetStp`, "MajorVersion", "REG_DWORD", "10"},
		{`HKLM\SOFTWARE\Microsoft\InetStp`, "MinorVersion", "REG_DWORD", "0"},
		{versionKey, "CurrentBuildNumber", "REG_SZ", "17763"},
		{versionKey, "ProductName", "REG_SZ", "Windows Server 2019 Standard"},
		{`HKLM\SOFTWARE\Stopgap`, "Organisation", "REG_SZ", "Contoso"},
	} {
		w.must(w.Reg(ctx, v[0], v[1], v[2], v[3]))
	}
	w.service("MSExchangeADTopology", "auto")
	w.service("MSExchangeUM", "auto", "depend=", "MSExchangeADTopology")
	w.service("MSExchangeUMCR", "auto")
	w.service("UMReporting", "demand", "depend=", "MSExchangeUM")
	w.service("MSExchangeTransport", "auto", "depend=", "MSExchangeADTopology")
	w.service("W3SVC", "auto")
	w.service("MSExchangeHM", "auto")
	w.service("MSExchangeHMRecovery", "auto")
}

func (w *world) service(name, start string, more ...string) {
	w.t.Helper()
	args := append([]string{"create", name, "binPath=", standin + " service " + name, "start=", start}, more...)
	_, err := w.Run(w.t.Context(), "sc", args...)
	w.must(err)
	_, err = w.Run(w.t.Context(), "sc", "start", name)
	w.must(err)
}

// startType is the number that the registry says; Wine's sc has no qc that prints it.
func (w *world) startType(name string) string {
	out, err := w.Run(w.t.Context(), "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\`+name, "/v", "Start")
	if err != nil {
		return ""
	}
	f := strings.Fields(out)
	return f[len(f)-1]
}

func (w *world) token() string {
	w.t.Helper()
	r, err := w.fleet.CreateToken(w.t.Context(), &stopgapv1.CreateTokenRequest{Ttl: durationpb.New(time.Hour), Uses: 1})
	w.must(err)
	return r.GetTokenSecret()
}

// agent is the fleet's only one.
func (w *world) agent() (*stopgapv1.Agent, error) {
	l, err := w.fleet.ListAgents(w.t.Context(), &stopgapv1.ListAgentsRequest{})
	if err != nil {
		return nil, err
	}
	if len(l.GetAgents()) == 0 {
		return nil, errors.New("no agent")
	}
	return l.GetAgents()[0], nil
}

func (w *world) connected() {
	w.t.Helper()
	w.eventually(func() error {
		a, err := w.agent()
		if err == nil && a.GetPresence() != stopgapv1.Presence_PRESENCE_CONNECTED {
			err = fmt.Errorf("the agent is %s", a.GetPresence())
		}
		return err
	})
}

// outcomes is what the fleet knows of the mitigations on the server.
func (w *world) outcomes() (map[string]*stopgapv1.Outcome, error) {
	a, err := w.agent()
	if err != nil {
		return nil, err
	}
	r, err := w.fleet.GetAgent(w.t.Context(), &stopgapv1.GetAgentRequest{Agent: a.GetId()})
	out := map[string]*stopgapv1.Outcome{}
	for _, o := range r.GetOutcomes() {
		out[o.GetOutcome().GetMitigation()] = o.GetOutcome()
	}
	return out, err
}

// expect waits until every mitigation is in a state, with a text in its reason.
func (w *world) expect(want, reason string, ids ...string) {
	w.t.Helper()
	w.eventually(func() error {
		all, err := w.outcomes()
		if err != nil {
			return err
		}
		for _, id := range ids {
			o := all[id]
			if got := outcome.Name(o.GetState()); got != want || !strings.Contains(o.GetReason(), reason) {
				return fmt.Errorf("%s is %s (%s: %s), want %s %q", id, got, o.GetCode(), o.GetReason(), want, reason)
			}
		}
		return nil
	})
}

// asBefore checks that every configuration file is byte for byte what it was, and that nothing is left beside them.
func (w *world) asBefore() {
	w.t.Helper()
	for p, data := range w.before {
		now, err := os.ReadFile(p)
		if err != nil || !bytes.Equal(now, data) {
			w.t.Errorf("%s is not what it was (%v)", p, err)
		}
		if left, _ := filepath.Glob(p + ".stopgap*"); len(left) > 0 {
			w.t.Errorf("left behind: %v", left)
		}
	}
}

func (w *world) changed() []string {
	var out []string
	for p, data := range w.before {
		if now, err := os.ReadFile(p); err != nil || !bytes.Equal(now, data) {
			out = append(out, filepath.Base(filepath.Dir(p))+"/"+filepath.Base(p))
		}
	}
	sort.Strings(out)
	return out
}

// ctl runs a command of the agent's program.
func (w *world) ctl(args ...string) (string, error) {
	return w.Run(w.t.Context(), program, args...)
}

func (w *world) serviceIs(name, want string) {
	w.t.Helper()
	w.eventually(func() error {
		if s := w.ServiceState(w.t.Context(), name); s != want {
			return fmt.Errorf("service %s is %q, want %q", name, s, want)
		}
		return nil
	})
}

// msiexec installs or removes, with a verbose log that it gives.
func (w *world) msiexec(args ...string) (string, error) {
	log := `C:\msi.log`
	_ = os.Remove(w.Path(log))
	_, err := w.Run(w.t.Context(), "msiexec", append(args, "/qn", "/l*v", log)...)
	text, _ := w.Read(log)
	return string(text), err
}

// msi gives the path of an MSI as Windows sees it.
func (w *world) msi(which string) string {
	return `Z:` + strings.ReplaceAll(env(w.t, which), "/", `\`)
}

// transactions reads how many the journal has committed, out of the file itself: the newer of bbolt's two meta pages. Source: bbolt's
// page layout.
func transactions(journal string) (uint64, error) {
	f, err := os.Open(journal)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	const pageSize, txid = 4096, 16 + 16 + 16 + 8 + 8
	var newest uint64
	for page := range int64(2) {
		var b [8]byte
		if _, err := f.ReadAt(b[:], page*pageSize+txid); err != nil {
			return 0, err
		}
		newest = max(newest, binary.LittleEndian.Uint64(b[:]))
	}
	return newest, nil
}

// console is the agent's program run by hand, so that its process can be killed.
func (w *world) console(args ...string) *exec.Cmd {
	cmd := w.Command(context.Background(), program, append([]string{"run", "--retry-min", "50ms", "--retry-max", "200ms"}, args...)...)
	out, err := os.OpenFile(filepath.Join(w.Dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.must(err)
	cmd.Stdout, cmd.Stderr = out, out
	w.must(cmd.Start())
	return cmd
}

func kill(cmd *exec.Cmd) error {
	err := cmd.Process.Kill()
	var exit *exec.ExitError
	if werr := cmd.Wait(); werr != nil && !errors.As(werr, &exit) {
		return errors.Join(err, werr)
	}
	return err
}
