package cli

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
)

const (
	applied = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED
	partial = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL
	newer   = stopgapv1.OutcomeState(12)
)

// controller answers ListOutcomes as the operators' API does.
type controller struct {
	stopgapv1.FleetServiceClient
	has []*stopgapv1.OutcomeRecord
}

type records struct {
	grpc.ClientStream
	left []*stopgapv1.OutcomeRecord
}

// ListOutcomes implements FleetServiceClient.
func (c *controller) ListOutcomes(_ context.Context, r *stopgapv1.ListOutcomesRequest, _ ...grpc.CallOption,
) (grpc.ServerStreamingClient[stopgapv1.ListOutcomesResponse], error) {
	st := &records{}
	for _, rec := range c.has {
		if len(r.GetStates()) == 0 || slices.Contains(r.GetStates(), rec.GetOutcome().GetState()) {
			st.left = append(st.left, rec)
		}
	}
	return st, nil
}

// Recv implements the stream.
func (s *records) Recv() (*stopgapv1.ListOutcomesResponse, error) {
	if len(s.left) == 0 {
		return nil, io.EOF
	}
	out := &stopgapv1.ListOutcomesResponse{Record: s.left[0]}
	s.left = s.left[1:]
	return out, nil
}

func fleetOf(states ...stopgapv1.OutcomeState) *controller {
	c := &controller{}
	for i, s := range states {
		c.has = append(c.has, &stopgapv1.OutcomeRecord{AgentId: "id", AgentName: "EX0" + string(rune('1'+i)), Outcome: &stopgapv1.Outcome{
			Mitigation: "M1", Revision: 2, State: s, Reason: "GET /owa/auth/x gets through: cleared by owa/auth/web.config:4"}})
	}
	return c
}

func TestOutcomesOfAStateAreListed(t *testing.T) {
	t.Parallel()
	c := fleetOf(applied, partial, newer)
	for typed, want := range map[string]string{"partial": "EX02 PARTIAL", "Partial": "EX02 PARTIAL", "unknown(12)": "EX03 UNKNOWN(12)"} {
		states, err := parseStates([]string{typed})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := listOutcomes(t.Context(), c, &b, clirun.CSV, &stopgapv1.ListOutcomesRequest{States: states}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		name, state, _ := strings.Cut(want, " ")
		if len(lines) != 2 || !strings.Contains(lines[1], name) || !strings.Contains(lines[1], ","+state+",") {
			t.Errorf("--state %s:\n%s", typed, b.String())
		}
	}
	_, err := parseStates([]string{"partly"})
	if !errors.Is(err, clirun.ErrUsage) || !strings.Contains(err.Error(), `"partly" is no outcome state`) {
		t.Error(err)
	}
}

func TestARevertOfWhatIsInForceInPartNamesThoseServersToo(t *testing.T) {
	t.Parallel()
	c := fleetOf(applied, partial, newer, stopgapv1.OutcomeState_OUTCOME_STATE_FAILED)
	if n, err := countApplied(t.Context(), c, "M1", 2); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestCountsOfStatesAreListedTheWorstFirst(t *testing.T) {
	t.Parallel()
	got := counts([]*stopgapv1.StateCount{{State: applied, Count: 990}, {State: newer, Count: 1}, {State: partial, Count: 3}})
	if got != "3 PARTIAL, 1 UNKNOWN(12), 990 APPLIED" {
		t.Error(got)
	}
}

func TestAServerIsShownWithItsPartialMitigation(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	r := &stopgapv1.GetAgentResponse{Agent: &stopgapv1.Agent{Name: "EX01"}, Outcomes: fleetOf(partial).has}
	if err := showAgent(&b, r, clirun.Table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"M1@2", "PARTIAL", "GET /owa/auth/x gets through"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestARolloutListsItsPartialServers(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	r := &stopgapv1.GetRolloutResponse{
		Rollout: &stopgapv1.Rollout{Id: "R7", Phase: "RUNNING", Wave: 1, Waves: 1, Reason: "wave 1 of 1: 2 of 3 servers done"},
		Members: []*stopgapv1.RolloutMember{
			{Name: "EX01", Wave: 1, State: "ok"},
			{Name: "EX02", Wave: 1, State: "partial", Reason: "GET /x gets through"},
			{Name: "EX03", Wave: 1, State: "ok"},
		},
	}
	if err := showRollout(&b, r, clirun.Table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[####################~~~~~~~~~~] 3 servers: 1 partial, 2 ok", "EX02", "GET /x gets through"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "EX01") {
		t.Errorf("a server that is done is listed:\n%s", b.String())
	}
}
