package access

import (
	"context"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/shared/transport"
)

// Interceptors put Authorize before every call.
func (g *Gate) Interceptors() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
			defer g.contained(info.FullMethod, &err)
			ctx, err = g.Authorize(ctx, info.FullMethod)
			if err == nil {
				err = tooLarge(info.FullMethod, req)
			}
			if err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
			defer g.contained(info.FullMethod, &err)
			// In a goroutine of its own: the stack it needs would stay with the stream for as long as that stands, 4 KiB for each
			// agent.
			ctx, err := ss.Context(), error(nil)
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer g.contained(info.FullMethod, &err)
				ctx, err = g.Authorize(ctx, info.FullMethod)
			}()
			<-done
			if err != nil {
				return err
			}
			return h(srv, &authorized{ss, ctx, info.FullMethod})
		}),
	}
}

// contained turns a panic in a handler into an error of that call: one caller must not end everybody's controller.
func (g *Gate) contained(method string, err *error) {
	if p := recover(); p != nil {
		g.cfg.Logger.Error("a call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the controller failed on this call; its log has the reason")
	}
}

type authorized struct {
	grpc.ServerStream
	ctx    context.Context
	method string
}

func (s *authorized) Context() context.Context { return s.ctx }

// RecvMsg bounds each message of a stream. A method whose limit is the transport's own needs no second look.
func (s *authorized) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil || methods[s.method].maxRequest == transport.MaxToController {
		return err
	}
	return tooLarge(s.method, m)
}

func tooLarge(method string, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%s: not a message", method)
	}
	if n, limit := proto.Size(m), methods[method].maxRequest; n > limit {
		return status.Errorf(codes.ResourceExhausted, "%s: a message of %d bytes, limit %d", method, n, limit)
	}
	return nil
}
