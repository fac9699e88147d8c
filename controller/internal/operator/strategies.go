package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// errStrategy is returned for a strategy that can't be.
var errStrategy = errors.New("refused")

// maxStrategy bounds a strategy, in bytes.
const maxStrategy = 64 << 10

var onHalt = map[stopgapv1.OnHalt]string{stopgapv1.OnHalt_ON_HALT_HOLD: "hold", stopgapv1.OnHalt_ON_HALT_REVERT: "revert"}

// duration is a duration of a strategy; nil for 0, which is the same as none.
func duration(d engine.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

func limitMessage(l engine.Limit) *stopgapv1.FailureLimit {
	if l.Count < 0 {
		return &stopgapv1.FailureLimit{Unlimited: true}
	}
	return &stopgapv1.FailureLimit{Count: uint32(l.Count), Percent: l.Percent}
}

// weekday gives the day of a name such as "Mon"; UNSPECIFIED for none.
func weekday(name string) stopgapv1.Weekday {
	for d := stopgapv1.Weekday_WEEKDAY_MONDAY; d <= stopgapv1.Weekday_WEEKDAY_SUNDAY; d++ {
		if strings.EqualFold(dayName(d), name) {
			return d
		}
	}
	return stopgapv1.Weekday_WEEKDAY_UNSPECIFIED
}

// dayName is the reverse of weekday; "" for a day that is none.
func dayName(d stopgapv1.Weekday) string {
	if d < stopgapv1.Weekday_WEEKDAY_MONDAY || d > stopgapv1.Weekday_WEEKDAY_SUNDAY {
		return ""
	}
	return time.Weekday(d % 7).String()[:3]
}

func minute(clock string) uint32 {
	t, err := time.Parse("15:04", clock)
	if err != nil {
		return 0 // can't happen: it was checked when it was stored
	}
	return uint32(t.Hour()*60 + t.Minute())
}

func strategyMessage(s engine.Strategy) *stopgapv1.Strategy {
	out := &stopgapv1.Strategy{Name: s.Name, About: s.About, MaxFailures: limitMessage(s.MaxFailures), Silence: duration(s.Silence),
		Stagger: duration(s.Stagger)}
	for k, v := range onHalt {
		if v == s.OnHalt {
			out.OnHalt = k
		}
	}
	for _, w := range s.Windows {
		m := &stopgapv1.Window{FromMinute: minute(w.From), ToMinute: minute(w.To)}
		for _, d := range w.Days {
			m.Days = append(m.Days, weekday(d))
		}
		out.Windows = append(out.Windows, m)
	}
	for _, w := range s.Waves {
		m := &stopgapv1.Wave{Percent: w.Percent, Count: uint32(w.Count), Selector: w.Selector, MaxInFlight: uint32(w.MaxInFlight),
			MinHealthyTime: duration(w.MinHealthyTime), HealthyDeadline: duration(w.HealthyDeadline), ProgressDeadline: duration(w.ProgressDeadline),
			Approval: w.Approval, Prove: w.Prove}
		if w.MaxFailures != nil {
			m.MaxFailures = limitMessage(*w.MaxFailures)
		}
		out.Waves = append(out.Waves, m)
	}
	return out
}

// reader reads a strategy of a request and collects what the engine's own check can't see any more.
type reader struct {
	errs []error
}

func (r *reader) bad(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *reader) duration(at string, d *durationpb.Duration) engine.Duration {
	if d != nil && d.CheckValid() != nil {
		r.bad("%s: %s", at, d.CheckValid())
	}
	return engine.Duration(d.AsDuration())
}

func (r *reader) percent(at string, p float64) float64 {
	if math.IsNaN(p) {
		r.bad("%s: not a number", at)
		return 0
	}
	return p
}

func (r *reader) limit(at string, l *stopgapv1.FailureLimit) engine.Limit {
	if l.GetUnlimited() {
		if l.GetCount() > 0 || l.GetPercent() != 0 {
			r.bad("%s: unlimited, and a limit", at)
		}
		return engine.Limit{Count: -1}
	}
	return engine.Limit{Count: int(l.GetCount()), Percent: r.percent(at+".percent", l.GetPercent())}
}

func (r *reader) clock(at string, minute uint32) string {
	if minute >= 24*60 {
		r.bad("%s: minute %d is not below %d", at, minute, 24*60)
	}
	return fmt.Sprintf("%02d:%02d", minute/60, minute%60)
}

// strategyOf reads a strategy and checks it. Errors: errStrategy, by place.
func strategyOf(m *stopgapv1.Strategy) (engine.Strategy, error) {
	if n := proto.Size(m); n > maxStrategy {
		return engine.Strategy{}, fmt.Errorf("%w: a strategy of %d bytes, limit %d", errStrategy, n, maxStrategy)
	}
	var r reader
	s := engine.Strategy{Name: m.GetName(), About: m.GetAbout(), MaxFailures: r.limit("maxFailures", m.GetMaxFailures()),
		OnHalt:  onHalt[m.GetOnHalt()],
		Silence: r.duration("silence", m.GetSilence()), Stagger: r.duration("stagger", m.GetStagger())}
	if s.OnHalt == "" {
		s.OnHalt = m.GetOnHalt().String() // the check names it
	}
	for i, w := range m.GetWindows() {
		at := fmt.Sprintf("windows[%d]", i)
		x := engine.Window{From: r.clock(at+".from", w.GetFromMinute()), To: r.clock(at+".to", w.GetToMinute())}
		for _, d := range w.GetDays() {
			name := dayName(d)
			if name == "" {
				r.bad("%s: day %s is none of Monday to Sunday", at, d)
			}
			x.Days = append(x.Days, name)
		}
		s.Windows = append(s.Windows, x)
	}
	for i, w := range m.GetWaves() {
		at := fmt.Sprintf("waves[%d]", i)
		x := engine.Wave{Percent: r.percent(at+".percent", w.GetPercent()), Count: int(w.GetCount()), Selector: w.GetSelector(),
			MaxInFlight: int(w.GetMaxInFlight()), MinHealthyTime: r.duration(at+".minHealthyTime", w.GetMinHealthyTime()),
			HealthyDeadline:  r.duration(at+".healthyDeadline", w.GetHealthyDeadline()),
			ProgressDeadline: r.duration(at+".progressDeadline", w.GetProgressDeadline()), Approval: w.GetApproval(), Prove: w.GetProve()}
		if w.GetMaxFailures() != nil {
			l := r.limit(at+".maxFailures", w.GetMaxFailures())
			x.MaxFailures = &l
		}
		s.Waves = append(s.Waves, x)
	}
	if err := errors.Join(r.errs...); err != nil {
		return s, fmt.Errorf("%w: strategy %s: %w", errStrategy, s.Name, err)
	}
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("%w: strategy %s: %w", errStrategy, s.Name, err)
	}
	return s, nil
}

// ListStrategies implements FleetService.
func (s *Service) ListStrategies(_ context.Context, r *stopgapv1.ListStrategiesRequest) (*stopgapv1.ListStrategiesResponse, error) {
	all, byDefault := s.cfg.Rollout.Strategies()
	all = slices.DeleteFunc(all, func(x engine.Strategy) bool { return !among(r.GetFilter().GetNames(), x.Name) })
	rows, next, total, err := paged(r, all, func(x engine.Strategy) string { return x.Name }, strategyMessage)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListStrategiesResponse{Strategies: rows, NextPageToken: next, TotalSize: total, DefaultStrategy: byDefault}, nil
}

// GetStrategy implements FleetService.
func (s *Service) GetStrategy(_ context.Context, r *stopgapv1.GetStrategyRequest) (*stopgapv1.GetStrategyResponse, error) {
	x, err := s.cfg.Rollout.Strategy(r.GetName())
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.GetStrategyResponse{Strategy: strategyMessage(x)}, nil
}

// store stores a strategy of a request in one of two ways, and writes it to the audit log.
func (s *Service) store(
	ctx context.Context, m *stopgapv1.Strategy, how func(context.Context, engine.Strategy) error,
) (*stopgapv1.Strategy, error) {
	x, err := strategyOf(m)
	if err == nil {
		err = how(ctx, x)
	}
	if err != nil {
		return nil, s.toStatus(err)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "strategy-set", x.Name, "%s", raw)
	return strategyMessage(x), nil
}

// CreateStrategy implements FleetService.
func (s *Service) CreateStrategy(ctx context.Context, r *stopgapv1.CreateStrategyRequest) (*stopgapv1.CreateStrategyResponse, error) {
	x, err := s.store(ctx, r.GetStrategy(), s.cfg.Rollout.CreateStrategy)
	return &stopgapv1.CreateStrategyResponse{Strategy: x}, err
}

// UpdateStrategy implements FleetService.
func (s *Service) UpdateStrategy(ctx context.Context, r *stopgapv1.UpdateStrategyRequest) (*stopgapv1.UpdateStrategyResponse, error) {
	x, err := s.store(ctx, r.GetStrategy(), func(ctx context.Context, x engine.Strategy) error {
		return s.cfg.Rollout.UpdateStrategy(ctx, x, r.GetAllowMissing())
	})
	return &stopgapv1.UpdateStrategyResponse{Strategy: x}, err
}

// DeleteStrategy implements FleetService.
func (s *Service) DeleteStrategy(ctx context.Context, r *stopgapv1.DeleteStrategyRequest) (*stopgapv1.DeleteStrategyResponse, error) {
	if err := s.cfg.Rollout.DeleteStrategy(ctx, r.GetName()); err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "strategy-delete", r.GetName(), "")
	return &stopgapv1.DeleteStrategyResponse{}, nil
}

// SetDefaultStrategy implements FleetService.
func (s *Service) SetDefaultStrategy(
	ctx context.Context, r *stopgapv1.SetDefaultStrategyRequest,
) (*stopgapv1.SetDefaultStrategyResponse, error) {
	if err := s.cfg.Rollout.MakeDefault(ctx, r.GetName()); err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "strategy-default", r.GetName(), "for what is published from now on")
	return &stopgapv1.SetDefaultStrategyResponse{}, nil
}
