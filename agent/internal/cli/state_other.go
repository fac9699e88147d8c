//go:build !windows

package cli

func defaultState() string { return "/var/lib/stopgap-agent" }
