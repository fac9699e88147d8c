package cli

import (
	"context"
	"errors"
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

	memberOK      = stopgapv1.MemberState_MEMBER_STATE_OK
	memberPartial = stopgapv1.MemberState_MEMBER_STATE_PARTIAL
)

// controller answers ListOutcomes as the operators' API does, one row a page.
type controller struct {
	stopgapv1.FleetServiceClient
	has []*stopgapv1.OutcomeRecord
}

// ListOutcomes implements FleetServiceClient.
func (c *controller) ListOutcomes(
	_ context.Context, r *stopgapv1.ListOutcomesRequest, _ ...grpc.CallOption,
) (*stopgapv1.ListOutcomesResponse, error) {
	var left []*stopgapv1.OutcomeRecord
	for _, rec := range c.has {
		if want := r.GetFilter().GetStates(); rec.GetAgentName() > r.GetPageToken() && (len(want) == 0 || slices.Contains(want,
			rec.GetOutcome().GetState())) {
			left = append(left, rec)
		}
	}
	resp := &stopgapv1.ListOutcomesResponse{Outcomes: left[:min(len(left), 1)]}
	if len(left) > 1 {
		resp.NextPageToken = left[0].GetAgentName()
	}
	return resp, nil
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
		if err := listOutcomes(t.Context(), c, &b, clirun.CSV, &stopgapv1.OutcomeFilter{States: states}); err != nil {
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
	r := rolloutView{
		rollout: &stopgapv1.Rollout{Id: "R7", Phase: stopgapv1.RolloutPhase_ROLLOUT_PHASE_RUNNING, Wave: 1,
			Strategy: &stopgapv1.Strategy{Name: "x", Waves: []*stopgapv1.Wave{{}}}, Reason: "wave 1 of 1: 2 of 3 servers done",
			Progress: []*stopgapv1.WaveProgress{{Wave: 1, Counts: []*stopgapv1.MemberStateCount{{State: memberOK, Count: 2}, {State: memberPartial,
				Count: 1}}}}},
		members: []*stopgapv1.RolloutMember{
			{AgentName: "EX01", Wave: 1, State: memberOK},
			{AgentName: "EX02", Wave: 1, State: memberPartial, Reason: "GET /x gets through"},
			{AgentName: "EX03", Wave: 1, State: memberOK},
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

func TestWhatANewerControllerSaysIsShownWithItsNumber(t *testing.T) {
	t.Parallel()
	const number = 77
	for got, want := range map[string]string{
		presence(number): "UNKNOWN(77)", phaseText(number): "UNKNOWN(77)", memberState(number): "unknown(77)", onHaltText(number): "unknown(77)",
		scopeText(&stopgapv1.Scope{Kind: number}):                                "unknown(77)",
		actorText(&stopgapv1.Actor{Kind: number, Name: "ben"}):                   "unknown(77) ben",
		releaseText(&stopgapv1.MitigationSummary{Release: number}):               "unknown(77): ",
		roles([]stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX, number}):             "mailbox,unknown(77)",
		presence(stopgapv1.Presence_PRESENCE_AWAY):                               "AWAY",
		actorText(&stopgapv1.Actor{Kind: stopgapv1.ActorKind_ACTOR_KIND_NOBODY}): "nobody",
	} {
		if got != want {
			t.Errorf("shown as %q, want %q", got, want)
		}
	}
	var b strings.Builder
	r := rolloutView{
		rollout: &stopgapv1.Rollout{Id: "R7", Phase: number, Strategy: &stopgapv1.Strategy{Waves: []*stopgapv1.Wave{{}}},
			Progress: []*stopgapv1.WaveProgress{{Wave: 1, Counts: []*stopgapv1.MemberStateCount{{State: number, Count: 3}}}}},
		members: []*stopgapv1.RolloutMember{{AgentName: "EX09", Wave: 1, State: number}},
	}
	if err := showRollout(&b, r, clirun.Table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"UNKNOWN(77) since", "3 servers: 3 unknown(77)", "EX09"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	if err := showRollout(&b, r, clirun.JSON); err != nil || !strings.Contains(b.String(), `"state": 77`) {
		t.Errorf("as JSON: %v\n%s", err, b.String())
	}
}
