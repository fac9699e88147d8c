package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// KindNobody is a caller without a client certificate.
const KindNobody trust.Kind = "nobody"

// perCaller is a rate for each caller of a method: burst at once, then every.
type perCaller struct {
	every time.Duration
	burst int
}

// noLimit spells out that a method has none.
var noLimit = perCaller{}

// rule is what a method declares about itself.
type rule struct {
	callers []trust.Kind
	// expired: a certificate within its grace may call it.
	expired bool
	rate    perCaller
	// maxRequest bounds one message of a request, in bytes; at most transport.MaxToController.
	maxRequest int
	// audited: the method writes the audit log itself, on success and on refusals of substance.
	audited bool
}

const (
	small = 8 << 10
	large = transport.MaxToController
)

var (
	readers = []trust.Kind{trust.KindViewer, trust.KindOperator, trust.KindAdmin}
	actors  = []trust.Kind{trust.KindOperator, trust.KindAdmin}
	admins  = []trust.Kind{trust.KindAdmin}
	agents  = []trust.Kind{trust.KindAgent}
	// A console and scripts poll with one person's certificate.
	peopleMay = perCaller{5 * time.Millisecond, 1000}
)

// methods is who may call what, how often, how large, and whether it is audited. A method without an entry is refused, and
// fails a test.
var methods = map[string]rule{
	// What a stream may carry is bounded in package session (frames, batches); here is how often it may begin.
	stopgapv1.AgentService_Connect_FullMethodName: {callers: agents, rate: perCaller{500 * time.Millisecond, 60}, maxRequest: large},
	stopgapv1.AgentService_Pull_FullMethodName:    {callers: agents, rate: perCaller{time.Second, 60}, maxRequest: large},
	stopgapv1.AgentService_RenewCertificate_FullMethodName: {callers: agents, expired: true, rate: perCaller{time.Minute, 5}, maxRequest: small,
		audited: true},
	// Nobody is one caller. Without a good token nothing is computed for it (Registry.Enroll).
	stopgapv1.EnrollmentService_Enroll_FullMethodName: {callers: []trust.Kind{KindNobody}, rate: perCaller{5 * time.Millisecond, 2000}, maxRequest: small,
		audited: true},

	stopgapv1.FleetService_ListMitigations_FullMethodName: {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListAgents_FullMethodName:      {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_GetAgent_FullMethodName:        {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListOutcomes_FullMethodName:    {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_Watch_FullMethodName:           {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListAudit_FullMethodName:       {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_Recheck_FullMethodName:         {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_Publish_FullMethodName:         {callers: actors, rate: peopleMay, maxRequest: large, audited: true},
	stopgapv1.FleetService_SetRelease_FullMethodName:      {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_PlanRollout_FullMethodName:     {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListRollouts_FullMethodName:    {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_GetRollout_FullMethodName:      {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListStrategies_FullMethodName:  {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListSwitches_FullMethodName:    {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_StartRollout_FullMethodName:    {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ActOnRollout_FullMethodName:    {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_SetStrategy_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: large, audited: true},
	stopgapv1.FleetService_SetSwitch_FullMethodName:       {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ListTokens_FullMethodName:      {callers: admins, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_CreateToken_FullMethodName:     {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevokeToken_FullMethodName:     {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevokeAgent_FullMethodName:     {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ReenrollAgent_FullMethodName:   {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
}

type callerKey struct{}

// caller is who makes a call that was let through.
type caller struct {
	trust.Identity
	cert *x509.Certificate
}

// Caller is who makes a call that was let through.
func Caller(ctx context.Context) trust.Identity {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c.Identity
}

// Certificate is the client certificate of a call that was let through; nil for nobody.
func Certificate(ctx context.Context) *x509.Certificate {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c.cert
}

// Gate lets calls through or refuses them, by the table. The client certificates it sees were verified in the handshake
// (Authority.ServerTLS).
type Gate struct {
	ca  *Authority
	reg *Registry
	log hclog.Logger

	mu       sync.Mutex
	limiters map[string]*rate.Limiter
}

// NewGate makes a gate.
func NewGate(ca *Authority, reg *Registry, log hclog.Logger) *Gate {
	return &Gate{ca: ca, reg: reg, log: log, limiters: map[string]*rate.Limiter{}}
}

// Authorize checks a call by its client certificate. Who is refused though they have one is in the audit log.
func (g *Gate) Authorize(ctx context.Context, method string) (context.Context, error) {
	out, c, err := g.authorize(ctx, method)
	if err != nil && c.cert != nil {
		g.reg.audit.Append(ctx, string(c.Kind)+" "+c.ID, "denied", method, "%s", status.Convert(err).Message())
	}
	return out, err
}

func (g *Gate) authorize(ctx context.Context, method string) (_ context.Context, c caller, err error) {
	r, ok := methods[method]
	if !ok {
		return nil, c, status.Errorf(codes.PermissionDenied, "%s: nobody may call this", method)
	}
	c, err = g.who(ctx)
	if err != nil {
		return nil, c, err
	}
	if !slices.Contains(r.callers, c.Kind) {
		if c.Kind == KindNobody {
			return nil, c, status.Error(codes.Unauthenticated, "no client certificate")
		}
		return nil, c, status.Errorf(codes.PermissionDenied, "%s is for %v; the certificate is for an %s", method, r.callers, c.Kind)
	}
	if c.Kind == trust.KindAgent {
		if err := g.reg.Check(c.ID, c.cert); err != nil {
			return nil, c, status.Error(codes.PermissionDenied, err.Error())
		}
	}
	// A connection may outlive the certificate it was made with.
	if now := time.Now(); c.cert != nil && now.After(c.cert.NotAfter) {
		if !r.expired || now.Sub(c.cert.NotAfter) >= Grace {
			return nil, c, status.Errorf(codes.Unauthenticated, "the certificate expired on %s; renew it first", c.cert.NotAfter.Format(time.RFC3339))
		}
	}
	if wait := g.limit(r.rate, string(c.Kind)+"/"+c.ID+method); wait > 0 {
		st := status.Newf(codes.ResourceExhausted, "%s: more than %d calls at once and one every %s after that", method, r.rate.burst, r.rate.every)
		if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}); err == nil {
			st = with
		}
		return nil, c, st.Err()
	}
	return context.WithValue(ctx, callerKey{}, c), c, nil
}

func (g *Gate) who(ctx context.Context) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || !info.State.HandshakeComplete {
		return caller{}, status.Error(codes.Unauthenticated, "no TLS")
	}
	if len(info.State.PeerCertificates) == 0 {
		return caller{Identity: trust.Identity{Kind: KindNobody}}, nil
	}
	cert := info.State.PeerCertificates[0]
	id, err := trust.FromCertificate(cert)
	if err != nil {
		return caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if id.Fleet != g.ca.Fleet {
		return caller{}, status.Errorf(codes.PermissionDenied, "the certificate is for fleet %q, this is %q", id.Fleet, g.ca.Fleet)
	}
	return caller{id, cert}, nil
}

// limit says how long a caller has to wait; 0: not at all.
func (g *Gate) limit(r perCaller, key string) time.Duration {
	if r == noLimit {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.limiters[key]
	if l == nil {
		sweep(g.limiters)
		l = rate.NewLimiter(rate.Every(r.every), r.burst)
		g.limiters[key] = l
	}
	if l.Allow() {
		return 0
	}
	return r.every
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
		g.log.Error("a call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
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

// ToStatus turns an error of this room into a status; nil when it is none of them.
func ToStatus(err error) error {
	for _, x := range []struct {
		err  error
		code codes.Code
	}{
		{ErrToken, codes.PermissionDenied}, {ErrRevoked, codes.PermissionDenied}, {ErrKey, codes.PermissionDenied},
		{ErrRequest, codes.InvalidArgument}, {ErrTooOften, codes.ResourceExhausted}, {ErrUnknown, codes.NotFound}, {ErrMachine, codes.FailedPrecondition},
	} {
		if errors.Is(err, x.err) {
			st := status.New(x.code, err.Error())
			if x.code == codes.ResourceExhausted {
				if with, derr := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(enrolAgain)}); derr == nil {
					st = with
				}
			}
			return st.Err()
		}
	}
	return nil
}
