package simulate

import (
	"bytes"
	"sync/atomic"
)

// block is lines of a file that share their #Fields.
type block struct {
	file int // its place in the list of files
	name string
	// first is the number of the first line. Every line of the file is in some block, so that lines can be counted.
	first  int64
	fields fields
	lines  []byte
}

// overlong takes the place of a line longer than maxLine.
const overlong = "\x00overlong"

// worker plays the rules over blocks, and counts into a report of its own.
type worker struct {
	s        *Simulation
	report   *Report
	overruns []atomic.Int64
	split    splitter
	entry    entry
}

func (w *worker) play(b block) {
	w.split.f, w.entry.f = &b.fields, &b.fields
	number := b.first - 1
	for data := b.lines; len(data) > 0; {
		line := data
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line, data = data[:i], data[i+1:]
		} else {
			data = nil
		}
		number++
		line = bytes.TrimRight(line, "\r \t")
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if why := w.line(line); why != "" {
			w.report.damaged(b.file, b.name, number, why)
		}
	}
}

// line plays the rules over one line; why says why that was not possible.
func (w *worker) line(line []byte) (why string) {
	if string(line) == overlong {
		return "it is longer than any request"
	}
	if line[0] == 0 { // a part of the disk that was never written
		if line = bytes.TrimLeft(line, "\x00"); len(line) == 0 {
			return "it holds only NUL bytes"
		}
	}
	if w.split.f.stem < 0 {
		return "no #Fields line before it names cs-uri-stem"
	}
	cols, quoted, why := w.split.split(line)
	if why != "" {
		return why
	}
	w.entry.set(string(line), cols, quoted)
	w.report.Requests++
	for i := range w.s.rules {
		r, out := &w.s.rules[i], w.report.Rules[i]
		if !below(w.entry.req.Path, r.base) {
			continue
		}
		out.OwnPath++
		if !out.matched && r.match != nil {
			if v := judgeWithin(r.match, &w.entry, r.base, &w.overruns[i]); v != blocked {
				out.count(v, false, &w.entry)
				continue
			}
		}
		out.matched = true
		v, depends := r.evaluate(&w.entry, &w.overruns[i])
		out.count(v, depends, &w.entry)
	}
	return ""
}
