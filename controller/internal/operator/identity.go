package operator

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/identity"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// errNoPolicy: a token names a root, and there is none yet.
var errNoPolicy = errors.New("no policy was published yet, and a token names its root: publish one first (`stopgap publish DIR`)")

// anchor is what a token lets an agent begin its trust from.
func (s *Service) anchor() (root [32]byte, floor uint64, err error) {
	cur := s.cfg.Policy.Current()
	if cur.Version == 0 {
		return root, 0, errNoPolicy
	}
	return tufpolicy.RootFingerprint(cur.State.Root), cur.Version, nil
}

func describeToken(t identity.Token) *stopgapv1.Token {
	return &stopgapv1.Token{Id: t.ID(), ExpiresAt: timestamppb.New(t.Expires), UsesLeft: uint32(t.UsesLeft), Labels: t.Labels, AgentId: t.AgentID, CreatedBy: t.CreatedBy}
}

// CreateToken implements FleetService.
func (s *Service) CreateToken(ctx context.Context, r *stopgapv1.CreateTokenRequest) (*stopgapv1.CreateTokenResponse, error) {
	root, floor, err := s.anchor()
	if err != nil {
		return nil, s.toStatus(err)
	}
	token, kept, err := s.cfg.Registry.CreateToken(ctx, actor(ctx), identity.Token{UsesLeft: int(r.GetUses()), Labels: r.GetLabels()},
		time.Duration(r.GetTtlSeconds())*time.Second, root, floor)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.CreateTokenResponse{Token: token.String(), Info: describeToken(kept)}, nil
}

// ListTokens implements FleetService.
func (s *Service) ListTokens(ctx context.Context, _ *stopgapv1.ListTokensRequest) (*stopgapv1.ListTokensResponse, error) {
	all, err := s.cfg.Registry.Tokens(ctx)
	if err != nil {
		return nil, s.toStatus(err)
	}
	resp := &stopgapv1.ListTokensResponse{}
	for _, t := range all {
		resp.Tokens = append(resp.Tokens, describeToken(t))
	}
	return resp, nil
}

// RevokeToken implements FleetService.
func (s *Service) RevokeToken(ctx context.Context, r *stopgapv1.RevokeTokenRequest) (*stopgapv1.RevokeTokenResponse, error) {
	return &stopgapv1.RevokeTokenResponse{}, s.toStatus(s.cfg.Registry.RevokeToken(ctx, r.GetId(), actor(ctx)))
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
	if len(r.GetReason()) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "a reason of %d bytes, limit %d", len(r.GetReason()), maxReason)
	}
	id, err := s.agentID(r.GetId())
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
	id, err := s.agentID(r.GetId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	token, err := s.cfg.Registry.Reenroll(ctx, id, actor(ctx), time.Duration(r.GetTtlSeconds())*time.Second, root, floor)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ReenrollAgentResponse{AgentId: id, Token: token.String()}, nil
}

// ListAudit implements FleetService.
func (s *Service) ListAudit(ctx context.Context, r *stopgapv1.ListAuditRequest) (*stopgapv1.ListAuditResponse, error) {
	resp, err := s.cfg.Audit.List(ctx, r.GetAfter())
	return resp, s.toStatus(err)
}
