package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// office renews certificates, and remembers when it was asked.
type office struct {
	i  *issuer
	id string

	mu    sync.Mutex
	calls []time.Time
	fail  error
	key   *ecdsa.PublicKey // instead of the one asked for
}

// Renew implements Renewer.
func (o *office) Renew(_ context.Context, r *stopgapv1.RenewCertificateRequest) (*stopgapv1.RenewCertificateResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls = append(o.calls, time.Now())
	if o.fail != nil {
		return nil, o.fail
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	pub := csr.PublicKey.(*ecdsa.PublicKey)
	if o.key != nil {
		pub = o.key
	}
	return &stopgapv1.RenewCertificateResponse{Certificate: o.i.agent(pub, o.id).Raw, Ca: [][]byte{o.i.ca.Raw}}, nil
}

func (o *office) asked() int { return len(o.times()) }

// times are when it was asked. The renewal goes on while a test looks.
func (o *office) times() []time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.calls)
}

// notes are the standing warnings, by code.
type notes struct {
	mu   sync.Mutex
	text map[string]string
}

func (n *notes) set(code, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.text[code] = text
}

func (n *notes) get(code string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text[code]
}

// running are credentials that are kept fresh, in the time of a bubble.
func running(t *testing.T, life time.Duration) (*Credentials, *office, *notes) {
	t.Helper()
	i := newIssuer(t)
	i.life = life
	key := newKey(t)
	id, err := trust.AgentID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), CredentialsDir)
	if err := trust.WriteCredentials(dir, [][]byte{i.ca.Raw}, i.agent(&key.PublicKey, id).Raw, key); err != nil {
		t.Fatal(err)
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	o, n := &office{i: i, id: id}, &notes{text: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, o, n.set, hclog.NewNullLogger()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, o, n
}

// pass lets time pass in the bubble, and everything that it brings about happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestACertificateIsRenewedAtHalfOfItsLifeAndWhenAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, o, _ := running(t, 100*time.Hour)
		first := c.Get().Cert.Leaf
		pass(39 * time.Hour)
		if n := o.asked(); n != 0 {
			t.Fatalf("asked %d times before 40 hours of 100", n)
		}
		pass(22 * time.Hour)
		if n := o.asked(); n != 1 || !c.Get().Cert.Leaf.NotAfter.After(first.NotAfter) {
			t.Fatalf("asked %d times by 61 hours of 100", n)
		}
		c.RenewSoon()
		c.RenewSoon()
		pass(0)
		if n := o.asked(); n < 2 || n > 3 {
			t.Errorf("asked %d times", n)
		}
		read, err := trust.LoadCredentials(c.dir)
		if err != nil || !read.Cert.Leaf.Equal(c.Get().Cert.Leaf) {
			t.Errorf("what is on disk is another: %v", err)
		}
	})
}

func TestARenewalThatFailsIsTriedAgainLessAndLessOftenAndWarnsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, o, n := running(t, 100*time.Hour)
		o.mu.Lock()
		o.fail = errors.New("no way to the controller")
		o.mu.Unlock()
		pass(70 * time.Hour)
		times := o.times()
		calls := len(times)
		// From 40 to 60 hours on: doubling from 5 s to 30 min, and then every 30 min.
		if calls < 20 || calls > 75 || n.get("certificate-expiring") != "" {
			t.Errorf("%d calls, warning %q", calls, n.get("certificate-expiring"))
		}
		for i := 1; i < calls; i++ {
			if gap := times[i].Sub(times[i-1]); gap < renewRetryMin || gap > renewRetryMax+time.Second {
				t.Errorf("%s between two calls", gap)
			}
		}
		pass(10 * time.Hour)
		if n.get("certificate-expiring") == "" {
			t.Error("no warning in the last quarter")
		}
		pass(25 * time.Hour)
		if text := n.get("certificate-expiring"); text == "" || c.Get().Cert.Leaf.NotAfter.After(time.Now()) {
			t.Errorf("after its end: %q", text)
		}
		o.mu.Lock()
		o.fail = nil
		o.mu.Unlock()
		pass(renewRetryMax)
		if n.get("certificate-expiring") != "" || !c.Get().Cert.Leaf.NotAfter.After(time.Now()) {
			t.Error("it was not renewed, or the warning stands")
		}
	})
}

func TestARenewedCertificateForAnotherKeyIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, o, _ := running(t, 100*time.Hour)
		before := c.Get()
		o.mu.Lock()
		o.key = &newKey(t).PublicKey
		o.mu.Unlock()
		c.RenewSoon()
		pass(0)
		if o.asked() == 0 || c.Get() != before {
			t.Error("it was taken")
		}
		if read, err := trust.LoadCredentials(c.dir); err != nil || !read.Cert.Leaf.Equal(before.Cert.Leaf) {
			t.Errorf("what is on disk changed: %v", err)
		}
	})
}
