package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// credentials are the agent's own, as they are now: certificate and CA are renewed while it runs.
type credentials struct {
	dir  string
	kick chan struct{}

	mu  sync.Mutex
	cur *trust.Credentials
}

func openCredentials(dir string) (*credentials, error) {
	c, err := trust.LoadCredentials(dir)
	if err != nil {
		return nil, err
	}
	return &credentials{dir: dir, kick: make(chan struct{}, 1), cur: c}, nil
}

func (c *credentials) get() *trust.Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur
}

// Retries of a renewal that failed: doubling from the one to the other.
const (
	renewRetryMin = 5 * time.Second
	renewRetryMax = 30 * time.Minute
)

// renewer calls RenewCertificate.
type renewer interface {
	Renew(context.Context, *stopgapv1.RenewCertificateRequest) (*stopgapv1.RenewCertificateResponse, error)
}

// run renews the certificate at half of its life, ±10 %, or when told to, until ctx ends.
func (c *credentials) run(ctx context.Context, up renewer, note func(code, text string), log hclog.Logger) error {
	retry := renewRetryMin
	at := trust.RenewAt(c.get().Cert.Leaf, 2*rand.Float64()-1)
	for {
		t := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-c.kick:
			t.Stop()
		}
		err := c.renew(ctx, up)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it is over anyway
		}
		if err == nil {
			retry = renewRetryMin
			leaf := c.get().Cert.Leaf
			at = trust.RenewAt(leaf, 2*rand.Float64()-1)
			// With a clock that is far ahead half of its life is always over.
			if soonest := time.Now().Add((leaf.NotAfter.Sub(leaf.NotBefore) - trust.Backdate) / 10); at.Before(soonest) {
				at = soonest
			}
			note("certificate-expiring", "")
			log.Info("certificate renewed", "until", leaf.NotAfter.Format(time.RFC3339))
			continue
		}
		note("certificate-expiring", c.late(err, time.Now()))
		log.Warn("the certificate can't be renewed", "error", err, "again_in", retry)
		at = time.Now().Add(retry)
		retry = min(2*retry, renewRetryMax)
	}
}

// late says what a failed renewal means; "" while there is time.
func (c *credentials) late(err error, now time.Time) string {
	leaf := c.get().Cert.Leaf
	switch left := leaf.NotAfter.Sub(now); {
	case left < 0:
		return fmt.Sprintf("the certificate expired on %s and can't be renewed (%v); after 30 days this agent has to enrol again", leaf.NotAfter.Format(time.RFC3339), err)
	case left < (leaf.NotAfter.Sub(leaf.NotBefore)-trust.Backdate)/4:
		return fmt.Sprintf("the certificate ends on %s and can't be renewed: %v", leaf.NotAfter.Format(time.RFC3339), err)
	}
	return ""
}

func (c *credentials) renew(ctx context.Context, up renewer) error {
	cur := c.get()
	key, ok := cur.Cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("the key is no ECDSA key")
	}
	csr, err := trust.NewRequest(key)
	if err != nil {
		return err
	}
	resp, err := up.Renew(ctx, &stopgapv1.RenewCertificateRequest{Csr: csr})
	if err != nil {
		return err
	}
	// The bundle came over a connection that the CA we trust vouches for.
	roots := x509.NewCertPool()
	for _, der := range resp.GetCa() {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		roots.AddCert(ca)
	}
	if err := checkCertificate(resp.GetCertificate(), roots, key, cur.Identity.ID); err != nil {
		return fmt.Errorf("the renewed certificate was refused: %w", err)
	}
	if err := trust.ReplaceCertificates(c.dir, resp.GetCa(), resp.GetCertificate()); err != nil {
		return err
	}
	next, err := trust.LoadCredentials(c.dir)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.cur = next
	c.mu.Unlock()
	return nil
}
