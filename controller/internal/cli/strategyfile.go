package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// strategyFile is a strategy as people write it, in JSON (docs/rollouts.md). What each field means is in fleet.proto.
type strategyFile struct {
	Name        string       `json:"name"`
	About       string       `json:"about,omitempty"`
	Waves       []waveFile   `json:"waves"`
	MaxFailures limitFile    `json:"maxFailures"`
	OnHalt      string       `json:"onHalt"`
	Silence     span         `json:"silence,omitempty"`
	Stagger     span         `json:"stagger,omitempty"`
	Windows     []windowFile `json:"windows,omitempty"`
}

type waveFile struct {
	Percent          float64           `json:"percent,omitempty"`
	Count            int               `json:"count,omitempty"`
	Selector         map[string]string `json:"selector,omitempty"`
	MaxInFlight      int               `json:"maxInFlight,omitempty"`
	MinHealthyTime   span              `json:"minHealthyTime,omitempty"`
	HealthyDeadline  span              `json:"healthyDeadline,omitempty"`
	ProgressDeadline span              `json:"progressDeadline,omitempty"`
	Approval         bool              `json:"approval,omitempty"`
	Prove            bool              `json:"prove,omitempty"`
	MaxFailures      *limitFile        `json:"maxFailures,omitempty"`
}

// limitFile has -1 as its count where there is no limit.
type limitFile struct {
	Count   int     `json:"count,omitempty"`
	Percent float64 `json:"percent,omitempty"`
}

type windowFile struct {
	Days []string `json:"days,omitempty"`
	From string   `json:"from"`
	To   string   `json:"to"`
}

// span is a duration that is written as "5m".
type span time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d span) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *span) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = span(v)
	return err
}

func (d span) message() *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

const onHaltPrefix, weekdayPrefix = "ON_HALT_", "WEEKDAY_"

func onHaltText(h stopgapv1.OnHalt) string { return strings.ToLower(enumName(h, onHaltPrefix)) }

// dayText is "Mon" for Monday.
func dayText(d stopgapv1.Weekday) string {
	name := enumName(d, weekdayPrefix)
	if _, known := stopgapv1.Weekday_name[int32(d)]; !known || d == 0 {
		return name
	}
	return name[:1] + strings.ToLower(name[1:3])
}

// strategyReader collects what is wrong with a file and can't be said in a message. The rest is checked by the controller.
type strategyReader struct {
	errs []error
}

func (r *strategyReader) bad(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *strategyReader) count(at string, n int) uint32 {
	if n < 0 || n > math.MaxUint32 {
		r.bad("%s: %d is negative or too large", at, n)
		return 0
	}
	return uint32(n)
}

func (r *strategyReader) limit(at string, l limitFile) *stopgapv1.FailureLimit {
	if l.Count == -1 {
		return &stopgapv1.FailureLimit{Unlimited: true}
	}
	if l.Count < 0 {
		r.bad("%s: count from -1, percent from 0 to 100", at)
		return nil
	}
	return &stopgapv1.FailureLimit{Count: r.count(at+".count", l.Count), Percent: l.Percent}
}

func (r *strategyReader) window(at string, w windowFile) *stopgapv1.Window {
	from, err1 := time.Parse("15:04", w.From)
	to, err2 := time.Parse("15:04", w.To)
	if err1 != nil || err2 != nil {
		r.bad("%s: from %q and to %q are not both HH:MM", at, w.From, w.To)
	}
	out := &stopgapv1.Window{FromMinute: uint32(from.Hour()*60 + from.Minute()), ToMinute: uint32(to.Hour()*60 + to.Minute())}
	for _, name := range w.Days {
		day := stopgapv1.Weekday_WEEKDAY_UNSPECIFIED
		for n := range stopgapv1.Weekday_name {
			if d := stopgapv1.Weekday(n); d != 0 && strings.EqualFold(dayText(d), name) {
				day = d
			}
		}
		if day == 0 {
			r.bad("%s: day %q is none of Mon to Sun", at, name)
		}
		out.Days = append(out.Days, day)
	}
	return out
}

// readStrategy reads a strategy from a file. Unknown fields are refused.
func readStrategy(data []byte) (*stopgapv1.Strategy, error) {
	var f strategyFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("strategy: %w", err)
	}
	if d.More() {
		return nil, errors.New("strategy: something follows it")
	}
	var r strategyReader
	out := &stopgapv1.Strategy{Name: f.Name, About: f.About, MaxFailures: r.limit("maxFailures", f.MaxFailures), Silence: f.Silence.message(),
		Stagger: f.Stagger.message(), OnHalt: stopgapv1.OnHalt(stopgapv1.OnHalt_value[onHaltPrefix+strings.ToUpper(f.OnHalt)])}
	if out.OnHalt == 0 || f.OnHalt != onHaltText(out.GetOnHalt()) {
		r.bad("onHalt %q is neither hold nor revert", f.OnHalt)
	}
	for i, w := range f.Windows {
		out.Windows = append(out.Windows, r.window(fmt.Sprintf("windows[%d]", i), w))
	}
	for i, w := range f.Waves {
		at := fmt.Sprintf("waves[%d]", i)
		m := &stopgapv1.Wave{Percent: w.Percent, Count: r.count(at+".count", w.Count), Selector: w.Selector,
			MaxInFlight: r.count(at+".maxInFlight", w.MaxInFlight), MinHealthyTime: w.MinHealthyTime.message(),
			HealthyDeadline: w.HealthyDeadline.message(), ProgressDeadline: w.ProgressDeadline.message(), Approval: w.Approval, Prove: w.Prove}
		if w.MaxFailures != nil {
			m.MaxFailures = r.limit(at+".maxFailures", *w.MaxFailures)
		}
		out.Waves = append(out.Waves, m)
	}
	if err := errors.Join(r.errs...); err != nil {
		return nil, fmt.Errorf("strategy %s: %w", f.Name, err)
	}
	return out, nil
}

func limitText(l *stopgapv1.FailureLimit) limitFile {
	if l.GetUnlimited() {
		return limitFile{Count: -1}
	}
	return limitFile{Count: int(l.GetCount()), Percent: l.GetPercent()}
}

func clockText(minute uint32) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }

// writeStrategy is the reverse of readStrategy.
func writeStrategy(s *stopgapv1.Strategy) (string, error) {
	f := strategyFile{Name: s.GetName(), About: s.GetAbout(), MaxFailures: limitText(s.GetMaxFailures()), OnHalt: onHaltText(s.GetOnHalt()),
		Silence: span(s.GetSilence().AsDuration()), Stagger: span(s.GetStagger().AsDuration())}
	for _, w := range s.GetWindows() {
		x := windowFile{From: clockText(w.GetFromMinute()), To: clockText(w.GetToMinute())}
		for _, d := range w.GetDays() {
			x.Days = append(x.Days, dayText(d))
		}
		f.Windows = append(f.Windows, x)
	}
	for _, w := range s.GetWaves() {
		x := waveFile{Percent: w.GetPercent(), Count: int(w.GetCount()), Selector: w.GetSelector(), MaxInFlight: int(w.GetMaxInFlight()),
			MinHealthyTime: span(w.GetMinHealthyTime().AsDuration()), HealthyDeadline: span(w.GetHealthyDeadline().AsDuration()),
			ProgressDeadline: span(w.GetProgressDeadline().AsDuration()), Approval: w.GetApproval(), Prove: w.GetProve()}
		if w.GetMaxFailures() != nil {
			l := limitText(w.GetMaxFailures())
			x.MaxFailures = &l
		}
		f.Waves = append(f.Waves, x)
	}
	raw, err := json.MarshalIndent(f, "", "  ")
	return string(raw), err
}
