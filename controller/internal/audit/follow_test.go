package audit

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// follow gives the next n entries after a sequence number, and fails when a number is missing.
func follow(t *testing.T, l *Log, after uint64, n int) []*stopgapv1.AuditEntry {
	t.Helper()
	var out []*stopgapv1.AuditEntry
	for len(out) < n {
		entries, err := l.Since(t.Context(), after)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.GetSequence() != after+1 {
				t.Fatalf("entry %d comes after %d", e.GetSequence(), after)
			}
			after = e.GetSequence()
		}
		out = append(out, entries...)
	}
	return out
}

func TestAFollowerGetsEveryEntryOnceFromTheStoreAndThenAsTheyCome(t *testing.T) {
	t.Parallel()
	st, load := open(t)
	write(t, st, newOthers(), nil, &stopgapv1.AuditEntry{Sequence: 1, Actor: "agent 00ff", Action: "renew"})
	l := load()
	const stored, live = 5, 50
	for i := range stored - 1 {
		l.Append(t.Context(), []Actor{ann, Agent("a"), Controller}[i%3], "test", "x", "%d", i)
	}
	l = load() // what came before is only in the store
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { follow(t, l, 0, stored+live) })
	}
	for i := range live {
		l.Append(t.Context(), []Actor{ann, Agent("a"), Controller}[i%3], "test", "x", "%d", i)
	}
	wg.Wait()
	if got := follow(t, l, stored+live-2, 2); got[1].GetDetail() != "49" {
		t.Errorf("the last one is %v", got[1])
	}
}

func TestAFollowerThatFellBehindGoesOnFromTheStore(t *testing.T) {
	t.Parallel()
	l := &Log{people: newPeople(), others: newOthers(), tail: tail{grown: make(chan struct{})}}
	for i := range uint64(5*maxTail + 3) {
		l.tail.add(&stopgapv1.AuditEntry{Sequence: i + 1})
		if n := uint64(len(l.tail.entries)); n > 2*maxTail || l.tail.after+n != i+1 {
			t.Fatalf("after %d entries the tail has %d of them, after %d", i+1, n, l.tail.after)
		}
	}
	l.sequence = 5*maxTail + 3
	l.st = &slowStore{} // an empty one: everything older was dropped
	entries, err := l.Since(t.Context(), 7)
	if err != nil || len(entries) == 0 || entries[0].GetSequence() != l.tail.after+1 {
		t.Errorf("%d entries, %v; want those that are still there", len(entries), err)
	}
}

func TestALogThatWasRestoredFromABackupIsNotFollowedInSilence(t *testing.T) {
	t.Parallel()
	_, load := open(t)
	l := load()
	l.Append(t.Context(), ann, "test", "x", "")
	if _, err := l.Since(t.Context(), 2); !errors.Is(err, ErrAhead) {
		t.Errorf("after an entry that the log has not: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Since(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("after the last entry, with a context that ended: %v", err)
	}
}

// slowStore lists nothing until it may.
type slowStore struct {
	store.Store
	listing, may chan struct{}
}

func (s *slowStore) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if s.may == nil {
		return nil, 0, nil
	}
	s.listing <- struct{}{}
	<-s.may
	return s.Store.List(ctx, prefix)
}

func TestWhoReadsTheLogDoesNotHoldUpWhoAppends(t *testing.T) {
	t.Parallel()
	st, load := open(t)
	load().Append(t.Context(), ann, "test", "x", "before")
	l, err := Load(t.Context(), st, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	slow := &slowStore{Store: st, listing: make(chan struct{}), may: make(chan struct{})}
	l.st = slow
	var wg sync.WaitGroup
	for _, read := range []func(){
		func() { _, _, _ = l.List(t.Context(), 0) },
		func() { _, _ = l.Since(t.Context(), 0) },
	} {
		wg.Go(read)
		<-slow.listing // it reads now, and does not end
	}
	l.Append(t.Context(), ann, "test", "x", "while both read")
	close(slow.may)
	wg.Wait()
	if got := follow(t, l, 1, 1); got[0].GetDetail() != "while both read" {
		t.Errorf("%v", got[0])
	}
}
