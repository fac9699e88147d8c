//go:build wine

package wine

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// TestTheAgentThatShips plays the life of one server, in order: each step stands on the one before.
func TestTheAgentThatShips(t *testing.T) {
	w := newWorld(t, time.Second)
	for _, s := range []struct {
		name string
		play func(w *world)
	}{
		{"the MSI refuses an old Windows and points to EOMT", (*world).oldWindows},
		{"the MSI installs, enrols and leaves no token behind", (*world).install},
		{"facts are read, and what is unknown is unknown", (*world).facts},
		{"the whole catalogue is applied, and services and pools stand still", (*world).applyAll},
		{"the administrator's door and the check of the way", (*world).local},
		{"drift is repaired", (*world).drift},
		{"an upgrade over the running service keeps state and mitigations", (*world).upgrade},
		{"uninstalling keeps the mitigations and says so", (*world).uninstallKeeps},
		{"installed again without a token it is who it was", (*world).again},
		{"everything is taken off, byte for byte", (*world).takeOff},
		{"a file that another process holds", (*world).held},
		{"a file that IIS refuses to read is put back", (*world).refused},
		{"what IIS does not list is not called applied", (*world).witness},
		{"killed at every step of the journal", (*world).killed},
		{"uninstalling with REVERTMITIGATIONS=1 leaves the files as they were", (*world).uninstallReverts},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			began := time.Now()
			inner := *w
			inner.t = t
			s.play(&inner)
			w.before = inner.before
			t.Logf("%.1f s", time.Since(began).Seconds())
		})
		if !ok {
			log, _ := w.Read(state + `\logs\agent.log`)
			console, _ := os.ReadFile(filepath.Join(w.Dir, "console.log"))
			t.Fatalf("agent.log:\n%s\nconsole:\n%s\ncontroller:\n%s", tail(log), tail(console), tail(w.log.Bytes()))
		}
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-6000):] }

const versionKey = `HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion`

func (w *world) oldWindows() {
	w.must(w.Reg(w.t.Context(), versionKey, "CurrentBuildNumber", "REG_SZ", "9600"))
	log, err := w.msiexec("/i", w.msi("STOPGAP_WINE_MSI"), "CONTROLLER="+w.addr, "TOKEN="+w.token())
	if s := w.ServiceState(w.t.Context(), "StopgapAgent"); err == nil || s != "" || !strings.Contains(log, "LaunchConditions. Return value 0") {
		w.t.Errorf("msiexec: %v, service %q\n%s", err, s, tail([]byte(log)))
	}
	w.must(w.Reg(w.t.Context(), versionKey, "CurrentBuildNumber", "REG_SZ", "17763"))
	w.must(w.Reg(w.t.Context(), `HKLM\SOFTWARE\Microsoft\ExchangeServer\v15\Setup`, "MsiProductMinor", "REG_DWORD", "0"))
	log, err = w.msiexec("/i", w.msi("STOPGAP_WINE_MSI"), "CONTROLLER="+w.addr, "TOKEN="+w.token())
	if s := w.ServiceState(w.t.Context(), "StopgapAgent"); err == nil || s != "" || !strings.Contains(log, "LaunchConditions. Return value 0") {
		w.t.Errorf("Exchange 2013: msiexec: %v, service %q\n%s", err, s, tail([]byte(log)))
	}
	w.must(w.Reg(w.t.Context(), `HKLM\SOFTWARE\Microsoft\ExchangeServer\v15\Setup`, "MsiProductMinor", "REG_DWORD", "1"))
}

func (w *world) install() {
	token := w.token()
	log, err := w.msiexec("/i", w.msi("STOPGAP_WINE_MSI"), "CONTROLLER="+w.addr, "TOKEN="+token)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, tail([]byte(log)))
	}
	w.serviceIs("StopgapAgent", "RUNNING")
	w.connected()
	w.eventually(func() error {
		if _, err := w.Read(state + `\enrol-token`); !os.IsNotExist(err) {
			return fmt.Errorf("the token is still there (%t)", err == nil)
		}
		return nil
	})
	// Wine prints hidden properties too, where it lists properties; no action may print it.
	listed := "Property(S): TOKEN = " + token
	if !strings.Contains(log, listed) {
		w.t.Error("the log is not verbose: that the token is not in it would prove nothing")
	}
	if strings.Contains(strings.ReplaceAll(log, listed, ""), token) {
		w.t.Error("the token is in the installer's log")
	}
}

func (w *world) facts() {
	a, err := w.agent()
	w.must(err)
	f := a.GetFacts()
	want := map[string][2]string{
		"build":        {f.GetExchangeBuild(), "15.1.2176.2"},
		"organisation": {f.GetOrganisation(), "Contoso"},
		"URL Rewrite":  {f.GetUrlRewrite(), "7.1.1993.2336"},
		"IIS":          {f.GetIis(), "10.0"},
		"install path": {f.GetInstallPath(), exchange + `\`},
		"DAG":          {f.GetDag(), ""},
		"unsettled":    {f.GetUnsettled(), ""},
		"roles":        {fmt.Sprint(f.GetRoles()), "[ROLE_MAILBOX]"},
	}
	for what, v := range want {
		if v[0] != v[1] {
			w.t.Errorf("%s is %q, want %q", what, v[0], v[1])
		}
	}
	if f.GetServicing() || f.GetHost() == "" || f.GetMachineId() == "" || !strings.HasPrefix(f.GetWindowsBuild(), "17763") {
		w.t.Errorf("facts: %v", f)
	}
}

func (w *world) applyAll() {
	w.must(w.publish(catalogue...))
	w.expect("APPLIED", "", catalogue...)
	for name, start := range map[string]string{"MSExchangeUM": "0x4", "MSExchangeUMCR": "0x4", "UMReporting": "0x3", "MSExchangeHM": "0x4", "MSExchangeHMRecovery": "0x4"} {
		w.serviceIs(name, "STOPPED")
		if s := w.startType(name); s != start {
			w.t.Errorf("start type of %s is %s, want %s", name, s, start)
		}
	}
	w.serviceIs("MSExchangeTransport", "RUNNING")
	if c := w.changed(); len(c) < 3 {
		w.t.Errorf("changed: %v", c)
	}
	host, err := w.Read(inetsrv + `\config\applicationHost.config`)
	if err != nil || !strings.Contains(string(host), `autoStart="false"`) {
		w.t.Errorf("no pool is without autoStart in applicationHost.config (%v)", err)
	}
	pools, _ := w.Read(inetsrv + `\pools.json`)
	if !strings.Contains(string(pools), `"MSExchangeECPAppPool":"Stopped"`) {
		w.t.Errorf("pools: %s", pools)
	}
	if left, _ := filepath.Glob(w.Path(owaConfig) + ".stopgap*"); len(left) > 0 {
		w.t.Errorf("left beside web.config: %v", left)
	}
	kept, err := filepath.Glob(w.Path(state+`\backups`) + "/*web.config.2*")
	if err != nil || len(kept) < 2 {
		w.t.Errorf("proven backups: %v %v", kept, err)
	}
}

func (w *world) local() {
	out, err := w.ctl("status")
	w.must(err)
	for _, want := range []string{"connected to " + w.addr, "M1", "APPLIED", "Exchange 15.1.2176.2", "health-manager-held"} {
		if !strings.Contains(out, want) {
			w.t.Errorf("status has no %q:\n%s", want, out)
		}
	}
	out, err = w.ctl("check")
	if err != nil {
		w.t.Errorf("check: %v", err)
	}
	for _, want := range []string{"ok     TCP", "certificate shown: ", "ok     stream", "ok     clock", "ok     policy", "ok     agent"} {
		if !strings.Contains(out, want) {
			w.t.Errorf("check has no %q:\n%s", want, out)
		}
	}
	if a, err := w.agent(); err != nil || len(a.GetHealth()) != 1 {
		w.t.Errorf("the check disturbed the agent: %v %v", a.GetHealth(), err)
	}
}

func (w *world) drift() {
	applied, err := w.Read(rootConfig)
	w.must(err)
	if string(applied) == string(w.before[w.Path(rootConfig)]) {
		w.t.Fatal("nothing is applied at the root: the test proves nothing")
	}
	w.must(os.WriteFile(w.Path(rootConfig), w.before[w.Path(rootConfig)], 0o644))
	w.eventually(func() error {
		if now, err := w.Read(rootConfig); err != nil || string(now) != string(applied) {
			return fmt.Errorf("not repaired (%w)", err)
		}
		return nil
	})
	_, err = w.Run(w.t.Context(), standin, "demand", "MSExchangeUM")
	w.must(err)
	_, err = w.Run(w.t.Context(), "sc", "start", "MSExchangeUM")
	w.must(err)
	w.eventually(func() error {
		if s := w.startType("MSExchangeUM"); s != "0x4" {
			return fmt.Errorf("start type %s", s)
		}
		return nil
	})
	w.serviceIs("MSExchangeUM", "STOPPED")
}

func (w *world) upgrade() {
	before := w.changed()
	old, err := w.agent()
	w.must(err)
	log, err := w.msiexec("/i", w.msi("STOPGAP_WINE_MSI_NEXT"))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, tail([]byte(log)))
	}
	w.serviceIs("StopgapAgent", "RUNNING")
	w.connected()
	if now, err := w.agent(); err != nil || now.GetId() != old.GetId() {
		w.t.Errorf("another agent after the upgrade: %v %v", now, err)
	}
	if now := w.changed(); fmt.Sprint(now) != fmt.Sprint(before) {
		w.t.Errorf("changed by us before the upgrade %v, after %v", before, now)
	}
	w.expect("APPLIED", "", catalogue...)
	out, err := w.Run(w.t.Context(), "reg", "query", `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall`, "/s")
	if err != nil || !strings.Contains(out, "1.1.1") || strings.Contains(out, "1.1.0") {
		w.t.Errorf("installed versions: %v %s", err, out)
	}
}

func (w *world) uninstallKeeps() {
	before := w.changed()
	log, err := w.msiexec("/x", w.msi("STOPGAP_WINE_MSI_NEXT"))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, tail([]byte(log)))
	}
	w.serviceIs("StopgapAgent", "")
	if _, err := w.Read(program); !os.IsNotExist(err) {
		w.t.Errorf("the program is still there: %v", err)
	}
	if now := w.changed(); fmt.Sprint(now) != fmt.Sprint(before) || len(now) < 3 {
		w.t.Errorf("applied before %v, after %v", before, now)
	}
	undo, err := w.Read(state + `\UNDO.txt`)
	if err != nil || !strings.Contains(string(undo), "sc.exe start UMReporting") || !strings.Contains(string(undo), "M1") {
		w.t.Errorf("UNDO.txt: %v\n%s", err, undo)
	}
}

func (w *world) again() {
	log, err := w.msiexec("/i", w.msi("STOPGAP_WINE_MSI_NEXT"))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, tail([]byte(log)))
	}
	w.serviceIs("StopgapAgent", "RUNNING")
	w.connected()
	w.expect("APPLIED", "", catalogue...)
}

func (w *world) takeOff() {
	w.withdraw(catalogue...)
	w.expect("REVERTED", "", catalogue...)
	w.asBefore()
	w.servicesAsBefore()
	if pools, _ := w.Read(inetsrv + `\pools.json`); strings.Contains(string(pools), "Stopped") {
		w.t.Errorf("pools: %s", pools)
	}
}

func (w *world) servicesAsBefore() {
	w.t.Helper()
	for name, start := range map[string]string{"MSExchangeUM": "0x2", "MSExchangeUMCR": "0x2", "UMReporting": "0x3", "MSExchangeHM": "0x2", "MSExchangeHMRecovery": "0x2", "MSExchangeTransport": "0x2"} {
		w.serviceIs(name, "RUNNING")
		if s := w.startType(name); s != start {
			w.t.Errorf("start type of %s is %s, want %s", name, s, start)
		}
	}
}

// holder keeps a file open in another process, until the returned function is called.
func (w *world) holder(path, share string) func() {
	w.t.Helper()
	cmd := w.Command(w.t.Context(), standin, "hold", path, share)
	in, err := cmd.StdinPipe()
	w.must(err)
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "held" {
		w.t.Fatalf("%q %v", line, err)
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

func (w *world) held() {
	// Shared for reading, writing and deleting, as a well-behaved backup does: no obstacle.
	release := w.holder(owaConfig, "7")
	w.must(w.publish("M2"))
	w.expect("APPLIED", "", "M2")
	release()
	w.withdraw("M2")
	w.expect("REVERTED", "", "M2")
	w.asBefore()
	// Shared for reading only: the file is untouched, and it is tried again.
	release = w.holder(owaConfig, "1")
	w.must(w.publish("M2"))
	w.expect("FAILED", "held open by another process", "M2")
	w.asBefore()
	release()
	w.expect("APPLIED", "", "M2")
	w.withdraw("M2")
	w.expect("REVERTED", "", "M2")
	w.asBefore()
}

func (w *world) refused() {
	w.must(w.Write(inetsrv+`\refuse`, []byte("Default Web Site/owa")))
	w.must(w.publish("M2"))
	w.expect("FAILED", "IIS can't read", "M2")
	w.asBefore()
	w.must(os.Remove(w.Path(inetsrv + `\refuse`)))
	w.withdraw("M2")
	w.asBefore()
}

// restart stops the service and starts it: the first pass asks IIS.
func (w *world) restart() {
	w.t.Helper()
	_, err := w.Run(w.t.Context(), "sc", "stop", "StopgapAgent")
	w.must(err)
	w.serviceIs("StopgapAgent", "STOPPED")
	_, err = w.Run(w.t.Context(), "sc", "start", "StopgapAgent")
	w.must(err)
	w.serviceIs("StopgapAgent", "RUNNING")
	w.connected()
}

// warns waits until the agent's health codes are these.
func (w *world) warns(codes ...string) {
	w.t.Helper()
	w.eventually(func() error {
		a, err := w.agent()
		if err != nil {
			return err
		}
		var now []string
		for _, h := range a.GetHealth() {
			now = append(now, h.GetCode())
		}
		if fmt.Sprint(now) != fmt.Sprint(codes) {
			return fmt.Errorf("health: %v, want %v", a.GetHealth(), codes)
		}
		return nil
	})
}

func (w *world) witness() {
	w.must(w.publish("M2"))
	w.expect("APPLIED", "", "M2")
	w.warns()
	there := w.changed()
	w.must(w.Write(inetsrv+`\unlisted`, []byte("Stopgap M2.1 OWA CSP - outbound")))
	w.restart()
	w.expect("FAILED", `it does not list rule "Stopgap M2.1 OWA CSP - outbound"`, "M2")
	w.warns("model-differs")
	if now := w.changed(); fmt.Sprint(now) != fmt.Sprint(there) {
		w.t.Errorf("changed before %v, now %v", there, now)
	}
	w.must(os.Remove(w.Path(inetsrv + `\unlisted`)))
	w.restart()
	w.expect("APPLIED", "", "M2")
	w.warns()
	w.must(os.Rename(w.Path(inetsrv+`\appcmd.exe`), w.Path(inetsrv+`\away.exe`)))
	w.restart()
	w.warns("iis-not-asked")
	w.expect("APPLIED", "", "M2")
	w.must(os.Rename(w.Path(inetsrv+`\away.exe`), w.Path(inetsrv+`\appcmd.exe`)))
	w.withdraw("M2")
	w.expect("REVERTED", "", "M2")
	w.asBefore()
}

// threeKinds is one mitigation of each kind of action.
var threeKinds = []string{"M2", "CVE-2021-26857", "CVE-2021-27065"}

// killed runs the shipped program by hand and kills it after every commit of its journal that applying and taking off mitigations of
// all kinds makes, one after the other.
func (w *world) killed() {
	_, err := w.Run(w.t.Context(), "sc", "stop", "StopgapAgent")
	w.must(err)
	w.serviceIs("StopgapAgent", "STOPPED")
	kills, deepest := 0, 0
	for step, again := uint64(1), true; again; step++ {
		again = false
		for _, on := range []bool{true, false} {
			if w.killAt(step, on) {
				again, deepest = true, int(step)
				kills++
			}
		}
	}
	w.t.Logf("%d kills, after the first to the %dth commit", kills, deepest)
	if deepest < 8 {
		w.t.Errorf("no more than %d commits in a row: the test proves little", deepest)
	}
	cmd := w.console()
	defer func() { w.must(kill(cmd)) }()
	w.must(w.publish(threeKinds...))
	w.expect("APPLIED", "", threeKinds...)
	w.withdraw(threeKinds...)
	w.expect("REVERTED", "", threeKinds...)
	w.asBefore()
	w.servicesAsBefore()
}

// killAt publishes or withdraws, starts the agent and kills it after that many commits. It says whether there were so many: a pass that
// has nothing more to do commits no more.
//
// A pass is over when nothing was committed for idleTime.
func (w *world) killAt(step uint64, on bool) bool {
	w.t.Helper()
	journal := w.Path(state + `\journal.db`)
	base, err := transactions(journal)
	w.must(err)
	if on {
		w.must(w.publish(threeKinds...))
	} else {
		w.withdraw(threeKinds...)
	}
	cmd := w.console()
	defer func() { w.must(kill(cmd)) }()
	for idle, last := time.Now(), base; time.Since(idle) < patience.For(idleTime); {
		now, err := transactions(journal)
		w.must(err)
		if now >= base+step {
			return true
		}
		if now != last {
			idle, last = time.Now(), now
		}
		runtime.Gosched()
	}
	return false
}

// idleTime is long enough on an idle machine.
const idleTime = 8 * time.Second

func (w *world) uninstallReverts() {
	// Not through the MSI: Wine rolls nothing back.
	if out, err := w.ctl("uninstall", "--from-msi", "--revert-mitigations=yes"); err == nil || !strings.Contains(out, "neither 1 nor 0") {
		w.t.Errorf("neither 1 nor 0 was taken: %v %s", err, out)
	}
	_, err := w.Run(w.t.Context(), "sc", "start", "StopgapAgent")
	w.must(err)
	w.serviceIs("StopgapAgent", "RUNNING")
	w.connected()
	w.must(w.publish(catalogue...))
	w.expect("APPLIED", "", catalogue...)
	log, err := w.msiexec("/x", w.msi("STOPGAP_WINE_MSI_NEXT"), "REVERTMITIGATIONS=1")
	if err != nil {
		w.t.Fatalf("%v\n%s", err, tail([]byte(log)))
	}
	w.serviceIs("StopgapAgent", "")
	w.asBefore()
	w.servicesAsBefore()
}

// BenchmarkIdleAgent is what the service costs while nothing happens and the catalogue is applied, as the Linux kernel sees the Windows
// process. Budget: 40 MiB, 0.5 % of a core.
func BenchmarkIdleAgent(b *testing.B) {
	w := newWorld(b, 0)
	w.install()
	w.must(w.publish(catalogue...))
	w.expect("APPLIED", "", catalogue...)
	pid, floor := w.process("stopgap-agent.exe run --service"), w.process("service MSExchangeTransport")
	const idleFor = 70 * time.Second
	for b.Loop() {
		_, before, err := procs.Usage(pid)
		w.must(err)
		<-time.After(idleFor)
		rss, after, err := procs.Usage(pid)
		w.must(err)
		base, _, err := procs.Usage(floor)
		w.must(err)
		b.ReportMetric(rss/1024, "MiB")
		b.ReportMetric(base/1024, "MiB-of-a-service-that-does-nothing")
		b.ReportMetric(100*(after-before).Seconds()/idleFor.Seconds(), "%core")
	}
}

// process finds a Windows process by the end of its command line.
func (w *world) process(commandLine string) int {
	w.t.Helper()
	pid := 0
	w.eventually(func() error {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range all {
			line, rerr := os.ReadFile(p)
			text := strings.Trim(strings.NewReplacer("\x00", " ", `"`, "").Replace(string(line)), " ")
			if rerr == nil && strings.HasSuffix(text, commandLine) {
				_, err = fmt.Sscanf(p, "/proc/%d/cmdline", &pid)
			}
		}
		if err == nil && pid == 0 {
			err = errors.New("no process " + commandLine)
		}
		return err
	})
	return pid
}

// TestUnitTestsPassUnderWine runs the tests of the rooms that have code for Windows, as Windows programs.
func TestUnitTestsPassUnderWine(t *testing.T) {
	p, err := New(t.Context(), filepath.Join(t.TempDir(), "pfx"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	overlay, err := mendRemoveAll(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-exec", "wine", "-timeout", patience.For(4*time.Minute).String(),
		"./agent/internal/host/...", "./agent/internal/localapi", "./agent/internal/settings", "./agent/internal/service", "./agent/internal/check",
		"./agent/internal/event", "./agent/internal/journal", "./agent/internal/policy", "./agent/internal/cli", "./shared/trust")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(p.env, "GOOS=windows", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if !strings.Contains(line, "no test files") {
			t.Log(line)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mendRemoveAll writes an overlay of Go's own source that knows Wine's answer to a request that it does not implement, without which
// t.TempDir can't clean up. The program that ships does without.
func mendRemoveAll(dir string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	from := filepath.Join(strings.TrimSpace(string(out)), "src", "internal", "syscall", "windows", "at_windows.go")
	src, err := os.ReadFile(from)
	if err != nil {
		return "", err
	}
	const was = "case STATUS_INVALID_INFO_CLASS,"
	mended := strings.Replace(string(src), was, was+" NTStatus(0xC0000002),", 1)
	if mended == string(src) {
		return "", fmt.Errorf("%s has no %q any more: look how os.RemoveAll works now", from, was)
	}
	to := filepath.Join(dir, "at_windows.go")
	if err := os.WriteFile(to, []byte(mended), 0o600); err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, []byte(fmt.Sprintf(`{"Replace":{%q:%q}}`, from, to)), 0o600)
}
