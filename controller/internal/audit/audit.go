// Package audit is the log of what was decided and refused: who, what, on what, when. Each entry carries a hash over the one
// before and itself, so that an entry can't be changed or taken out from the middle unseen.
package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

const (
	prefix = "audit/"
	keyFmt = prefix + "%020d"
	// kept bounds the log; what is older belongs in a SIEM. The chain goes on from the last entry dropped.
	kept = 50_000
	// dropAt is how many over the bound are dropped in one go.
	dropAt  = 1000
	maxText = 1 << 10
	// maxList bounds one answer.
	maxList = 1000
)

// Log appends and lists. It is safe for concurrent use.
type Log struct {
	st  store.Store
	log hclog.Logger

	mu    sync.Mutex
	last  uint64
	first uint64
	hash  []byte
}

// Load finds the end of the log.
func Load(ctx context.Context, st store.Store, log hclog.Logger) (*Log, error) {
	l := &Log{st: st, log: log, first: 1}
	kvs, _, err := st.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	if len(kvs) == 0 {
		return l, nil
	}
	first, last := &stopgapv1.AuditEntry{}, &stopgapv1.AuditEntry{}
	if err := errors.Join(proto.Unmarshal(kvs[0].Value, first), proto.Unmarshal(kvs[len(kvs)-1].Value, last)); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	l.first, l.last, l.hash = first.GetSequence(), last.GetSequence(), last.GetHash()
	return l, nil
}

// chain is the hash of an entry: over the hash before it and its own fields, in a fixed encoding.
func chain(before []byte, e *stopgapv1.AuditEntry) []byte {
	h := sha256.New()
	h.Write(before)
	for _, s := range []string{fmt.Sprint(e.GetSequence()), fmt.Sprint(e.GetTime().AsTime().UnixNano()), e.GetActor(), e.GetAction(), e.GetSubject(), e.GetDetail()} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return h.Sum(nil)
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "?") }

// Append adds an entry, durably. An entry that can't be written is logged as an error: what it tells of has happened.
func (l *Log) Append(ctx context.Context, actor, action, subject, format string, args ...any) {
	e := &stopgapv1.AuditEntry{Time: timestamppb.New(time.Now()), Actor: clip(actor), Action: action, Subject: clip(subject), Detail: clip(fmt.Sprintf(format, args...))}
	l.log.Info("audit", "actor", e.GetActor(), "action", e.GetAction(), "subject", e.GetSubject(), "detail", e.GetDetail())
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Sequence = l.last + 1
	e.Hash = chain(l.hash, e)
	raw, err := proto.Marshal(e)
	ops := []store.Op{{Key: fmt.Sprintf(keyFmt, e.GetSequence()), Value: raw}}
	first := l.first
	if e.GetSequence()-first >= kept+dropAt {
		for ; e.GetSequence()-first >= kept; first++ {
			ops = append(ops, store.Op{Key: fmt.Sprintf(keyFmt, first), Delete: true})
		}
	}
	if err == nil {
		_, err = l.st.Txn(context.WithoutCancel(ctx), nil, ops)
	}
	if err != nil {
		l.log.Error("the audit log can't be written", "action", action, "error", err)
		return
	}
	l.last, l.hash, l.first = e.GetSequence(), e.GetHash(), first
}

// List gives entries after a sequence number, and checks the chain over everything kept.
func (l *Log) List(ctx context.Context, after uint64) (*stopgapv1.ListAuditResponse, error) {
	kvs, _, err := l.st.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := &stopgapv1.ListAuditResponse{ChainHolds: true}
	var before []byte
	for i, kv := range kvs {
		e := &stopgapv1.AuditEntry{}
		if err := proto.Unmarshal(kv.Value, e); err != nil {
			return nil, fmt.Errorf("audit: %s: %w", kv.Key, err)
		}
		// The first one kept may follow one that was dropped; its own hash is then the beginning.
		whole := i > 0 || e.GetSequence() == 1
		if out.ChainHolds && (fmt.Sprintf(keyFmt, e.GetSequence()) != kv.Key || whole && string(chain(before, e)) != string(e.GetHash())) {
			out.ChainHolds, out.BrokenAt = false, max(e.GetSequence(), 1)
		}
		before = e.GetHash()
		if e.GetSequence() > after && len(out.Entries) < maxList {
			out.Entries = append(out.Entries, e)
		}
	}
	return out, nil
}
