// Command standin plays on a Wine prefix what Wine does not have: as appcmd.exe it keeps a real applicationHost.config; as
// "standin service NAME" it is a Windows service that does nothing; "standin demand NAME" changes a start type; as "standin hold PATH SHARE" it keeps a file open until its
// standard input ends, as a backup or an antivirus program does.
package main

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

func main() {
	exe, err := os.Executable()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if strings.EqualFold(filepath.Base(exe), "appcmd.exe") {
		os.Exit(appcmd(filepath.Dir(exe), os.Args[1:]))
	}
	switch {
	case len(os.Args) == 3 && os.Args[1] == "service":
		err = svc.Run(os.Args[2], idle{})
	case len(os.Args) == 4 && os.Args[1] == "hold":
		err = hold(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "demand":
		err = demand(os.Args[2])
	default:
		err = errors.New("standin service NAME | demand NAME | hold PATH SHARE")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// idle is a service that takes a moment, with a checkpoint, to stop.
type idle struct{}

// Execute implements svc.Handler.
func (idle) Execute(_ []string, r <-chan svc.ChangeRequest, s chan<- svc.Status) (bool, uint32) {
	s <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop}
	for c := range r {
		if c.Cmd == svc.Stop {
			s <- svc.Status{State: svc.StopPending, CheckPoint: 1, WaitHint: 1000}
			return false, 0
		}
		s <- c.CurrentStatus
	}
	return false, 0
}

// demand makes a service one that is started by hand, as an administrator would; Wine's sc can't.
func demand(name string) error {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return err
	}
	n, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	s, err := windows.OpenService(m, n, windows.SERVICE_CHANGE_CONFIG)
	if err != nil {
		return err
	}
	return windows.ChangeServiceConfig(s, windows.SERVICE_NO_CHANGE, windows.SERVICE_DEMAND_START, windows.SERVICE_NO_CHANGE, nil, nil, nil, nil, nil, nil, nil)
}

func hold(path, share string) error {
	mode, err := strconv.ParseUint(share, 10, 32)
	if err != nil {
		return err
	}
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	h, err := windows.CreateFile(p, windows.GENERIC_READ, uint32(mode), nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return err
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
	return errors.Join(err, windows.CloseHandle(h))
}

// appcmd answers as the real one does, as far as the agent asks. Source of the exit codes: Win32 error codes.
func appcmd(dir string, args []string) int {
	config := filepath.Join(dir, "config", "applicationHost.config")
	data, err := os.ReadFile(config)
	if err != nil {
		fmt.Println("ERROR ( message:", err, ")")
		return 2
	}
	srv, err := iisconfig.Parse(data, config)
	if err != nil {
		fmt.Println("ERROR ( message:", err, ")")
		return 13
	}
	states := map[string]string{}
	statesFile := filepath.Join(dir, "pools.json")
	if raw, err := os.ReadFile(statesFile); err == nil {
		_ = json.Unmarshal(raw, &states)
	}
	verb := strings.Join(args[:min(2, len(args))], " ")
	switch verb {
	case "list apppool", "stop apppool", "start apppool":
		name := strings.TrimPrefix(args[2], "/apppool.name:")
		if srv.Pool(name) == nil {
			fmt.Printf("ERROR ( message:Cannot find APPPOOL object with identifier \"%s\". )\n", name)
			return 4312
		}
		was := states[name]
		if was == "" {
			was = "Started"
		}
		if args[0] == "list" {
			fmt.Println(was)
			return 0
		}
		want := map[string]string{"stop": "Stopped", "start": "Started"}[args[0]]
		if was == want {
			fmt.Printf("ERROR ( message:The object '%s' is already %s. )\n", name, strings.ToLower(want))
			return 1062
		}
		states[name] = want
		raw, _ := json.Marshal(states)
		if err := os.WriteFile(statesFile, raw, 0o644); err != nil {
			return 5
		}
		fmt.Printf("\"%s\" successfully %s\n", name, strings.ToLower(want))
		return 0
	case "set config", "clear config":
		return setAutoStart(config, data, args)
	case "list config":
		return listConfig(dir, srv, args[2:])
	}
	fmt.Println("ERROR ( message:Unknown command. )")
	return 87
}

var attribute = regexp.MustCompile(`^/\[name='([^']+)'\]\.autoStart(?::(true|false))?$`)

// setAutoStart splices the attribute, as IIS itself leaves the rest of the file.
func setAutoStart(config string, data []byte, args []string) int {
	m := attribute.FindStringSubmatch(args[3])
	if m == nil || (m[2] == "") != (args[0] == "clear") || args[4] != "/commit:apphost" {
		fmt.Println("ERROR ( message:bad arguments:", args, ")")
		return 87
	}
	tag := regexp.MustCompile(`<add name="` + regexp.QuoteMeta(m[1]) + `"[^>]*?(\s*/?>)`)
	at := tag.FindIndex(data)
	if at == nil {
		return 4312
	}
	old := string(data[at[0]:at[1]])
	now := regexp.MustCompile(` autoStart="[^"]*"`).ReplaceAllString(old, "")
	if m[2] != "" {
		end := regexp.MustCompile(`\s*/?>$`).FindStringIndex(now)[0]
		now = now[:end] + ` autoStart="` + m[2] + `"` + now[end:]
	}
	next := append(append(append([]byte(nil), data[:at[0]]...), now...), data[at[1]:]...)
	if err := os.WriteFile(config, next, 0o644); err != nil {
		return 5
	}
	fmt.Println("Applied configuration changes")
	return 0
}

// listConfig refuses an application whose web.config is malformed, or that the file "refuse" names, and lists the merged view of
// a rewrite section of any other.
func listConfig(dir string, srv *iisconfig.Server, args []string) int {
	name := args[0]
	if len(args) != 4 || args[2] != "/config:*" || args[3] != "/xml" {
		fmt.Println("ERROR ( message:bad arguments:", args, ")")
		return 87
	}
	section := strings.TrimPrefix(args[1], "-section:system.webServer/rewrite/")
	if raw, err := os.ReadFile(filepath.Join(dir, "refuse")); err == nil && strings.TrimSpace(string(raw)) == name {
		fmt.Println("ERROR ( message:Configuration error: There is a duplicate 'system.webServer/rewrite' section defined )")
		return 183
	}
	site, path, _ := strings.Cut(name, "/")
	s := srv.Site(site)
	if s == nil || s.App("/"+path) == nil {
		return 4312
	}
	p, err := registry.ExpandString(s.App("/" + path).Dir)
	if err != nil {
		return 2
	}
	raw, err := os.ReadFile(filepath.Join(p, "web.config"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 5
	}
	d := xml.NewDecoder(strings.NewReader(strings.TrimPrefix(string(raw), "\ufeff")))
	for err == nil {
		if _, err = d.Token(); err != nil && !errors.Is(err, io.EOF) {
			fmt.Println("ERROR ( message:Configuration file is not well-formed XML )")
			return 13
		}
	}
	list(dir, s, "/"+path, section)
	return 0
}
