package urlrewrite

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// Bounds on what a pattern is matched against. IIS has its own (maxUrl, maxQueryString, header limits); these are above
// what it lets through by default, and keep a match from holding a core.
const (
	MaxInput     = 16 << 10
	matchTimeout = 250 * time.Millisecond
	maxPattern   = 4 << 10
)

// ErrInput is returned when an input is longer than MaxInput or a match ran out of time: no verdict, never "no match".
var ErrInput = errors.New("urlrewrite: no verdict")

// syntax is a rule's patternSyntax.
type syntax int

const (
	ecmaScript syntax = iota
	wildcard
	exactMatch
)

func parseSyntax(s string) (syntax, bool) {
	switch s {
	case "", "ECMAScript":
		return ecmaScript, true
	case "Wildcard":
		return wildcard, true
	case "ExactMatch":
		return exactMatch, true
	}
	return 0, false
}

// pattern is one compiled pattern.
type pattern struct {
	source string
	syntax syntax
	exact  bool
	fold   bool
	re     *regexp2.Regexp
	pre    *prefilter
}

// compilePattern compiles a pattern. careful also refuses what can take exponential time: of our own rules, not of those that
// stand on somebody's server and are IIS's matter.
func compilePattern(src string, syn syntax, ignoreCase, careful bool) (*pattern, error) {
	if len(src) > maxPattern {
		return nil, fmt.Errorf("pattern longer than %d bytes", maxPattern)
	}
	p := &pattern{source: src, syntax: syn, fold: ignoreCase}
	expr := src
	switch syn {
	case exactMatch:
		p.exact = true
		return p, nil
	case wildcard:
		if n := strings.Count(src, "*"); careful && n > maxBeside {
			return nil, fmt.Errorf("pattern %q: more than %d wildcards", src, maxBeside)
		}
		var b strings.Builder
		b.WriteByte('^')
		for i, part := range strings.Split(src, "*") {
			if i > 0 {
				b.WriteString("(.*)")
			}
			b.WriteString(strings.ReplaceAll(regexp2.Escape(part), `\?`, "."))
		}
		b.WriteByte('$')
		expr = b.String()
	case ecmaScript:
		if err := checkPattern(src, careful); err != nil {
			return nil, err
		}
		expr = ecmaToNet(src)
	}
	var opts regexp2.RegexOptions = regexp2.ECMAScript
	if ignoreCase {
		opts |= regexp2.IgnoreCase
	}
	re, err := regexp2.Compile(expr, opts)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", src, err)
	}
	re.MatchTimeout = matchTimeout
	p.re = re
	if syn == ecmaScript {
		p.pre = newPrefilter(src, ignoreCase)
	}
	return p, nil
}

// match returns the captures, group 0 first; nil when it does not match.
func (p *pattern) match(in string) ([]string, error) {
	if len(in) > MaxInput {
		return nil, fmt.Errorf("%w: input of %d bytes, limit %d", ErrInput, len(in), MaxInput)
	}
	if p.exact {
		if in == p.source || p.fold && strings.EqualFold(in, p.source) {
			return []string{in}, nil
		}
		return nil, nil
	}
	if !p.pre.admits(in) {
		return nil, nil
	}
	m, err := p.re.FindStringMatch(in)
	if err != nil {
		return nil, fmt.Errorf("%w: pattern %q: %w", ErrInput, p.source, err)
	}
	if m == nil {
		return nil, nil
	}
	groups := m.Groups()
	out := make([]string, len(groups))
	for i := range groups {
		out[i] = groups[i].String()
	}
	return out, nil
}

// find is match in a body: the first match at or after an offset, with its place; from is -1 when there is none. An exact
// pattern is searched for as a substring.
func (p *pattern) find(in string, at int) (from, to int, captures []string, err error) {
	if p.exact {
		if p.source == "" {
			return -1, 0, nil, nil
		}
		hay, needle := in, p.source
		if p.fold {
			hay, needle = asciiLower(in), asciiLower(p.source)
		}
		i := strings.Index(hay[at:], needle)
		if i < 0 {
			return -1, 0, nil, nil
		}
		from, to = at+i, at+i+len(needle)
		return from, to, []string{in[from:to]}, nil
	}
	runes := []rune(in)
	m, err := p.re.FindRunesMatchStartingAt(runes, len([]rune(in[:at])))
	if err != nil {
		return -1, 0, nil, fmt.Errorf("%w: pattern %q: %w", ErrInput, p.source, err)
	}
	if m == nil {
		return -1, 0, nil, nil
	}
	from = len(string(runes[:m.Index]))
	to = from + len(m.String())
	for _, g := range m.Groups() {
		captures = append(captures, g.String())
	}
	return from, to, captures, nil
}

// asciiLower keeps offsets: lowering other letters can change their length.
func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// PatternError says where in a pattern something is wrong.
type PatternError struct {
	Pattern string
	Col     int // from 1, in bytes
	Msg     string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("pattern %q, character %d: %s", e.Pattern, e.Col, e.Msg)
}

// CheckPattern accepts the dialect of URL Rewrite (ECMAScript 3, ECMA-262 third edition, section 15.10) and refuses what
// other engines add to it, and patterns whose matching can take exponential time.
func CheckPattern(src string) error { return checkPattern(src, true) }

func checkPattern(src string, careful bool) error {
	s := &scanner{src: src, careful: careful}
	if _, err := s.alternatives(0); err != nil {
		return err
	}
	if s.pos < len(src) {
		return s.fail(s.pos, "unmatched )")
	}
	if careful && s.unbounded > maxUnbounded {
		return s.fail(0, "more than %d unbounded repetitions", maxUnbounded)
	}
	return nil
}

const (
	maxUnbounded   = 12
	maxBeside      = 5 // the worst of Microsoft's published patterns has three
	maxGroupDepth  = 32
	manyRepeats    = 10 // {n,m} with m above this counts as unbounded
	ecmaGroupHint  = "is not ECMAScript 3, which has only (?:...), (?=...) and (?!...)"
	ecmaEscapeHint = "is not an escape of ECMAScript 3"
)

// ecmaToNet turns an ECMAScript pattern into one that regexp2 reads the same way. Two things differ even in its ECMAScript mode:
// there `.` matches \r, U+2028 and U+2029, and `$` matches before a final \n, and both have let requests past a rule.
func ecmaToNet(src string) string {
	var b strings.Builder
	class := false
	for i := 0; i < len(src); i++ {
		c := src[i]
		switch {
		case c == '\\' && i+1 < len(src):
			b.WriteByte(c)
			i++
			b.WriteByte(src[i])
		case class:
			class = c != ']'
			b.WriteByte(c)
		case c == '[':
			class = true
			b.WriteByte(c)
		case c == '.':
			b.WriteString(`[^\n\r\u2028\u2029]`)
		case c == '$':
			b.WriteString(`(?!\n)$`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// charset is a set of bytes; everything beyond ASCII is one member, 128.
type charset [3]uint64

func (c *charset) add(b int)           { b = min(b, 128); c[b/64] |= 1 << (b % 64) }
func (c charset) has(b int) bool       { b = min(b, 128); return c[b/64]&(1<<(b%64)) != 0 }
func (c charset) or(o charset) charset { return charset{c[0] | o[0], c[1] | o[1], c[2] | o[2]} }
func (c charset) overlaps(o charset) bool {
	return c[0]&o[0]|c[1]&o[1]|c[2]&o[2] != 0
}
func (c charset) not() charset {
	return charset{^c[0], ^c[1], ^c[2] & 1}
}
func (c charset) folded() charset {
	for b := 'a'; b <= 'z'; b++ {
		if c.has(int(b)) || c.has(int(b-32)) {
			c.add(int(b))
			c.add(int(b - 32))
		}
	}
	return c
}

// shape is what the backtracking check knows of a part of a pattern.
type shape struct {
	first     charset // bytes it can start with
	loops     charset // bytes inside unbounded repetitions in it
	fixed     []charset
	literal   string // the text, when it is only text
	isLiteral bool
	hasLoop   bool
	ambiguous string // why repeating it is exponential; "" when it is not
	empty     bool   // can match nothing
}

type scanner struct {
	src       string
	pos       int
	unbounded int
	beside    int
	careful   bool
}

func (s *scanner) fail(at int, format string, args ...any) error {
	return &PatternError{s.src, at + 1, fmt.Sprintf(format, args...)}
}

func (s *scanner) peek() byte {
	if s.pos < len(s.src) {
		return s.src[s.pos]
	}
	return 0
}

func (s *scanner) alternatives(depth int) (shape, error) {
	if depth > maxGroupDepth {
		return shape{}, s.fail(s.pos, "nested deeper than %d groups", maxGroupDepth)
	}
	var branches []shape
	for {
		b, err := s.sequence(depth)
		if err != nil {
			return shape{}, err
		}
		branches = append(branches, b)
		if s.peek() != '|' || s.pos >= len(s.src) {
			break
		}
		s.pos++
	}
	if len(branches) == 1 {
		return branches[0], nil
	}
	out := shape{}
	for i, b := range branches {
		for _, o := range branches[:i] {
			bothText := b.isLiteral && o.isLiteral
			prefix := strings.HasPrefix(strings.ToLower(b.literal), strings.ToLower(o.literal)) ||
				strings.HasPrefix(strings.ToLower(o.literal), strings.ToLower(b.literal))
			if b.empty || o.empty || b.first.folded().overlaps(o.first.folded()) && (!bothText || prefix) {
				out.ambiguous = "alternatives that can match the same text"
			}
		}
		out.first = out.first.or(b.first)
		out.loops = out.loops.or(b.loops)
		out.hasLoop = out.hasLoop || b.hasLoop
		out.empty = out.empty || b.empty
		if b.ambiguous != "" {
			out.ambiguous = b.ambiguous
		}
		if b.hasLoop && !delimited(b) {
			out.ambiguous = "a repetition inside a repetition"
		}
	}
	if out.hasLoop && out.ambiguous == "" {
		// Each branch is delimited in itself; together they are only if no loop can swallow another branch's start.
		for _, b := range branches {
			if b.first.folded().overlaps(out.loops.folded()) {
				out.ambiguous = "a repetition inside a repetition"
			}
		}
	}
	return out, nil
}

// delimited says that one mandatory part of a sequence can't be matched by its own loops, so that repeating the sequence
// has one way to match.
func delimited(b shape) bool {
	for _, f := range b.fixed {
		if !f.folded().overlaps(b.loops.folded()) {
			return true
		}
	}
	return false
}

func (s *scanner) sequence(depth int) (shape, error) {
	out := shape{empty: true, isLiteral: true}
	var beside charset // what the repetitions before can match, with nothing in between that keeps them apart
	for s.pos < len(s.src) && s.src[s.pos] != '|' && s.src[s.pos] != ')' {
		at := s.pos
		atom, zeroWidth, err := s.atom(depth)
		if err != nil {
			return out, err
		}
		lo, hi, quantified, err := s.quantifier()
		if err != nil {
			return out, err
		}
		if quantified && zeroWidth {
			return out, s.fail(at, "nothing to repeat")
		}
		if zeroWidth {
			if atom.hasLoop || atom.ambiguous != "" {
				out.isLiteral = false
			}
			continue
		}
		loop := hi < 0 || hi > manyRepeats
		if loop {
			s.unbounded++
			switch {
			case !s.careful:
			case atom.ambiguous != "":
				return out, s.fail(at, "can take exponential time: %s, repeated", atom.ambiguous)
			case atom.hasLoop && !delimited(atom):
				return out, s.fail(at, "can take exponential time: a repetition inside a repetition")
			case atom.empty:
				return out, s.fail(at, "can take exponential time: repeats something that can be empty")
			}
			if beside.folded().overlaps(atom.first.or(atom.loops).folded()) {
				out.ambiguous = "two repetitions side by side that can match the same text"
				if s.beside++; s.careful && s.beside > maxBeside {
					return out, s.fail(at, "more than %d repetitions that can match the same text: takes too long on a long input", maxBeside)
				}
			}
			beside = beside.or(atom.first).or(atom.loops)
			for _, f := range atom.fixed {
				beside = beside.or(f)
			}
			out.hasLoop = true
			out.loops = out.loops.or(atom.loops).or(atom.first)
			for _, f := range atom.fixed {
				out.loops = out.loops.or(f)
			}
		} else {
			out.hasLoop = out.hasLoop || atom.hasLoop
			out.loops = out.loops.or(atom.loops)
			if lo != hi { // how often it matches is open: inside a repetition that is a repetition too
				out.hasLoop = true
				out.loops = out.loops.or(atom.first)
				for _, f := range atom.fixed {
					out.loops = out.loops.or(f)
				}
			}
			if lo > 0 {
				out.fixed = append(out.fixed, atom.fixed...)
				for _, f := range atom.fixed {
					if !f.folded().overlaps(beside.folded()) {
						beside = charset{}
					}
				}
			}
			if atom.ambiguous != "" {
				out.ambiguous = atom.ambiguous
			}
		}
		if out.empty {
			out.first = out.first.or(atom.first)
		}
		if lo > 0 && !atom.empty {
			out.empty = false
		}
		if quantified || !atom.isLiteral {
			out.isLiteral = false
		}
		out.literal += atom.literal
	}
	return out, nil
}

func (s *scanner) quantifier() (lo, hi int, quantified bool, err error) {
	switch s.peek() {
	case '*':
		lo, hi = 0, -1
	case '+':
		lo, hi = 1, -1
	case '?':
		lo, hi = 0, 1
	case '{':
		rest := s.src[s.pos:]
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return 0, 0, false, s.fail(s.pos, "{ without }")
		}
		body := rest[1:end]
		from, to, ranged := strings.Cut(body, ",")
		if lo, err = atoi(from); err != nil {
			return 0, 0, false, s.fail(s.pos, "{%s} is not a count", body)
		}
		hi = lo
		if ranged {
			hi = -1
			if to != "" {
				if hi, err = atoi(to); err != nil || hi < lo {
					return 0, 0, false, s.fail(s.pos, "{%s} is not a count", body)
				}
			}
		}
		s.pos += end
	default:
		return 1, 1, false, nil
	}
	s.pos++
	if s.peek() == '?' && s.pos < len(s.src) {
		s.pos++
	}
	switch s.peek() {
	case '*', '+', '?', '{':
		if s.pos < len(s.src) {
			return 0, 0, false, s.fail(s.pos, "nothing to repeat")
		}
	}
	return lo, hi, true, nil
}

func atoi(s string) (int, error) {
	if s == "" || len(s) > 4 {
		return 0, errors.New("not a count")
	}
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, errors.New("not a count")
		}
		n = n*10 + int(c-'0')
	}
	return n, nil
}

func one(set charset, text string) shape {
	return shape{first: set, fixed: []charset{set}, literal: text, isLiteral: text != ""}
}

func (s *scanner) atom(depth int) (sh shape, zeroWidth bool, err error) {
	at := s.pos
	c := s.src[s.pos]
	s.pos++
	switch c {
	case '^', '$':
		return shape{empty: true}, true, nil
	case '.':
		var nl charset
		nl.add('\n')
		nl.add('\r')
		return one(nl.not(), ""), false, nil
	case '[':
		set, err := s.class(at)
		return one(set, ""), false, err
	case '(':
		return s.group(at, depth)
	case '\\':
		return s.escape(at)
	case '*', '+', '?', '{':
		return shape{}, false, s.fail(at, "nothing to repeat")
	}
	var set charset
	set.add(int(c))
	return one(set, string(rune(c))), false, nil
}

func (s *scanner) group(at, depth int) (shape, bool, error) {
	look := false
	if s.peek() == '?' && s.pos < len(s.src) {
		rest := s.src[s.pos:]
		switch {
		case strings.HasPrefix(rest, "?:"):
		case strings.HasPrefix(rest, "?="), strings.HasPrefix(rest, "?!"):
			look = true
		default:
			return shape{}, false, s.fail(at, "(%s %s", rest[:min(len(rest), 3)], ecmaGroupHint)
		}
		s.pos += 2
	}
	in, err := s.alternatives(depth + 1)
	if err != nil {
		return shape{}, false, err
	}
	if s.peek() != ')' || s.pos >= len(s.src) {
		return shape{}, false, s.fail(at, "( without )")
	}
	s.pos++
	if look {
		return in, true, nil
	}
	in.isLiteral = false
	return in, false, nil
}

func (s *scanner) escape(at int) (shape, bool, error) {
	if s.pos >= len(s.src) {
		return shape{}, false, s.fail(at, `\ at the end`)
	}
	c := s.src[s.pos]
	s.pos++
	switch c {
	case 'b', 'B':
		return shape{empty: true}, true, nil
	case 'd', 'D', 'w', 'W', 's', 'S':
		return one(classEscape(c), ""), false, nil
	case 'p', 'P', 'A', 'z', 'Z', 'G', 'k', 'K', 'Q', 'E', 'h', 'H', 'R', 'X', 'e', 'a', 'l', 'L', 'u', 'U', 'N':
		if c == 'u' && hexRun(s.src[s.pos:], 4) {
			s.pos += 4
			var set charset
			set.add(128)
			return one(set, ""), false, nil
		}
		return shape{}, false, s.fail(at, `\%c %s`, c, ecmaEscapeHint)
	case 'x':
		if !hexRun(s.src[s.pos:], 2) {
			return shape{}, false, s.fail(at, `\x needs two hexadecimal digits`)
		}
		s.pos += 2
		return one(charset{}.not(), ""), false, nil
	}
	if c >= '1' && c <= '9' { // back reference: could be any text
		for s.pos < len(s.src) && s.src[s.pos] >= '0' && s.src[s.pos] <= '9' {
			s.pos++
		}
		return shape{first: charset{}.not(), fixed: []charset{charset{}.not()}, empty: true}, false, nil
	}
	var set charset
	switch c {
	case 'n':
		set.add('\n')
	case 'r':
		set.add('\r')
	case 't':
		set.add('\t')
	case 'f':
		set.add('\f')
	case 'v':
		set.add('\v')
	case '0':
		set.add(0)
	case 'c':
		if s.pos >= len(s.src) {
			return shape{}, false, s.fail(at, `\c needs a letter`)
		}
		s.pos++
		return one(charset{}.not(), ""), false, nil
	default:
		set.add(int(c))
		return one(set, string(rune(c))), false, nil
	}
	return one(set, ""), false, nil
}

func hexRun(s string, n int) bool {
	if len(s) < n {
		return false
	}
	for _, c := range []byte(s[:n]) {
		if !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	return true
}

func classEscape(c byte) charset {
	var set charset
	switch c | 0x20 {
	case 'd':
		for b := '0'; b <= '9'; b++ {
			set.add(int(b))
		}
	case 'w':
		for b := 0; b < 128; b++ {
			if b == '_' || b >= '0' && b <= '9' || b|0x20 >= 'a' && b|0x20 <= 'z' {
				set.add(b)
			}
		}
	case 's':
		for _, b := range " \t\r\n\f\v" {
			set.add(int(b))
		}
		set.add(128)
	}
	if c >= 'A' && c <= 'Z' {
		return set.not()
	}
	return set
}

func (s *scanner) class(at int) (charset, error) {
	var set charset
	negate := false
	if s.peek() == '^' && s.pos < len(s.src) {
		negate = true
		s.pos++
	}
	prev := -1
	for {
		if s.pos >= len(s.src) {
			return set, s.fail(at, "[ without ]")
		}
		c := s.src[s.pos]
		s.pos++
		if c == ']' {
			break
		}
		if c == '\\' {
			if s.pos >= len(s.src) {
				return set, s.fail(at, "[ without ]")
			}
			e := s.src[s.pos]
			s.pos++
			switch e {
			case 'd', 'D', 'w', 'W', 's', 'S':
				set = set.or(classEscape(e))
				prev = -1
				continue
			case 'p', 'P':
				return set, s.fail(s.pos-2, `\%c %s`, e, ecmaEscapeHint)
			case 'x', 'u', 'c':
				set = charset{}.not() // could be any: the cautious answer
				prev = -1
				continue
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'f':
				c = '\f'
			case 'v':
				c = '\v'
			case 'b':
				c = '\b'
			case '0':
				c = 0
			default:
				c = e
			}
		} else if c == '-' && prev >= 0 && s.pos < len(s.src) && s.src[s.pos] != ']' && s.src[s.pos] != '\\' {
			hi := int(s.src[s.pos])
			s.pos++
			if hi < prev {
				return set, s.fail(s.pos-3, "range %c-%c is out of order", prev, hi)
			}
			for b := prev; b <= min(hi, 128); b++ {
				set.add(b)
			}
			prev = -1
			continue
		}
		set.add(int(c))
		prev = int(c)
	}
	if negate {
		return set.not(), nil
	}
	return set, nil
}
