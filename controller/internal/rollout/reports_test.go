package rollout

import (
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestOfSeveralRevisionsTheWorstReportCounts(t *testing.T) {
	t.Parallel()
	d := doc(t, "M1", 2)
	is := func(s stopgapv1.OutcomeState, code string) engine.Report {
		return report(d, &stopgapv1.OutcomeRecord{RecordedAt: timestamppb.Now(), Outcome: &stopgapv1.Outcome{Mitigation: "M1", Revision: 2,
			State: s, Code: code, Reason: s.String(), Proof: stopgapv1.Proof_PROOF_EFFECT_PROVEN}})
	}
	const (
		applied       = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED
		partial       = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL
		failed        = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED
		pending       = stopgapv1.OutcomeState_OUTCOME_STATE_PENDING
		blocked       = stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED
		notApplicable = stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE
		newer         = stopgapv1.OutcomeState(12)
	)
	for _, c := range []struct {
		name   string
		of     []engine.Report
		state  engine.ReportState
		has    bool
		reason string
	}{
		{"PARTIAL", []engine.Report{is(partial, "")}, engine.HasPartly, true, partial.String()},
		{"PARTIAL beside APPLIED", []engine.Report{is(applied, ""), is(partial, ""), is(applied, "")}, engine.HasPartly, true, partial.String()},
		{"PARTIAL beside what is not for it", []engine.Report{is(notApplicable, ""), is(partial, ""), is(blocked, "")}, engine.HasPartly,
			true, partial.String()},
		{"PARTIAL beside FAILED", []engine.Report{is(failed, ""), is(partial, "")}, engine.HasFailed, true, failed.String()},
		{"PARTIAL beside one that is not answered yet", []engine.Report{is(partial, ""), is(pending, "")}, engine.None, true, partial.String()},
		{"PARTIAL where a probe failed after it", []engine.Report{is(partial, codeProbeFailed)}, engine.HasFailed, true, partial.String()},
		{"a state of a newer agent", []engine.Report{is(newer, "")}, engine.None, false, newer.String()},
		{"a state of a newer agent beside APPLIED", []engine.Report{is(applied, ""), is(newer, "")}, engine.None, true, applied.String()},
	} {
		got := together(c.of)
		if got.State != c.state || got.Has != c.has || got.Reason != c.reason {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if is(partial, "").Proven {
		t.Error("the effect of what is PARTIAL counts as proven")
	}
}
