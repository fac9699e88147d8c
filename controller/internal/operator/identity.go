package operator

import (
	"context"
	"errors"
	"slices"

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
	return &stopgapv1.Token{Id: t.ID(), ExpiresAt: stamp(t.Expires), UsesLeft: uint32(t.UsesLeft), Labels: t.Labels, AgentId: t.AgentID,
		CreatedBy: who(t.CreatedBy)}
}

// CreateToken implements FleetService.
func (s *Service) CreateToken(ctx context.Context, r *stopgapv1.CreateTokenRequest) (*stopgapv1.CreateTokenResponse, error) {
	root, floor, err := s.anchor()
	if err != nil {
		return nil, s.toStatus(err)
	}
	token, kept, err := s.cfg.Registry.CreateToken(ctx, actor(ctx), identity.Token{UsesLeft: int(r.GetUses()), Labels: r.GetLabels()},
		r.GetTtl().AsDuration(), root, floor)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.CreateTokenResponse{TokenSecret: token.String(), Token: describeToken(kept)}, nil
}

// ListTokens implements FleetService.
func (s *Service) ListTokens(ctx context.Context, r *stopgapv1.ListTokensRequest) (*stopgapv1.ListTokensResponse, error) {
	all, err := s.cfg.Registry.Tokens(ctx)
	if err != nil {
		return nil, s.toStatus(err)
	}
	all = slices.DeleteFunc(all, func(t identity.Token) bool {
		return !hasLabels(t.Labels, r.GetFilter().GetLabels()) || !among(r.GetFilter().GetAgentIds(), t.AgentID)
	})
	key := func(t identity.Token) string { return number(uint64(max(t.Expires.Unix(), 0))) + t.Hash }
	rows, next, total, err := paged(r, all, key, describeToken)
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListTokensResponse{Tokens: rows, NextPageToken: next, TotalSize: total}, nil
}

// RevokeToken implements FleetService.
func (s *Service) RevokeToken(ctx context.Context, r *stopgapv1.RevokeTokenRequest) (*stopgapv1.RevokeTokenResponse, error) {
	return &stopgapv1.RevokeTokenResponse{}, s.toStatus(s.cfg.Registry.RevokeToken(ctx, r.GetTokenId(), actor(ctx)))
}

// ListAudit implements FleetService.
func (s *Service) ListAudit(ctx context.Context, r *stopgapv1.ListAuditRequest) (*stopgapv1.ListAuditResponse, error) {
	f := r.GetFilter()
	entries, broken, err := s.cfg.Audit.List(ctx, f.GetAfterSequence())
	if err != nil {
		return nil, s.toStatus(err)
	}
	entries = slices.DeleteFunc(entries, func(e *stopgapv1.AuditEntry) bool {
		return !among(f.GetActorKinds(), e.GetActorKind()) || !among(f.GetActorNames(), e.GetActorName()) ||
			!among(f.GetActions(), e.GetAction()) || !among(f.GetSubjects(), e.GetSubject())
	})
	rows, next, total, err := paged(r, entries, func(e *stopgapv1.AuditEntry) string { return number(e.GetSequence()) },
		func(e *stopgapv1.AuditEntry) *stopgapv1.AuditEntry { return e })
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListAuditResponse{Entries: rows, NextPageToken: next, TotalSize: total, ChainHolds: broken == 0,
		BrokenAtSequence: broken}, nil
}
