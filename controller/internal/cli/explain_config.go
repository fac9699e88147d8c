package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/labdir"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

const applicationHost = "applicationHost.config"

// explainedConfig is the configuration that --config names.
type explainedConfig struct {
	srv   *iisconfig.Server
	model *iisconfig.Model
	files *givenFiles
	// main is the name of the applicationHost.config.
	main string
	// shared is why the configuration may not be the one in use: it is shared from elsewhere.
	shared string
}

// givenFiles are a directory's files, or none, with single web.config files in front of them.
type givenFiles struct {
	root  labdir.Dir        // "" when only single files were given
	given map[string]string // canonical physical directory -> file that replaces its web.config
}

var _ iisconfig.Files = (*givenFiles)(nil)

// ConfigFile implements iisconfig.Files. A file that configSource names is looked for beside the web.config that was given.
func (g *givenFiles) ConfigFile(dir, file string) ([]byte, string, error) {
	windows := strings.TrimRight(dir, `\/`) + `\` + file
	if name, ok := g.given[g.Canonical(dir)]; ok {
		if file != iisconfig.WebConfig {
			name = filepath.Join(filepath.Dir(name), filepath.FromSlash(strings.ReplaceAll(file, `\`, "/")))
		}
		data, err := readRegular(name)
		return data, name, err
	}
	if g.root == "" {
		return nil, windows, fs.ErrNotExist
	}
	data, name, err := g.root.ConfigFile(dir, file)
	if name == "" { // not a path of a drive: a UNC path, or a variable that this version does not know
		name = windows
	}
	return data, name, err
}

// Canonical implements iisconfig.Files.
func (g *givenFiles) Canonical(dir string) string {
	if g.root != "" {
		return g.root.Canonical(dir)
	}
	d := strings.ToLower(strings.TrimRight(strings.ReplaceAll(dir, "/", `\`), `\`))
	for _, v := range [][2]string{{"%systemdrive%", "c:"}, {"%windir%", `c:\windows`}, {"%systemroot%", `c:\windows`}} {
		d = strings.Replace(d, v[0], v[1], 1)
	}
	return d
}

// MaxConfigBytes implements iisconfig.Files.
func (*givenFiles) MaxConfigBytes() int { return iisconfig.DefaultMaxBytes }

// kind says what a physical path is: "" for nothing.
func (g *givenFiles) kind(path string) string {
	p, err := g.root.Path(path)
	if err != nil {
		return ""
	}
	switch st, err := os.Stat(p); {
	case err != nil:
		return ""
	case st.IsDir():
		return "directory"
	}
	return "file"
}

// openConfig reads what --config names. Web.config files are read later, when a path needs them.
func openConfig(args []string, site string) (*explainedConfig, error) {
	var main string
	var single [][2]string
	for _, a := range args {
		url, file, isPair := strings.Cut(a, "=")
		if _, err := os.Lstat(a); err != nil && isPair && strings.Contains(url, "/") {
			single = append(single, [2]string{url, file})
			continue
		}
		if main != "" {
			return nil, fmt.Errorf("--config %s and --config %s: only one directory or applicationHost.config can be given", main, a)
		}
		main = a
	}
	if main == "" {
		return nil, errors.New("--config: no directory and no applicationHost.config is given; web.config files alone are not enough")
	}
	cfg := &explainedConfig{files: &givenFiles{given: map[string]string{}}}
	data, name, err := cfg.applicationHost(main)
	if err != nil {
		return nil, err
	}
	if cfg.srv, err = iisconfig.Parse(data, name); err != nil {
		return nil, err
	}
	cfg.main = name
	cfg.model = iisconfig.NewModel(cfg.srv, cfg.files)
	for _, s := range single {
		if err := cfg.give(site, s[0], s[1]); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// applicationHost finds and reads applicationHost.config, and redirection.config where a directory has one.
func (c *explainedConfig) applicationHost(main string) ([]byte, string, error) {
	st, err := os.Stat(main)
	if err != nil {
		return nil, "", err
	}
	if !st.IsDir() {
		data, err := readRegular(main)
		return data, main, err
	}
	c.files.root = labdir.Dir(main)
	data, name, err := c.files.root.ReadFile(labdir.ApplicationHost)
	redirection, _ := c.files.root.Path(labdir.Redirection)
	if errors.Is(err, fs.ErrNotExist) {
		inside := name
		if name, err = child(main, applicationHost); err == nil {
			data, err = readRegular(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("%s: there is no %s in it, and no %s: this is no copy of a server", main, applicationHost, inside)
		}
		redirection, _ = child(main, "redirection.config")
	}
	if err != nil {
		return nil, "", err
	}
	if raw, err := readRegular(redirection); err == nil {
		if c.shared, err = iisconfig.SharedFrom(raw, redirection); err != nil {
			c.shared = err.Error()
		}
	}
	return data, name, nil
}

// give puts a single web.config in the place of a URL path's.
func (c *explainedConfig) give(siteName, url, file string) error {
	name, path, _ := strings.Cut(url, "/")
	if name == "" {
		name = siteName
	}
	site, err := c.site(name)
	if err != nil {
		return fmt.Errorf("--config %s=%s: %w", url, file, err)
	}
	if _, err := os.Stat(file); err != nil {
		return fmt.Errorf("--config %s=...: %w", url, err)
	}
	dir := c.model.DirOf(site, "/"+path)
	if dir == "" {
		return fmt.Errorf("--config %s=%s: site %q has no directory for that path", url, file, site.Name)
	}
	key := c.files.Canonical(dir)
	if old, ok := c.files.given[key]; ok && old != file {
		return fmt.Errorf("--config %s=%s: %s is already given for the same directory, %s", url, file, old, dir)
	}
	c.files.given[key] = file
	return nil
}

// site finds a site by name; without one, the site of Exchange's front end, or the only site.
func (c *explainedConfig) site(name string) (*iisconfig.Site, error) {
	names := make([]string, 0, len(c.srv.Sites))
	for _, s := range c.srv.Sites {
		names = append(names, fmt.Sprintf("%q", s.Name))
	}
	if name != "" {
		if s := c.srv.Site(name); s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("there is no site %q; the sites are %s", name, strings.Join(names, ", "))
	}
	if front := c.srv.FrontEndSites(); len(front) > 0 {
		return front[0], nil
	}
	if len(c.srv.Sites) == 1 {
		return c.srv.Sites[0], nil
	}
	return nil, fmt.Errorf("no site is known as Exchange's front end: choose one with --site; the sites are %s", strings.Join(names, ", "))
}

// child finds a file of a directory without regard to case.
func child(dir, name string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.EqualFold(e.Name(), name) {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", fmt.Errorf("%s: %w", filepath.Join(dir, name), fs.ErrNotExist)
}

// readRegular reads a configuration file, bounded.
func readRegular(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	if st.Size() > xmldoc.MaxBytes {
		return nil, fmt.Errorf("%s: %d bytes, limit %d: %w", name, st.Size(), xmldoc.MaxBytes, iisconfig.ErrTooLarge)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, xmldoc.MaxBytes+1))
}
