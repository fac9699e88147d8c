package vector_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/e2e/realdata"
	"github.com/stopgap-em/stopgap/shared/urlrewrite/vector"
)

// expectation is what a vector says must come of it.
type expectation struct {
	ID          string `json:"id"`
	ExpectError *bool  `json:"expect_error"`
	Source      string `json:"source"`
	Expect      *struct {
		Action         string             `json:"action"`
		Status         *int               `json:"status"`
		URL            *string            `json:"url"`
		MatchedRule    json.RawMessage    `json:"matched_rule"`
		MatchedRules   []string           `json:"matched_rules"`
		Headers        map[string]*string `json:"headers"`
		Body           *string            `json:"body"`
		RequestHeaders map[string]*string `json:"request_headers"`
	} `json:"expect"`
}

func TestEverySampleVectorAgreesWithMicrosoftsDocumentation(t *testing.T) {
	t.Parallel()
	name := filepath.Join(realdata.Dir(t), "rewrite", "vectors.json")
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	vs, err := vector.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var want struct{ Vectors []expectation }
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if len(vs) < 100 {
		t.Fatalf("%d vectors", len(vs))
	}
	wrong := 0
	for i, v := range vs {
		a := vector.Evaluate(v, nil)
		if problem := disagree(want.Vectors[i], a); problem != "" {
			wrong++
			got, _ := json.Marshal(a)
			t.Errorf("%s: %s\n  got %s\n  %s", v.ID, problem, got, want.Vectors[i].Source)
		}
	}
	t.Logf("%d of %d agree", len(vs)-wrong, len(vs))
}

func disagree(w expectation, a vector.Answer) string {
	if w.ExpectError != nil {
		if (a.Action == "config_error") != *w.ExpectError {
			return "accepted or refused wrongly"
		}
		return ""
	}
	e := w.Expect
	if a.Action != e.Action {
		return "action, want " + e.Action
	}
	if e.Status != nil && a.Status != *e.Status {
		return "status"
	}
	if e.URL != nil && a.URL != *e.URL {
		return "url, want " + *e.URL
	}
	if len(e.MatchedRule) > 0 {
		var rule *string
		_ = json.Unmarshal(e.MatchedRule, &rule)
		if rule == nil && a.MatchedRule != "" || rule != nil && a.MatchedRule != *rule {
			return "matched rule, want " + string(e.MatchedRule)
		}
	}
	if e.MatchedRules != nil && !slices.Equal(e.MatchedRules, a.MatchedRules) {
		return "matched rules"
	}
	if e.Body != nil && (a.Body == nil || *a.Body != *e.Body) {
		return "body, want " + *e.Body
	}
	for k, v := range e.Headers {
		got, ok := lookup(a.Headers, k)
		if v == nil && ok || v != nil && (!ok && *v != "" || got != *v) {
			return "header " + k
		}
	}
	for k, v := range e.RequestHeaders {
		got, ok := lookup(a.RequestHeaders, k)
		if v == nil && ok || v != nil && got != *v {
			return "request header " + k
		}
	}
	return ""
}

func lookup(m map[string]string, name string) (string, bool) {
	for k, v := range m {
		if strings.EqualFold(k, name) {
			return v, true
		}
	}
	return "", false
}
