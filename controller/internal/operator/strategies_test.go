package operator

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestAStrategyIsReadBackFromItsMessage(t *testing.T) {
	t.Parallel()
	all := append(engine.BuiltIn(), engine.Strategy{Name: "nightly", About: "by ring", OnHalt: "revert", MaxFailures: engine.Limit{Count: 2,
		Percent: 5},
		Silence: engine.Duration(90 * time.Second), Stagger: engine.Duration(15 * time.Second),
		Windows: []engine.Window{{From: "22:00", To: "04:30", Days: []string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}},
			{From: "00:00", To: "00:00"}},
		Waves: []engine.Wave{{Percent: 12.5, MaxFailures: &engine.Limit{Count: -1}}, {}}})
	for _, want := range all {
		got, err := strategyOf(strategyMessage(want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n%+v\n%+v", want.Name, err, got, want)
		}
	}
}

func TestWhatIsWrongWithAStrategyIsSaidByPlace(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*stopgapv1.Strategy){
		`onHalt "9"`:                     func(s *stopgapv1.Strategy) { s.OnHalt = 9 },
		`onHalt "ON_HALT_UNSPECIFIED"`:   func(s *stopgapv1.Strategy) { s.OnHalt = 0 },
		`name "X"`:                       func(s *stopgapv1.Strategy) { s.Name = "X" },
		"waves: 0":                       func(s *stopgapv1.Strategy) { s.Waves = nil },
		"waves[0].percent: not a number": func(s *stopgapv1.Strategy) { s.Waves[0].Percent = math.NaN() },
		"waves[0]: a percent":            func(s *stopgapv1.Strategy) { s.Waves[0].Percent = math.Inf(1) },
		"maxFailures: unlimited": func(s *stopgapv1.Strategy) {
			s.MaxFailures = &stopgapv1.FailureLimit{Unlimited: true, Count: 1}
		},
		"silence":              func(s *stopgapv1.Strategy) { s.Silence = &durationpb.Duration{Seconds: 1, Nanos: -1} },
		"waves[0]: 1000h0m0s":  func(s *stopgapv1.Strategy) { s.Waves[0].MinHealthyTime = durationpb.New(1000 * time.Hour) },
		"windows[0].to":        func(s *stopgapv1.Strategy) { s.Windows = []*stopgapv1.Window{{ToMinute: 1440}} },
		"windows[0]: day 12":   func(s *stopgapv1.Strategy) { s.Windows = []*stopgapv1.Window{{Days: []stopgapv1.Weekday{12}}} },
		"a strategy of":        func(s *stopgapv1.Strategy) { s.About = strings.Repeat("x", 65<<10) },
		"waves[0].selector a:": func(s *stopgapv1.Strategy) { s.Waves[0].Selector = map[string]string{"a": "["} },
	} {
		s := &stopgapv1.Strategy{Name: "x", OnHalt: stopgapv1.OnHalt_ON_HALT_HOLD, Waves: []*stopgapv1.Wave{{}}}
		change(s)
		if _, err := strategyOf(s); !errors.Is(err, errStrategy) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := strategyOf(nil); !errors.Is(err, errStrategy) {
		t.Errorf("no strategy: %v", err)
	}
}
