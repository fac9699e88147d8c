package identity

import (
	"fmt"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
)

// Revocation is why an agent's certificates are refused. A Record holds its text.
type Revocation struct {
	At     time.Time
	By     audit.Actor
	Reason string
}

// String is the text.
func (r Revocation) String() string {
	return fmt.Sprintf("since %s by %s: %s", r.At.UTC().Format(time.RFC3339), r.By, r.Reason)
}

// Revocation reads the text of a revoked agent's record; ok is false when the agent is not revoked. Of a text that is not as String
// writes it, everything is the reason.
func (r Record) Revocation() (v Revocation, ok bool) {
	if r.Revoked == "" {
		return v, false
	}
	v.Reason = r.Revoked
	text, found := strings.CutPrefix(r.Revoked, "since ")
	at, text, found2 := strings.Cut(text, " by ")
	by, reason, found3 := strings.Cut(text, ": ")
	when, err := time.Parse(time.RFC3339, at)
	if !found || !found2 || !found3 || err != nil {
		return v, true
	}
	return Revocation{At: when, By: audit.ParseActor(by), Reason: reason}, true
}
