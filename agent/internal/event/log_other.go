//go:build !windows

package event

// Open gives no log: there is no Windows event log here.
func Open() (Log, error) { return nil, nil } //nolint:nilnil // no log, and no error

// Register does nothing.
func Register() error { return nil }

// Unregister does nothing.
func Unregister() error { return nil }
