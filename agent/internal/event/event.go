// Package event is the catalogue of what the agent writes into the Windows event log: stable ids for monitoring, and one line
// each for people (docs/events.md). It decides nothing; the agent tells it what happened.
package event

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-hclog"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
)

// Source is the name of the event source in the Application log.
const Source = "Stopgap"

// Severity of an event.
type Severity int

// The severities of the Windows event log.
const (
	Info Severity = iota
	Warning
	Error
)

// ID is an event's stable id: 1 to 1000, what EventCreate.exe has messages for.
type ID uint32

// The events.
const (
	Started          ID = 100
	Stopped          ID = 101
	Enrolled         ID = 102
	NotEnrolled      ID = 103
	Applied          ID = 200
	Reverted         ID = 201
	Blocked          ID = 202
	Failed           ID = 203
	DriftRepaired    ID = 204
	Conflict         ID = 205
	RevertFailed     ID = 206
	Frozen           ID = 207
	Waiting          ID = 208
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
var Catalogue = []Kind{
	{Started, Info, "started"},
	{Stopped, Info, "stopped"},
	{Enrolled, Info, "enrolled"},
	{NotEnrolled, Warning, "not enrolled"},
	{Applied, Info, "applied"},
	{Reverted, Info, "reverted"},
	{Blocked, Warning, "blocked"},
	{Failed, Error, "failed"},
	{DriftRepaired, Warning, "drift repaired"},
	{Conflict, Error, "conflict"},
	{RevertFailed, Error, "revert failed"},
	{Frozen, Warning, "frozen"},
	{Waiting, Warning, "waiting"},
	{PolicyRefused, Error, "policy refused"},
	{ControllerLost, Warning, "controller lost"},
	{ControllerFound, Info, "controller found"},
	{Installed, Info, "installed"},
	{UninstalledKept, Warning, "uninstalled, mitigations kept"},
	{UninstalledClean, Info, "uninstalled, mitigations reverted"},
	{Damaged, Error, "journal damaged"},
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
	id := ID(0)
	switch o.GetState() {
	case stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED:
		id = Applied
		if o.GetCode() == "drift-repaired" {
			id = DriftRepaired
		}
	case stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED:
		id = Reverted
	case stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED:
		id = Blocked
	case stopgapv1.OutcomeState_OUTCOME_STATE_FAILED:
		id = Failed
	case stopgapv1.OutcomeState_OUTCOME_STATE_CONFLICT:
		id = Conflict
	case stopgapv1.OutcomeState_OUTCOME_STATE_REVERT_FAILED:
		id = RevertFailed
	case stopgapv1.OutcomeState_OUTCOME_STATE_DISABLED:
		id = Frozen
	case stopgapv1.OutcomeState_OUTCOME_STATE_PENDING:
		if o.GetCode() == "servicing" || o.GetCode() == "unknown-build" {
			id = Waiting
		}
	case stopgapv1.OutcomeState_OUTCOME_STATE_UNSPECIFIED, stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE:
	}
	if id == 0 {
		return
	}
	reason := o.GetReason()
	if reason == "" && len(o.GetEvidence()) > 0 {
		reason = o.GetEvidence()[0].GetSubject() + ": " + o.GetEvidence()[0].GetFound()
	}
	t.Tell(id, "Mitigation %s (revision %d): %s. %s", o.GetMitigation(), o.GetRevision(),
		strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(o.GetState().String(), "OUTCOME_STATE_"), "_", " ")), reason)
}
