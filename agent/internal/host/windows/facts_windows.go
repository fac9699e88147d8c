package windows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/files"
)

// Keys of the registry, below HKEY_LOCAL_MACHINE.
const (
	exchangeKey   = `SOFTWARE\Microsoft\ExchangeServer\v15`
	urlRewriteKey = `SOFTWARE\Microsoft\IIS Extensions\URL Rewrite`
	iisKey        = `SOFTWARE\Microsoft\InetStp`
	windowsKey    = `SOFTWARE\Microsoft\Windows NT\CurrentVersion`
	clusterKey    = `Cluster`
	tcpipKey      = `SYSTEM\CurrentControlSet\Services\Tcpip\Parameters`
	overrideKey   = `SOFTWARE\Stopgap`
)

// value reads a string, or a number as text; "" when it is not there.
func value(key, name string) string {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, key, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return ""
	}
	defer func() { _ = k.Close() }()
	if s, _, err := k.GetStringValue(name); err == nil {
		return s
	}
	if n, _, err := k.GetIntegerValue(name); err == nil {
		return fmt.Sprint(n)
	}
	return ""
}

func keyExists(key string) bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, key, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return false
	}
	_ = k.Close()
	return true
}

// Facts implements host.Driver. What can't be read is left empty.
func (h *Host) Facts(context.Context) (*stopgapv1.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	f := &stopgapv1.Facts{Host: name, MachineId: machineID(name), Dag: value(clusterKey, "ClusterName"), UrlRewrite: value(urlRewriteKey, "Version"),
		Domain: value(tcpipKey, "Domain"), InstallPath: value(exchangeKey+`\Setup`, "MsiInstallPath"), WindowsBuild: windowsBuild()}
	f.Os = value(windowsKey, "ProductName")
	if v := value(iisKey, "MajorVersion"); v != "" {
		f.Iis = v + "." + value(iisKey, "MinorVersion")
	}
	// One forest has one Exchange organisation. A server in no domain (an Edge) is told by its administrator.
	if f.Organisation = value(overrideKey, "Organisation"); f.Organisation == "" {
		f.Organisation = forest()
	}
	for key, role := range map[string]stopgapv1.Role{"MailboxRole": stopgapv1.Role_ROLE_MAILBOX, "EdgeTransportRole": stopgapv1.Role_ROLE_EDGE} {
		if keyExists(exchangeKey + `\` + key) {
			f.Roles = append(f.Roles, role)
		}
	}
	if f.GetInstallPath() != "" {
		if f.ExchangeBuild, err = fileVersion(filepath.Join(f.GetInstallPath(), "Bin", "ExSetup.exe")); err != nil {
			f.ExchangeBuild = ""
		}
	}
	f.Servicing = h.servicing() != ""
	h.mu.Lock()
	defer h.mu.Unlock()
	f.Unsettled = h.settled.look(f.GetExchangeBuild(), time.Now(), serviceStarted("W3SVC"), rebootPending(f.GetInstallPath()))
	if f.GetExchangeBuild() != "" && h.settled.due(time.Now()) {
		if raw, err := json.Marshal(&h.settled); err == nil {
			_ = files.Replace(h.buildFile, raw, files.Private) // next time, if the disk is full
		}
	}
	return f, nil
}

func windowsBuild() string {
	b := value(windowsKey, "CurrentBuildNumber")
	if ubr := value(windowsKey, "UBR"); b != "" && ubr != "" {
		b += "." + ubr
	}
	return b
}

// machineID is the machine's SID; clones that were not generalised share it.
func machineID(host string) string {
	if sid, _, _, err := windows.LookupSID("", host); err == nil {
		return sid.String()
	}
	if g := value(`SOFTWARE\Microsoft\Cryptography`, "MachineGuid"); g != "" {
		return "guid:" + g
	}
	return ""
}

// fileVersion is the version in a program's resources, Major.Minor.Build.Revision.
func fileVersion(path string) (string, error) {
	n, err := windows.GetFileVersionInfoSize(path, nil)
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", path, err)
	}
	buf := make([]byte, n)
	if err := windows.GetFileVersionInfo(path, 0, n, unsafe.Pointer(&buf[0])); err != nil {
		return "", fmt.Errorf("version of %s: %w", path, err)
	}
	var info *windows.VS_FIXEDFILEINFO
	var size uint32
	if err := windows.VerQueryValue(unsafe.Pointer(&buf[0]), `\`, unsafe.Pointer(&info), &size); err != nil {
		return "", fmt.Errorf("version of %s: %w", path, err)
	}
	if uintptr(size) < unsafe.Sizeof(*info) {
		return "", fmt.Errorf("version of %s: resource is too short", path)
	}
	return fmt.Sprintf("%d.%d.%d.%d", info.FileVersionMS>>16, info.FileVersionMS&0xffff, info.FileVersionLS>>16, info.FileVersionLS&0xffff), nil
}

var (
	dsRole     = windows.NewLazySystemDLL("netapi32.dll").NewProc("DsRoleGetPrimaryDomainInformation")
	dsRoleFree = windows.NewLazySystemDLL("netapi32.dll").NewProc("DsRoleFreeMemory")
)

// forest is the name of the Active Directory forest; "" outside one. Source: DSROLE_PRIMARY_DOMAIN_INFO_BASIC in the Windows API
// reference.
func forest() string {
	var info *struct {
		role, flags       uint32
		flat, dns, forest *uint16
		guid              windows.GUID
	}
	if dsRole.Find() != nil || dsRoleFree.Find() != nil {
		return ""
	}
	if r, _, _ := dsRole.Call(0, 1, uintptr(unsafe.Pointer(&info))); r != 0 || info == nil {
		return ""
	}
	defer func() { _, _, _ = dsRoleFree.Call(uintptr(unsafe.Pointer(info))) }()
	if info.forest == nil {
		return ""
	}
	return windows.UTF16PtrToString(info.forest)
}

// setupLogs is where an update of Exchange keeps the states of the services that it stopped.
const setupLogs = `C:\ExchangeSetupLogs`

// servicing names the sign by which Exchange is being installed or updated now; "" when there is none.
func (h *Host) servicing() string {
	if sign := setupProcess(); sign != "" {
		return sign
	}
	if k, err := registry.OpenKey(registry.LOCAL_MACHINE, exchangeKey, registry.ENUMERATE_SUB_KEYS|registry.WOW64_64KEY); err == nil {
		names, _ := k.ReadSubKeyNames(-1)
		_ = k.Close()
		for _, n := range names {
			if value(exchangeKey+`\`+n, "Watermark") != "" {
				return "a watermark of setup at " + n
			}
		}
	}
	for _, n := range []string{"ServiceState.xml", "ServiceStartupMode.xml"} {
		if _, err := os.Stat(filepath.Join(setupLogs, n)); err == nil {
			return filepath.Join(setupLogs, n)
		}
	}
	if s, err := h.services.get("W3SVC"); err == nil && s.Present && startName(startDisabled) == s.StartType {
		return "W3SVC is disabled"
	}
	return ""
}

// setupProcess looks for setup and for msiexec that applies an update of Exchange.
func setupProcess() string {
	snap, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = windows.CloseHandle(snap) }()
	e := windows.ProcessEntry32{Size: uint32(unsafe.Sizeof(windows.ProcessEntry32{}))}
	for err = windows.Process32First(snap, &e); err == nil; err = windows.Process32Next(snap, &e) {
		switch n := windows.UTF16ToString(e.ExeFile[:]); strings.ToLower(n) {
		case "exsetup.exe", "exsetupui.exe":
			return n + " runs"
		case "msiexec.exe":
			if exchangePatch(commandLine(e.ProcessID)) {
				return "msiexec applies an update of Exchange"
			}
		}
	}
	return ""
}

// commandLine is a process's; "" when it can't be read. Source: ProcessCommandLineInformation, Windows 8.1 and later.
func commandLine(pid uint32) string {
	const processCommandLineInformation = 60
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return ""
	}
	defer func() { _ = windows.CloseHandle(h) }()
	buf := make([]byte, 64<<10)
	var n uint32
	if err := windows.NtQueryInformationProcess(h, processCommandLineInformation, unsafe.Pointer(&buf[0]), uint32(len(buf)), &n); err != nil {
		return ""
	}
	return (*windows.NTUnicodeString)(unsafe.Pointer(&buf[0])).String()
}

// serviceStarted is when a running service's process was created; zero when it does not run or can't be known.
func serviceStarted(name string) time.Time {
	var pid uint32
	err := withService(name, windows.SERVICE_QUERY_STATUS, func(h windows.Handle) error {
		st, err := processStatus(h)
		if st.CurrentState == stateRunning {
			pid = st.ProcessId
		}
		return err
	})
	if err != nil || pid == 0 {
		return time.Time{}
	}
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return time.Time{}
	}
	defer func() { _ = windows.CloseHandle(h) }()
	var created, exited, kernel, user windows.Filetime
	if windows.GetProcessTimes(h, &created, &exited, &kernel, &user) != nil {
		return time.Time{}
	}
	return time.Unix(0, created.Nanoseconds())
}

// rebootPending names what waits for a reboot; "" when nothing does.
func rebootPending(exchange string) string {
	for key, what := range map[string]string{
		`SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending`:  "components of Windows",
		`SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`: "updates of Windows",
	} {
		if keyExists(key) {
			return what
		}
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Control\Session Manager`, registry.QUERY_VALUE)
	if err != nil {
		return ""
	}
	defer func() { _ = k.Close() }()
	files, _, err := k.GetStringsValue("PendingFileRenameOperations")
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		return ""
	}
	for _, f := range files {
		if exchange != "" && strings.Contains(strings.ToLower(f), strings.ToLower(strings.TrimRight(exchange, `\`))) {
			return "files of Exchange"
		}
	}
	return ""
}

// Inactive implements host.Driver. Each value of a component's key is one requester's word, "1:STATE:TIME", where STATE 0 is inactive; one is
// enough.
func (h *Host) Inactive(component string) bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, exchangeKey+`\ServerComponentStates\`+component, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return false
	}
	defer func() { _ = k.Close() }()
	names, err := k.ReadValueNames(-1)
	if err != nil {
		return false
	}
	for _, n := range names {
		v, _, err := k.GetStringValue(n)
		if part := strings.Split(v, ":"); err == nil && len(part) > 1 && part[1] == "0" {
			return true
		}
	}
	return false
}
