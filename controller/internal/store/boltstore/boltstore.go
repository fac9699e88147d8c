// Package boltstore is the embedded store: one bbolt file, for one controller.
package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/stopgap-em/stopgap/controller/internal/store"
)

const (
	lockTimeout = 3 * time.Second
	// keptRevisions bounds the history that Watch can go back.
	keptRevisions = 10_000
	// watchBatch bounds what one Next gives.
	watchBatch = 1000
)

var (
	bKV       = []byte("kv")
	bLog      = []byte("log") // revision -> events
	bMeta     = []byte("meta")
	bCurrent  = []byte("outcomes") // mitigation \x00 agent -> OutcomeRecord
	bByAgent  = []byte("outcomes-by-agent")
	bMarks    = []byte("marks")
	bHistory  = []byte("history") // revision -> OutcomeRecords
	kRevision = []byte("revision")
	kHistory  = []byte("history-bytes")
	kDropped  = []byte("history-dropped") // the newest revision whose outcomes were dropped from the history
)

// Store implements store.Store.
type Store struct {
	db *bbolt.DB

	mu      sync.Mutex
	changed chan struct{} // closed at each commit
}

var _ store.Store = (*Store)(nil)

// Open opens or makes the file.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%w (%s)", store.ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", path, err)
	}
	s := &Store{db: db, changed: make(chan struct{})}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bKV, bLog, bMeta, bCurrent, bByAgent, bMarks, bHistory} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("store: %s: %w", path, err)
	}
	return s, nil
}

// Close implements store.Store.
func (s *Store) Close() error { return s.db.Close() }

// Outcomes implements store.Store.
func (s *Store) Outcomes() store.Outcomes { return (*outcomes)(s) }

func revKey(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func number(b []byte) int64 {
	if len(b) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

func revision(tx *bbolt.Tx) int64 { return number(tx.Bucket(bMeta).Get(kRevision)) }

func advance(tx *bbolt.Tx) (int64, error) {
	n := revision(tx) + 1
	return n, tx.Bucket(bMeta).Put(kRevision, revKey(n))
}

func (s *Store) announce() {
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

func (s *Store) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// A value is its revision and its bytes.
func decode(key, v []byte) store.KV {
	return store.KV{Key: string(key), Revision: number(v[:8]), Value: bytes.Clone(v[8:])}
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (kv store.KV, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bKV).Get([]byte(key))
		if v == nil {
			return fmt.Errorf("%w: %s", store.ErrNotFound, key)
		}
		kv = decode([]byte(key), v)
		return nil
	})
	return kv, err
}

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix string) (out []store.KV, rev int64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		rev = revision(tx)
		c := tx.Bucket(bKV).Cursor()
		p := []byte(prefix)
		for k, v := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, v = c.Next() {
			out = append(out, decode(k, v))
		}
		return nil
	})
	return out, rev, err
}

type event struct {
	Key    string
	Value  []byte
	Delete bool
}

// An event is uvarint length, key; then 0 for a deletion, or the value's uvarint length plus one, and the value.
func encodeEvents(es []event) []byte {
	var b []byte
	for _, e := range es {
		b = binary.AppendUvarint(b, uint64(len(e.Key)))
		b = append(b, e.Key...)
		if e.Delete {
			b = binary.AppendUvarint(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(e.Value))+1)
		b = append(b, e.Value...)
	}
	return b
}

var errLog = errors.New("store: the log is damaged")

func decodeEvents(b []byte) ([]event, error) {
	take := func() (uint64, bool) {
		n, w := binary.Uvarint(b)
		if w <= 0 {
			return 0, false
		}
		b = b[w:]
		return n, true
	}
	var out []event
	for len(b) > 0 {
		n, ok := take()
		if !ok || n > uint64(len(b)) {
			return nil, errLog
		}
		e := event{Key: string(b[:n])}
		b = b[n:]
		if n, ok = take(); !ok || n > uint64(len(b))+1 {
			return nil, errLog
		}
		if e.Delete = n == 0; !e.Delete {
			e.Value = bytes.Clone(b[:n-1])
			b = b[n-1:]
		}
		out = append(out, e)
	}
	return out, nil
}

// Txn implements store.Store.
func (s *Store) Txn(_ context.Context, compare []store.Compare, ops []store.Op) (rev int64, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		kv := tx.Bucket(bKV)
		for _, c := range compare {
			at := int64(0)
			if v := kv.Get([]byte(c.Key)); v != nil {
				at = number(v[:8])
			}
			if at != c.Revision {
				return fmt.Errorf("%w: %s", store.ErrConflict, c.Key)
			}
		}
		if rev, err = advance(tx); err != nil {
			return err
		}
		events := make([]event, 0, len(ops))
		for _, o := range ops {
			events = append(events, event{o.Key, o.Value, o.Delete})
			if o.Delete {
				err = kv.Delete([]byte(o.Key))
			} else {
				err = kv.Put([]byte(o.Key), append(revKey(rev), o.Value...))
			}
			if err != nil {
				return err
			}
		}
		if err := tx.Bucket(bLog).Put(revKey(rev), encodeEvents(events)); err != nil {
			return err
		}
		return compact(tx.Bucket(bLog), rev-keptRevisions)
	})
	if err != nil {
		return 0, err
	}
	s.announce()
	return rev, nil
}

// compactStep bounds what one transaction compacts.
const compactStep = 100

func compact(b *bbolt.Bucket, upTo int64) error {
	for range compactStep {
		k, _ := b.Cursor().First()
		if k == nil || number(k) > upTo {
			return nil
		}
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

type watcher struct {
	s      *Store
	prefix string
	after  int64
}

// Watch implements store.Store.
func (s *Store) Watch(_ context.Context, prefix string, after int64) (store.Watcher, error) {
	return &watcher{s, prefix, after}, s.db.View(func(tx *bbolt.Tx) error { return s.reachable(tx, after) })
}

// reachable says whether the log still has everything after a revision.
func (s *Store) reachable(tx *bbolt.Tx, after int64) error {
	if after > revision(tx) || after < revision(tx)-keptRevisions {
		return store.ErrCompacted
	}
	return nil
}

// Next implements store.Watcher.
func (w *watcher) Next(ctx context.Context) ([]store.Event, error) {
	for {
		changed := w.s.wait()
		var out []store.Event
		err := w.s.db.View(func(tx *bbolt.Tx) error {
			if err := w.s.reachable(tx, w.after); err != nil {
				return err
			}
			c := tx.Bucket(bLog).Cursor()
			for k, v := c.Seek(revKey(w.after + 1)); k != nil && len(out) < watchBatch; k, v = c.Next() {
				es, err := decodeEvents(v)
				if err != nil {
					return err
				}
				w.after = number(k)
				for _, e := range es {
					if len(e.Key) >= len(w.prefix) && e.Key[:len(w.prefix)] == w.prefix {
						ev := store.Event{KV: store.KV{Key: e.Key, Revision: w.after}}
						if !e.Delete {
							ev.Value = append([]byte{}, e.Value...)
						}
						out = append(out, ev)
					}
				}
			}
			return nil
		})
		if err != nil || len(out) > 0 {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}
