package audit

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// maxTail is how many of the newest entries at least are kept in memory for those who follow the log, so that following does not
// read the store; at most twice as many are.
const maxTail = 1000

// ErrAhead is returned by Since for a sequence number that the log has not reached: the log is not the one that was followed
// before, but one restored from a backup.
var ErrAhead = errors.New("audit: the log ends before that entry; it was restored from a backup")

// tail is the newest entries. Log's lock guards it.
type tail struct {
	after   uint64 // entries has every entry with a higher sequence number
	entries []*stopgapv1.AuditEntry
	// grown is closed when the next entry comes.
	grown chan struct{}
}

func (t *tail) add(e *stopgapv1.AuditEntry) {
	if len(t.entries) >= 2*maxTail { // forget half of them at once, so that not every entry costs a copy
		t.after = t.entries[maxTail-1].GetSequence()
		t.entries = append([]*stopgapv1.AuditEntry(nil), t.entries[maxTail:]...)
	}
	t.entries = append(t.entries, e)
	close(t.grown)
	t.grown = make(chan struct{})
}

// since gives a copy of the entries after a sequence number, at most maxList.
func (t *tail) since(after uint64) []*stopgapv1.AuditEntry {
	i := sort.Search(len(t.entries), func(i int) bool { return t.entries[i].GetSequence() > after })
	return append([]*stopgapv1.AuditEntry(nil), t.entries[i:min(len(t.entries), i+maxList)]...)
}

// Since gives the entries after a sequence number, oldest first and at most 1,000 of them, and waits until there is one. The
// caller goes on after the last one it got, and must not change any. Numbers have no gaps: a caller that sees one learns how
// many entries were dropped from the log before it read them. Nobody who appends waits for this. Errors: ErrAhead, or the
// context's.
func (l *Log) Since(ctx context.Context, after uint64) ([]*stopgapv1.AuditEntry, error) {
	for {
		l.mu.Lock()
		last, from, grown, entries := l.sequence, l.tail.after, l.tail.grown, l.tail.since(after)
		l.mu.Unlock()
		switch {
		case after > last:
			return nil, fmt.Errorf("%w (%d, and the log ends at %d)", ErrAhead, after, last)
		case after < from:
			var err error
			if entries, err = l.stored(ctx, after); err != nil {
				return nil, err
			}
			if len(entries) == 0 { // none of them is kept any more
				after = from
				continue
			}
		}
		if len(entries) > 0 {
			return entries, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-grown:
		}
	}
}

// stored reads the entries after a sequence number from the store, at most maxList.
func (l *Log) stored(ctx context.Context, after uint64) ([]*stopgapv1.AuditEntry, error) {
	s, err := l.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	type numbered struct {
		sequence uint64
		kv       store.KV
	}
	var found []numbered
	for _, kv := range s.kvs {
		for _, c := range []*chained{l.people, l.others} {
			if n, ok := c.sequence(kv.Key); ok && n > after {
				found = append(found, numbered{n, kv})
			}
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].sequence < found[j].sequence })
	found = found[:min(len(found), maxList)]
	out := make([]*stopgapv1.AuditEntry, len(found))
	for i, f := range found {
		e, _, err := decode(f.kv)
		if err != nil {
			return nil, err
		}
		if e.GetSequence() != f.sequence {
			return nil, fmt.Errorf("audit: %s says that it is entry %d; the log was altered", f.kv.Key, e.GetSequence())
		}
		out[i] = e
	}
	return out, nil
}
