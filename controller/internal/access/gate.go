package access

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stopgap-em/stopgap/controller/internal/audit"
	"github.com/stopgap-em/stopgap/controller/internal/limit"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Config of a Gate.
type Config struct {
	// Fleet is the fleet whose callers are let through.
	Fleet string
	// Authenticators are asked in this order; the first that finds its proof in a call decides who calls. Certificates answers
	// for every call, so it comes last.
	Authenticators []Authenticator
	// CheckAgent says whether an agent's certificate may still be used (identity.Registry.Check).
	CheckAgent func(id string, c *x509.Certificate) error
	// Grace is how long after its end a certificate may still call the methods that allow it.
	Grace time.Duration
	// Audit records who was refused.
	Audit  *audit.Log
	Logger hclog.Logger
}

// Gate lets calls through or refuses them, by the table of methods. It is safe for concurrent use.
type Gate struct {
	cfg   Config
	rates *limit.Keyed
}

// New makes a gate.
func New(cfg Config) *Gate {
	return &Gate{cfg: cfg, rates: limit.NewKeyed(maxLimiters)}
}

// Authorize checks a call and gives the context for its handler, from which From reads the caller. A refusal is a gRPC status.
// When the refused caller proved an identity, the refusal is in the audit log.
func (g *Gate) Authorize(ctx context.Context, method string) (context.Context, error) {
	c, err := g.authorize(ctx, method)
	if err != nil {
		if c.named() {
			g.cfg.Audit.Append(ctx, c.Actor(), "denied", method, "%s", status.Convert(err).Message())
		}
		return nil, err
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

// authorize is Authorize without its traces. With an error, the caller is as far as it could be found out.
func (g *Gate) authorize(ctx context.Context, method string) (c Caller, err error) {
	r, ok := methods[method]
	if !ok {
		return c, status.Errorf(codes.PermissionDenied, "%s: nobody may call this", method)
	}
	if c, err = g.authenticate(ctx); err != nil {
		return c, err
	}
	if !slices.Contains(r.callers, c.Kind) {
		if c.Kind == KindNobody {
			return c, status.Error(codes.Unauthenticated, "no client certificate")
		}
		return c, status.Errorf(codes.PermissionDenied, "%s is for %v; the certificate is for an %s", method, r.callers, c.Kind)
	}
	if c.Kind == trust.KindAgent {
		if c.Certificate == nil {
			return c, status.Error(codes.PermissionDenied, "an agent needs a client certificate")
		}
		if err := g.cfg.CheckAgent(c.ID, c.Certificate); err != nil {
			return c, status.Error(codes.PermissionDenied, err.Error())
		}
	}
	if err := g.current(c, r); err != nil {
		return c, err
	}
	if !g.rates.Allow(c.key()+method, r.rate) {
		return c, tooOften(method, r.rate)
	}
	return c, nil
}

// authenticate asks the authenticators who calls.
func (g *Gate) authenticate(ctx context.Context) (Caller, error) {
	for _, a := range g.cfg.Authenticators {
		c, found, err := a.Authenticate(ctx)
		if err != nil {
			return Caller{}, err
		}
		if !found {
			continue
		}
		if c.named() && c.Fleet != g.cfg.Fleet {
			return Caller{}, status.Errorf(codes.PermissionDenied, "the certificate is for fleet %q, this is %q", c.Fleet, g.cfg.Fleet)
		}
		return c, nil
	}
	return Caller{}, status.Error(codes.Unauthenticated, "nothing in the call says who makes it")
}

// current checks that the caller's proof has not ended: a connection may outlive the certificate it was made with.
func (g *Gate) current(c Caller, r rule) error {
	now := time.Now()
	if !c.named() || !now.After(c.Expires) {
		return nil
	}
	if c.Certificate == nil {
		return status.Errorf(codes.Unauthenticated, "the sign-on expired on %s; sign on again", c.Expires.Format(time.RFC3339))
	}
	if !r.expired || now.Sub(c.Expires) >= g.cfg.Grace {
		return status.Errorf(codes.Unauthenticated, "the certificate expired on %s; renew it first", c.Expires.Format(time.RFC3339))
	}
	return nil
}

func tooOften(method string, r limit.Rate) error {
	st := status.Newf(codes.ResourceExhausted, "%s: more than %d calls at once and one every %s after that", method, r.Burst, r.Every)
	if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.Every)}); err == nil {
		st = with
	}
	return st.Err()
}
