package simulate

import (
	"bytes"
	"fmt"
)

// maxSurplus bounds the search for the columns that blanks in more than one value, or in another than the query, have torn apart.
const maxSurplus = 128

// impossible is the cost of an assignment that is not allowed; all other costs stay far below it.
const impossible = 1 << 20

// span is a column's place in its line.
type span struct{ from, to int32 }

func (s span) of(line []byte) []byte { return line[s.from:s.to] }

// splitter finds the columns of lines; it keeps its memory from one line to the next.
type splitter struct {
	f     *fields
	cols  []span
	cost  []int32
	began []bool
}

// split gives the columns of a line, as many as #Fields names, and whether quotes around values are to be removed. Where there
// are none, it says why. The spans hold until the next call.
func (s *splitter) split(line []byte) (cols []span, quoted bool, why string) {
	sep := byte(' ')
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		sep = line[i]
	}
	if s.f.format == advanced {
		s.quoted(line, sep)
		if cols, why := s.fit(line); why == "" {
			return cols, true, ""
		}
	}
	s.blanks(line, sep)
	if n := s.f.count(); s.f.format == unsaid && len(s.cols) > n && bytes.IndexByte(line, '"') >= 0 {
		if s.quoted(line, sep); len(s.cols) == n {
			return s.cols, true, ""
		}
		s.blanks(line, sep)
	}
	cols, why = s.fit(line)
	return cols, s.f.format != plain, why
}

// blanks splits a line at every separator.
func (s *splitter) blanks(line []byte, sep byte) {
	s.cols = s.cols[:0]
	at := 0
	for {
		i := bytes.IndexByte(line[at:], sep)
		if i < 0 {
			s.cols = append(s.cols, span{int32(at), int32(len(line))})
			return
		}
		s.cols = append(s.cols, span{int32(at), int32(at + i)})
		at += i + 1
	}
}

// quoted splits a line at the separators that are not inside quotes. A value ends at the first quote that a separator or the
// end of the line follows; two quotes are one quote of the value.
func (s *splitter) quoted(line []byte, sep byte) {
	s.cols = s.cols[:0]
	at := 0
	for at <= len(line) {
		end := -1
		if at < len(line) && line[at] == '"' {
			end = closing(line, at+1, sep)
		}
		if end < 0 {
			end = len(line)
			if i := bytes.IndexByte(line[at:], sep); i >= 0 {
				end = at + i
			}
		}
		s.cols = append(s.cols, span{int32(at), int32(end)})
		at = end + 1
	}
}

// closing finds the end of a value in quotes, behind its closing quote; -1: there is none.
func closing(line []byte, at int, sep byte) int {
	ends := func(i int) bool { return i == len(line) || line[i] == sep }
	if at < len(line) && line[at] == '"' && ends(at+1) {
		return at + 1
	}
	for at < len(line) {
		i := bytes.IndexByte(line[at:], '"')
		if i < 0 {
			return -1
		}
		switch at += i + 1; {
		case at < len(line) && line[at] == '"':
			at++
		case ends(at):
			return at
		}
	}
	return -1
}

// fit makes the columns that were found those of #Fields. Where there are more, blanks have torn values apart: almost always the
// query, to which Exchange appends text with blanks. The columns before and behind it say where it begins and ends.
func (s *splitter) fit(line []byte) ([]span, string) {
	n := s.f.count()
	for len(s.cols) > n && s.cols[len(s.cols)-1].from == s.cols[len(s.cols)-1].to {
		s.cols = s.cols[:len(s.cols)-1] // blanks at the end of the line
	}
	got := len(s.cols)
	switch {
	case got < n:
		return nil, fmt.Sprintf("it has %d columns, and #Fields names %d: it was cut off or damaged", got, n)
	case got == n:
		for _, i := range []int{s.f.status, s.f.port} {
			if i >= 0 && number.misfit(bytes.Trim(s.cols[i].of(line), `"`)) == impossible {
				return nil, fmt.Sprintf("column %d must be a number: a part is missing or its columns are shifted", i+1)
			}
		}
		return s.cols, ""
	}
	if q := s.f.query; q >= 0 && s.around(line, q, got-n) {
		s.cols[q].to = s.cols[q+got-n].to
		return append(s.cols[:q+1], s.cols[q+1+got-n:]...), ""
	}
	if got-n <= maxSurplus && s.place(line) {
		return s.cols, ""
	}
	return nil, fmt.Sprintf("it has %d columns, #Fields names %d, and the columns around the query do not say which of them belong together",
		got, n)
}

// around says whether the columns fit their kinds if the query takes all that are too many.
func (s *splitter) around(line []byte, query, surplus int) bool {
	at := 0
	for i, k := range s.f.kinds {
		if i == query {
			at += surplus
		} else if v := bytes.Trim(s.cols[at].of(line), `"`); k.misfit(v) == impossible || k == number && !isNumber(v) {
			return false
		}
		at++
	}
	return true
}

// The cost of giving a column one more piece of the line.
const (
	costQuery = 1
	costText  = 3
)

// place finds the cheapest way to give every column one piece of the line or, where its kind allows it, several in a row. It
// takes time in proportion to columns times pieces.
func (s *splitter) place(line []byte) bool {
	n, got := s.f.count(), len(s.cols)
	width := got + 1
	size := (n + 1) * width
	if cap(s.cost) < size {
		s.cost, s.began = make([]int32, size), make([]bool, size)
	}
	// cost[i*width+j]: the first i columns have the first j pieces. began: column i's last piece is also its first.
	cost, began := s.cost[:size], s.began[:size]
	for i := range cost {
		cost[i] = impossible
	}
	cost[0] = 0
	for i, k := range s.f.kinds {
		more := int32(impossible)
		switch k {
		case queryText:
			more = costQuery
		case text, link:
			more = costText
		default:
		}
		before, after := cost[i*width:(i+1)*width], cost[(i+1)*width:(i+2)*width]
		for j := 1; j <= got; j++ {
			one := before[j-1]
			if one < impossible {
				one += int32(k.misfit(bytes.Trim(s.cols[j-1].of(line), `"`)))
			}
			several := after[j-1] + more
			after[j], began[(i+1)*width+j] = min(one, several, impossible), one <= several
		}
	}
	if cost[n*width+got] >= impossible {
		return false
	}
	out := make([]span, n)
	j := got
	for i := n; i > 0; i-- {
		out[i-1].to = s.cols[j-1].to
		for !began[i*width+j] {
			j--
		}
		out[i-1].from = s.cols[j-1].from
		j--
	}
	s.cols = append(s.cols[:0], out...)
	return true
}
