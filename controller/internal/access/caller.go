package access

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// KindNobody is a caller that proves no identity.
const KindNobody trust.Kind = "nobody"

// Caller is who makes a call, however the caller proved it. An Authenticator makes it; rooms behind the gate get it with From.
type Caller struct {
	trust.Identity
	// Certificate is the client certificate that proved the identity. It is nil for nobody, and for people who proved theirs in
	// another way. An agent always has one.
	Certificate *x509.Certificate
	// Expires is when the proof ends. Zero means never, which only nobody has.
	Expires time.Time
}

// named says whether the caller proved an identity.
func (c Caller) named() bool { return c.Kind != "" && c.Kind != KindNobody }

// Actor is the caller as the audit log names it.
func (c Caller) Actor() audit.Actor {
	return audit.Actor{Kind: audit.KindOf(string(c.Kind)), Name: c.ID}
}

// key names the caller for rate limits.
func (c Caller) key() string { return string(c.Kind) + "/" + c.ID }

// Authenticator finds out who makes a call, by one kind of proof: a client certificate, or the token of a sign-on.
type Authenticator interface {
	// Authenticate gives the caller. found is false when the call carries no proof of this kind. The error is a gRPC status and
	// refuses the call: a proof that was shown has to be good.
	Authenticate(ctx context.Context) (c Caller, found bool, err error)
}

// Certificates authenticates by the client certificate of the TLS connection, which the handshake has verified
// (identity.Authority.ServerTLS). A TLS connection without one is nobody's; a connection without TLS is refused.
type Certificates struct{}

// Authenticate implements Authenticator.
func (Certificates) Authenticate(ctx context.Context) (Caller, bool, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, false, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || !info.State.HandshakeComplete {
		return Caller{}, false, status.Error(codes.Unauthenticated, "no TLS")
	}
	if len(info.State.PeerCertificates) == 0 {
		return Caller{Identity: trust.Identity{Kind: KindNobody}}, true, nil
	}
	cert := info.State.PeerCertificates[0]
	id, err := trust.FromCertificate(cert)
	if err != nil {
		return Caller{}, false, status.Error(codes.Unauthenticated, err.Error())
	}
	return Caller{Identity: id, Certificate: cert, Expires: cert.NotAfter}, true, nil
}

type callerKey struct{}

// From gives the caller of a call that the gate let through.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
