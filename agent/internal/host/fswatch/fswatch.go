// Package fswatch tells when files in directories change. It decides nothing about them.
package fswatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long changes are collected before they are told: editors write a file in several steps.
const settle = 100 * time.Millisecond

// Watch calls changed once when it has begun to watch, and then whenever a file that is relevant, by its lower-case base name,
// may have changed, until ctx ends. A directory that does not exist is left out.
func Watch(ctx context.Context, dirs []string, relevant func(name string) bool, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	for _, d := range dirs {
		if err := w.Add(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch %s: %w", d, err)
		}
	}
	changed()
	var timer <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-w.Events:
			if relevant(strings.ToLower(filepath.Base(ev.Name))) && timer == nil {
				timer = time.After(settle)
			}
		case err := <-w.Errors:
			if err != nil {
				changed() // events may be lost (overflow): look
			}
		case <-timer:
			timer = nil
			changed()
		}
	}
}

// IISConfig says whether a lower-case file name is one of IIS's configuration files.
func IISConfig(name string) bool {
	return name == "web.config" || name == "applicationhost.config" || name == "redirection.config"
}
