package task

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestTheFirstErrorEndsTheOthersAndIsReturned(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	ended := false
	err := Run(t.Context(),
		func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() },
		func(context.Context) error { return boom })
	if !errors.Is(err, boom) || !ended {
		t.Fatalf("got %v, ended %t", err, ended)
	}
}

func TestAPanicBecomesAnErrorWithItsStack(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), func(context.Context) error { panic("ouch") })
	if err == nil || !strings.Contains(err.Error(), "ouch") || !strings.Contains(err.Error(), "task_test.go") {
		t.Fatalf("got %v", err)
	}
}

func TestTheEndOfTheContextIsNoError(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }); err != nil {
		t.Fatal(err)
	}
}
