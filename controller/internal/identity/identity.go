// Package identity is the controller's certificate authority and who may call what. It owns the CA key; enrolment tokens,
// renewal and revocation will live here too.
package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
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

	"github.com/stopgap-em/stopgap/shared/trust"
)

// Lifetimes of certificates.
const (
	caLife       = 10 * 365 * 24 * time.Hour
	serverLife   = 2 * 365 * 24 * time.Hour
	operatorLife = 365 * 24 * time.Hour
	// AgentLife is long because nothing renews a certificate yet; with enrolment it becomes seven days.
	AgentLife = 365 * 24 * time.Hour
	backdate  = 10 * time.Minute // clocks differ
)

// Files of the data directory.
const (
	caDir      = "ca"
	serverDir  = "server"
	operators  = "operators"
	fleetFile  = "fleet"
	caCertFile = "ca.pem"
	caKeyFile  = "ca-key.pem"
)

// Authority is the CA of a fleet.
type Authority struct {
	Fleet string
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
}

var fleetName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ErrExists is returned by Init for a directory that holds a CA.
var ErrExists = errors.New("identity: the data directory is initialised already")

// Init makes a CA, the server's certificate for the given host names and addresses, and the first operator's client
// certificate. It returns the directory of that operator's credentials.
func Init(dir, fleet string, hosts []string) (string, error) {
	if !fleetName.MatchString(fleet) {
		return "", fmt.Errorf("identity: fleet name %q must be lower-case letters, digits and dashes", fleet)
	}
	if len(hosts) == 0 {
		return "", errors.New("identity: at least one host name or address of the controller is needed")
	}
	if _, err := os.Stat(filepath.Join(dir, caDir)); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", ErrExists, dir)
	}
	key, err := trust.NewKey()
	if err != nil {
		return "", err
	}
	tmpl, err := template(caLife)
	if err != nil {
		return "", err
	}
	tmpl.Subject = pkix.Name{CommonName: "Stopgap CA of fleet " + fleet}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	a := &Authority{Fleet: fleet, cert: cert, key: key}
	server, serverKey, err := a.issue(serverLife, func(t *x509.Certificate) {
		t.Subject = pkix.Name{CommonName: "Stopgap controller of fleet " + fleet}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
	})
	if err != nil {
		return "", err
	}
	// Everything else first: the CA's directory is what says that the whole is there.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := trust.WriteCredentials(filepath.Join(dir, serverDir), der, server, serverKey); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, fleetFile), []byte(fleet+"\n"), 0o600); err != nil {
		return "", err
	}
	op := filepath.Join(dir, operators, "admin")
	if err := a.IssueOperator(op, "admin"); err != nil {
		return "", err
	}
	return op, writeCA(filepath.Join(dir, caDir), der, key)
}

func writeCA(dir string, der []byte, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, caKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, caCertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// ErrNotInitialised is returned by Load.
var ErrNotInitialised = errors.New("identity: no data directory there; `stopgap-controller init` makes one")

// Load reads the CA of a data directory.
func Load(dir string) (*Authority, error) {
	fleet, err := os.ReadFile(filepath.Join(dir, fleetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s)", ErrNotInitialised, dir)
	}
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caDir, caCertFile), filepath.Join(dir, caDir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("identity: CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("identity: CA key is a %T, want ECDSA", pair.PrivateKey)
	}
	return &Authority{Fleet: string(fleet[:max(len(fleet)-1, 0)]), cert: pair.Leaf, key: key}, nil
}

// ServerTLS is the TLS configuration of the controller's listener.
func (a *Authority) ServerTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, serverDir, trust.CertFile), filepath.Join(dir, serverDir, trust.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("identity: server certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return trust.ServerTLS(cert, pool), nil
}

// IssueAgent makes a key and certificate for an agent and writes its credential directory. It returns the agent's id.
func (a *Authority) IssueAgent(dir, label string) (string, error) {
	if !agentLabel.MatchString(label) {
		return "", fmt.Errorf("identity: agent name %q must be 1 to 63 letters, digits, dots, dashes", label)
	}
	var id string
	cert, key, err := a.issueFor(AgentLife, func(t *x509.Certificate, k *ecdsa.PrivateKey) (err error) {
		if id, err = trust.AgentID(k.Public()); err != nil {
			return err
		}
		t.Subject = pkix.Name{CommonName: label}
		t.URIs = []*url.URL{trust.Identity{Fleet: a.Fleet, Kind: trust.KindAgent, ID: id}.URI()}
		return nil
	})
	if err != nil {
		return "", err
	}
	return id, trust.WriteCredentials(dir, a.cert.Raw, cert, key)
}

var agentLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

var operatorName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,38}[a-z0-9])?$`)

// IssueOperator makes a key and certificate for an operator and writes the credential directory.
func (a *Authority) IssueOperator(dir, name string) error {
	if !operatorName.MatchString(name) {
		return fmt.Errorf("identity: operator name %q must be lower-case letters, digits, dots, dashes", name)
	}
	cert, key, err := a.issueFor(operatorLife, func(t *x509.Certificate, _ *ecdsa.PrivateKey) error {
		t.Subject = pkix.Name{CommonName: name}
		t.URIs = []*url.URL{trust.Identity{Fleet: a.Fleet, Kind: trust.KindOperator, ID: name}.URI()}
		return nil
	})
	if err != nil {
		return err
	}
	return trust.WriteCredentials(dir, a.cert.Raw, cert, key)
}

// issueFor issues a client certificate.
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
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	return der, key, err
}

func (a *Authority) issue(life time.Duration, fill func(*x509.Certificate)) ([]byte, *ecdsa.PrivateKey, error) {
	return a.issueFor(life, func(t *x509.Certificate, _ *ecdsa.PrivateKey) error {
		fill(t)
		return nil
	})
}

func template(life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(life), KeyUsage: x509.KeyUsageDigitalSignature}, nil
}
