package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Plain files beside the journal: the values from before each change, for an agent whose journal is damaged and for a
// person whose agent will not start.
const (
	// PlainFile holds the changes in force as JSON, with the names of the files in PlainDir.
	PlainFile = "originals.json"
	// PlainDir holds each changed web.config as it was without us.
	PlainDir = "originals"
	// UndoFile tells a person how to undo everything by hand.
	UndoFile = "UNDO.txt"
)

type plain struct {
	Written   time.Time         `json:"written"`
	Changes   []Change          `json:"changes"`
	Originals map[string]string `json:"originals"` // directory -> file in PlainDir
	Blocks    map[string]Block  `json:"blocks,omitempty"`
	Frozen    *time.Time        `json:"frozen,omitempty"`
}

// writePlain brings the plain files up to what the journal holds plus what is about to be written to it.
func (j *Journal) writePlain(plus []Change, plusOriginals map[string][]byte) error {
	p := plain{Written: time.Now().UTC(), Originals: map[string]string{}}
	changes, err := j.Changes()
	if err != nil {
		return err
	}
	if p.Blocks, err = j.Blocks(); err != nil {
		return err
	}
	if frozen, since, err := j.Frozen(); err != nil {
		return err
	} else if frozen {
		p.Frozen = &since
	}
	byRef := map[string]int{}
	for _, c := range append(changes, plus...) {
		if i, ok := byRef[c.Ref.String()]; ok {
			p.Changes[i] = c
			continue
		}
		byRef[c.Ref.String()] = len(p.Changes)
		p.Changes = append(p.Changes, c)
	}
	originals := map[string][]byte{}
	if err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bOriginals).ForEach(func(k, v []byte) error {
			originals[string(k)] = append([]byte(nil), v...)
			return nil
		})
	}); err != nil {
		return err
	}
	for d, data := range plusOriginals {
		originals[d] = data
	}
	dir := filepath.Join(j.dir, PlainDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	wanted := map[string]bool{}
	for d, data := range originals {
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:8]) + "-web.config"
		p.Originals[d], wanted[name] = name, true
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			continue
		}
		if err := files.Replace(filepath.Join(dir, name), data, files.Private); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(filepath.Join(j.dir, PlainFile), append(data, '\n'), files.Private); err != nil {
		return err
	}
	undo := "stopgap-agent --state \"" + j.dir + "\" panic-revert --host HOST"
	if err := j.get(bSettings, "undo", &undo); err != nil {
		return err
	}
	if err := files.Replace(filepath.Join(j.dir, UndoFile), []byte(undoText(j.dir, undo, p)), files.Private); err != nil {
		return err
	}
	// Copies nothing refers to any more.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, e := range entries {
		if !wanted[e.Name()] && strings.HasSuffix(e.Name(), "-web.config") {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// maxPlain bounds each plain file when it is read back.
const maxPlain = 16 << 20

// importPlain fills a new journal from the plain files of a lost one.
func (j *Journal) importPlain() error {
	data, err := files.Read(filepath.Join(j.dir, PlainFile), maxPlain)
	if errors.Is(err, fs.ErrNotExist) {
		return j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bMeta).Put(kBegun, []byte{1}) })
	}
	if err != nil {
		return err
	}
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("%s: %w", PlainFile, err)
	}
	originals := map[string][]byte{}
	for dir, name := range p.Originals {
		b, err := files.Read(filepath.Join(j.dir, PlainDir, filepath.Base(name)), maxPlain)
		if err != nil {
			return err
		}
		originals[dir] = b
	}
	for _, c := range p.Changes {
		if _, err := c.Action(); err != nil {
			return err
		}
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		for id, b := range p.Blocks {
			raw, err := json.Marshal(b)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bBlocks).Put([]byte(id), raw); err != nil {
				return err
			}
		}
		if p.Frozen != nil {
			raw, err := json.Marshal(*p.Frozen)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bSettings).Put([]byte("frozen"), raw); err != nil {
				return err
			}
		}
		for d, b := range originals {
			if err := tx.Bucket(bOriginals).Put([]byte(d), b); err != nil {
				return err
			}
		}
		for _, c := range p.Changes {
			if c.Phase == Applied {
				c.Phase = Intended // until it is read back
			}
			raw, err := json.Marshal(c)
			if err != nil {
				return err
			}
			if err := tx.Bucket(bChanges).Put(changeKey(c.Ref), raw); err != nil {
				return err
			}
		}
		return tx.Bucket(bMeta).Put(kBegun, []byte{1})
	})
	if err == nil && len(p.Changes) > 0 {
		j.note("%d changes were taken over from %s", len(p.Changes), PlainFile)
	}
	return err
}

// undoText tells a person how to undo each change without the agent.
func undoText(dir, undo string, p plain) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Stopgap: what it changed on this server, and how to undo it by hand.\r\nWritten %s.\r\n\r\n", p.Written.Format(time.RFC3339))
	if len(p.Changes) == 0 {
		b.WriteString("Nothing is changed now.\r\n")
		return b.String()
	}
	b.WriteString("With the agent's program still there, one command undoes all of it:\r\n\r\n    " + undo + "\r\n\r\n" +
		"Otherwise paste the commands below into an elevated PowerShell, the last change first.\r\n" +
		"A running agent puts back what is undone by hand: stop the service StopgapAgent first.\r\n")
	for i := len(p.Changes) - 1; i >= 0; i-- {
		c := p.Changes[i]
		fmt.Fprintf(&b, "\r\n== %s (%s since %s, Exchange build %s)\r\n", c.Ref, c.Phase, c.Since.Format(time.RFC3339), c.Build)
		a, err := c.Action()
		if err != nil {
			fmt.Fprintf(&b, "   %v\r\n", err)
			continue
		}
		undoAction(&b, dir, p, c, a)
	}
	return b.String()
}

func preConditions(fragment string) []string {
	doc, err := xmldoc.ParseFragment([]byte(fragment))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range doc.Root.Child("preConditions").All("preCondition") {
		out = append(out, e.Attr("name"))
	}
	return out
}

// madeName is the name in PlainDir of a file that was not there before: that of no bytes.
var madeName = func() string {
	sum := sha256.Sum256(nil)
	return hex.EncodeToString(sum[:8]) + "-web.config"
}()

// made reports whether a configuration file was not there before ours.
func (p plain) made(ref string) bool { return p.Originals[string(dirKey(ref))] == madeName }

func undoAction(b *strings.Builder, dir string, p plain, c Change, a *stopgapv1.Action) {
	switch k := a.GetKind().(type) {
	case *stopgapv1.Action_UrlRewrite:
		for _, d := range c.Prior.Files {
			in, name := host.SplitRef(d)
			file := strings.TrimRight(in, `\/`) + `\` + name
			fmt.Fprintf(b, "   file %s\r\n", file)
			if p.made(d) {
				fmt.Fprintf(b, "   the file was not there before: if nobody else wrote to it since, delete it\r\n"+
					"     Remove-Item -LiteralPath ([Environment]::ExpandEnvironmentVariables('%s'))\r\n", file)
			}
			for _, part := range []struct{ section, xml string }{{"rules", k.UrlRewrite.GetInbound()}, {"outboundRules", k.UrlRewrite.GetOutbound()}} {
				if part.xml == "" {
					continue
				}
				_, names, err := urlrewrite.ParseFragment([]byte(part.xml), part.section == "outboundRules")
				if err != nil {
					continue
				}
				for _, n := range names {
					fmt.Fprintf(b, "   delete the <rule name=%q> in <%s> with an editor\r\n", n, part.section)
				}
				for _, n := range preConditions(part.xml) {
					fmt.Fprintf(b, "   then delete the <preCondition name=%q>, and sections that are empty now\r\n", n)
				}
			}
			if name, ok := p.Originals[string(dirKey(d))]; ok && !p.made(d) {
				fmt.Fprintf(b, "   or, if nobody else changed the file since:\r\n     Copy-Item -LiteralPath '%s' -Destination ([Environment]::ExpandEnvironmentVariables('%s'))\r\n",
					filepath.Join(dir, PlainDir, name), file)
			}
		}
	case *stopgapv1.Action_Service:
		if s := c.Prior.Service; s != nil && s.Present {
			start := map[string]string{"AUTOMATIC": "auto", "MANUAL": "demand", "DISABLED": "disabled"}[s.StartType]
			if s.Delayed {
				start = "delayed-auto"
			}
			fmt.Fprintf(b, "   sc.exe config %s start= %s\r\n", k.Service.GetName(), start)
			if s.State == "RUNNING" {
				fmt.Fprintf(b, "   sc.exe start %s\r\n", k.Service.GetName())
				for i := len(c.Prior.Dependents) - 1; i >= 0; i-- {
					fmt.Fprintf(b, "   sc.exe start %s\r\n", c.Prior.Dependents[i])
				}
			}
		}
	case *stopgapv1.Action_AppPool:
		if s := c.Prior.Pool; s != nil && s.Present {
			auto := "true"
			if s.AutoStart != nil && !*s.AutoStart {
				auto = "false"
			}
			fmt.Fprintf(b, "   & $env:windir\\system32\\inetsrv\\appcmd.exe set apppool /apppool.name:\"%s\" /autoStart:%s\r\n", k.AppPool.GetName(), auto)
			if s.State == "STARTED" {
				fmt.Fprintf(b, "   & $env:windir\\system32\\inetsrv\\appcmd.exe start apppool /apppool.name:\"%s\"\r\n", k.AppPool.GetName())
			}
		}
	}
}
