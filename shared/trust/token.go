package trust

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Token is an enrolment token: a secret, and what an agent must not take on anybody's word.
type Token struct {
	// Secret is 32 random bytes; the controller keeps only their hash.
	Secret [32]byte
	// CA is the SHA-256 of the SubjectPublicKeyInfo of a CA certificate.
	CA [32]byte
	// Root is the SHA-256 of the exact bytes of a policy root.
	Root [32]byte
	// Floor is the lowest acceptable version of the targets metadata.
	Floor uint64
}

// TokenPrefix begins every token string, so that a person and a secret scanner know one.
const TokenPrefix = "stopgap-token-1."

const (
	sumLen   = 4
	tokenLen = 32*3 + 8 + sumLen
)

// NewToken makes a token.
func NewToken(ca, root [32]byte, floor uint64) (Token, error) {
	t := Token{CA: ca, Root: root, Floor: floor}
	_, err := rand.Read(t.Secret[:])
	return t, err
}

// String is the token string: the prefix and 144 characters of base64url. It is a secret.
func (t Token) String() string {
	b := make([]byte, 0, tokenLen)
	b = append(b, t.Secret[:]...)
	b = append(b, t.CA[:]...)
	b = append(b, t.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, t.Floor)
	sum := sha256.Sum256(b)
	b = append(b, sum[:sumLen]...)
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads a token string. Its errors name no part of it.
func ParseToken(s string) (Token, error) {
	var t Token
	text, ok := strings.CutPrefix(strings.TrimSpace(s), TokenPrefix)
	if !ok {
		return t, fmt.Errorf("not an enrolment token: it begins with %s", TokenPrefix)
	}
	if want := base64.RawURLEncoding.EncodedLen(tokenLen); len(text) != want {
		return t, fmt.Errorf("the token has %d characters after its prefix, %d are a whole one: copied in part?", len(text), want)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return t, errors.New("the token has a character that can't be in one")
	}
	sum := sha256.Sum256(b[:tokenLen-sumLen])
	if string(sum[:sumLen]) != string(b[tokenLen-sumLen:]) {
		return t, errors.New("the token was mistyped: its check sum does not fit")
	}
	copy(t.Secret[:], b)
	copy(t.CA[:], b[32:])
	copy(t.Root[:], b[64:])
	t.Floor = binary.BigEndian.Uint64(b[96:])
	return t, nil
}

// KeyFingerprint is the SHA-256 of a certificate's SubjectPublicKeyInfo.
func KeyFingerprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// EnrollTLS is the side of an agent that has no credentials yet: it believes a controller whose certificate is issued by the
// CA that the token names, which the controller shows with it, and that has the right name.
func EnrollTLS(ca [32]byte, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		// Verified below, against the one CA whose fingerprint is known.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := x509.NewCertPool()
			found := false
			for _, c := range cs.PeerCertificates[1:] {
				if KeyFingerprint(c) == ca && c.IsCA {
					roots.AddCert(c)
					found = true
				}
			}
			if !found {
				return errors.New("the controller does not show the CA that the token names: another fleet's controller, or a proxy that breaks TLS open")
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			return err
		},
	}
}

// NewRequest makes a certificate request for a key. Everything but the key is ignored by the controller.
func NewRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}, key)
}
