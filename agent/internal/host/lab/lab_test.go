package lab

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/stopgap-em/stopgap/agent/internal/host/hosttest"
	e2elab "github.com/stopgap-em/stopgap/e2e/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	hosttest.Run(t, func(t *testing.T) hosttest.Server {
		dir := filepath.Join(t.TempDir(), "server")
		if err := e2elab.Make(dir, e2elab.Spec{Template: e2elab.ExchangeSE, Host: "EX01", Organisation: "Contoso"}); err != nil {
			t.Fatal(err)
		}
		d, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return hosttest.Server{Driver: d, Dir: `%SystemDrive%\inetpub\wwwroot`, Change: func(t *testing.T, data []byte) {
			if err := os.WriteFile(filepath.Join(dir, "C", "inetpub", "wwwroot", "web.config"), data, 0o600); err != nil {
				t.Error(err)
			}
		}}
	})
}

func TestADirectoryThatIsNoLabServerIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir()); err == nil {
		t.Fatal("opened")
	}
}
