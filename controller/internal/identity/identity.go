// Package identity is who belongs to a fleet: the certificate authority, enrolment tokens, and the record of each agent's key.
// Who may call what is decided in package access.
package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Lifetimes of certificates.
const (
	caLife       = 10 * 365 * 24 * time.Hour
	serverLife   = 2 * 365 * 24 * time.Hour
	operatorLife = 365 * 24 * time.Hour
	// DefaultAgentLife is how long an agent's certificate is good; it renews at half of it.
	DefaultAgentLife = 7 * 24 * time.Hour
	// Grace is how long after its end a certificate can still be renewed.
	Grace = 30 * 24 * time.Hour
)

// Files of the data directory.
const (
	caDir      = "ca"
	serverDir  = "server"
	operators  = "operators"
	onlineDir  = "online"
	fleetFile  = "fleet"
	caCertFile = "ca.pem" // the issuing CA first; a second one while it is being replaced
	caKeyFile  = "ca-key.pem"
	// PublicFile in the online directory is what `stopgap policy init --online` reads.
	PublicFile = "public.json"
)

// Files names where private keys stand, so that a deployment can put them on a secret mount. Empty: in the data directory.
type Files struct {
	CAKey, SnapshotKey, TimestampKey string
}

func (f Files) caKey(dir string) string { return or(f.CAKey, filepath.Join(dir, caDir, caKeyFile)) }

func or(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

// OnlineKeys reads the keys that sign snapshot and timestamp.
func (f Files) OnlineKeys(dir string) (snapshot, timestamp *signkey.Key, err error) {
	if snapshot, err = signkey.LoadPlain(or(f.SnapshotKey, filepath.Join(dir, onlineDir, "snapshot.pem")), signkey.RoleSnapshot); err != nil {
		return nil, nil, fmt.Errorf("identity: snapshot key: %w", err)
	}
	if timestamp, err = signkey.LoadPlain(or(f.TimestampKey, filepath.Join(dir, onlineDir, "timestamp.pem")), signkey.RoleTimestamp); err != nil {
		return nil, nil, fmt.Errorf("identity: timestamp key: %w", err)
	}
	return snapshot, timestamp, nil
}

// Authority is the CA of a fleet.
type Authority struct {
	Fleet string
	// AgentLife is how long an agent's certificate is good; 0: DefaultAgentLife.
	AgentLife time.Duration
	certs     []*x509.Certificate // the issuing one first
	key       *ecdsa.PrivateKey
}

var fleetName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ErrExists is returned by Init for a directory that holds a CA.
var ErrExists = errors.New("identity: the data directory is initialised already")

// Init makes a CA, the server's certificate for the given host names and addresses, the first admin's client certificate, and
// the online keys that sign snapshot and timestamp. It returns the directory of that admin's credentials.
func Init(dir, fleet string, hosts []string) (string, error) {
	if !fleetName.MatchString(fleet) {
		return "", fmt.Errorf("identity: fleet name %q must be lower-case letters, digits and dashes", fleet)
	}
	if len(hosts) == 0 {
		return "", errors.New("identity: no host name or address for the server's certificate")
	}
	if _, err := os.Stat(filepath.Join(dir, caDir)); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", ErrExists, dir)
	}
	ca, key, err := newCA(fleet)
	if err != nil {
		return "", err
	}
	a := &Authority{Fleet: fleet, certs: []*x509.Certificate{ca}, key: key}
	// Everything else first: the CA's directory is what says that the whole is there.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := a.issueServer(filepath.Join(dir, serverDir), hosts); err != nil {
		return "", err
	}
	if err := files.Replace(filepath.Join(dir, fleetFile), []byte(fleet+"\n"), files.Private); err != nil {
		return "", err
	}
	op := filepath.Join(dir, operators, "admin")
	if err := a.IssueOperator(op, "admin", trust.KindAdmin); err != nil {
		return "", err
	}
	if err := NewOnlineKeys(filepath.Join(dir, onlineDir)); err != nil {
		return "", err
	}
	return op, writeCA(dir, Files{}, a.certs, key)
}

// NewOnlineKeys makes the keys that sign snapshot and timestamp, and the file with their public halves for the offline side.
func NewOnlineKeys(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var public []signkey.Public
	for _, role := range []string{signkey.RoleSnapshot, signkey.RoleTimestamp} {
		k, err := signkey.Generate(role)
		if err != nil {
			return err
		}
		if err := k.SavePlain(filepath.Join(dir, role+".pem")); err != nil {
			return err
		}
		public = append(public, k.Public)
	}
	data, err := json.MarshalIndent(public, "", "  ")
	if err != nil {
		return err
	}
	return files.Replace(filepath.Join(dir, PublicFile), append(data, '\n'), files.Public)
}

func newCA(fleet string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := trust.NewKey()
	if err != nil {
		return nil, nil, err
	}
	tmpl, err := template(caLife)
	if err != nil {
		return nil, nil, err
	}
	tmpl.Subject = pkix.Name{CommonName: "Stopgap CA of fleet " + fleet, SerialNumber: tmpl.SerialNumber.Text(16)[:8]}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func writeCA(dir string, keys Files, certs []*x509.Certificate, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return errors.New("identity: the CA key can't be encoded")
	}
	if err := os.MkdirAll(filepath.Join(dir, caDir), 0o700); err != nil {
		return err
	}
	// The key beside the old one, then the certificates, then the key in its place: Load finishes what a crash left.
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	if err := files.Replace(keys.caKey(dir)+nextSuffix, data, files.Private); err != nil {
		return err
	}
	if err := writeBundle(dir, certs); err != nil {
		return err
	}
	return files.Rename(keys.caKey(dir)+nextSuffix, keys.caKey(dir))
}

const nextSuffix = ".next"

func writeBundle(dir string, certs []*x509.Certificate) error {
	var bundle []byte
	for _, c := range certs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return files.Replace(filepath.Join(dir, caDir, caCertFile), bundle, files.Public)
}

// ErrNotInitialised is returned by Load.
var ErrNotInitialised = errors.New("identity: no data directory there; `stopgap-controller init` makes one")

// Load reads the CA of a data directory.
func Load(dir string, keys Files) (*Authority, error) {
	fleet, err := os.ReadFile(filepath.Join(dir, fleetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s)", ErrNotInitialised, dir)
	}
	if err != nil {
		return nil, err
	}
	bundle := filepath.Join(dir, caDir, caCertFile)
	pair, err := tls.LoadX509KeyPair(bundle, keys.caKey(dir))
	if err != nil {
		if next, nerr := tls.LoadX509KeyPair(bundle, keys.caKey(dir)+nextSuffix); nerr == nil {
			pair, err = next, files.Rename(keys.caKey(dir)+nextSuffix, keys.caKey(dir)) // a replacement that a crash cut short
		}
	}
	if err != nil {
		return nil, fmt.Errorf("identity: CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("identity: CA key is a %T, want ECDSA", pair.PrivateKey)
	}
	a := &Authority{Fleet: string(bytes.TrimSpace(fleet)), key: key}
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("identity: CA: %w", err)
		}
		a.certs = append(a.certs, c)
	}
	return a, nil
}

// Bundle is every CA certificate that is good now, in DER.
func (a *Authority) Bundle() [][]byte {
	out := make([][]byte, len(a.certs))
	for i, c := range a.certs {
		out[i] = c.Raw
	}
	return out
}

// TokenCA is the fingerprint that tokens carry: of the CA that issued the server's certificate, which is the one an enrolling
// agent sees. While the CA is being replaced that is the old one.
func (a *Authority) TokenCA() [32]byte { return trust.KeyFingerprint(a.certs[len(a.certs)-1]) }

// Fingerprint names the issuing CA.
func (a *Authority) Fingerprint() [32]byte { return trust.KeyFingerprint(a.certs[0]) }

func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.certs {
		pool.AddCert(c)
	}
	return pool
}

// Verify checks a client certificate's chain and end. An agent's may have ended less than Grace ago: what it may still call
// is decided in package access.
func (a *Authority) Verify(c *x509.Certificate) error { return a.verifyAt(c, time.Now()) }

func (a *Authority) verifyAt(c *x509.Certificate, now time.Time) error {
	at := now
	if id, err := trust.FromCertificate(c); err == nil && id.Kind == trust.KindAgent && now.After(c.NotAfter) && now.Sub(c.NotAfter) < Grace {
		at = c.NotAfter
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: a.pool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// ServerTLS is the TLS configuration of the controller's listener. It shows the CA's certificate beside its own: who enrols
// knows its fingerprint only.
func (a *Authority) ServerTLS(dir string) (*tls.Config, error) {
	trust.Recover(filepath.Join(dir, serverDir))
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, serverDir, trust.CertFile), filepath.Join(dir, serverDir, trust.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("identity: server certificate: %w", err)
	}
	for _, c := range a.certs {
		if cert.Leaf.CheckSignatureFrom(c) == nil {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
	}
	return trust.ServerTLS(cert, a.pool(), a.Verify), nil
}

func (a *Authority) issueServer(dir string, hosts []string) error {
	cert, key, err := a.issueFor(serverLife, func(t *x509.Certificate, _ *ecdsa.PrivateKey) error {
		t.Subject = pkix.Name{CommonName: "Stopgap controller of fleet " + a.Fleet}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return trust.WriteCredentials(dir, a.Bundle(), cert, key)
}

var agentLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

var operatorName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,38}[a-z0-9])?$`)

// IssueOperator makes a key and certificate for a person and writes the credential directory.
func (a *Authority) IssueOperator(dir, name string, kind trust.Kind) error {
	if !operatorName.MatchString(name) {
		return fmt.Errorf("identity: operator name %q must be lower-case letters, digits, dots, dashes", name)
	}
	if kind == trust.KindAgent || !kind.Known() {
		return fmt.Errorf("identity: %q is none of viewer, operator, admin", kind)
	}
	cert, key, err := a.issueFor(operatorLife, func(t *x509.Certificate, _ *ecdsa.PrivateKey) error {
		t.Subject = pkix.Name{CommonName: name}
		t.URIs = []*url.URL{trust.Identity{Fleet: a.Fleet, Kind: kind, ID: name}.URI()}
		return nil
	})
	if err != nil {
		return err
	}
	return trust.WriteCredentials(dir, a.Bundle(), cert, key)
}

// IssueAgent makes a key and certificate for an agent and writes its credential directory, without a token; whoever can read
// the CA's key can. It returns the agent's id.
func (a *Authority) IssueAgent(dir, label string) (string, error) {
	key, err := trust.NewKey()
	if err != nil {
		return "", err
	}
	id, err := trust.AgentID(key.Public())
	if err != nil {
		return "", err
	}
	cert, err := a.issueAgent(key.Public().(*ecdsa.PublicKey), id, label, time.Now())
	if err != nil {
		return "", err
	}
	return id, trust.WriteCredentials(dir, a.Bundle(), cert.Raw, key)
}

// issueAgent issues a client certificate for an agent's key.
func (a *Authority) issueAgent(pub *ecdsa.PublicKey, id, label string, now time.Time) (*x509.Certificate, error) {
	if !agentLabel.MatchString(label) {
		return nil, fmt.Errorf("identity: agent name %.70q must be 1 to 63 letters, digits, dots, dashes", label)
	}
	life := a.AgentLife
	if life == 0 {
		life = DefaultAgentLife
	}
	t, err := template(life)
	if err != nil {
		return nil, err
	}
	t.NotBefore, t.NotAfter = now.Add(-trust.Backdate), now.Add(life)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.Subject = pkix.Name{CommonName: label}
	t.URIs = []*url.URL{trust.Identity{Fleet: a.Fleet, Kind: trust.KindAgent, ID: id}.URI()}
	der, err := x509.CreateCertificate(rand.Reader, t, a.certs[0], pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issueFor issues a certificate with a key of its own.
func (a *Authority) issueFor(life time.Duration, fill func(*x509.Certificate, *ecdsa.PrivateKey) error) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := trust.NewKey()
	if err != nil {
		return nil, nil, err
	}
	t, err := template(life)
	if err != nil {
		return nil, nil, err
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if err := fill(t, key); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.certs[0], key.Public(), a.key)
	return der, key, err
}

func template(life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-trust.Backdate), NotAfter: now.Add(life), KeyUsage: x509.KeyUsageDigitalSignature}, nil
}
