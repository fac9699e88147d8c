package effect

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// The standard Exchange server is a Mailbox server as setup leaves it, with URL Rewrite 2.1 installed and nothing else
// changed: no rewrite rules, and an empty list of server variables that rules may set. A document is judged against it before
// it is signed. Names, paths and pools are those of Exchange 2016, 2019 and SE.

// StandardFrontEnd and StandardBackEnd are its web sites.
const (
	StandardFrontEnd = "Default Web Site"
	StandardBackEnd  = "Exchange Back End"
)

const (
	httpProxy    = `C:\Exchange\FrontEnd\HttpProxy\`
	clientAccess = `C:\Exchange\ClientAccess\`
	wwwroot      = `C:\inetpub\wwwroot`
)

type standardApp struct{ path, pool, dir string }

// The OWA applications of the front end share one directory.
var standardSites = []struct {
	name string
	apps []standardApp
}{
	{StandardFrontEnd, []standardApp{
		{"/", "DefaultAppPool", wwwroot},
		{"/API", "MSExchangeRestFrontEndAppPool", httpProxy + "Rest"},
		{"/Autodiscover", "MSExchangeAutodiscoverAppPool", httpProxy + "Autodiscover"},
		{"/ecp", "MSExchangeECPAppPool", httpProxy + "ecp"},
		{"/EWS", "MSExchangeServicesAppPool", httpProxy + "EWS"},
		{"/mapi", "MSExchangeMapiFrontEndAppPool", httpProxy + "mapi"},
		{"/Microsoft-Server-ActiveSync", "MSExchangeSyncAppPool", httpProxy + "sync"},
		{"/OAB", "MSExchangeOABAppPool", httpProxy + "OAB"},
		{"/owa", "MSExchangeOWAAppPool", httpProxy + "owa"},
		{"/owa/Calendar", "MSExchangeOWACalendarAppPool", httpProxy + "owa"},
		{"/owa/Integrated", "MSExchangeOWAAppPool", httpProxy + "owa"},
		{"/owa/oma", "MSExchangeOWAAppPool", httpProxy + "owa"},
		{"/PowerShell", "MSExchangePowerShellFrontEndAppPool", httpProxy + "PowerShell"},
		{"/Rpc", "MSExchangeRpcProxyFrontEndAppPool", httpProxy + "rpc"},
	}},
	{StandardBackEnd, []standardApp{
		{"/", "DefaultAppPool", clientAccess},
		{"/API", "MSExchangeRestAppPool", clientAccess + "Rest"},
		{"/Autodiscover", "MSExchangeAutodiscoverAppPool", clientAccess + "Autodiscover"},
		{"/ecp", "MSExchangeECPAppPool", clientAccess + "ecp"},
		{"/EWS", "MSExchangeServicesAppPool", clientAccess + `exchweb\EWS`},
		{"/Microsoft-Server-ActiveSync", "MSExchangeSyncAppPool", clientAccess + "sync"},
		{"/OAB", "MSExchangeOABAppPool", clientAccess + "OAB"},
		{"/owa", "MSExchangeOWAAppPool", clientAccess + "owa"},
		{"/PowerShell", "MSExchangePowerShellAppPool", clientAccess + "PowerShell-Proxy"},
	}},
}

// Placement is where rules stand on the standard server: the application Path of a site.
type Placement struct {
	Site, Path string
	// Inbound and Outbound are what the document puts into <rules> and into <outboundRules>.
	Inbound, Outbound string
}

// Standard makes the model of a standard Exchange server that has rules in place. As on a real server, they stand inside the
// <location> that applications do not inherit where several applications read one file (/owa), and outside of it elsewhere. The
// error names a fragment that is no XML, or an application that the server does not have.
func Standard(placed ...Placement) (*iisconfig.Model, error) {
	srv, err := iisconfig.Parse([]byte(standardHost()), "applicationHost.config")
	if err != nil {
		return nil, fmt.Errorf("effect: standard server: %w", err)
	}
	files := standardFiles{}
	for _, p := range placed {
		var app *iisconfig.App
		if site := srv.Site(p.Site); site != nil {
			app = site.App(p.Path)
		}
		if app == nil {
			return nil, fmt.Errorf("effect: a standard Exchange server has no application %s%s", p.Site, p.Path)
		}
		if err := files.add(app, p); err != nil {
			return nil, err
		}
	}
	return iisconfig.NewModel(srv, files), nil
}

func standardHost() string {
	var b strings.Builder
	b.WriteString(`<configuration>
<configSections>
  <sectionGroup name="system.applicationHost"><section name="applicationPools"/><section name="sites"/></sectionGroup>
  <sectionGroup name="system.webServer">
    <section name="globalModules" allowDefinition="AppHostOnly" overrideModeDefault="Deny"/>
    <section name="modules" allowDefinition="MachineToApplication"/>
    <sectionGroup name="rewrite">
      <section name="globalRules" allowDefinition="AppHostOnly" overrideModeDefault="Deny"/>
      <section name="rules"/><section name="outboundRules"/><section name="rewriteMaps"/><section name="providers"/>
      <section name="allowedServerVariables" overrideModeDefault="Deny"/>
    </sectionGroup>
  </sectionGroup>
</configSections>
<system.webServer>
  <globalModules><add name="RewriteModule" image="rewrite.dll"/></globalModules>
  <modules><add name="RewriteModule"/></modules>
</system.webServer>
<system.applicationHost>
`)
	var pools, sites strings.Builder
	seen := map[string]bool{}
	for _, s := range standardSites {
		fmt.Fprintf(&sites, "<site name=\"%s\">\n", s.name)
		for _, a := range s.apps {
			if !seen[a.pool] {
				seen[a.pool] = true
				fmt.Fprintf(&pools, "<add name=\"%s\"/>\n", a.pool)
			}
			fmt.Fprintf(&sites,
				"<application path=\"%s\" applicationPool=\"%s\"><virtualDirectory path=\"/\" physicalPath=\"%s\"/></application>\n",
				a.path, a.pool, a.dir)
		}
		sites.WriteString("</site>\n")
	}
	fmt.Fprintf(&b, "<applicationPools>\n%s</applicationPools>\n<sites>\n%s</sites>\n</system.applicationHost>\n</configuration>\n", &pools,
		&sites)
	return b.String()
}

// standardFiles are the web.config files of a standard server by directory, with the rules that are put there. A file without
// rules of ours has nothing that decides about rewriting.
type standardFiles map[string]*standardFile

type standardFile struct {
	name               string
	shared             bool // several applications read it
	rules, pre, outRun strings.Builder
}

func (f standardFiles) add(app *iisconfig.App, p Placement) error {
	key := f.Canonical(app.Dir)
	file := f[key]
	if file == nil {
		file = &standardFile{name: app.String() + "/web.config"}
		readers := 0
		for _, a := range app.Site.Apps {
			if f.Canonical(a.Dir) == key {
				readers++
			}
		}
		file.shared = readers > 1
		f[key] = file
	}
	for _, part := range []struct {
		xml  string
		into *strings.Builder
	}{{p.Inbound, &file.rules}, {p.Outbound, &file.outRun}} {
		doc, err := xmldoc.ParseFragment([]byte(part.xml))
		if err != nil {
			return fmt.Errorf("effect: %w", err)
		}
		for _, e := range doc.Root.Children {
			into, list := part.into, []*xmldoc.Element{e}
			if e.Name == "preConditions" {
				into, list = &file.pre, e.Children
			}
			for _, x := range list {
				into.Write(doc.Bytes(x))
				into.WriteByte('\n')
			}
		}
	}
	return nil
}

// ConfigFile implements iisconfig.Files.
func (f standardFiles) ConfigFile(dir, name string) ([]byte, string, error) {
	file := f[f.Canonical(dir)]
	if file == nil || !strings.EqualFold(name, iisconfig.WebConfig) {
		return nil, dir + `\` + name, fs.ErrNotExist
	}
	open, end := "", ""
	if file.shared {
		open, end = "<location inheritInChildApplications=\"false\">\n", "</location>\n"
	}
	return []byte("<configuration>\n" + open + "<system.webServer><rewrite>\n<rules>\n" + file.rules.String() +
		"</rules>\n<outboundRules>\n<preConditions>\n" +
		file.pre.String() + "</preConditions>\n" + file.outRun.String() +
		"</outboundRules>\n</rewrite></system.webServer>\n" + end + "</configuration>\n"), file.name, nil
}

// Canonical implements iisconfig.Files.
func (standardFiles) Canonical(dir string) string {
	return strings.TrimRight(strings.ToLower(dir), `\`)
}

// MaxConfigBytes implements iisconfig.Files.
func (standardFiles) MaxConfigBytes() int { return iisconfig.DefaultMaxBytes }

var _ iisconfig.Files = standardFiles{}
