package iisconfig

// Level is one step of a place's URL path, from the site root to the path itself.
type Level struct {
	// Path is the URL path of the level.
	Path string
	// Dir is the physical directory, as written in applicationHost.config; "" when none is known.
	Dir string
	// App: an application begins here.
	App bool
	// Reads: IIS reads the directory's web.config. It does not below allowSubDirConfig="false", and nowhere when the pool
	// ignores web.config files.
	Reads bool
	// File is that web.config; nil when there is none or when it is not read.
	File *File
}

// Levels lists the steps of the place's URL path, outermost first, with the web.config of each.
func (p *Place) Levels() []Level {
	var out []Level
	for _, l := range p.levels[1:] {
		x := Level{Path: l.path, Dir: l.dir, App: l.app, Reads: l.own && !p.ignores}
		if x.Reads {
			x.File = p.m.File(l.dir, WebConfig)
		}
		out = append(out, x)
	}
	return out
}

// DirOf returns the physical directory of a URL path of a site, as written in applicationHost.config; "" when none is known.
func (m *Model) DirOf(site *Site, path string) string {
	l := m.levels(site, cleanPath(collapse(path)))
	return l[len(l)-1].dir
}
