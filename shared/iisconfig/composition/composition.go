// Package composition evaluates composition vectors: configuration files, and what IIS composes of them at some paths. It is
// what `stopgap rewrite explain --vectors` reads and prints, one JSON object for each question.
package composition

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// MaxBytes bounds a vectors file.
const MaxBytes = 64 << 20

// File is a vectors file.
type File struct {
	// Dirs gives the Windows directory for the first part of a file's key.
	Dirs map[string]string `json:"dirs"`
	// Site is the site's name.
	Site    string   `json:"site"`
	Vectors []Vector `json:"vectors"`
}

// Vector is one set of configuration files with questions.
type Vector struct {
	ID   string `json:"id"`
	Asks []Ask  `json:"asks"`
	// XML holds the files: "apphost" is applicationHost.config, the others are DIR/NAME.
	XML map[string]string `json:"xml"`
}

// Ask is one question: what is effective in a section at a path?
type Ask struct {
	Path    string `json:"path"`
	Section string `json:"section"`
	// Module asks whether the rewrite module runs there.
	Module *bool `json:"module"`
	// InputOf asks for what the pattern of that rule gets.
	InputOf string `json:"input_of"`
}

// Answer is the answer to one question.
type Answer struct {
	ID      string   `json:"id"`
	Path    string   `json:"path"`
	Section string   `json:"section"`
	Names   []string `json:"names,omitempty"`
	From    []string `json:"from,omitempty"`
	Error   string   `json:"error,omitempty"`
	HResult *string  `json:"hresult,omitempty"`
	Detail  string   `json:"detail,omitempty"`
	Module  *bool    `json:"module,omitempty"`
	Inputs  []string `json:"inputs,omitempty"`
}

// MarshalJSON writes names also when there are none: nothing in effect is an answer too.
func (a Answer) MarshalJSON() ([]byte, error) {
	type plain Answer
	if a.Error != "" || a.Inputs != nil {
		return json.Marshal(plain(a))
	}
	names := a.Names
	if names == nil {
		names = []string{}
	}
	a.Names = nil
	return json.Marshal(struct {
		plain
		Names []string `json:"names"`
	}{plain(a), names})
}

// Read reads a vectors file.
func Read(in io.Reader) (File, error) {
	data, err := io.ReadAll(io.LimitReader(in, MaxBytes+1))
	if err != nil {
		return File{}, err
	}
	if len(data) > MaxBytes {
		return File{}, fmt.Errorf("composition vectors: more than %d bytes", MaxBytes)
	}
	var f File
	if err := json.Unmarshal(data, &f); err != nil {
		return File{}, fmt.Errorf("composition vectors: %w", err)
	}
	if len(f.Vectors) == 0 {
		return File{}, errors.New(`composition vectors: no "vectors"`)
	}
	return f, nil
}

// Evaluate answers the questions of one vector.
func (f File) Evaluate(v Vector) []Answer {
	var out []Answer
	srv, err := iisconfig.Parse([]byte(v.XML["apphost"]), "applicationHost.config")
	var m *iisconfig.Model
	var site *iisconfig.Site
	if err == nil {
		m = iisconfig.NewModel(srv, memory{f.Dirs, v.XML})
		if site = srv.Site(f.Site); site == nil {
			err = fmt.Errorf("applicationHost.config has no site %q", f.Site)
		}
	}
	for _, a := range v.Asks {
		r := Answer{ID: v.ID, Path: a.Path, Section: a.Section}
		if err != nil {
			r.Error, r.Detail = "config_error", err.Error()
			if bad := iisconfig.AsInvalid(err); bad != nil {
				r.HResult = hresult(bad)
			}
			out = append(out, r)
			continue
		}
		out = append(out, answer(m, site, a, r))
	}
	return out
}

func answer(m *iisconfig.Model, site *iisconfig.Site, a Ask, r Answer) Answer {
	if !known(a.Section) {
		r.Error, r.Detail = "unknown_section", "sections are "+strings.Join(iisconfig.SectionNames(), ", ")
		return r
	}
	p := m.At(site, a.Path)
	s := p.Section(a.Section)
	if s.Err != nil {
		r.Error, r.Detail, r.HResult = "config_error", s.Err.Error(), hresult(s.Err)
		return r
	}
	if a.InputOf != "" {
		r.Inputs = p.Inputs(a.Section, a.InputOf)
		return r
	}
	for _, i := range s.Items {
		r.Names, r.From = append(r.Names, i.Name), append(r.From, i.Source.File)
	}
	if a.Module != nil {
		runs, _ := p.Module()
		r.Module = &runs
	}
	return r
}

func known(section string) bool {
	for _, n := range iisconfig.SectionNames() {
		if n == section {
			return true
		}
	}
	return false
}

func hresult(e *iisconfig.Invalid) *string {
	if e.HResult == iisconfig.HResultUnknown {
		return nil
	}
	s := fmt.Sprintf("0x%08x", e.HResult)
	return &s
}

// memory is the files of one vector.
type memory struct {
	dirs map[string]string
	xml  map[string]string
}

// ConfigFile implements iisconfig.Files.
func (m memory) ConfigFile(dir, file string) ([]byte, string, error) {
	want := m.Canonical(dir + `\` + file)
	for k, text := range m.xml {
		first, rest, ok := strings.Cut(k, "/")
		if !ok {
			continue
		}
		if m.Canonical(m.dirs[first]+`\`+rest) == want {
			return []byte(text), k, nil
		}
	}
	return nil, dir + `\` + file, fs.ErrNotExist
}

// Canonical implements iisconfig.Files.
func (memory) Canonical(dir string) string {
	d := strings.ToLower(strings.ReplaceAll(dir, "/", `\`))
	return strings.TrimRight(strings.ReplaceAll(d, "%systemdrive%", "c:"), `\`)
}

// MaxConfigBytes implements iisconfig.Files.
func (memory) MaxConfigBytes() int { return iisconfig.DefaultMaxBytes }
