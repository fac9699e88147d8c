package e2e

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/soc"
	"github.com/stopgap-em/stopgap/shared/bundle"
)

// island is a server that reaches no controller and runs no service, and the SOC that sends it bundles.
type island struct {
	t             *testing.T
	soc           *soc.SOC
	dir, state    string
	pin           string
	before        map[string][]byte
	beforeService []byte
}

func newIsland(t *testing.T) *island {
	t.Helper()
	base := shortDir(t)
	i := &island{t: t, dir: filepath.Join(base, "server"), state: filepath.Join(base, "agent")}
	if err := lab.Make(i.dir, lab.Spec{Template: lab.Exchange2016CU19, Host: "EX01", Organisation: "Contoso"}); err != nil {
		t.Fatal(err)
	}
	var err error
	if i.before, err = lab.WebConfigs(i.dir); err != nil {
		t.Fatal(err)
	}
	online, err := soc.NewOnline()
	if err != nil {
		t.Fatal(err)
	}
	if i.soc, err = online.For(filepath.Join(base, "policy")); err != nil {
		t.Fatal(err)
	}
	if i.beforeService, err = os.ReadFile(filepath.Join(i.dir, "services.json")); err != nil {
		t.Fatal(err)
	}
	return i
}

// pack runs `stopgap bundle`.
func (i *island) pack() string {
	i.t.Helper()
	file := filepath.Join(i.t.TempDir(), "bundle.zip")
	out, err := exec.CommandContext(i.t.Context(), program(i.t, "stopgap"), "bundle", "--dir", i.soc.Path, "--out", file).CombinedOutput()
	m := regexp.MustCompile(`(?m)^pin ([0-9a-f]{64}-[0-9]+)$`).FindSubmatch(out)
	if err != nil || m == nil {
		i.t.Fatalf("bundle: %v: %s", err, out)
	}
	i.pin = string(m[1])
	return file
}

// ended waits until what was signed to end at t has.
func (i *island) ended(t time.Time) {
	i.t.Helper()
	patience.Eventually(i.t, soon, func() error {
		if left := time.Until(t.Add(time.Second)); left > 0 { // ends are whole seconds
			return fmt.Errorf("%s are left", left)
		}
		return nil
	})
}

func (i *island) run(args ...string) (string, error) {
	out, err := exec.CommandContext(i.t.Context(), program(i.t, "stopgap-agent"), append([]string{"--state", i.state}, args...)...).CombinedOutput()
	return string(out), err
}

// agent runs stopgap-agent; want is what it must print, fails that it must exit 1.
func (i *island) agent(fails bool, want string, args ...string) string {
	i.t.Helper()
	out, err := i.run(args...)
	if (err != nil) != fails || !strings.Contains(out, want) {
		i.t.Fatalf("stopgap-agent %s: %v; want %q in:\n%s", strings.Join(args, " "), err, want, out)
	}
	return out
}

func (i *island) apply(fails bool, want, file string, more ...string) string {
	i.t.Helper()
	return i.agent(fails, want, append([]string{"apply", "--bundle", file, "--host", "lab:" + i.dir}, more...)...)
}

// untouched checks every file against what it was at first, but for what is named.
func (i *island) untouched(but string) {
	i.t.Helper()
	now, err := lab.WebConfigs(i.dir)
	if err != nil {
		i.t.Fatal(err)
	}
	for p, data := range i.before {
		if bytes.Equal(now[p], data) == (but != "" && strings.Contains(strings.ToLower(p), but)) {
			i.t.Errorf("%s: changed is not what it should be (only %q may be)", p, but)
		}
	}
}

func TestABundleIsCarriedToAServerWithoutServiceOrController(t *testing.T) {
	t.Parallel()
	i := newIsland(t)
	if err := i.soc.Add(catalogue(t, "M1", "CVE-2021-26857")...); err != nil {
		t.Fatal(err)
	}
	first := i.pack()

	// Nothing is trusted before somebody says what.
	i.apply(true, "trusts no policy yet: give --pin", first)
	i.apply(true, "the bundle is of another policy", first, "--pin", strings.Repeat("0", 64)+"-1")
	i.apply(true, "is below 3", first, "--pin", i.pin[:65]+"3")
	i.apply(true, "a pin is 64 hexadecimal digits", first, "--pin", "x")
	i.agent(true, `host "" is not known`, "apply", "--bundle", first, "--host", "", "--pin", i.pin)
	i.untouched("")

	out := i.apply(false, "applied and read back", first, "--pin", i.pin)
	if strings.Count(out, " APPLIED ") != 2 {
		t.Errorf("got %s", out)
	}
	i.untouched("wwwroot")
	web, err := lab.Serve(i.dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = web.Close() }()
	for _, a := range lab.Exploit(t.Context(), web.URL()) {
		if a.Name == "CVE-2022-41040" && a.Through {
			t.Errorf("the exploit gets through: %s", a.Got)
		}
	}
	status := i.agent(false, "source: bundle", "status")
	for _, want := range []string{"NOT RUNNING", "version 2,", "CVE-2021-26857"} {
		if !strings.Contains(status, want) {
			t.Errorf("%q is not in the status:\n%s", want, status)
		}
	}

	// A bundle that somebody changed, one that ended, and one that is older than what was accepted change nothing.
	i.apply(true, "is refused and nothing on the server was changed: policy: document mitigations/M1/1.yaml", i.tampered(first))
	if err := i.soc.Refresh(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	short := i.pack()
	i.ended(time.Now().Add(2 * time.Second))
	i.apply(true, "expired on", short)
	i.untouched("wwwroot")
	i.agent(false, " APPLIED ", "status")

	// One that ends after it was applied still repairs, and says that it ended.
	if err := i.soc.Refresh(patience.For(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(patience.For(10 * time.Second))
	held := i.pack()
	i.apply(false, "applied and read back", held)
	for p, data := range i.before {
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i.ended(end)
	if out := i.apply(false, "put back", held); !strings.Contains(out, "policy-expired") {
		t.Errorf("its end is not told:\n%s", out)
	}
	i.untouched("wwwroot")
	if err := i.soc.Refresh(time.Hour); err != nil {
		t.Fatal(err)
	}
	i.apply(false, "put back", i.pack())
	i.apply(true, "an old policy", first)

	// The administrator's no, with agent and controller down: byte for byte, and it stays no.
	i.agent(false, "byte-identical to the file before", "revert", "--id", "M1", "--host", "lab:"+i.dir, "--block", "--reason", "a partner's client")
	i.untouched("")
	if now, err := os.ReadFile(filepath.Join(i.dir, "services.json")); err != nil || bytes.Equal(now, i.beforeService) {
		t.Errorf("the other mitigation went too (%v)", err)
	}
	i.agent(true, "nothing of it that is ours is in force", "revert", "--id", "M1", "--host", "lab:"+i.dir)
	i.agent(false, "NOPE is blocked on this server; nothing of it", "revert", "--id", "NOPE", "--host", "lab:"+i.dir, "--block")
	i.agent(true, `host "" is not known`, "panic-revert", "--host", "")
	i.apply(false, "BLOCKED", i.pack())
	i.untouched("")
	i.agent(false, "no agent runs", "unblock", "M1")
	i.apply(false, "applied and read back", i.pack())
	i.untouched("wwwroot")

	// Frozen, with no agent to ask.
	i.agent(false, "is frozen; in force: CVE-2021-26857@1, M1@1", "disable")
	i.apply(true, "DISABLED", i.pack())
	i.untouched("wwwroot")
	i.agent(false, "works again", "enable")

	// What a newer bundle lists no more goes.
	for _, id := range []string{"M1", "CVE-2021-26857"} {
		if err := i.soc.Remove(id, 1); err != nil {
			t.Fatal(err)
		}
	}
	if out := i.apply(false, "withdrawn from policy", i.pack()); strings.Count(out, " REVERTED ") != 2 {
		t.Errorf("got %s", out)
	}
	i.untouched("")
	if now, err := os.ReadFile(filepath.Join(i.dir, "services.json")); err != nil || !bytes.Equal(now, i.beforeService) {
		t.Errorf("services are not what they were: %v", err)
	}
}

// tampered gives a bundle with other words in a document.
func (i *island) tampered(file string) string {
	i.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		i.t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		i.t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			i.t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			i.t.Fatal(err)
		}
		if strings.HasSuffix(f.Name, "M1/1.yaml") {
			files[f.Name] = bytes.Replace(files[f.Name], []byte("AbortRequest"), []byte("Rewrite\" url=\"/x"), 1)
		}
	}
	var b bytes.Buffer
	if err := bundle.Pack(&b, files); err != nil {
		i.t.Fatal(err)
	}
	out := filepath.Join(i.t.TempDir(), "tampered.zip")
	if err := os.WriteFile(out, b.Bytes(), 0o600); err != nil {
		i.t.Fatal(err)
	}
	return out
}

func TestOneShotUseWorksAsWritten(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "docs", "one-shot.md"))
	if err != nil {
		t.Fatal(err)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	i := newIsland(t)
	if err := i.soc.Add(catalogue(t, "M1", "M2", "CVE-2021-26857")...); err != nil {
		t.Fatal(err)
	}
	i.pack() // for the pin
	script := "set -euo pipefail\n"
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(doc), -1)
	for _, b := range blocks {
		script += b[1]
	}
	if len(blocks) != 4 {
		t.Fatalf("%d blocks in docs/one-shot.md", len(blocks))
	}
	lab := filepath.Join(filepath.Dir(i.dir), "lab")
	cmd := exec.CommandContext(t.Context(), bash, "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program(t, "stopgap"))+":"+os.Getenv("PATH"), "POLICY="+i.soc.Path, "PIN="+i.pin,
		"BUNDLE="+filepath.Join(t.TempDir(), "b.zip"), "STATE="+i.state, "SERVER=lab:"+i.dir, "LAB="+lab,
		"WEBCONFIG="+filepath.Join(i.dir, "C", "Program Files", "Microsoft", "Exchange Server", "V15", "FrontEnd", "HttpProxy", "owa", "web.config"))
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"source: bundle", "M1 is REVERTED", "M1 is not blocked any more", "taken off: M2@1/", "the agent works again; nothing is in force", "M2 "} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("%v; want %q in:\n%s", err, want, out)
		}
	}
	i.untouched("")
	owa, err := os.ReadFile(filepath.Join(lab, "C", "Program Files", "Microsoft", "Exchange Server", "V15", "FrontEnd", "HttpProxy", "owa", "web.config"))
	if err != nil || !strings.Contains(string(owa), "Stopgap M2.1") {
		t.Errorf("M2 is not on the lab server: %v", err)
	}
}
