//go:build !windows

package windows

import (
	"errors"

	"github.com/stopgap-em/stopgap/agent/internal/host"
)

// Open is refused: this is not Windows.
func Open(string) (host.Driver, error) {
	return nil, errors.New(`host "windows" is this machine, and this machine is no Windows server; use lab:DIR`)
}
