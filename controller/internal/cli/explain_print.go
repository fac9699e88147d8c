package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/stopgap-em/stopgap/shared/clirun"
)

// printer writes lines for a terminal: text of configuration files is shown, never executed.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(indent int, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%s%s\n", strings.Repeat(" ", indent), clirun.Printable(fmt.Sprintf(format, args...)))
	}
}

// print writes the report for people.
func (r *explainReport) print(w io.Writer) error {
	p := &printer{w: w}
	if r.Shared != "" {
		p.line(0, "Warning: the server's configuration is shared (%s). The applicationHost.config here may not be the one in use.", r.Shared)
	}
	if r.Place != nil {
		r.Place.print(p)
	}
	if r.Request != nil {
		r.Request.print(p)
	}
	if r.Place == nil && p.err == nil {
		return r.printSummary(p)
	}
	return p.err
}

func (r *explainReport) printSummary(p *printer) error {
	if r.noFrontEnd {
		p.line(0, "No site is known as Exchange's front end: these are all sites.")
	}
	l := clirun.Listing{Header: []string{"SITE", "APPLICATION", "POOL", "GLOBAL", "INBOUND", "OUTBOUND", "REMARK"}}
	for _, a := range r.Summary {
		row := []string{a.Site, a.Path, a.Pool, strconv.Itoa(a.Global), strconv.Itoa(a.Inbound), strconv.Itoa(a.Outbound),
			strings.Join(a.Notes, "; ")}
		if a.Refused != nil {
			row[3], row[4], row[5], row[6] = "-", "-", "-", a.Refused.sentence()
		}
		l.Rows = append(l.Rows, row)
	}
	if p.err != nil {
		return p.err
	}
	return l.Print(p.w, clirun.Table)
}

func (r *explainRefusal) sentence() string {
	where := r.File
	if r.Line > 0 {
		where = fmt.Sprintf("%s:%d", r.File, r.Line)
	}
	if r.Unsure {
		return fmt.Sprintf("can't be judged: %s: %s", where, r.Reason)
	}
	code := ""
	if r.HResult != "" {
		code = " with " + r.HResult
	}
	return fmt.Sprintf("IIS refuses it%s: %s: %s", code, where, r.Reason)
}

func (x *explainedPlace) print(p *printer) {
	p.line(0, "Site %q, path %s, application %s, pool %s", x.Site, x.Path, x.Application, x.Pool)
	p.line(0, "")
	if x.Ignores {
		p.line(0, "%s. Rules in them have no effect here.", capital(ignoresNote(x.Pool)))
	}
	switch {
	case x.Refused != nil:
		p.line(0, "No rule is in effect. %s.", capital(x.Refused.sentence()))
		if !x.Refused.Unsure {
			p.line(0, "Every request to this path and below it gets status 500.")
		}
	case !x.Module:
		p.line(0, "No rule runs: URL Rewrite is switched off here: %s.", x.ModuleWhy)
		if x.GlobalRun {
			p.line(0, "Global rules probably run all the same.")
		}
	case len(x.Broken) > 0:
		p.line(0, "A pattern does not compile. IIS answers status 500 to every request here, as long as the rule is enabled:")
		for _, b := range x.Broken {
			p.line(2, "%s", b)
		}
	default:
		p.line(0, "URL Rewrite runs here.")
	}
	p.line(0, "")
	p.line(0, "Files, outermost first:")
	for _, l := range x.Levels {
		file := l.File
		if file == "" {
			file = l.Dir
		}
		if l.State == stateRead {
			p.line(2, "%s  %s", l.Path, file)
		} else {
			p.line(2, "%s  %s  (web.config: %s)", l.Path, file, l.State)
		}
	}
	for _, s := range x.Sections {
		s.print(p)
	}
	if len(x.Notes) > 0 {
		p.line(0, "")
		p.line(0, "Not known to this version, and stepped over:")
		for _, n := range x.Notes {
			p.line(2, "%s", n)
		}
	}
}

// titles are the headings of sections, and what is said when a section has nothing in effect; "": it is left out then.
var titles = map[string][2]string{
	"globalRules":            {"Global rules, in order", ""},
	"rules":                  {"Inbound rules, in order", "No inbound rule is in effect."},
	"outboundRules":          {"Outbound rules, in order", ""},
	"preConditions":          {"Preconditions", ""},
	"customTags":             {"Custom tags", ""},
	"rewriteMaps":            {"Rewrite maps", ""},
	"providers":              {"Providers", ""},
	"allowedServerVariables": {"Server variables that rules may set", ""},
}

func (s explainedSection) print(p *printer) {
	title := titles[s.Name]
	if s.Error != nil {
		return // the place says it
	}
	if len(s.Items) > 0 {
		p.line(0, "")
		p.line(0, "%s:", title[0])
		for i, x := range s.Items {
			x.print(p, i+1)
		}
	} else if title[1] != "" {
		p.line(0, "")
		p.line(0, "%s", title[1])
	}
	if len(s.Removed)+len(s.Kept) > 0 {
		p.line(0, "")
		p.line(0, "Not in effect in <%s>:", s.Name)
	}
	for _, x := range s.Removed {
		p.line(2, "%q of %s:%d is taken away by %s", x.Name, x.File, x.Line, x.By)
	}
	for _, x := range s.Kept {
		p.line(2, "%q of %s:%d is not inherited: its <location> has inheritInChildApplications=\"false\"", x.Name, x.File, x.Line)
	}
}

func (x explainedItem) print(p *printer, n int) {
	state := ""
	if x.Disabled {
		state = "  (disabled: it does not run)"
	}
	p.line(2, "%d. %s%s", n, x.Name, state)
	for i, c := range x.If {
		word := "and"
		if i == 0 {
			word = "if"
		}
		p.line(5, "%-5s%s", word, c)
	}
	if x.Then != "" && len(x.If) > 0 {
		p.line(5, "then %s", x.Then)
	} else if x.Then != "" {
		p.line(5, "%s", x.Then)
	}
	p.line(5, "from %s:%d, level %s", x.File, x.Line, x.Level)
}

func (x *explainedOutcomes) print(p *printer) {
	p.line(0, "")
	p.line(0, "Request %s, served by %s", x.Request, x.Application)
	if len(x.Outcomes) > 1 {
		p.line(2, "There are %d possible results. Stopgap counts the weakest.", len(x.Outcomes))
	}
	for _, o := range x.Outcomes {
		indent := 2
		if len(o.Readings) > 0 {
			p.line(2, "If %s:", strings.Join(o.Readings, ", and "))
			indent = 4
		}
		if o.Decides != "" {
			p.line(indent, "decided by rule %s", o.Decides)
		}
		p.line(indent, "the client gets: %s", o.Client)
		for _, s := range o.Rules {
			p.line(indent+2, "%-14s  %s", s.State, s.Name)
		}
		if len(o.Outbound) > 0 {
			p.line(indent, "outbound, for an answer of type text/html:")
			for _, s := range o.Outbound {
				p.line(indent+2, "%s", s)
			}
		}
	}
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
