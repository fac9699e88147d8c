package operator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func agentOf(name string) *stopgapv1.Agent { return &stopgapv1.Agent{Name: name} }

func TestEveryRowThatStaysIsListedOnceInOrderWhateverComesAndGoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-c]{0,3}`)
		stays := rapid.SliceOfNDistinct(name, 0, 20, rapid.ID[string]).Draw(t, "stays")
		req := &stopgapv1.ListAgentsRequest{PageSize: rapid.Int32Range(1, 5).Draw(t, "size")}
		var got []string
		for pages := 0; ; pages++ {
			if pages > 100 {
				t.Fatal("the listing does not end")
			}
			now := append(slices.Clone(stays), rapid.SliceOfN(name, 0, 5).Draw(t, "others")...)
			slices.Sort(now)
			now = slices.Compact(now)
			rows, next, total, err := paged(req, now, same, agentOf)
			if err != nil || len(rows) > int(req.GetPageSize()) || int(total) != len(now) {
				t.Fatalf("%d rows of %d, %v", len(rows), total, err)
			}
			for _, a := range rows {
				got = append(got, a.GetName())
			}
			if next == "" {
				break
			}
			req.PageToken = next
		}
		if !slices.IsSorted(got) {
			t.Errorf("out of order: %q", got)
		}
		for _, want := range stays {
			if n := len(slices.DeleteFunc(slices.Clone(got), func(x string) bool { return x != want })); n != 1 {
				t.Errorf("%q is listed %d times: %q", want, n, got)
			}
		}
	})
}

func TestAPageIsBoundedInRowsAndBytes(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 3000 {
		all = append(all, fmt.Sprintf("%04d", i))
	}
	for size, want := range map[int32]int{-1: 100, 0: 100, 7: 7, 1000: 1000, 1001: 1000, 1 << 30: 1000} {
		rows, next, total, err := paged(&stopgapv1.ListAgentsRequest{PageSize: size}, all, same, agentOf)
		if err != nil || len(rows) != want || next == "" || total != 3000 {
			t.Errorf("page_size %d: %d rows, %v", size, len(rows), err)
		}
	}
	large := func(name string) *stopgapv1.Agent { return agentOf(name + strings.Repeat("x", 3<<20)) }
	rows, next, _, err := paged(&stopgapv1.ListAgentsRequest{}, all[:3], same, large)
	if err != nil || len(rows) != 1 || next == "" {
		t.Errorf("%d large rows in a page, %v", len(rows), err)
	}
}

func TestAPageTokenNamesAPlaceInItsOwnListingOnly(t *testing.T) {
	t.Parallel()
	all := []string{"a", "b", "c"}
	req := &stopgapv1.ListAgentsRequest{PageSize: 1, Filter: &stopgapv1.AgentFilter{Organisations: []string{"Contoso"}}}
	_, token, _, err := paged(req, all, same, agentOf)
	if err != nil {
		t.Fatal(err)
	}
	req.PageToken, req.PageSize = token, 2 // another size is fine
	if rows, _, _, err := paged(req, all, same, agentOf); err != nil || len(rows) != 2 || rows[0].GetName() != "b" {
		t.Errorf("%v, %v", rows, err)
	}
	for what, r := range map[string]pageRequest{
		"another filter":  &stopgapv1.ListAgentsRequest{PageToken: token},
		"another method":  &stopgapv1.ListTokensRequest{PageToken: token},
		"another rollout": &stopgapv1.ListRolloutMembersRequest{RolloutId: "R1", PageToken: token},
		"rubbish":         &stopgapv1.ListAgentsRequest{PageToken: "rubbish!"},
		"cut":             &stopgapv1.ListAgentsRequest{PageToken: token[:8], Filter: req.GetFilter()},
		"long":            &stopgapv1.ListAgentsRequest{PageToken: strings.Repeat("A", 5000)},
	} {
		if _, err := parsePage(r); !errors.Is(err, errPage) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzPageToken(f *testing.F) {
	_, token, _, err := paged(&stopgapv1.ListAgentsRequest{PageSize: 1}, []string{"a", "b"}, same, agentOf)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		rows, _, _, err := paged(&stopgapv1.ListAgentsRequest{PageSize: 1, PageToken: token}, []string{"a", "b"}, same, agentOf)
		if err != nil && !errors.Is(err, errPage) || len(rows) > 1 {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	})
}

func TestOneWrongTextOrTimeMakesNoListingFail(t *testing.T) {
	t.Parallel()
	wrong := &stopgapv1.Agent{Name: "EX\xff01", LastSeenAt: &timestamppb.Timestamp{Seconds: 1 << 60},
		Labels: map[string]string{"a\xff": "b\xff", "c": "d"},
		Health: []*stopgapv1.Health{{Code: "x", Since: &timestamppb.Timestamp{Nanos: -1}}, {Text: "\xff"}}}
	before := proto.CloneOf(wrong)
	got := sound(wrong)
	want := &stopgapv1.Agent{Name: "EX\uFFFD01", Labels: map[string]string{"a\uFFFD": "b\uFFFD", "c": "d"},
		Health: []*stopgapv1.Health{{Code: "x"}, {Text: "\uFFFD"}}}
	if !proto.Equal(got, want) {
		t.Errorf("mended to %v", got)
	}
	if !proto.Equal(wrong, before) {
		t.Error("the message itself was changed")
	}
	if right := agentOf("EX01"); sound(right) != right {
		t.Error("a right message was copied")
	}
}

func TestEveryPhaseAndStateOfTheEngineHasItsValue(t *testing.T) {
	t.Parallel()
	phases := []engine.Phase{engine.Planned, engine.Running, engine.Baking, engine.WaitingApproval, engine.Paused, engine.Halted,
		engine.Reverting,
		engine.Reverted, engine.Completed, engine.Superseded}
	seen := map[int32]bool{}
	for _, p := range phases {
		seen[int32(phaseOf(p))] = true
	}
	if len(seen) != len(stopgapv1.RolloutPhase_name)-1 || seen[0] {
		t.Errorf("phases: %v", seen)
	}
	states := []engine.MemberState{engine.Waiting, engine.Released, engine.Applied, engine.OK, engine.Partial, engine.Failed, engine.Silent,
		engine.Declined, engine.Skipped}
	seen = map[int32]bool{}
	for _, s := range states {
		seen[int32(stateOf(s))] = true
	}
	if len(seen) != len(stopgapv1.MemberState_name)-1 || seen[0] {
		t.Errorf("states: %v", seen)
	}
	if phaseOf("NEWER") != 0 || stateOf("newer") != 0 {
		t.Error("an unknown name has a value")
	}
}
