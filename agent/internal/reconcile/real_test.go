package reconcile

import (
	"os"
	"path/filepath"
	"testing"

	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
	"github.com/stopgap-em/stopgap/e2e/realdata"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// realServer is a lab server with the IIS configuration of a real Exchange 2019 server, or a skip where that is absent.
func realServer(t *testing.T, applicationHost string) *rig {
	t.Helper()
	dir := realdata.Dir(t)
	g := newRig(t, e2elab.Spec{Template: e2elab.Exchange2019CU14, Host: "SOLO-E19A", Build: "15.2.792.3"})
	front := `C:\Program Files\Microsoft\Exchange Server\V15\FrontEnd\HttpProxy\`
	for real, windows := range map[string]string{
		applicationHost:                   labdir.ApplicationHost,
		"DefaultWebSite_web.config":       `C:\inetpub\wwwroot\web.config`,
		"DefaultWebSite-OWA_web.config":   front + `owa\web.config`,
		"DefaultWebSite-AutoD_web.config": front + `Autodiscover\web.config`,
	} {
		data, err := os.ReadFile(filepath.Join(dir, "exchange", "E19", real))
		if err != nil {
			t.Fatal(err)
		}
		p, err := labdir.Dir(g.dir).Path(windows)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestOnARealServersConfigurationTheCatalogueIsAppliedHasEffectAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	g := realServer(t, "applicationHost.config")
	before := g.snapshot()
	ids := []string{"CVE-2021-26855", "CVE-2021-27065", "CVE-2021-26858", "M1", "M2"}
	web, err := e2elab.Serve(g.dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = web.Close() }()
	through := 0
	for _, a := range e2elab.Exploit(t.Context(), web.URL()) {
		if a.Through {
			through++
		}
	}
	if through != 5 {
		t.Fatalf("%d exploits get through before: the test proves nothing", through)
	}
	g.publish(ids...)
	g.pass()
	for _, id := range ids {
		g.expect(id, applied, "applied")
	}
	for _, a := range e2elab.Exploit(t.Context(), web.URL()) {
		if a.Through {
			t.Errorf("%s still gets through: %s", a.Name, a.Got)
		}
	}
	for _, a := range e2elab.Work(t.Context(), web.URL()) {
		if !a.Through {
			t.Errorf("%s does not work: %s", a.Name, a.Got)
		}
	}
	clear(g.targets)
	g.release(false)
	g.pass()
	for _, id := range ids {
		g.expect(id, reverted, "withdrawn")
	}
	g.same(before)
}

func TestOnAMalformedRealConfigurationNothingIsTouched(t *testing.T) {
	t.Parallel()
	g := realServer(t, "BadApplicationHost.config")
	before := g.snapshot()
	g.publish("M1", "M2", "CVE-2021-27065")
	g.pass()
	for _, id := range []string{"M1", "M2", "CVE-2021-27065"} {
		g.expect(id, failed, "config-malformed")
	}
	g.same(before)
}
