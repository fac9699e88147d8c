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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/controller/internal/access"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	"github.com/stopgap-em/stopgap/controller/internal/rollout"
	"github.com/stopgap-em/stopgap/controller/internal/store"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
	"github.com/stopgap-em/stopgap/shared/trust"
)

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
	return st.SendAndClose(&stopgapv1.PublishResponse{PolicyVersion: cur.Version, RootVersion: cur.State.Versions.Root, Changes: changes,
		AgentsAhead: ahead, NewestAgentPolicyVersion: newest})
}

// setRelease stores what an operator decided about a revision. It gives how many servers have the revision.
func (s *Service) setRelease(ctx context.Context, ref *stopgapv1.MitigationRef, to stopgapv1.Release, reason string) (uint32, error) {
	if err := bounds(reason, ref.GetMitigationId()); err != nil {
		return 0, err
	}
	on := uint32(0)
	// From the first outcome of this mitigation to the first of another.
	_, err := s.cfg.Outcomes.Scan(ctx, store.Position{Mitigation: ref.GetMitigationId()}, func(rec *stopgapv1.OutcomeRecord) bool {
		o := rec.GetOutcome()
		if o.GetMitigation() == ref.GetMitigationId() && o.GetRevision() == ref.GetRevision() && outcome.Of(o.GetState()).Applied {
			on++
		}
		return o.GetMitigation() == ref.GetMitigationId()
	})
	if err != nil {
		return 0, s.toStatus(err)
	}
	err = s.cfg.Rollout.Set(ctx, ref.GetMitigationId(), ref.GetRevision(),
		rollout.Decision{Release: to, Reason: reason, By: actor(ctx).String(), At: time.Now().UTC()})
	if err != nil {
		return 0, s.toStatus(err)
	}
	s.cfg.Audit.Append(ctx, actor(ctx), "set-release", mitigation.Ref(ref.GetMitigationId(), ref.GetRevision()),
		"%s, applied on %d servers: %s",
		strings.TrimPrefix(to.String(), "RELEASE_"), on, reason)
	return on, nil
}

// ReleaseMitigation implements FleetService.
func (s *Service) ReleaseMitigation(
	ctx context.Context, r *stopgapv1.ReleaseMitigationRequest,
) (*stopgapv1.ReleaseMitigationResponse, error) {
	on, err := s.setRelease(ctx, r.GetMitigation(), stopgapv1.Release_RELEASE_RELEASED, r.GetReason())
	return &stopgapv1.ReleaseMitigationResponse{AppliedOn: on}, err
}

// HoldMitigation implements FleetService.
func (s *Service) HoldMitigation(ctx context.Context, r *stopgapv1.HoldMitigationRequest) (*stopgapv1.HoldMitigationResponse, error) {
	on, err := s.setRelease(ctx, r.GetMitigation(), stopgapv1.Release_RELEASE_HELD, r.GetReason())
	return &stopgapv1.HoldMitigationResponse{AppliedOn: on}, err
}

// RevertMitigation implements FleetService.
func (s *Service) RevertMitigation(ctx context.Context, r *stopgapv1.RevertMitigationRequest) (*stopgapv1.RevertMitigationResponse, error) {
	on, err := s.setRelease(ctx, r.GetMitigation(), stopgapv1.Release_RELEASE_REVERTED, r.GetReason())
	return &stopgapv1.RevertMitigationResponse{AppliedOn: on}, err
}

func policyInfo(cur *policy.Current) *stopgapv1.PolicyInfo {
	out := &stopgapv1.PolicyInfo{PolicyVersion: cur.Version, RootVersion: cur.State.Versions.Root}
	if cur.Version > 0 {
		out.TargetsExpireAt, out.RootExpiresAt = timestamppb.New(cur.TargetsExpire), timestamppb.New(cur.RootExpire)
	}
	if cur.Fixed != nil {
		out.FixedBuildsRevision = cur.Fixed.GetRevision()
	}
	return out
}

// ListMitigations implements FleetService.
func (s *Service) ListMitigations(ctx context.Context, r *stopgapv1.ListMitigationsRequest) (*stopgapv1.ListMitigationsResponse, error) {
	counts := map[string]map[stopgapv1.OutcomeState]uint32{}
	_, err := s.cfg.Outcomes.Scan(ctx, store.Position{}, func(rec *stopgapv1.OutcomeRecord) bool {
		ref := mitigation.Ref(rec.GetOutcome().GetMitigation(), rec.GetOutcome().GetRevision())
		if counts[ref] == nil {
			counts[ref] = map[stopgapv1.OutcomeState]uint32{}
		}
		counts[ref][rec.GetOutcome().GetState()]++
		return true
	})
	if err != nil {
		return nil, s.toStatus(err)
	}
	cur, released := s.cfg.Policy.Current(), s.cfg.Rollout.Released()
	release := func(d *mitigation.Document) stopgapv1.Release {
		return max(s.cfg.Rollout.Release(d.Ref()).Release, stopgapv1.Release_RELEASE_RELEASED)
	}
	var docs []*mitigation.Document
	for _, d := range cur.Sorted() {
		if among(r.GetFilter().GetMitigationIds(), d.GetId()) && among(r.GetFilter().GetReleases(), release(d)) {
			docs = append(docs, d)
		}
	}
	key := func(d *mitigation.Document) string { return fmt.Sprintf("%s\x00%010d", d.GetId(), d.GetRevision()) }
	rows, next, total, err := paged(r, docs, key, func(d *mitigation.Document) *stopgapv1.MitigationSummary {
		m := &stopgapv1.MitigationSummary{Mitigation: d.Mitigation, Sha256: d.SHA256[:], Assigned: released[d.Ref()], Release: release(d),
			ReleaseReason: s.cfg.Rollout.Release(d.Ref()).Reason}
		for _, st := range slices.SortedFunc(maps.Keys(counts[d.Ref()]), outcome.Compare) {
			m.Counts = append(m.Counts, &stopgapv1.StateCount{State: st, Count: counts[d.Ref()][st]})
		}
		return m
	})
	if err != nil {
		return nil, s.toStatus(err)
	}
	return &stopgapv1.ListMitigationsResponse{Mitigations: rows, NextPageToken: next, TotalSize: total, Policy: policyInfo(cur)}, nil
}
