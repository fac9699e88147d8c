package operator

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// scopeMessage is a scope as it is kept. One of a newer controller is given as UNSPECIFIED.
func scopeMessage(scope string) *stopgapv1.Scope {
	label, agent := rollout.ParseScope(scope)
	switch {
	case scope == rollout.ScopeFleet:
		return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_FLEET}
	case label != "":
		key, v, _ := strings.Cut(label, "=")
		return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_LABEL, LabelKey: key, LabelValue: v}
	case agent != "":
		return &stopgapv1.Scope{Kind: stopgapv1.ScopeKind_SCOPE_KIND_AGENT, Agent: agent}
	}
	return &stopgapv1.Scope{}
}

// scopeOf reads a scope of a request.
func (s *Service) scopeOf(m *stopgapv1.Scope) (string, error) {
	refused := func(format string, args ...any) (string, error) {
		return "", status.Errorf(codes.InvalidArgument, "scope: "+format, args...)
	}
	if err := bounds(m.GetLabelKey(), m.GetLabelValue(), m.GetAgent()); err != nil {
		return "", err
	}
	label, agent := m.GetLabelKey() != "" || m.GetLabelValue() != "", m.GetAgent() != ""
	switch m.GetKind() {
	case stopgapv1.ScopeKind_SCOPE_KIND_FLEET:
		if label || agent {
			return refused("the whole fleet, and a label or a server")
		}
		return rollout.ScopeFleet, nil
	case stopgapv1.ScopeKind_SCOPE_KIND_LABEL:
		if agent || m.GetLabelKey() == "" || m.GetLabelValue() == "" || strings.Contains(m.GetLabelKey(), "=") {
			return refused("a label has a key without = and a value, and nothing else is named")
		}
		return rollout.LabelScope(m.GetLabelKey() + "=" + m.GetLabelValue()), nil
	case stopgapv1.ScopeKind_SCOPE_KIND_AGENT:
		if label || !agent {
			return refused("a server, and nothing else, is to be named")
		}
		a, err := s.cfg.Fleet.Find(m.GetAgent())
		if err != nil {
			return "", s.toStatus(err)
		}
		return rollout.AgentScope(a.GetId()), nil
	default:
		return refused("kind %s: it is to be the fleet, a label or a server", m.GetKind())
	}
}

// flip sets a switch or ends it; an empty mitigation means all. It gives the scope and how many servers it has.
func (s *Service) flip(
	ctx context.Context, mitigation string, scope *stopgapv1.Scope, reason string, off bool,
) (*stopgapv1.Scope, uint32, error) {
	if err := bounds(mitigation, reason); err != nil {
		return nil, 0, err
	}
	where, err := s.scopeOf(scope)
	if err != nil {
		return nil, 0, err
	}
	sw := rollout.Switch{Mitigation: mitigation, Scope: where, Reason: reason, By: actor(ctx).String(), Since: time.Now().UTC()}
	n, err := s.cfg.Rollout.Switch(ctx, sw, off)
	if err != nil {
		return nil, 0, s.toStatus(err)
	}
	what := sw.Mitigation
	if what == "" {
		what = "everything"
	}
	action := map[bool]string{true: "switch-off", false: "switch-on"}[off]
	s.cfg.Audit.Append(ctx, actor(ctx), action, sw.Scope, "%s, %d servers: %s", what, n, reason)
	return sound(scopeMessage(where)), uint32(n), nil
}

// PauseFleet implements FleetService.
func (s *Service) PauseFleet(ctx context.Context, r *stopgapv1.PauseFleetRequest) (*stopgapv1.PauseFleetResponse, error) {
	scope, n, err := s.flip(ctx, "", r.GetScope(), r.GetReason(), true)
	return &stopgapv1.PauseFleetResponse{Scope: scope, Servers: n}, err
}

// ResumeFleet implements FleetService.
func (s *Service) ResumeFleet(ctx context.Context, r *stopgapv1.ResumeFleetRequest) (*stopgapv1.ResumeFleetResponse, error) {
	scope, n, err := s.flip(ctx, "", r.GetScope(), r.GetReason(), false)
	return &stopgapv1.ResumeFleetResponse{Scope: scope, Servers: n}, err
}

// errNoMitigation keeps a forgotten mitigation from meaning every one.
var errNoMitigation = status.Error(codes.InvalidArgument, "mitigation_id is empty")

// WithholdMitigation implements FleetService.
func (s *Service) WithholdMitigation(
	ctx context.Context, r *stopgapv1.WithholdMitigationRequest,
) (*stopgapv1.WithholdMitigationResponse, error) {
	if r.GetMitigationId() == "" {
		return nil, errNoMitigation
	}
	scope, n, err := s.flip(ctx, r.GetMitigationId(), r.GetScope(), r.GetReason(), true)
	return &stopgapv1.WithholdMitigationResponse{Scope: scope, Servers: n}, err
}

// AllowMitigation implements FleetService.
func (s *Service) AllowMitigation(ctx context.Context, r *stopgapv1.AllowMitigationRequest) (*stopgapv1.AllowMitigationResponse, error) {
	if r.GetMitigationId() == "" {
		return nil, errNoMitigation
	}
	scope, n, err := s.flip(ctx, r.GetMitigationId(), r.GetScope(), r.GetReason(), false)
	return &stopgapv1.AllowMitigationResponse{Scope: scope, Servers: n}, err
}

func kindOf(x rollout.Switch) stopgapv1.SwitchKind {
	if x.Mitigation == "" {
		return stopgapv1.SwitchKind_SWITCH_KIND_PAUSE
	}
	return stopgapv1.SwitchKind_SWITCH_KIND_WITHHOLD
}

// ListSwitches implements FleetService.
func (s *Service) ListSwitches(_ context.Context, r *stopgapv1.ListSwitchesRequest) (*stopgapv1.ListSwitchesResponse, error) {
	f := r.GetFilter()
	all := slices.DeleteFunc(s.cfg.Rollout.Switches(), func(x rollout.Switch) bool {
		return !among(f.GetKinds(), kindOf(x)) || !among(f.GetMitigationIds(), x.Mitigation) ||
			!among(f.GetScopeKinds(), scopeMessage(x.Scope).GetKind())
	})
	rows, next, total, err := paged(r, all, rollout.Switch.Order, func(x rollout.Switch) *stopgapv1.Switch {
		scope := scopeMessage(x.Scope)
		if scope.GetAgent() != "" {
			scope.AgentName, _ = s.cfg.Fleet.Label(scope.GetAgent())
		}
		return &stopgapv1.Switch{Kind: kindOf(x), MitigationId: x.Mitigation, Scope: scope, SetBy: who(x.By), Since: stamp(x.Since),
			Reason: x.Reason}
	})
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListSwitchesResponse{Switches: rows, NextPageToken: next, TotalSize: total}, nil
}
