// Package operator is the operators' API: FleetService. It checks what comes in, asks the rooms that own the data, and turns
// their errors into status codes, here and nowhere else.
package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/access"
	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/fleet"
	"github.com/stopgap-em/stopgap/controller/internal/identity"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/trust"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// Config of a Service.
type Config struct {
	Fleet    *fleet.Fleet
	Outcomes store.Outcomes
	Policy   *policy.Policy
	Rollout  *rollout.Rollout
	Registry *identity.Registry
	Audit    *audit.Log
	// Recheck asks connected agents to look at their servers; an empty id means all.
	Recheck func(id string) uint32
	// Connected says whether an agent's stream stands.
	Connected func(id string) bool
	Logger    hclog.Logger
}

// Service implements FleetService.
type Service struct {
	stopgapv1.UnimplementedFleetServiceServer
	cfg Config
}

// New makes the service.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

const (
	// maxFiles bounds a publish: every root, the targets metadata, every document.
	maxFiles = tufpolicy.MaxRoots + 1 + tufpolicy.MaxTargets
	// maxPublish bounds its bytes together.
	maxPublish = tufpolicy.MaxRoots*tufpolicy.MaxRoot + tufpolicy.MaxTargetsMetadata + tufpolicy.MaxDocuments
	// maxError bounds the text of a refusal, which travels in a header.
	maxError  = 4 << 10
	maxReason = 300
)

// toStatus turns a room's error into a status.
func (s *Service) toStatus(err error) error {
	var ps mitigation.Problems
	code := codes.Internal
	switch {
	case err == nil:
		return nil
	case identity.ToStatus(err) != nil:
		return identity.ToStatus(err)
	case errors.As(err, &ps), errors.Is(err, policy.ErrMalformed), errors.Is(err, rollout.ErrReason), errors.Is(err, rollout.ErrSwitch), errors.Is(err, errStrategy):
		code = codes.InvalidArgument
	case errors.Is(err, policy.ErrUntrusted), errors.Is(err, policy.ErrFirstRoot):
		code = codes.PermissionDenied
	case errors.Is(err, policy.ErrOld), errors.Is(err, policy.ErrOnlineKeys), errors.Is(err, errNoPolicy), errors.Is(err, engine.ErrVerb), errors.Is(err, rollout.ErrBuiltIn):
		code = codes.FailedPrecondition
	case errors.Is(err, policy.ErrImmutable):
		code = codes.AlreadyExists
	case errors.Is(err, policy.ErrNotFound), errors.Is(err, fleet.ErrNotFound), errors.Is(err, store.ErrNotFound),
		errors.Is(err, rollout.ErrNoRollout), errors.Is(err, rollout.ErrNoStrategy):
		code = codes.NotFound
	case errors.Is(err, fleet.ErrAmbiguous):
		code = codes.FailedPrecondition
	case errors.Is(err, store.ErrCompacted):
		code = codes.OutOfRange
	case errors.Is(err, store.ErrConflict):
		code = codes.Aborted
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		if _, ok := status.FromError(err); ok {
			return err
		}
		s.cfg.Logger.Error("operator call failed", "error", err)
	}
	return status.Error(code, bounded.Text(err.Error(), maxError))
}

// actor names who calls, for the audit log.
func actor(ctx context.Context) audit.Actor { return access.From(ctx).Actor() }

// Publish implements FleetService.
func (s *Service) Publish(st stopgapv1.FleetService_PublishServer) error {
	var files []policy.File
	strategy, planOnly := "", false
	total := 0
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(files) == maxFiles {
			return status.Errorf(codes.ResourceExhausted, "more than %d files in one publish", maxFiles)
		}
		if total += len(r.GetContent()); total > maxPublish {
			return status.Errorf(codes.ResourceExhausted, "more than %d bytes in one publish", maxPublish)
		}
		if strategy == "" {
			strategy = r.GetStrategy()
		}
		planOnly = planOnly || r.GetPlanOnly()
		files = append(files, policy.File{Path: r.GetPath(), Content: r.GetContent()})
	}
	ctx := st.Context()
	var changes []string
	err := s.cfg.Rollout.With(ctx, strategy, planOnly, actor(ctx).String(), func() error {
		var err error
		changes, err = s.cfg.Policy.Publish(ctx, files, access.From(ctx).Kind == trust.KindAdmin)
		return err
	})
	if err != nil {
		s.cfg.Audit.Append(ctx, actor(ctx), "publish-refused", "policy", "%v", err)
		return s.toStatus(err)
	}
	cur := s.cfg.Policy.Current()
	ahead, newest := s.cfg.Fleet.Ahead(cur.Version)
	s.cfg.Audit.Append(ctx, actor(ctx), "publish", fmt.Sprintf("policy %d", cur.Version), "%s", strings.Join(changes, "; "))
	return st.SendAndClose(&stopgapv1.PublishResponse{PolicyVersion: cur.Version, RootVersion: cur.State.Versions.Root, Changes: changes, AgentsAhead: ahead, NewestClaimedVersion: newest})
}

// SetRelease implements FleetService.
func (s *Service) SetRelease(ctx context.Context, r *stopgapv1.SetReleaseRequest) (*stopgapv1.SetReleaseResponse, error) {
	if len(r.GetReason()) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "a reason of %d bytes, limit %d", len(r.GetReason()), maxReason)
	}
	recs, _, err := s.cfg.Outcomes.Current(ctx, r.GetMitigation())
	if err != nil {
		return nil, s.toStatus(err)
	}
	resp := &stopgapv1.SetReleaseResponse{}
	for _, rec := range recs {
		if rec.GetOutcome().GetRevision() == r.GetRevision() && outcome.Of(rec.GetOutcome().GetState()).Applied {
			resp.AppliedOn++
		}
	}
	err = s.cfg.Rollout.Set(ctx, r.GetMitigation(), r.GetRevision(), rollout.Decision{Release: r.GetRelease(), Reason: r.GetReason(), By: actor(ctx).String(), At: time.Now().UTC()})
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "set-release", mitigation.Ref(r.GetMitigation(), r.GetRevision()), "%s, applied on %d servers: %s",
		strings.TrimPrefix(r.GetRelease().String(), "RELEASE_"), resp.GetAppliedOn(), r.GetReason())
	return resp, nil
}

// ListMitigations implements FleetService.
func (s *Service) ListMitigations(ctx context.Context, _ *stopgapv1.ListMitigationsRequest) (*stopgapv1.ListMitigationsResponse, error) {
	cur := s.cfg.Policy.Current()
	resp := &stopgapv1.ListMitigationsResponse{PolicyVersion: cur.Version, RootVersion: cur.State.Versions.Root}
	if cur.Version > 0 {
		resp.TargetsExpire, resp.RootExpires = timestamppb.New(cur.TargetsExpire), timestamppb.New(cur.RootExpire)
	}
	if cur.Fixed != nil {
		resp.FixedBuildsRevision = cur.Fixed.GetRevision()
	}
	recs, _, err := s.cfg.Outcomes.Current(ctx, "")
	if err != nil {
		return nil, s.toStatus(err)
	}
	counts := map[string]map[stopgapv1.OutcomeState]uint32{}
	for _, r := range recs {
		ref := mitigation.Ref(r.GetOutcome().GetMitigation(), r.GetOutcome().GetRevision())
		if counts[ref] == nil {
			counts[ref] = map[stopgapv1.OutcomeState]uint32{}
		}
		counts[ref][r.GetOutcome().GetState()]++
	}
	released := s.cfg.Rollout.Released()
	for _, d := range cur.Sorted() {
		dec := s.cfg.Rollout.Release(d.Ref())
		m := &stopgapv1.MitigationSummary{Mitigation: d.Mitigation, Sha256: d.SHA256[:], Assigned: released[d.Ref()],
			Release: max(dec.Release, stopgapv1.Release_RELEASE_RELEASED), ReleaseReason: dec.Reason}
		for _, st := range slices.SortedFunc(maps.Keys(counts[d.Ref()]), outcome.Compare) {
			m.Counts = append(m.Counts, &stopgapv1.StateCount{State: st, Count: counts[d.Ref()][st]})
		}
		resp.Mitigations = append(resp.Mitigations, m)
	}
	return resp, nil
}

// ListAgents implements FleetService.
func (s *Service) ListAgents(r *stopgapv1.ListAgentsRequest, st stopgapv1.FleetService_ListAgentsServer) error {
	for _, v := range slices.SortedFunc(slices.Values(s.cfg.Fleet.Views()), func(a, b fleet.View) int { return strings.Compare(a.Key(), b.Key()) }) {
		a := v.Agent()
		if r.GetOrganisation() != "" && !strings.EqualFold(r.GetOrganisation(), a.GetFacts().GetOrganisation()) {
			continue
		}
		if err := st.Send(&stopgapv1.ListAgentsResponse{Agent: s.identify(a)}); err != nil {
			return err
		}
	}
	return nil
}

// GetAgent implements FleetService.
func (s *Service) GetAgent(ctx context.Context, r *stopgapv1.GetAgentRequest) (*stopgapv1.GetAgentResponse, error) {
	a, err := s.cfg.Fleet.Find(r.GetId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	recs, err := s.cfg.Outcomes.OfAgent(ctx, a.GetId())
	if err != nil {
		return nil, s.toStatus(err)
	}
	s.label(recs)
	return &stopgapv1.GetAgentResponse{Agent: s.identify(a), Outcomes: recs, Explanations: s.explain(a.GetId(), recs)}, nil
}

// identify adds what the registry knows.
func (s *Service) identify(a *stopgapv1.Agent) *stopgapv1.Agent {
	if rec, ok := s.cfg.Registry.Get(a.GetId()); ok {
		a.Labels, a.Revoked = rec.Labels, rec.Revoked
		if !rec.NotAfter.IsZero() {
			a.CertificateExpires = timestamppb.New(rec.NotAfter)
		}
	}
	return a
}

// label adds what is not stored with each outcome.
func (s *Service) label(recs []*stopgapv1.OutcomeRecord) {
	for _, r := range recs {
		r.AgentName, r.Organisation = s.cfg.Fleet.Label(r.GetAgentId())
	}
}

// ListOutcomes implements FleetService.
func (s *Service) ListOutcomes(r *stopgapv1.ListOutcomesRequest, st stopgapv1.FleetService_ListOutcomesServer) error {
	recs, rev, err := s.cfg.Outcomes.Current(st.Context(), r.GetMitigation())
	if err != nil {
		return s.toStatus(err)
	}
	s.label(recs)
	want := map[stopgapv1.OutcomeState]bool{}
	for _, x := range r.GetStates() {
		want[x] = true
	}
	for _, rec := range recs {
		if len(want) > 0 && !want[rec.GetOutcome().GetState()] {
			continue
		}
		if err := st.Send(&stopgapv1.ListOutcomesResponse{Record: rec, Revision: uint64(rev)}); err != nil {
			return err
		}
	}
	return nil
}

// Watch implements FleetService.
func (s *Service) Watch(r *stopgapv1.WatchRequest, st stopgapv1.FleetService_WatchServer) error {
	after := int64(r.GetAfterRevision())
	if after < 0 {
		return status.Error(codes.InvalidArgument, "after_revision is too large")
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
		s.label(recs)
		for _, rec := range recs {
			if err := st.Send(&stopgapv1.WatchResponse{Revision: uint64(next), Outcome: rec}); err != nil {
				return err
			}
		}
		after = next
	}
}

// Recheck implements FleetService.
func (s *Service) Recheck(ctx context.Context, r *stopgapv1.RecheckRequest) (*stopgapv1.RecheckResponse, error) {
	id := ""
	if r.GetId() != "" {
		a, err := s.cfg.Fleet.Find(r.GetId())
		if err != nil {
			return nil, s.toStatus(err)
		}
		id = a.GetId()
	}
	n := s.cfg.Recheck(id)
	s.cfg.Audit.Append(ctx, actor(ctx), "recheck", id, "%d connected servers were asked", n)
	return &stopgapv1.RecheckResponse{Asked: n}, nil
}
