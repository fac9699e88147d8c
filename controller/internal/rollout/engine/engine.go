// Package engine is a rollout as a pure state machine: events go in, the state changes, and what was decided comes out. It has no
// clock, no store and no network of its own; the same events always give the same state. Package rollout runs it.
//
// Silence is a failure, success is what was read back, and a wave that can't finish says what it waits for.
package engine

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Phase of a rollout.
type Phase string

// The phases.
const (
	Planned         Phase = "PLANNED"
	Running         Phase = "RUNNING"
	Baking          Phase = "BAKING"
	WaitingApproval Phase = "WAITING_APPROVAL"
	Paused          Phase = "PAUSED"
	Halted          Phase = "HALTED"
	Reverting       Phase = "REVERTING"
	Reverted        Phase = "REVERTED"
	Completed       Phase = "COMPLETED"
	Superseded      Phase = "SUPERSEDED"
)

// Ended says whether nothing happens by itself any more.
func (p Phase) Ended() bool { return p == Reverted || p == Completed || p == Superseded }

// MemberState of one server.
type MemberState string

// The states of a server in a rollout.
const (
	Waiting  MemberState = "waiting"  // not released
	Released MemberState = "released" // released, nothing read back yet
	Applied  MemberState = "applied"  // read back, and not for long enough yet
	OK       MemberState = "ok"       // done
	Partial  MemberState = "partial"  // in effect in part: its wave waits for it, and it is never done nor failed
	Failed   MemberState = "failed"
	Silent   MemberState = "silent"   // had it, and is not heard of any more: counts as failed
	Declined MemberState = "declined" // its administrator said no
	Skipped  MemberState = "skipped"  // not for it
)

// settled says whether a released server has given its answer, so that it is not in flight any more.
func (s MemberState) settled() bool { return s != Waiting && s != Released && s != Applied }

func (s MemberState) bad() bool { return s == Failed || s == Silent }

// Notable says whether a server is still listed once the rollout is completed: an operator has to look at it.
func (s MemberState) Notable() bool { return s.bad() || s == Partial }

// Item is a revision that is released.
type Item struct {
	Mitigation string `json:"mitigation"`
	Revision   uint32 `json:"revision"`
}

// Member is one server.
type Member struct {
	Name string `json:"name,omitempty"`
	Wave int    `json:"wave"`
	// Counted: it was connected when its wave began, so the wave waits for it.
	Counted bool        `json:"counted,omitempty"`
	State   MemberState `json:"state"`
	// Since is when it came into this state; ReleasedAt when it was released, by the rollout's own clock.
	Since      time.Time `json:"since"`
	ReleasedAt time.Time `json:"releasedAt,omitzero"`
	Reason     string    `json:"reason,omitempty"`
	// Given: it was released once, so that it may have it, also when it starts over now.
	Given bool `json:"given,omitempty"`
	// Before is the report that stood when it was released: the same one again says nothing of the release.
	Before time.Time `json:"before,omitzero"`
	// GoneSince is since when it is not connected; zero: it is.
	GoneSince time.Time `json:"goneSince,omitzero"`
	Group     string    `json:"group,omitempty"`
}

// Rollout is the state. It is JSON for the store.
type Rollout struct {
	ID       string    `json:"id"`
	Items    []Item    `json:"items"`
	Strategy Strategy  `json:"strategy"`
	By       string    `json:"by"`
	Created  time.Time `json:"created"`
	Phase    Phase     `json:"phase"`
	// Wave is the present one, from 0.
	Wave int `json:"wave"`
	// Reason says why it is in this phase, and what it waits for.
	Reason string `json:"reason"`
	// Cause is what it was halted or taken back for, for servers to be told; of Reason it has no names. TakenBack: once so, never
	// given again by this rollout.
	Cause     string `json:"cause,omitempty"`
	TakenBack bool   `json:"takenBack,omitempty"`
	// Since is when this phase began; Deadline when something happens by itself, zero: nothing does.
	Since    time.Time `json:"since"`
	Deadline time.Time `json:"deadline,omitzero"`
	// Open: everybody has it, and who joins gets it.
	Open bool `json:"open,omitempty"`
	// Everybody: it was open once, so that anybody may have it. Forced: somebody broke the glass; failures halt it no more.
	Everybody bool               `json:"everybody,omitempty"`
	Forced    bool               `json:"forced,omitempty"`
	Members   map[string]*Member `json:"members,omitempty"`

	WaveBegan time.Time `json:"waveBegan,omitzero"`
	Progress  time.Time `json:"progress,omitzero"`
	// Stuck is since when the wave waits for nobody but PARTIAL servers; zero: it does not.
	Stuck  time.Time `json:"stuck,omitzero"`
	Resume Phase     `json:"resume,omitempty"`
	// LastAt is the time of the last event, Skew what is taken off times: a clock that jumps, or a controller that was away, must not
	// make every deadline pass at once.
	LastAt time.Time     `json:"lastAt,omitzero"`
	Skew   time.Duration `json:"skew,omitempty"`
}

// ReportState is what a server said about the rollout's revisions.
type ReportState = outcome.Rollout

// The reports; shared/outcome says which outcome state is which.
const (
	None       = outcome.Unanswered
	OnTarget   = outcome.Done
	HasPartly  = outcome.Partly
	HasFailed  = outcome.Failed
	HasRefused = outcome.Declined
	NotForIt   = outcome.NotForIt
)

// Report is the last one of a server.
type Report struct {
	State  ReportState
	Proven bool // the effect was shown by a probe, or there is none
	Has    bool // it is in place there, whatever else is said
	Reason string
	At     time.Time // identifies it
}

// Seen is one server as it is now.
type Seen struct {
	ID, Name  string
	Attrs     map[string]string // labels, and facts: build, role, dag, organisation, name
	Connected bool
	// Held says why it is given nothing new at present (a switch, a hold); "" when it is. It is neither released nor waited for.
	Held   string
	Report Report
}

// Verb is what somebody does with a rollout.
type Verb string

// The verbs. Look is none: time passed, and servers are as they are.
const (
	Look      Verb = ""
	Start     Verb = "start"
	Pause     Verb = "pause"
	Resume    Verb = "resume"
	Approve   Verb = "approve"
	Halt      Verb = "halt"
	Revert    Verb = "revert"
	FinishNow Verb = "finish-now"
	Supersede Verb = "supersede"
)

// Event is something that happened. Seen is every server that the rollout may be for; a verb other than Start needs none.
type Event struct {
	At     time.Time
	Verb   Verb
	By     string
	Reason string
	Seen   []Seen
}

// Decision is something that was decided; for the audit log.
type Decision struct {
	// Agent was released; or, when it is empty, the phase changed.
	Agent  string
	Phase  Phase
	Reason string
}

// ErrVerb is returned for a verb that does not fit the phase.
var ErrVerb = errors.New("that can't be done now")

// Number is that in a rollout's id; 0 when it has none.
func Number(id string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(id, "R"), 10, 64)
	return n
}

// New makes a rollout that is planned and not started.
func New(id string, items []Item, s Strategy, by string, at time.Time) *Rollout {
	return &Rollout{ID: id, Items: items, Strategy: s, By: by, Created: at, Phase: Planned, Reason: "not started", Since: at, LastAt: at}
}

// maxGap is how much time one event may let pass.
const maxGap = 30 * time.Second

// now gives the rollout's own time: it never goes back, and never jumps.
func (r *Rollout) now(at time.Time) time.Time {
	switch gap := at.Sub(r.LastAt); {
	case r.Phase == Planned || r.Phase.Ended(): // nothing ran meanwhile
		r.Skew = 0
	case gap < 0:
		r.Skew += gap
	case gap > maxGap:
		r.Skew += gap - maxGap
	}
	r.LastAt = at
	return at.Add(-r.Skew)
}

// Unlimited says whether no failure halts it.
func (r *Rollout) Unlimited() bool {
	if r.Forced {
		return true
	}
	for _, w := range r.Strategy.Waves {
		if w.MaxFailures != nil && w.MaxFailures.Count >= 0 {
			return false
		}
	}
	return r.Strategy.MaxFailures.Count < 0
}

func (r *Rollout) wave() Wave { return r.Strategy.Waves[r.Wave] }
func (r *Rollout) last() bool { return r.Wave == len(r.Strategy.Waves)-1 }

// step carries one event.
type step struct {
	r   *Rollout
	e   Event
	now time.Time
	out []Decision
}

// Step takes an event. A verb that does not fit gives ErrVerb and changes nothing.
func (r *Rollout) Step(e Event) ([]Decision, error) {
	if err := r.fits(e); err != nil {
		return nil, err
	}
	s := &step{r: r, e: e, now: r.now(e.At)}
	s.verb()
	if e.Verb == Look || e.Verb == Start {
		s.look()
	}
	return s.out, nil
}

func (r *Rollout) fits(e Event) error {
	active := !r.Phase.Ended() && r.Phase != Planned && r.Phase != Reverting
	ok := true
	switch e.Verb {
	case Look:
	case Start:
		ok = r.Phase == Planned
	case Pause:
		ok = active && r.Phase != Paused && r.Phase != Halted
	case Resume:
		ok = r.Phase == Paused
	case Approve:
		ok = r.Phase == WaitingApproval
	case Halt:
		ok = active && r.Phase != Halted
	case Revert:
		ok = (active || r.Phase == Completed) && e.Reason != ""
	case FinishNow:
		ok = active && e.Reason != ""
	case Supersede:
		ok = r.Phase != Superseded && r.Phase != Reverted
	default:
		ok = false
	}
	if ok {
		return nil
	}
	if (e.Verb == Revert || e.Verb == FinishNow) && e.Reason == "" {
		return fmt.Errorf("%w: %s needs a reason", ErrVerb, e.Verb)
	}
	return fmt.Errorf("%w: rollout %s is %s (%s), and %s does not fit", ErrVerb, r.ID, r.Phase, r.Reason, e.Verb)
}

func (s *step) phase(p Phase, format string, args ...any) {
	r := s.r
	reason := fmt.Sprintf(format, args...)
	if r.Phase != p {
		r.Since = s.now
		s.out = append(s.out, Decision{Phase: p, Reason: reason})
	}
	r.Phase, r.Reason, r.Deadline = p, reason, time.Time{}
}

func by(e Event) string {
	if e.Reason != "" {
		return e.By + ": " + e.Reason
	}
	return e.By
}

func (s *step) verb() {
	r := s.r
	switch s.e.Verb {
	case Look:
	case Start:
		s.plan()
		s.begin(0)
	case Pause:
		r.Resume = r.Phase
		s.phase(Paused, "paused by %s", by(s.e))
	case Resume:
		r.Progress = s.now
		s.phase(r.Resume, "resumed by %s", by(s.e))
	case Approve:
		s.begin(r.Wave + 1)
	case Halt:
		s.halt("halted by " + by(s.e))
	case Revert:
		s.revert("reverted by " + by(s.e))
	case FinishNow:
		r.Wave = len(r.Strategy.Waves) - 1
		r.WaveBegan, r.Progress, r.Forced = s.now, s.now, true
		s.phase(Running, "released to everybody at once by %s", by(s.e))
		s.open()
		for _, id := range r.ids() {
			if m := r.Members[id]; m.ReleasedAt.IsZero() {
				s.let(m, Seen{}, id)
			}
		}
	case Supersede:
		s.phase(Superseded, "superseded by %s", by(s.e))
	}
}

func (s *step) plan() {
	s.r.Members = map[string]*Member{}
	waves := Plan(s.r.ID, s.r.Strategy, s.e.Seen)
	for _, x := range s.e.Seen {
		s.r.Members[x.ID] = &Member{Name: x.Name, Wave: waves[x.ID], State: Waiting, Since: s.now, Group: group(x)}
	}
}

// begin begins a wave.
func (s *step) begin(wave int) {
	r := s.r
	r.Wave, r.WaveBegan, r.Progress = wave, s.now, s.now
	s.phase(Running, "wave %d of %d begins", wave+1, len(r.Strategy.Waves))
	for _, m := range r.Members {
		m.Counted = m.Counted && m.Wave != wave
	}
}

func (s *step) set(m *Member, st MemberState, reason string) {
	if m.State != st {
		m.State, m.Since = st, s.now
		if st.settled() {
			s.r.Progress = s.now
		}
	}
	m.Reason = reason
}

func (s *step) look() {
	r := s.r
	if r.Phase == Planned || r.Phase.Ended() {
		return
	}
	seen := map[string]Seen{}
	for _, x := range s.e.Seen {
		seen[x.ID] = x
		if r.Members[x.ID] == nil { // it joined late
			r.Members[x.ID] = &Member{Name: x.Name, Wave: len(r.Strategy.Waves) - 1, State: Waiting, Since: s.now, Group: group(x)}
		}
	}
	ids := r.ids()
	for _, id := range ids {
		s.member(r.Members[id], seen, id)
	}
	if r.Phase == Reverting {
		s.reverting(seen, ids)
		return
	}
	if r.Phase == Halted {
		return
	}
	if why := s.tooMany(); why != "" {
		s.halt(why)
		return
	}
	if r.Phase == Paused || r.Phase == WaitingApproval {
		return
	}
	s.release(seen, ids)
	s.finish(ids)
}

func (r *Rollout) ids() []string {
	out := make([]string, 0, len(r.Members))
	for id := range r.Members {
		out = append(out, id)
	}
	sort.Strings(out)
	return out
}

// member brings one server's state up to what is seen of it.
func (s *step) member(m *Member, seen map[string]Seen, id string) {
	r := s.r
	x, known := seen[id]
	if !known {
		s.set(m, Skipped, "no longer in the fleet, or no longer for it")
		return
	}
	m.Name = x.Name
	switch {
	case x.Connected:
		m.GoneSince = time.Time{}
	case m.GoneSince.IsZero():
		m.GoneSince = s.now
	}
	if x.Held != "" && m.State != OK && m.State != Applied && m.State != Partial {
		m.ReleasedAt = time.Time{} // given nothing; it starts over when it may
		s.set(m, Declined, x.Held)
		return
	}
	if m.ReleasedAt.IsZero() && (m.State == Skipped || m.State == Declined) {
		s.set(m, Waiting, "")
	}
	if r.Open && m.ReleasedAt.IsZero() && (r.Phase == Running || r.Phase == Baking) {
		s.let(m, x, id)
	}
	if m.ReleasedAt.IsZero() {
		return
	}
	rep := x.Report
	wave := r.Strategy.Waves[m.Wave]
	fresh := !rep.At.Equal(m.Before)
	if m.State == Partial && rep.State != HasPartly {
		m.ReleasedAt = s.now // the time in which it was PARTIAL does not count towards its deadline
	}
	switch {
	case (rep.State == OnTarget || rep.State == HasPartly) && !m.GoneSince.IsZero() && s.now.Sub(m.GoneSince) >= r.Strategy.silence():
		s.set(m, Silent, fmt.Sprintf("has it, and nothing was heard of it for %s", r.Strategy.silence()))
	case rep.State == OnTarget && wave.Prove && !rep.Proven:
		s.late(m, wave, Released, "its effect was not proven")
	case rep.State == OnTarget:
		if m.State != Applied && m.State != OK {
			s.set(m, Applied, "")
		}
		switch {
		case m.State == OK:
		case !m.GoneSince.IsZero():
			s.late(m, wave, Applied, "has it, and is not connected")
		case s.now.Sub(m.Since) >= time.Duration(wave.MinHealthyTime):
			s.set(m, OK, "")
		}
	case rep.State == HasPartly:
		s.set(m, Partial, rep.Reason)
	case rep.State == HasFailed && fresh:
		s.set(m, Failed, rep.Reason)
	case rep.State == HasRefused:
		s.set(m, Declined, rep.Reason)
	case rep.State == NotForIt:
		s.set(m, Skipped, rep.Reason)
	case (m.State == OK || m.State == Applied || m.State == Partial || m.State == Silent) && r.Phase != Reverting:
		s.late(m, wave, Released, "it had it, and does not say so any more")
	default:
		s.late(m, wave, Released, "it has not said that it has it")
	}
}

// late keeps a server in a state until its deadline; then it has failed.
func (s *step) late(m *Member, w Wave, st MemberState, why string) {
	if m.State == Failed {
		return
	}
	from := m.ReleasedAt
	if m.State == OK || m.State == Silent {
		from = s.now // what was done starts over
		m.ReleasedAt = s.now
	}
	if m.Counted || m.GoneSince.IsZero() {
		if s.now.Sub(from) >= w.healthyDeadline() {
			s.set(m, Failed, fmt.Sprintf("%s within %s", why, w.healthyDeadline()))
			return
		}
	}
	s.set(m, st, why)
}

// tooMany says why the failures are too many; "" when they are not.
func (s *step) tooMany() string {
	r := s.r
	if r.Forced {
		return ""
	}
	all, bad, inWave, badInWave := 0, 0, 0, 0
	var who []string
	for _, id := range r.ids() {
		m := r.Members[id]
		all++
		if m.Wave == r.Wave {
			inWave++
		}
		if !m.State.bad() {
			continue
		}
		bad++
		if m.Wave == r.Wave {
			badInWave++
		}
		if len(who) < 3 {
			who = append(who, m.Name+": "+m.Reason)
		}
	}
	if w := r.wave().MaxFailures; w != nil && w.passed(badInWave, inWave) {
		return fmt.Sprintf("%d of %d servers of wave %d failed, tolerated: %s; %s", badInWave, inWave, r.Wave+1, w, strings.Join(who, "; "))
	}
	if r.Strategy.MaxFailures.passed(bad, all) {
		return fmt.Sprintf("%d of %d servers failed, tolerated: %s; %s", bad, all, r.Strategy.MaxFailures, strings.Join(who, "; "))
	}
	return ""
}

func (s *step) halt(why string) {
	s.r.Open = false
	if s.r.Strategy.OnHalt == "revert" {
		s.revert("halted: " + why)
		return
	}
	s.r.Cause = why
	s.phase(Halted, "%s", why)
}

func (s *step) revert(why string) {
	s.r.Open, s.r.TakenBack, s.r.Cause = false, true, why
	s.r.Progress = s.now
	s.phase(Reverting, "%s", why)
}

// reverting waits until nobody who was released, and can be asked, has it any more; one that has not answered since its release may
// have it any moment. Who is not connected is told when it comes, and is named.
func (s *step) reverting(seen map[string]Seen, ids []string) {
	r := s.r
	var left, away []string
	for _, id := range ids {
		m := r.Members[id]
		x, known := seen[id]
		if !known || !r.Everybody && !m.Given {
			continue
		}
		unknown := x.Report.State == None && m.State == Released && s.now.Sub(r.Progress) < unanswered
		switch {
		case !x.Report.Has && !unknown:
		case x.Connected:
			left = append(left, m.Name)
		default:
			away = append(away, m.Name)
		}
	}
	switch {
	case len(left) > 0:
		r.Reason = fmt.Sprintf("%s; still have it: %s", r.Cause, names(left))
	case len(away) > 0:
		s.phase(Reverted, "%s; not connected, and told when they come: %s", r.Cause, names(away))
	default:
		s.phase(Reverted, "%s", r.Cause)
	}
}

// unanswered is how long a server that was released and has said nothing is waited for when it is taken back.
const unanswered = time.Minute

func names(all []string) string { return some(all, 5) }

// some lists the first of many.
func some(all []string, show int) string {
	if len(all) > show {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:show], ", "), len(all)-show)
	}
	return strings.Join(all, ", ")
}

// let releases one server.
func (s *step) let(m *Member, x Seen, id string) {
	m.ReleasedAt, m.Before = s.now, x.Report.At
	m.Counted, m.Given = m.Counted || x.Connected, true
	s.set(m, Released, "")
	s.out = append(s.out, Decision{Agent: id, Phase: s.r.Phase})
}

// open releases everybody, also who is not connected and who comes later.
func (s *step) open() { s.r.Open, s.r.Everybody = true, true }

// release lets servers of this wave, and left ones of earlier waves, have it: those that are connected, up to the bound.
func (s *step) release(seen map[string]Seen, ids []string) {
	r, w := s.r, s.r.wave()
	if !r.Strategy.open(s.e.At) {
		r.Progress = s.now
		return
	}
	if r.last() && w.MaxInFlight == 0 && r.Strategy.Stagger == 0 && !r.Open {
		s.open()
		for _, id := range ids {
			if x, ok := seen[id]; ok && r.Members[id].ReleasedAt.IsZero() {
				s.let(r.Members[id], x, id)
			}
		}
	}
	counted := false
	inFlight := 0
	lastOf := map[string]time.Time{}
	for _, id := range ids {
		m := r.Members[id]
		counted = counted || m.Counted && m.Wave == r.Wave
		if m.State == Released || m.State == Applied {
			inFlight++
		}
		if m.Group != "" && m.ReleasedAt.After(lastOf[m.Group]) {
			lastOf[m.Group] = m.ReleasedAt
		}
	}
	begins := r.WaveBegan.Equal(s.now) || !counted
	for _, id := range ids {
		m, x := r.Members[id], seen[id]
		if m.Wave == r.Wave && begins && x.Connected {
			m.Counted = true
		}
		if m.Wave > r.Wave || m.State != Waiting || !x.Connected || r.Open || w.MaxInFlight > 0 && inFlight >= w.MaxInFlight {
			continue
		}
		if t, ok := lastOf[m.Group]; ok && m.Group != "" && s.now.Sub(t) < time.Duration(r.Strategy.Stagger) {
			continue
		}
		s.let(m, x, id)
		inFlight++
		if m.Group != "" {
			lastOf[m.Group] = s.now
		}
	}
}

// finish ends the wave when everybody it waits for is settled, and says what it waits for otherwise.
func (s *step) finish(ids []string) {
	r, w := s.r, s.r.wave()
	var waits, partial []string
	counted, ok, baking, settled, members := 0, 0, 0, 0, 0
	for _, id := range ids {
		m := r.Members[id]
		if m.Wave != r.Wave {
			continue
		}
		members++
		if !m.Counted {
			continue
		}
		counted++
		switch {
		case m.State == Partial:
			partial = append(partial, m.partly())
		case m.State.settled():
			settled++
			if m.State == OK {
				ok++
			}
		case m.State == Applied:
			baking++
			waits = append(waits, m.Name)
		default:
			waits = append(waits, m.Name)
		}
	}
	status := fmt.Sprintf("wave %d of %d: %d of %d servers done%s", r.Wave+1, len(r.Strategy.Waves), settled, counted, listed(partial))
	bar := r.Progress.Add(w.progressDeadline())
	since := r.Stuck
	r.Stuck = time.Time{}
	switch {
	case !r.Strategy.open(s.e.At) && (len(waits) > 0 || counted == 0 && members > 0):
		s.phase(Running, "%s; waits for a maintenance window", status)
		return
	case len(waits) == 0 && len(partial) > 0 && !r.Forced:
		s.stuck(since, status)
		return
	case len(waits) == 0 && (counted > 0 || members == 0 || r.last()):
		if !r.last() && members > 0 && ok == 0 {
			s.phase(Running, "%s, and not one of them has it: nothing is shown by this wave (halt, or finish-now)", status)
			break
		}
		s.next()
		return
	case counted == 0:
		s.phase(Running, "%s; waits for a server of this wave to connect", status)
	case baking == len(waits):
		s.phase(Baking, "%s; %s must stay healthy for %s", status, names(waits), w.MinHealthyTime)
	default:
		s.phase(Running, "%s; waits for %s", status, names(waits))
	}
	if !s.now.Before(bar) && !r.Forced {
		s.halt(fmt.Sprintf("no server of wave %d was done for %s; %s", r.Wave+1, w.progressDeadline(), r.Reason))
		return
	}
	r.Deadline = bar.Add(r.Skew)
}

func (s *step) next() {
	r := s.r
	if r.last() {
		s.open()
		ok, bad, other := 0, 0, 0
		var partial []string
		for _, id := range r.ids() {
			m := r.Members[id]
			switch {
			case m.State == OK:
				ok++
			case m.State.bad():
				bad++
			case m.State == Partial:
				partial = append(partial, m.partly())
			default:
				other++
			}
		}
		s.phase(Completed, "released to everybody: %d done, %d failed, %d others (declined, not for them, or not connected)%s",
			ok, bad, other, listed(partial))
		return
	}
	if r.Strategy.Waves[r.Wave+1].Approval {
		s.phase(WaitingApproval, "wave %d is done; wave %d waits for approval", r.Wave+1, r.Wave+2)
		return
	}
	s.begin(r.Wave + 1)
}

// Give is what a rollout gives a server.
type Give int

// What it gives.
const (
	Nothing Give = iota // what it had before
	Target              // its revisions
	Back                // its revisions are taken off
)

// Gives says what the rollout gives a server now.
func (r *Rollout) Gives(id string) Give {
	m := r.Members[id]
	switch {
	case r.TakenBack && (r.Everybody || m != nil && m.Given):
		return Back
	case r.TakenBack:
	case r.Open && r.Phase != Paused, m != nil && !m.ReleasedAt.IsZero():
		return Target
	}
	return Nothing
}

// InFlight counts the servers released and not settled.
func (r *Rollout) InFlight() int {
	n := 0
	for _, m := range r.Members {
		if !m.ReleasedAt.IsZero() && !m.State.settled() {
			n++
		}
	}
	return n
}
