package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sort"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// keptHistory bounds the outcomes that Since can go back over, in bytes.
const keptHistory = 64 << 20

type outcomes Store

var _ store.Outcomes = (*outcomes)(nil)

// marks of one agent, newest epoch first: uvarint length, epoch, uvarint sequence, and so on.
func decodeMarks(b []byte) []store.Mark {
	var out []store.Mark
	for len(b) > 0 {
		n, w := binary.Uvarint(b)
		if w <= 0 || uint64(len(b)-w) < n {
			return out
		}
		epoch := string(b[w : w+int(n)])
		b = b[w+int(n):]
		seq, w := binary.Uvarint(b)
		if w <= 0 {
			return out
		}
		out = append(out, store.Mark{Epoch: epoch, Sequence: seq})
		b = b[w:]
	}
	return out
}

func encodeMarks(ms []store.Mark) []byte {
	var b []byte
	for _, m := range ms {
		b = binary.AppendUvarint(b, uint64(len(m.Epoch)))
		b = append(b, m.Epoch...)
		b = binary.AppendUvarint(b, m.Sequence)
	}
	return b
}

// put is a write that waits to be made in key order: random order costs fifteen times as much (docs/performance.md).
type put struct{ key, value []byte }

func putAll(b *bbolt.Bucket, ps []put) error {
	sort.SliceStable(ps, func(i, j int) bool { return bytes.Compare(ps[i].key, ps[j].key) < 0 })
	for i, p := range ps {
		if i+1 < len(ps) && bytes.Equal(p.key, ps[i+1].key) {
			continue // the later one stands
		}
		if err := b.Put(p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}

// CommitBatch implements store.Outcomes.
func (o *outcomes) CommitBatch(_ context.Context, batches []store.Batch) ([]store.Mark, error) {
	out := make([]store.Mark, len(batches))
	recorded := false
	err := o.db.Update(func(tx *bbolt.Tx) error {
		recorded = false
		now := timestamppb.New(time.Now())
		marks := map[string][]store.Mark{}
		var current, byAgent, markPuts []put
		var history []byte
		for i, b := range batches {
			ms, ok := marks[b.Agent]
			if !ok {
				ms = decodeMarks(tx.Bucket(bMarks).Get([]byte(b.Agent)))
			}
			ms = front(ms, b.Epoch)
			for _, so := range b.Outcomes {
				if so.GetSequence() <= ms[0].Sequence {
					continue
				}
				ms[0].Sequence = so.GetSequence()
				rec := &stopgapv1.OutcomeRecord{AgentId: b.Agent, Outcome: so.GetOutcome(), RecordedAt: now, JournalEpoch: b.Epoch,
					JournalSequence: so.GetSequence()}
				raw, err := proto.Marshal(rec)
				if err != nil {
					return err
				}
				id := so.GetOutcome().GetMitigation()
				current = append(current, put{[]byte(id + "\x00" + b.Agent), raw})
				byAgent = append(byAgent, put{[]byte(b.Agent + "\x00" + id), nil})
				history = binary.AppendUvarint(history, uint64(len(raw)))
				history = append(history, raw...)
			}
			marks[b.Agent] = ms
			out[i] = ms[0]
		}
		if len(current) == 0 {
			return nil
		}
		recorded = true
		for agent, ms := range marks {
			markPuts = append(markPuts, put{[]byte(agent), encodeMarks(ms)})
		}
		if err := putAll(tx.Bucket(bCurrent), current); err != nil {
			return err
		}
		if err := putNew(tx.Bucket(bByAgent), byAgent); err != nil {
			return err
		}
		if err := putAll(tx.Bucket(bMarks), markPuts); err != nil {
			return err
		}
		return keep(tx, history)
	})
	if err != nil {
		return nil, fmt.Errorf("store: outcomes: %w", err)
	}
	if recorded {
		(*Store)(o).announce()
	}
	return out, nil
}

// putNew writes keys that are not there yet: an index changes rarely, and a write costs more than a look.
func putNew(b *bbolt.Bucket, ps []put) error {
	var fresh []put
	for _, p := range ps {
		if b.Get(p.key) == nil {
			p.value = []byte{1}
			fresh = append(fresh, p)
		}
	}
	return putAll(b, fresh)
}

// front brings an epoch to the front of an agent's marks, making it if it is new, and forgets the oldest beyond the bound.
func front(ms []store.Mark, epoch string) []store.Mark {
	for i, m := range ms {
		if m.Epoch == epoch {
			copy(ms[1:i+1], ms[:i])
			ms[0] = m
			return ms
		}
	}
	ms = append([]store.Mark{{Epoch: epoch}}, ms...)
	return ms[:min(len(ms), store.MaxEpochs)]
}

// keep appends to the history and drops what is over the bound, oldest first.
func keep(tx *bbolt.Tx, history []byte) error {
	rev, err := advance(tx)
	if err != nil {
		return err
	}
	h := tx.Bucket(bHistory)
	if err := h.Put(revKey(rev), history); err != nil {
		return err
	}
	total := number(tx.Bucket(bMeta).Get(kHistory)) + int64(len(history))
	for total > keptHistory {
		k, v := h.Cursor().First()
		if k == nil || number(k) == rev {
			break
		}
		total -= int64(len(v))
		if err := tx.Bucket(bMeta).Put(kDropped, bytes.Clone(k)); err != nil {
			return err
		}
		if err := h.Delete(k); err != nil {
			return err
		}
	}
	return tx.Bucket(bMeta).Put(kHistory, revKey(total))
}

// Mark implements store.Outcomes.
func (o *outcomes) Mark(_ context.Context, agent, epoch string) (m store.Mark, err error) {
	m.Epoch = epoch
	err = o.db.View(func(tx *bbolt.Tx) error {
		for _, x := range decodeMarks(tx.Bucket(bMarks).Get([]byte(agent))) {
			if x.Epoch == epoch {
				m = x
			}
		}
		return nil
	})
	return m, err
}

// Current implements store.Outcomes.
func (o *outcomes) Current(_ context.Context, mitigation string) (out []*stopgapv1.OutcomeRecord, rev int64, err error) {
	var prefix []byte
	if mitigation != "" {
		prefix = []byte(mitigation + "\x00")
	}
	err = o.db.View(func(tx *bbolt.Tx) error {
		rev = revision(tx)
		c := tx.Bucket(bCurrent).Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			r := &stopgapv1.OutcomeRecord{}
			if err := proto.Unmarshal(v, r); err != nil {
				return fmt.Errorf("store: outcome %q: %w", k, err)
			}
			out = append(out, r)
		}
		return nil
	})
	return out, rev, err
}

// readable is a current outcome as stored under a key, or one that says that it can't be read: one damaged record must not hide
// all others.
func readable(mitigation, agent string, value []byte) *stopgapv1.OutcomeRecord {
	r := &stopgapv1.OutcomeRecord{}
	if err := proto.Unmarshal(value, r); err != nil {
		return &stopgapv1.OutcomeRecord{AgentId: agent, Outcome: &stopgapv1.Outcome{Mitigation: mitigation,
			Reason: fmt.Sprintf("the stored outcome can't be read: %v", err)}}
	}
	return r
}

// Scan implements store.Outcomes.
func (o *outcomes) Scan(ctx context.Context, after store.Position, visit func(r *stopgapv1.OutcomeRecord) bool) (rev int64, err error) {
	err = o.db.View(func(tx *bbolt.Tx) error {
		rev = revision(tx)
		c := tx.Bucket(bCurrent).Cursor()
		k, v := c.First()
		if after != (store.Position{}) {
			last := []byte(after.Mitigation + "\x00" + after.Agent)
			if k, v = c.Seek(last); bytes.Equal(k, last) {
				k, v = c.Next()
			}
		}
		for ; k != nil; k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			id, agent, _ := bytes.Cut(k, []byte{0})
			if !visit(readable(string(id), string(agent), v)) {
				return nil
			}
		}
		return nil
	})
	return rev, err
}

// OfAgent implements store.Outcomes.
func (o *outcomes) OfAgent(_ context.Context, agent string) (out []*stopgapv1.OutcomeRecord, err error) {
	prefix := []byte(agent + "\x00")
	err = o.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bByAgent).Cursor()
		for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			v := tx.Bucket(bCurrent).Get([]byte(string(k[len(prefix):]) + "\x00" + agent))
			if v == nil {
				continue
			}
			out = append(out, readable(string(k[len(prefix):]), agent, v))
		}
		return nil
	})
	return out, err
}

// Revision implements store.Outcomes.
func (o *outcomes) Revision(context.Context) (rev int64, err error) {
	err = o.db.View(func(tx *bbolt.Tx) error {
		rev = revision(tx)
		return nil
	})
	return rev, err
}

// Since implements store.Outcomes.
func (o *outcomes) Since(ctx context.Context, after int64) (out []*stopgapv1.OutcomeRecord, next int64, err error) {
	s := (*Store)(o)
	for {
		changed := s.wait()
		err = o.db.View(func(tx *bbolt.Tx) error {
			c := tx.Bucket(bHistory).Cursor()
			if after > revision(tx) || after < number(tx.Bucket(bMeta).Get(kDropped)) {
				return store.ErrCompacted
			}
			k, v := c.Seek(revKey(after + 1))
			if k == nil {
				return nil
			}
			next = number(k)
			for len(v) > 0 {
				n, w := binary.Uvarint(v)
				if w <= 0 || uint64(len(v)-w) < n {
					return fmt.Errorf("store: history %d is damaged", next)
				}
				r := &stopgapv1.OutcomeRecord{}
				if err := proto.Unmarshal(v[w:w+int(n)], r); err != nil {
					return err
				}
				out, v = append(out, r), v[w+int(n):]
			}
			return nil
		})
		if err != nil || len(out) > 0 {
			return out, next, err
		}
		select {
		case <-ctx.Done():
			return nil, after, ctx.Err()
		case <-changed:
		}
	}
}
