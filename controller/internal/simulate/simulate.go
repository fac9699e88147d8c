// Package simulate says what a mitigation would have done to the requests of the past: it evaluates its inbound rules over IIS
// logs. It imports only what is shared, and changes nothing.
package simulate

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// rule is one inbound rule of the mitigation, alone, at its place.
type rule struct {
	name string
	base string
	set  *urlrewrite.Ruleset
}

// Simulation is a mitigation ready to be played.
type Simulation struct {
	rules []rule
	// Outbound says that the mitigation also has rules for responses, of which logs know nothing.
	Outbound bool
}

// ErrNoInbound says that the mitigation has no inbound rule; nothing can be said from requests.
var ErrNoInbound = errors.New("the mitigation has no inbound rewrite rule: logs hold requests only, so nothing can be said about it from them")

// New reads a mitigation's rules.
func New(d *mitigation.Document) (*Simulation, error) {
	s := &Simulation{}
	for _, a := range d.GetActions() {
		u := a.GetUrlRewrite()
		s.Outbound = s.Outbound || u.GetOutbound() != ""
		if u.GetInbound() == "" {
			continue
		}
		rules, err := urlrewrite.EachInbound([]byte(u.GetInbound()))
		if err != nil {
			return nil, fmt.Errorf("action %s: %w", a.GetId(), err)
		}
		for _, r := range rules {
			s.rules = append(s.rules, rule{r.Name, u.GetLocation().GetPath(), r.Set})
		}
	}
	if len(s.rules) == 0 {
		return nil, ErrNoInbound
	}
	return s, nil
}

// below says whether a request is for the place of a rule.
func below(path, base string) bool {
	base = strings.TrimSuffix(base, "/")
	return len(path) >= len(base) && strings.EqualFold(path[:len(base)], base) && (len(path) == len(base) || path[len(base)] == '/')
}

// verdict of a rule on a request.
type verdict int

const (
	untouched verdict = iota
	blocked           // aborted, or answered by the rule
	changed           // rewritten or redirected
	unjudged          // the log lacks what the rule asks for, or there is no verdict
)

func (r *rule) judge(req *urlrewrite.Request) verdict {
	if !below(req.Path, r.base) {
		return untouched
	}
	req.Asked = false
	res, err := r.set.Inbound(req, r.base)
	switch {
	case err != nil || req.Asked:
		return unjudged
	case res.Action == urlrewrite.ActionAbort || res.Action == urlrewrite.ActionCustomResponse:
		return blocked
	case res.Action == urlrewrite.ActionRewrite || res.Action == urlrewrite.ActionRedirect:
		return changed
	}
	return untouched
}

// Bounds on reading.
const (
	blockBytes = 1 << 20
	maxLine    = 64 << 10 // IIS's own limits on URL, query and headers together are below it
)

// Progress is told how many bytes of how many were read; of a packed file its packed bytes.
type Progress func(done, total int64)

// Logs plays the mitigation over log files, in constant memory, with every core.
func (s *Simulation) Logs(ctx context.Context, files []string, progress Progress) (*Report, error) {
	var total int64
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return nil, err
		}
		total += st.Size()
	}
	type block struct {
		fields fields
		lines  []byte
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	blocks := make(chan block, runtime.NumCPU())
	reports := make([]*Report, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range reports {
		reports[i] = newReport(s)
		wg.Go(func() {
			for b := range blocks {
				reports[i].lines(s, &b.fields, b.lines)
			}
		})
	}
	var done atomic.Int64
	for _, name := range files {
		err := readLog(name, func(n int) {
			if d := done.Add(int64(n)); progress != nil {
				progress(d, total)
			}
		}, func(f fields, lines []byte) error {
			select {
			case blocks <- block{f, lines}:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		if err != nil {
			cancel(err)
			break
		}
	}
	close(blocks)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	out := newReport(s)
	for _, r := range reports {
		out.merge(r)
	}
	out.Files = len(files)
	return out, nil
}

// counted tells of what is read.
type counted struct {
	io.Reader
	tell func(int)
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.tell(n)
	return n, err
}

// readLog gives a file in blocks of whole lines, each with the fields that hold for it. Files that end in .gz are unpacked.
func readLog(name string, tell func(int), give func(fields, []byte) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var in io.Reader = counted{f, tell}
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		in = z
	}
	r := bufio.NewReaderSize(in, maxLine)
	cur := noFields()
	var buf []byte
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		lines := buf
		buf = make([]byte, 0, blockBytes+maxLine)
		return give(cur, lines)
	}
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) { // no request is that long: skip to its end, it is counted as unreadable
			buf = append(buf, "\x00\n"...)
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			line = nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", name, err)
		}
		if rest, isFields := bytes.CutPrefix(line, []byte("#Fields:")); isFields {
			if ferr := flush(); ferr != nil {
				return ferr
			}
			cur = parseFields(rest)
		} else if len(line) > 0 && line[0] != '#' {
			buf = append(buf, line...)
			if len(buf) >= blockBytes {
				if ferr := flush(); ferr != nil {
					return ferr
				}
			}
		}
		if err != nil {
			return flush()
		}
	}
}
