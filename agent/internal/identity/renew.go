package identity

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

// Credentials are the agent's own, as they are now: Run renews certificate and CA while the agent runs.
type Credentials struct {
	dir  string
	kick chan struct{}

	mu  sync.Mutex
	cur *trust.Credentials
}

// Open reads a credential directory.
func Open(dir string) (*Credentials, error) {
	c, err := trust.LoadCredentials(dir)
	if err != nil {
		return nil, err
	}
	return &Credentials{dir: dir, kick: make(chan struct{}, 1), cur: c}, nil
}

// Get gives the credentials as they are now.
func (c *Credentials) Get() *trust.Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur
}

// Retries of a renewal that failed: doubling from the one to the other.
const (
	renewRetryMin = 5 * time.Second
	renewRetryMax = 30 * time.Minute
)

// RenewSoon makes Run renew the certificate now.
func (c *Credentials) RenewSoon() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Renewer calls RenewCertificate.
type Renewer interface {
	Renew(context.Context, *stopgapv1.RenewCertificateRequest) (*stopgapv1.RenewCertificateResponse, error)
}

// Run renews the certificate at half of its life, ±10 %, and whenever RenewSoon was called, until ctx ends. It notes by note that
// the certificate is about to expire, under the code certificate-expiring; an empty text takes the note back.
func (c *Credentials) Run(ctx context.Context, up Renewer, note func(code, text string), log hclog.Logger) error {
	retry := renewRetryMin
	at := trust.RenewAt(c.Get().Cert.Leaf, 2*rand.Float64()-1)
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
			leaf := c.Get().Cert.Leaf
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
func (c *Credentials) late(err error, now time.Time) string {
	leaf := c.Get().Cert.Leaf
	switch left := leaf.NotAfter.Sub(now); {
	case left < 0:
		return fmt.Sprintf("the certificate expired on %s and can't be renewed (%v); after 30 days this agent has to enrol again",
			leaf.NotAfter.Format(time.RFC3339), err)
	case left < (leaf.NotAfter.Sub(leaf.NotBefore)-trust.Backdate)/4:
		return fmt.Sprintf("the certificate ends on %s and can't be renewed: %v", leaf.NotAfter.Format(time.RFC3339), err)
	}
	return ""
}

func (c *Credentials) renew(ctx context.Context, up Renewer) error {
	cur := c.Get()
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
