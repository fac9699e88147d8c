package reconcile

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/agent/internal/policy"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

const (
	m1 = "id: M1\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"
	m2 = "id: M1\nrevision: 2\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"
)

// view is a server with M1 in force since a while, in a policy that allows revisions 1 and 2.
func view(inForce uint32, since time.Duration, permits string, item *stopgapv1.AssignmentItem) View {
	h := policy.Held{State: tufpolicy.State{Documents: map[string][]byte{"mitigations/M1/1.yaml": []byte(m1), "mitigations/M1/2.yaml": []byte(m2),
		"policy.yaml": []byte("mitigations: [{id: M1, revisions: [1, 2]}]\n" + permits)}}}
	h.Versions.Targets = 7
	now := time.Now()
	v := View{Facts: &stopgapv1.Facts{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}, ExchangeBuild: "15.2.1748.10"}, Policy: policy.Parse(h),
		Now: now, InForce: map[string][]uint32{}, Since: map[string]time.Time{}, Known: map[string]*stopgapv1.Outcome{}}
	if inForce > 0 {
		v.InForce["M1"] = []uint32{inForce}
		v.Since["M1@1"], v.Since["M1@2"] = now.Add(-since), now.Add(-since)
		v.Protected = map[string]time.Time{"M1": now.Add(-since)}
	}
	if item != nil {
		item.Mitigation = "M1"
		sum := sha256.Sum256([]byte(map[uint32]string{1: m1, 2: m2}[item.GetRevision()]))
		item.Sha256 = sum[:]
		v.Assignment = &stopgapv1.Assignment{PolicyVersion: 7, Items: []*stopgapv1.AssignmentItem{item}}
	}
	return v
}

func TestWhatTheControllerMayTakeOffDependsOnSignedPolicyAndTheAgentsOwnRecord(t *testing.T) {
	t.Parallel()
	const never, always = "permits: {controllerRevert: CONTROLLER_REVERT_NEVER}\n", "permits: {controllerRevert: CONTROLLER_REVERT_ALWAYS}\n"
	revert := func() *stopgapv1.AssignmentItem {
		return &stopgapv1.AssignmentItem{Revision: 2, Revert: true, Reason: "breaks OWA"}
	}
	back := func() *stopgapv1.AssignmentItem {
		return &stopgapv1.AssignmentItem{Revision: 1, Reason: "breaks OWA"}
	}
	for name, c := range map[string]struct {
		v    View
		want Want
		rev  uint32
		code string
	}{
		"fresh, nothing said":                {view(2, time.Hour, "", revert()), Remove, 2, codeControllerRevert},
		"completed, nothing said":            {view(2, 25*time.Hour, "", revert()), Apply, 2, codeRevertRefused},
		"fresh, never":                       {view(2, time.Hour, never, revert()), Apply, 2, codeRevertRefused},
		"completed, always":                  {view(2, 25*time.Hour, always, revert()), Remove, 2, codeControllerRevert},
		"back to the one before, fresh":      {view(2, time.Hour, "", back()), Apply, 1, ""},
		"back to the one before, completed":  {view(2, 25*time.Hour, "", back()), Apply, 2, codeRevertRefused},
		"a fresh revision of what completed": {renewed(view(2, time.Hour, "", revert())), Apply, 2, codeRevertRefused},
		"that one back to the one before":    {renewed(view(2, time.Hour, "", back())), Apply, 1, ""},
		"not in force":                       {view(0, 0, "", revert()), Leave, 2, "not-released"},
		"absent from the assignment":         {view(2, time.Hour, always, nil), Apply, 2, ""},
		"the next revision, completed never": {view(1, 25*time.Hour, never, &stopgapv1.AssignmentItem{Revision: 2}), Apply, 2, ""},
	} {
		d := Decide(c.v)[0]
		code := d.Code
		if d.RefusedCode != "" {
			code = d.RefusedCode
		}
		if d.Want != c.want || d.Revision != c.rev || code != c.code {
			t.Errorf("%s: %+v", name, d)
		}
		if strings.HasPrefix(c.code, "revert") && !strings.Contains(d.Refused, "breaks OWA") {
			t.Errorf("%s: the reason is not told: %q", name, d.Refused)
		}
	}
}

// renewed is a view in which the mitigation has been in force for a month, the present revision for less.
func renewed(v View) View {
	v.Protected["M1"] = v.Now.Add(-30 * 24 * time.Hour)
	return v
}

func TestAnAssignmentWaitsForItsPolicyAndAPolicyThatEndedAppliesNothingNew(t *testing.T) {
	t.Parallel()
	early := view(0, 0, "", &stopgapv1.AssignmentItem{Revision: 2})
	early.Assignment.PolicyVersion = 8
	if d := Decide(early)[0]; d.Want != Leave || d.Code != "not-released" {
		t.Errorf("before its policy: %+v", d)
	}
	ended := func(inForce, want uint32) View {
		v := view(inForce, time.Hour, "", &stopgapv1.AssignmentItem{Revision: want})
		v.Policy.Expires, v.Policy.ExpiresFirst = v.Now.Add(-time.Second), "timestamp"
		return v
	}
	if d := Decide(ended(0, 2))[0]; d.Want != Leave || d.Code != codePolicyExpired {
		t.Errorf("new: %+v", d)
	}
	if d := Decide(ended(1, 2))[0]; d.Want != Apply || d.Revision != 1 || d.RefusedCode != codePolicyExpired {
		t.Errorf("a new revision: %+v", d)
	}
	if d := Decide(ended(2, 2))[0]; d.Want != Apply || d.Revision != 2 || d.Refused != "" {
		t.Errorf("what is in force: %+v", d)
	}
}

func TestAControllersWordOfBeforeABundleDoesNotUndoIt(t *testing.T) {
	t.Parallel()
	for name, item := range map[string]*stopgapv1.AssignmentItem{"off": {Revision: 2, Revert: true}, "the one before": {Revision: 1}} {
		v := view(2, time.Hour, "", item)
		v.Policy.Source, v.Assignment.PolicyVersion = policy.SourceBundle, 6
		if d := Decide(v)[0]; d.Want != Apply || d.Revision != 2 {
			t.Errorf("%s, said before: %+v", name, d)
		}
		v.Policy.Source = policy.SourceController
		if d := Decide(v)[0]; d.Want == Apply && d.Revision == 2 {
			t.Errorf("%s, said by the controller whose policy it is: %+v", name, d)
		}
	}
}

func TestABundleReleasesTheNewestRevisionThatIsForTheServer(t *testing.T) {
	t.Parallel()
	v := view(0, 0, "", nil)
	if n := Released(v.Policy, v.Facts, "M1"); n != 2 {
		t.Errorf("both fit: %d", n)
	}
	if n := Released(v.Policy, v.Facts, "M2"); n != 0 {
		t.Errorf("not in policy: %d", n)
	}
	v.Policy.Revisions["M1"][2].Document.AppliesTo.Roles = []stopgapv1.Role{stopgapv1.Role_ROLE_EDGE}
	if n := Released(v.Policy, v.Facts, "M1"); n != 1 {
		t.Errorf("the newest is for another role: %d", n)
	}
	v.Policy.Revisions["M1"][2].Document = nil
	if n := Released(v.Policy, v.Facts, "M1"); n != 1 {
		t.Errorf("the newest can't be read: %d", n)
	}
	v.Policy.Revisions["M1"][1].Document = nil
	if n := Released(v.Policy, v.Facts, "M1"); n != 2 {
		t.Errorf("none can be read: %d", n)
	}
}
