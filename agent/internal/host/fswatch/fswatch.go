// Package fswatch tells when files in directories change. It decides nothing about them.
package fswatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long changes are collected before they are told: editors write a file in several steps.
const settle = 100 * time.Millisecond

// hub is the process's one watcher of the operating system, which has few of them for each user, and who listens to it.
type hub struct {
	mu   sync.Mutex
	w    *fsnotify.Watcher // nil while nobody listens
	done chan struct{}     // closed when its reader has ended
	dirs map[string]int    // how many listen to a directory

	// names guards subs and their dirs. It is never held while the watcher is called: on Windows adding and removing a directory
	// wait for the watcher's own reader, which waits for read to take its events, and read takes names.
	names sync.Mutex
	subs  map[*sub]bool
}

// sub is one listener. Its channels hold one entry each: that something changed is enough to know.
type sub struct {
	dirs     map[string]bool
	relevant func(string) bool
	changed  chan struct{}
	lost     chan struct{}
}

var shared = &hub{dirs: map[string]int{}, subs: map[*sub]bool{}}

func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// join adds a listener; a directory that does not exist is left out.
func (h *hub) join(s *sub, dirs []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.w == nil {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return err
		}
		h.w, h.done = w, make(chan struct{})
		go h.read(w, h.done)
	}
	h.names.Lock()
	h.subs[s] = true
	h.names.Unlock()
	for _, d := range dirs {
		d = filepath.Clean(d)
		if s.dirs[d] {
			continue
		}
		if h.dirs[d] == 0 {
			if err := h.w.Add(d); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return fmt.Errorf("watch %s: %w", d, err)
			}
		}
		h.dirs[d]++
		h.names.Lock()
		s.dirs[d] = true
		h.names.Unlock()
	}
	return nil
}

// leave takes a listener away, and with the last one the watcher.
func (h *hub) leave(s *sub) {
	h.mu.Lock()
	h.names.Lock()
	delete(h.subs, s) // from here on nobody but us reads s.dirs
	last := len(h.subs) == 0
	h.names.Unlock()
	for d := range s.dirs {
		if h.dirs[d]--; h.dirs[d] == 0 {
			delete(h.dirs, d)
			if h.w != nil {
				_ = h.w.Remove(d)
			}
		}
	}
	var w *fsnotify.Watcher
	done := h.done
	if last {
		w, h.w = h.w, nil
		clear(h.dirs)
	}
	h.mu.Unlock()
	if w != nil {
		_ = w.Close()
		<-done
	}
}

// read hands events to whoever listens to their directory.
func (h *hub) read(w *fsnotify.Watcher, done chan struct{}) {
	defer close(done)
	for {
		select {
		case ev, ok := <-w.Events:
			if !ok {
				return
			}
			dir, name := filepath.Dir(ev.Name), strings.ToLower(filepath.Base(ev.Name))
			h.names.Lock()
			for s := range h.subs {
				if s.dirs[dir] && s.relevant(name) {
					tell(s.changed)
				}
			}
			h.names.Unlock()
		case _, ok := <-w.Errors: // events may be lost (overflow): everybody looks
			if !ok {
				return
			}
			h.names.Lock()
			for s := range h.subs {
				tell(s.lost)
			}
			h.names.Unlock()
		}
	}
}

// Watch calls changed once when it has begun to watch, and then whenever a file that is relevant, by its lower-case base name,
// may have changed, until ctx ends. A directory that does not exist is left out.
func Watch(ctx context.Context, dirs []string, relevant func(name string) bool, changed func()) error {
	s := &sub{dirs: map[string]bool{}, relevant: relevant, changed: make(chan struct{}, 1), lost: make(chan struct{}, 1)}
	err := shared.join(s, dirs)
	defer shared.leave(s)
	if err != nil {
		return err
	}
	changed()
	var timer <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			if timer == nil {
				timer = time.After(settle)
			}
		case <-s.lost:
			changed()
		case <-timer:
			timer = nil
			changed()
		}
	}
}

// IISConfig says whether a lower-case file name can be one of IIS's configuration files: besides web.config and those of the server,
// any that a section's configSource names. The files that the agent itself has beside one for a moment are none.
func IISConfig(name string) bool {
	return strings.HasSuffix(name, ".config") && !strings.Contains(name, ".stopgap-")
}
