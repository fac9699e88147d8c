package simulate

import (
	"cmp"
	"slices"
)

// Bounds on how many problems a report names; of the rest it has the number. A file with many damaged lines leaves room for others.
const (
	maxNamedFiles   = 50
	maxNamedLines   = 20
	maxLinesOfAFile = 3
)

// Problem is a file, or a line of one, that could not be read.
type Problem struct {
	File string `json:"file"`
	// Line counts from 1; 0 where the file is meant.
	Line int64  `json:"line,omitempty"`
	What string `json:"what"`

	order int // the file's place in the list
}

// lose names a file that could not be read, in whole or in part.
func (r *Report) lose(order int, name, what string) {
	r.DamagedFiles++
	if len(r.Unread) < maxNamedFiles {
		r.Unread = append(r.Unread, Problem{File: name, What: what, order: order})
	}
}

// damaged counts a line that is no request. A worker meets the lines of a file in their order, so that its first ones are the
// first ones of the file when all workers are done.
func (r *Report) damaged(order int, name string, line int64, what string) {
	r.Unreadable++
	if n := len(r.DamagedLines); n < maxNamedLines && (n < maxLinesOfAFile || r.DamagedLines[n-maxLinesOfAFile].order != order) {
		r.DamagedLines = append(r.DamagedLines, Problem{File: name, Line: line, What: what, order: order})
	}
}

// sortProblems puts the problems of all workers into the order of files and lines, and keeps the first ones.
func (r *Report) sortProblems() {
	slices.SortStableFunc(r.Unread, func(a, b Problem) int { return cmp.Compare(a.order, b.order) })
	all := r.DamagedLines
	slices.SortStableFunc(all, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.Line, b.Line))
	})
	r.DamagedLines = nil
	for _, p := range all {
		if n := len(r.DamagedLines); n < maxNamedLines && (n < maxLinesOfAFile || r.DamagedLines[n-maxLinesOfAFile].order != p.order) {
			r.DamagedLines = append(r.DamagedLines, p)
		}
	}
}
