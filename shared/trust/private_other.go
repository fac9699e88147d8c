//go:build !windows

package trust

import "os"

// makePrivate has nothing to add to the mode.
func makePrivate(dir string) error { return os.MkdirAll(dir, 0o700) }

// private does nothing where file modes do.
func private(string) error { return nil }
