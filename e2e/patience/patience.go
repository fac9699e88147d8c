// Package patience says how long tests, the demo and the benchmark wait. Every deadline of theirs comes from here: a time that is long
// enough on an idle machine, multiplied by one factor for the machine as it is.
//
// The factor is what STOPGAP_PATIENCE says ("STOPGAP_PATIENCE=4" waits four times as long), or is measured once in each process. A wait
// does not end while something moves, so the factor only decides how long nothing may happen.
package patience

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Variable is the environment variable that sets the factor.
const Variable = "STOPGAP_PATIENCE"

const (
	// largest bounds the factor, so that a test that hangs fails on a loaded machine too.
	largest = 10
	// poll is how often Wait looks.
	poll = 20 * time.Millisecond
	// late is the most that one look counts. A look that takes longer says that the machine is behind, not that nothing happens.
	late = 10 * poll
	// hard is how many times its limit a wait may take, whatever moves.
	hard = 4
	// tellBefore is how long before the end of `go test` a wait gives up, so that its error is what is printed.
	tellBefore = 5 * time.Second
)

// Factor is what every time is multiplied by: 1 on an idle machine, 10 at most.
var Factor = sync.OnceValue(func() float64 {
	if f, err := strconv.ParseFloat(os.Getenv(Variable), 64); err == nil && f > 0 {
		return f
	}
	return measured()
})

func measured() float64 { return min(max(1, slowdown(), load()), largest) }

// For is a time that is long enough on an idle machine, scaled for this one. Use it for a deadline, for a timeout that a test sets in
// the product, and for a time that must be long enough for something to happen meanwhile.
func For(idle time.Duration) time.Duration { return time.Duration(float64(idle) * Factor()) }

// slowdown compares a computation with what it takes on an idle machine. It is longer than a time slice of the scheduler.
func slowdown() float64 {
	const (
		rounds = 40_000_000
		idle   = 80 * time.Millisecond
	)
	began := time.Now()
	x := uint64(began.Nanosecond()) | 1
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	runtime.KeepAlive(x)
	return float64(time.Since(began)) / float64(idle)
}

// load is the number of processes that want to run for each core, where the system says so (Linux).
func load() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	l, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return l / float64(runtime.NumCPU())
}

// ErrTimeout is returned by Wait.
var ErrTimeout = errors.New("timed out")

// InVain marks an error of a condition: it will not hold however long one waits.
func InVain(err error) error { return inVain{err} }

type inVain struct{ error }

func (e inVain) Unwrap() error { return e.error }

// Wait looks until a condition holds. cond says in its error what it sees now. Wait gives up when it has seen the same for a time,
// scaled for this machine, in any case after four times that, and at once when cond says InVain. Its error carries the last one of cond.
// It ends early with ctx.
func Wait(ctx context.Context, idle time.Duration, cond func() error) error {
	return wait(ctx, idle, time.Now().Add(hard*For(idle)), cond)
}

func wait(ctx context.Context, idle time.Duration, end time.Time, cond func() error) error {
	limit := For(idle)
	began := time.Now()
	var seen string
	var still time.Duration // how long the same has been seen
	last := began
	for {
		err := cond()
		if err == nil {
			return nil
		}
		if vain := (inVain{}); errors.As(err, &vain) {
			return err
		}
		now := time.Now()
		if s := err.Error(); s != seen {
			seen, still = s, 0
		} else {
			still += min(now.Sub(last), late)
		}
		last = now
		if still > limit || now.After(end) {
			return fmt.Errorf("%w after %s, %s without a change (%s is %.3g here): %w", ErrTimeout, time.Since(began).Round(time.Millisecond),
				still.Round(time.Millisecond), Variable, Factor(), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(poll):
		}
	}
}

// T is what Eventually needs of a test.
type T interface {
	Helper()
	Context() context.Context
	Fatal(args ...any)
}

// Eventually is Wait in a test: it fails the test, and does so before `go test` ends it.
func Eventually(t T, idle time.Duration, cond func() error) {
	t.Helper()
	end := time.Now().Add(hard * For(idle))
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if last, ok := d.Deadline(); ok && last.Add(-tellBefore).Before(end) {
			end = last.Add(-tellBefore)
		}
	}
	if err := wait(t.Context(), idle, end, cond); err != nil {
		t.Fatal(err)
	}
}

// Receive takes the next value of a channel, or fails the test when none comes.
func Receive[V any](t T, idle time.Duration, ch <-chan V) V {
	t.Helper()
	var v V
	Eventually(t, idle, func() error {
		select {
		case v = <-ch:
			return nil
		default:
			return errors.New("nothing came")
		}
	})
	return v
}
