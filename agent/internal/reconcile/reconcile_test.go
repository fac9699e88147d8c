package reconcile

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/host/lab"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/labdir"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

func TestMain(m *testing.M) {
	// The lab evaluates patterns; regexp2's clock runs on for a while after the last match with a timeout.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/dlclark/regexp2.runClock"))
}

// rig is a lab server with a journal and whatever policy a test wants.
type rig struct {
	t       testing.TB
	dir     string
	state   string
	driver  host.Driver
	journal *journal.Journal
	policy  *policy.Policy
	targets map[string][]byte
	version uint64
	expires time.Time
	permits stopgapv1.ControllerRevert
	prober  Prober
	r       *Reconciler
}

func newRig(t testing.TB, spec e2elab.Spec) *rig {
	t.Helper()
	g := &rig{t: t, dir: filepath.Join(t.TempDir(), "server"), state: filepath.Join(t.TempDir(), "state"), targets: map[string][]byte{}}
	if spec.Organisation == "" {
		spec.Organisation = "Contoso"
	}
	if err := e2elab.Make(g.dir, spec); err != nil {
		t.Fatal(err)
	}
	d, err := lab.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	g.driver = d
	g.open(nil, nil)
	t.Cleanup(func() { _ = g.journal.Close() })
	g.policy = policy.Parse(policy.Held{})
	return g
}

// open opens the journal and makes a reconciler, optionally around wrapped parts.
func (g *rig) open(wrapJ func(Journal) Journal, wrapD func(host.Driver) host.Driver) {
	g.t.Helper()
	j, err := journal.Open(g.state, hclog.NewNullLogger())
	if err != nil {
		g.t.Fatal(err)
	}
	g.journal = j
	var jj Journal = j
	if wrapJ != nil {
		jj = wrapJ(j)
	}
	d := g.driver
	if wrapD != nil {
		d = wrapD(d)
	}
	g.r, err = New(Config{Prober: g.prober, Driver: d, Journal: jj, Policy: func() *policy.Policy { return g.policy }, Logger: hclog.NewNullLogger()})
	if err != nil {
		g.t.Fatal(err)
	}
}

// publish puts documents of the catalogue (by id) and literal ones into the policy and releases everything in it.
func (g *rig) publish(ids ...string) {
	g.t.Helper()
	files, err := mitigation.Catalogue()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, f := range files {
		if f.Name == mitigation.FixedBuildsName {
			g.targets[f.Name] = f.Content
		}
		for _, id := range ids {
			if f.Name == id+".yaml" {
				g.targets["mitigations/"+id+"/1.yaml"] = f.Content
			}
		}
	}
	g.release(false)
}

func (g *rig) release(organisationFixed bool) {
	g.t.Helper()
	g.version++
	held := policy.Held{}
	held.Versions.Targets, held.Documents, held.Expires = g.version, g.targets, g.expires
	table := &mitigation.PolicyTable{PolicyTable: &stopgapv1.PolicyTable{Permits: &stopgapv1.Permits{ControllerRevert: g.permits}}}
	for p := range g.targets {
		if id, rev, ok := tufpolicy.ParsePath(p); ok {
			n, _ := strconv.ParseUint(rev, 10, 32)
			table.Allow(id, uint32(n))
		}
	}
	g.targets[tufpolicy.PolicyName] = table.YAML()
	g.policy = policy.Parse(held)
	a := &stopgapv1.Assignment{PolicyVersion: g.version}
	for id, revs := range g.policy.Revisions {
		var newest uint32
		for r := range revs {
			newest = max(newest, r)
		}
		sum := revs[newest].SHA256
		a.Items = append(a.Items, &stopgapv1.AssignmentItem{Mitigation: id, Revision: newest, Sha256: sum[:], OrganisationFixed: organisationFixed})
	}
	if err := g.journal.PutAssignment(a); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) pass() {
	g.t.Helper()
	if err := g.r.Pass(context.Background()); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) outcome(id string) *stopgapv1.Outcome {
	g.t.Helper()
	all, err := g.journal.Outcomes()
	if err != nil {
		g.t.Fatal(err)
	}
	return all[id]
}

func (g *rig) expect(id string, state stopgapv1.OutcomeState, code string) {
	g.t.Helper()
	o := g.outcome(id)
	if o.GetState() != state || code != "" && o.GetCode() != code {
		g.t.Fatalf("%s: got %s (%s: %s), want %s (%s)", id, o.GetState(), o.GetCode(), o.GetReason(), state, code)
	}
}

// snapshot hashes every file of the lab server.
func (g *rig) snapshot() map[string][32]byte {
	g.t.Helper()
	out := map[string][32]byte{}
	err := filepath.WalkDir(g.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == labdir.FrontEndFile {
			return err
		}
		data, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, g.dir)] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

func (g *rig) same(before map[string][32]byte) {
	g.t.Helper()
	after := g.snapshot()
	for p, h := range before {
		if p == "/"+labdir.PoolsFile {
			continue
		}
		if after[p] != h {
			data, _ := os.ReadFile(g.dir + p)
			g.t.Errorf("%s is not as before:\n%s", p, data)
		}
	}
	for p := range after {
		if _, ok := before[p]; !ok && p != "/"+labdir.PoolsFile {
			g.t.Errorf("%s was not there before", p)
		}
	}
	if pools, err := labdir.Dir(g.dir).Pools(); err != nil || len(pools) > 0 {
		g.t.Errorf("stopped pools: %v %v", pools, err)
	}
}

var catalogueIDs = []string{"CVE-2021-26855", "CVE-2021-26857", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2", "PING1"}

const (
	applied       = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED
	reverted      = stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED
	failed        = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED
	blocked       = stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED
	conflict      = stopgapv1.OutcomeState_OUTCOME_STATE_CONFLICT
	pending       = stopgapv1.OutcomeState_OUTCOME_STATE_PENDING
	disabled      = stopgapv1.OutcomeState_OUTCOME_STATE_DISABLED
	notApplicable = stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE
)

func TestTheWholeCatalogueIsAppliedReadBackAndTakenOffByteForByte(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	before := g.snapshot()
	g.publish(catalogueIDs...)
	g.pass()
	for _, id := range catalogueIDs {
		g.expect(id, applied, "")
		if len(g.outcome(id).GetEvidence()) == 0 {
			t.Errorf("%s: no evidence", id)
		}
	}
	web, err := e2elab.Serve(g.dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = web.Close() }()
	for _, a := range e2elab.Exploit(t.Context(), web.URL()) {
		if a.Through {
			t.Errorf("exploit %s still gets through: %s", a.Name, a.Got)
		}
	}
	for _, a := range e2elab.Work(t.Context(), web.URL()) {
		if !a.Through {
			t.Errorf("%s does not work: %s", a.Name, a.Got)
		}
	}
	services, _ := labdir.Dir(g.dir).Services()
	for _, n := range []string{"MSExchangeHM", "MSExchangeHMRecovery", "MSExchangeUM", "MSExchangeUMCR"} {
		if services[n].State != labdir.Stopped || services[n].StartType != labdir.StartDisabled {
			t.Errorf("service %s is %+v", n, services[n])
		}
	}
	undo, err := os.ReadFile(filepath.Join(g.state, journal.UndoFile))
	if err != nil || !strings.Contains(string(undo), "Stopgap M1.1 PowerShell - inbound") || !strings.Contains(string(undo), "sc.exe config MSExchangeUM start= auto") {
		t.Errorf("UNDO.txt: %v\n%s", err, undo)
	}

	g.targets = map[string][]byte{mitigation.FixedBuildsName: g.targets[mitigation.FixedBuildsName]}
	g.release(false)
	g.pass()
	for _, id := range catalogueIDs[:6] {
		g.expect(id, reverted, "withdrawn")
	}
	g.same(before)
	if cs, _ := g.journal.Changes(); len(cs) != 0 {
		t.Errorf("left in the journal: %v", cs)
	}
}

func TestOnePassWritesEachFileOnce(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	writes := map[string]int{}
	_ = g.journal.Close()
	g.open(nil, func(d host.Driver) host.Driver { return &countingDriver{Driver: d, writes: writes} })
	g.publish(catalogueIDs...)
	g.pass()
	g.pass()
	for dir, n := range writes {
		if n != 1 {
			t.Errorf("%s was written %d times", dir, n)
		}
	}
	if len(writes) != 2 {
		t.Errorf("wrote %v, want wwwroot and owa", writes)
	}
}

type countingDriver struct {
	host.Driver
	writes map[string]int
}

func (d *countingDriver) ReplaceConfig(ctx context.Context, dir, file string, old, data []byte) error {
	d.writes[dir]++
	return d.Driver.ReplaceConfig(ctx, dir, file, old, data)
}

func TestDriftIsRepairedCountedAndGivenUpWhenSomebodyFightsUs(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	wwwroot := filepath.Join(g.dir, "C", "inetpub", "wwwroot", "web.config")
	ours, _ := os.ReadFile(wwwroot)
	undoIt := func() {
		if err := os.WriteFile(wwwroot, []byte(strings.Replace(string(ours), "AbortRequest", "None", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint32(1); i <= maxRepairs; i++ {
		undoIt()
		g.pass()
		g.expect("M1", applied, "drift-repaired")
		if n := g.outcome("M1").GetDriftRepairs(); n != i {
			t.Fatalf("repair %d is counted as %d", i, n)
		}
		if now, _ := os.ReadFile(wwwroot); string(now) != string(ours) {
			t.Fatalf("repaired to other bytes:\n%s", now)
		}
	}
	undoIt()
	g.pass()
	g.expect("M1", conflict, "repair-limit")
	g.pass()
	if now, _ := os.ReadFile(wwwroot); string(now) == string(ours) {
		t.Fatal("went on fighting")
	}
	// Withdrawing it still takes ours out, in whatever form.
	delete(g.targets, "mitigations/M1/1.yaml")
	g.r.retry = map[string]backoffState{}
	g.release(false)
	g.pass()
	g.expect("M1", reverted, "withdrawn")
	g.same(before)
}

func TestBlockFreezeAndServicing(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU19, Host: "EX01"})
	before := g.snapshot()
	g.publish("M1", "CVE-2021-27065")
	g.pass()
	if err := g.journal.SetBlock("M1", journal.Block{Since: time.Now(), Reason: "calendar"}); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("M1", blocked, "blocked")
	g.pass()
	g.expect("M1", blocked, "blocked")

	if err := g.journal.SetFrozen(true, time.Now()); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("CVE-2021-27065", disabled, "frozen")
	if err := g.journal.SetFrozen(false, time.Now()); err != nil {
		t.Fatal(err)
	}

	if err := labdir.Dir(g.dir).SetServicing(true); err != nil {
		t.Fatal(err)
	}
	frozen := g.snapshot()
	g.pass()
	g.expect("CVE-2021-27065", pending, "servicing")
	services, _ := labdir.Dir(g.dir).Services()
	if services["MSExchangeHM"].State != labdir.Running {
		t.Error("the health manager is held during servicing")
	}
	after := g.snapshot()
	for p, h := range frozen {
		if after[p] != h && p != "/"+labdir.ServicesFile {
			t.Errorf("%s was touched during servicing", p)
		}
	}
	if err := labdir.Dir(g.dir).SetServicing(false); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("CVE-2021-27065", applied, "applied")
	services, _ = labdir.Dir(g.dir).Services()
	if services["MSExchangeHM"].State != labdir.Stopped {
		t.Error("the health manager is not held after servicing")
	}
	if _, err := PanicRevert(t.Context(), g.driver, g.journal); err != nil {
		t.Fatal(err)
	}
	g.same(before)
}

func TestWhatIsInForceComesOffAlsoWhenTheConfigurationBecameSharedMeanwhile(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	g.expect("M1", applied, "applied")
	file := filepath.Join(g.dir, "C/Windows/System32/inetsrv/config/redirection.config")
	if err := os.WriteFile(file, []byte(`<configuration><configurationRedirection enabled="true" path="x"/></configuration>`), 0o600); err != nil {
		t.Fatal(err)
	}
	clear(g.targets)
	g.release(false)
	g.pass()
	g.expect("M1", reverted, "withdrawn")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	g.same(before)
}

func TestANewRevisionReplacesTheOldInOneWrite(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	r1 := g.targets["mitigations/M1/1.yaml"]
	r2 := strings.NewReplacer("revision: 1", "revision: 2", "M1.1", "M1.2", "(?=.*powershell)", "(?=.*powershell.*)").Replace(string(r1))
	g.targets["mitigations/M1/2.yaml"] = []byte(r2)
	g.release(false)
	// A failing write leaves the old one in place.
	writes := 0
	_ = g.journal.Close()
	g.open(nil, func(d host.Driver) host.Driver { return &brokenDriver{Driver: d, fail: &writes} })
	g.pass()
	g.expect("M1", failed, "write-failed")
	data, _ := os.ReadFile(filepath.Join(g.dir, "C", "inetpub", "wwwroot", "web.config"))
	if !strings.Contains(string(data), "Stopgap M1.1") || strings.Contains(string(data), "Stopgap M1.2") {
		t.Fatalf("after a failed swap:\n%s", data)
	}
	_ = g.journal.Close()
	counts := map[string]int{}
	g.open(nil, func(d host.Driver) host.Driver { return &countingDriver{Driver: d, writes: counts} })
	g.pass()
	g.expect("M1", applied, "swapped")
	data, _ = os.ReadFile(filepath.Join(g.dir, "C", "inetpub", "wwwroot", "web.config"))
	if strings.Contains(string(data), "Stopgap M1.1") || !strings.Contains(string(data), "Stopgap M1.2") {
		t.Fatalf("after the swap:\n%s", data)
	}
	if len(counts) != 1 || counts[`%SystemDrive%\inetpub\wwwroot`] != 1 {
		t.Errorf("writes: %v", counts)
	}
	// And back.
	delete(g.targets, "mitigations/M1/2.yaml")
	g.release(false)
	g.pass()
	g.expect("M1", applied, "swapped")
	delete(g.targets, "mitigations/M1/1.yaml")
	g.release(false)
	g.pass()
	g.same(before)
}

type brokenDriver struct {
	host.Driver
	fail *int
}

func (d *brokenDriver) ReplaceConfig(context.Context, string, string, []byte, []byte) error {
	*d.fail++
	return errors.New("disk is full")
}

func TestAServerThatCannotBeChangedIsLeftUntouchedAndSaysWhy(t *testing.T) {
	t.Parallel()
	owa := `C/Program Files/Microsoft/Exchange Server/V15/FrontEnd/HttpProxy/owa/web.config`
	for name, c := range map[string]struct {
		break_ func(dir string) error
		code   string
		in     string // what the reason must name
	}{
		"malformed": {func(d string) error {
			return os.WriteFile(filepath.Join(d, owa), []byte("<configuration>\n<a></b>\n</configuration>"), 0o600)
		}, "config-malformed", "line 2, column 4"},
		"missing":   {func(d string) error { return os.Remove(filepath.Join(d, owa)) }, "config-missing", "owa/web.config"},
		"read-only": {func(d string) error { return os.Chmod(filepath.Join(d, owa), 0o400) }, "read-only", "read-only"},
		"locked": {func(d string) error {
			p := filepath.Join(d, "C/Windows/System32/inetsrv/config/applicationHost.config")
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			lock := `<location path="Default Web Site" overrideMode="Deny"><system.webServer><rewrite><outboundRules /></rewrite></system.webServer></location></configuration>`
			return os.WriteFile(p, []byte(strings.Replace(string(data), "</configuration>", lock, 1)), 0o600)
		}, "config-locked", `overrideMode="Deny"`},
		"name taken where an attack goes": {func(d string) error {
			dir := filepath.Join(d, filepath.Dir(owa), "auth")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			rule := `<configuration><system.webServer><rewrite><rules><rule name="Stopgap CVE-2021-26855.1 X-BEResource Abort - inbound">` +
				`<match url="." /></rule></rules></rewrite></system.webServer></configuration>`
			return os.WriteFile(filepath.Join(dir, "web.config"), []byte(rule), 0o600)
		}, "config-duplicate", "/owa/auth/x.js would answer 500.19"},
		"our name taken": {func(d string) error {
			p := filepath.Join(d, owa)
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rule := `<system.webServer><rewrite><outboundRules><rule name="Stopgap M2.1 OWA CSP - outbound"><match serverVariable="RESPONSE_X" pattern="." /></rule></outboundRules></rewrite></system.webServer></configuration>`
			return os.WriteFile(p, []byte(strings.Replace(string(data), "</configuration>", rule, 1)), 0o600)
		}, "name-taken", "not ours"},
		"module not loaded": {func(d string) error {
			p := filepath.Join(d, "C/Windows/System32/inetsrv/config/applicationHost.config")
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, []byte(strings.ReplaceAll(string(data), `"RewriteModule"`, `"OtherModule"`)), 0o600)
		}, "config-locked", "RewriteModule is not in globalModules"},
		"shared configuration": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "C/Windows/System32/inetsrv/config/redirection.config"), []byte(
				"<configuration>\n  <configSections/>\n  <configurationRedirection enabled=\"true\" path=\"\\\\files\\iis\" userName=\"u\" password=\"secret\" />\n</configuration>"), 0o600)
		}, "config-shared", `redirection.config, line 3: from "\\\\files\\iis"`},
		"module missing": {func(d string) error {
			s, err := labdir.Dir(d).Server()
			s.URLRewrite = ""
			return errors.Join(err, labdir.Dir(d).WriteServer(s))
		}, "prerequisite-missing", "not installed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU15, Host: "EX01"})
			if err := c.break_(g.dir); err != nil {
				t.Fatal(err)
			}
			before := g.snapshot()
			id := "M2"
			if strings.Contains(name, "attack") {
				id = "CVE-2021-26855"
			}
			g.publish(id)
			g.pass()
			o := g.outcome(id)
			if o.GetCode() != c.code || !strings.Contains(o.GetReason(), c.in) {
				t.Fatalf("got %s: %s; want %s naming %q", o.GetCode(), o.GetReason(), c.code, c.in)
			}
			g.same(before)
		})
	}
}

func TestBySignsOfServicingNothingIsTouched(t *testing.T) {
	t.Parallel()
	web := func(start string) func(d labdir.Dir) error {
		return func(d labdir.Dir) error {
			return d.UpdateServices(func(m map[string]labdir.Service) error {
				s := m["W3SVC"]
				s.StartType = start
				m["W3SVC"] = s
				return nil
			})
		}
	}
	type sign struct{ begin, end func(d labdir.Dir) error }
	signs := map[string]sign{"W3SVC disabled": {web(labdir.StartDisabled), web(labdir.StartAutomatic)}}
	for _, s := range labdir.Signs {
		file := func(d labdir.Dir) string { return filepath.Join(string(d), labdir.ServicingFile+"."+s) }
		signs[s] = sign{
			func(d labdir.Dir) error { return os.WriteFile(file(d), nil, 0o600) },
			func(d labdir.Dir) error { return os.Remove(file(d)) },
		}
	}
	for name, s := range signs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
			before := g.snapshot()
			g.publish("M1")
			if err := s.begin(labdir.Dir(g.dir)); err != nil {
				t.Fatal(err)
			}
			g.pass()
			g.expect("M1", pending, "servicing")
			after := g.snapshot()
			for p, h := range before {
				if strings.HasSuffix(p, ".config") && after[p] != h {
					t.Errorf("%s was touched", p)
				}
			}
			if err := s.end(labdir.Dir(g.dir)); err != nil {
				t.Fatal(err)
			}
			g.pass()
			g.expect("M1", applied, "applied")
		})
	}
}

func TestOnAFixedServerSomebodyElsesRuleIsSaidAndLeft(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU15, Host: "EX01"})
	file := filepath.Join(g.dir, "C/inetpub/wwwroot/web.config")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rule := `<system.webServer><rewrite><rules><rule name="PowerShell - inbound" patternSyntax="ECMAScript"><match url=".*" /><conditions>` +
		`<add input="{UrlDecode:{REQUEST_URI}}" pattern="(?=.*autodiscover)(?=.*powershell)" ignoreCase="true" /></conditions><action type="AbortRequest" /></rule></rules></rewrite></system.webServer></configuration>`
	if err := os.WriteFile(file, []byte(strings.Replace(string(data), "</configuration>", rule, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	before := g.snapshot()
	g.publish("M1")
	g.release(true)
	g.pass()
	g.expect("M1", notApplicable, "fixed")
	told := ""
	for _, h := range g.r.Health() {
		if h.GetCode() == "foreign-rule-left" {
			told = h.GetText()
		}
	}
	if !strings.Contains(told, "wwwroot/web.config still has a rule that does the same") {
		t.Errorf("told: %q", told)
	}
	g.same(before)
}

func TestWhoIsFixedLosesItAndWhoMayStillServeANeighbourKeepsIt(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU15, Host: "EX01"})
	before := g.snapshot()
	g.publish("M2")
	g.pass()
	g.expect("M2", applied, "applied")
	if err := e2elab.InstallUpdate(g.dir, "15.2.1748.46", false, nil); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("M2", applied, "applied")
	g.release(true)
	g.pass()
	g.expect("M2", reverted, "fixed")
	g.pass()
	g.expect("M2", reverted, "fixed")
	delete(before, "/"+labdir.ServerFile)
	after := g.snapshot()
	for p, h := range before {
		if after[p] != h {
			data, _ := os.ReadFile(g.dir + p)
			t.Errorf("%s differs:\n%s", p, data)
		}
	}
	// A cumulative update that the table does not know is never guessed.
	if err := e2elab.InstallUpdate(g.dir, "15.2.9999.1", true, nil); err != nil {
		t.Fatal(err)
	}
	g.pass()
	g.expect("M2", pending, "unknown-build")
	found := false
	for _, h := range g.r.Health() {
		found = found || h.GetCode() == "unknown-build"
	}
	if !found {
		t.Error("no alarm for the unknown build")
	}
}
