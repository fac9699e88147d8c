// Package lab makes and serves lab servers: directories that look like Exchange servers (package labdir says how), with an
// HTTP front end that enforces what their configuration files say. It serves the demo, the end-to-end tests, and people
// who want to try Stopgap without Windows. No product package imports it.
package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// Template is a kind of Exchange server.
type Template string

// The templates. Builds are those of the cumulative update without security updates, unless Spec names one.
const (
	Exchange2016CU19 Template = "2016-CU19"
	Exchange2016CU23 Template = "2016-CU23"
	Exchange2019CU14 Template = "2019-CU14"
	Exchange2019CU15 Template = "2019-CU15"
	ExchangeSE       Template = "SE"
)

var templates = map[Template]struct {
	build string
	um    bool // Unified Messaging left the product with Exchange 2019
	os    string
}{
	Exchange2016CU19: {"15.1.2176.2", true, "Windows Server 2016"},
	Exchange2016CU23: {"15.1.2507.6", true, "Windows Server 2016"},
	Exchange2019CU14: {"15.2.1544.4", false, "Windows Server 2019"},
	Exchange2019CU15: {"15.2.1748.10", false, "Windows Server 2022"},
	ExchangeSE:       {"15.2.2562.17", false, "Windows Server 2025"},
}

// Spec says what server to make.
type Spec struct {
	Template     Template
	Host         string
	Organisation string
	// Build overrides the template's.
	Build string
	// Edge makes an Edge Transport server: no IIS.
	Edge bool
	// DAG names the database availability group.
	DAG string
}

// Names lists the templates.
func Names() []string {
	return []string{string(Exchange2016CU19), string(Exchange2016CU23), string(Exchange2019CU14), string(Exchange2019CU15), string(ExchangeSE)}
}

// app is one application of a site.
type app struct {
	path, pool, dir string
}

const (
	frontEnd = `C:\Program Files\Microsoft\Exchange Server\V15\FrontEnd\HttpProxy\`
	backEnd  = `C:\Program Files\Microsoft\Exchange Server\V15\ClientAccess\`
)

// frontApps are the applications of Default Web Site. As on a real server, four OWA applications share one directory.
var frontApps = []app{
	{"/", "MSExchangeOWAAppPool", `%SystemDrive%\inetpub\wwwroot`},
	{"/owa", "MSExchangeOWAAppPool", frontEnd + "owa"},
	{"/owa/Calendar", "MSExchangeOWACalendarAppPool", frontEnd + "owa"},
	{"/owa/Integrated", "MSExchangeOWAAppPool", frontEnd + "owa"},
	{"/owa/oma", "MSExchangeOWAAppPool", frontEnd + "owa"},
	{"/ecp", "MSExchangeECPAppPool", frontEnd + "ecp"},
	{"/EWS", "MSExchangeServicesAppPool", frontEnd + "EWS"},
	{"/API", "MSExchangeRestFrontEndAppPool", frontEnd + "Rest"},
	{"/Autodiscover", "MSExchangeAutodiscoverAppPool", frontEnd + "Autodiscover"},
	{"/Microsoft-Server-ActiveSync", "MSExchangeSyncAppPool", frontEnd + "sync"},
	{"/OAB", "MSExchangeOABAppPool", frontEnd + "OAB"},
	{"/PowerShell", "MSExchangePowerShellFrontEndAppPool", frontEnd + "PowerShell"},
	{"/mapi", "MSExchangeMapiFrontEndAppPool", frontEnd + "mapi"},
	{"/Rpc", "MSExchangeRpcProxyFrontEndAppPool", frontEnd + "rpc"},
}

var backApps = []app{
	{"/", "DefaultAppPool", backEnd},
	{"/PowerShell", "MSExchangePowerShellAppPool", backEnd + "PowerShell-Proxy"},
	{"/owa", "MSExchangeOWAAppPool", backEnd + "owa"},
	{"/ecp", "MSExchangeECPAppPool", backEnd + "ecp"},
	{"/OAB", "MSExchangeOABAppPool", backEnd + "OAB"},
	{"/EWS", "MSExchangeServicesAppPool", backEnd + `exchweb\EWS`},
	{"/Autodiscover", "MSExchangeAutodiscoverAppPool", backEnd + "Autodiscover"},
	{"/Microsoft-Server-ActiveSync", "MSExchangeSyncAppPool", backEnd + "sync"},
}

// Make writes a lab server into a directory, which must not hold one yet.
func Make(dir string, s Spec) error {
	t, ok := templates[s.Template]
	if !ok {
		return fmt.Errorf("lab: no template %q; there are %s", s.Template, strings.Join(Names(), ", "))
	}
	if _, err := os.Stat(filepath.Join(dir, labdir.ServerFile)); err == nil {
		return fmt.Errorf("lab: %s holds a lab server already", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d := labdir.Dir(dir)
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	srv := labdir.Server{ID: hex.EncodeToString(id[:]), Host: s.Host, Organisation: s.Organisation, ExchangeBuild: t.build,
		Roles: []string{"MAILBOX"}, URLRewrite: "7.1.1993.2351", OS: t.os, DAG: s.DAG}
	if s.Build != "" {
		if _, err := exchange.ParseBuild(s.Build); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		srv.ExchangeBuild = s.Build
	}
	if s.Edge {
		srv.Roles, srv.URLRewrite, srv.DAG = []string{"EDGE"}, "", ""
	}
	if err := os.WriteFile(filepath.Join(dir, labdir.ServicesFile), []byte("{}\n"), 0o600); err != nil {
		return err
	}
	if err := d.UpdateServices(func(m map[string]labdir.Service) error {
		run := labdir.Service{StartType: labdir.StartAutomatic, State: labdir.Running}
		names := []string{"MSExchangeTransport", "MSExchangeADTopology", "MSExchangeHM", "MSExchangeHMRecovery"}
		if !s.Edge {
			names = append(names, "W3SVC", "MSExchangeIS", "MSExchangeMailboxReplication", "MSExchangeMitigation")
			if t.um {
				names = append(names, "MSExchangeUM", "MSExchangeUMCR")
			}
		}
		for _, n := range names {
			s := run
			if n == "MSExchangeTransport" || n == "MSExchangeIS" || n == "MSExchangeUM" {
				s.DependsOn = []string{"MSExchangeADTopology"}
			}
			m[n] = s
		}
		return nil
	}); err != nil {
		return err
	}
	if !s.Edge {
		if err := writeIIS(d, srv); err != nil {
			return err
		}
	}
	return d.WriteServer(srv)
}

func writeIIS(d labdir.Dir, srv labdir.Server) error {
	if err := write(d, labdir.ApplicationHost, applicationHost(), false); err != nil {
		return err
	}
	for _, a := range append(append([]app(nil), frontApps...), backApps...) {
		if a.path == "/owa/Calendar" || a.path == "/owa/Integrated" || a.path == "/owa/oma" {
			continue
		}
		if err := write(d, a.dir+`\web.config`, webConfig(a, srv.Host), true); err != nil {
			return err
		}
	}
	return nil
}

// write puts a file in place as Exchange setup does: CRLF line ends and, for web.config, a byte order mark.
func write(d labdir.Dir, windows, text string, bom bool) error {
	p, err := d.Path(windows)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	data := bytes.ReplaceAll([]byte(text), []byte("\n"), []byte("\r\n"))
	if bom {
		data = append([]byte("\xef\xbb\xbf"), data...)
	}
	return os.WriteFile(p, data, 0o644)
}

func applicationHost() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<!-- IIS configuration of a lab server: the parts of a real one that a mitigation can meet. -->
<configuration>

    <configSections>
        <sectionGroup name="system.applicationHost">
            <section name="applicationPools" allowDefinition="AppHostOnly" overrideModeDefault="Deny" />
            <section name="sites" allowDefinition="AppHostOnly" overrideModeDefault="Deny" />
        </sectionGroup>
        <sectionGroup name="system.webServer">
            <section name="globalModules" allowDefinition="AppHostOnly" overrideModeDefault="Deny" />
            <section name="httpErrors" overrideModeDefault="Allow" />
            <section name="modules" allowDefinition="MachineToApplication" overrideModeDefault="Allow" />
            <sectionGroup name="rewrite">
                <section name="globalRules" overrideModeDefault="Deny" allowDefinition="AppHostOnly" />
                <section name="rules" overrideModeDefault="Allow" />
                <section name="outboundRules" overrideModeDefault="Allow" />
                <section name="providers" overrideModeDefault="Allow" />
                <section name="rewriteMaps" overrideModeDefault="Allow" />
                <section name="allowedServerVariables" overrideModeDefault="Deny" />
            </sectionGroup>
        </sectionGroup>
    </configSections>

    <system.applicationHost>
        <applicationPools>
`)
	seen := map[string]bool{}
	for _, a := range append(append([]app{{"", "DefaultAppPool", ""}}, frontApps...), backApps...) {
		if seen[a.pool] {
			continue
		}
		seen[a.pool] = true
		fmt.Fprintf(&b, `            <add name=%q managedRuntimeVersion="v4.0" managedPipelineMode="Integrated">
                <processModel identityType="LocalSystem" idleTimeout="00:00:00" pingingEnabled="false" />
            </add>
`, a.pool)
	}
	b.WriteString("        </applicationPools>\n        <sites>\n")
	site := func(name, id string, apps []app, bindings ...string) {
		fmt.Fprintf(&b, "            <site name=%q id=%q>\n", name, id)
		for _, a := range apps {
			fmt.Fprintf(&b, "                <application path=%q applicationPool=%q>\n                    <virtualDirectory path=\"/\" physicalPath=\"%s\" />\n                </application>\n", a.path, a.pool, a.dir)
		}
		b.WriteString("                <bindings>\n")
		for _, x := range bindings {
			proto, info, _ := strings.Cut(x, " ")
			fmt.Fprintf(&b, "                    <binding protocol=%q bindingInformation=%q />\n", proto, info)
		}
		b.WriteString("                </bindings>\n            </site>\n")
	}
	site("Default Web Site", "1", frontApps, "http *:80:", "https :443:", "https 127.0.0.1:443:")
	site("Exchange Back End", "2", backApps, "http *:81:", "https *:444:")
	b.WriteString(`        </sites>
    </system.applicationHost>

    <system.webServer>
        <globalModules>
            <add name="RewriteModule" image="%SystemRoot%\system32\inetsrv\rewrite.dll" />
        </globalModules>
        <modules>
            <add name="RewriteModule" />
        </modules>
    </system.webServer>
    <location path="Default Web Site/owa">
        <system.webServer>
            <modules>
                <remove name="FormsAuthentication" />
            </modules>
        </system.webServer>
    </location>
</configuration>
`)
	return b.String()
}

// webConfig writes one application's file. The site root and OWA keep their settings in the <location> that children don't
// inherit; the others at the top.
func webConfig(a app, host string) string {
	name := strings.Trim(a.path, "/")
	settings := func(indent string) string {
		return fmt.Sprintf(`%[1]s<system.webServer>
%[1]s  <modules>
%[1]s    <!-- Standard set of module removes -->
%[1]s    <remove name="CustomErrorModule" />
%[1]s    <remove name="UrlRoutingModule-4.0" />
%[1]s    <add name="HostHeaderValidationModule" type="Microsoft.Exchange.HttpUtilities.HostHeaderValidationModule" />
%[1]s  </modules>
%[1]s  <httpProtocol>
%[1]s    <customHeaders>
%[1]s      <add name="X-FEServer" value="%[2]s" />
%[1]s    </customHeaders>
%[1]s  </httpProtocol>
%[1]s</system.webServer>
`, indent, host)
	}
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<configuration>\n")
	if a.path == "/" || a.path == "/owa" {
		b.WriteString("  <!-- The applications below can share this directory and still be independent -->\n")
		b.WriteString("  <location inheritInChildApplications=\"false\">\n" + settings("    ") + "  </location>\n")
	} else {
		b.WriteString(settings("  "))
	}
	if name != "" {
		fmt.Fprintf(&b, "  <appSettings>\n    <add key=\"HttpProxy.ProtocolType\" value=%q />\n  </appSettings>\n", name)
	}
	b.WriteString("  <assemblyBinding xmlns=\"urn:schemas-microsoft-com:asm.v1\">\n    <linkedConfiguration href=\"file://" +
		`C:\Program Files\Microsoft\Exchange Server\V15\FrontEnd\HttpProxy\SharedWebConfig.config` + "\" />\n  </assemblyBinding>\n</configuration>")
	return b.String()
}

// InstallUpdate plays the installation of an update: Exchange looks as if it were being serviced while during runs (nil:
// nothing), then has the new build. A cumulative update also replaces the applications' web.config files.
func InstallUpdate(dir, build string, cumulative bool, during func() error) error {
	if _, err := exchange.ParseBuild(build); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	d := labdir.Dir(dir)
	if err := d.SetServicing(true); err != nil {
		return err
	}
	if during != nil {
		if err := during(); err != nil {
			return err
		}
	}
	s, err := d.Server()
	if err != nil {
		return err
	}
	s.ExchangeBuild = build
	if cumulative {
		if err := writeIIS(d, s); err != nil {
			return err
		}
	}
	if err := d.WriteServer(s); err != nil {
		return err
	}
	return d.SetServicing(false)
}

// Facts reads a lab server's facts.
func Facts(dir string) (labdir.Server, error) { return labdir.Dir(dir).Server() }

// WebConfigs reads every web.config of a lab server, by path.
func WebConfigs(dir string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(dir, "C"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || !strings.EqualFold(e.Name(), "web.config") {
			return err
		}
		out[p], err = os.ReadFile(p)
		return err
	})
	return out, err
}
