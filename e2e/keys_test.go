package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/patience"
	"github.com/stopgap-em/stopgap/e2e/procs"
)

// systemctl starts and stops what docs/keys.md calls services, by pid.
const systemctl = `
set -euo pipefail
systemctl() {
  local pidfile=$RUN/$2.pid
  if [ "$1" = stop ]; then
    kill "$(cat "$pidfile")"; while kill -0 "$(cat "$pidfile")" 2>/dev/null; do sleep 0.05; done
    return
  fi
  case $2 in
    stopgap-controller) stopgap-controller --data "$DATA" run --listen "$HOST:$PORT" >>"$RUN/$2.log" 2>&1 & ;;
    stopgap-agent) stopgap-agent --state "$STATE" run --controller "$HOST:$PORT" --host "$SERVER" --retry-min 50ms --retry-max 200ms >>"$RUN/$2.log" 2>&1 & ;;
  esac
  echo $! >"$pidfile"
  if [ "$2" = stopgap-controller ]; then
    for _ in $(seq $((100 * PATIENCE))); do (: <"/dev/tcp/$HOST/$PORT") 2>/dev/null && return; sleep 0.05; done
    cat "$RUN/$2.log"; return 1
  fi
}
cleanup() { for f in "$RUN"/*.pid; do kill "$(cat "$f")" 2>/dev/null || true; done; }
trap cleanup EXIT
trap 'exit 1' TERM
`

func TestTheKeyCeremonyAndTheDrillsWorkAsWritten(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "docs", "keys.md"))
	if err != nil {
		t.Fatal(err)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	base := shortDir(t)
	server := filepath.Join(base, "server")
	if err := lab.Make(server, lab.Spec{Template: lab.Exchange2016CU23, Host: "EX01", Organisation: "Contoso"}); err != nil {
		t.Fatal(err)
	}
	addr, err := procs.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(addr, ":")
	script := systemctl
	blocks := regexp.MustCompile("(?ms)^## ([^\n]*)|^```sh\n(.*?)^```").FindAllStringSubmatch(string(doc), -1)
	n := 0
	section := ""
	for _, b := range blocks {
		if b[1] != "" {
			section = b[1]
			script += fmt.Sprintf("echo '## %s'\n", strings.ReplaceAll(section, "'", ""))
			continue
		}
		script += b[2]
		n++
		// After the enrolment its agent runs; after every section that publishes, M1 is where it should be.
		if strings.Contains(b[2], "enroll --controller") && !strings.Contains(b[2], "--again") {
			script += "systemctl start stopgap-agent\n"
		}
		if section != "The ceremony" {
			script += "wait_for_m1\n"
		}
	}
	if n < 12 {
		t.Fatalf("%d blocks in docs/keys.md", n)
	}
	script = strings.Replace(script, "trap cleanup EXIT\n", `trap cleanup EXIT
wait_for_m1() {
  for _ in $(seq $((800 * PATIENCE))); do
    want=$(sed -n 's/.*"version": \([0-9]*\).*/\1/p' "$(ls -v "$POLICY"/metadata/*.targets.json | tail -1)" | head -1)
    if stopgap agents show EX01 2>/dev/null | tee "$RUN/show" | grep -q "M1@1 .*APPLIED" && grep -q "policy version $want\$" "$RUN/show" && grep -q CONNECTED "$RUN/show"; then return; fi
    sleep 0.1
  done
  cat "$RUN/show" "$RUN/stopgap-agent.log"; return 1
}
`, 1)
	file := filepath.Join(base, "keys.sh")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience.For(5*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, bash, file)
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // its trap ends what it started
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program(t, "stopgap"))+":"+os.Getenv("PATH"), "STOPGAP_KEY_PASSPHRASE=a passphrase of a test",
		"HOST="+host, "PORT="+port, "SERVER=lab:"+server, "RUN="+base, "AGENT=EX01",
		fmt.Sprintf("PATIENCE=%.0f", math.Ceil(patience.Factor())))
	for _, name := range []string{"DATA", "KEYS", "POLICY", "STATE", "BACKUP", "TOKEN"} {
		cmd.Env = append(cmd.Env, name+"="+filepath.Join(base, strings.ToLower(name)))
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(base, "stopgap-controller.log"))
		t.Errorf("%v:\n%s\n%s", err, out, log[max(0, len(log)-4000):])
	}
	after, err := os.ReadFile(filepath.Join(server, "C", "inetpub", "wwwroot", "web.config"))
	if err == nil && !strings.Contains(string(after), "Stopgap M1.1") {
		err = errors.New("M1 is not in web.config")
	}
	if err != nil {
		t.Error(err)
	}
}
