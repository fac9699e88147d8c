package rollout

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
)

// TestScenarios plays testdata/*.scenario. Each line is a command:
//
//	servers EX 1 10 [KEY=VALUE...]     servers EX1 to EX10, with labels (dag and build are facts)
//	strategy JSON | strategy NAME      store one, and release what is published by it
//	behave NAME... WORD                good, partial, fails, forgets (PENDING), kills, refuses, unproven, deaf (connected, and says nothing)
//	recheck NAME...                    they look at themselves again, with no new assignment
//	online|offline NAME...             connect, disconnect
//	publish REF...                     put revisions into policy
//	run DURATION                       let time pass, a look each second; after half an hour each ten seconds
//	clock DURATION                     the clock jumps
//	restart                            the controller ends and comes back
//	VERB [REASON]                      pause, resume, approve, halt, revert, finish-now, of the newest rollout
//	expect PHASE [TEXT]                phase of the newest rollout, and a text in its reason
//	on REF N                           the revision is applied on N servers
//	members N STATE                    N servers are in a state
//	refused VERB                       the verb does not fit
//
// A name may end in *, and * alone is every server. Time is synctest's.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.scenario")
	if err != nil || len(files) < 8 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".scenario"), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { play(t, f) })
		})
	}
}

func play(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w := newWorld(t)
	w.start()
	lines := bufio.NewScanner(f)
	expected := 0
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if word == "expect" || word == "on" {
			expected++
		}
		if err := w.command(word, strings.TrimSpace(rest)); err != nil {
			x := w.r.List()
			state := "no rollout"
			if len(x) > 0 {
				state = fmt.Sprintf("%s %s: %s", x[0].ID, x[0].Phase, x[0].Reason)
				for _, m := range x[0].Members {
					state += fmt.Sprintf("\n  %s wave %d %s %s", m.Name, m.Wave+1, m.State, m.Reason)
				}
			}
			t.Fatalf("%s:%d: %s: %v\n%s", file, n, line, err, state)
		}
	}
	if expected == 0 {
		t.Fatalf("%s expects nothing", file)
	}
}

func (w *world) named(patterns []string) ([]*server, error) {
	var out []*server
	for _, p := range patterns {
		before := len(out)
		for _, s := range w.servers {
			if ok, err := filepath.Match(p, s.Name); err != nil {
				return nil, err
			} else if ok {
				out = append(out, s)
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("no server %s", p)
		}
	}
	return out, nil
}

func (w *world) command(word, rest string) error {
	f := strings.Fields(rest)
	switch word {
	case "servers":
		from, err := strconv.Atoi(f[1])
		if err != nil {
			return err
		}
		to, err := strconv.Atoi(f[2])
		if err != nil {
			return err
		}
		labels := map[string]string{}
		for _, l := range f[3:] {
			k, v, _ := strings.Cut(l, "=")
			labels[k] = v
		}
		for i := from; i <= to; i++ {
			w.add(fmt.Sprintf("%s%d", f[0], i), labels)
		}
	case "strategy":
		name := rest
		if strings.HasPrefix(rest, "{") {
			name = w.strategy(rest)
		}
		return w.r.MakeDefault(w.t.Context(), name)
	case "behave":
		all, err := w.named(f[:len(f)-1])
		for _, s := range all {
			s.behaves = f[len(f)-1]
		}
		return err
	case "recheck":
		all, err := w.named(f)
		for _, s := range all {
			w.recheck(s)
		}
		return err
	case "online", "offline":
		all, err := w.named(f)
		for _, s := range all {
			s.Connected = word == "online"
		}
		return err
	case "publish":
		w.publish(f...)
	case "run":
		d, err := time.ParseDuration(rest)
		began := time.Now()
		for end := began.Add(d); time.Now().Before(end); {
			if time.Since(began) < 30*time.Minute {
				w.tick(time.Second)
			} else { // nights and weekends: most of the seconds of all scenarios
				w.tick(10 * time.Second)
			}
		}
		return err
	case "clock":
		d, err := time.ParseDuration(rest)
		w.offset += d
		return err
	case "restart":
		w.start()
	case "expect":
		x := w.newest()
		phase, text, _ := strings.Cut(rest, " ")
		if string(x.Phase) != phase || !strings.Contains(x.Reason, text) {
			return fmt.Errorf("it is %s: %s", x.Phase, x.Reason)
		}
	case "on":
		if got := w.count(f[0]); fmt.Sprint(got) != f[1] {
			return fmt.Errorf("it is on %d", got)
		}
	case "members":
		n := 0
		for _, m := range w.newest().Members {
			if string(m.State) == f[1] {
				n++
			}
		}
		if fmt.Sprint(n) != f[0] {
			return fmt.Errorf("%d are", n)
		}
	case "refused":
		if _, err := w.r.Act(w.t.Context(), w.newest().ID, engine.Verb(rest), "alice", "because"); err == nil {
			return fmt.Errorf("it was taken, and is %s", w.newest().Phase)
		}
	default:
		_, err := w.r.Act(w.t.Context(), w.newest().ID, engine.Verb(word), "alice", rest)
		return err
	}
	return nil
}
