package outcome_test

import (
	"fmt"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Ask what a state means instead of comparing states: a state that this version does not know never counts as protected.
func ExampleOf() {
	for _, state := range []outcome.State{
		stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED,
		stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL,
		stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE,
		99,
	} {
		m := outcome.Of(state)
		fmt.Printf("%s: protected %t, alarmed %t, a rollout waits for it %t\n", outcome.Name(state), m.Protected, m.Alarmed(), m.Rollout.Waits())
	}
	// Output:
	// APPLIED: protected true, alarmed false, a rollout waits for it false
	// PARTIAL: protected false, alarmed true, a rollout waits for it true
	// NOT_APPLICABLE: protected false, alarmed false, a rollout waits for it false
	// UNKNOWN(99): protected false, alarmed false, a rollout waits for it true
}

// People may write a state as they like.
func ExampleParse() {
	state, err := outcome.Parse("revert-failed")
	fmt.Println(outcome.Name(state), err)
	// Output: REVERT_FAILED <nil>
}
