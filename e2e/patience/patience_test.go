package patience

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheMeasuredFactorIsOneAtLeastAndHasABound(t *testing.T) {
	t.Parallel()
	if f := measured(); f < 1 || f > largest {
		t.Errorf("the factor is %g", f)
	}
}

// fixed gives a process whose factor was measured.
func fixed(t *testing.T) time.Duration {
	t.Helper()
	Factor()
	return For(time.Second)
}

func TestAWaitThatSeesTheSameGivesUpAndSaysWhatItSaw(t *testing.T) {
	t.Parallel()
	limit := fixed(t)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := Wait(t.Context(), time.Second, func() error { return errors.New("M1 is PENDING") })
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "M1 is PENDING") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < limit || took > limit+2*poll {
			t.Errorf("gave up after %s, not %s", took, limit)
		}
	})
}

func TestAsLongAsSomethingMovesAWaitGoesOnButNotForEver(t *testing.T) {
	t.Parallel()
	limit := fixed(t)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		step := limit / 2 // something new twice in each limit
		see := func() error { return fmt.Errorf("step %d", time.Since(began)/step) }
		if err := Wait(t.Context(), time.Second, func() error {
			if time.Since(began) > 3*limit {
				return nil
			}
			return see()
		}); err != nil {
			t.Errorf("gave up though something moved: %v", err)
		}
		began = time.Now()
		if err := Wait(t.Context(), time.Second, see); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < hard*limit || took > hard*limit+2*poll {
			t.Errorf("gave up after %s, not %s", took, hard*limit)
		}
	})
}

func TestALookThatTakesLongCountsAsLittle(t *testing.T) {
	t.Parallel()
	limit := fixed(t)
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		if err := Wait(t.Context(), time.Second, func() error {
			if looks++; looks == 4 {
				return nil
			}
			<-time.After(limit) // the machine stands still
			return errors.New("not yet")
		}); err != nil {
			t.Errorf("three looks were too many: %v", err)
		}
	})
}

func TestAWaitThatIsInVainEndsAtOnce(t *testing.T) {
	t.Parallel()
	fixed(t)
	synctest.Test(t, func(t *testing.T) {
		began, dead := time.Now(), errors.New("the controller has ended")
		if err := Wait(t.Context(), time.Second, func() error { return InVain(dead) }); !errors.Is(err, dead) || errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %s", took)
		}
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	fixed(t)
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(100*time.Millisecond, func() { cancel(why) })
		if err := Wait(ctx, time.Second, func() error { return errors.New("not yet") }); !errors.Is(err, why) || !strings.Contains(err.Error(), "not yet") {
			t.Errorf("got %v", err)
		}
	})
}

func TestReceiveTakesWhatComes(t *testing.T) {
	t.Parallel()
	ch := make(chan int, 1)
	ch <- 7
	if got := Receive(t, time.Second, ch); got != 7 {
		t.Errorf("got %d", got)
	}
}
