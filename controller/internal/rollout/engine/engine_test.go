package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 7, 19, 3, 0, 0, 0, time.UTC)

func genStrategy(t *rapid.T) Strategy {
	limit := rapid.Custom(func(t *rapid.T) Limit {
		return Limit{Count: rapid.IntRange(-1, 3).Draw(t, "count"), Percent: rapid.SampledFrom([]float64{0, 10, 50}).Draw(t, "percent")}
	})
	wave := rapid.Custom(func(t *rapid.T) Wave {
		w := Wave{MaxInFlight: rapid.IntRange(0, 4).Draw(t, "in flight"), Approval: rapid.Bool().Draw(t, "approval"), Prove: rapid.Bool().Draw(t, "prove"),
			MinHealthyTime: Duration(rapid.IntRange(0, 3).Draw(t, "healthy")) * Duration(time.Minute), HealthyDeadline: Duration(5 * time.Minute), ProgressDeadline: Duration(20 * time.Minute)}
		switch rapid.IntRange(0, 3).Draw(t, "share") {
		case 0:
			w.Count = rapid.IntRange(1, 3).Draw(t, "n")
		case 1:
			w.Percent = 30
		case 2:
			w.Selector = map[string]string{"ring": "t*"}
		}
		if rapid.Bool().Draw(t, "limited") {
			l := limit.Draw(t, "limit")
			w.MaxFailures = &l
		}
		return w
	})
	s := Strategy{Name: "x", OnHalt: rapid.SampledFrom([]string{"hold", "revert"}).Draw(t, "on halt"), MaxFailures: limit.Draw(t, "all"),
		Waves: rapid.SliceOfN(wave, 1, 4).Draw(t, "waves"), Stagger: Duration(rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "stagger"))}
	if rapid.Bool().Draw(t, "window") {
		s.Windows = []Window{{From: "22:00", To: "04:00"}}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	return s
}

// fleet is servers that do as they like.
type fleet struct{ all []Seen }

func newFleet(t *rapid.T) *fleet {
	f := &fleet{}
	for i := range rapid.IntRange(0, 12).Draw(t, "servers") {
		f.all = append(f.all, Seen{ID: fmt.Sprintf("a%02d", i), Name: fmt.Sprintf("EX%02d", i), Connected: rapid.Bool().Draw(t, "connected"),
			Attrs: map[string]string{"ring": []string{"test", "prod"}[i%2], "dag": []string{"", "D1", "D2"}[i%3]}})
	}
	return f
}

// live lets some servers do something; those that were released mostly what is asked of them.
func (f *fleet) live(t *rapid.T, r *Rollout, at time.Time) {
	for i := range f.all {
		x := &f.all[i]
		switch rapid.IntRange(0, 12).Draw(t, x.ID) {
		case 0:
			x.Connected = !x.Connected
		case 1:
			x.Report = Report{State: HasFailed, Reason: "broke", At: at}
		case 2:
			x.Report = Report{State: HasRefused, Reason: "no", At: at}
		case 3:
			x.Report = Report{State: NotForIt, At: at}
			x.Held = rapid.SampledFrom([]string{"", "", "switched off"}).Draw(t, "held")
		case 9:
			if x.Connected && r.Gives(x.ID) == Target {
				x.Report = Report{State: HasPartly, Has: true, Reason: "/x gets through", At: at}
			}
		case 4, 5, 6, 7, 8:
			switch g := r.Gives(x.ID); {
			case !x.Connected:
			case g == Target:
				x.Report = Report{State: OnTarget, Has: true, Proven: rapid.Bool().Draw(t, "proven"), At: at}
			case g == Back:
				x.Report = Report{At: at}
			}
		}
	}
}

func clone(t *rapid.T, r *Rollout) *Rollout {
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	out := &Rollout{}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWhateverHappensTheBoundsHold plays any interleaving of servers, verbs, faults, restarts and clocks.
func TestWhateverHappensTheBoundsHold(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		strategy := genStrategy(t)
		f := newFleet(t)
		at := t0
		r := New("r1", []Item{{"M1", 2}}, strategy, "alice", at)
		twin := clone(t, r) // replays the event log through the store's form
		verbs := []Verb{Start, Pause, Resume, Approve, Halt, Revert, FinishNow, Supersede}
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			at = at.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 20 * time.Second, time.Minute, 3 * time.Hour, -10 * time.Minute}).Draw(t, "passes"))
			e := Event{At: at, By: "alice", Seen: slices.Clone(f.all)}
			if rapid.IntRange(0, 5).Draw(t, "verb?") == 0 || r.Phase == Planned {
				e.Verb = rapid.SampledFrom(verbs).Draw(t, "verb")
				if rapid.Bool().Draw(t, "reason") {
					e.Reason = "because"
				}
			}
			before, phase, wave := clone(t, r), r.Phase, r.Wave
			given := map[string]Give{}
			for _, x := range f.all {
				given[x.ID] = r.Gives(x.ID)
			}
			out, err := r.Step(e)
			tout, terr := twin.Step(e)
			if (err == nil) != (terr == nil) || !reflect.DeepEqual(out, tout) {
				t.Fatalf("the replay decided otherwise: %v %v, %v %v", out, err, tout, terr)
			}
			if twin = clone(t, twin); !reflect.DeepEqual(clone(t, r), twin) {
				t.Fatalf("the replay came to another state")
			}
			if err != nil {
				if !errors.Is(err, ErrVerb) || !reflect.DeepEqual(clone(t, r), before) {
					t.Fatalf("a refused verb changed something, or: %v", err)
				}
				continue
			}
			released := 0
			for _, d := range out {
				if d.Agent != "" {
					released++
				}
			}
			if w := strategy.Waves[r.Wave]; released > 0 && !r.Open && w.MaxInFlight > 0 && r.InFlight() > w.MaxInFlight {
				t.Fatalf("%d in flight, at most %d", r.InFlight(), w.MaxInFlight)
			}
			stands := phase == Halted || phase == Paused || phase == WaitingApproval || phase == Reverting || phase.Ended()
			if stands && released > 0 && e.Verb != Approve && e.Verb != Resume && e.Verb != FinishNow {
				t.Fatalf("released %d in %s", released, phase)
			}
			if (r.Phase == Halted || r.Phase == Reverting) && r.Open {
				t.Fatalf("open in %s", r.Phase)
			}
			for _, x := range f.all {
				if g := r.Gives(x.ID); (phase == Halted || phase == Reverting || phase == Reverted) && e.Verb == Look && g == Target && given[x.ID] != Target {
					t.Fatalf("%s got it in %s", x.ID, phase)
				}
				if given[x.ID] == Back && r.Gives(x.ID) == Target {
					t.Fatalf("%s was to take it off, and gets it again", x.ID)
				}
				if given[x.ID] == Target && r.Gives(x.ID) == Nothing && x.Held == "" {
					t.Fatalf("%s had it and is forgotten", x.ID)
				}
			}
			ended := r.Wave > wave || r.Phase != phase && (r.Phase == Completed || r.Phase == WaitingApproval)
			if ended && e.Verb == Look && !r.Forced {
				for id, m := range r.Members {
					if m.Wave == wave && m.Counted && m.State == Partial {
						t.Fatalf("wave %d ended, and %s is PARTIAL", wave, id)
					}
				}
			}
			if r.Wave < wave {
				t.Fatalf("went back from wave %d to %d", wave, r.Wave)
			}
			if r.Reason == "" {
				t.Fatalf("%s without a reason", r.Phase)
			}
			f.live(t, r, at)
		}
		// From here on everybody behaves: it ends, or waits on something that it names.
		if r.Phase == Planned {
			return
		}
		for range 4000 {
			at = at.Add(25 * time.Second)
			for i := range f.all {
				x := &f.all[i]
				x.Connected, x.Held = true, ""
				switch r.Gives(x.ID) {
				case Target:
					x.Report = Report{State: OnTarget, Has: true, Proven: true, At: t0}
				case Back, Nothing:
					x.Report = Report{}
				}
			}
			if _, err := r.Step(Event{At: at, Seen: f.all}); err != nil {
				t.Fatal(err)
			}
		}
		switch r.Phase {
		case Completed, Reverted, Superseded:
		case Halted, Paused, WaitingApproval:
			if r.Reason == "" {
				t.Fatal("stands without a reason")
			}
		default:
			raw, _ := json.Marshal(r)
			t.Fatalf("still %s after everybody behaved for a day: %s\n%s", r.Phase, r.Reason, raw)
		}
	})
}

// TestPartialAloneNeverHaltsNorCompletes has a fleet in which every server does as it is asked, or says PARTIAL: no strategy and no
// deadline makes a halt or a success of that.
func TestPartialAloneNeverHaltsNorCompletes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		strategy := genStrategy(t)
		f := newFleet(t)
		odd := map[string]bool{}
		for i := range f.all {
			f.all[i].Connected = true
			odd[f.all[i].ID] = rapid.Bool().Draw(t, f.all[i].ID+" is odd")
		}
		at := t0
		r := New("r1", []Item{{"M1", 2}}, strategy, "alice", at)
		for verb := Start; at.Before(t0.Add(2 * maxDeadline(strategy))); verb = Look {
			if r.Phase == WaitingApproval {
				verb = Approve
			}
			at = at.Add(25 * time.Second)
			if _, err := r.Step(Event{At: at, Verb: verb, By: "alice", Seen: f.all}); err != nil {
				t.Fatal(err)
			}
			for i := range f.all {
				x := &f.all[i]
				switch {
				case r.Gives(x.ID) != Target || x.Report.State != None:
				case odd[x.ID]:
					x.Report = Report{State: HasPartly, Has: true, Reason: "/x gets through", At: at}
				default:
					x.Report = Report{State: OnTarget, Has: true, Proven: true, At: at}
				}
			}
			switch r.Phase {
			case Running, Baking, WaitingApproval, Completed:
			default:
				t.Fatalf("%s: %s", r.Phase, r.Reason)
			}
		}
		partial := 0
		for id, m := range r.Members {
			if odd[id] && m.State == OK {
				t.Fatalf("%s is PARTIAL and counts as done", id)
			}
			if m.State == Partial && m.Counted && m.Wave == r.Wave {
				partial++
			}
		}
		if partial > 0 && (r.Phase != Running || !strings.Contains(r.Reason, fmt.Sprintf("%d PARTIAL: EX", partial))) {
			t.Fatalf("%d are PARTIAL, and it is %s: %s", partial, r.Phase, r.Reason)
		}
	})
}

// maxDeadline is when whatever could halt a rollout has passed, for a fleet of newFleet.
func maxDeadline(s Strategy) time.Duration {
	sum := time.Duration(0)
	for _, w := range s.Waves {
		sum += w.progressDeadline() + w.healthyDeadline()
	}
	return sum
}

func TestWavesAreStableAndSpreadGroups(t *testing.T) {
	t.Parallel()
	var seen []Seen
	for i := range 100 {
		seen = append(seen, Seen{ID: fmt.Sprintf("id%03d", i), Connected: true, Attrs: map[string]string{"organisation": "Contoso", "dag": fmt.Sprintf("DAG%d", i/4)}})
	}
	s := Strategy{Name: "x", OnHalt: "hold", Waves: []Wave{{Count: 1}, {Percent: 25}, {Percent: 25}, {}}}
	plan := Plan("r1", s, seen)
	shuffled := slices.Clone(seen)
	slices.Reverse(shuffled)
	if !maps.Equal(plan, Plan("r1", s, shuffled)) {
		t.Error("the waves depend on the order in which servers are listed")
	}
	if maps.Equal(plan, Plan("r2", s, seen)) {
		t.Error("every rollout begins with the same servers")
	}
	sizes := map[int]int{}
	perGroup := map[string]map[int]int{}
	for _, x := range seen {
		sizes[plan[x.ID]]++
		g := x.Attrs["dag"]
		if perGroup[g] == nil {
			perGroup[g] = map[int]int{}
		}
		perGroup[g][plan[x.ID]]++
	}
	if !maps.Equal(sizes, map[int]int{0: 1, 1: 25, 2: 25, 3: 49}) {
		t.Errorf("sizes %v", sizes)
	}
	for g, waves := range perGroup {
		for w, n := range waves {
			if n > 2 {
				t.Errorf("%d of the 4 members of %s are in wave %d", n, g, w+1)
			}
		}
	}
	// One that leaves moves nobody of the others to an earlier wave by more than its own place.
	less := Plan("r1", s, seen[1:])
	moved := 0
	for id, w := range less {
		if w != plan[id] {
			moved++
		}
	}
	if moved > 6 {
		t.Errorf("%d servers changed their wave because one left", moved)
	}
}

func TestAStrategyIsRefusedByPlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{`:                      "unexpected EOF",
		`{"name":"x","wave":[]}`: "unknown field",
		`{"name":"X","waves":[{}],"onHalt":"hold"}`:                                                                   `name "X"`,
		`{"name":"x","waves":[],"onHalt":"hold"}`:                                                                     "waves: 0",
		`{"name":"x","waves":[{}],"onHalt":"stop"}`:                                                                   "neither hold nor revert",
		`{"name":"x","waves":[{"percent":101}],"onHalt":"hold"}`:                                                      "waves[0]: a percent",
		`{"name":"x","waves":[{},{"percent":5,"count":5}],"onHalt":"hold"}`:                                           "waves[1]: a percent",
		`{"name":"x","waves":[{"selector":{"a":"["}}],"onHalt":"hold"}`:                                               "waves[0].selector a",
		`{"name":"x","waves":[{"minHealthyTime":"20m"}],"onHalt":"hold"}`:                                             "not below healthyDeadline",
		`{"name":"x","waves":[{"minHealthyTime":"-1m"}],"onHalt":"hold"}`:                                             "not between",
		`{"name":"x","waves":[{}],"onHalt":"hold","windows":[{"from":"25:00","to":"1:00"}]}`:                          "windows[0]",
		`{"name":"x","waves":[{}],"onHalt":"hold","windows":[{"days":["Someday"],"from":"22:00","to":"04:00"}]}`:      `day "Someday"`,
		`{"name":"x","waves":[{"minHealthyTime":"soon"}],"onHalt":"hold"}`:                                            "soon",
		`{"name":"x","waves":[{"maxFailures":{"count":-2}}],"onHalt":"hold"}`:                                         "waves[0].maxFailures",
		`{"name":"x","waves":[{}],"onHalt":"hold"} {}`:                                                                "something follows",
		`{"name":"x","waves":[{"maxInFlight":-1}],"onHalt":"hold","maxFailures":{"percent":200},"silence":"100000h"}`: "silence, stagger",
	} {
		if _, err := ParseStrategy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, s := range BuiltIn() {
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseStrategy(raw); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

func TestAWindowMayGoOverMidnight(t *testing.T) {
	t.Parallel()
	w := Window{Days: []string{"Sat"}, From: "22:00", To: "04:00"}
	for text, want := range map[string]bool{
		"2026-11-28T21:59:00Z": false, "2026-11-28T22:00:00Z": true, "2026-11-29T03:59:00Z": true, "2026-11-29T04:00:00Z": false,
		"2026-11-28T03:00:00Z": false, "2026-11-29T23:00:00Z": false, "2026-11-28T23:30:00+01:00": true,
	} {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		if w.open(at) != want {
			t.Errorf("%s (%s): want %t", text, at.Format("Mon"), want)
		}
	}
}

func FuzzParseStrategy(f *testing.F) {
	for _, s := range BuiltIn() {
		raw, _ := json.Marshal(s)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStrategy(data)
		if err != nil {
			return
		}
		r := New("r", []Item{{"M1", 1}}, s, "x", t0)
		seen := []Seen{{ID: "a", Connected: true}, {ID: "b"}}
		if _, err := r.Step(Event{At: t0, Verb: Start, Seen: seen}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Step(Event{At: t0.Add(time.Minute), Seen: seen}); err != nil || r.Reason == "" {
			t.Fatalf("%v %q", err, r.Reason)
		}
	})
}
