package outcome

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

const (
	failed        = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED
	conflict      = stopgapv1.OutcomeState_OUTCOME_STATE_CONFLICT
	partial       = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL
	revertFailed  = stopgapv1.OutcomeState_OUTCOME_STATE_REVERT_FAILED
	unspecified   = stopgapv1.OutcomeState_OUTCOME_STATE_UNSPECIFIED
	applied       = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED
	notApplicable = stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE
	newer         = State(12)
)

// TestEveryStateOfTheProtocolIsInTheTableAndInTheDocuments says what is missing when a state is added to types.proto.
func TestEveryStateOfTheProtocolIsInTheTableAndInTheDocuments(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		raw, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	readme, rollouts, events := read("README.md"), read("docs/rollouts.md"), read("docs/events.md")
	values := State(0).Descriptor().Values()
	for i := range values.Len() {
		s := State(values.Get(i).Number())
		n := 0
		for _, m := range table {
			if m.State == s {
				n++
			}
		}
		name, m := Name(s), Of(s)
		if n != 1 {
			t.Errorf("%s is %d times in table.go: decide there what it means, the worst first", name, n)
		}
		if prefix+name != string(values.Get(i).Name()) {
			t.Errorf("%s is printed as %s", values.Get(i).Name(), name)
		}
		if s == unspecified {
			continue
		}
		if !strings.Contains(readme, "`"+name+"`") {
			t.Errorf("README.md has no `%s` in its table of states", name)
		}
		if m.Rollout != Unanswered && !strings.Contains(rollouts, "`"+name+"`") {
			t.Errorf("docs/rollouts.md does not say what a rollout makes of `%s`", name)
		}
		if m.Event != (Event{}) && !strings.Contains(events, " | "+m.Event.Name+" | ") {
			t.Errorf("docs/events.md has no event %q", m.Event.Name)
		}
		for _, typed := range []string{name, strings.ToLower(name), " " + strings.ReplaceAll(strings.ToLower(name), "_", "-"), Words(s)} {
			if got, err := Parse(typed); got != s || err != nil {
				t.Errorf("%q is read as %s, %v", typed, Name(got), err)
			}
		}
	}
	if len(table) != values.Len() {
		t.Errorf("the table has %d states, the protocol %d", len(table), values.Len())
	}
}

// TestTheTableContradictsNothing holds whatever states are added.
func TestTheTableContradictsNothing(t *testing.T) {
	t.Parallel()
	ids := map[uint32]string{}
	for _, m := range All() {
		name := Name(m.State)
		for rule, broken := range map[string]bool{
			"protected, and `apply` calls it a failure":                m.Protected && m.ApplyFails,
			"protected, and alarmed":                                   m.Protected && m.Alarmed(),
			"protected, and nothing is in force":                       m.Protected && !m.Applied,
			"applied, and a revert does not wait for it":               m.Applied && !m.MayBeInForce,
			"completes a wave, and is not protected":                   m.Rollout.Completes() && !m.Protected,
			"completes a wave, and the wave waits for it":              m.Rollout.Completes() && m.Rollout.Waits(),
			"fails a rollout without alarm":                            m.Rollout.Fails() && !m.Alarmed(),
			"alarmed, and `apply` calls it a success":                  m.Alarmed() && !m.ApplyFails,
			"an event without a name, or a name without an id":         (m.Event.ID == 0) != (m.Event.Name == ""),
			"an event id of another state, or none that Windows shows": m.Event.ID > 1000 || m.Event.ID != 0 && ids[m.Event.ID] != "",
		} {
			if broken {
				t.Errorf("%s: %s", name, rule)
			}
		}
		ids[m.Event.ID] = name
	}
}

func TestPartialIsUnprotectedAndAlarmedLikeConflict(t *testing.T) {
	t.Parallel()
	p, c := Of(partial), Of(conflict)
	if p.Protected || !p.Alarmed() || p.Alarmed() != c.Alarmed() || p.Event.Severity != c.Event.Severity || p.Event.ID == c.Event.ID {
		t.Errorf("%+v", p)
	}
	if p.Rollout.Completes() || p.Rollout.Fails() || !p.Rollout.Waits() {
		t.Errorf("a rollout takes it for %d", p.Rollout)
	}
	if !p.ApplyFails || !p.Applied || !p.MayBeInForce {
		t.Errorf("%+v", p)
	}
}

func TestAStateOfANewerPeerIsKeptWithItsNumberAndProtectsNobody(t *testing.T) {
	t.Parallel()
	if got := Name(newer); got != "UNKNOWN(12)" {
		t.Error(got)
	}
	if got, err := Parse(Name(newer)); got != newer || err != nil {
		t.Errorf("%v %v", got, err)
	}
	m := Of(newer)
	if m.State != newer || m.Protected || m.Alarmed() || m.Rollout != Unanswered || !m.ApplyFails {
		t.Errorf("%+v", m)
	}
}

func TestWhatIsNoStateIsRefusedWithTheStatesThereAre(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "UNSPECIFIED", "partly", "OUTCOME_STATE_APPLIED", "12",
		"UNKNOWN(2)", "UNKNOWN(0)", "UNKNOWN(-1)", "UNKNOWN(012)", "UNKNOWN(12", "UNKNOWN(99999999999)",
	} {
		got, err := Parse(text)
		if !errors.Is(err, ErrName) || got != 0 {
			t.Errorf("%q is taken for %s", text, Name(got))
			continue
		}
		if !strings.Contains(err.Error(), "PARTIAL") || strings.Contains(err.Error(), ", UNSPECIFIED") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTheWorstStateIsSortedFirst(t *testing.T) {
	t.Parallel()
	in := []State{applied, newer, notApplicable, State(11), partial, revertFailed, failed, conflict}
	slices.SortFunc(in, Compare)
	if want := []State{failed, conflict, partial, revertFailed, State(11), newer, notApplicable, applied}; !slices.Equal(in, want) {
		t.Errorf("%v", in)
	}
	if got := Which(func(m Meaning) bool { return m.Applied }); !slices.Equal(got, []State{partial, applied}) {
		t.Errorf("%v", got)
	}
}

func TestAStateWithinASentence(t *testing.T) {
	t.Parallel()
	if got := Words(revertFailed); got != "revert failed" {
		t.Error(got)
	}
}
