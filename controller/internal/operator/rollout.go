package operator

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

func items(in []*stopgapv1.MitigationRef) []engine.Item {
	out := make([]engine.Item, len(in))
	for i, it := range in {
		out[i] = engine.Item{Mitigation: it.GetMitigationId(), Revision: it.GetRevision()}
	}
	return out
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// shown is a time of a rollout's own clock as wall-clock time, without the gaps since then.
func shown(x *engine.Rollout, t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(x.Skew)
}

// phaseOf and stateOf give the enum value of the same name: UNSPECIFIED for what a newer controller stored.
func phaseOf(p engine.Phase) stopgapv1.RolloutPhase {
	return stopgapv1.RolloutPhase(stopgapv1.RolloutPhase_value["ROLLOUT_PHASE_"+string(p)])
}

func stateOf(s engine.MemberState) stopgapv1.MemberState {
	return stopgapv1.MemberState(stopgapv1.MemberState_value["MEMBER_STATE_"+strings.ToUpper(string(s))])
}

func (s *Service) rolloutMessage(x *engine.Rollout) *stopgapv1.Rollout {
	out := &stopgapv1.Rollout{Id: x.ID, Strategy: strategyMessage(x.Strategy), CreatedBy: who(x.By), CreatedAt: stamp(x.Created),
		Phase: phaseOf(x.Phase), Wave: uint32(x.Wave) + 1, Reason: x.Reason, Since: stamp(shown(x, x.Since)), Deadline: stamp(x.Deadline),
		Progress: progress(x)}
	docs := s.cfg.Policy.Current().Documents
	for _, it := range x.Items {
		out.Mitigations = append(out.Mitigations, &stopgapv1.MitigationRef{MitigationId: it.Mitigation, Revision: it.Revision})
		if d := docs[tufpolicy.DocumentPath(it.Mitigation, it.Revision)]; d != nil {
			out.SideEffects = append(out.SideEffects, d.GetSideEffects()...)
		}
	}
	return out
}

// progress counts servers by wave and state.
func progress(x *engine.Rollout) (out []*stopgapv1.WaveProgress) {
	waves := map[int]map[stopgapv1.MemberState]uint32{}
	for _, m := range x.Members {
		if waves[m.Wave] == nil {
			waves[m.Wave] = map[stopgapv1.MemberState]uint32{}
		}
		waves[m.Wave][stateOf(m.State)]++
	}
	for _, n := range slices.Sorted(maps.Keys(waves)) {
		w := &stopgapv1.WaveProgress{Wave: uint32(n) + 1}
		for _, state := range slices.Sorted(maps.Keys(waves[n])) {
			w.Counts = append(w.Counts, &stopgapv1.MemberStateCount{State: state, Count: waves[n][state]})
		}
		out = append(out, w)
	}
	return out
}

// memberKey orders the servers of a rollout by wave, name and id.
func memberKey(m *stopgapv1.RolloutMember) string {
	return number(uint64(m.GetWave())) + m.GetAgentName() + "\x00" + m.GetAgentId()
}

func same[M any](m M) M { return m }

// PlanRollout implements FleetService.
func (s *Service) PlanRollout(_ context.Context, r *stopgapv1.PlanRolloutRequest) (*stopgapv1.PlanRolloutResponse, error) {
	id, strategy, seen, waves, err := s.cfg.Rollout.Plan(items(r.GetMitigations()), r.GetStrategy())
	if err != nil {
		return nil, s.toStatus(err)
	}
	var all []*stopgapv1.RolloutMember
	for _, x := range seen {
		m := &stopgapv1.RolloutMember{AgentId: x.ID, AgentName: x.Name, Wave: uint32(waves[x.ID]) + 1, State: stateOf(engine.Waiting),
			Counted: x.Connected}
		if !x.Connected {
			m.Reason = "not connected now"
		}
		all = append(all, m)
	}
	rows, next, total, err := paged(r, all, memberKey, same)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.PlanRolloutResponse{Members: rows, NextPageToken: next, TotalSize: total, RolloutId: id,
		Strategy: strategyMessage(strategy)}, nil
}

// CreateRollout implements FleetService.
func (s *Service) CreateRollout(ctx context.Context, r *stopgapv1.CreateRolloutRequest) (*stopgapv1.CreateRolloutResponse, error) {
	x, err := s.cfg.Rollout.Start(ctx, items(r.GetMitigations()), r.GetStrategy(), r.GetPlanOnly(), actor(ctx).String())
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "rollout-start", x.ID, "%s: %s", x.Strategy.Name, x.Reason)
	return sound(&stopgapv1.CreateRolloutResponse{Rollout: s.rolloutMessage(x)}), nil
}

// act does something with a rollout, and gives the rollout afterwards.
func (s *Service) act(ctx context.Context, id string, verb engine.Verb, reason string) (*stopgapv1.Rollout, error) {
	if err := bounds(reason); err != nil {
		return nil, err
	}
	x, err := s.cfg.Rollout.Act(ctx, id, verb, actor(ctx).String(), reason)
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "rollout-"+string(verb), x.ID, "now %s: %s", x.Phase, x.Reason)
	return sound(s.rolloutMessage(x)), nil
}

// StartRollout implements FleetService.
func (s *Service) StartRollout(ctx context.Context, r *stopgapv1.StartRolloutRequest) (*stopgapv1.StartRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Start, r.GetReason())
	return &stopgapv1.StartRolloutResponse{Rollout: x}, err
}

// PauseRollout implements FleetService.
func (s *Service) PauseRollout(ctx context.Context, r *stopgapv1.PauseRolloutRequest) (*stopgapv1.PauseRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Pause, r.GetReason())
	return &stopgapv1.PauseRolloutResponse{Rollout: x}, err
}

// ResumeRollout implements FleetService.
func (s *Service) ResumeRollout(ctx context.Context, r *stopgapv1.ResumeRolloutRequest) (*stopgapv1.ResumeRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Resume, r.GetReason())
	return &stopgapv1.ResumeRolloutResponse{Rollout: x}, err
}

// ApproveRollout implements FleetService.
func (s *Service) ApproveRollout(ctx context.Context, r *stopgapv1.ApproveRolloutRequest) (*stopgapv1.ApproveRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Approve, r.GetReason())
	return &stopgapv1.ApproveRolloutResponse{Rollout: x}, err
}

// HaltRollout implements FleetService.
func (s *Service) HaltRollout(ctx context.Context, r *stopgapv1.HaltRolloutRequest) (*stopgapv1.HaltRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Halt, r.GetReason())
	return &stopgapv1.HaltRolloutResponse{Rollout: x}, err
}

// RevertRollout implements FleetService.
func (s *Service) RevertRollout(ctx context.Context, r *stopgapv1.RevertRolloutRequest) (*stopgapv1.RevertRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.Revert, r.GetReason())
	return &stopgapv1.RevertRolloutResponse{Rollout: x}, err
}

// FinishRollout implements FleetService.
func (s *Service) FinishRollout(ctx context.Context, r *stopgapv1.FinishRolloutRequest) (*stopgapv1.FinishRolloutResponse, error) {
	x, err := s.act(ctx, r.GetRolloutId(), engine.FinishNow, r.GetReason())
	return &stopgapv1.FinishRolloutResponse{Rollout: x}, err
}

// ListRollouts implements FleetService.
func (s *Service) ListRollouts(_ context.Context, r *stopgapv1.ListRolloutsRequest) (*stopgapv1.ListRolloutsResponse, error) {
	f := r.GetFilter()
	all := slices.DeleteFunc(s.cfg.Rollout.List(), func(x *engine.Rollout) bool {
		about := func(it engine.Item) bool { return among(f.GetMitigationIds(), it.Mitigation) }
		return !among(f.GetPhases(), phaseOf(x.Phase)) || !among(f.GetStrategies(), x.Strategy.Name) || !slices.ContainsFunc(x.Items, about)
	})
	newest := func(x *engine.Rollout) string { return number(math.MaxUint64-engine.Number(x.ID)) + x.ID }
	rows, next, total, err := paged(r, all, newest, s.rolloutMessage)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListRolloutsResponse{Rollouts: rows, NextPageToken: next, TotalSize: total}, nil
}

// GetRollout implements FleetService.
func (s *Service) GetRollout(_ context.Context, r *stopgapv1.GetRolloutRequest) (*stopgapv1.GetRolloutResponse, error) {
	x, err := s.cfg.Rollout.Get(r.GetRolloutId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	return sound(&stopgapv1.GetRolloutResponse{Rollout: s.rolloutMessage(x)}), nil
}

// ListRolloutMembers implements FleetService.
func (s *Service) ListRolloutMembers(
	_ context.Context, r *stopgapv1.ListRolloutMembersRequest,
) (*stopgapv1.ListRolloutMembersResponse, error) {
	x, err := s.cfg.Rollout.Get(r.GetRolloutId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	var all []*stopgapv1.RolloutMember
	for id, m := range x.Members {
		row := &stopgapv1.RolloutMember{AgentId: id, AgentName: m.Name, Wave: uint32(m.Wave) + 1, State: stateOf(m.State), Reason: m.Reason,
			Since: stamp(shown(x, m.Since)), Counted: m.Counted}
		if among(r.GetFilter().GetStates(), row.GetState()) && among(r.GetFilter().GetWaves(), row.GetWave()) {
			all = append(all, row)
		}
	}
	rows, next, total, err := paged(r, all, memberKey, same)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListRolloutMembersResponse{Members: rows, NextPageToken: next, TotalSize: total}, nil
}

// explain follows the decisions of the controller, and ends with what the server itself says.
func (s *Service) explain(id string, recs []*stopgapv1.OutcomeRecord) []*stopgapv1.Explanation {
	steps := s.cfg.Rollout.Explain(id)
	for _, rec := range recs {
		o := rec.GetOutcome()
		said := fmt.Sprintf("the server says since %s: %s %s", rec.GetRecordedAt().AsTime().UTC().Format(time.DateTime), mitigation.Ref(o.GetMitigation(), o.GetRevision()),
			outcome.Name(o.GetState()))
		if o.GetReason() != "" {
			said += " (" + o.GetReason() + ")"
		}
		steps[o.GetMitigation()] = append(steps[o.GetMitigation()], said)
	}
	var out []*stopgapv1.Explanation
	for m, lines := range steps {
		out = append(out, &stopgapv1.Explanation{MitigationId: m, Steps: lines})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].GetMitigationId() < out[j].GetMitigationId() })
	return out
}
