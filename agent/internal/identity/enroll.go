// Package identity is the agent's own identity: how it gets one with a token, and how it keeps its certificate fresh. It believes
// nothing of a controller's that the token, or the CA it trusts, does not vouch for.
package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

// CredentialsDir is the directory of ca.pem, cert.pem and key.pem in the agent's state directory.
const CredentialsDir = "credentials"

// Config says how to get an identity.
type Config struct {
	// StateDir of the agent; made if it is not there.
	StateDir string
	// Controller is its address, host:port, and ServerName the name in its certificate when it is not that of the address.
	Controller, ServerName string
	// Token is the token string.
	Token string
	// Facts reads the server, whose machine id is bound to the identity. Nil: it is bound at the first connection.
	Facts func(context.Context) (*stopgapv1.Facts, error)
	// Name is a label for people; default the host name of the server.
	Name string
	// Again replaces the credentials that are there: with a token bound to this agent's id. Journal, root and version floors
	// stay.
	Again bool
	// NewRoot gives up the root that is held for the token's: for a fleet whose root keys were lost.
	NewRoot bool
	// Dialer replaces the network; nil: TCP.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
}

const enrollTimeout = 30 * time.Second

var notInName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// Enroll makes a key, exchanges the token for a certificate, and writes credentials and trust anchor into the state directory.
// Nothing of the controller's is believed that the token does not vouch for. It returns the agent's id.
func Enroll(ctx context.Context, cfg Config) (string, error) {
	token, err := trust.ParseToken(cfg.Token)
	if err != nil {
		return "", fmt.Errorf("enroll: %w", err)
	}
	dir := filepath.Join(cfg.StateDir, CredentialsDir)
	trust.Recover(dir)
	if _, err := os.Stat(filepath.Join(dir, trust.KeyFile)); err == nil && !cfg.Again {
		return "", fmt.Errorf("enroll: %s holds an identity already; --again replaces it", dir)
	}
	machine, err := cfg.describe(ctx)
	if err != nil {
		return "", err
	}
	if cfg.Again || cfg.NewRoot {
		j, err := journal.Open(cfg.StateDir, hclog.NewNullLogger())
		if errors.Is(err, journal.ErrLocked) {
			return "", fmt.Errorf("enroll: %w: stop the agent first", err)
		}
		if err == nil { // one that can't be opened is the agent's matter
			defer func() { _ = j.Close() }()
		}
	}
	key, err := trust.NewKey()
	if err != nil {
		return "", err
	}
	resp, err := cfg.call(ctx, token, key, machine)
	if err != nil {
		return "", err
	}
	anchor, err := cfg.anchor(token, resp)
	if err != nil {
		return "", fmt.Errorf("enroll: %w", err)
	}
	if err := checkIdentity(token, resp, key); err != nil {
		return "", fmt.Errorf("enroll: what the controller sent is not to be believed: %w", err)
	}
	if err := files.MakePrivateDir(cfg.StateDir); err != nil {
		return "", err
	}
	if err := anchor.Write(cfg.StateDir); err != nil {
		return "", err
	}
	return resp.GetAgentId(), install(dir, resp, key)
}

// describe gives the machine id, and fills in the name.
func (cfg *Config) describe(ctx context.Context) (string, error) {
	machine := ""
	if cfg.Facts != nil {
		f, err := cfg.Facts(ctx)
		if err != nil {
			return "", err
		}
		machine = f.GetMachineId()
		if cfg.Name == "" {
			cfg.Name = f.GetHost()
		}
	}
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname()
	}
	if cfg.Name = strings.Trim(notInName.ReplaceAllString(cfg.Name, "-"), "-._"); len(cfg.Name) > 63 {
		cfg.Name = cfg.Name[:63]
	}
	if cfg.Name == "" {
		cfg.Name = "unnamed"
	}
	return machine, nil
}

func (cfg *Config) call(ctx context.Context, token trust.Token, key *ecdsa.PrivateKey, machine string) (*stopgapv1.EnrollResponse, error) {
	name := cfg.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(cfg.Controller)
		if err != nil {
			return nil, fmt.Errorf("enroll: controller %q is not host:port", cfg.Controller)
		}
		name = host
	}
	csr, err := trust.NewRequest(key)
	if err != nil {
		return nil, err
	}
	opts := transport.DialOptions(trust.EnrollTLS(token.CA, name))
	if cfg.Dialer != nil {
		opts = append(opts, grpc.WithContextDialer(cfg.Dialer))
	}
	conn, err := grpc.NewClient(cfg.Controller, opts...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	return stopgapv1.NewEnrollmentServiceClient(conn).Enroll(ctx, &stopgapv1.EnrollRequest{Secret: token.Secret[:], Csr: csr, Name: cfg.Name,
		MachineId: machine, AgentVersion: shared.Version, RootSha256: token.Root[:]})
}

// anchor checks the root against the token's fingerprint and combines it with the anchor that the agent already has.
func (cfg *Config) anchor(token trust.Token, resp *stopgapv1.EnrollResponse) (policy.Anchor, error) {
	if tufpolicy.RootFingerprint(resp.GetRoot()) != token.Root {
		return policy.Anchor{}, errors.New("the controller sent another policy root than the token names; it was refused")
	}
	st, err := tufpolicy.Begin(resp.GetRoot(), token.Floor)
	if err != nil {
		return policy.Anchor{}, err
	}
	next := policy.Anchor{Fleet: resp.GetFleet(), Root: resp.GetRoot(), Floor: token.Floor, Replace: cfg.NewRoot}
	had, err := policy.ReadAnchor(cfg.StateDir)
	if err != nil && !cfg.NewRoot {
		return next, err
	}
	if len(had.Root) == 0 || cfg.NewRoot {
		_, err := os.Stat(filepath.Join(cfg.StateDir, journal.File))
		next.Fresh = errors.Is(err, fs.ErrNotExist)
		return next, nil
	}
	info, err := tufpolicy.ReadRoot(had.Root)
	if err != nil {
		return next, err
	}
	if info.Version == st.Versions.Root && !bytes.Equal(had.Root, resp.GetRoot()) {
		return next, fmt.Errorf("this agent trusts another root %d than the token names; if the fleet's root keys were lost, --new-root gives "+
			"up the one held", info.Version)
	}
	// The root held stays: a newer one must follow from it.
	return policy.Anchor{Fleet: next.Fleet, Root: had.Root, Floor: max(had.Floor, next.Floor)}, nil
}

// checkIdentity checks that the certificate is for our key and of the CA that the token names.
func checkIdentity(token trust.Token, resp *stopgapv1.EnrollResponse, key *ecdsa.PrivateKey) error {
	roots := x509.NewCertPool()
	named := false
	for _, der := range resp.GetCa() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		named = named || trust.KeyFingerprint(c) == token.CA
		roots.AddCert(c)
	}
	if !named {
		return errors.New("the CA that the token names is not in the bundle")
	}
	return checkCertificate(resp.GetCertificate(), roots, key, resp.GetAgentId())
}

// checkCertificate checks that a certificate is for a key and an id, and good now.
func checkCertificate(der []byte, roots *x509.CertPool, key *ecdsa.PrivateKey, id string) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	who, err := trust.FromCertificate(cert)
	if err != nil {
		return err
	}
	if who.Kind != trust.KindAgent || who.ID != id {
		return fmt.Errorf("the certificate names %s %s, the answer %s", who.Kind, who.ID, id)
	}
	// The CA's clock counts here, not ours, which may be wrong: the policy's end is judged by ours.
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore.Add(time.Second),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// install puts a new credential directory in place of the old one, which is gone only when the new one is there.
func install(dir string, resp *stopgapv1.EnrollResponse, key *ecdsa.PrivateKey) error {
	next, old := dir+".new", dir+".old"
	if err := errors.Join(trust.RemoveCredentials(next), trust.RemoveCredentials(old)); err != nil {
		return err
	}
	if err := trust.WriteCredentials(next, resp.GetCa(), resp.GetCertificate(), key); err != nil {
		return err
	}
	if err := files.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := files.Rename(next, dir); err != nil {
		return err
	}
	return trust.RemoveCredentials(old)
}
