package reconcile

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func TestAPanicRevertReportsWhatWasInForceInPartAsReverted(t *testing.T) {
	t.Parallel()
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2016CU23, Host: "EX01"})
	before := g.snapshot()
	g.publish("M1")
	g.pass()
	known, err := g.journal.Outcomes()
	if err != nil {
		t.Fatal(err)
	}
	o := proto.CloneOf(known["M1"])
	o.State, o.Reason = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL, "GET /owa/auth/x gets through"
	if err := g.journal.Settle(journal.Settlement{Outcomes: []*stopgapv1.Outcome{o}}); err != nil {
		t.Fatal(err)
	}
	if _, err := PanicRevert(t.Context(), g.driver, g.journal); err != nil {
		t.Fatal(err)
	}
	if known, err = g.journal.Outcomes(); err != nil || known["M1"].GetState() != reverted {
		t.Errorf("%v, %v", known["M1"], err)
	}
	g.same(before)
}
