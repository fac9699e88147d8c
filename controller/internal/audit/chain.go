package audit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// everything is the prefix of all keys of the log: entries and heads.
const everything = "audit"

// chained is one of the two logs.
type chained struct {
	prefix string // of keys; what follows is the sequence number
	head   string // key of the last entry's sequence and hash
	last   uint64
	hash   []byte
	count  int
}

func newPeople() *chained { return &chained{prefix: "audit/people/", head: "audit-head/people"} }
func newOthers() *chained { return &chained{prefix: "audit/others/", head: "audit-head/others"} }

func (c *chained) key(sequence uint64) string { return fmt.Sprintf("%s%020d", c.prefix, sequence) }

// sequence is the number in a key of the log; ok is false for other keys.
func (c *chained) sequence(key string) (n uint64, ok bool) {
	text, ok := strings.CutPrefix(key, c.prefix)
	n, err := strconv.ParseUint(text, 10, 64)
	return n, ok && err == nil
}

// chain is the hash of an entry: over the hash before it and its own fields, in a fixed encoding. An entry of before actors had
// two fields has its actor as one.
func chain(before []byte, e *stopgapv1.AuditEntry) []byte {
	actor := []string{fmt.Sprint(int32(e.GetActorKind())), e.GetActorName()}
	if e.GetActor() != "" {
		actor = []string{e.GetActor()}
	}
	fields := slices.Concat([]string{fmt.Sprint(e.GetSequence()), fmt.Sprint(e.GetTime().AsTime().UnixNano())}, actor,
		[]string{e.GetAction(), e.GetSubject(), e.GetDetail()})
	h := sha256.New()
	h.Write(before)
	for _, s := range fields {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return h.Sum(nil)
}

// decode reads an entry as stored. An old one gets both fields of its actor.
func decode(kv store.KV) (e *stopgapv1.AuditEntry, mixed bool, err error) {
	e = &stopgapv1.AuditEntry{}
	if err := proto.Unmarshal(kv.Value, e); err != nil {
		return nil, false, fmt.Errorf("audit: %s: %w", kv.Key, err)
	}
	if e.GetActor() == "" {
		return e, false, nil
	}
	// The hash of an old entry covers its actor only, so that the two fields must not come from the store.
	mixed = e.GetActorKind() != stopgapv1.ActorKind_ACTOR_KIND_UNSPECIFIED || e.GetActorName() != ""
	a := ParseActor(e.GetActor())
	e.ActorKind, e.ActorName = a.Kind, a.Name
	return e, mixed, nil
}

// snapshot is both logs and their heads as they were stored at one moment.
type snapshot struct {
	kvs []store.KV
}

// snapshot reads the store without the lock: nobody who appends waits for it.
func (l *Log) snapshot(ctx context.Context) (snapshot, error) {
	kvs, _, err := l.st.List(ctx, everything)
	return snapshot{kvs}, err
}

// entries gives the stored entries of one log, and its head.
func (s snapshot) entries(c *chained) (entries []store.KV, head string) {
	for _, kv := range s.kvs {
		if strings.HasPrefix(kv.Key, c.prefix) {
			entries = append(entries, kv)
		} else if kv.Key == c.head {
			head = string(kv.Value)
		}
	}
	return entries, head
}

// read gives one log's entries after a sequence number, and where its chain breaks; 0: nowhere.
func (s snapshot) read(c *chained, after uint64) (out []*stopgapv1.AuditEntry, broken uint64) {
	kvs, head := s.entries(c)
	var before []byte
	last := uint64(0)
	for i, kv := range kvs {
		e, mixed, err := decode(kv)
		if err != nil { // a damaged entry must not hide all others
			n, _ := c.sequence(kv.Key)
			e, mixed = &stopgapv1.AuditEntry{Sequence: n, Action: "unreadable", Detail: err.Error()}, true
		}
		// The first one kept may follow one that was dropped; its own hash is then the beginning. Nothing is dropped from a log
		// that is not full.
		begins := i == 0 && len(kvs) >= kept
		if broken == 0 && (mixed || c.key(e.GetSequence()) != kv.Key || !begins && string(chain(before, e)) != string(e.GetHash())) {
			broken = max(e.GetSequence(), 1)
		}
		before, last = e.GetHash(), e.GetSequence()
		if e.GetSequence() > after {
			out = append(out, e)
		}
	}
	if want := fmt.Sprintf("%d %x", last, before); broken == 0 && head != want && (head != "" || last > 0) {
		broken = last + 1 // the newest were taken out
	}
	return out, broken
}
