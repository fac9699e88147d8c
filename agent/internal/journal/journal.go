// Package journal is what an agent must not forget: what was on the server before each change, what it is about to do,
// what it has still to report, its policy, and what the server's administrator decided. It lives in one bbolt file; what
// can't be read again from the server (the values from before) also stands in plain files beside it.
//
// It decides nothing and never looks at the server.
package journal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/files"
)

// File is the journal's file name in the state directory.
const File = "journal.db"

// MaxOutbox bounds the outcomes that wait for a controller; past it the oldest go. An agent that is alone reports only
// changes, a handful a day.
const MaxOutbox = 4096

// LockTimeout bounds the wait for another process to let go of the journal.
const LockTimeout = 3 * time.Second

// Phase is how far a change has come.
type Phase string

// The phases. There is no phase for "undone": then the record is gone.
const (
	// Intended: about to be made, or made and not yet read back.
	Intended Phase = "intended"
	// Applied: made and read back.
	Applied Phase = "applied"
	// Reverting: about to be undone, or undone and not yet read back.
	Reverting Phase = "reverting"
)

// Change is one action that is, or may be, in force.
type Change struct {
	Ref   host.Ref        `json:"ref"`
	Spec  json.RawMessage `json:"spec"` // the Action as protobuf JSON
	Prior host.Prior      `json:"prior"`
	Phase Phase           `json:"phase"`
	Since time.Time       `json:"since"`
	// Protected is since when any revision of the mitigation has been in force without a gap.
	Protected time.Time `json:"protected"`
	Build     string    `json:"build"` // Exchange build when it was made
	// Proven: it was once read back in place. A repair of it that fails does not take it off.
	Proven bool `json:"proven,omitempty"`
	// Asked: health probes were asked before the change was made, and Passed names those that passed. Who starts anew while the change
	// stands can't ask for "before" any more.
	Asked  bool     `json:"asked,omitempty"`
	Passed []string `json:"passed,omitempty"`
	// Document is the hex SHA-256 of the mitigation document.
	Document string `json:"document,omitempty"`
	// CVEs and RemoveWhen let an agent that lost the document still say what the change is for.
	CVEs []string `json:"cves,omitempty"`
}

// NewChange makes a record of an action.
func NewChange(ref host.Ref, spec *stopgapv1.Action, prior host.Prior) (Change, error) {
	raw, err := protojson.Marshal(spec)
	return Change{Ref: ref, Spec: raw, Prior: prior, Phase: Intended}, err
}

// Action is the recorded action.
func (c Change) Action() (*stopgapv1.Action, error) {
	a := &stopgapv1.Action{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.Spec, a); err != nil {
		return nil, fmt.Errorf("journal: change %s: %w", c.Ref, err)
	}
	return a, nil
}

// Block is a local block of a mitigation.
type Block struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Keep   bool      `json:"keep,omitempty"`
}

// Settlement is the end of a pass, written in one transaction.
type Settlement struct {
	// Put replaces records, Remove takes them away.
	Put    []Change
	Remove []host.Ref
	// Forget drops the originals of directories that hold nothing of ours any more.
	Forget []string
	// Outcomes are kept as the current ones and go to the outbox.
	Outcomes []*stopgapv1.Outcome
	// Drop takes away the current outcomes of mitigations that are gone for good.
	Drop []string
}

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	db    *bbolt.DB
	dir   string
	log   hclog.Logger
	mu    sync.Mutex // plain files follow the order of transactions
	epoch string
	last  uint64
	notes []string
}

var (
	bMeta      = []byte("meta")
	bSettings  = []byte("settings")
	bBlocks    = []byte("blocks")
	bPolicy    = []byte("policy")
	bChanges   = []byte("changes")
	bOriginals = []byte("originals")
	bOutbox    = []byte("outbox")
	bStates    = []byte("states")

	kEpoch = []byte("epoch")
	kSeq   = []byte("sequence")
	kBegun = []byte("begun") // the plain copies of an earlier journal were looked at
)

// ErrLocked is returned when another process has the journal.
var ErrLocked = errors.New("journal: an agent, or another command, has it open")

// Open opens or makes the journal in a state directory. A damaged file is renamed aside and a new one begun from the
// plain files beside it; Notes says so.
func Open(dir string, log hclog.Logger) (*Journal, error) { return openIn(dir, true, log) }

// OpenIntact opens the journal of a state directory for somebody who only looks: a damaged one is left as it is, and refused.
func OpenIntact(dir string, log hclog.Logger) (*Journal, error) { return openIn(dir, false, log) }

func openIn(dir string, repair bool, log hclog.Logger) (*Journal, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	path := filepath.Join(dir, File)
	if _, err := os.Stat(path); err != nil && !repair {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := files.MakePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &Journal{dir: dir, log: log}
	var db *bbolt.DB
	if !repair { // read only first: on Windows opening a file to write makes it longer
		if db, err = open(path, true); err == nil {
			err = db.Close()
		}
	}
	if err == nil {
		db, err = open(path, false)
	}
	if err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) {
			return nil, fmt.Errorf("%w (%s)", ErrLocked, path)
		}
		// Only damage is a reason to begin anew; a machine out of memory, files or rights is not.
		var pe *fs.PathError
		var errno syscall.Errno
		if errors.As(err, &pe) || errors.As(err, &errno) {
			return nil, fmt.Errorf("journal: %w", err)
		}
		if !repair {
			return nil, fmt.Errorf("journal: %s is damaged (%w); the agent begins a new one from the plain copies beside it when it starts, and %s says how to undo what is in force", path, err, UndoFile)
		}
		aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405Z")
		if rerr := os.Rename(path, aside); rerr != nil {
			return nil, fmt.Errorf("journal: damaged (%w) and can't be renamed aside: %w", err, rerr)
		}
		j.note("the journal was damaged (%v); it stands at %s and a new one was begun", err, aside)
		if db, err = open(path, false); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	j.db = db
	if err := j.init(); err != nil {
		_ = db.Close()
		return nil, err
	}
	if err := j.begin(); err != nil {
		_ = db.Close()
		return nil, err
	}
	return j, nil
}

var errDamaged = errors.New("journal: damaged")

// begin takes over the plain copies of a journal that was lost, once in the life of a new one; which of them it did is in
// the same transaction.
func (j *Journal) begin() error {
	done := false
	err := j.db.View(func(tx *bbolt.Tx) error {
		done = tx.Bucket(bMeta).Get(kBegun) != nil
		return nil
	})
	if err != nil || done {
		return err
	}
	if err := j.importPlain(); err != nil {
		stamp := time.Now().UTC().Format("20060102T150405Z")
		for _, n := range []string{PlainFile, PlainDir} {
			p := filepath.Join(j.dir, n)
			if rerr := os.Rename(p, p+".unreadable-"+stamp); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
				return fmt.Errorf("journal: the plain copies can't be used (%w) nor kept: %w", err, rerr)
			}
		}
		j.note("the plain copies of the original values can't be used (%v); they are kept as *.unreadable-%s", err, stamp)
		return j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bMeta).Put(kBegun, []byte{1}) })
	}
	return nil
}

// open opens the file and reads all of it, so that damage shows now and not in the middle of a change. bbolt panics on
// some damage, and a truncated file faults; the file that it leaves open then is closed here, or Windows could not rename it.
func open(path string, readOnly bool) (db *bbolt.DB, err error) {
	var file *os.File
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			if db != nil {
				_ = db.Close()
			}
			if file != nil {
				_ = file.Close()
			}
			db, err = nil, fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: LockTimeout, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly, PreLoadFreelist: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			file = f
			return f, err
		}})
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				_ = append(append([]byte(nil), k...), v...)
				return nil
			})
		})
	})
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	return db, nil
}

func (j *Journal) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.notes = append(j.notes, text)
	j.log.Error("journal", "problem", text)
}

// Notes says what was wrong when the journal was opened; empty when nothing was.
func (j *Journal) Notes() []string { return j.notes }

func (j *Journal) init() error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bMeta, bSettings, bBlocks, bPolicy, bChanges, bOriginals, bOutbox, bStates} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bMeta)
		if e := meta.Get(kEpoch); e != nil {
			j.epoch = string(e)
			if s := meta.Get(kSeq); len(s) == 8 {
				j.last = binary.BigEndian.Uint64(s)
			}
			return nil
		}
		return j.newEpoch(tx)
	})
}

func (j *Journal) newEpoch(tx *bbolt.Tx) error {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	j.epoch, j.last = hex.EncodeToString(b[:]), 0
	meta := tx.Bucket(bMeta)
	if err := meta.Put(kSeq, seqKey(0)); err != nil {
		return err
	}
	return meta.Put(kEpoch, []byte(j.epoch))
}

// Close closes the journal.
func (j *Journal) Close() error { return j.db.Close() }

func seqKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func changeKey(r host.Ref) []byte { return []byte(r.String()) }

// Changes gives every record, by reference.
func (j *Journal) Changes() ([]Change, error) {
	var out []Change
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bChanges).ForEach(func(k, v []byte) error {
			var c Change
			if err := json.Unmarshal(v, &c); err != nil {
				return fmt.Errorf("journal: change %s: %w", k, err)
			}
			out = append(out, c)
			return nil
		})
	})
	return out, err
}

// Put writes records before anything is done: durable when it returns, in the journal and beside it.
func (j *Journal) Put(changes []Change) error {
	return j.Settle(Settlement{Put: changes})
}

// Settle writes the end of a pass in one transaction.
func (j *Journal) Settle(s Settlement) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(s.Put) > 0 {
		// The plain file first: it may know more than the journal, never less.
		if err := j.writePlain(s.Put, nil); err != nil {
			return err
		}
	}
	seq := j.last
	err := j.db.Update(func(tx *bbolt.Tx) error {
		seq = j.last
		for _, c := range s.Put {
			data, err := json.Marshal(c)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bChanges).Put(changeKey(c.Ref), data); err != nil {
				return err
			}
		}
		for _, r := range s.Remove {
			if err := tx.Bucket(bChanges).Delete(changeKey(r)); err != nil {
				return err
			}
		}
		for _, d := range s.Forget {
			if err := tx.Bucket(bOriginals).Delete(dirKey(d)); err != nil {
				return err
			}
		}
		for _, id := range s.Drop {
			if err := tx.Bucket(bStates).Delete([]byte(id)); err != nil {
				return err
			}
		}
		for _, o := range s.Outcomes {
			data, err := proto.Marshal(o)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bStates).Put([]byte(o.GetMitigation()), data); err != nil {
				return err
			}
			seq++
			if err := tx.Bucket(bOutbox).Put(seqKey(seq), data); err != nil {
				return err
			}
		}
		if err := trim(tx.Bucket(bOutbox), MaxOutbox); err != nil {
			return err
		}
		return tx.Bucket(bMeta).Put(kSeq, seqKey(seq))
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.last = seq
	if len(s.Remove) > 0 || len(s.Forget) > 0 {
		return j.writePlain(nil, nil)
	}
	return nil
}

func dirKey(dir string) []byte { return []byte(strings.ToLower(strings.TrimRight(dir, `\/`))) }

// Original implements host.Originals.
func (j *Journal) Original(dir string) (data []byte, ok bool, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bOriginals).Get(dirKey(dir)); v != nil {
			data, ok = bytes.Clone(v), true
		}
		return nil
	})
	return data, ok, err
}

// PutOriginal implements host.Originals.
func (j *Journal) PutOriginal(dir string, data []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.writePlain(nil, map[string][]byte{string(dirKey(dir)): data}); err != nil {
		return err
	}
	return j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bOriginals).Put(dirKey(dir), data) })
}
