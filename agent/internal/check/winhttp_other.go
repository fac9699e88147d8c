//go:build !windows

package check

// winHTTP has no proxy: there is no WinHTTP here.
func winHTTP() (proxy, bypass string, err error) { return "", "", nil }
