package cli

import (
	"fmt"
	"strings"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// explainReport is what explain prints; its JSON form is documented in docs/effective-configuration.md.
type explainReport struct {
	// Shared is set when the server shares its configuration from elsewhere.
	Shared  string             `json:"shared_configuration,omitempty"`
	Summary []explainedApp     `json:"applications,omitempty"`
	Place   *explainedPlace    `json:"place,omitempty"`
	Request *explainedOutcomes `json:"request,omitempty"`
	// noFrontEnd: no site has an application of Exchange's front end.
	noFrontEnd bool
}

// explainedApp is one line of the summary.
type explainedApp struct {
	Site     string          `json:"site"`
	Path     string          `json:"path"`
	Pool     string          `json:"pool"`
	Global   int             `json:"global"`
	Inbound  int             `json:"inbound"`
	Outbound int             `json:"outbound"`
	Refused  *explainRefusal `json:"refused,omitempty"`
	Notes    []string        `json:"notes,omitempty"`
}

// explainRefusal is why IIS refuses a place.
type explainRefusal struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	HResult string `json:"hresult,omitempty"`
	Reason  string `json:"reason"`
	// Unsure: this version can't read the file, and IIS perhaps can.
	Unsure bool `json:"unsure,omitempty"`
}

// explainedPlace is the composed configuration of one path.
type explainedPlace struct {
	Site        string          `json:"site"`
	Path        string          `json:"path"`
	Application string          `json:"application"`
	Pool        string          `json:"pool"`
	Refused     *explainRefusal `json:"refused,omitempty"`
	Module      bool            `json:"module"`
	ModuleWhy   string          `json:"module_why,omitempty"`
	// GlobalRun: the application's modules lack URL Rewrite, and the server loads it for its global rules.
	GlobalRun bool               `json:"global_rules_run,omitempty"`
	Ignores   bool               `json:"ignores_web_config,omitempty"`
	Levels    []explainedLevel   `json:"levels"`
	Sections  []explainedSection `json:"sections"`
	// Broken are patterns that do not compile: IIS answers 500 to every request.
	Broken []string `json:"broken_patterns,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

// explainedLevel is the server, or one step of the path, and its file.
type explainedLevel struct {
	Path  string `json:"path"`
	Dir   string `json:"dir,omitempty"`
	File  string `json:"file,omitempty"`
	State string `json:"state"`
}

// explainedSection is one section at the path.
type explainedSection struct {
	Name    string          `json:"name"`
	Error   *explainRefusal `json:"error,omitempty"`
	Items   []explainedItem `json:"items"`
	Removed []explainedItem `json:"removed,omitempty"`
	Kept    []explainedItem `json:"not_inherited,omitempty"`
}

// explainedItem is one element of a section.
type explainedItem struct {
	Name     string   `json:"name"`
	Disabled bool     `json:"disabled,omitempty"`
	If       []string `json:"if,omitempty"`
	Then     string   `json:"then,omitempty"`
	File     string   `json:"file"`
	Line     int      `json:"line"`
	// Level is the URL path of the level that it comes from, "server" for applicationHost.config outside a location of a site.
	Level string `json:"level"`
	// By is the <clear/> or <remove> that takes it away.
	By string `json:"by,omitempty"`
}

func (c *explainedConfig) report(f explainFlags, req *explainedRequest) (*explainReport, error) {
	r := &explainReport{Shared: c.shared}
	if f.path == "" && req == nil {
		return r, c.summary(r, f.site)
	}
	site, err := c.site(f.site)
	if err != nil {
		return nil, err
	}
	path := f.path
	if path == "" {
		path = req.path
	}
	r.Place = c.place(c.model.At(site, path))
	if req != nil {
		r.Request = c.outcomes(site, req)
	}
	return r, nil
}

// summary fills in one line for each application.
func (c *explainedConfig) summary(r *explainReport, name string) error {
	sites := c.srv.FrontEndSites()
	if name != "" {
		site, err := c.site(name)
		if err != nil {
			return err
		}
		sites = []*iisconfig.Site{site}
	}
	if len(sites) == 0 {
		sites, r.noFrontEnd = c.srv.Sites, true
	}
	for _, s := range sites {
		for _, a := range s.Apps {
			r.Summary = append(r.Summary, c.app(a))
		}
	}
	return nil
}

func (c *explainedConfig) app(a *iisconfig.App) explainedApp {
	p := c.model.At(a.Site, a.Path)
	x := explainedApp{Site: a.Site.Name, Path: a.Path, Pool: a.Pool, Notes: c.absences(p)}
	if bad := p.Invalid(); bad != nil {
		x.Refused = refusal(bad)
		return x
	}
	runs, why := p.Module()
	if !runs {
		x.Notes = append([]string{"no rule runs: " + why}, x.Notes...)
	} else {
		x.Global, x.Inbound, x.Outbound = enabledRules(p, "globalRules"), enabledRules(p, "rules"), enabledRules(p, "outboundRules")
	}
	if broken := brokenPatterns(p); runs && len(broken) > 0 {
		x.Notes = append([]string{"every request gets status 500: " + broken[0]}, x.Notes...)
	}
	if p.IgnoresWebConfig() {
		x.Notes = append(x.Notes, ignoresNote(a.Pool))
	}
	return x
}

func ignoresNote(pool string) string {
	return fmt.Sprintf("application pool %s ignores web.config files (enableConfigurationOverride=\"false\")", pool)
}

// absences names what is missing in a copy of an application's own files.
func (c *explainedConfig) absences(p *iisconfig.Place) []string {
	var out []string
	for _, l := range p.Levels() {
		switch s := c.state(l); {
		case !l.App || l.Path != p.Path:
		case s == stateNoDir:
			out = append(out, fmt.Sprintf("directory %s is not in %s: its web.config is taken to be absent", l.Dir, c.files.root))
		case s == stateNotGiven:
			out = append(out, "its web.config is not given: taken to be absent")
		}
	}
	return out
}

func enabledRules(p *iisconfig.Place, section string) int {
	n := 0
	for _, i := range p.Section(section).Items {
		if !disabled(i) {
			n++
		}
	}
	return n
}

func disabled(i iisconfig.Item) bool { return strings.EqualFold(i.Element.Attr("enabled"), "false") }

func refusal(bad *iisconfig.Invalid) *explainRefusal {
	r := &explainRefusal{File: bad.File, Line: bad.Line, Reason: bad.Msg, Unsure: bad.Unsure}
	if bad.HResult != iisconfig.HResultUnknown {
		r.HResult = fmt.Sprintf("0x%08x", bad.HResult)
	}
	return r
}

// States of a level's web.config.
const (
	stateRead     = "read"
	stateNone     = "there is none"
	stateNotGiven = "not given: taken to be absent"
	stateNoDir    = "the directory is not there: taken to be absent"
	stateNotRead  = "IIS does not read it (allowSubDirConfig=\"false\")"
	stateIgnored  = "the pool ignores it"
	stateFile     = "this is a file; URL Rewrite has no rules for a single file"
	stateNoPath   = "no directory of that name can exist"
)

func (c *explainedConfig) state(l iisconfig.Level) string {
	switch {
	case l.File != nil:
		return stateRead
	case l.Dir == "":
		return stateNoPath
	case !l.Reads:
		return stateNotRead
	case c.files.root == "":
		return stateNotGiven
	}
	switch c.files.kind(l.Dir) {
	case "":
		return stateNoDir
	case "file":
		return stateFile
	}
	return stateNone
}

// explainedSections are the sections that are shown, in order.
var explainedSections = []string{"globalRules", "rules", "outboundRules", "preConditions", "customTags", "rewriteMaps", "providers",
	"allowedServerVariables"}

func (c *explainedConfig) place(p *iisconfig.Place) *explainedPlace {
	x := &explainedPlace{Site: p.Site.Name, Path: p.Path, Application: p.App.Path, Pool: p.App.Pool, Ignores: p.IgnoresWebConfig()}
	x.Module, x.ModuleWhy = p.Module()
	x.GlobalRun = onlyGlobal(p)
	x.Levels = append(x.Levels, explainedLevel{Path: "server", File: c.main, State: stateRead})
	for _, l := range p.Levels() {
		e := explainedLevel{Path: l.Path, Dir: l.Dir, State: c.state(l)}
		if x.Ignores && l.Dir != "" {
			e.State = stateIgnored
		}
		if l.File != nil {
			e.File = l.File.Name()
			if bad := l.File.Err(); bad != nil {
				e.State = "refused: " + bad.Msg
			}
		}
		x.Levels = append(x.Levels, e)
	}
	for _, n := range explainedSections {
		x.Sections = append(x.Sections, section(p, n))
	}
	if bad := p.Invalid(); bad != nil {
		x.Refused = refusal(bad)
		return x
	}
	x.Broken = brokenPatterns(p)
	_, x.Notes, _ = p.Rules()
	return x
}

// onlyGlobal reports whether global rules run although the application's modules lack URL Rewrite: they need globalModules alone,
// which is inferred.
func onlyGlobal(p *iisconfig.Place) bool {
	runs, _ := p.Module()
	loaded, _ := p.Loaded()
	return !runs && loaded && enabledRules(p, "globalRules") > 0
}

func section(p *iisconfig.Place, name string) explainedSection {
	s := p.Section(name)
	x := explainedSection{Name: name, Items: []explainedItem{}}
	if s.Err != nil {
		x.Error = refusal(s.Err)
		return x
	}
	for _, i := range s.Items {
		x.Items = append(x.Items, item(i, name))
	}
	for _, r := range s.Removed {
		i := item(r.Item, name)
		what := "<remove>"
		if r.Clear {
			what = "<clear/>"
		}
		i.By = fmt.Sprintf("%s at %s", what, r.By)
		x.Removed = append(x.Removed, i)
	}
	for _, i := range s.NotInherited {
		x.Kept = append(x.Kept, item(i, name))
	}
	return x
}

func item(i iisconfig.Item, section string) explainedItem {
	x := explainedItem{Name: i.Name, File: i.Source.File, Line: i.Source.Line, Level: i.Level}
	if x.Level == "" {
		x.Level = "server"
	}
	switch section {
	case "globalRules", "rules", "outboundRules":
		x.Disabled = disabled(i)
		x.If, x.Then = describeRule(i.Element, section == "outboundRules")
	case "preConditions":
		x.If = describeConditions(i.Element, i.Element.All("add"))
	case "rewriteMaps":
		x.Then = fmt.Sprintf("%d entries", len(i.Element.All("add")))
	}
	return x
}
