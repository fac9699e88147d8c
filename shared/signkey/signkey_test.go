package signkey

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

func TestAKeyIsEncryptedAtRestAndOnlyItsPassphraseOpensIt(t *testing.T) {
	t.Parallel()
	k, err := Generate(RoleTargets)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, _, err := k.Save(dir, []byte("short")); err == nil {
		t.Error("a passphrase of five bytes is taken")
	}
	private, public, err := k.save(dir, []byte("correct horse battery"), encrypted.Legacy)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(private); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	got, err := Load(private, []byte("correct horse battery"))
	if err != nil || got.ID != k.ID || got.Role != RoleTargets {
		t.Fatalf("%v %v", got, err)
	}
	if _, err := Load(private, []byte("wrong horse battery")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("another passphrase: %v", err)
	}
	if p, err := LoadPublic(public); err != nil || p.ID != k.ID {
		t.Errorf("%v %v", p, err)
	}
	if _, _, err := k.save(dir, []byte("correct horse battery"), encrypted.Legacy); err == nil {
		t.Error("a key was overwritten")
	}
	data, err := os.ReadFile(private)
	if err != nil {
		t.Fatal(err)
	}
	altered := filepath.Join(dir, "altered.key")
	if err := os.WriteFile(altered, []byte(strings.Replace(string(data), k.ID[:4], "0000", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(altered, []byte("correct horse battery")); err == nil {
		t.Error("a file that names another key is taken")
	}
}

func TestAKeyIsSavedAtFullCostAndOneThatIsNotIsCalledWeak(t *testing.T) {
	t.Parallel()
	if cost != encrypted.OWASP {
		t.Skip("built with the tag cheapkeys")
	}
	pass := []byte("correct horse battery")
	for weak, save := range map[bool]func(*Key, string) (string, string, error){
		false: func(k *Key, dir string) (string, string, error) { return k.Save(dir, pass) },
		true:  func(k *Key, dir string) (string, string, error) { return k.save(dir, pass, encrypted.Legacy) },
	} {
		k, err := Generate(RoleTargets)
		if err != nil {
			t.Fatal(err)
		}
		private, _, err := save(k, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(private)
		if err != nil {
			t.Fatal(err)
		}
		if full := strings.Contains(string(data), `"N": 131072`); full == weak {
			t.Errorf("weak %t: %s", weak, data)
		}
		if got, err := Load(private, pass); err != nil || got.Weak() != weak || k.Weak() {
			t.Errorf("loaded: %v, weak %t, want %t", err, got.Weak(), weak)
		}
	}
}

func TestAnOnlineKeyIsReadBackAndRubbishIsNot(t *testing.T) {
	t.Parallel()
	k, err := Generate(RoleTimestamp)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "timestamp.pem")
	if err := k.SavePlain(path); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadPlain(path, RoleTimestamp); err != nil || got.ID != k.ID {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "rubbish", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPlain(path, RoleTimestamp); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
}
