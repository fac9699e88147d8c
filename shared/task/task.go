// Package task runs the long-lived parts of a process: all of them until the first ends with an error, then none. It knows
// nothing of what they do.
package task

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Func is one long-lived part. It returns nil when ctx ends.
type Func func(ctx context.Context) error

// Run starts every part and waits for all. The first error (a panic becomes one, with its stack) ends the others; its
// cause is what Run returns. When ctx ends, Run returns nil.
func Run(ctx context.Context, parts ...Func) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, f := range parts {
		wg.Go(func() {
			if err := safely(ctx, f); err != nil && !errors.Is(err, context.Canceled) {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
				cancel(err)
			}
		})
	}
	wg.Wait()
	return first
}

func safely(ctx context.Context, f Func) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f(ctx)
}
