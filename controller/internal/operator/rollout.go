package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

var errStrategy = errors.New("refused")

// maxStrategy bounds a strategy, in bytes.
const maxStrategy = 64 << 10

func items(in []*stopgapv1.RolloutItem) []engine.Item {
	out := make([]engine.Item, len(in))
	for i, it := range in {
		out[i] = engine.Item{Mitigation: it.GetMitigation(), Revision: it.GetRevision()}
	}
	return out
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// shown is a time of a rollout's own clock as the wall shows it, but for gaps since.
func shown(x *engine.Rollout, t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(x.Skew)
}

func (s *Service) rolloutMessage(x *engine.Rollout) *stopgapv1.Rollout {
	raw, err := json.Marshal(x.Strategy)
	if err != nil {
		raw = nil // can't happen: it came from there
	}
	out := &stopgapv1.Rollout{Id: x.ID, Strategy: x.Strategy.Name, By: x.By, Created: stamp(x.Created), Phase: string(x.Phase), Wave: uint32(x.Wave) + 1,
		Waves: uint32(len(x.Strategy.Waves)), Reason: x.Reason, Since: stamp(shown(x, x.Since)), Deadline: stamp(x.Deadline), Counts: map[string]uint32{}, StrategyJson: string(raw)}
	docs := s.cfg.Policy.Current().Documents
	for _, it := range x.Items {
		out.Items = append(out.Items, &stopgapv1.RolloutItem{Mitigation: it.Mitigation, Revision: it.Revision})
		if d := docs[tufpolicy.DocumentPath(it.Mitigation, it.Revision)]; d != nil {
			out.SideEffects = append(out.SideEffects, d.GetSideEffects()...)
		}
	}
	for _, m := range x.Members {
		out.Counts[string(m.State)]++
	}
	return out
}

func members(x *engine.Rollout) []*stopgapv1.RolloutMember {
	out := make([]*stopgapv1.RolloutMember, 0, len(x.Members))
	for id, m := range x.Members {
		out = append(out, &stopgapv1.RolloutMember{AgentId: id, Name: m.Name, Wave: uint32(m.Wave) + 1, State: string(m.State), Reason: m.Reason, Since: stamp(shown(x, m.Since)), Counted: m.Counted})
	}
	sortMembers(out)
	return out
}

func sortMembers(all []*stopgapv1.RolloutMember) {
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.GetWave() != b.GetWave() {
			return a.GetWave() < b.GetWave()
		}
		return a.GetName()+a.GetAgentId() < b.GetName()+b.GetAgentId()
	})
}

// PlanRollout implements FleetService.
func (s *Service) PlanRollout(_ context.Context, r *stopgapv1.PlanRolloutRequest) (*stopgapv1.PlanRolloutResponse, error) {
	id, strategy, seen, waves, err := s.cfg.Rollout.Plan(items(r.GetItems()), r.GetStrategy())
	if err != nil {
		return nil, s.toStatus(err)
	}
	raw, err := json.Marshal(strategy)
	if err != nil {
		return nil, s.toStatus(err)
	}
	resp := &stopgapv1.PlanRolloutResponse{Id: id, StrategyJson: string(raw)}
	for _, x := range seen {
		m := &stopgapv1.RolloutMember{AgentId: x.ID, Name: x.Name, Wave: uint32(waves[x.ID]) + 1, State: string(engine.Waiting), Counted: x.Connected}
		if !x.Connected {
			m.Reason = "not connected now"
		}
		resp.Members = append(resp.Members, m)
	}
	sortMembers(resp.Members)
	return resp, nil
}

// StartRollout implements FleetService.
func (s *Service) StartRollout(ctx context.Context, r *stopgapv1.StartRolloutRequest) (*stopgapv1.StartRolloutResponse, error) {
	x, err := s.cfg.Rollout.Start(ctx, items(r.GetItems()), r.GetStrategy(), r.GetPlanOnly(), actor(ctx).String())
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "rollout-start", x.ID, "%s: %s", x.Strategy.Name, x.Reason)
	return &stopgapv1.StartRolloutResponse{Rollout: s.rolloutMessage(x)}, nil
}

// ActOnRollout implements FleetService.
func (s *Service) ActOnRollout(ctx context.Context, r *stopgapv1.ActOnRolloutRequest) (*stopgapv1.ActOnRolloutResponse, error) {
	if len(r.GetReason()) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "a reason of %d bytes, limit %d", len(r.GetReason()), maxReason)
	}
	x, err := s.cfg.Rollout.Act(ctx, r.GetId(), engine.Verb(r.GetVerb()), actor(ctx).String(), r.GetReason())
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "rollout-"+r.GetVerb(), x.ID, "now %s: %s", x.Phase, x.Reason)
	return &stopgapv1.ActOnRolloutResponse{Rollout: s.rolloutMessage(x)}, nil
}

// ListRollouts implements FleetService.
func (s *Service) ListRollouts(context.Context, *stopgapv1.ListRolloutsRequest) (*stopgapv1.ListRolloutsResponse, error) {
	resp := &stopgapv1.ListRolloutsResponse{}
	for _, x := range s.cfg.Rollout.List() {
		resp.Rollouts = append(resp.Rollouts, s.rolloutMessage(x))
	}
	return resp, nil
}

// GetRollout implements FleetService.
func (s *Service) GetRollout(_ context.Context, r *stopgapv1.GetRolloutRequest) (*stopgapv1.GetRolloutResponse, error) {
	x, err := s.cfg.Rollout.Get(r.GetId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.GetRolloutResponse{Rollout: s.rolloutMessage(x), Members: members(x)}, nil
}

// ListStrategies implements FleetService.
func (s *Service) ListStrategies(context.Context, *stopgapv1.ListStrategiesRequest) (*stopgapv1.ListStrategiesResponse, error) {
	all, byDefault := s.cfg.Rollout.Strategies()
	resp := &stopgapv1.ListStrategiesResponse{DefaultName: byDefault}
	for _, x := range all {
		raw, err := json.Marshal(x)
		if err != nil {
			return nil, s.toStatus(err)
		}
		resp.StrategiesJson = append(resp.StrategiesJson, string(raw))
	}
	return resp, nil
}

// SetStrategy implements FleetService.
func (s *Service) SetStrategy(ctx context.Context, r *stopgapv1.SetStrategyRequest) (*stopgapv1.SetStrategyResponse, error) {
	if len(r.GetStrategyJson()) > maxStrategy {
		return nil, status.Errorf(codes.InvalidArgument, "a strategy of %d bytes, limit %d", len(r.GetStrategyJson()), maxStrategy)
	}
	name := ""
	if r.GetStrategyJson() != "" {
		x, err := engine.ParseStrategy([]byte(r.GetStrategyJson()))
		if err != nil {
			return nil, s.toStatus(fmt.Errorf("%w: %w", errStrategy, err))
		}
		if err := s.cfg.Rollout.SetStrategy(ctx, x); err != nil {
			return nil, s.toStatus(err)
		}
		name = x.Name
		s.cfg.Audit.Append(ctx, actor(ctx), "strategy-set", name, "%s", r.GetStrategyJson())
	}
	if r.GetDelete() != "" {
		if err := s.cfg.Rollout.DeleteStrategy(ctx, r.GetDelete()); err != nil {
			return nil, s.toStatus(err)
		}
		name = r.GetDelete()
		s.cfg.Audit.Append(ctx, actor(ctx), "strategy-delete", name, "")
	}
	if r.GetMakeDefault() != "" {
		if err := s.cfg.Rollout.MakeDefault(ctx, r.GetMakeDefault()); err != nil {
			return nil, s.toStatus(err)
		}
		name = r.GetMakeDefault()
		s.cfg.Audit.Append(ctx, actor(ctx), "strategy-default", name, "for what is published from now on")
	}
	return &stopgapv1.SetStrategyResponse{Name: name}, nil
}

// SetSwitch implements FleetService.
func (s *Service) SetSwitch(ctx context.Context, r *stopgapv1.SetSwitchRequest) (*stopgapv1.SetSwitchResponse, error) {
	if len(r.GetReason()) > maxReason || len(r.GetLabel()) > maxReason || len(r.GetMitigation()) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "at most %d bytes each", maxReason)
	}
	sw := rollout.Switch{Mitigation: r.GetMitigation(), Scope: rollout.ScopeFleet, Reason: r.GetReason(), By: actor(ctx).String(), Since: time.Now().UTC()}
	switch {
	case r.GetLabel() != "" && r.GetAgent() != "":
		return nil, status.Error(codes.InvalidArgument, "a label or a server, not both")
	case r.GetLabel() != "":
		sw.Scope = rollout.LabelScope(r.GetLabel())
	case r.GetAgent() != "":
		a, err := s.cfg.Fleet.Find(r.GetAgent())
		if err != nil {
			return nil, s.toStatus(err)
		}
		sw.Scope = rollout.AgentScope(a.GetId())
	}
	n, err := s.cfg.Rollout.Switch(ctx, sw, r.GetOff())
	if err != nil {
		return nil, s.toStatus(err)
	}
	what := sw.Mitigation
	if what == "" {
		what = "everything"
	}
	s.cfg.Audit.Append(ctx, actor(ctx), map[bool]string{true: "switch-off", false: "switch-on"}[r.GetOff()], sw.Scope, "%s, %d servers: %s", what, n, r.GetReason())
	return &stopgapv1.SetSwitchResponse{Scope: sw.Scope, Servers: uint32(n)}, nil
}

// ListSwitches implements FleetService.
func (s *Service) ListSwitches(context.Context, *stopgapv1.ListSwitchesRequest) (*stopgapv1.ListSwitchesResponse, error) {
	resp := &stopgapv1.ListSwitchesResponse{}
	for _, x := range s.cfg.Rollout.Switches() {
		scope := x.Scope
		if id, ok := strings.CutPrefix(scope, "agent "); ok {
			if name, _ := s.cfg.Fleet.Label(id); name != "" {
				scope = "agent " + name
			}
		}
		resp.Switches = append(resp.Switches, &stopgapv1.Switch{Mitigation: x.Mitigation, Scope: scope, Reason: x.Reason, By: x.By, Since: stamp(x.Since)})
	}
	return resp, nil
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
		out = append(out, &stopgapv1.Explanation{Mitigation: m, Steps: lines})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].GetMitigation() < out[j].GetMitigation() })
	return out
}
