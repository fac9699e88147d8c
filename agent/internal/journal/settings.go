package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Frozen says whether the administrator froze the agent, and since when.
func (j *Journal) Frozen() (bool, time.Time, error) {
	var since time.Time
	err := j.get(bSettings, "frozen", &since)
	return !since.IsZero(), since, err
}

// SetFrozen freezes or thaws.
func (j *Journal) SetFrozen(on bool, now time.Time) error {
	if !on {
		return j.decided(j.del(bSettings, "frozen"))
	}
	return j.decided(j.put(bSettings, "frozen", now))
}

// decided brings the plain copy up to what the administrator decided: that can't be read back from the server either.
func (j *Journal) decided(err error) error {
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.writePlain(nil, nil)
}

// Blocks gives the local blocks by mitigation id.
func (j *Journal) Blocks() (map[string]Block, error) {
	out := map[string]Block{}
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bBlocks).ForEach(func(k, v []byte) error {
			var b Block
			if err := json.Unmarshal(v, &b); err != nil {
				return err
			}
			out[string(k)] = b
			return nil
		})
	})
	return out, err
}

// SetBlock blocks a mitigation.
func (j *Journal) SetBlock(id string, b Block) error { return j.decided(j.put(bBlocks, id, b)) }

// Unblock takes a block away and says whether there was one.
func (j *Journal) Unblock(id string) (bool, error) {
	blocks, err := j.Blocks()
	if err != nil {
		return false, err
	}
	if _, ok := blocks[id]; !ok {
		return false, nil
	}
	return true, j.decided(j.del(bBlocks, id))
}

// HeldPolicy is the policy as the policy room keeps it, opaque here.
func (j *Journal) HeldPolicy(v any) error { return j.get(bPolicy, "held", v) }

// PutPolicy replaces it.
func (j *Journal) PutPolicy(v any) error { return j.put(bPolicy, "held", v) }

// Assignment gives the last assignment; nil when there was none.
func (j *Journal) Assignment() (*stopgapv1.Assignment, error) {
	var raw []byte
	if err := j.get(bPolicy, "assignment", &raw); err != nil || raw == nil {
		return nil, err
	}
	a := &stopgapv1.Assignment{}
	return a, proto.Unmarshal(raw, a)
}

// PutAssignment replaces it.
func (j *Journal) PutAssignment(a *stopgapv1.Assignment) error {
	raw, err := proto.Marshal(a)
	if err != nil {
		return err
	}
	return j.put(bPolicy, "assignment", raw)
}

// ErrOtherServer is returned by Bind.
var ErrOtherServer = errors.New("journal: the state directory belongs to another server")

// Bind ties the journal to a server the first time, and after that refuses any other: what was there before on one
// server says nothing of another. undo is the command line that undoes everything, for UNDO.txt; "" keeps the old one.
func (j *Journal) Bind(machine, undo string) error {
	var bound string
	if err := j.get(bSettings, "machine", &bound); err != nil {
		return err
	}
	if bound != "" && machine != "" && bound != machine {
		return fmt.Errorf("%w (%s, and this is %s); if the server was rebuilt, move %s away", ErrOtherServer, bound, machine, j.dir)
	}
	if bound == "" && machine != "" {
		if err := j.put(bSettings, "machine", machine); err != nil {
			return err
		}
	}
	if undo != "" {
		return j.put(bSettings, "undo", undo)
	}
	return nil
}

// Repairs are the times of drift repairs of a mitigation, newest last.
func (j *Journal) Repairs(id string) ([]time.Time, error) {
	var ts []time.Time
	return ts, j.get(bSettings, "repairs/"+id, &ts)
}

// PutRepairs replaces them.
func (j *Journal) PutRepairs(id string, ts []time.Time) error {
	return j.put(bSettings, "repairs/"+id, ts)
}

func (j *Journal) get(bucket []byte, key string, v any) error {
	return j.db.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucket).Get([]byte(key))
		if data == nil {
			return nil
		}
		if err := json.Unmarshal(data, v); err != nil {
			return fmt.Errorf("journal: %s/%s: %w", bucket, key, err)
		}
		return nil
	})
}

func (j *Journal) put(bucket []byte, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), data) })
}

func (j *Journal) del(bucket []byte, key string) error {
	return j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(key)) })
}
