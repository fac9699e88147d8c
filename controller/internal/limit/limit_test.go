package limit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneKeyIsHeldBackAndAnotherDoesNotNotice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, r := NewKeyed(10), Rate{time.Minute, 3}
		allowed := 0
		for range 5 {
			if k.Allow("loud", r) {
				allowed++
			}
		}
		if allowed != 3 || !k.Allow("quiet", r) {
			t.Errorf("%d calls of a burst of 3 were allowed", allowed)
		}
		<-time.After(time.Minute) // in the bubble's time
		if !k.Allow("loud", r) || k.Allow("loud", r) {
			t.Error("a minute later it is not exactly one call more")
		}
		for range 1000 {
			if !k.Allow("loud", Rate{}) {
				t.Fatal("a method without a limit refused a call")
			}
		}
	})
}

func TestMemoryIsBoundedAndKeysThatAreHeldBackAreRememberedLongest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, r := NewKeyed(100), Rate{time.Hour, 1}
		for i := range 99 {
			k.Allow(fmt.Sprint("idle ", i), r)
		}
		<-time.After(time.Hour) // in the bubble's time: all have their burst back
		k.Allow("loud", r)
		k.Allow("one more", r)
		if len(k.limiters) != 2 || k.Allow("loud", r) {
			t.Errorf("%d keys are remembered; the one that is held back must be among them", len(k.limiters))
		}
		for i := range 1000 {
			k.Allow(fmt.Sprint("attacker ", i), r)
			if len(k.limiters) > 100 {
				t.Fatalf("%d keys, limit 100", len(k.limiters))
			}
		}
	})
}
