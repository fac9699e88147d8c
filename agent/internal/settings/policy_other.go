//go:build !windows

package settings

// groupPolicy is empty: there is none here.
func groupPolicy() (Settings, error) { return Settings{}, nil }
