// Package trust is how agents, operators and controllers name and recognise each other on the wire: key fingerprints,
// certificate names, and the TLS settings both sides must agree on. Who signs policy is not its matter.
package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Kind is what a certificate's holder is.
type Kind string

// The kinds.
const (
	KindAgent    Kind = "agent"
	KindOperator Kind = "operator"
)

// Identity is what a certificate says about its holder.
type Identity struct {
	Fleet string
	Kind  Kind
	// ID is an agent's id, or an operator's name.
	ID string
}

const scheme = "stopgap"

// URI is the identity as the URI SAN of a certificate: stopgap://<fleet>/<kind>/<id>.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.Fleet, Path: "/" + string(i.Kind) + "/" + i.ID}
}

// FromCertificate reads the identity out of a verified client certificate.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	for _, u := range c.URIs {
		if u.Scheme != scheme {
			continue
		}
		kind, id, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if !ok || id == "" || strings.Contains(id, "/") || Kind(kind) != KindAgent && Kind(kind) != KindOperator {
			return Identity{}, fmt.Errorf("certificate names %q, want stopgap://FLEET/agent|operator/ID", u)
		}
		return Identity{Fleet: u.Host, Kind: Kind(kind), ID: id}, nil
	}
	return Identity{}, errors.New("certificate has no stopgap:// name")
}

// agentIDBytes is how much of the key's SHA-256 becomes the agent id: 128 bits withstand a second preimage, and 32
// characters can still be read aloud.
const agentIDBytes = 16

// AgentID is the fingerprint of a public key: the first 16 bytes of the SHA-256 of its SubjectPublicKeyInfo, in hex.
func AgentID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("agent id: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:agentIDBytes]), nil
}

// NewKey makes a private key for TLS: ECDSA P-256, the cheapest to verify here.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// File names of a credential directory, which agents and operators both have.
const (
	CAFile   = "ca.pem"
	CertFile = "cert.pem"
	KeyFile  = "key.pem"
)

// WriteCredentials writes a credential directory: ca.pem, cert.pem, key.pem (0600).
func WriteCredentials(dir string, ca, cert []byte, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, KeyFile)); err == nil {
		return fmt.Errorf("credentials: %s holds a key already; nothing was overwritten", dir)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
		mode       os.FileMode
	}{
		{CAFile, "CERTIFICATE", ca, 0o644}, {CertFile, "CERTIFICATE", cert, 0o644}, {KeyFile, "PRIVATE KEY", der, 0o600},
	} {
		data := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(dir, f.name), data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// Credentials is a loaded credential directory.
type Credentials struct {
	CA       *x509.CertPool
	Cert     tls.Certificate
	Identity Identity
}

// LoadCredentials reads a credential directory.
func LoadCredentials(dir string) (*Credentials, error) {
	ca, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("credentials: %w; want a directory with %s, %s and %s", err, CAFile, CertFile, KeyFile)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("credentials: %s holds no certificate", filepath.Join(dir, CAFile))
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", dir, err)
	}
	id, err := FromCertificate(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", dir, err)
	}
	return &Credentials{CA: pool, Cert: cert, Identity: id}, nil
}

// ServerTLS is the controller's side: TLS 1.3, client certificates of the fleet's CA, and no session tickets, so that
// every handshake checks the chain.
func ServerTLS(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              clients,
		SessionTicketsDisabled: true,
		// A push is one message of some KiB after a long silence: in small records it would be three or four writes.
		DynamicRecordSizingDisabled: true,
	}
}

// ClientTLS is the side of agents and operators. serverName may be empty: then it is taken from the address.
func ClientTLS(c *Credentials, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.Cert},
		RootCAs:      c.CA,
		ServerName:   serverName,

		DynamicRecordSizingDisabled: true,
	}
}
