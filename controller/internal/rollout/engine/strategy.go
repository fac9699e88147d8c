package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// Duration is a time.Duration that JSON writes as "5m".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

// Strategy says how a release reaches the fleet: wave after wave. The vocabulary is Nomad's, for operators who know it.
type Strategy struct {
	Name string `json:"name"`
	// About is one line for people.
	About string `json:"about,omitempty"`
	Waves []Wave `json:"waves"`
	// MaxFailures of all waves together; beyond it the rollout halts.
	MaxFailures Limit `json:"maxFailures"`
	// OnHalt is "hold" (who has it keeps it) or "revert" (within what signed policy permits).
	OnHalt string `json:"onHalt"`
	// Silence is after how long without a connection a server that has the release counts as failed. Default 2m.
	Silence Duration `json:"silence,omitempty"`
	// Stagger is the time between two servers of one database availability group, or of one label "site": a changed web.config
	// restarts the application. 0: none.
	Stagger Duration `json:"stagger,omitempty"`
	// Windows are when servers may be released; none: always.
	Windows []Window `json:"windows,omitempty"`
}

// Wave is one step. It takes servers from those that earlier waves left; the last takes all that are left, and who joins later.
type Wave struct {
	// Percent of all servers it is for, or Count of servers; both 0: everybody that Selector lets through.
	Percent float64 `json:"percent,omitempty"`
	Count   int     `json:"count,omitempty"`
	// Selector is labels and facts (build, role, dag, organisation, name) with values that may have * and ?.
	Selector map[string]string `json:"selector,omitempty"`
	// MaxInFlight bounds the servers released and not settled; 0: no bound.
	MaxInFlight int `json:"maxInFlight,omitempty"`
	// MinHealthyTime is how long a server must have it, connected, before it counts.
	MinHealthyTime Duration `json:"minHealthyTime,omitempty"`
	// HealthyDeadline is by when after its release a server must be there, or it has failed. Default 10m.
	HealthyDeadline Duration `json:"healthyDeadline,omitempty"`
	// ProgressDeadline is how long a wave may go without one more server being done. Default 1h.
	ProgressDeadline Duration `json:"progressDeadline,omitempty"`
	// Approval: somebody must approve before it begins.
	Approval bool `json:"approval,omitempty"`
	// Prove: only a server whose effect was proven by a probe is done, where the document has one.
	Prove bool `json:"prove,omitempty"`
	// MaxFailures of this wave; nil: only the strategy's.
	MaxFailures *Limit `json:"maxFailures,omitempty"`
}

// Limit bounds failures: Count, or Percent of the servers it is about. Both 0: none is tolerated. Count -1: no limit.
type Limit struct {
	Count   int     `json:"count,omitempty"`
	Percent float64 `json:"percent,omitempty"`
}

func (l Limit) passed(failures, of int) bool {
	if l.Count < 0 {
		return false
	}
	return failures > max(l.Count, int(l.Percent/100*float64(of)))
}

func (l Limit) String() string {
	switch {
	case l.Count < 0:
		return "no limit"
	case l.Percent > 0:
		return fmt.Sprintf("%g %%", l.Percent)
	}
	return fmt.Sprint(l.Count)
}

// Window is a time of the week, in UTC.
type Window struct {
	// Days are "Mon" to "Sun"; none: every day.
	Days []string `json:"days,omitempty"`
	// From and To are "15:04"; a To that is not after From is on the next day.
	From string `json:"from"`
	To   string `json:"to"`
}

func clock(s string) (time.Duration, error) {
	t, err := time.Parse("15:04", s)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err
}

func (w Window) open(t time.Time) bool {
	from, err1 := clock(w.From)
	to, err2 := clock(w.To)
	if err1 != nil || err2 != nil {
		return false
	}
	t = t.UTC()
	day := t.Truncate(24 * time.Hour)
	since := t.Sub(day)
	on := func(d time.Time) bool {
		if len(w.Days) == 0 {
			return true
		}
		for _, n := range w.Days {
			if strings.EqualFold(n, d.Format("Mon")) {
				return true
			}
		}
		return false
	}
	if from < to {
		return on(day) && since >= from && since < to
	}
	return on(day) && since >= from || on(day.Add(-24*time.Hour)) && since < to
}

func (s Strategy) open(t time.Time) bool {
	for _, w := range s.Windows {
		if w.open(t) {
			return true
		}
	}
	return len(s.Windows) == 0
}

// Defaults and bounds.
const (
	defaultSilence  = 2 * time.Minute
	defaultHealthy  = 10 * time.Minute
	defaultProgress = time.Hour
	maxWaves        = 20
	maxDuration     = 30 * 24 * time.Hour
)

var strategyName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// Check says what is wrong with a strategy, by place.
func (s Strategy) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !strategyName.MatchString(s.Name) {
		bad("name %q: 1 to 40 of a-z, 0-9 and -", s.Name)
	}
	if len(s.Waves) == 0 || len(s.Waves) > maxWaves {
		bad("waves: %d, want 1 to %d", len(s.Waves), maxWaves)
	}
	if s.OnHalt != "hold" && s.OnHalt != "revert" {
		bad("onHalt %q is neither hold nor revert", s.OnHalt)
	}
	limit := func(where string, l Limit) {
		if l.Count < -1 || l.Percent < 0 || l.Percent > 100 {
			bad("%s: count from -1, percent from 0 to 100", where)
		}
	}
	limit("maxFailures", s.MaxFailures)
	times := func(where string, ds ...Duration) {
		for _, d := range ds {
			if d < 0 || time.Duration(d) > maxDuration {
				bad("%s: %s is not between 0 and %s", where, d, maxDuration)
			}
		}
	}
	times("silence, stagger", s.Silence, s.Stagger)
	for i, w := range s.Windows {
		_, err1 := clock(w.From)
		_, err2 := clock(w.To)
		if err1 != nil || err2 != nil {
			bad("windows[%d]: from %q and to %q are not both HH:MM", i, w.From, w.To)
		}
		for _, d := range w.Days {
			if _, err := time.Parse("Mon", d); err != nil {
				bad("windows[%d]: day %q is none of Mon to Sun", i, d)
			}
		}
	}
	for i, w := range s.Waves {
		at := fmt.Sprintf("waves[%d]", i)
		if w.Percent < 0 || w.Percent > 100 || w.Count < 0 || w.Percent > 0 && w.Count > 0 {
			bad("%s: a percent from 0 to 100, or a count", at)
		}
		if w.MaxInFlight < 0 {
			bad("%s: maxInFlight is negative", at)
		}
		times(at, w.MinHealthyTime, w.HealthyDeadline, w.ProgressDeadline)
		if w.MaxFailures != nil {
			limit(at+".maxFailures", *w.MaxFailures)
		}
		if h := w.healthyDeadline(); time.Duration(w.MinHealthyTime) >= h {
			bad("%s: minHealthyTime %s is not below healthyDeadline %s", at, w.MinHealthyTime, h)
		}
		for k, v := range w.Selector {
			if _, err := path.Match(v, ""); err != nil {
				bad("%s.selector %s: %q is no pattern", at, k, v)
			}
		}
	}
	return errors.Join(errs...)
}

func (w Wave) healthyDeadline() time.Duration {
	if w.HealthyDeadline > 0 {
		return time.Duration(w.HealthyDeadline)
	}
	return defaultHealthy
}

func (w Wave) progressDeadline() time.Duration {
	if w.ProgressDeadline > 0 {
		return time.Duration(w.ProgressDeadline)
	}
	return defaultProgress
}

func (s Strategy) silence() time.Duration {
	if s.Silence > 0 {
		return time.Duration(s.Silence)
	}
	return defaultSilence
}

func (w Wave) selects(attrs map[string]string) bool {
	for k, pattern := range w.Selector {
		if ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(attrs[k])); err != nil || !ok {
			return false
		}
	}
	return true
}

// ParseStrategy reads a strategy from JSON and checks it. Unknown fields are refused.
func ParseStrategy(data []byte) (Strategy, error) {
	var s Strategy
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("strategy: %w", err)
	}
	if d.More() {
		return s, errors.New("strategy: something follows it")
	}
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("strategy %s: %w", s.Name, err)
	}
	return s, nil
}

// BuiltIn are the strategies that come with the product.
func BuiltIn() []Strategy {
	minute := Duration(time.Minute)
	return []Strategy{
		{Name: "emergency", About: "everybody at once", Waves: []Wave{{}}, MaxFailures: Limit{Count: -1}, OnHalt: "hold"},
		{Name: "canary", About: "one server, then 10 %, then all; halts at the first failure of the canaries and takes it off", OnHalt: "revert",
			MaxFailures: Limit{Percent: 5}, Waves: []Wave{
				{Count: 1, Prove: true, MinHealthyTime: 2 * minute, HealthyDeadline: 10 * minute, ProgressDeadline: 30 * minute, MaxFailures: &Limit{}},
				{Percent: 10, Prove: true, MinHealthyTime: 5 * minute, HealthyDeadline: 15 * minute, ProgressDeadline: 60 * minute, MaxFailures: &Limit{}},
				{MaxInFlight: 200, MinHealthyTime: minute, HealthyDeadline: 15 * minute, ProgressDeadline: 60 * minute}}},
		{Name: "careful", About: "by the label ring: test, early, then all, with approval between; 30 at a time", OnHalt: "hold",
			MaxFailures: Limit{Percent: 2}, Stagger: minute / 4, Waves: []Wave{
				{Selector: map[string]string{"ring": "test"}, Prove: true, MinHealthyTime: 10 * minute, HealthyDeadline: 30 * minute, ProgressDeadline: 120 * minute, MaxFailures: &Limit{}},
				{Selector: map[string]string{"ring": "early"}, MaxInFlight: 10, MinHealthyTime: 10 * minute, HealthyDeadline: 30 * minute, ProgressDeadline: 120 * minute, Approval: true},
				{MaxInFlight: 30, MinHealthyTime: 5 * minute, HealthyDeadline: 30 * minute, ProgressDeadline: 120 * minute, Approval: true}}},
	}
}
