package session

import (
	"context"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/controller/internal/identity"
	"github.com/stopgap-em/stopgap/controller/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Enrollment implements EnrollmentService, the one door that needs no certificate.
type Enrollment struct {
	stopgapv1.UnimplementedEnrollmentServiceServer
	FleetName string
	Registry  *identity.Registry
	Policy    *policy.Policy
	// Bundle is the CA certificates agents are to trust.
	Bundle func() [][]byte
	Logger hclog.Logger
}

// Enroll implements EnrollmentService. The root that the token names is sent, not the newest: the agent knows only its
// fingerprint, and follows the chain from there.
func (e *Enrollment) Enroll(ctx context.Context, r *stopgapv1.EnrollRequest) (*stopgapv1.EnrollResponse, error) {
	root := e.rootFor(r.GetRootSha256())
	if root == nil {
		return nil, status.Error(codes.FailedPrecondition, "the policy root that the token names is not of this fleet; make a new token")
	}
	got, err := e.Registry.Enroll(ctx, r.GetSecret(), r.GetCsr(), r.GetName(), r.GetMachineId())
	if err != nil {
		if st := identity.ToStatus(err); st != nil {
			return nil, st
		}
		e.Logger.Error("enrolment failed", "name", clip(r.GetName()), "error", err)
		return nil, status.Error(codes.Unavailable, "nobody can be enrolled now")
	}
	return &stopgapv1.EnrollResponse{AgentId: got.ID, Fleet: e.FleetName, Certificate: got.Cert.Raw, Ca: e.Bundle(), Root: root}, nil
}

// rootFor gives the root with a fingerprint.
func (e *Enrollment) rootFor(sum []byte) []byte {
	var want [32]byte
	if copy(want[:], sum) != len(want) {
		return nil
	}
	return e.Policy.RootByFingerprint(want)
}
