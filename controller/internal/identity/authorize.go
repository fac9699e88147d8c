package identity

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// callers says who may call each method. A method without an entry is refused, and fails a test.
var callers = map[string]trust.Kind{
	stopgapv1.AgentService_Connect_FullMethodName:         trust.KindAgent,
	stopgapv1.AgentService_Pull_FullMethodName:            trust.KindAgent,
	stopgapv1.FleetService_Publish_FullMethodName:         trust.KindOperator,
	stopgapv1.FleetService_Withdraw_FullMethodName:        trust.KindOperator,
	stopgapv1.FleetService_ListMitigations_FullMethodName: trust.KindOperator,
	stopgapv1.FleetService_ListAgents_FullMethodName:      trust.KindOperator,
	stopgapv1.FleetService_GetAgent_FullMethodName:        trust.KindOperator,
	stopgapv1.FleetService_ListOutcomes_FullMethodName:    trust.KindOperator,
	stopgapv1.FleetService_Watch_FullMethodName:           trust.KindOperator,
	stopgapv1.FleetService_Recheck_FullMethodName:         trust.KindOperator,
}

type callerKey struct{}

// Caller is who makes a call that was let through.
func Caller(ctx context.Context) trust.Identity {
	id, _ := ctx.Value(callerKey{}).(trust.Identity)
	return id
}

// Authorize checks a call by its client certificate.
func (a *Authority) Authorize(ctx context.Context, method string) (context.Context, error) {
	want, ok := callers[method]
	if !ok {
		return nil, status.Errorf(codes.PermissionDenied, "%s: nobody may call this", method)
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil, status.Error(codes.Unauthenticated, "no verified client certificate")
	}
	id, err := trust.FromCertificate(info.State.VerifiedChains[0][0])
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if id.Fleet != a.Fleet {
		return nil, status.Errorf(codes.PermissionDenied, "the certificate is for fleet %q, this is %q", id.Fleet, a.Fleet)
	}
	if id.Kind != want {
		return nil, status.Errorf(codes.PermissionDenied, "%s is for an %s; the certificate is for an %s", method, want, id.Kind)
	}
	return context.WithValue(ctx, callerKey{}, id), nil
}

// Interceptors put Authorize before every call.
func (a *Authority) Interceptors() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			ctx, err := a.Authorize(ctx, info.FullMethod)
			if err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			ctx, err := a.Authorize(ss.Context(), info.FullMethod)
			if err != nil {
				return err
			}
			return h(srv, &authorized{ss, ctx})
		}),
	}
}

type authorized struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *authorized) Context() context.Context { return s.ctx }
