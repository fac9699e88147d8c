//go:build !cheapkeys

package signkey

import "github.com/secure-systems-lab/go-securesystemslib/encrypted"

// cost is what deriving a key from a passphrase takes when a key file is written: scrypt with N=2^17, r=8, p=1, 128 MiB.
const cost = encrypted.OWASP
