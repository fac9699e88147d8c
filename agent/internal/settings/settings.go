// Package settings is what an installed agent is told once: by the installer, in a file of its state directory, or by group
// policy, in the registry. Group policy wins.
package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// Names of files in the state directory.
const (
	File = "settings.json"
	// TokenFile holds the enrolment token until the agent is enrolled.
	TokenFile = "enrol-token"
)

// Settings of an installed agent.
type Settings struct {
	// Controller is its address, host:port.
	Controller string `json:"controller,omitempty"`
	// ServerName is the name in its certificate, when it is not that of the address.
	ServerName string `json:"serverName,omitempty"`
	// Token is the enrolment token; never written into File.
	Token string `json:"-"`
	// CAFingerprint, if set, must be the CA's that the token names: hexadecimal SHA-256.
	CAFingerprint string `json:"caFingerprint,omitempty"`
}

const maxFile = 64 << 10

// Load reads the file, the token beside it, and group policy over both. Without any of them it is empty.
func Load(stateDir string) (Settings, error) {
	s, err := read(stateDir)
	if err != nil {
		return s, err
	}
	group, err := groupPolicy()
	if err != nil {
		return s, err
	}
	for _, v := range []struct{ to, from *string }{{&s.Controller, &group.Controller}, {&s.ServerName, &group.ServerName}, {&s.Token, &group.Token}, {&s.CAFingerprint, &group.CAFingerprint}} {
		if *v.from != "" {
			*v.to = *v.from
		}
	}
	return s, nil
}

func read(stateDir string) (Settings, error) {
	var s Settings
	path := filepath.Join(stateDir, File)
	data, err := files.Read(path, maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &s); err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
	}
	token, err := files.Read(filepath.Join(stateDir, TokenFile), maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s.Token = strings.TrimSpace(string(token))
	return s, nil
}

// Save checks settings and writes them; an empty field keeps what was there. The token goes into a file of its own, which only
// SYSTEM and Administrators can read.
func (s Settings) Save(stateDir string) error {
	old, err := read(stateDir)
	if err != nil {
		old = Settings{} // a damaged file is replaced
	}
	for _, v := range []struct{ to, from *string }{{&s.Controller, &old.Controller}, {&s.ServerName, &old.ServerName}, {&s.CAFingerprint, &old.CAFingerprint}} {
		if *v.to == "" {
			*v.to = *v.from
		}
	}
	if s.Token != "" {
		if err := s.CheckToken(); err != nil {
			return err
		}
	}
	if err := files.MakePrivateDir(stateDir); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(filepath.Join(stateDir, File), append(data, '\n'), files.Private); err != nil || s.Token == "" {
		return err
	}
	return files.Replace(filepath.Join(stateDir, TokenFile), []byte(s.Token+"\n"), files.Private)
}

// CheckToken reads the token and compares the CA that it names with CAFingerprint, if there is one.
func (s Settings) CheckToken() error {
	t, err := trust.ParseToken(s.Token)
	if err != nil {
		return err
	}
	want := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s.CAFingerprint))
	if have := fmt.Sprintf("%x", t.CA); want != "" && want != have {
		return fmt.Errorf("the token names the CA %s, and CAFINGERPRINT is %s: one of them is of another fleet", have, want)
	}
	return nil
}

// Enrolled removes the token: it was used.
func Enrolled(stateDir string) error {
	err := os.Remove(filepath.Join(stateDir, TokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
