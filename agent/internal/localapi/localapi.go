// Package localapi is the server administrator's door to the agent: gRPC on a unix socket, or a named pipe on Windows,
// that only administrators of the machine may open. It works with the controller down.
package localapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// Agent is what the door opens to.
type Agent interface {
	Status(context.Context) (*stopgapv1.StatusResponse, error)
	Block(context.Context, *stopgapv1.BlockRequest) (*stopgapv1.BlockResponse, error)
	Unblock(context.Context, *stopgapv1.UnblockRequest) (*stopgapv1.UnblockResponse, error)
	SetFrozen(context.Context, *stopgapv1.SetFrozenRequest) (*stopgapv1.SetFrozenResponse, error)
}

const (
	maxMessage = 1 << 20
	stopWait   = 3 * time.Second
)

// Serve serves the agent on a listener until ctx ends.
func Serve(ctx context.Context, ln net.Listener, a Agent, log hclog.Logger) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(16), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			resp, err := h(ctx, req)
			if _, ok := status.FromError(err); err != nil && !ok {
				log.Error("local call failed", "method", info.FullMethod, "error", err)
				err = status.Error(codes.Internal, err.Error())
			}
			return resp, err
		}))
	stopgapv1.RegisterLocalServiceServer(srv, &server{Agent: a})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		t := time.AfterFunc(stopWait, srv.Stop)
		srv.GracefulStop()
		t.Stop()
	}()
	if err := srv.Serve(ln); ctx.Err() == nil {
		return fmt.Errorf("local API: %w", err)
	}
	<-stopped
	return nil
}

type server struct {
	stopgapv1.UnimplementedLocalServiceServer
	Agent
}

func (s *server) Status(ctx context.Context, _ *stopgapv1.StatusRequest) (*stopgapv1.StatusResponse, error) {
	return s.Agent.Status(ctx)
}

func (s *server) Block(ctx context.Context, r *stopgapv1.BlockRequest) (*stopgapv1.BlockResponse, error) {
	return s.Agent.Block(ctx, r)
}

func (s *server) Unblock(ctx context.Context, r *stopgapv1.UnblockRequest) (*stopgapv1.UnblockResponse, error) {
	return s.Agent.Unblock(ctx, r)
}

func (s *server) SetFrozen(ctx context.Context, r *stopgapv1.SetFrozenRequest) (*stopgapv1.SetFrozenResponse, error) {
	return s.Agent.SetFrozen(ctx, r)
}

// ErrNoAgent is returned by Dial when nobody listens.
var ErrNoAgent = errors.New("no agent runs on this machine with that state directory (is the service started? is --state right?)")

// Dial connects to the agent of a state directory.
func Dial(stateDir string) (stopgapv1.LocalServiceClient, func() error, error) {
	conn, err := grpc.NewClient("passthrough:///local", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, stateDir) }))
	if err != nil {
		return nil, nil, err
	}
	return stopgapv1.NewLocalServiceClient(conn), conn.Close, nil
}
