package event

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

type memory []string

func (m *memory) Write(id ID, s Severity, text string) error {
	*m = append(*m, fmt.Sprintf("%d %d %s", id, s, text))
	return nil
}

func TestEveryEventIsDocumentedAndHasAnIDThatWindowsCanShow(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[ID]bool{}
	for _, k := range Catalogue {
		if k.ID < 1 || k.ID > 1000 || seen[k.ID] {
			t.Errorf("%d: out of range, or twice", k.ID)
		}
		seen[k.ID] = true
		if want := fmt.Sprintf("| %d | %s | %s |", k.ID, []string{"information", "warning", "error"}[k.Severity], k.Name); !strings.Contains(string(doc), want) {
			t.Errorf("docs/events.md has no row %q", want)
		}
	}
	if n := strings.Count(string(doc), "\n| ") - 1; n != len(Catalogue) {
		t.Errorf("docs/events.md has %d rows, the catalogue %d events", n, len(Catalogue))
	}
}

func TestOutcomesAreToldInWords(t *testing.T) {
	t.Parallel()
	var m memory
	tell := NewTeller(&m, hclog.NewNullLogger())
	for _, o := range []*stopgapv1.Outcome{
		{Mitigation: "M1", Revision: 2, State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, Evidence: []*stopgapv1.Evidence{{Subject: "web.config", Found: "in place"}}},
		{Mitigation: "M1", Revision: 2, State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED, Code: "drift-repaired", Reason: "was undone, put back"},
		{Mitigation: "M1", State: stopgapv1.OutcomeState_OUTCOME_STATE_NOT_APPLICABLE},
		{Mitigation: "M1", Revision: 2, State: stopgapv1.OutcomeState_OUTCOME_STATE_REVERT_FAILED, Reason: "held open"},
		{Mitigation: "M1", Revision: 2, State: stopgapv1.OutcomeState_OUTCOME_STATE_PARTIAL, Code: "drift-repaired",
			Reason: "GET /owa/x gets through"},
		{Mitigation: "M1", State: stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, Code: "not-released"},
		{Mitigation: "M1", State: stopgapv1.OutcomeState_OUTCOME_STATE_PENDING, Code: "servicing", Reason: "being updated"},
		{Mitigation: "M1", State: 12},
	} {
		tell.Outcome(o)
	}
	want := []string{"200 0 Mitigation M1 (revision 2): applied. web.config: in place", "204 1 Mitigation M1 (revision 2): applied. was undone, put back",
		"206 2 Mitigation M1 (revision 2): revert failed. held open", "209 2 Mitigation M1 (revision 2): partial. GET /owa/x gets through",
		"208 1 Mitigation M1 (revision 0): pending. being updated"}
	if fmt.Sprint(m) != fmt.Sprint(memory(want)) {
		t.Errorf("%q", m)
	}
	(*Teller)(nil).Tell(Started, "nobody hears it")
}
