package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/pages"
)

func phaseText(p stopgapv1.RolloutPhase) string { return enumName(p, "ROLLOUT_PHASE_") }

func memberState(s stopgapv1.MemberState) string {
	return strings.ToLower(enumName(s, "MEMBER_STATE_"))
}

// rolloutView is a rollout with the servers that are shown of it.
type rolloutView struct {
	rollout *stopgapv1.Rollout
	members []*stopgapv1.RolloutMember
}

// getRollout gets a rollout with all of its servers, or with those that a person has to be told of.
func getRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id string, all bool) (rolloutView, error) {
	r, err := c.GetRollout(ctx, &stopgapv1.GetRolloutRequest{RolloutId: id})
	if err != nil {
		return rolloutView{}, err
	}
	v := rolloutView{rollout: r.GetRollout()}
	var f *stopgapv1.RolloutMemberFilter
	if !all {
		f = &stopgapv1.RolloutMemberFilter{}
		for _, w := range v.rollout.GetProgress() { // states that this program does not know too
			for _, n := range w.GetCounts() {
				if told(n.GetState()) {
					f.States = append(f.States, n.GetState())
				}
			}
		}
		slices.Sort(f.States)
		if f.States = slices.Compact(f.GetStates()); len(f.GetStates()) == 0 {
			return v, nil
		}
	}
	err = pages.Each(func(token string) (string, error) {
		m, err := c.ListRolloutMembers(ctx, &stopgapv1.ListRolloutMembersRequest{RolloutId: id, Filter: f, PageSize: pages.Size,
			PageToken: token})
		v.members = append(v.members, m.GetMembers()...)
		return m.GetNextPageToken(), err
	})
	return v, err
}

const showEvery = time.Second

func rolloutShow(o *options) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "show R1",
		Short: "Show one rollout: waves, servers, what it waits for",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			get := func(ctx context.Context, all bool) (r rolloutView, err error) {
				err = o.with(cmd, func(_ context.Context, c stopgapv1.FleetServiceClient) error {
					r, err = getRollout(ctx, c, args[0], all)
					return err
				})
				return r, err
			}
			w := cmd.OutOrStdout()
			if !watch {
				r, err := get(cmd.Context(), o.format != clirun.Table)
				if err != nil {
					return err
				}
				return showRollout(w, r, o.format)
			}
			return watchRollout(cmd.Context(), w, get, isTerminal(w))
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "draw it again every second, until it ends")
	return c
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// watchRollout draws a rollout again and again: over the last drawing on a terminal, and elsewhere only when something changed.
func watchRollout(ctx context.Context, w io.Writer, get func(ctx context.Context, all bool) (rolloutView, error), terminal bool) error {
	last := ""
	for {
		r, err := get(ctx, false)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // interrupted
			}
			return err
		}
		var b strings.Builder
		if err := showRollout(&b, r, clirun.Table); err != nil {
			return err
		}
		switch {
		case terminal:
			fmt.Fprint(w, "\x1b[H\x1b[2J"+b.String())
		case b.String() != last:
			fmt.Fprintf(w, "%s\n%s\n", time.Now().Format(time.TimeOnly), b.String())
		}
		last = b.String()
		switch r.rollout.GetPhase() {
		case stopgapv1.RolloutPhase_ROLLOUT_PHASE_COMPLETED, stopgapv1.RolloutPhase_ROLLOUT_PHASE_REVERTED,
			stopgapv1.RolloutPhase_ROLLOUT_PHASE_SUPERSEDED, stopgapv1.RolloutPhase_ROLLOUT_PHASE_HALTED:
			return nil
		default:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(showEvery):
		}
	}
}

// barWidth is that of a wave's progress, in characters.
const barWidth = 30

func showRollout(w io.Writer, r rolloutView, f clirun.Format) error {
	x, p := r.rollout, clirun.Printable
	if f != clirun.Table {
		l := memberListing(r.members)
		l.Messages = []proto.Message{&stopgapv1.GetRolloutResponse{Rollout: x},
			&stopgapv1.ListRolloutMembersResponse{Members: r.members, TotalSize: uint32(len(r.members))}}
		return l.Print(w, f)
	}
	fmt.Fprintf(w, "%s  %s  strategy %s  by %s since %s\n%s since %s: %s\n", x.GetId(), p(refs(x.GetMitigations())),
		p(x.GetStrategy().GetName()),
		p(actorText(x.GetCreatedBy())), when(x.GetCreatedAt()), phaseText(x.GetPhase()), when(x.GetSince()), p(x.GetReason()))
	if x.GetDeadline() != nil {
		fmt.Fprintf(w, "halts by itself at %s unless another server is done before\n", when(x.GetDeadline()))
	}
	for _, e := range x.GetSideEffects() {
		fmt.Fprintf(w, "known side effect, does not count: %s\n", p(e))
	}
	waves := map[uint32][]*stopgapv1.MemberStateCount{}
	for _, n := range x.GetProgress() {
		waves[n.GetWave()] = n.GetCounts()
	}
	fmt.Fprintln(w)
	for n := uint32(1); n <= uint32(len(x.GetStrategy().GetWaves())) && len(waves) > 0; n++ {
		fmt.Fprintf(w, "wave %-2d %s\n", n, waveBar(waves[n]))
	}
	notable := slices.DeleteFunc(slices.Clone(r.members), func(m *stopgapv1.RolloutMember) bool { return !told(m.GetState()) })
	if len(notable) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return memberListing(notable).Print(w, f)
}

// told says whether a person has to be told of a server in a state.
func told(s stopgapv1.MemberState) bool {
	switch s {
	case stopgapv1.MemberState_MEMBER_STATE_OK, stopgapv1.MemberState_MEMBER_STATE_WAITING, stopgapv1.MemberState_MEMBER_STATE_SKIPPED:
		return false
	default:
		return true
	}
}

// waveBar draws the states of a wave: # done, x failed, ~ partial, + on the way, . waiting.
func waveBar(counts []*stopgapv1.MemberStateCount) string {
	of, total := map[stopgapv1.MemberState]int{}, 0
	var words []string
	for _, n := range counts {
		of[n.GetState()] = int(n.GetCount())
		total += int(n.GetCount())
		words = append(words, fmt.Sprintf("%d %s", n.GetCount(), memberState(n.GetState())))
	}
	if total == 0 {
		return "no servers"
	}
	done := of[stopgapv1.MemberState_MEMBER_STATE_OK] + of[stopgapv1.MemberState_MEMBER_STATE_DECLINED] +
		of[stopgapv1.MemberState_MEMBER_STATE_SKIPPED]
	bad := of[stopgapv1.MemberState_MEMBER_STATE_FAILED] + of[stopgapv1.MemberState_MEMBER_STATE_SILENT]
	going := of[stopgapv1.MemberState_MEMBER_STATE_RELEASED] + of[stopgapv1.MemberState_MEMBER_STATE_APPLIED]
	var b strings.Builder
	for _, part := range []struct {
		n    int
		char string
	}{{done, "#"}, {bad, "x"}, {of[stopgapv1.MemberState_MEMBER_STATE_PARTIAL], "~"}, {going, "+"}} {
		b.WriteString(strings.Repeat(part.char, (part.n*barWidth+total-1)/total))
	}
	text := b.String()
	text = text[:min(len(text), barWidth)] + strings.Repeat(".", max(0, barWidth-len(text)))
	sort.Strings(words)
	return fmt.Sprintf("[%s] %d servers: %s", text, total, strings.Join(words, ", "))
}
