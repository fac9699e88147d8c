// Package transport holds what both ends of the wire must agree on: message limits, heartbeat and keepalive times, window
// sizes. It opens no connection by itself.
package transport

import (
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Limits on messages; each is named in the error that going past it gives.
const (
	// MaxToController bounds one message to the controller, in bytes: a publish carries one file (256 KiB) a message, an
	// agent's frame at most MaxOutcomes outcomes.
	MaxToController = 512 << 10
	// MaxToAgent bounds one message to an agent, in bytes. The whole policy goes in one: 12 MiB of documents, and every root.
	MaxToAgent = 32 << 20
	// MaxOutcomes bounds one batch of outcomes.
	MaxOutcomes = 256
	// MaxFrames within FrameWindow bounds what one agent may send.
	MaxFrames   = 120
	FrameWindow = 10 * time.Second
	// HelloTimeout bounds the wait for the first frame.
	HelloTimeout = 10 * time.Second
	// CallTimeout bounds a Pull.
	CallTimeout = 30 * time.Second
)

// TimeHeader is the header of a stream that carries the controller's clock, RFC 3339.
const TimeHeader = "stopgap-time"

// Heartbeats, over and above HTTP/2 pings, which a proxy answers by itself. Three missed ones end the stream: 45 s.
const (
	HeartbeatInterval = 15 * time.Second
	MissedHeartbeats  = 3
)

const (
	keepaliveTime    = 20 * time.Second
	keepaliveTimeout = 20 * time.Second
	// maxConnectionAge ends a connection, give or take a tenth: the certificate it was made with is checked again then.
	maxConnectionAge = 24 * time.Hour
	connectionGrace  = time.Minute
	// window is HTTP/2's default flow-control window. Setting it on both ends switches off grpc's bandwidth estimation,
	// whose pings cost a third of the time of a broadcast (docs/performance.md).
	window = 65535
)

// ServerOptions for the controller's listener.
func ServerOptions(cfg *tls.Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(cfg)),
		grpc.MaxRecvMsgSize(MaxToController),
		grpc.MaxSendMsgSize(MaxToAgent),
		// A connection carries one stream and a pull, or an operator's few calls.
		grpc.MaxConcurrentStreams(16),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(0), // TLS buffers already; saves 33 KiB a connection
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: connectionGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	}
}

// DialOptions for agents and operators.
func DialOptions(cfg *tls.Config) []grpc.DialOption {
	return append(DialTuning(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
}

// DialTuning is DialOptions without the credentials.
func DialTuning() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxToAgent), grpc.MaxCallSendMsgSize(MaxToController)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithReadBufferSize(0),
		// Who takes a connection and then says nothing is given up on after this, not after 20 s.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 7 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}
}
