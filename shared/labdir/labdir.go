// Package labdir is the layout of a lab server: a directory that looks like an Exchange server. Both who makes and serves
// lab servers (e2e/lab) and the agent's lab driver read and write it; neither keeps a second copy of its state.
//
//	DIR/server.json                                                    facts: build, roles, organisation, ...
//	DIR/services.json                                                  Windows services: start type, state
//	DIR/apppools.json                                                  running state of the application pools
//	DIR/frontend                                                       address of whoever serves its web site now
//	DIR/servicing, DIR/servicing.SIGN                                  exists while "Exchange is being updated" (Signs)
//	DIR/C/Windows/System32/inetsrv/config/applicationHost.config       IIS: sites, applications, pools
//	DIR/C/Windows/System32/inetsrv/config/redirection.config           exists where that configuration may be shared
//	DIR/C/inetpub/wwwroot/web.config                                   Default Web Site
//	DIR/C/Program Files/Microsoft/Exchange Server/V15/FrontEnd/...     its applications' web.config files
//
// A Windows path in applicationHost.config such as `C:\inetpub\wwwroot` is the directory DIR/C/inetpub/wwwroot, found
// without regard to case, so real configuration files can be put into a lab server by hand.
package labdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// Names of the files in a lab server's directory.
const (
	ServerFile    = "server.json"
	ServicesFile  = "services.json"
	PoolsFile     = "apppools.json"
	ServicingFile = "servicing"
	FrontEndFile  = "frontend"
)

// ApplicationHost is the Windows path of IIS's main configuration file.
const ApplicationHost = `C:\Windows\System32\inetsrv\config\applicationHost.config`

// Redirection is the Windows path of the file that says whether IIS's configuration is shared; there need be none.
const Redirection = `C:\Windows\System32\inetsrv\config\redirection.config`

// MaxFile bounds each file of a lab server, in bytes.
const MaxFile = 4 << 20

// Server is server.json.
type Server struct {
	ID            string   `json:"id"`
	Host          string   `json:"host"`
	Organisation  string   `json:"organisation"`
	ExchangeBuild string   `json:"exchangeBuild"`
	Roles         []string `json:"roles"` // "MAILBOX", "EDGE"
	URLRewrite    string   `json:"urlRewrite,omitempty"`
	OS            string   `json:"os,omitempty"`
	DAG           string   `json:"dag,omitempty"`
	Inactive      []string `json:"inactive,omitempty"` // components in maintenance
}

// Service is one entry of services.json.
type Service struct {
	StartType string   `json:"startType"` // AUTOMATIC, MANUAL, DISABLED
	Delayed   bool     `json:"delayed,omitempty"`
	State     string   `json:"state"` // RUNNING, STOPPED
	DependsOn []string `json:"dependsOn,omitempty"`
}

// Service start types and states.
const (
	StartAutomatic = "AUTOMATIC"
	StartManual    = "MANUAL"
	StartDisabled  = "DISABLED"
	Running        = "RUNNING"
	Stopped        = "STOPPED"
	Started        = "STARTED"
)

// Dir is a lab server's directory.
type Dir string

// Open checks that a directory is a lab server.
func Open(dir string) (Dir, error) {
	d := Dir(dir)
	if _, err := d.Server(); err != nil {
		return "", fmt.Errorf("lab server %s: %w (a lab server has a %s; `stopgap-lab make DIR` writes one)", dir, err, ServerFile)
	}
	return d, nil
}

// Path resolves a Windows path inside the lab server. Components that exist are found without regard to case; it never
// leaves the directory.
func (d Dir) Path(windows string) (string, error) {
	p := strings.ReplaceAll(windows, "/", `\`)
	for _, v := range []struct{ name, value string }{
		{"%systemdrive%", "C:"}, {"%windir%", `C:\Windows`}, {"%systemroot%", `C:\Windows`},
	} {
		if len(p) >= len(v.name) && strings.EqualFold(p[:len(v.name)], v.name) {
			p = v.value + p[len(v.name):]
		}
	}
	if len(p) < 3 || p[1] != ':' || p[2] != '\\' {
		return "", fmt.Errorf("%q is not an absolute Windows path", windows)
	}
	cur := filepath.Join(string(d), strings.ToUpper(p[:1]))
	for _, c := range strings.Split(p[3:], `\`) {
		if c == "" || c == "." {
			continue
		}
		if c == ".." || strings.ContainsAny(c, `:*?"<>|%`) {
			return "", fmt.Errorf("%q: component %q is not allowed", windows, c)
		}
		cur = join(cur, c)
	}
	return cur, nil
}

func join(dir, name string) string {
	exact := filepath.Join(dir, name)
	if _, err := os.Lstat(exact); err == nil {
		return exact
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return exact
	}
	for _, e := range entries {
		if strings.EqualFold(e.Name(), name) {
			return filepath.Join(dir, e.Name())
		}
	}
	return exact
}

// ReadFile reads a file by its Windows path, bounded.
func (d Dir) ReadFile(windows string) ([]byte, string, error) {
	p, err := d.Path(windows)
	if err != nil {
		return nil, "", err
	}
	data, err := readBounded(p)
	return data, p, err
}

// readBounded reads a file of the lab server. Errors: iisconfig.ErrTooLarge.
func readBounded(p string) ([]byte, error) {
	data, err := files.Read(p, MaxFile)
	if errors.Is(err, files.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", err, iisconfig.ErrTooLarge)
	}
	return data, err
}

// ConfigFile reads a configuration file of a physical directory; it makes Dir an iisconfig.Files.
func (d Dir) ConfigFile(dir, file string) ([]byte, string, error) {
	data, name, err := d.ReadFile(strings.TrimRight(dir, `\/`) + `\` + file)
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist // a directory on the way is a file
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return data, name, err
}

// Canonical implements iisconfig.Files.
func (d Dir) Canonical(dir string) string {
	p, err := d.Path(strings.TrimRight(dir, `\/`))
	if err != nil {
		return strings.ToLower(strings.TrimRight(strings.ReplaceAll(dir, "/", `\`), `\`))
	}
	if real, err := filepath.EvalSymlinks(p); err == nil {
		p = real
	}
	return strings.ToLower(p)
}

// MaxConfigBytes implements iisconfig.Files.
func (d Dir) MaxConfigBytes() int { return iisconfig.DefaultMaxBytes }

// Server reads server.json.
func (d Dir) Server() (Server, error) {
	var s Server
	return s, d.read(ServerFile, &s)
}

// WriteServer replaces server.json.
func (d Dir) WriteServer(s Server) error { return d.write(ServerFile, s) }

// FrontEnd is the address of the web site; "" while nobody serves it.
func (d Dir) FrontEnd() (string, error) {
	data, err := files.Read(filepath.Join(string(d), FrontEndFile), MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}

// SetFrontEnd writes the address; "" takes it away.
func (d Dir) SetFrontEnd(addr string) error {
	p := filepath.Join(string(d), FrontEndFile)
	if addr != "" {
		return os.WriteFile(p, []byte(addr+"\n"), 0o600)
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Services reads services.json.
func (d Dir) Services() (map[string]Service, error) {
	m := map[string]Service{}
	return m, d.read(ServicesFile, &m)
}

// Pools reads apppools.json; a pool that is not in it runs.
func (d Dir) Pools() (map[string]string, error) {
	m := map[string]string{}
	err := d.read(PoolsFile, &m)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return m, err
}

// UpdateServices changes services.json under the lab's lock.
func (d Dir) UpdateServices(change func(map[string]Service) error) error {
	return update(d, ServicesFile, d.Services, change)
}

// UpdatePools changes apppools.json under the lab's lock.
func (d Dir) UpdatePools(change func(map[string]string) error) error {
	return update(d, PoolsFile, d.Pools, change)
}

func update[T any](d Dir, file string, read func() (map[string]T, error), change func(map[string]T) error) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	m, err := read()
	if err != nil {
		return err
	}
	before := maps.Clone(m)
	if err := change(m); err != nil || reflect.DeepEqual(before, m) {
		return err
	}
	return d.write(file, m)
}

// Signs are by what a server shows that Exchange is being installed or updated; on a lab server each is a file
// "servicing.SIGN". The plain file "servicing" stands for any of them.
var Signs = []string{
	"exsetup",       // ExSetup.exe or ExSetupUI.exe runs
	"msiexec",       // msiexec applies an update of Exchange
	"watermark",     // setup left its mark in the registry
	"service-state", // the update's record of the services it stopped
}

// webService is IIS's own service: setup disables it while it works.
const webService = "W3SVC"

// Servicing says whether the lab server plays an installation of Exchange: by the file, by one of Signs, or by W3SVC being
// disabled.
func (d Dir) Servicing() bool {
	for _, name := range append([]string{""}, Signs...) {
		file := ServicingFile
		if name != "" {
			file += "." + name
		}
		if _, err := os.Stat(filepath.Join(string(d), file)); err == nil {
			return true
		}
	}
	services, err := d.Services()
	return err == nil && services[webService].StartType == StartDisabled
}

// SetServicing starts or ends it.
func (d Dir) SetServicing(on bool) error {
	p := filepath.Join(string(d), ServicingFile)
	if on {
		return os.WriteFile(p, []byte("an update of Exchange is being installed\n"), 0o600)
	}
	err := os.Remove(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d Dir) read(file string, v any) error {
	data, err := files.Read(filepath.Join(string(d), file), MaxFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(string(d), file), err)
	}
	return nil
}

func (d Dir) write(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return files.Replace(filepath.Join(string(d), file), append(data, '\n'), files.Private)
}
