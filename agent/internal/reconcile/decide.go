package reconcile

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

// Want is what should become of a mitigation.
type Want int

// The wants.
const (
	// Leave: touch nothing, whatever is there.
	Leave Want = iota
	// Apply: the decided revision should be in force.
	Apply
	// Remove: nothing of it should be.
	Remove
)

// Decision is what should be for one mitigation, and why.
type Decision struct {
	ID       string
	Revision uint32
	Want     Want
	// State, Code and Reason are reported unless doing what is wanted shows something else. An Apply that succeeds
	// reports APPLIED.
	State  stopgapv1.OutcomeState
	Code   string
	Reason string
	// Doc is the document to apply; nil unless Want is Apply.
	Doc *mitigation.Document
	// SHA256 of the document the decision speaks of; nil when there is none.
	SHA256 []byte
	// Alarm is a standing warning to raise with it; "" for none.
	Alarm string
	// Emergency: it was released to everybody at once.
	Emergency bool
	// Refused is what was asked for and is not done, and why; it is added to the reason of an APPLIED. "" for nothing.
	Refused     string
	RefusedCode string
}

// View is everything a decision rests on.
type View struct {
	Facts      *stopgapv1.Facts
	Policy     *policy.Policy
	Assignment *stopgapv1.Assignment
	Blocks     map[string]journal.Block
	Frozen     bool
	// InForce are the revisions of which changes are recorded, by mitigation; Since is when each of them (id@revision) came
	// into force, and Protected since when any revision of a mitigation has been, without a gap.
	InForce   map[string][]uint32
	Since     map[string]time.Time
	Protected map[string]time.Time
	Now       time.Time
	// Hold is how long a fixed build must have been there before a mitigation comes off; BuildSince since when the build is.
	Hold       time.Duration
	BuildSince time.Time
	// Known are the mitigations reported on before.
	Known map[string]*stopgapv1.Outcome
}

// Decide says what should be, for every mitigation that is in policy, in force, or was reported on. It is pure.
func Decide(v View) []Decision {
	ids := map[string]bool{}
	for id := range v.Policy.Revisions {
		ids[id] = true
	}
	for id := range v.InForce {
		ids[id] = true
	}
	for id := range v.Known {
		ids[id] = true
	}
	var out []Decision
	for id := range ids {
		d := v.decide(id)
		d.ID = id
		out = append(out, d)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

func newest(revs []uint32) uint32 {
	var n uint32
	for _, r := range revs {
		n = max(n, r)
	}
	return n
}

func (v View) decide(id string) Decision {
	inForce := newest(v.InForce[id])
	ref := ""
	if inForce > 0 {
		ref = mitigation.Ref(id, inForce)
	}
	d := Decision{ID: id, Revision: inForce, Want: Leave}
	if known := v.Known[id]; d.Revision == 0 && known != nil {
		d.Revision = known.GetRevision()
	}
	revs := v.Policy.Revisions[id]
	item := v.item(id)
	if item != nil {
		d.Revision = item.GetRevision()
	} else if inForce == 0 {
		for r := range revs {
			d.Revision = max(d.Revision, r)
		}
	}
	if r := revs[d.Revision]; r != nil {
		d.SHA256 = r.SHA256[:]
	}

	// 1. The administrator, then the server itself.
	if v.Frozen {
		if inForce > 0 {
			d.Revision = inForce
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_DISABLED, "frozen", "the server's administrator froze the agent; %s stays in place and is not watched", ref)
		}
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_DISABLED, "frozen", "the server's administrator froze the agent; nothing is applied")
	}
	if v.Facts.GetServicing() {
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "servicing", "Exchange is being installed or updated; nothing is touched until that is over")
	}
	if b, ok := v.Blocks[id]; ok {
		return v.blocked(d, b, ref)
	}

	// 2. Policy.
	if v.Policy.Version == 0 {
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "no-policy", "no policy is held; nothing is applied and nothing removed")
	}
	if len(revs) == 0 {
		if inForce > 0 {
			d.Want = Remove
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, "withdrawn", "withdrawn from policy; %s was taken off", ref)
		}
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE, "withdrawn", "not in policy any more")
	}

	// A revision that is not for this server does not replace one that is: that one stays, unless policy dropped it.
	if item != nil && inForce > 0 && inForce != item.GetRevision() && !v.inScope(revs[item.GetRevision()]) {
		if revs[inForce] == nil {
			d.Want = Remove
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, "withdrawn", "%s was withdrawn from policy and taken off; %s is not for this server",
				ref, mitigation.Ref(id, item.GetRevision()))
		}
		d.Revision, d.SHA256 = inForce, revs[inForce].SHA256[:]
	}
	// What the controller alone wants off, or wants replaced by an older revision, goes only as far as signed policy lets it.
	if item != nil && inForce > 0 && revs[inForce] != nil && (item.GetRevert() || item.GetRevision() < inForce) {
		if why := v.revertRefused(id, inForce, item.GetRevert()); why != "" {
			d.Revision, d.SHA256 = inForce, revs[inForce].SHA256[:]
			d.RefusedCode = codeRevertRefused
			d.Refused = fmt.Sprintf("the controller asked to take %s off (%s); it stays: %s", ref, orNoReason(item.GetReason()), why)
			return v.applicable(d, revs[inForce], nil, inForce, ref)
		}
		if item.GetRevert() {
			d.Revision, d.SHA256, d.Want = inForce, revs[inForce].SHA256[:], Remove
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, codeControllerRevert, "the controller asked to take it off (%s), and signed policy lets it; %s was taken off",
				orNoReason(item.GetReason()), ref)
		}
	}
	if item.GetRevert() && inForce == 0 {
		code := "not-released"
		if v.Known[id].GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED && v.Known[id].GetCode() == codeControllerRevert {
			code = codeControllerRevert // stays told as the removal that it was
		}
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, code, "the controller holds it back: %s", orNoReason(item.GetReason()))
	}
	if v.Policy.Expired(v.Now) && (inForce == 0 || d.Revision != inForce && revs[inForce] != nil) {
		return v.expired(d, revs, inForce, ref)
	}

	// 3. Release. Absence from the assignment never reverts; a revision that policy dropped does.
	if item == nil {
		// What was applied without changing anything (found in place, or a mitigation that changes nothing) was released too.
		if known := v.Known[id]; inForce == 0 && outcome.Of(known.GetState()).Applied && revs[known.GetRevision()] != nil {
			d.Revision, d.SHA256 = known.GetRevision(), revs[known.GetRevision()].SHA256[:]
			return v.applicable(d, revs[d.Revision], nil, 0, "")
		}
		if inForce == 0 {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "not-released", "in policy, not released to this server")
		}
		if revs[inForce] == nil {
			d.Want = Remove
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, "withdrawn", "%s was withdrawn from policy and taken off; no other revision is released", ref)
		}
		d.Revision = inForce
		d.SHA256 = revs[inForce].SHA256[:]
	}
	return v.applicable(d, revs[d.Revision], item, inForce, ref)
}

func orNoReason(s string) string {
	if s == "" {
		return "no reason given"
	}
	return s
}

// Codes of an APPLIED that is not what was asked for.
const (
	codeRevertRefused = "revert-refused"
	codePolicyExpired = "policy-expired"
)

const (
	codeControllerRevert = "controller-revert"
	codeFixed            = "fixed"
	codeUnsettled        = "build-unsettled"
)

// completedAfter is how long a revision has to have been in force on this server for its rollout to have completed here, by
// the agent's own record: a controller can't stretch it.
const completedAfter = 24 * time.Hour

// revertRefused says why the controller may not take a revision off, wholly or for an older one; "" when it may. A fresh
// revision may go back to the one that was there before; that the mitigation goes altogether counts from its first revision on,
// or a controller could release the next one and take that off.
func (v View) revertRefused(id string, revision uint32, wholly bool) string {
	switch v.Policy.Table.ControllerRevert(id) {
	case stopgapv1.ControllerRevert_CONTROLLER_REVERT_ALWAYS:
		return ""
	case stopgapv1.ControllerRevert_CONTROLLER_REVERT_NEVER:
		return "signed policy never lets it; take it out of the signed policy"
	default:
		since := v.Since[mitigation.Ref(id, revision)]
		if wholly {
			since = v.Protected[id]
		}
		if v.Now.Sub(since) < completedAfter {
			return ""
		}
		return fmt.Sprintf("signed policy lets it only during the rollout, which completed here (in force since %s); take it out of the signed policy", since.Format(time.RFC3339))
	}
}

// expired is the decision on what an expired policy would newly apply: nothing is; what is in force stays and is repaired.
func (v View) expired(d Decision, revs map[uint32]*policy.Revision, inForce uint32, ref string) Decision {
	why := fmt.Sprintf("the signed policy expired on %s (%s); nothing new is applied until a fresh one comes", v.Policy.Expires.UTC().Format(time.RFC3339), v.Policy.ExpiresFirst)
	if inForce == 0 {
		// Still worth saying when it is not for this server at all.
		if out := v.applicable(d, revs[d.Revision], v.item(d.ID), 0, ref); out.Want != Apply {
			return out
		}
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, codePolicyExpired, "%s", why)
	}
	d.Revision, d.SHA256 = inForce, revs[inForce].SHA256[:]
	d.RefusedCode = codePolicyExpired
	d.Refused = why + "; " + ref + " stays in place"
	return v.applicable(d, revs[inForce], nil, inForce, ref)
}

// say is the decision with a state and its reason.
func (d Decision) say(st stopgapv1.OutcomeState, code, format string, args ...any) Decision {
	d.State, d.Code, d.Reason = st, code, fmt.Sprintf(format, args...)
	return d
}

func (v View) blocked(d Decision, b journal.Block, ref string) Decision {
	why := "blocked by the server's administrator since " + b.Since.UTC().Format(time.RFC3339)
	if b.Reason != "" {
		why += ": " + b.Reason
	}
	if ref == "" {
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED, "blocked", "%s", why)
	}
	if b.Keep {
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED, "blocked-kept", "%s; %s was left in place at their wish", why, ref)
	}
	out := d.say(stopgapv1.OutcomeState_OUTCOME_STATE_BLOCKED, "blocked", "%s", why)
	out.Want = Remove
	return out
}

// item is the assignment's entry, if it can be used: its revision is in policy with the hash that was released.
func (v View) item(id string) *stopgapv1.AssignmentItem {
	if v.Assignment.GetPolicyVersion() > v.Policy.Version {
		return nil // it waits for its policy; absence reverts nothing
	}
	if v.Policy.Source == policy.SourceBundle && v.Assignment.GetPolicyVersion() < v.Policy.Version {
		return nil // a controller's word of before the bundle was carried here
	}
	for _, it := range v.Assignment.GetItems() {
		if it.GetMitigation() != id {
			continue
		}
		r := v.Policy.Revisions[id][it.GetRevision()]
		if r != nil && bytes.Equal(r.SHA256[:], it.GetSha256()) {
			return it
		}
	}
	return nil
}

// applicable decides by document, facts and fixed builds. inForce is not 0 when a revision is in place: then protection
// is only taken off when removeWhen is met.
func (v View) applicable(d Decision, r *policy.Revision, item *stopgapv1.AssignmentItem, inForce uint32, ref string) Decision {
	if r.Document == nil {
		msg, _, _ := strings.Cut(r.Err.Error(), "\n")
		stays := ""
		if inForce > 0 {
			stays = "; " + ref + " stays in place"
		}
		if mitigation.IsNewer(r.Err) {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "needs-newer-agent", "this agent (%s) can't read %s, update it: %s%s",
				shared.Version, mitigation.Ref(d.ID, d.Revision), msg, stays)
		}
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "unreadable", "the document can't be used: %s%s", msg, stays)
	}
	doc := r.Document
	if want := doc.GetAppliesTo().GetRequires().GetAgent(); want != "" {
		if c, err := exchange.CompareVersions(shared.Version, want); err != nil || c < 0 {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "prerequisite-missing", "needs agent >= %s, this is %s", want, shared.Version)
		}
	}
	if !mitigation.HasRole(doc.Mitigation, v.Facts) && inForce == 0 {
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE, "role", "for %s; this server is %s",
			roleNames(doc.GetAppliesTo().GetRoles()), roleNames(v.Facts.GetRoles()))
	}
	build, err := exchange.ParseBuild(v.Facts.GetExchangeBuild())
	if err != nil {
		if len(doc.GetCves()) > 0 || len(doc.GetAppliesTo().GetExchange()) > 0 {
			if inForce == 0 {
				return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "unknown-build", "the Exchange build of this server can't be read (%v)", err)
			}
			d.Alarm = "unknown-build"
		}
	} else {
		if !mitigation.InRange(doc.Mitigation, build) && inForce == 0 {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE, "version", "not for Exchange build %s", build)
		}
		if out, final := v.fixed(d, doc, build, item, inForce, ref); final {
			return out
		} else if out.Alarm != "" {
			d.Alarm = out.Alarm
		}
	}
	if want := doc.GetAppliesTo().GetRequires().GetUrlRewrite(); want != "" && inForce == 0 {
		have := v.Facts.GetUrlRewrite()
		if have == "" {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "prerequisite-missing", "needs the IIS URL Rewrite module >= %s, which is not installed: install it, the agent will see it", want)
		}
		if c, err := exchange.CompareVersions(have, want); err != nil || c < 0 {
			return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "prerequisite-missing", "needs the IIS URL Rewrite module >= %s, installed is %s", want, have)
		}
	}
	// One that its own probes took off does not come back by itself: a newer revision, or block and unblock, try again.
	if known := v.Known[d.ID]; inForce == 0 && known.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED && known.GetCode() == codeProbeFailed &&
		known.GetRevision() == d.Revision && bytes.Equal(known.GetDocumentSha256(), d.SHA256) {
		return d.say(known.GetState(), known.GetCode(), "%s", known.GetReason())
	}
	d.Want, d.Doc, d.Emergency = Apply, doc, item.GetEmergency()
	return d
}

// fixed decides by the fixed-builds table; final says that the decision is made.
func (v View) fixed(d Decision, doc *mitigation.Document, b exchange.Build, item *stopgapv1.AssignmentItem, inForce uint32, ref string) (Decision, bool) {
	switch v.Policy.Fixed.StateAll(doc.GetCves(), b) {
	case exchange.Unfixed:
		return d, false
	case exchange.UnknownBuild:
		d.Alarm = "unknown-build"
		if inForce > 0 {
			return d, false
		}
		out := d.say(stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, "unknown-build",
			"unknown build: %s is of a newer cumulative update than the fixed-builds table knows; publish a newer table", b)
		out.Alarm = "unknown-build"
		return out, true
	case exchange.Fixed:
	}
	if v.Facts.GetUnsettled() != "" {
		d.Alarm = codeUnsettled // what is loaded may still be the old code
		return d, false
	}
	var what string
	switch mitigation.RemoveWhen(doc.Mitigation) {
	case stopgapv1.RemoveWhen_REMOVE_WHEN_SERVER_FIXED:
		what = fmt.Sprintf("build %s is fixed", b)
	case stopgapv1.RemoveWhen_REMOVE_WHEN_ORGANISATION_FIXED:
		if !item.GetOrganisationFixed() {
			return d, false // it may still serve an unpatched neighbour
		}
		what = fmt.Sprintf("build %s is fixed, and so is every known Mailbox server of the organisation", b)
	case stopgapv1.RemoveWhen_REMOVE_WHEN_UNSPECIFIED, stopgapv1.RemoveWhen_REMOVE_WHEN_NEVER:
		return d, false
	}
	if inForce > 0 && v.Now.Sub(v.BuildSince) < v.Hold {
		return d, false // an update that is taken back at once must not have taken protection with it
	}
	if inForce > 0 {
		d.Want = Remove
		return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, codeFixed, "%s; %s was taken off", what, ref), true
	}
	return d.say(stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE, codeFixed, "%s", what), true
}

// Released is the revision of a mitigation that a policy alone, with no assignment, releases to a server: the newest that can be
// read here and is for it, else the newest; 0 when none is allowed.
func Released(p *policy.Policy, f *stopgapv1.Facts, id string) uint32 {
	v := View{Policy: p, Facts: f}
	var best, any uint32
	for n, r := range p.Revisions[id] {
		any = max(any, n)
		if r.Document != nil && v.inScope(r) {
			best = max(best, n)
		}
	}
	if best == 0 {
		return any
	}
	return best
}

// inScope says whether a document is for this server. One that can't be read is: it is reported as such.
func (v View) inScope(r *policy.Revision) bool {
	if r.Document == nil {
		return true
	}
	return mitigation.Applies(r.Document.Mitigation, v.Facts)
}

func roleNames(rs []stopgapv1.Role) string {
	if len(rs) == 0 {
		return "of unknown role"
	}
	names := make([]string, len(rs))
	for i, r := range rs {
		n := strings.TrimPrefix(r.String(), "ROLE_")
		names[i] = n[:1] + strings.ToLower(n[1:])
	}
	return strings.Join(names, ", ")
}
