package effect_test

import (
	"fmt"
	"io/fs"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/effect"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// files are the web.config files of a server, by directory.
type files map[string]string

func (f files) ConfigFile(dir, file string) ([]byte, string, error) {
	name := dir + `\` + file
	if text, ok := f[name]; ok {
		return []byte(text), name, nil
	}
	return nil, name, fs.ErrNotExist
}
func (files) Canonical(dir string) string { return strings.ToLower(dir) }
func (files) MaxConfigBytes() int         { return iisconfig.DefaultMaxBytes }

const applicationHost = `<configuration>
  <configSections>
    <sectionGroup name="system.webServer"><sectionGroup name="rewrite"><section name="rules" /></sectionGroup></sectionGroup>
  </configSections>
  <system.applicationHost>
    <sites>
      <site name="Default Web Site" id="1">
        <application path="/" applicationPool="DefaultAppPool"><virtualDirectory path="/" physicalPath="C:\site" /></application>
      </site>
    </sites>
  </system.applicationHost>
</configuration>`

// A rule that is in the file is not always in effect. Here another rule in front of it ends the evaluation.
func ExampleJudge() {
	const ours = `<rule name="ours" stopProcessing="true"><match url="^exploit" /><action type="AbortRequest" /></rule>`
	const shadow = `<rule name="theirs" stopProcessing="true"><match url=".*" /><action type="None" /></rule>`
	wanted, err := effect.ParseRules(ours, "")
	if err != nil {
		fmt.Println(err)
		return
	}
	attacks := effect.Attacks(&stopgapv1.Mitigation{Probes: []*stopgapv1.Probe{
		{Kind: &stopgapv1.Probe_Effect{Effect: &stopgapv1.EffectProbe{Request: "GET /exploit", ExpectAborted: true}}},
	}})
	for _, inside := range []string{ours, shadow + ours} {
		server, err := iisconfig.Parse([]byte(applicationHost), "applicationHost.config")
		if err != nil {
			fmt.Println(err)
			return
		}
		model := iisconfig.NewModel(server, files{
			`C:\site\web.config`: "<configuration><system.webServer><rewrite><rules>" + inside +
				"</rules></rewrite></system.webServer></configuration>",
		})
		check := effect.Judge(model, server.Site("Default Web Site"), attacks[0], wanted)
		fmt.Printf("%s\n  refused: %t\n  %s%s\n", check.What, check.OK, check.By, check.Why)
	}
	// Output:
	// Default Web Site: probe GET /exploit
	//   refused: true
	//   rule "ours" (C:\site\web.config:1)
	// Default Web Site: probe GET /exploit
	//   refused: false
	//   rule "theirs" (C:\site\web.config:1) comes first and ends the evaluation; no rule refuses it
}
