// Package limit limits how often each of many callers may do something, in bounded memory. It owns no policy: which rate
// applies to whom is decided by the room that asks.
package limit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate allows a burst at once, and then one every Every. The zero Rate allows everything.
type Rate struct {
	Every time.Duration
	Burst int
}

// Keyed applies a rate to each key separately. It is safe for concurrent use.
type Keyed struct {
	max int

	mu       sync.Mutex
	limiters map[string]*rate.Limiter
}

// NewKeyed makes a Keyed that remembers at most max keys.
func NewKeyed(max int) *Keyed {
	return &Keyed{max: max, limiters: map[string]*rate.Limiter{}}
}

// Allow says whether the key may go ahead now. A key always has to be asked with the same rate.
func (k *Keyed) Allow(key string, r Rate) bool {
	if r == (Rate{}) {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.limiters[key]
	if l == nil {
		k.makeRoom()
		l = rate.NewLimiter(rate.Every(r.Every), r.Burst)
		k.limiters[key] = l
	}
	return l.Allow()
}

// makeRoom forgets keys when there are too many; the caller holds the lock. Keys with their whole burst left lose nothing by
// it.
func (k *Keyed) makeRoom() {
	if len(k.limiters) < k.max {
		return
	}
	for key, l := range k.limiters {
		if l.Burst() <= int(l.Tokens()) {
			delete(k.limiters, key)
		}
	}
	if len(k.limiters) >= k.max { // as many callers attack at once: start over rather than grow
		clear(k.limiters)
	}
}
