package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// ErrRotating is returned by BeginRotation when one is under way.
var ErrRotating = errors.New("identity: the CA is being replaced already; `stopgap-controller ca finish` ends that")

// BeginRotation makes a new CA that issues from then on; certificates of the old one stay good, and the server keeps its own,
// until FinishRotation. The controller must not run.
func BeginRotation(dir string, keys Files) error {
	a, err := Load(dir, keys)
	if err != nil {
		return err
	}
	if len(a.certs) > 1 {
		return ErrRotating
	}
	ca, key, err := newCA(a.Fleet)
	if err != nil {
		return err
	}
	a.certs, a.key = append([]*x509.Certificate{ca}, a.certs...), key
	if err := writeCA(dir, keys, a.certs, key); err != nil {
		return err
	}
	return a.refreshOperators(dir)
}

// refreshOperators gives the credential directories that are kept here the present bundle.
func (a *Authority) refreshOperators(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, operators))
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := filepath.Join(dir, operators, e.Name())
		c, err := trust.LoadCredentials(d)
		if err != nil {
			continue // not one of ours
		}
		if err := trust.ReplaceCertificates(d, a.Bundle(), c.Cert.Certificate[0]); err != nil {
			return err
		}
	}
	return nil
}

// FinishRotation gives the server a certificate of the new CA and drops the old one. pending are agents whose certificate is
// still of the old CA: without force it is refused while there are any. The credentials of people that are kept here are
// issued anew; those kept elsewhere must be copied again. The controller must not run.
func FinishRotation(dir string, keys Files, pending []string, force bool) error {
	a, err := Load(dir, keys)
	if err != nil {
		return err
	}
	if len(a.certs) < 2 {
		return errors.New("identity: the CA is not being replaced; `stopgap-controller ca rotate` begins that")
	}
	if len(pending) > 0 && !force {
		return fmt.Errorf("identity: %d agents still have a certificate of the old CA (%s, ...); they would have to enrol again", len(pending), pending[0])
	}
	server := filepath.Join(dir, serverDir)
	old, err := os.ReadFile(filepath.Join(server, trust.CertFile))
	if err != nil {
		return err
	}
	leaf, err := parsePEM(old)
	if err != nil {
		return err
	}
	hosts := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	a.certs = a.certs[:1]
	if err := reissue(server, func(d string) error { return a.issueServer(d, hosts) }); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(dir, operators))
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := filepath.Join(dir, operators, e.Name())
		c, err := trust.LoadCredentials(d)
		if err != nil {
			continue
		}
		if err := reissue(d, func(to string) error { return a.IssueOperator(to, c.Identity.ID, c.Identity.Kind) }); err != nil {
			return err
		}
	}
	return writeBundle(dir, a.certs)
}

// reissue replaces a credential directory by one that was made beside it.
func reissue(dir string, issue func(dir string) error) error {
	next, gone := dir+".new", dir+".old"
	if err := errors.Join(os.RemoveAll(next), os.RemoveAll(gone)); err != nil {
		return err
	}
	if err := issue(next); err != nil {
		return err
	}
	if err := files.Rename(dir, gone); err != nil {
		return err
	}
	if err := files.Rename(next, dir); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Issuer names the CA that issued a certificate, by the fingerprint of its key.
func (a *Authority) Issuer(c *x509.Certificate) string {
	for _, ca := range a.certs {
		if c.CheckSignatureFrom(ca) == nil {
			return fmt.Sprintf("%x", trust.KeyFingerprint(ca))
		}
	}
	return ""
}

func parsePEM(data []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(bytes.TrimSpace(data))
	if b == nil {
		return nil, errors.New("identity: no PEM certificate")
	}
	return x509.ParseCertificate(b.Bytes)
}
