// Package event is the catalogue of what the agent writes into the Windows event log: stable ids for monitoring, and one line
// each for people (docs/events.md). It decides nothing; the agent tells it what happened.
package event

import (
	"fmt"
	"slices"

	"github.com/hashicorp/go-hclog"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Source is the name of the event source in the Application log.
const Source = "Stopgap"

// Severity of an event.
type Severity = outcome.Severity

// The severities of the Windows event log.
const (
	Info    = outcome.Info
	Warning = outcome.Warning
	Error   = outcome.Error
)

// ID is an event's stable id: 1 to 1000, what EventCreate.exe has messages for.
type ID uint32

// The events that are not an outcome's; those have their ids in shared/outcome.
const (
	Started          ID = 100
	Stopped          ID = 101
	Enrolled         ID = 102
	NotEnrolled      ID = 103
	DriftRepaired    ID = 204
	PolicyRefused    ID = 300
	ControllerLost   ID = 400
	ControllerFound  ID = 401
	Installed        ID = 500
	UninstalledKept  ID = 501
	UninstalledClean ID = 502
	Damaged          ID = 600
)

// Kind describes an event for the documentation.
type Kind struct {
	ID       ID
	Severity Severity
	Name     string
}

// Catalogue is every event.
var Catalogue = append([]Kind{
	{Started, Info, "started"},
	{Stopped, Info, "stopped"},
	{Enrolled, Info, "enrolled"},
	{NotEnrolled, Warning, "not enrolled"},
	{DriftRepaired, Warning, "drift repaired"},
	{PolicyRefused, Error, "policy refused"},
	{ControllerLost, Warning, "controller lost"},
	{ControllerFound, Info, "controller found"},
	{Installed, Info, "installed"},
	{UninstalledKept, Warning, "uninstalled, mitigations kept"},
	{UninstalledClean, Info, "uninstalled, mitigations reverted"},
	{Damaged, Error, "journal damaged"},
}, outcomes()...)

// outcomes are the events of the outcome states.
func outcomes() []Kind {
	var out []Kind
	for _, m := range outcome.All() {
		if m.Event.ID != 0 {
			out = append(out, Kind{ID(m.Event.ID), m.Event.Severity, m.Event.Name})
		}
	}
	return out
}

func severity(id ID) Severity {
	for _, k := range Catalogue {
		if k.ID == id {
			return k.Severity
		}
	}
	return Error
}

// maxText bounds an event's text, in bytes; Windows takes 31,839 characters.
const maxText = 4 << 10

// Log is where events go.
type Log interface {
	Write(id ID, s Severity, text string) error
}

// Teller writes events, to a Log if there is one, and to the program's own log always.
type Teller struct {
	log Log
	out hclog.Logger
}

// NewTeller makes a teller. log may be nil: events go to the program's log only.
func NewTeller(log Log, out hclog.Logger) *Teller { return &Teller{log: log, out: out} }

// Tell writes one event. A nil teller tells nobody.
func (t *Teller) Tell(id ID, format string, args ...any) {
	if t == nil {
		return
	}
	text := bounded.Text(fmt.Sprintf(format, args...), maxText)
	if t.log == nil {
		t.out.Debug("event", "id", uint32(id), "text", text)
		return
	}
	if err := t.log.Write(id, severity(id), text); err != nil {
		t.out.Warn("the event log refused an event", "id", uint32(id), "text", text, "error", err)
	}
}

// Outcome tells what became of a mitigation, where that is worth an event.
func (t *Teller) Outcome(o *stopgapv1.Outcome) {
	id := ofOutcome(o)
	if id == 0 {
		return
	}
	reason := o.GetReason()
	if reason == "" && len(o.GetEvidence()) > 0 {
		reason = o.GetEvidence()[0].GetSubject() + ": " + o.GetEvidence()[0].GetFound()
	}
	t.Tell(id, "Mitigation %s (revision %d): %s. %s", o.GetMitigation(), o.GetRevision(), outcome.Words(o.GetState()), reason)
}

// ofOutcome is the event of an outcome: that of its state, or of a repaired drift; 0: none.
func ofOutcome(o *stopgapv1.Outcome) ID {
	m := outcome.Of(o.GetState())
	switch {
	case m.Protected && o.GetCode() == "drift-repaired":
		return DriftRepaired
	case len(m.EventCodes) > 0 && !slices.Contains(m.EventCodes, o.GetCode()):
		return 0
	}
	return ID(m.Event.ID)
}
