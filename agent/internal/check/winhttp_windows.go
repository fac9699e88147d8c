package check

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	defaultProxy = windows.NewLazySystemDLL("winhttp.dll").NewProc("WinHttpGetDefaultProxyConfiguration")
	globalFree   = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalFree")
)

// winHTTP reads the machine's WinHTTP proxy, as `netsh winhttp show proxy` does. Source: WINHTTP_PROXY_INFO in the Windows API reference.
func winHTTP() (proxy, bypass string, err error) {
	var info struct {
		access        uint32
		proxy, bypass *uint16
	}
	if err := defaultProxy.Find(); err != nil {
		return "", "", nil //nolint:nilerr // a Windows without WinHTTP has no proxy of it
	}
	const named = 3 // WINHTTP_ACCESS_TYPE_NAMED_PROXY
	if ok, _, err := defaultProxy.Call(uintptr(unsafe.Pointer(&info))); ok == 0 {
		return "", "", fmt.Errorf("WinHTTP: %w", err)
	}
	if info.access != named || info.proxy == nil {
		return "", "", nil
	}
	p := windows.UTF16PtrToString(info.proxy)
	b := ""
	if info.bypass != nil {
		b = windows.UTF16PtrToString(info.bypass)
	}
	for _, m := range []*uint16{info.proxy, info.bypass} {
		if m != nil {
			_, _, _ = globalFree.Call(uintptr(unsafe.Pointer(m)))
		}
	}
	proxy, bypass = parseWinHTTP(p, b)
	return proxy, bypass, nil
}
