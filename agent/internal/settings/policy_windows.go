package settings

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows/registry"
)

// policyKey is where group policy puts what the MSI's properties say otherwise.
const policyKey = `SOFTWARE\Policies\Stopgap`

func groupPolicy() (Settings, error) {
	var s Settings
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, policyKey, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, registry.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("HKLM\\%s: %w", policyKey, err)
	}
	defer func() { _ = k.Close() }()
	for name, to := range map[string]*string{"Controller": &s.Controller, "ServerName": &s.ServerName, "Token": &s.Token, "CaFingerprint": &s.CAFingerprint} {
		v, _, err := k.GetStringValue(name)
		if err != nil && !errors.Is(err, registry.ErrNotExist) {
			return s, fmt.Errorf("HKLM\\%s, value %s: %w", policyKey, name, err)
		}
		*to = v
	}
	return s, nil
}
