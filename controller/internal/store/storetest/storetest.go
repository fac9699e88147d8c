// Package storetest is the behaviour every store must have.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Run runs the suite. open makes an empty store; reopen closes it and opens the same data again.
func Run(t *testing.T, open func(t *testing.T) store.Store, reopen func(t *testing.T, s store.Store) store.Store) {
	ctx := func(t *testing.T) context.Context {
		c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		return c
	}
	put := func(t *testing.T, s store.Store, k, v string) int64 {
		t.Helper()
		rev, err := s.Txn(ctx(t), nil, []store.Op{{Key: k, Value: []byte(v)}})
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}

	t.Run("a key that was written is read, listed in order, and gone when deleted", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		if _, err := s.Get(ctx(t), "a/1"); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("empty store: %v", err)
		}
		put(t, s, "b/1", "x")
		rev := put(t, s, "a/2", "two")
		put(t, s, "a/1", "one")
		kv, err := s.Get(ctx(t), "a/2")
		if err != nil || string(kv.Value) != "two" || kv.Revision != rev {
			t.Fatalf("got %+v, %v", kv, err)
		}
		kvs, at, err := s.List(ctx(t), "a/")
		if err != nil || len(kvs) != 2 || kvs[0].Key != "a/1" || kvs[1].Key != "a/2" || at != rev+1 {
			t.Fatalf("got %+v at %d, %v", kvs, at, err)
		}
		if _, err := s.Txn(ctx(t), nil, []store.Op{{Key: "a/2", Delete: true}}); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s)
		if kvs, _, _ = s.List(ctx(t), "a/"); len(kvs) != 1 {
			t.Fatalf("after delete and reopen: %+v", kvs)
		}
	})

	t.Run("a transaction whose comparison fails writes nothing", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		rev := put(t, s, "k", "1")
		for _, c := range []store.Compare{{Key: "k", Revision: rev + 1}, {Key: "k"}, {Key: "other", Revision: 1}} {
			_, err := s.Txn(ctx(t), []store.Compare{c}, []store.Op{{Key: "k", Value: []byte("2")}, {Key: "n", Value: []byte("2")}})
			if !errors.Is(err, store.ErrConflict) {
				t.Fatalf("%+v: %v", c, err)
			}
		}
		if kv, _ := s.Get(ctx(t), "k"); string(kv.Value) != "1" || kv.Revision != rev {
			t.Fatalf("got %+v", kv)
		}
		if _, err := s.Txn(ctx(t), []store.Compare{{Key: "k", Revision: rev}, {Key: "n"}}, []store.Op{{Key: "n", Value: []byte("2")}}); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("of many who compare and write at once one wins each time", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		const writers, each = 8, 10
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for done := 0; done < each; {
					n, rev := byte(0), int64(0)
					if kv, err := s.Get(ctx(t), "n"); err == nil {
						n, rev = kv.Value[0], kv.Revision
					}
					_, err := s.Txn(ctx(t), []store.Compare{{Key: "n", Revision: rev}}, []store.Op{{Key: "n", Value: []byte{n + 1}}})
					switch {
					case err == nil:
						done++
					case !errors.Is(err, store.ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if kv, err := s.Get(ctx(t), "n"); err != nil || kv.Value[0] != writers*each {
			t.Fatalf("got %v, %v", kv.Value, err)
		}
	})

	t.Run("a watcher sees every change below its prefix in order, from the revision it names", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		put(t, s, "w/0", "before")
		_, rev, err := s.List(ctx(t), "w/")
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "w/1", "a")
		w, err := s.Watch(ctx(t), "w/", rev)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = s.Txn(context.WithoutCancel(ctx(t)), nil, []store.Op{{Key: "x/1", Value: []byte("no")}, {Key: "w/2", Value: []byte("b")}})
			_, _ = s.Txn(context.WithoutCancel(ctx(t)), nil, []store.Op{{Key: "w/1", Delete: true}})
		}()
		var got []string
		for len(got) < 3 {
			es, err := w.Next(ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				v := "-"
				if e.Value != nil {
					v = string(e.Value)
				}
				got = append(got, e.Key+"="+v)
			}
		}
		if fmt.Sprint(got) != "[w/1=a w/2=b w/1=-]" {
			t.Fatalf("got %v", got)
		}
		if _, err := s.Watch(ctx(t), "w/", rev+1_000_000); !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("a revision of the future: %v", err)
		}
	})

	t.Run("outcomes", func(t *testing.T) { outcomes(t, ctx, open, reopen) })
}

func seq(n uint64, mitigation string, state stopgapv1.OutcomeState) *stopgapv1.SequencedOutcome {
	return &stopgapv1.SequencedOutcome{Sequence: n, Outcome: &stopgapv1.Outcome{Mitigation: mitigation, State: state}}
}

const (
	applied = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED
	failed  = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED
)

func outcomes(t *testing.T, ctx func(*testing.T) context.Context, open func(t *testing.T) store.Store, reopen func(t *testing.T, s store.Store) store.Store) {
	t.Run("what comes twice is recorded once, also within one batch and after a restart", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		o := s.Outcomes()
		b := store.Batch{Agent: "a1", Epoch: "e1", Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M1", failed), seq(2, "M1", applied)}}
		marks, err := o.CommitBatch(ctx(t), []store.Batch{b, b, {Agent: "a2", Epoch: "e", Outcomes: b.Outcomes[:1]}})
		if err != nil || marks[0] != (store.Mark{Epoch: "e1", Sequence: 2}) || marks[1] != marks[0] || marks[2].Sequence != 1 {
			t.Fatalf("got %v, %v", marks, err)
		}
		s = reopen(t, s)
		o = s.Outcomes()
		if _, err := o.CommitBatch(ctx(t), []store.Batch{b}); err != nil {
			t.Fatal(err)
		}
		recs, next, err := o.Since(ctx(t), 0)
		if err != nil || len(recs) != 3 {
			t.Fatalf("recorded %d times, %v", len(recs), err)
		}
		if rev, _ := o.Revision(ctx(t)); rev != next {
			t.Fatalf("something was recorded after %d: revision %d", next, rev)
		}
		cur, _, err := o.Current(ctx(t), "M1")
		if err != nil || len(cur) != 2 || cur[0].GetAgentId() != "a1" || cur[0].GetOutcome().GetState() != applied || cur[0].GetRecordedAt() == nil {
			t.Fatalf("got %v, %v", cur, err)
		}
		if m, err := o.Mark(ctx(t), "a1", "e1"); err != nil || m.Sequence != 2 {
			t.Fatalf("mark %v, %v", m, err)
		}
		if m, err := o.Mark(ctx(t), "a1", "other"); err != nil || m.Sequence != 0 {
			t.Fatalf("mark of an unknown epoch %v, %v", m, err)
		}
	})

	t.Run("a new journal epoch counts from one, and the old one is still remembered", func(t *testing.T) {
		t.Parallel()
		o := open(t).Outcomes()
		for i, epoch := range []string{"e1", "e2", "e1"} {
			ms, err := o.CommitBatch(ctx(t), []store.Batch{{Agent: "a", Epoch: epoch, Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M1", applied)}}})
			if err != nil || ms[0] != (store.Mark{Epoch: epoch, Sequence: 1}) {
				t.Fatalf("%d: %v, %v", i, ms, err)
			}
		}
		total := 0
		for after := int64(0); total < 2; {
			recs, next, err := o.Since(ctx(t), after)
			if err != nil {
				t.Fatal(err)
			}
			total, after = total+len(recs), next
			if rev, _ := o.Revision(ctx(t)); after == rev {
				break
			}
		}
		if total != 2 {
			t.Fatalf("recorded %d times, want once for each epoch", total)
		}
	})

	t.Run("an agent's outcomes are found by agent, all by mitigation", func(t *testing.T) {
		t.Parallel()
		o := open(t).Outcomes()
		_, err := o.CommitBatch(ctx(t), []store.Batch{
			{Agent: "b", Epoch: "e", Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M2", applied), seq(2, "M1", applied)}},
			{Agent: "a", Epoch: "e", Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M1", failed)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		of, err := o.OfAgent(ctx(t), "b")
		if err != nil || len(of) != 2 || of[0].GetOutcome().GetMitigation() != "M1" {
			t.Fatalf("got %v, %v", of, err)
		}
		all, _, err := o.Current(ctx(t), "")
		if err != nil || len(all) != 3 || all[0].GetAgentId() != "a" {
			t.Fatalf("got %v, %v", all, err)
		}
	})

	t.Run("current outcomes are read on from any position", func(t *testing.T) {
		t.Parallel()
		o := open(t).Outcomes()
		_, err := o.CommitBatch(ctx(t), []store.Batch{
			{Agent: "b", Epoch: "e", Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M2", applied), seq(2, "M1", applied)}},
			{Agent: "a", Epoch: "e", Outcomes: []*stopgapv1.SequencedOutcome{seq(1, "M1", failed), seq(2, "M10", failed)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := "M1/a M1/b M10/a M2/b "
		for _, at := range []int{1, 2, 3, 10} { // so many at a time
			got, after := "", store.Position{}
			for n := at; n == at; {
				n = 0
				rev, err := o.Scan(ctx(t), after, func(r *stopgapv1.OutcomeRecord) bool {
					after = store.Position{Mitigation: r.GetOutcome().GetMitigation(), Agent: r.GetAgentId()}
					got += after.Mitigation + "/" + after.Agent + " "
					n++
					return n < at
				})
				if now, _ := o.Revision(ctx(t)); err != nil || rev != now {
					t.Fatalf("revision %d, not %d: %v", rev, now, err)
				}
			}
			if got != want {
				t.Errorf("%d at a time: %s, want %s", at, got, want)
			}
		}
		// After a position whose outcome is not there.
		got := ""
		if _, err := o.Scan(ctx(t), store.Position{Mitigation: "M1", Agent: "aa"}, func(r *stopgapv1.OutcomeRecord) bool {
			got = r.GetAgentId()
			return false
		}); err != nil || got != "b" {
			t.Errorf("%q, %v", got, err)
		}
	})

	t.Run("who waits for outcomes is woken by the next", func(t *testing.T) {
		t.Parallel()
		o := open(t).Outcomes()
		got := make(chan int, 1)
		go func() {
			recs, _, err := o.Since(ctx(t), 0)
			if err != nil {
				t.Error(err)
			}
			got <- len(recs)
		}()
		if _, err := o.CommitBatch(ctx(t), []store.Batch{{Agent: "a", Epoch: "e", Outcomes: []*stopgapv1.SequencedOutcome{seq(7, "M1", applied)}}}); err != nil {
			t.Fatal(err)
		}
		if n := <-got; n != 1 {
			t.Fatalf("woken with %d", n)
		}
		c, cancel := context.WithCancel(ctx(t))
		cancel()
		rev, _ := o.Revision(ctx(t))
		if _, _, err := o.Since(c, rev); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
		if _, _, err := o.Since(ctx(t), rev+1_000_000); !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("a revision of the future: %v", err)
		}
	})

	t.Run("an empty group is no revision", func(t *testing.T) {
		t.Parallel()
		o := open(t).Outcomes()
		if _, err := o.CommitBatch(ctx(t), nil); err != nil {
			t.Fatal(err)
		}
		if rev, err := o.Revision(ctx(t)); err != nil || rev != 0 {
			t.Fatalf("revision %d, %v", rev, err)
		}
	})
}
