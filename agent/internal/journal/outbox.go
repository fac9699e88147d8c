package journal

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// trim deletes the oldest entries beyond a limit.
func trim(b *bbolt.Bucket, limit int) error {
	n := 0
	if err := b.ForEach(func(_, _ []byte) error { n++; return nil }); err != nil {
		return err
	}
	for ; n > limit; n-- {
		k, _ := b.Cursor().First()
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Outcomes gives the current outcome of each mitigation.
func (j *Journal) Outcomes() (map[string]*stopgapv1.Outcome, error) {
	out := map[string]*stopgapv1.Outcome{}
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bStates).ForEach(func(k, v []byte) error {
			o := &stopgapv1.Outcome{}
			if err := proto.Unmarshal(v, o); err != nil {
				return fmt.Errorf("journal: outcome %s: %w", k, err)
			}
			out[string(k)] = o
			return nil
		})
	})
	return out, err
}

// Mark is the journal's epoch and the highest sequence number given out in it.
func (j *Journal) Mark() (epoch string, sequence uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epoch, j.last
}

// Pending gives the oldest unacknowledged outcomes after a sequence number, at most n.
func (j *Journal) Pending(after uint64, n int) (epoch string, out []*stopgapv1.SequencedOutcome, err error) {
	j.mu.Lock()
	epoch = j.epoch
	j.mu.Unlock()
	err = j.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bOutbox).Cursor()
		for k, v := c.Seek(seqKey(after + 1)); k != nil && len(out) < n; k, v = c.Next() {
			o := &stopgapv1.Outcome{}
			if err := proto.Unmarshal(v, o); err != nil {
				return fmt.Errorf("journal: outbox: %w", err)
			}
			out = append(out, &stopgapv1.SequencedOutcome{Sequence: binary.BigEndian.Uint64(k), Outcome: o})
		}
		return nil
	})
	return epoch, out, err
}

// OutboxLen says how many outcomes wait.
func (j *Journal) OutboxLen() int {
	n := 0
	_ = j.db.View(func(tx *bbolt.Tx) error {
		n = tx.Bucket(bOutbox).Stats().KeyN
		return nil
	})
	return n
}

// Acknowledged takes everything up to a mark out of the outbox. A mark of another epoch is ignored.
func (j *Journal) Acknowledged(epoch string, sequence uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if epoch != j.epoch {
		return nil
	}
	return j.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bOutbox)
		for k, _ := b.Cursor().First(); k != nil && binary.BigEndian.Uint64(k) <= sequence; k, _ = b.Cursor().First() {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// RollBack begins a new epoch: this journal is an older copy of itself (a restored snapshot), its numbers were used
// already. Everything current is reported again.
func (j *Journal) RollBack() error { return j.again(true) }

// ReportAll puts every current outcome into the outbox again, in place of what waits there.
func (j *Journal) ReportAll() error { return j.again(false) }

func (j *Journal) again(newEpoch bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	epoch, last := j.epoch, j.last
	err := j.db.Update(func(tx *bbolt.Tx) error {
		if newEpoch {
			if err := j.newEpoch(tx); err != nil {
				return err
			}
		}
		if err := tx.DeleteBucket(bOutbox); err != nil {
			return err
		}
		out, err := tx.CreateBucket(bOutbox)
		if err != nil {
			return err
		}
		err = tx.Bucket(bStates).ForEach(func(_, v []byte) error {
			j.last++
			return out.Put(seqKey(j.last), v)
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bMeta).Put(kSeq, seqKey(j.last))
	})
	if err != nil {
		j.epoch, j.last = epoch, last
	}
	return err
}
