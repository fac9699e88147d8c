package iisconfig_test

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// webConfigs are the web.config files of a server, by directory.
type webConfigs map[string]string

func (f webConfigs) ConfigFile(dir, file string) ([]byte, string, error) {
	name := dir + `\` + file
	if text, ok := f[name]; ok {
		return []byte(text), name, nil
	}
	return nil, name, fs.ErrNotExist
}
func (webConfigs) Canonical(dir string) string { return strings.ToLower(dir) }
func (webConfigs) MaxConfigBytes() int         { return iisconfig.DefaultMaxBytes }

const applicationHost = `<configuration>
  <configSections>
    <sectionGroup name="system.webServer"><sectionGroup name="rewrite"><section name="rules" /></sectionGroup></sectionGroup>
  </configSections>
  <system.applicationHost>
    <sites>
      <site name="Default Web Site" id="1">
        <application path="/" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="C:\site" /></application>
        <application path="/owa" applicationPool="MSExchangeOWAAppPool"><virtualDirectory path="/" physicalPath="C:\owa" /></application>
      </site>
    </sites>
  </system.applicationHost>
</configuration>`

func rewriteRules(inside string) string {
	return "<configuration><system.webServer><rewrite>\n<rules>\n" + inside + "\n</rules>\n</rewrite></system.webServer></configuration>"
}

func abort(name string) string {
	return `<rule name="` + name + `"><match url=".*" /><action type="AbortRequest" /></rule>`
}

// The rules of a path come from several files. The model says which are in effect, from where, and what took the others away.
func ExampleModel_At() {
	server, err := iisconfig.Parse([]byte(applicationHost), "applicationHost.config")
	if err != nil {
		fmt.Println(err)
		return
	}
	model := iisconfig.NewModel(server, webConfigs{
		`C:\site\web.config`: rewriteRules(abort("of the site")),
		`C:\owa\web.config`:  rewriteRules("<clear />\n" + abort("of OWA")),
	})
	site := server.Site("Default Web Site")
	for _, path := range []string{"/other", "/owa/auth.owa"} {
		section := model.At(site, path).Section("rules")
		fmt.Println(path)
		for _, item := range section.Items {
			fmt.Printf("  in effect: %q, from %s\n", item.Name, item.Source)
		}
		for _, gone := range section.Removed {
			fmt.Printf("  removed: %q, by %s\n", gone.Item.Name, gone.By)
		}
	}
	// Output:
	// /other
	//   in effect: "of the site", from C:\site\web.config:3
	// /owa/auth.owa
	//   in effect: "of OWA", from C:\owa\web.config:4
	//   removed: "of the site", by C:\owa\web.config:3
}

// Two rules of one name are one too many: IIS answers 500.19 to every request for the application.
func ExamplePlace_Invalid() {
	server, err := iisconfig.Parse([]byte(applicationHost), "applicationHost.config")
	if err != nil {
		fmt.Println(err)
		return
	}
	model := iisconfig.NewModel(server, webConfigs{
		`C:\site\web.config`: rewriteRules(abort("A")),
		`C:\owa\web.config`:  rewriteRules(abort("A")),
	})
	fmt.Println(model.At(server.Site("Default Web Site"), "/owa").Invalid())
	// Output: C:\owa\web.config:3: rule "A" is defined a second time; the first is at C:\site\web.config:3
}
