// Package store is what the controller's rooms keep their data in. It is small on purpose: keys with revisions, compare
// and write, watch; and for outcomes, which come in bursts of tens of thousands, an interface of their own.
//
// Every implementation passes the suite in storetest. Never through the store: heartbeats, metrics.
package store

import (
	"context"
	"errors"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Errors that callers branch on.
var (
	// ErrNotFound: no such key.
	ErrNotFound = errors.New("store: not found")
	// ErrConflict: a comparison failed; nothing was written.
	ErrConflict = errors.New("store: changed meanwhile")
	// ErrCompacted: the history asked for is gone; list again.
	ErrCompacted = errors.New("store: that history is gone; list again")
	// ErrLocked: another process has the store.
	ErrLocked = errors.New("store: another controller has it open")
)

// KV is a key with its value and the revision it was written at.
type KV struct {
	Key      string
	Value    []byte
	Revision int64
}

// Compare is a condition of a Txn: the key is at this revision; 0: it does not exist.
type Compare struct {
	Key      string
	Revision int64
}

// Op writes a key, or deletes it.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Event is a change seen by a watcher. A nil Value is a deletion.
type Event struct {
	KV
}

// Watcher gives the changes below a prefix, in order.
type Watcher interface {
	// Next blocks until there is a change, and gives all there are. ErrCompacted when the watcher fell too far behind.
	Next(ctx context.Context) ([]Event, error)
}

// Store is keys and values. It is safe for concurrent use.
type Store interface {
	// Get gives one key; ErrNotFound.
	Get(ctx context.Context, key string) (KV, error)
	// List gives every key below a prefix, in order, and the revision at which that was so.
	List(ctx context.Context, prefix string) ([]KV, int64, error)
	// Txn writes all ops if all comparisons hold, durably, and gives the new revision. ErrConflict.
	Txn(ctx context.Context, compare []Compare, ops []Op) (int64, error)
	// Watch gives what changes below a prefix after a revision; ErrCompacted, also later from Next.
	Watch(ctx context.Context, prefix string, after int64) (Watcher, error)
	// Outcomes is the part for outcomes.
	Outcomes() Outcomes
	// Close ends it.
	Close() error
}

// Batch is outcomes of one agent, as they came.
type Batch struct {
	Agent    string
	Epoch    string
	Outcomes []*stopgapv1.SequencedOutcome
}

// Mark is how far an agent's outcomes of one epoch are recorded.
type Mark struct {
	Epoch    string
	Sequence uint64
}

// Position is a place in the order of current outcomes: that of one outcome.
type Position struct {
	Mitigation, Agent string
}

// Outcomes records outcomes, each exactly once. It is safe for concurrent use.
type Outcomes interface {
	// CommitBatch records the outcomes of many agents in one durable transaction, and gives the mark of each batch
	// after it. What is at or below an agent's mark already is not recorded again: compare and advance happen in the
	// same transaction. Batches of one agent may stand in it several times, in order.
	CommitBatch(ctx context.Context, batches []Batch) ([]Mark, error)
	// Mark gives an agent's mark in an epoch; Sequence 0 when there is none.
	Mark(ctx context.Context, agent, epoch string) (Mark, error)
	// Current gives the last outcome of each mitigation on each agent, by mitigation and agent, and the revision at which
	// that was so. An empty mitigation means all.
	Current(ctx context.Context, mitigation string) ([]*stopgapv1.OutcomeRecord, int64, error)
	// Scan calls visit with the last outcome of each mitigation on each agent after a position, by mitigation and agent, until
	// visit returns false; and gives the revision at which that was so. The zero position is before the first. A stored outcome that
	// can't be read is given in the state UNSPECIFIED, with the reason. Visit must not call the store.
	Scan(ctx context.Context, after Position, visit func(r *stopgapv1.OutcomeRecord) bool) (int64, error)
	// OfAgent gives the current outcomes of one agent, by mitigation. One that can't be read is given as Scan does.
	OfAgent(ctx context.Context, agent string) ([]*stopgapv1.OutcomeRecord, error)
	// Since blocks until outcomes were recorded after a revision, and gives them with the revision to go on after. It
	// may give fewer than there are. ErrCompacted.
	Since(ctx context.Context, after int64) ([]*stopgapv1.OutcomeRecord, int64, error)
	// Revision gives the present revision.
	Revision(ctx context.Context) (int64, error)
}

// MaxEpochs bounds how many journal epochs of an agent are remembered: a restored or cloned journal begins a new one.
const MaxEpochs = 4
