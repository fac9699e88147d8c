package mitigation

import (
	"fmt"
	"sort"
	"strings"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// PolicyTable is policy.yaml: which revisions are allowed now, and what the controller is permitted.
type PolicyTable struct {
	*stopgapv1.PolicyTable
}

// ParsePolicyTable reads policy.yaml. The error is Problems.
func ParsePolicyTable(name string, data []byte) (*PolicyTable, error) {
	t := &PolicyTable{&stopgapv1.PolicyTable{}}
	if _, err := load(name, data, t.PolicyTable); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *PolicyTable) entry(id string) *stopgapv1.AllowedMitigation {
	for _, m := range t.GetMitigations() {
		if m.GetId() == id {
			return m
		}
	}
	return nil
}

// Allows says whether a revision is in policy.
func (t *PolicyTable) Allows(id string, revision uint32) bool {
	for _, r := range t.entry(id).GetRevisions() {
		if r == revision {
			return true
		}
	}
	return false
}

// ControllerRevert is how far the controller may take a mitigation off.
func (t *PolicyTable) ControllerRevert(id string) stopgapv1.ControllerRevert {
	for _, p := range []*stopgapv1.Permits{t.entry(id).GetPermits(), t.GetPermits()} {
		if r := p.GetControllerRevert(); r != stopgapv1.ControllerRevert_CONTROLLER_REVERT_UNSPECIFIED {
			return r
		}
	}
	return stopgapv1.ControllerRevert_CONTROLLER_REVERT_DURING_ROLLOUT
}

// Allow puts a revision into the table.
func (t *PolicyTable) Allow(id string, revision uint32) {
	if t.Allows(id, revision) {
		return
	}
	e := t.entry(id)
	if e == nil {
		e = &stopgapv1.AllowedMitigation{Id: id}
		t.Mitigations = append(t.Mitigations, e)
	}
	e.Revisions = append(e.Revisions, revision)
}

// Disallow takes a revision out of it, and says whether it was there.
func (t *PolicyTable) Disallow(id string, revision uint32) bool {
	e := t.entry(id)
	for i, r := range e.GetRevisions() {
		if r != revision {
			continue
		}
		e.Revisions = append(e.Revisions[:i:i], e.Revisions[i+1:]...)
		if len(e.Revisions) == 0 {
			for j, m := range t.Mitigations {
				if m == e {
					t.Mitigations = append(t.Mitigations[:j:j], t.Mitigations[j+1:]...)
				}
			}
		}
		return true
	}
	return false
}

// YAML writes the table, always the same bytes for the same table.
func (t *PolicyTable) YAML() []byte {
	ms := append([]*stopgapv1.AllowedMitigation(nil), t.GetMitigations()...)
	sort.Slice(ms, func(i, j int) bool { return ms[i].GetId() < ms[j].GetId() })
	var b strings.Builder
	b.WriteString("# Which revisions are allowed now, and what the controller is permitted. Written by `stopgap policy`.\n")
	if len(ms) == 0 {
		b.WriteString("mitigations: []\n")
	} else {
		b.WriteString("mitigations:\n")
	}
	for _, m := range ms {
		revs := append([]uint32(nil), m.GetRevisions()...)
		sort.Slice(revs, func(i, j int) bool { return revs[i] < revs[j] })
		text := make([]string, len(revs))
		for i, r := range revs {
			text[i] = fmt.Sprint(r)
		}
		fmt.Fprintf(&b, "  - id: %q\n    revisions: [%s]\n", m.GetId(), strings.Join(text, ", "))
		if p := m.GetPermits(); p.GetControllerRevert() != 0 {
			fmt.Fprintf(&b, "    permits: {controllerRevert: %s}\n", p.GetControllerRevert())
		}
	}
	if p := t.GetPermits(); p.GetControllerRevert() != 0 {
		fmt.Fprintf(&b, "permits: {controllerRevert: %s}\n", p.GetControllerRevert())
	}
	return []byte(b.String())
}
