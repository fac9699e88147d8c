package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/trust"
)

func token(t *testing.T) (trust.Token, string) {
	t.Helper()
	tok, err := trust.NewToken([32]byte{1, 2}, [32]byte{3}, 7)
	if err != nil {
		t.Fatal(err)
	}
	return tok, tok.String()
}

func TestSettingsAreKeptAndTheTokenGoesWhenItWasUsed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if s, err := Load(dir); err != nil || s != (Settings{}) {
		t.Fatalf("%+v %v", s, err)
	}
	_, tok := token(t)
	if err := (Settings{Controller: "c:1", ServerName: "n", Token: tok}).Save(dir); err != nil {
		t.Fatal(err)
	}
	// An upgrade gives nothing and keeps all.
	if err := (Settings{}).Save(dir); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(dir); err != nil || s != (Settings{Controller: "c:1", ServerName: "n", Token: tok}) {
		t.Fatalf("%+v %v", s, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil || strings.Contains(string(data), tok) {
		t.Errorf("the token stands in %s: %v", File, err)
	}
	for range 2 {
		if err := Enrolled(dir); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := Load(dir); err != nil || s.Token != "" || s.Controller != "c:1" {
		t.Fatalf("%+v %v", s, err)
	}
}

func TestATokenOfAnotherFleetIsRefused(t *testing.T) {
	t.Parallel()
	_, tok := token(t)
	right := "01:02" + strings.Repeat(":00", 30)
	if err := (Settings{Token: tok, CAFingerprint: right}).CheckToken(); err != nil {
		t.Error(err)
	}
	err := (Settings{Token: tok, CAFingerprint: strings.Repeat("ab", 32)}).Save(t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "another fleet") || strings.Contains(err.Error(), tok) {
		t.Error(err)
	}
	if err := (Settings{Token: "rubbish"}).Save(t.TempDir()); err == nil {
		t.Error("rubbish was taken for a token")
	}
}

func TestADamagedFileIsNamedAndReplacedByTheNextInstallation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, File), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), File) {
		t.Fatal(err)
	}
	if err := (Settings{Controller: "c:1"}).Save(dir); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(dir); err != nil || s.Controller != "c:1" {
		t.Fatalf("%+v %v", s, err)
	}
}
