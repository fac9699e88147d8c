package reconcile

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stopgap-em/stopgap/agent/internal/host"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/bounded"
	"github.com/stopgap-em/stopgap/shared/outcome"
)

func dirKey(dir string) string { return strings.ToLower(strings.TrimRight(dir, `\/`)) }

// codePartial is the code of PARTIAL.
const codePartial = "partial"

const (
	maxReason   = 1 << 10
	maxEvidence = 32
)

// outcome is what is to be reported about a work; nil when it is what was reported last.
func (p *pass) outcome(w *work) *stopgapv1.Outcome {
	if w.waiting {
		return nil
	}
	old := p.known[w.ID]
	o := &stopgapv1.Outcome{
		Mitigation: w.ID, Revision: w.Revision, State: w.State, Code: w.Code, Reason: w.Reason,
		ObservedAt: timestamppb.New(p.now), DocumentSha256: w.SHA256, DriftRepairs: old.GetDriftRepairs(), Evidence: w.evidence,
	}
	w.before = p.r.retry[w.ID]
	delete(p.r.retry, w.ID)
	switch {
	case w.failed != nil:
		p.failure(w, o)
	case w.Want == Apply:
		o.State, o.Proof = stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, stopgapv1.Proof_PROOF_CONFIGURATION_ONLY
		o.Code, o.Reason = appliedCode(w, old)
		if len(w.drift) > 0 {
			o.DriftRepairs++
			o.Code, o.Reason = "drift-repaired", "was undone or altered by somebody else and put back: "+strings.Join(w.drift, "; ")
		}
		partly(w, o)
		p.probedOutcome(w, old, o)
		p.witnessed(w, old, o)
		p.contradict(w, o)
		if len(o.Evidence) == 0 {
			o.Evidence = []*stopgapv1.Evidence{{Subject: "document", Found: "changes nothing; received, checked and decided on", Sha256: w.SHA256}}
		}
	case w.Want == Leave && stays(old, w):
		return nil
	}
	o.Reason = bounded.Text(o.Reason, maxReason)
	if len(o.Evidence) > maxEvidence {
		o.Evidence = o.Evidence[:maxEvidence]
	}
	if same(old, o) {
		return nil
	}
	return o
}

// partly makes an outcome PARTIAL when the mitigation is in place and not in effect everywhere: what gets through is listed one
// by one, with the reason.
func partly(w *work, o *stopgapv1.Outcome) {
	var gaps []string
	for _, s := range w.apply {
		gaps = append(gaps, s.gaps...)
	}
	if len(gaps) == 0 {
		return
	}
	o.State, o.Code = stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL, codePartial
	found := ""
	if w.foreign {
		found = " (found in place, put there by somebody else)"
	}
	o.Reason = "in effect in part only" + found + ": " + strings.Join(gaps, "; ")
}

// contradict turns an outcome whose own probe got through into FAILED: what the configuration says is then not what happens. The
// mitigation stays in place, and is not called APPLIED before the probe is refused.
func (p *pass) contradict(w *work, o *stopgapv1.Outcome) {
	if w.probed.contradicted == "" {
		return
	}
	o.State, o.Code, o.Proof = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, codeContradicted, stopgapv1.Proof_PROOF_CONTRADICTED
	o.Reason = contradictedText + w.probed.contradicted
	p.alarms[codeContradicted] = fmt.Sprintf("%s@%d: its probe gets through: %s", w.ID, w.Revision, w.probed.contradicted)
}

// probedOutcome adds what the probes showed; what they showed once holds until the mitigation is touched again.
func (p *pass) probedOutcome(w *work, old, o *stopgapv1.Outcome) {
	o.Evidence = append(o.Evidence, w.probed.evidence...)
	switch {
	case w.probed.kept != "":
		text := "applied, and a probe that passed before fails now; it stays, as its document says: " + w.probed.kept
		if o.GetCode() == codePartial {
			text += "; " + o.GetReason()
		}
		o.Code, o.Reason = codeProbeFailed, text
	case !w.touched && old.GetState() == o.GetState() && old.GetRevision() == o.GetRevision() && string(old.GetDocumentSha256()) == string(o.GetDocumentSha256()):
		o.Proof = old.GetProof()
	case w.probed.unproven != "":
		o.Reason += "; its effect could not be shown: " + w.probed.unproven
	}
	if w.probed.proven {
		o.Proof = stopgapv1.Proof_PROOF_EFFECT_PROVEN
	}
}

func appliedCode(w *work, old *stopgapv1.Outcome) (code, reason string) {
	told := old.GetCode() != codeRevertRefused && old.GetCode() != codePolicyExpired
	switch {
	case w.Refused != "":
		return w.RefusedCode, w.Refused
	case len(w.apply) > 0 && w.absent == len(w.apply):
		return "not-present", "nothing to stop: " + w.apply[0].now.Detail
	case w.adopted:
		return "adopted", "found in place under our own name, unknown to the journal; taken over"
	case w.foreign:
		return "found", "found in place, put there by somebody else; it is not ours to take off"
	case told && !w.touched && old.GetState() == stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED && old.GetRevision() == w.Revision:
		return old.GetCode(), old.GetReason() // a repaired drift stays told
	case len(w.revert) > 0 && len(w.apply) > 0:
		return "swapped", fmt.Sprintf("replaced %s@%d in one step", w.ID, w.revert[0].ref.Revision)
	}
	return "applied", "applied and read back"
}

// stays: a removal stays told as such when nothing has changed since but that the mitigation is not wanted any more.
func stays(old *stopgapv1.Outcome, w *work) bool {
	if old == nil || old.GetState() != stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED {
		return false
	}
	over := w.State == stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE || w.State == stopgapv1.OutcomeState_OUTCOME_STATE_PENDING
	return over && w.Code == old.GetCode()
}

// failure turns an error into an outcome and says when it is tried again.
func (p *pass) failure(w *work, o *stopgapv1.Outcome) {
	o.State, o.Code = stopgapv1.OutcomeState_OUTCOME_STATE_FAILED, "failed"
	if w.Want == Remove {
		o.State, o.Code = stopgapv1.OutcomeState_OUTCOME_STATE_REVERT_FAILED, "revert-failed"
	}
	o.Reason, o.Proof = w.failed.Error(), stopgapv1.Proof_PROOF_UNSPECIFIED
	var he *host.Error
	wait := retryFirst
	if errors.As(w.failed, &he) {
		o.Code = he.Code
		if o.GetCode() == codeProbeFailed && !w.undone {
			o.Code = "failed" // what was to be taken off could not be
		} else if o.GetCode() == codeProbeFailed {
			o.State, o.Evidence = stopgapv1.OutcomeState_OUTCOME_STATE_REVERTED, w.probed.evidence
			return
		}
		if he.Conflict {
			o.State, wait = stopgapv1.OutcomeState_OUTCOME_STATE_CONFLICT, fightRetry
		}
	}
	if !w.touched {
		return // nothing was written: any event may try again
	}
	b := w.before
	if b.want != w.Want || b.revision != w.Revision {
		b = backoffState{want: w.Want, revision: w.Revision}
	}
	b.failures++
	if wait == retryFirst {
		wait = min(retryFirst<<min(b.failures-1, 10), retryMax)
	}
	b.next = p.now.Add(wait)
	p.r.retry[w.ID] = b
}

// same says whether two outcomes tell the same; hashes of files change with every other mitigation in them.
func same(a, b *stopgapv1.Outcome) bool {
	return a != nil && a.GetState() == b.GetState() && a.GetRevision() == b.GetRevision() && a.GetCode() == b.GetCode() &&
		a.GetReason() == b.GetReason() && a.GetDriftRepairs() == b.GetDriftRepairs() && a.GetProof() == b.GetProof() &&
		string(a.GetDocumentSha256()) == string(b.GetDocumentSha256())
}

func (p *pass) log(o *stopgapv1.Outcome) {
	l := p.r.cfg.Logger.Info
	if outcome.Of(o.GetState()).Alarmed() {
		l = p.r.cfg.Logger.Error
	}
	l("outcome", "mitigation", o.GetMitigation(), "revision", o.GetRevision(), "state", outcome.Name(o.GetState()),
		"code", o.GetCode(), "reason", o.GetReason())
}

// The health manager is held as changes of its own, under a name no mitigation can have.
const healthManager = "+health-manager"

func (p *pass) healthManagerRecords() []journal.Change {
	var out []journal.Change
	for _, c := range p.changes {
		if c.Ref.Mitigation == healthManager {
			out = append(out, c)
		}
	}
	return out
}

// stopping says whether a change stops something that the health manager would start again.
func stopping(c journal.Change) bool {
	a, err := c.Action()
	return err == nil && c.Ref.Mitigation != healthManager && a.GetUrlRewrite() == nil
}

func healthManagerAction(name string) *stopgapv1.Action {
	return &stopgapv1.Action{Id: name, Kind: &stopgapv1.Action_Service{Service: &stopgapv1.ServiceAction{
		Name: name, StartType: host.StartDisabled, State: host.Stopped}}}
}
