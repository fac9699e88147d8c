package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

func rolloutCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "rollout",
		Short: "How releases reach the fleet: plan, watch, stop, go back",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(rolloutPlan(o), rolloutStart(o), rolloutList(o), rolloutShow(o),
		rolloutVerb(o, "pause", "Release nobody else until `resume`; failures still halt it", false),
		rolloutVerb(o, "resume", "Go on after `pause`", false),
		rolloutVerb(o, "approve", "Let the next wave begin", false),
		rolloutVerb(o, "halt", "Stop for good: who has it keeps it, or goes back where the strategy says onHalt revert", true),
		rolloutVerb(o, "revert", "Take it back from everybody who got it by this rollout, as far as signed policy permits", true),
		rolloutVerb(o, "finish-now", "Break the glass: release the rest at once, whatever failed", true))
	return c
}

func parseItems(args []string) ([]*stopgapv1.RolloutItem, error) {
	var out []*stopgapv1.RolloutItem
	for _, a := range args {
		id, rev, err := mitigation.ParseRef(a)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", clirun.ErrUsage, err)
		}
		out = append(out, &stopgapv1.RolloutItem{Mitigation: id, Revision: rev})
	}
	return out, nil
}

func refs(items []*stopgapv1.RolloutItem) string {
	var out []string
	for _, it := range items {
		out = append(out, mitigation.Ref(it.GetMitigation(), it.GetRevision()))
	}
	return strings.Join(out, " ")
}

func rolloutPlan(o *options) *cobra.Command {
	var strategy string
	c := &cobra.Command{
		Use:   "plan ID@REV...",
		Short: "Show which server would be in which wave; nothing moves",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			items, err := parseItems(args)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.PlanRollout(ctx, &stopgapv1.PlanRolloutRequest{Items: items, Strategy: strategy})
				if err != nil {
					return err
				}
				if s, err := readStrategy(r.GetStrategyJson()); err == nil && o.format == clirun.Table {
					fmt.Fprintf(cmd.OutOrStdout(), "%s with strategy %s, %d waves, on halt: %s; planned now it would be %s\n\n", refs(items), clirun.Printable(s.Name), len(s.Waves), s.OnHalt, r.GetId())
				}
				return memberListing(r.GetMembers()).Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
	c.Flags().StringVar(&strategy, "strategy", "", "strategy (default: the fleet's)")
	return c
}

func memberListing(all []*stopgapv1.RolloutMember) clirun.Listing {
	l := clirun.Listing{Header: []string{"WAVE", "SERVER", "STATE", "SINCE", "REASON"}}
	for _, m := range all {
		since := ""
		if m.GetSince() != nil {
			since = when(m.GetSince())
		}
		l.Rows, l.Messages = append(l.Rows, []string{fmt.Sprint(m.GetWave()), m.GetName(), m.GetState(), since, m.GetReason()}), append(l.Messages, proto.Message(m))
	}
	return l
}

func rolloutStart(o *options) *cobra.Command {
	var strategy string
	var planOnly bool
	c := &cobra.Command{
		Use:   "start ID@REV... | R1",
		Short: "Start a rollout of revisions in policy, or one that was planned",
		Long:  "A rollout supersedes those of older revisions of the same mitigations; servers change from one revision to the other in one step.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !strings.Contains(args[0], "@") {
				return actOn(cmd, o, args[0], "start", "")
			}
			items, err := parseItems(args)
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.StartRollout(ctx, &stopgapv1.StartRolloutRequest{Items: items, Strategy: strategy, PlanOnly: planOnly})
				if err != nil {
					return err
				}
				sayRollout(cmd.OutOrStdout(), r.GetRollout())
				return nil
			})
		},
	}
	c.Flags().StringVar(&strategy, "strategy", "", "strategy (default: the fleet's)")
	c.Flags().BoolVar(&planOnly, "plan-only", false, "make it and don't start it")
	return c
}

func sayRollout(w io.Writer, x *stopgapv1.Rollout) {
	fmt.Fprintf(w, "%s %s (%s): %s: %s\n", x.GetId(), refs(x.GetItems()), clirun.Printable(x.GetStrategy()), x.GetPhase(), clirun.Printable(x.GetReason()))
}

func actOn(cmd *cobra.Command, o *options, id, verb, reason string) error {
	return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
		r, err := c.ActOnRollout(ctx, &stopgapv1.ActOnRolloutRequest{Id: id, Verb: verb, Reason: reason})
		if err != nil {
			return err
		}
		sayRollout(cmd.OutOrStdout(), r.GetRollout())
		return nil
	})
}

func rolloutVerb(o *options, verb, short string, destructive bool) *cobra.Command {
	var reason string
	var yes bool
	c := &cobra.Command{
		Use:   verb + " R1",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if destructive && !yes {
				return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
					r, err := c.GetRollout(ctx, &stopgapv1.GetRolloutRequest{Id: args[0]})
					if err != nil {
						return err
					}
					return fmt.Errorf("%s is %s, %s; say --yes to %s it", args[0], r.GetRollout().GetPhase(), touches(r, verb), verb)
				})
			}
			return actOn(cmd, o, args[0], verb, reason)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody and in the audit log")
	if destructive {
		c.Flags().BoolVar(&yes, "yes", false, "do it, having read what it touches")
		_ = c.MarkFlagRequired("reason")
	}
	return c
}

// touches says how many servers a verb is about.
func touches(r *stopgapv1.GetRolloutResponse, verb string) string {
	if len(r.GetMembers()) == 0 {
		return "released to everybody"
	}
	have, wait := 0, 0
	for _, m := range r.GetMembers() {
		if m.GetState() == "waiting" {
			wait++
		} else {
			have++
		}
	}
	if verb == "finish-now" {
		return fmt.Sprintf("and %d servers that wait would get it within seconds", wait)
	}
	if s, err := readStrategy(r.GetRollout().GetStrategyJson()); verb == "halt" && err == nil && s.OnHalt != "revert" {
		return fmt.Sprintf("and the %d servers that wait would not get it; who has it keeps it", wait)
	}
	return fmt.Sprintf("and %d servers that it was released to would lose it within seconds, as far as signed policy permits", have)
}

func rolloutList(o *options) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List rollouts, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.ListRollouts(ctx, &stopgapv1.ListRolloutsRequest{})
				if err != nil {
					return err
				}
				l := clirun.Listing{Header: []string{"ID", "REVISIONS", "STRATEGY", "PHASE", "WAVE", "SINCE", "REASON"}}
				for _, x := range r.GetRollouts() {
					if x.GetPhase() == "SUPERSEDED" && !all {
						continue
					}
					l.Rows = append(l.Rows, []string{x.GetId(), refs(x.GetItems()), x.GetStrategy(), x.GetPhase(), fmt.Sprintf("%d/%d", x.GetWave(), x.GetWaves()), when(x.GetSince()), x.GetReason()})
					l.Messages = append(l.Messages, proto.Message(x))
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "superseded ones too")
	return c
}

const showEvery = time.Second

func rolloutShow(o *options) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "show R1",
		Short: "Show one rollout: waves, servers, what it waits for",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			get := func(ctx context.Context) (*stopgapv1.GetRolloutResponse, error) {
				var r *stopgapv1.GetRolloutResponse
				err := o.with(cmd, func(_ context.Context, c stopgapv1.FleetServiceClient) error {
					var err error
					r, err = c.GetRollout(ctx, &stopgapv1.GetRolloutRequest{Id: args[0]})
					return err
				})
				return r, err
			}
			w := cmd.OutOrStdout()
			if !watch {
				r, err := get(cmd.Context())
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
func watchRollout(ctx context.Context, w io.Writer, get func(context.Context) (*stopgapv1.GetRolloutResponse, error), terminal bool) error {
	last := ""
	for {
		r, err := get(ctx)
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
		switch r.GetRollout().GetPhase() {
		case "COMPLETED", "REVERTED", "SUPERSEDED", "HALTED":
			return nil
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

func showRollout(w io.Writer, r *stopgapv1.GetRolloutResponse, f clirun.Format) error {
	x, p := r.GetRollout(), clirun.Printable
	if f != clirun.Table {
		l := memberListing(r.GetMembers())
		l.Messages = []proto.Message{r}
		return l.Print(w, f)
	}
	fmt.Fprintf(w, "%s  %s  strategy %s  by %s since %s\n%s since %s: %s\n", x.GetId(), p(refs(x.GetItems())), p(x.GetStrategy()), p(x.GetBy()), when(x.GetCreated()),
		x.GetPhase(), when(x.GetSince()), p(x.GetReason()))
	if x.GetDeadline() != nil {
		fmt.Fprintf(w, "halts by itself at %s unless another server is done before\n", when(x.GetDeadline()))
	}
	for _, e := range x.GetSideEffects() {
		fmt.Fprintf(w, "known side effect, does not count: %s\n", p(e))
	}
	waves := map[uint32]map[string]int{}
	var told []*stopgapv1.RolloutMember
	for _, m := range r.GetMembers() {
		if waves[m.GetWave()] == nil {
			waves[m.GetWave()] = map[string]int{}
		}
		waves[m.GetWave()][m.GetState()]++
		waves[m.GetWave()][""]++
		if s := m.GetState(); s != "ok" && s != "waiting" && s != "skipped" {
			told = append(told, m)
		}
	}
	fmt.Fprintln(w)
	for n := uint32(1); n <= x.GetWaves() && len(waves) > 0; n++ {
		fmt.Fprintf(w, "wave %-2d %s\n", n, waveBar(waves[n]))
	}
	if len(told) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return memberListing(told).Print(w, f)
}

// waveBar draws the states of a wave: # done, x failed, ~ partial, + on the way, . waiting.
func waveBar(of map[string]int) string {
	total := of[""]
	if total == 0 {
		return "no servers"
	}
	done, bad, going := of["ok"]+of["declined"]+of["skipped"], of["failed"]+of["silent"], of["released"]+of["applied"]
	var b strings.Builder
	for _, part := range []struct {
		n    int
		char string
	}{{done, "#"}, {bad, "x"}, {of["partial"], "~"}, {going, "+"}} {
		b.WriteString(strings.Repeat(part.char, (part.n*barWidth+total-1)/total))
	}
	text := b.String()
	text = text[:min(len(text), barWidth)] + strings.Repeat(".", max(0, barWidth-len(text)))
	var words []string
	for s, n := range of {
		if s != "" {
			words = append(words, fmt.Sprintf("%d %s", n, s))
		}
	}
	sort.Strings(words)
	return fmt.Sprintf("[%s] %d servers: %s", text, total, strings.Join(words, ", "))
}

func strategyCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "strategy",
		Short: "The named ways in which a release reaches the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(strategyList(o), strategyShow(o), strategySet(o), strategyDefault(o, "default NAME", "Make a strategy the one for what is published from now on",
		func(n string) *stopgapv1.SetStrategyRequest { return &stopgapv1.SetStrategyRequest{MakeDefault: n} }),
		strategyDefault(o, "delete NAME", "Delete a strategy; rollouts under way keep it", func(n string) *stopgapv1.SetStrategyRequest { return &stopgapv1.SetStrategyRequest{Delete: n} }))
	return c
}

func strategyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List strategies; * is the one for what is published",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.ListStrategies(ctx, &stopgapv1.ListStrategiesRequest{})
				if err != nil {
					return err
				}
				l := clirun.Listing{Header: []string{"NAME", "WAVES", "ON HALT", "ABOUT"}, Messages: []proto.Message{r}}
				for _, raw := range r.GetStrategiesJson() {
					s, err := readStrategy(raw)
					if err != nil {
						return err
					}
					name := s.Name
					if name == r.GetDefaultName() {
						name += " *"
					}
					l.Rows = append(l.Rows, []string{name, fmt.Sprint(len(s.Waves)), s.OnHalt, s.About})
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
}

func strategyShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print a strategy as JSON, to be changed and given to `set`",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.ListStrategies(ctx, &stopgapv1.ListStrategiesRequest{})
				if err != nil {
					return err
				}
				for _, raw := range r.GetStrategiesJson() {
					s, err := readStrategy(raw)
					if err != nil {
						return err
					}
					if s.Name == args[0] {
						_, err := fmt.Fprintln(cmd.OutOrStdout(), indented(raw))
						return err
					}
				}
				return fmt.Errorf("no strategy %q", args[0])
			})
		},
	}
}

func strategySet(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "set FILE",
		Short: "Store a strategy (JSON; - for standard input)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			const limit = 64 << 10
			data, err := io.ReadAll(io.LimitReader(in, limit+1))
			if err != nil {
				return err
			}
			if len(data) == 0 || len(data) > limit {
				return errors.New("a strategy has 1 byte to 64 KiB")
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.SetStrategy(ctx, &stopgapv1.SetStrategyRequest{StrategyJson: string(data)})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "strategy %s is stored\n", r.GetName())
				}
				return err
			})
		},
	}
}

func strategyDefault(o *options, use, short string, request func(string) *stopgapv1.SetStrategyRequest) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				_, err := c.SetStrategy(ctx, request(args[0]))
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "strategy %s: %s done\n", args[0], cmd.Name())
				}
				return err
			})
		},
	}
}

// fleetCmd switches new applications off and on for everything.
func fleetCmd(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "fleet",
		Short: "Switch new applications off and on, for the fleet, a label or a server",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(switchCmd(o, "disable", "Apply nothing new; what is applied stays and is repaired", true, false),
		switchCmd(o, "enable", "Apply what is released again", false, false), switchList(o))
	return c
}

func switchCmd(o *options, use, short string, off, one bool) *cobra.Command {
	var label, server, reason string
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &stopgapv1.SetSwitchRequest{Label: label, Agent: server, Off: off, Reason: reason}
			if one {
				req.Mitigation = args[0]
			}
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.SetSwitch(ctx, req)
				if err == nil {
					what := "everything"
					if one {
						what = args[0]
					}
					word := "may be applied again"
					if off {
						word = "is not applied any more where it is not yet"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s, %d servers; what is applied stays\n", what, word, clirun.Printable(r.GetScope()), r.GetServers())
				}
				return err
			})
		},
	}
	if one {
		c.Use, c.Args = use+" ID", cobra.ExactArgs(1)
	}
	c.Flags().StringVar(&label, "label", "", "only servers with this label, KEY=VALUE")
	c.Flags().StringVar(&server, "agent", "", "only this server")
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody and in the audit log")
	return c
}

func switchList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "switches",
		Short: "List what is switched off or blocked, in the order in which it counts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd, func(ctx context.Context, c stopgapv1.FleetServiceClient) error {
				r, err := c.ListSwitches(ctx, &stopgapv1.ListSwitchesRequest{})
				if err != nil {
					return err
				}
				l := clirun.Listing{Header: []string{"SCOPE", "MITIGATION", "SINCE", "BY", "REASON"}}
				for _, x := range r.GetSwitches() {
					what := x.GetMitigation()
					if what == "" {
						what = "everything"
					}
					l.Rows, l.Messages = append(l.Rows, []string{x.GetScope(), what, when(x.GetSince()), x.GetBy(), x.GetReason()}), append(l.Messages, proto.Message(x))
				}
				return l.Print(cmd.OutOrStdout(), o.format)
			})
		},
	}
}

func blockCmd(o *options) *cobra.Command {
	return switchCmd(o, "block", "Never newly apply a mitigation, on the fleet, a label or a server; what is applied stays", true, true)
}

func unblockCmd(o *options) *cobra.Command {
	return switchCmd(o, "unblock", "Take a block away", false, true)
}

// strategyHead is what of a strategy a listing shows.
type strategyHead struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	OnHalt string `json:"onHalt"`
	Waves  []any  `json:"waves"`
}

func readStrategy(raw string) (strategyHead, error) {
	var s strategyHead
	return s, json.Unmarshal([]byte(raw), &s)
}

func indented(raw string) string {
	var b bytes.Buffer
	if json.Indent(&b, []byte(raw), "", "  ") != nil {
		return raw
	}
	return b.String()
}
