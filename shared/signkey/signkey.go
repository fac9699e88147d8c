// Package signkey is the Ed25519 keys that sign policy: making them, keeping them encrypted at rest (scrypt and a secretbox
// AEAD, github.com/secure-systems-lab/go-securesystemslib/encrypted), and signing TUF metadata with them.
//
// A private key is never logged and stands in no error.
package signkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/stopgap-em/stopgap/shared/files"
)

// Roles whose keys are made here.
const (
	RoleRoot      = metadata.ROOT
	RoleTargets   = metadata.TARGETS
	RoleSnapshot  = metadata.SNAPSHOT
	RoleTimestamp = metadata.TIMESTAMP
)

const (
	minPassphrase = 12
	maxFile       = 64 << 10
)

// Public is the half of a key that everybody may have. As a file it is JSON.
type Public struct {
	// ID is the TUF key id.
	ID string `json:"keyid"`
	// Role it was made for; a root says what it may sign.
	Role string `json:"role"`
	// Key as it stands in TUF metadata.
	Key *metadata.Key `json:"key"`
}

// Key is a private key.
type Key struct {
	Public
	priv ed25519.PrivateKey
	weak bool
}

// Weak says that the file the key was loaded from protects it with less work than Save does, so that a stolen file is sooner opened:
// a file that a program for tests wrote.
func (k *Key) Weak() bool { return k.weak }

// Generate makes a key.
func Generate(role string) (*Key, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return fromPrivate(priv, role)
}

func fromPrivate(priv ed25519.PrivateKey, role string) (*Key, error) {
	pub, err := metadata.KeyFromPublicKey(priv.Public())
	if err != nil {
		return nil, err
	}
	id, err := pub.ID()
	if err != nil {
		return nil, err
	}
	return &Key{Public: Public{id, role, pub}, priv: priv}, nil
}

// Signer signs TUF metadata.
func (k *Key) Signer() (signature.Signer, error) { return signature.LoadED25519Signer(k.priv) }

// file is an encrypted private key as it stands on disk.
type file struct {
	Public
	Encrypted json.RawMessage `json:"encrypted"`
}

// ErrPassphrase says that the passphrase is wrong, or the file was altered; the two look the same.
var ErrPassphrase = errors.New("wrong passphrase, or the key file was altered")

// Save writes DIR/<role>-<first 8 of the id>.key (0600, encrypted) and .pub beside it, and gives both paths. It overwrites
// nothing. Errors: a passphrase of less than 12 bytes, a file that exists.
func (k *Key) Save(dir string, passphrase []byte) (keyPath, pubPath string, err error) {
	return k.save(dir, passphrase, cost)
}

func (k *Key) save(dir string, passphrase []byte, cost encrypted.KDFParameterStrength) (keyPath, pubPath string, err error) {
	if len(passphrase) < minPassphrase {
		return "", "", fmt.Errorf("the passphrase has %d bytes; %d are the least", len(passphrase), minPassphrase)
	}
	sealed, err := encrypted.EncryptWithCustomKDFParameters(k.priv.Seed(), passphrase, cost)
	if err != nil {
		return "", "", errors.New("the key can't be encrypted")
	}
	private, err := json.MarshalIndent(file{k.Public, sealed}, "", "  ")
	if err != nil {
		return "", "", err
	}
	public, err := json.MarshalIndent(k.Public, "", "  ")
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	base := filepath.Join(dir, k.Role+"-"+k.ID[:8])
	if err := files.Create(base+".key", append(private, '\n'), files.Private); err != nil {
		return "", "", err
	}
	return base + ".key", base + ".pub", files.Create(base+".pub", append(public, '\n'), files.Public)
}

// Load reads an encrypted private key. Errors: ErrPassphrase; a file that is none.
func Load(path string, passphrase []byte) (*Key, error) {
	data, err := files.Read(path, maxFile)
	if err != nil {
		return nil, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil || len(f.Encrypted) == 0 {
		return nil, fmt.Errorf("%s is not a key file of `stopgap keys generate`", path)
	}
	seed, err := encrypted.Decrypt(f.Encrypted, passphrase)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s: %w", path, ErrPassphrase)
	}
	k, err := fromPrivate(ed25519.NewKeyFromSeed(seed), f.Role)
	if err != nil {
		return nil, err
	}
	if k.ID != f.ID {
		return nil, fmt.Errorf("%s: the key inside is not the one its id names", path)
	}
	k.weak = weak(f.Encrypted)
	return k, nil
}

// fullN is scrypt's N in a file that Save writes.
const fullN = 1 << 17

func weak(sealed json.RawMessage) bool {
	var d struct {
		KDF struct {
			Params struct{ N int } `json:"params"`
		} `json:"kdf"`
	}
	return json.Unmarshal(sealed, &d) != nil || d.KDF.Params.N < fullN
}

var keyID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ParsePublic reads the public half of a key; a private key file will do.
func ParsePublic(name string, data []byte) (Public, error) {
	var p Public
	if err := json.Unmarshal(data, &p); err != nil || p.Key == nil || !keyID.MatchString(p.ID) {
		return p, fmt.Errorf("%s is not a public key of `stopgap keys generate` or `stopgap-controller init`", name)
	}
	if p.Key.Type != metadata.KeyTypeEd25519 || p.Key.Scheme != metadata.KeySchemeEd25519 {
		return p, fmt.Errorf("%s: a key of type %q; only Ed25519 is used", name, p.Key.Type)
	}
	if _, err := p.Key.ToPublicKey(); err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	if id, err := p.Key.ID(); err != nil || id != p.ID {
		return p, fmt.Errorf("%s: the key is not the one its id names", name)
	}
	return p, nil
}

// LoadPublic reads the public half of a key from a file.
func LoadPublic(path string) (Public, error) {
	data, err := files.Read(path, maxFile)
	if err != nil {
		return Public{}, err
	}
	return ParsePublic(path, data)
}

// SavePlain writes an online key unencrypted (PKCS #8, PEM, 0600): the controller signs with it unattended, and a secret
// mount or disk encryption is what protects it.
func (k *Key) SavePlain(path string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.priv)
	if err != nil {
		return errors.New("the key can't be encoded")
	}
	return files.Create(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), files.Private)
}

// LoadPlain reads an online key.
func LoadPlain(path, role string) (*Key, error) {
	data, err := files.Read(path, maxFile)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(data)
	if b == nil {
		return nil, fmt.Errorf("%s holds no PEM private key", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no PKCS #8 private key", path)
	}
	priv, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a key of another type; Ed25519 is needed", path)
	}
	return fromPrivate(priv, role)
}
