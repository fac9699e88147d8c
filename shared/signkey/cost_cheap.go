//go:build cheapkeys

package signkey

import "github.com/secure-systems-lab/go-securesystemslib/encrypted"

// cost is a quarter of the real one, the least that the library reads: for the programs that tests build. No program that ships is
// built with this tag, and what is written here says so when it is read.
const cost = encrypted.Legacy
