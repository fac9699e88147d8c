package outcome

import stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"

// table is every state, the worst first: unprotected and alarmed, then unprotected without alarm, then as it should be.
var table = []Meaning{
	{
		State: stopgapv1.OutcomeState_OUTCOME_STATE_FAILED,
		Event: Event{203, Error, "failed"}, Rollout: Failed, ApplyFails: true,
	},
	{
		State: stopgapv1.OutcomeState_OUTCOME_STATE_CONFLICT,
		Event: Event{205, Error, "conflict"}, Rollout: Failed, ApplyFails: true,
	},
	{
		State:   stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL,
		Applied: true, MayBeInForce: true,
		Event: Event{209, Error, "partial"}, Rollout: Partly, ApplyFails: true,
	},
	{
		State:        stopgapv1.OutcomeState_OUTCOME_STATE_REVERT_FAILED,
		MayBeInForce: true,
		Event:        Event{206, Error, "revert failed"}, Rollout: Failed, ApplyFails: true,
	},
	{
		State:      stopgapv1.OutcomeState_OUTCOME_STATE_UNSPECIFIED,
		ApplyFails: true,
	},
	{
		State: stopgapv1.OutcomeState_OUTCOME_STATE_DISABLED,
		Event: Event{207, Warning, "frozen"}, Rollout: Declined, ApplyFails: true,
	},
	{
		State: stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED,
		Event: Event{202, Warning, "blocked"}, Rollout: Declined,
	},
	{
		State: stopgapv1.OutcomeState_OUTCOME_STATE_PENDING,
		Event: Event{208, Warning, "waiting"}, ApplyFails: true,
		EventCodes: []string{"servicing", "unknown-build"}, // nobody has to look at one that is not released yet
	},
	{
		// A rollout takes one that a failed probe caused for a failure; its code says so.
		State: stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED,
		Event: Event{201, Info, "reverted"},
	},
	{
		// Not protected by its state alone: a server that is not affected needs no protection, and its code says why it is not.
		State:   stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE,
		Rollout: NotForIt,
	},
	{
		State:     stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED,
		Protected: true, Applied: true, MayBeInForce: true,
		Event: Event{200, Info, "applied"}, Rollout: Done,
	},
}
