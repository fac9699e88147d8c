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
	"time"

	"github.com/stopgap-em/stopgap/shared/files"
)

// Kind is what a certificate's holder is.
type Kind string

// The kinds. Of people: a viewer reads, an operator acts on the fleet, an admin also decides who belongs to it.
const (
	KindAgent    Kind = "agent"
	KindViewer   Kind = "viewer"
	KindOperator Kind = "operator"
	KindAdmin    Kind = "admin"
)

// Known says whether it is one of these.
func (k Kind) Known() bool {
	return k == KindAgent || k == KindViewer || k == KindOperator || k == KindAdmin
}

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
		if !ok || id == "" || strings.Contains(id, "/") || !Kind(kind).Known() {
			return Identity{}, fmt.Errorf("certificate names %q, want stopgap://FLEET/agent|viewer|operator|admin/ID", u)
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

// WriteCredentials writes a credential directory: ca.pem (one or more), cert.pem, key.pem (0600). It overwrites no key.
func WriteCredentials(dir string, cas [][]byte, cert []byte, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return errors.New("credentials: the key can't be encoded")
	}
	if err := files.MakePrivateDir(dir); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, KeyFile)); err == nil {
		return fmt.Errorf("credentials: %s holds a key already; nothing was overwritten", dir)
	}
	if err := ReplaceCertificates(dir, cas, cert); err != nil {
		return err
	}
	return files.Replace(filepath.Join(dir, KeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), files.Private)
}

// ReplaceCertificates replaces ca.pem and cert.pem of a credential directory, each in one step. The CA goes first: with it
// alone the old certificate still works.
func ReplaceCertificates(dir string, cas [][]byte, cert []byte) error {
	var bundle []byte
	for _, ca := range cas {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})...)
	}
	if err := files.Replace(filepath.Join(dir, CAFile), bundle, files.Public); err != nil {
		return err
	}
	return files.Replace(filepath.Join(dir, CertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), files.Public)
}

// RemoveCredentials removes a credential directory and nothing else: what is not of one stays, and so does the directory then.
func RemoveCredentials(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, files.TempPattern))
	if err != nil {
		return err
	}
	for _, n := range []string{KeyFile, CertFile, CAFile} {
		left = append(left, filepath.Join(dir, n))
	}
	for _, p := range append(left, dir) {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Backdate is how long before its issue a certificate begins: clocks differ.
const Backdate = 10 * time.Minute

// RenewAt is when a certificate is to be renewed: at half of its life, shifted by jitter (-1 to 1) tenths of it.
func RenewAt(c *x509.Certificate, jitter float64) time.Time {
	life := c.NotAfter.Sub(c.NotBefore) - Backdate
	return c.NotAfter.Add(-life/2 + time.Duration(jitter*float64(life)/10))
}

// Credentials is a loaded credential directory.
type Credentials struct {
	CA       *x509.CertPool
	Cert     tls.Certificate
	Identity Identity
}

// Recover finishes what a crash left of the replacement of a credential directory: the new one where it is complete, else
// the old one back.
func Recover(dir string) {
	if _, err := os.Stat(dir); err == nil {
		return
	}
	for _, from := range []string{dir + ".new", dir + ".old"} {
		if _, err := os.Stat(filepath.Join(from, KeyFile)); err == nil { // the key is written last
			_ = files.Rename(from, dir)
			return
		}
	}
}

// LoadCredentials reads a credential directory.
func LoadCredentials(dir string) (*Credentials, error) {
	Recover(dir)
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

// ServerTLS is the controller's side: TLS 1.3, and no session tickets, so that every handshake checks the chain. A client
// certificate is asked for and may be missing, for who enrols has none; one that is shown must satisfy verify, or there is no
// connection. Go's own check can't do that: it would refuse a certificate that expired and may still be renewed.
func ServerTLS(cert tls.Certificate, clients *x509.CertPool, verify func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequestClientCert,
		ClientCAs:              clients,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return verify(cs.PeerCertificates[0])
		},
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
