// Package outcome owns what each outcome state means: its printed name, whether it counts as protected, what the event log, a
// rollout and `stopgap-agent apply` make of it. Every other room asks here, so that a state means the same everywhere. It never
// decides which state a mitigation is in (the agent's reconcile does), nor what a rollout makes of an outcome's code.
package outcome

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// State is an outcome state as the protocol has it.
type State = stopgapv1.OutcomeState

// Meaning is everything that is decided about one state.
type Meaning struct {
	State State
	// Protected counts a server as protected, by its state alone. Everything else counts as unprotected.
	Protected bool
	// Applied: the mitigation was put in place as it was asked for, everywhere or in part, so that reverting it changes the server.
	Applied bool
	// MayBeInForce: something of ours may be in force, wanted or not. A revert is not finished on such a server.
	MayBeInForce bool
	// Event is the agent's entry in the Windows event log; the zero Event: none is written.
	Event Event
	// EventCodes limits the event to outcomes with one of these codes; empty: every outcome.
	EventCodes []string
	// Rollout is what a rollout makes of it.
	Rollout Rollout
	// ApplyFails: `stopgap-agent apply` exits 1 when a mitigation ends in this state.
	ApplyFails bool
}

// Event is an entry of the Windows event log (docs/events.md).
type Event struct {
	// ID is stable: monitoring relies on it. 1 to 1000; 0 is no event.
	ID       uint32
	Severity Severity
	// Name is how docs/events.md calls it.
	Name string
}

// Severity of an event.
type Severity int

// The severities of the Windows event log.
const (
	Info Severity = iota
	Warning
	Error
)

// Rollout is what a state says to a rollout that released the mitigation to the server.
type Rollout int

// The answers.
const (
	// Unanswered: nothing was read back yet. The wave waits for the server, and past its deadline it counts as failed.
	Unanswered Rollout = iota
	// Done completes the wave for the server, once it has stayed so for as long as the strategy asks.
	Done
	// Partly done: the wave waits for the server. It never counts as done, and never as a failure, however long it lasts.
	Partly
	// Failed counts towards the automatic halt or revert, and is not waited for.
	Failed
	// Declined by the server's administrator: neither done nor failed, and not waited for.
	Declined
	// NotForIt: the mitigation is not for this server; neither done nor failed, and not waited for.
	NotForIt
)

// Completes says whether the wave is complete for a server that answers so.
func (r Rollout) Completes() bool { return r == Done }

// Fails says whether the answer counts towards the automatic halt or revert of the rollout.
func (r Rollout) Fails() bool { return r == Failed }

// Waits says whether the wave waits for a server that answers so.
func (r Rollout) Waits() bool { return r == Unanswered || r == Partly }

// Of gives what a state means. A state that this version does not know is never protected, alarms nobody, and answers nothing to a
// rollout.
func Of(s State) Meaning {
	for _, m := range table {
		if m.State == s {
			return m
		}
	}
	return Meaning{State: s, ApplyFails: true}
}

// Alarmed says whether somebody has to look at the server: the event and the log line are errors.
func (m Meaning) Alarmed() bool { return m.Event.Severity == Error }

const prefix = "OUTCOME_STATE_"

// Name is how a state is printed: without the protocol's prefix, and UNKNOWN(12) for one that this version does not know.
func Name(s State) string {
	if full, ok := stopgapv1.OutcomeState_name[int32(s)]; ok {
		return strings.TrimPrefix(full, prefix)
	}
	return fmt.Sprintf("UNKNOWN(%d)", int32(s))
}

// Words is a state's name within a sentence: "revert failed".
func Words(s State) string { return strings.ToLower(strings.ReplaceAll(Name(s), "_", " ")) }

// ErrName is returned by Parse.
var ErrName = errors.New("is no outcome state")

// Parse reads a state that a person typed: in any letter case, with - or blanks for _, and also UNKNOWN(12).
func Parse(text string) (State, error) {
	name := strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToUpper(strings.TrimSpace(text)))
	if v, ok := stopgapv1.OutcomeState_value[prefix+name]; ok && v != 0 {
		return State(v), nil
	}
	if number, ok := strings.CutPrefix(name, "UNKNOWN("); ok {
		n, err := strconv.ParseInt(strings.TrimSuffix(number, ")"), 10, 32)
		if s := State(n); err == nil && n > 0 && Name(s) == name {
			return s, nil
		}
	}
	var names []string
	for _, m := range table {
		if m.State != stopgapv1.OutcomeState_OUTCOME_STATE_UNSPECIFIED {
			names = append(names, Name(m.State))
		}
	}
	return 0, fmt.Errorf("%q %w; there are %s", text, ErrName, strings.Join(names, ", "))
}

// All gives every state that this version knows, the worst first.
func All() []Meaning { return append([]Meaning(nil), table...) }

// Which gives the states for which a condition holds, the worst first.
func Which(holds func(Meaning) bool) []State {
	var out []State
	for _, m := range table {
		if holds(m) {
			out = append(out, m.State)
		}
	}
	return out
}

// Compare orders states, the worst first. States that this version does not know follow the alarmed ones, by number.
func Compare(a, b State) int {
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

func rank(s State) int {
	alarmed := 0
	for i, m := range table {
		if m.State == s {
			return 2 * i
		}
		if m.Alarmed() {
			alarmed = 2*i + 1
		}
	}
	return alarmed
}
