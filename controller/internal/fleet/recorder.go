package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/store"
)

// Recorder commits outcomes in groups: one goroutine takes everything that waits and writes it in one transaction, so
// that a burst of twenty thousand costs a few. Nobody waits inside a transaction.
type Recorder struct {
	out   store.Outcomes
	queue chan commit
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

// Run commits until ctx ends; what waits then is answered with ErrStopping.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		var group []commit
		select {
		case <-ctx.Done():
			r.drain()
			return nil
		case c := <-r.queue:
			group = append(group, c)
		}
		n := len(group[0].batch.Outcomes)
	more:
		for n < groupLen {
			select {
			case c := <-r.queue:
				group = append(group, c)
				n += len(c.batch.Outcomes)
			default:
				break more
			}
		}
		batches := make([]store.Batch, len(group))
		for i, c := range group {
			batches[i] = c.batch
		}
		marks, err := r.out.CommitBatch(ctx, batches)
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
