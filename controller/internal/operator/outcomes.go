package operator

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// label adds what is not stored with each outcome.
func (s *Service) label(r *stopgapv1.OutcomeRecord) {
	r.AgentName, r.Organisation = s.cfg.Fleet.Label(r.GetAgentId())
}

// outcomeFilter says which outcomes a filter lets through. It looks at each server once.
func (s *Service) outcomeFilter(f *stopgapv1.OutcomeFilter) func(*stopgapv1.OutcomeRecord) bool {
	server, known := s.agentFilter(f.GetAgents()), map[string]bool{}
	return func(r *stopgapv1.OutcomeRecord) bool {
		if !among(f.GetStates(), r.GetOutcome().GetState()) || !among(f.GetMitigationIds(), r.GetOutcome().GetMitigation()) {
			return false
		}
		if f.GetAgents() == nil {
			return true
		}
		through, seen := known[r.GetAgentId()]
		if !seen {
			v, ok := s.cfg.Fleet.View(r.GetAgentId())
			through = ok && server(v)
			known[r.GetAgentId()] = through
		}
		return through
	}
}

// ListOutcomes implements FleetService.
func (s *Service) ListOutcomes(ctx context.Context, r *stopgapv1.ListOutcomesRequest) (*stopgapv1.ListOutcomesResponse, error) {
	q, err := parsePage(r)
	if err != nil {
		return nil, s.toStatus(err)
	}
	var after store.Position
	if q.inside {
		after.Mitigation, after.Agent, _ = strings.Cut(q.key, "\x00")
	} else if len(r.GetFilter().GetMitigationIds()) == 1 {
		after.Mitigation = r.GetFilter().GetMitigationIds()[0] // nothing before it is wanted
	}
	p, through := page[*stopgapv1.OutcomeRecord]{query: q}, s.outcomeFilter(r.GetFilter())
	rev, err := s.cfg.Outcomes.Scan(ctx, after, func(rec *stopgapv1.OutcomeRecord) bool {
		id := rec.GetOutcome().GetMitigation()
		if !through(rec) {
			return len(r.GetFilter().GetMitigationIds()) != 1 || id <= r.GetFilter().GetMitigationIds()[0]
		}
		s.label(rec)
		return p.add(id+"\x00"+rec.GetAgentId(), rec)
	})
	if err != nil {
		return nil, s.toStatus(err)
	}
	if !p.inside {
		p.revision = uint64(rev)
	}
	return &stopgapv1.ListOutcomesResponse{Outcomes: p.rows, NextPageToken: p.next(), StoreRevision: p.revision}, nil
}

// Watch implements FleetService.
func (s *Service) Watch(r *stopgapv1.WatchRequest, st stopgapv1.FleetService_WatchServer) error {
	after := int64(r.GetAfterStoreRevision())
	if after < 0 {
		return status.Error(codes.InvalidArgument, "after_store_revision is too large")
	}
	if after == 0 {
		var err error
		if after, err = s.cfg.Outcomes.Revision(st.Context()); err != nil {
			return s.toStatus(err)
		}
	}
	for {
		recs, next, err := s.cfg.Outcomes.Since(st.Context(), after)
		if err != nil {
			return s.toStatus(fmt.Errorf("watch: %w", err))
		}
		for _, rec := range recs {
			s.label(rec)
			if err := st.Send(sound(&stopgapv1.WatchResponse{StoreRevision: uint64(next), Outcome: rec})); err != nil {
				return err
			}
		}
		after = next
	}
}
