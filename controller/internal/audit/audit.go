// Package audit is the log of what was decided and refused: who, what, on what, when. Each entry carries a hash over the one
// before it and itself, so that an entry can't be changed or taken out unseen.
//
// It is two logs under one count: what people and the controller decide, and what agents and strangers bring about. The second
// is bounded and slowed down by itself, so that no agent can push a person's decision out of the log.
package audit

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/limit"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
)

const (
	// kept bounds each of the two logs; what is older belongs in a SIEM. The chain goes on from the last entry dropped.
	kept = 50_000
	// dropAt is how many over the bound are dropped in one go.
	dropAt  = 1000
	maxText = 1 << 10
	// maxList bounds what a follower is given at once.
	maxList = 1000
	// What one agent (or everybody without a certificate) can write: actorBurst entries, then one in actorEvery.
	actorBurst = 30
	actorEvery = time.Minute
	maxActors  = 100_000
)

// Log appends and lists. It is safe for concurrent use.
type Log struct {
	st  store.Store
	log hclog.Logger

	mu         sync.Mutex
	sequence   uint64
	people     *chained
	others     *chained
	actors     *limit.Keyed
	suppressed map[Actor]int
	tail       tail
}

// Load finds the ends of the log.
func Load(ctx context.Context, st store.Store, log hclog.Logger) (*Log, error) {
	l := &Log{st: st, log: log, people: newPeople(), others: newOthers(), actors: limit.NewKeyed(maxActors), suppressed: map[Actor]int{},
		tail: tail{grown: make(chan struct{})}}
	for _, c := range []*chained{l.people, l.others} {
		kvs, _, err := st.List(ctx, c.prefix)
		if err != nil {
			return nil, err
		}
		if len(kvs) == 0 {
			continue
		}
		last := &stopgapv1.AuditEntry{}
		if err := proto.Unmarshal(kvs[len(kvs)-1].Value, last); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		c.last, c.hash, c.count = last.GetSequence(), last.GetHash(), len(kvs)
		l.sequence = max(l.sequence, c.last)
	}
	l.tail.after = l.sequence
	return l, nil
}

func clip(s string) string { return bounded.Text(s, maxText) }

// admitted says whether another may write now; the caller holds the lock.
func (l *Log) admitted(actor Actor) bool {
	if actor.ours() {
		return true
	}
	if !l.actors.Allow(actor.String(), limit.Rate{Every: actorEvery, Burst: actorBurst}) {
		l.suppressed[actor]++
		return false
	}
	return true
}

// Append adds an entry, durably. One that can't be written is logged as an error: what it tells of has happened. Of an agent
// that has written many only the count is kept, in its next entry.
func (l *Log) Append(ctx context.Context, actor Actor, action, subject, format string, args ...any) {
	e := &stopgapv1.AuditEntry{Time: timestamppb.New(time.Now()), ActorKind: actor.Kind, ActorName: clip(actor.Name), Action: action,
		Subject: clip(subject), Detail: clip(fmt.Sprintf(format, args...))}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.admitted(actor) {
		return
	}
	if n := l.suppressed[actor]; n > 0 {
		e.Detail = clip(fmt.Sprintf("(%d more of it were not written) %s", n, e.GetDetail()))
		delete(l.suppressed, actor)
	}
	l.log.Info("audit", "actor", actor, "action", e.GetAction(), "subject", e.GetSubject(), "detail", e.GetDetail())
	c := l.others
	if actor.ours() {
		c = l.people
	}
	e.Sequence = l.sequence + 1
	e.Hash = chain(c.hash, e)
	raw, err := proto.Marshal(e)
	ops := []store.Op{{Key: c.key(e.GetSequence()), Value: raw}, {Key: c.head, Value: fmt.Appendf(nil, "%d %x", e.GetSequence(), e.GetHash())}}
	var drop []store.Op
	if err == nil {
		drop, err = l.overflow(ctx, c)
	}
	if err == nil {
		_, err = l.st.Txn(context.WithoutCancel(ctx), nil, append(ops, drop...))
	}
	if err != nil {
		l.log.Error("the audit log can't be written", "action", action, "error", err)
		return
	}
	l.sequence, c.last, c.hash = e.GetSequence(), e.GetSequence(), e.GetHash()
	c.count += 1 - len(drop)
	l.tail.add(e)
}

// overflow gives the deletions of what is over the bound, once there is enough of it.
func (l *Log) overflow(ctx context.Context, c *chained) ([]store.Op, error) {
	if c.count < kept+dropAt {
		return nil, nil
	}
	kvs, _, err := l.st.List(ctx, c.prefix)
	if err != nil {
		return nil, err
	}
	var ops []store.Op
	for _, kv := range kvs[:max(0, len(kvs)-kept)] {
		ops = append(ops, store.Op{Key: kv.Key, Delete: true})
	}
	return ops, nil
}

// List gives the entries after a sequence number, in their order, and checks both chains over everything that is kept: broken is where
// they break, 0 when they hold. Nobody who appends waits for it.
func (l *Log) List(ctx context.Context, after uint64) (entries []*stopgapv1.AuditEntry, broken uint64, err error) {
	s, err := l.snapshot(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range []*chained{l.people, l.others} {
		some, at := s.read(c, after)
		if at > 0 && (broken == 0 || at < broken) {
			broken = at
		}
		entries = append(entries, some...)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].GetSequence() < entries[j].GetSequence() })
	return entries, broken, nil
}
