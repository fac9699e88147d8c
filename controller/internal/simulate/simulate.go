// Package simulate says what a mitigation would have done to the requests of the past: it evaluates its inbound rules over IIS
// logs. It imports only what is shared, and changes nothing.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
)

// Simulation is a mitigation ready to be played.
type Simulation struct {
	rules []rule
	// Outbound says that the mitigation also has rules for responses, of which logs know nothing.
	Outbound bool
}

// ErrNoInbound says that the mitigation has no inbound rule; nothing can be said from requests.
var ErrNoInbound = errors.New("the mitigation has no inbound rewrite rule: logs hold requests only, " +
	"so nothing can be said about it from them")

// New reads a mitigation's rules.
func New(d *mitigation.Document) (*Simulation, error) {
	s := &Simulation{}
	for _, a := range d.GetActions() {
		u := a.GetUrlRewrite()
		s.Outbound = s.Outbound || u.GetOutbound() != ""
		if u.GetInbound() == "" {
			continue
		}
		fragment := []byte(u.GetInbound())
		rules, err := urlrewrite.EachInbound(fragment)
		if err != nil {
			return nil, fmt.Errorf("action %s: %w", a.GetId(), err)
		}
		traits, err := readTraits(fragment)
		if err != nil {
			return nil, fmt.Errorf("action %s: %w", a.GetId(), err)
		}
		for _, r := range rules {
			s.rules = append(s.rules, rule{name: r.Name, base: u.GetLocation().GetPath(), set: r.Set, traits: traits[r.Name]})
		}
	}
	if len(s.rules) == 0 {
		return nil, ErrNoInbound
	}
	return s, nil
}

// Progress is called with how many bytes of how many were read; of a packed file its packed bytes.
type Progress func(done, total int64)

// Logs plays the mitigation over log files, in constant memory, with every core. A file that can't be read, in whole or in part,
// costs the report only what was lost, and is named in it. The error is that of the context.
func (s *Simulation) Logs(ctx context.Context, files []string, progress Progress) (*Report, error) {
	out := newReport(s)
	out.Files = len(files)
	var total int64
	sizes := make([]int64, len(files))
	for i, f := range files {
		size, why := regular(f)
		if why != "" {
			out.lose(i, f, why)
			sizes[i] = -1
			continue
		}
		sizes[i] = size
		total += size
	}
	overruns := make([]atomic.Int64, len(s.rules))
	blocks := make(chan block, runtime.NumCPU())
	reports := make([]*Report, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range reports {
		reports[i] = newReport(s)
		w := &worker{s: s, report: reports[i], overruns: overruns}
		wg.Go(func() {
			for b := range blocks {
				w.play(b)
			}
		})
	}
	var done int64
	for i, name := range files {
		if sizes[i] < 0 || ctx.Err() != nil {
			continue
		}
		r := &reader{ctx: ctx, tell: func(n int) {
			if done += int64(n); progress != nil {
				progress(done, total)
			}
		}, give: func(b block) error {
			b.file, b.name = i, name
			select {
			case blocks <- b:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}}
		if why := r.file(name); why != "" {
			out.lose(i, name, why)
		}
	}
	close(blocks)
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for _, r := range reports {
		out.merge(r)
	}
	out.finish()
	return out, nil
}
