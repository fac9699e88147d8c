package exchange

import (
	"fmt"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// FixState says whether a build is fixed for a CVE.
type FixState int

// The states, from least to most alarming for somebody who wants to remove a mitigation.
const (
	// Fixed: this build carries the fix.
	Fixed FixState = iota
	// Unfixed: it does not.
	Unfixed
	// UnknownBuild: the build is of a newer cumulative-update line than the table knows. Never guess.
	UnknownBuild
)

func (s FixState) String() string {
	return [...]string{"fixed", "unfixed", "unknown build"}[s]
}

// Table answers which builds are fixed. The zero value knows nothing: every CVE is unfixed.
type Table struct {
	fixes map[string]fix
}

type fix struct {
	first   map[Line]Build
	newest  []Line // one for each product: the newest line listed
	allFrom []Line // one for each product
}

// NewTable reads a fixed-builds table. Errors name the CVE.
func NewTable(fb *stopgapv1.FixedBuilds) (*Table, error) {
	t := &Table{fixes: map[string]fix{}}
	for _, f := range fb.GetFixes() {
		x := fix{first: map[Line]Build{}}
		for _, s := range f.GetBuilds() {
			b, err := ParseBuild(s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.GetCve(), err)
			}
			l := b.Line()
			if other, dup := x.first[l]; dup {
				return nil, fmt.Errorf("%s: two fixed builds in line %s: %s and %s", f.GetCve(), l, other, b)
			}
			x.first[l] = b
			x.newest = newestOf(x.newest, l)
		}
		for _, s := range f.GetAllFixedFrom() {
			l, err := ParseLine(s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.GetCve(), err)
			}
			for _, o := range x.allFrom {
				if o.sameProduct(l) {
					return nil, fmt.Errorf("%s: allFixedFrom names product %d.%d twice", f.GetCve(), l.Major, l.Minor)
				}
			}
			x.allFrom = append(x.allFrom, l)
		}
		t.fixes[f.GetCve()] = x
	}
	return t, nil
}

func newestOf(ls []Line, l Line) []Line {
	for i, o := range ls {
		if o.sameProduct(l) {
			ls[i] = Line{l.Major, l.Minor, max(o.Build, l.Build)}
			return ls
		}
	}
	return append(ls, l)
}

// State says whether a build is fixed for one CVE. A CVE that the table does not list is Unfixed everywhere.
func (t *Table) State(cve string, b Build) FixState {
	if t == nil {
		return Unfixed
	}
	f, ok := t.fixes[cve]
	if !ok {
		return Unfixed
	}
	l := b.Line()
	if first, ok := f.first[l]; ok {
		if b.Compare(first) >= 0 {
			return Fixed
		}
		return Unfixed
	}
	for _, from := range f.allFrom {
		if from.sameProduct(l) && l.Build >= from.Build {
			return Fixed
		}
	}
	for _, newest := range f.newest {
		if newest.sameProduct(l) && l.Build < newest.Build {
			return Unfixed // an older line that never got a fix
		}
	}
	return UnknownBuild
}

// StateAll is the worst state over several CVEs: fixed only when fixed for each. No CVEs at all is Unfixed: such a
// mitigation is not about a patch.
func (t *Table) StateAll(cves []string, b Build) FixState {
	if len(cves) == 0 {
		return Unfixed
	}
	unknown := false
	for _, c := range cves {
		switch t.State(c, b) {
		case Unfixed:
			return Unfixed
		case UnknownBuild:
			unknown = true
		case Fixed:
		}
	}
	if unknown {
		return UnknownBuild
	}
	return Fixed
}
