package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// AnchorFile stands beside the journal: what trust begins from, should the journal be lost.
const AnchorFile = "trust.json"

const maxAnchor = 256 << 10

// Anchor is what trust begins from: the newest trusted root, and the lowest acceptable targets version.
type Anchor struct {
	Fleet string `json:"fleet"`
	Root  []byte `json:"root"`
	Floor uint64 `json:"floor"`
	// Replace: an administrator enrolled with --new-root; whatever the journal trusts is given up for this root.
	Replace bool `json:"replace,omitempty"`
	// Fresh: written by the first enrolment, and not brought together with a journal yet: that the journal knows nothing is no loss.
	Fresh bool `json:"fresh,omitempty"`
}

// ReadAnchor reads the anchor of a state directory; the zero Anchor when there is none.
func ReadAnchor(dir string) (Anchor, error) {
	var a Anchor
	name := filepath.Join(dir, AnchorFile)
	data, err := files.Read(name, maxAnchor)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("policy: %w", err)
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("policy: %s: %w; enrol again, or move it away and apply a bundle with its pin", name, err)
	}
	return a, nil
}

// Write replaces the anchor of a state directory in one step.
func (a Anchor) Write(dir string) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return files.Replace(filepath.Join(dir, AnchorFile), data, files.Private)
}

// Restore brings what the journal holds together with the anchor: the newer root, the higher floor. It says whether the
// journal lacked something, which is worth a warning: it is an older copy of itself, or was lost.
func Restore(h Held, a Anchor) (Held, bool, error) {
	lacked := false
	if a.Replace {
		st, err := tufpolicy.Begin(a.Root, a.Floor)
		return Held{State: st}, false, err // no policy is held then: nothing is applied, and nothing removed, until one comes
	}
	if len(a.Root) > 0 {
		info, err := tufpolicy.ReadRoot(a.Root)
		if err != nil {
			return h, false, fmt.Errorf("policy: %s: %w; enrol again", AnchorFile, err)
		}
		if info.Version > h.Versions.Root {
			st, err := tufpolicy.Begin(a.Root, a.Floor)
			if err != nil {
				return h, false, fmt.Errorf("policy: %s: %w; enrol again", AnchorFile, err)
			}
			lacked = !a.Fresh && (h.Versions.Root > 0 || h.Versions.Targets == 0 && a.Floor > 0)
			h.Root, h.Versions.Root = st.Root, st.Versions.Root
		}
	}
	h.Floor = max(h.Floor, a.Floor)
	return h, lacked, nil
}
