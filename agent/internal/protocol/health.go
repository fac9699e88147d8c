package protocol

import (
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Warnings are what an agent warns of beside what its rooms say themselves: one for each code. It is safe for concurrent use.
type Warnings struct {
	mu     sync.Mutex
	byCode map[string]*stopgapv1.Health
}

// NewWarnings makes an empty set.
func NewWarnings() *Warnings { return &Warnings{byCode: map[string]*stopgapv1.Health{}} }

// Raise adds a standing warning. One of its code that is there stays as it is.
func (w *Warnings) Raise(code, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byCode[code] == nil {
		w.byCode[code] = &stopgapv1.Health{Code: code, Text: text, Since: timestamppb.Now()}
	}
}

// Set raises a warning with this text, whose time stays, or removes it when the text is empty.
func (w *Warnings) Set(code, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch old := w.byCode[code]; {
	case text == "":
		delete(w.byCode, code)
	case old == nil:
		w.byCode[code] = &stopgapv1.Health{Code: code, Text: text, Since: timestamppb.Now()}
	default:
		w.byCode[code] = &stopgapv1.Health{Code: code, Text: text, Since: old.GetSince()}
	}
}

// List gives the warnings, in no order.
func (w *Warnings) List() []*stopgapv1.Health {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*stopgapv1.Health
	for _, h := range w.byCode {
		out = append(out, h)
	}
	return out
}
