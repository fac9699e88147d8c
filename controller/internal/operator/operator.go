// Package operator is the operators' API: FleetService. It checks what comes in, asks the rooms that own the data, and turns
// their errors into status codes, here and nowhere else.
package operator

import (
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	case errors.As(err, &ps), errors.Is(err, policy.ErrMalformed), errors.Is(err, rollout.ErrReason), errors.Is(err, rollout.ErrSwitch),
		errors.Is(err, errStrategy), errors.Is(err, errPage):
		code = codes.InvalidArgument
	case errors.Is(err, policy.ErrUntrusted), errors.Is(err, policy.ErrFirstRoot):
		code = codes.PermissionDenied
	case errors.Is(err, policy.ErrOld), errors.Is(err, policy.ErrOnlineKeys), errors.Is(err, errNoPolicy),
		errors.Is(err, engine.ErrVerb), errors.Is(err, rollout.ErrBuiltIn):
		code = codes.FailedPrecondition
	case errors.Is(err, policy.ErrImmutable), errors.Is(err, rollout.ErrStrategyExists):
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

// who is an actor that is kept as one text; nil when there is none.
func who(text string) *stopgapv1.Actor {
	if text == "" {
		return nil
	}
	a := audit.ParseActor(text)
	return &stopgapv1.Actor{Kind: a.Kind, Name: a.Name}
}

// bounds refuses texts of a request that are longer than any that means something.
func bounds(texts ...string) error {
	for _, x := range texts {
		if len(x) > maxReason {
			return status.Errorf(codes.InvalidArgument, "a text of %d bytes, limit %d", len(x), maxReason)
		}
	}
	return nil
}

// among says whether a value is among those of a filter; an empty filter lets everything through.
func among[T comparable](want []T, v T) bool { return len(want) == 0 || slices.Contains(want, v) }
