package urlrewrite

import "strings"

// Bounds on what a prefilter looks for.
const (
	minLiteral  = 3
	maxLiterals = 4
)

// prefilter is texts that every match of a pattern must contain: looking for them is some hundred times cheaper than the
// pattern, and ordinary traffic has none of them.
type prefilter struct {
	literals []string // lower case where the pattern folds
	fold     bool
}

// admits says whether an input can match. True is no promise.
func (f *prefilter) admits(in string) bool {
	if f == nil || len(f.literals) == 0 {
		return true
	}
	if f.fold {
		for i := range len(in) {
			if in[i] >= 0x80 {
				return true // other letters fold onto ASCII ones (the Kelvin sign onto k)
			}
		}
	}
	for _, l := range f.literals {
		if f.fold {
			if !containsFold(in, l) {
				return false
			}
		} else if !strings.Contains(in, l) {
			return false
		}
	}
	return true
}

// containsFold is strings.Contains for ASCII without case; sub is lower case.
func containsFold(s, sub string) bool {
	lo, up := sub[0], sub[0]
	if lo >= 'a' && lo <= 'z' {
		up -= 'a' - 'A'
	}
	for i := 0; i+len(sub) <= len(s); i++ {
		if (s[i] == lo || s[i] == up) && equalFoldASCII(s[i:i+len(sub)], sub) {
			return true
		}
	}
	return false
}

func equalFoldASCII(s, lower string) bool {
	for i := range len(lower) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// newPrefilter finds what a checked ECMAScript pattern cannot match without.
func newPrefilter(src string, fold bool) *prefilter {
	r := &requirer{src: src}
	found := r.alternatives()
	if r.pos < len(src) { // read otherwise than expected: look for nothing
		return nil
	}
	f := &prefilter{fold: fold}
	for _, l := range found {
		if fold {
			l = asciiLower(l)
		}
		if len(l) >= minLiteral && len(f.literals) < maxLiterals && isASCII(l) {
			f.literals = append(f.literals, l)
		}
	}
	return f
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// requirer walks a pattern. It errs on the side of requiring less.
type requirer struct {
	src string
	pos int
}

func (r *requirer) more() bool { return r.pos < len(r.src) }

// alternatives gives what every alternative requires: with more than one, nothing.
func (r *requirer) alternatives() []string {
	found := r.sequence()
	several := false
	for r.more() && r.src[r.pos] == '|' {
		r.pos++
		r.sequence()
		several = true
	}
	if several {
		return nil
	}
	return found
}

func (r *requirer) sequence() (found []string) {
	run := ""
	flush := func() {
		if run != "" {
			found = append(found, run)
		}
		run = ""
	}
	for r.more() && r.src[r.pos] != '|' && r.src[r.pos] != ')' {
		literal, inner, zeroWidth := r.atom()
		lo, hi := r.quantifier()
		switch {
		case literal != "" && lo == 1 && hi == 1:
			run += literal
		case literal != "" && lo >= 1: // a+ has an a, and after it anything
			run += literal
			flush()
		case zeroWidth && len(inner) == 0: // ^, $, \b: what stands beside it still stands beside each other
		default:
			flush()
			if lo >= 1 {
				found = append(found, inner...)
			}
		}
	}
	flush()
	return found
}

// atom reads one atom: a literal character, or what is inside a group.
func (r *requirer) atom() (literal string, inner []string, zeroWidth bool) {
	c := r.src[r.pos]
	r.pos++
	switch c {
	case '^', '$':
		return "", nil, true
	case '.':
		return "", nil, false
	case '[':
		r.class()
		return "", nil, false
	case '(':
		rest := r.src[r.pos:]
		negative := strings.HasPrefix(rest, "?!")
		look := negative || strings.HasPrefix(rest, "?=")
		if look || strings.HasPrefix(rest, "?:") {
			r.pos += 2
		}
		inner = r.alternatives()
		if r.more() {
			r.pos++ // )
		}
		if negative {
			return "", nil, true
		}
		return "", inner, look
	case '\\':
		return r.escape()
	}
	return string(c), nil, false
}

func (r *requirer) escape() (literal string, inner []string, zeroWidth bool) {
	if !r.more() {
		return "", nil, false
	}
	c := r.src[r.pos]
	r.pos++
	switch {
	case c == 'b' || c == 'B':
		return "", nil, true
	case c == 'x':
		r.pos = min(r.pos+2, len(r.src))
	case c == 'u':
		r.pos = min(r.pos+4, len(r.src))
	case c == 'c':
		r.pos = min(r.pos+1, len(r.src))
	case c >= '0' && c <= '9':
		for r.more() && r.src[r.pos] >= '0' && r.src[r.pos] <= '9' {
			r.pos++
		}
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
	default:
		return string(c), nil, false // an escaped character of punctuation
	}
	return "", nil, false
}

func (r *requirer) class() {
	for r.more() {
		c := r.src[r.pos]
		r.pos++
		switch c {
		case '\\':
			r.pos = min(r.pos+1, len(r.src))
		case ']':
			return
		}
	}
}

func (r *requirer) quantifier() (lo, hi int) {
	lo, hi = 1, 1
	if !r.more() {
		return lo, hi
	}
	switch r.src[r.pos] {
	case '*', '?':
		lo, hi = 0, 2
	case '+':
		hi = 2
	case '{':
		end := strings.IndexByte(r.src[r.pos:], '}')
		if end < 0 {
			return 0, 2
		}
		from, _, _ := strings.Cut(r.src[r.pos+1:r.pos+end], ",")
		lo, hi = 0, 2
		if n, err := atoi(from); err == nil && n > 0 {
			lo = 1
		}
		r.pos += end
	default:
		return lo, hi
	}
	r.pos++
	if r.more() && r.src[r.pos] == '?' {
		r.pos++
	}
	return lo, hi
}
