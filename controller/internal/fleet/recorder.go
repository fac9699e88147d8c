package fleet

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/store"
)

// Recorder commits outcomes in groups: one goroutine takes everything that waits and writes it in one transaction, so
// that a burst of twenty thousand costs a few. Nobody waits inside a transaction.
type Recorder struct {
	out   store.Outcomes
	queue chan commit

	recorded atomic.Uint64
	last     atomic.Int64
}

type commit struct {
	batch store.Batch
	done  func(store.Mark, error)
}

const (
	// queueLen bounds the batches that wait; who finds it full waits, and with it only its own agent.
	queueLen = 32 << 10
	// groupLen bounds the outcomes of one transaction.
	groupLen = 20_000
	// commitRetry is the pause after a transaction failed (disk full, say); agents keep and send again.
	commitRetry = time.Second
	// A group of busyGroup batches is the sign of a burst: then the next one is collected for linger. A transaction writes
	// every page it touches, and in a burst each touches nearly all of them.
	busyGroup = 64
	linger    = 50 * time.Millisecond
)

// NewRecorder makes a recorder.
func NewRecorder(out store.Outcomes) *Recorder {
	return &Recorder{out: out, queue: make(chan commit, queueLen)}
}

// ErrStopping is given to who waits when the controller stops.
var ErrStopping = errors.New("fleet: the controller is stopping")

// Record hands over a batch. done is called once, with the agent's mark after the batch is on disk, or an error. Record
// itself waits only while the queue is full.
func (r *Recorder) Record(ctx context.Context, b store.Batch, done func(store.Mark, error)) error {
	select {
	case r.queue <- commit{b, done}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Recorded says how many outcomes were committed since the start, and when the last of them was on disk.
func (r *Recorder) Recorded() (outcomes uint64, last time.Time) {
	return r.recorded.Load(), time.Unix(0, r.last.Load())
}

// Run commits until ctx ends; what waits then is answered with ErrStopping.
func (r *Recorder) Run(ctx context.Context) error {
	busy := false
	for {
		var first commit
		select {
		case <-ctx.Done():
			r.drain()
			return nil
		case first = <-r.queue:
		}
		group := r.collect(ctx, first, busy)
		busy = len(group) >= busyGroup
		marks, err := r.commit(ctx, group)
		for i, c := range group {
			if err != nil {
				c.done(store.Mark{}, err)
			} else {
				c.done(marks[i], nil)
			}
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(commitRetry):
			}
		}
	}
}

// collect takes what waits, for a little longer while there is a burst.
func (r *Recorder) collect(ctx context.Context, first commit, busy bool) []commit {
	group := []commit{first}
	n := len(first.batch.Outcomes)
	if busy {
		select {
		case <-ctx.Done():
		case <-time.After(linger):
		}
	}
	for n < groupLen {
		select {
		case c := <-r.queue:
			group = append(group, c)
			n += len(c.batch.Outcomes)
		default:
			return group
		}
	}
	return group
}

func (r *Recorder) commit(ctx context.Context, group []commit) ([]store.Mark, error) {
	batches := make([]store.Batch, len(group))
	n := 0
	for i, c := range group {
		batches[i] = c.batch
		n += len(c.batch.Outcomes)
	}
	marks, err := r.out.CommitBatch(ctx, batches)
	if err == nil {
		r.recorded.Add(uint64(n))
		r.last.Store(time.Now().UnixNano())
	}
	return marks, err
}

func (r *Recorder) drain() {
	for {
		select {
		case c := <-r.queue:
			c.done(store.Mark{}, ErrStopping)
		default:
			return
		}
	}
}
