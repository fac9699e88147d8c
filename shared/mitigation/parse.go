// Package mitigation reads mitigation documents and the fixed-builds table, says what is wrong with them by line and
// column, and holds the catalogue of ready documents. Author, controller and agent read documents with this one package,
// so that what lint accepts the agent accepts.
package mitigation

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"buf.build/go/protovalidate"
	"buf.build/go/protoyaml"
	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Bounds on a document.
const (
	// MaxBytes bounds one document. The largest of the catalogue has 3 KiB.
	MaxBytes = 256 << 10
	maxDepth = 32
	maxNodes = 20_000
	// maxProblems bounds what one file can make us print.
	maxProblems = 20
)

// Problem is one thing wrong with a file.
type Problem struct {
	File      string
	Line, Col int // from 1; 0 when the problem has no place
	Msg       string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Msg)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.Msg)
}

// Problems is why a file is refused.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Document is one mitigation document: what it says, and the exact bytes that say it.
type Document struct {
	*stopgapv1.Mitigation
	// Content is the bytes its author wrote.
	Content []byte
	// SHA256 of Content.
	SHA256 [sha256.Size]byte
}

// Ref is "M1@2".
func (d *Document) Ref() string { return Ref(d.GetId(), d.GetRevision()) }

// Ref writes a revision of a mitigation.
func Ref(id string, revision uint32) string { return fmt.Sprintf("%s@%d", id, revision) }

// ParseRef reads "M1@2".
func ParseRef(s string) (id string, revision uint32, err error) {
	id, rev, ok := strings.Cut(s, "@")
	n, perr := strconv.ParseUint(rev, 10, 32)
	if !ok || id == "" || perr != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not ID@REVISION, for example M1@2", s)
	}
	return id, uint32(n), nil
}

// RemoveWhen gives the effective rule: unspecified means by the kind of its actions.
func RemoveWhen(m *stopgapv1.Mitigation) stopgapv1.RemoveWhen {
	if w := m.GetRemoveWhen(); w != stopgapv1.RemoveWhen_REMOVE_WHEN_UNSPECIFIED {
		return w
	}
	for _, a := range m.GetActions() {
		if a.GetUrlRewrite() != nil {
			return stopgapv1.RemoveWhen_REMOVE_WHEN_ORGANISATION_FIXED
		}
	}
	return stopgapv1.RemoveWhen_REMOVE_WHEN_SERVER_FIXED
}

// FixedBuilds is a fixed-builds table: what it says, and the bytes that say it.
type FixedBuilds struct {
	*stopgapv1.FixedBuilds
	Table   *exchange.Table
	Content []byte
}

// ErrNewer marks a document with a field or value this version does not know: it may be fine for a newer one.
var ErrNewer = errors.New("needs a newer version of Stopgap")

// validator compiles the rules of the .proto once; it is safe for concurrent use.
var validator = sync.OnceValues(func() (protovalidate.Validator, error) {
	return protovalidate.New(protovalidate.WithMessages(&stopgapv1.Mitigation{}, &stopgapv1.FixedBuilds{}, &stopgapv1.PolicyTable{}))
})

type validate struct{ protovalidate.Validator }

func (v validate) Validate(m proto.Message) error { return v.Validator.Validate(m) }

// IsFixedBuilds says whether a file is a fixed-builds table rather than a mitigation: it has a top-level key `fixes`.
func IsFixedBuilds(data []byte) bool {
	return bytes.HasPrefix(data, []byte("fixes:")) || bytes.Contains(data[:min(len(data), MaxBytes)], []byte("\nfixes:"))
}

// Parse reads a mitigation document and checks everything that can be checked without a server. The error is Problems.
func Parse(name string, data []byte) (*Document, error) {
	d := &Document{Mitigation: &stopgapv1.Mitigation{}, Content: data, SHA256: sha256.Sum256(data)}
	root, err := load(name, data, d.Mitigation)
	if err != nil {
		return nil, err
	}
	c := &checker{name: name, data: data, root: root}
	c.ranges(d.Mitigation)
	c.actions(d.Mitigation)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return d, nil
}

// ParseFixedBuilds reads a fixed-builds table. The error is Problems.
func ParseFixedBuilds(name string, data []byte) (*FixedBuilds, error) {
	f := &FixedBuilds{FixedBuilds: &stopgapv1.FixedBuilds{}, Content: data}
	if _, err := load(name, data, f.FixedBuilds); err != nil {
		return nil, err
	}
	t, err := exchange.NewTable(f.FixedBuilds)
	if err != nil {
		return nil, Problems{{File: name, Msg: err.Error()}}
	}
	f.Table = t
	return f, nil
}

// load checks the YAML itself, then reads it into the message and checks the rules of the .proto.
func load(name string, data []byte, into proto.Message) (*yaml.Node, error) {
	if len(data) > MaxBytes {
		return nil, Problems{{name, 1, 1, fmt.Sprintf("more than %d bytes; that is the limit", MaxBytes)}}
	}
	if bytes.IndexByte(data, 0) >= 0 {
		line, col := xmldoc.LineCol(data, bytes.IndexByte(data, 0))
		return nil, Problems{{name, line, col, "a NUL byte; this is not a text file"}}
	}
	if at := oddBreak(data); at >= 0 {
		line, col := xmldoc.LineCol(data, at)
		return nil, Problems{{name, line, col, "a line break that is neither LF nor CRLF; editors and YAML readers disagree on it"}}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, Problems{{name, 1, 1, "the file is empty"}}
		}
		return nil, yamlProblems(name, err)
	}
	w := &walker{name: name}
	w.walk(&root, 0)
	if len(w.problems) > 0 {
		return nil, w.problems
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		line := max(second.Line, 1)
		if err != nil {
			return nil, yamlProblems(name, err)
		}
		return nil, Problems{{name, line, 1, "a second YAML document; one file holds one document"}}
	}
	v, err := validator()
	if err != nil {
		return nil, fmt.Errorf("mitigation: the schema's own rules don't compile: %w", err)
	}
	if err := unmarshal(name, data, v, into); err != nil {
		return nil, protoProblems(name, err)
	}
	return &root, nil
}

// unmarshal keeps a panic of the reader inside: a document that trips it is one that can't be read, and must not take down
// an agent that holds it in its policy.
func unmarshal(name string, data []byte, v protovalidate.Validator, into proto.Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the document can't be read: %v", p)
		}
	}()
	return protoyaml.UnmarshalOptions{Path: name, Validator: validate{v}}.Unmarshal(data, into)
}

// oddBreak finds a lone CR, NEL, LS or PS: line breaks to YAML 1.1, and to hardly anything else. -1: none.
func oddBreak(data []byte) int {
	for i, c := range data {
		switch {
		case c == '\r' && (i+1 == len(data) || data[i+1] != '\n'),
			c == 0xc2 && bytes.HasPrefix(data[i:], []byte("\u0085")),
			c == 0xe2 && (bytes.HasPrefix(data[i:], []byte("\u2028")) || bytes.HasPrefix(data[i:], []byte("\u2029"))):
			return i
		}
	}
	return -1
}

// walker refuses what YAML allows and a signed document must not have: two readers could read it differently.
type walker struct {
	name     string
	nodes    int
	problems Problems
}

func (w *walker) fail(n *yaml.Node, format string, args ...any) {
	if len(w.problems) < maxProblems {
		w.problems = append(w.problems, Problem{w.name, n.Line, n.Column, fmt.Sprintf(format, args...)})
	}
}

func (w *walker) walk(n *yaml.Node, depth int) {
	w.nodes++
	switch {
	case w.nodes > maxNodes:
		if w.nodes == maxNodes+1 {
			w.fail(n, "more than %d values", maxNodes)
		}
		return
	case depth > maxDepth:
		w.fail(n, "nested deeper than %d levels", maxDepth)
		return
	case n.Kind == yaml.AliasNode:
		w.fail(n, "aliases (*%s) are not allowed", n.Value)
		return
	case n.Anchor != "":
		w.fail(n, "anchors (&%s) are not allowed", n.Anchor)
		return
	case n.Style&yaml.TaggedStyle != 0:
		w.fail(n, "tags (%s) are not allowed", n.Tag)
		return
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if line, dup := seen[k.Value]; dup {
				w.fail(k, "key %q a second time (first in line %d)", k.Value, line)
			}
			seen[k.Value] = k.Line
			if k.Value == "<<" {
				w.fail(k, "merge keys (<<) are not allowed")
			}
		}
	}
	for _, c := range n.Content {
		w.walk(c, depth+1)
	}
}

var (
	yamlLine  = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	protoLine = regexp.MustCompile(`(?m)^(?:[^\n]*?:)?(\d+):(\d+):? ?(.*)$`)
)

func yamlProblems(name string, err error) Problems {
	m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	line, _ := strconv.Atoi(m[1])
	return Problems{{name, max(line, 1), 1, "not YAML: " + m[2]}}
}

// protoProblems reads positions back out of protoyaml's messages ("file:line:column message", then source lines).
func protoProblems(name string, err error) Problems {
	var out Problems
	text := err.Error()
	for _, m := range protoLine.FindAllStringSubmatch(text, -1) {
		line, _ := strconv.Atoi(m[1])
		col, _ := strconv.Atoi(m[2])
		msg := strings.TrimSpace(m[3])
		if msg == "" {
			continue
		}
		out = append(out, Problem{name, line, col, msg})
		if len(out) == maxProblems {
			break
		}
	}
	if len(out) == 0 {
		out = Problems{{File: name, Msg: strings.Join(strings.Fields(text), " ")}}
	}
	return out
}

// IsNewer says whether a refusal can be because the document was written for a newer version: an unknown field, enum
// value or action kind.
func IsNewer(err error) bool {
	var ps Problems
	if !errors.As(err, &ps) {
		return false
	}
	for _, p := range ps {
		if strings.Contains(p.Msg, "unknown field") || strings.Contains(p.Msg, "unknown enum value") {
			return true
		}
	}
	return false
}

// checker finds what the rules of the .proto can't: builds, fragments, names.
type checker struct {
	name     string
	data     []byte
	root     *yaml.Node
	problems Problems
}

func (c *checker) fail(n *yaml.Node, format string, args ...any) {
	p := Problem{File: c.name, Msg: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Col = n.Line, n.Column
	}
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, p)
	}
}

// node finds the YAML node at a path of keys and indices; the nearest parent when the rest is absent.
func (c *checker) node(path ...any) *yaml.Node {
	n := c.root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, p := range path {
		var next *yaml.Node
		switch p := p.(type) {
		case int:
			if n.Kind == yaml.SequenceNode && p < len(n.Content) {
				next = n.Content[p]
			}
		case string:
			for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
				k := strings.ReplaceAll(n.Content[i].Value, "_", "")
				if strings.EqualFold(k, p) {
					next = n.Content[i+1]
				}
			}
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func (c *checker) ranges(m *stopgapv1.Mitigation) {
	for i, r := range m.GetAppliesTo().GetExchange() {
		var ends [2]exchange.Build
		for j, end := range []struct{ key, value string }{{"from", r.GetFrom()}, {"to", r.GetTo()}} {
			if end.value == "" {
				continue
			}
			b, err := exchange.ParseBuild(end.value)
			at := c.node("appliesTo", "exchange", i, end.key)
			if err != nil {
				c.fail(at, "%v", err)
				continue
			}
			if b.Product() != r.GetProduct() {
				c.fail(at, "build %s is not of product %s", b, r.GetProduct())
			}
			ends[j] = b
		}
		if r.GetFrom() != "" && r.GetTo() != "" && ends[0].Compare(ends[1]) > 0 {
			c.fail(c.node("appliesTo", "exchange", i, "to"), "range ends (%s) before it begins (%s)", ends[1], ends[0])
		}
	}
}

// frontEnd is the site name that stands for whichever sites hold Exchange's front end, which is a proxy throughout.
const frontEnd = "EXCHANGE_FRONT_END"

func (c *checker) actions(m *stopgapv1.Mitigation) {
	rules := map[string]string{}
	targets := map[string]string{}
	for i, a := range m.GetActions() {
		if rw := a.GetUrlRewrite(); rw != nil {
			for _, f := range []struct {
				key, xml string
				outbound bool
			}{{"inbound", rw.GetInbound(), false}, {"outbound", rw.GetOutbound(), true}} {
				if f.xml == "" {
					continue
				}
				at := c.node("actions", i, "urlRewrite", f.key)
				sec, names, err := urlrewrite.ParseFragment([]byte(f.xml), f.outbound)
				if err != nil {
					c.fragment(at, err)
					continue
				}
				if n := sec.RewritesBody(); n != "" && (rw.GetLocation().GetSite() == frontEnd || strings.EqualFold(rw.GetLocation().GetSite(), "Default Web Site")) {
					c.fail(at, "rule %q rewrites response bodies: the front end passes on compressed ones, for which IIS then answers 500.52", n)
				}
				for _, n := range names {
					where := fmt.Sprintf("%s of action %s", f.key, a.GetId())
					key := f.key + "\x00" + strings.ToLower(n)
					if other, dup := rules[key]; dup {
						c.fail(at, "rule %q is already in the %s", n, other)
					}
					rules[key] = where
				}
			}
			continue
		}
		target := "service " + a.GetService().GetName()
		if a.GetAppPool() != nil {
			target = "pool " + a.GetAppPool().GetName()
		}
		if other, dup := targets[strings.ToLower(target)]; dup {
			c.fail(c.node("actions", i), "%s is already the target of action %s", target, other)
		}
		targets[strings.ToLower(target)] = a.GetId()
	}
}

// fragment places an error inside an XML fragment at its line and column in the YAML file.
func (c *checker) fragment(at *yaml.Node, err error) {
	var se *xmldoc.SyntaxError
	if !errors.As(err, &se) {
		c.fail(at, "%v", err)
		return
	}
	line, col, ok := c.within(at, se.Line, se.Col)
	if !ok {
		c.fail(at, "in the XML, %v", se)
		return
	}
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, Problem{c.name, line, col, se.Msg})
	}
}

// within turns a line and column of a value into those of the YAML file. ok is false when the value is no block scalar: its
// text may be escaped, so that only its beginning is known.
func (c *checker) within(at *yaml.Node, line, col int) (yamlLine, yamlCol int, ok bool) {
	if at.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
		return at.Line, at.Column, false
	}
	// Block scalar: its text starts on the line after the indicator, indented alike.
	indent := 0
	if lines := bytes.Split(c.data, []byte("\n")); at.Line < len(lines) {
		for _, l := range lines[at.Line:] {
			if t := bytes.TrimLeft(l, " "); len(bytes.TrimSpace(t)) > 0 {
				indent = len(l) - len(t)
				break
			}
		}
	}
	return at.Line + line, indent + col, true
}
