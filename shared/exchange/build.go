// Package exchange knows Exchange builds: how they are written, ordered, and which of them are fixed for a CVE.
package exchange

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Build is a file version of ExSetup.exe, Major.Minor.Build.Revision; each part fits 16 bits, as in Windows' VS_FIXEDFILEINFO.
type Build struct {
	Major, Minor, Build, Revision uint16
}

// ParseBuild reads "15.2.1544.41".
func ParseBuild(s string) (Build, error) {
	p, err := parts(s, 4)
	if err != nil {
		return Build{}, fmt.Errorf("build %q: %w", s, err)
	}
	return Build{p[0], p[1], p[2], p[3]}, nil
}

func parts(s string, n int) ([]uint16, error) {
	f := strings.Split(s, ".")
	if len(f) != n {
		return nil, fmt.Errorf("want %d numbers separated by dots, got %d", n, len(f))
	}
	out := make([]uint16, n)
	for i, x := range f {
		v, err := strconv.ParseUint(x, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number from 0 to 65535", x)
		}
		out[i] = uint16(v)
	}
	return out, nil
}

func (b Build) String() string {
	return fmt.Sprintf("%d.%d.%d.%d", b.Major, b.Minor, b.Build, b.Revision)
}

// Compare orders builds as version numbers.
func (b Build) Compare(o Build) int {
	return cmp.Or(cmp.Compare(b.Major, o.Major), cmp.Compare(b.Minor, o.Minor),
		cmp.Compare(b.Build, o.Build), cmp.Compare(b.Revision, o.Revision))
}

// Product is Major.Minor, for example "15.2".
func (b Build) Product() string { return fmt.Sprintf("%d.%d", b.Major, b.Minor) }

// Line is the cumulative-update line, Major.Minor.Build: all security updates of one cumulative update.
type Line struct {
	Major, Minor, Build uint16
}

// Line gives the build's cumulative-update line.
func (b Build) Line() Line { return Line{b.Major, b.Minor, b.Build} }

// ParseLine reads "15.2.1544".
func ParseLine(s string) (Line, error) {
	p, err := parts(s, 3)
	if err != nil {
		return Line{}, fmt.Errorf("line %q: %w", s, err)
	}
	return Line{p[0], p[1], p[2]}, nil
}

func (l Line) String() string { return fmt.Sprintf("%d.%d.%d", l.Major, l.Minor, l.Build) }

func (l Line) sameProduct(o Line) bool { return l.Major == o.Major && l.Minor == o.Minor }

// CompareVersions orders dotted version numbers of up to four parts; missing parts count as 0. It is for things other
// than Exchange (URL Rewrite, the agent).
func CompareVersions(a, b string) (int, error) {
	pa, err := padded(a)
	if err != nil {
		return 0, err
	}
	pb, err := padded(b)
	if err != nil {
		return 0, err
	}
	for i := range pa {
		if c := cmp.Compare(pa[i], pb[i]); c != 0 {
			return c, nil
		}
	}
	return 0, nil
}

func padded(s string) ([4]uint16, error) {
	var out [4]uint16
	n := strings.Count(s, ".") + 1
	if n > 4 {
		return out, fmt.Errorf("version %q: more than four numbers", s)
	}
	p, err := parts(s, n)
	if err != nil {
		return out, fmt.Errorf("version %q: %w", s, err)
	}
	copy(out[:], p)
	return out, nil
}
