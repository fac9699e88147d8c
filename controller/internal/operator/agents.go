package operator

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/fleet"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// agentFilter says which servers a filter lets through.
func (s *Service) agentFilter(f *stopgapv1.AgentFilter) func(fleet.View) bool {
	return func(v fleet.View) bool {
		named := func(organisation string) bool { return strings.EqualFold(organisation, v.Organisation()) }
		if len(f.GetOrganisations()) > 0 && !slices.ContainsFunc(f.GetOrganisations(), named) {
			return false
		}
		if !among(f.GetPresences(), v.Presence()) {
			return false
		}
		if len(f.GetLabels()) == 0 {
			return true
		}
		rec, _ := s.cfg.Registry.Get(v.ID())
		return hasLabels(rec.Labels, f.GetLabels())
	}
}

// hasLabels says whether labels contain all that are wanted.
func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if x, ok := have[k]; !ok || x != v {
			return false
		}
	}
	return true
}

// ListAgents implements FleetService.
func (s *Service) ListAgents(_ context.Context, r *stopgapv1.ListAgentsRequest) (*stopgapv1.ListAgentsResponse, error) {
	through := s.agentFilter(r.GetFilter())
	views := slices.DeleteFunc(s.cfg.Fleet.Views(), func(v fleet.View) bool { return !through(v) })
	rows, next, total, err := paged(r, views, fleet.View.Key, func(v fleet.View) *stopgapv1.Agent { return s.identify(v.Agent()) })
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListAgentsResponse{Agents: rows, NextPageToken: next, TotalSize: total}, nil
}

// GetAgent implements FleetService.
func (s *Service) GetAgent(ctx context.Context, r *stopgapv1.GetAgentRequest) (*stopgapv1.GetAgentResponse, error) {
	a, err := s.cfg.Fleet.Find(r.GetAgent())
	if err != nil {
		return nil, s.toStatus(err)
	}
	recs, err := s.cfg.Outcomes.OfAgent(ctx, a.GetId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	for _, rec := range recs {
		s.label(rec)
	}
	return sound(&stopgapv1.GetAgentResponse{Agent: s.identify(a), Outcomes: recs, Explanations: s.explain(a.GetId(), recs)}), nil
}

// identify adds what the registry knows.
func (s *Service) identify(a *stopgapv1.Agent) *stopgapv1.Agent {
	rec, ok := s.cfg.Registry.Get(a.GetId())
	if !ok {
		return a
	}
	a.Labels = rec.Labels
	if !rec.NotAfter.IsZero() {
		a.CertificateExpiresAt = timestamppb.New(rec.NotAfter)
	}
	if v, revoked := rec.Revocation(); revoked {
		a.Revocation = &stopgapv1.Revocation{RevokedAt: stamp(v.At), RevokedBy: who(v.By.String()), Reason: v.Reason}
	}
	return a
}

// Recheck implements FleetService.
func (s *Service) Recheck(ctx context.Context, r *stopgapv1.RecheckRequest) (*stopgapv1.RecheckResponse, error) {
	id := ""
	if r.GetAgent() != "" {
		a, err := s.cfg.Fleet.Find(r.GetAgent())
		if err != nil {
			return nil, s.toStatus(err)
		}
		id = a.GetId()
	}
	n := s.cfg.Recheck(id)
	s.cfg.Audit.Append(ctx, actor(ctx), "recheck", id, "%d connected servers were asked", n)
	return &stopgapv1.RecheckResponse{Asked: n}, nil
}

// agentID gives the full id of an agent that the fleet or the registry knows: one that enrolled and never connected too.
func (s *Service) agentID(name string) (string, error) {
	if _, ok := s.cfg.Registry.Get(name); ok {
		return name, nil
	}
	a, err := s.cfg.Fleet.Find(name)
	return a.GetId(), err
}

// RevokeAgent implements FleetService.
func (s *Service) RevokeAgent(ctx context.Context, r *stopgapv1.RevokeAgentRequest) (*stopgapv1.RevokeAgentResponse, error) {
	if err := bounds(r.GetReason()); err != nil {
		return nil, err
	}
	id, err := s.agentID(r.GetAgent())
	if err != nil {
		return nil, s.toStatus(err)
	}
	connected := s.cfg.Connected(id)
	if err := s.cfg.Registry.Revoke(ctx, id, actor(ctx), r.GetReason()); err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.RevokeAgentResponse{AgentId: id, WasConnected: connected}, nil
}

// ReenrollAgent implements FleetService.
func (s *Service) ReenrollAgent(ctx context.Context, r *stopgapv1.ReenrollAgentRequest) (*stopgapv1.ReenrollAgentResponse, error) {
	root, floor, err := s.anchor()
	if err != nil {
		return nil, s.toStatus(err)
	}
	id, err := s.agentID(r.GetAgent())
	if err != nil {
		return nil, s.toStatus(err)
	}
	token, err := s.cfg.Registry.Reenroll(ctx, id, actor(ctx), r.GetTtl().AsDuration(), root, floor)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ReenrollAgentResponse{AgentId: id, TokenSecret: token.String()}, nil
}
