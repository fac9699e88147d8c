package windows

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// winSCM is the real service control manager, through the raw calls: x/sys/windows/svc/mgr rewrites a service's whole
// configuration, account and path included, to change its start type (and fails under Wine).
type winSCM struct{}

const servicesKey = `SYSTEM\CurrentControlSet\Services\`

func withService(name string, access uint32, f func(h windows.Handle) error) error {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return fmt.Errorf("service control manager: %w", err)
	}
	defer func() { _ = windows.CloseServiceHandle(m) }()
	n, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	h, err := windows.OpenService(m, n, access)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return errNoService
	}
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseServiceHandle(h) }()
	return f(h)
}

// grow calls a Windows function that says how large its buffer must be.
func grow(call func(buf *byte, size uint32, needed *uint32) error) ([]byte, error) {
	buf := make([]byte, 1024)
	for range 4 {
		var needed uint32
		err := call(&buf[0], uint32(len(buf)), &needed)
		if err == nil {
			return buf, nil
		}
		if !errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) && !errors.Is(err, windows.ERROR_MORE_DATA) || int(needed) <= len(buf) {
			return nil, err
		}
		buf = make([]byte, needed)
	}
	return nil, windows.ERROR_INSUFFICIENT_BUFFER
}

func processStatus(h windows.Handle) (windows.SERVICE_STATUS_PROCESS, error) {
	var st windows.SERVICE_STATUS_PROCESS
	var needed uint32
	err := windows.QueryServiceStatusEx(h, windows.SC_STATUS_PROCESS_INFO, (*byte)(unsafe.Pointer(&st)), uint32(unsafe.Sizeof(st)), &needed)
	return st, err
}

func (winSCM) query(name string) (scmStatus, error) {
	var out scmStatus
	err := withService(name, windows.SERVICE_QUERY_STATUS|windows.SERVICE_QUERY_CONFIG, func(h windows.Handle) error {
		st, err := processStatus(h)
		if err != nil {
			return err
		}
		out.state, out.checkPoint, out.waitHint = st.CurrentState, st.CheckPoint, st.WaitHint
		buf, err := grow(func(b *byte, n uint32, need *uint32) error {
			return windows.QueryServiceConfig(h, (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(b)), n, need)
		})
		if err != nil {
			return err
		}
		out.startType = (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buf[0])).StartType
		out.delayed = delayed(h, name)
		out.recovery, out.recoverOnError = recovery(h)
		return nil
	})
	return out, err
}

func config2(h windows.Handle, level uint32) ([]byte, error) {
	return grow(func(b *byte, n uint32, need *uint32) error { return windows.QueryServiceConfig2(h, level, b, n, need) })
}

// delayed asks the service control manager, and where it can't say (Wine), the registry.
func delayed(h windows.Handle, name string) bool {
	if buf, err := config2(h, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO); err == nil {
		return (*windows.SERVICE_DELAYED_AUTO_START_INFO)(unsafe.Pointer(&buf[0])).IsDelayedAutoStartUp != 0
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, servicesKey+name, registry.QUERY_VALUE)
	if err != nil {
		return false
	}
	defer func() { _ = k.Close() }()
	v, _, err := k.GetIntegerValue("DelayedAutostart")
	return err == nil && v != 0
}

type recoveryAction struct {
	Type  uint32 `json:"type"`
	Delay uint32 `json:"delayMs"`
}

// recovery reads the recovery actions for the record, and whether they are taken on errors; nothing where they can't be read.
func recovery(h windows.Handle) (string, bool) {
	buf, err := config2(h, windows.SERVICE_CONFIG_FAILURE_ACTIONS)
	if err != nil {
		return "", false
	}
	fa := (*windows.SERVICE_FAILURE_ACTIONS)(unsafe.Pointer(&buf[0]))
	rec := struct {
		Reset   uint32           `json:"resetSeconds"`
		Command string           `json:"command,omitempty"`
		Actions []recoveryAction `json:"actions"`
	}{Reset: fa.ResetPeriod}
	if fa.Command != nil {
		rec.Command = windows.UTF16PtrToString(fa.Command)
	}
	if fa.Actions != nil && fa.ActionsCount > 0 && fa.ActionsCount < 64 {
		for _, a := range unsafe.Slice(fa.Actions, fa.ActionsCount) {
			rec.Actions = append(rec.Actions, recoveryAction{a.Type, a.Delay})
		}
	}
	text, err := json.Marshal(rec)
	if err != nil || len(rec.Actions) == 0 {
		return "", false
	}
	on := false
	if buf, err := config2(h, windows.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG); err == nil {
		on = (*windows.SERVICE_FAILURE_ACTIONS_FLAG)(unsafe.Pointer(&buf[0])).FailureActionsOnNonCrashFailures != 0
	}
	return string(text), on
}

func (winSCM) setStart(name string, startType uint32, wantDelayed bool) error {
	return withService(name, windows.SERVICE_QUERY_CONFIG|windows.SERVICE_CHANGE_CONFIG, func(h windows.Handle) error {
		err := windows.ChangeServiceConfig(h, windows.SERVICE_NO_CHANGE, startType, windows.SERVICE_NO_CHANGE, nil, nil, nil, nil, nil, nil, nil)
		if err != nil || startType != startAuto || delayed(h, name) == wantDelayed {
			return err
		}
		info := windows.SERVICE_DELAYED_AUTO_START_INFO{}
		if wantDelayed {
			info.IsDelayedAutoStartUp = 1
		}
		return windows.ChangeServiceConfig2(h, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, (*byte)(unsafe.Pointer(&info)))
	})
}

func (winSCM) setRecoverOnError(name string, on bool) error {
	return withService(name, windows.SERVICE_CHANGE_CONFIG|windows.SERVICE_START, func(h windows.Handle) error {
		info := windows.SERVICE_FAILURE_ACTIONS_FLAG{}
		if on {
			info.FailureActionsOnNonCrashFailures = 1
		}
		return windows.ChangeServiceConfig2(h, windows.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, (*byte)(unsafe.Pointer(&info)))
	})
}

func (winSCM) start(name string) error {
	return withService(name, windows.SERVICE_START, func(h windows.Handle) error { return windows.StartService(h, 0, nil) })
}

func (winSCM) stop(name string) error {
	return withService(name, windows.SERVICE_STOP, func(h windows.Handle) error {
		var st windows.SERVICE_STATUS
		return windows.ControlService(h, windows.SERVICE_CONTROL_STOP, &st)
	})
}

// direct asks the service control manager, and reads DependOnService besides: Wine enumerates nothing.
func (w winSCM) direct(name string) ([]string, error) {
	var out []string
	err := withService(name, windows.SERVICE_ENUMERATE_DEPENDENTS, func(h windows.Handle) error {
		var n uint32
		buf, err := grow(func(b *byte, size uint32, need *uint32) error {
			return windows.EnumDependentServices(h, windows.SERVICE_ACTIVE, (*windows.ENUM_SERVICE_STATUS)(unsafe.Pointer(b)), size, need, &n)
		})
		if err != nil || n == 0 {
			return err
		}
		for _, s := range unsafe.Slice((*windows.ENUM_SERVICE_STATUS)(unsafe.Pointer(&buf[0])), n) {
			out = append(out, windows.UTF16PtrToString(s.ServiceName))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, strings.TrimSuffix(servicesKey, `\`), registry.ENUMERATE_SUB_KEYS)
	if err != nil {
		return nil, err
	}
	defer func() { _ = k.Close() }()
	names, err := k.ReadSubKeyNames(-1)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if !slices.ContainsFunc(dependsOn(n), func(d string) bool { return strings.EqualFold(d, name) }) ||
			slices.ContainsFunc(out, func(o string) bool { return strings.EqualFold(o, n) }) {
			continue
		}
		if st, err := w.query(n); err == nil && st.state != stateStopped {
			out = append(out, n)
		}
	}
	return out, nil
}

func dependsOn(name string) []string {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, servicesKey+name, registry.QUERY_VALUE)
	if err != nil {
		return nil
	}
	defer func() { _ = k.Close() }()
	v, _, err := k.GetStringsValue("DependOnService")
	if err != nil {
		return nil
	}
	return v
}
