package policy

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func target(path, content string) *stopgapv1.PolicyTarget {
	sum := sha256.Sum256([]byte(content))
	return &stopgapv1.PolicyTarget{Path: path, Sha256: sum[:], Length: uint32(len(content)), Content: []byte(content)}
}

const a1 = "id: A\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"

func TestAnUpdateIsTakenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	held, err := Accept(Held{}, &stopgapv1.PolicyUpdate{Version: 3, Targets: []*stopgapv1.PolicyTarget{target("mitigations/A/1.yaml", a1)}}, time.Now())
	if err != nil || held.Version != 3 {
		t.Fatal(err)
	}
	lacking := target("mitigations/A/1.yaml", a1)
	lacking.Content = nil
	next, err := Accept(held, &stopgapv1.PolicyUpdate{Version: 4, BaseVersion: 3, Targets: []*stopgapv1.PolicyTarget{lacking, target("mitigations/B/1.yaml", "x")}}, time.Now())
	if err != nil || string(next.Targets["mitigations/A/1.yaml"]) != a1 {
		t.Fatalf("what was left out is not taken from what is held: %v", err)
	}
	if _, err := Accept(held, &stopgapv1.PolicyUpdate{Version: 3}, time.Now()); !errors.Is(err, ErrUnchanged) {
		t.Errorf("the same version: %v", err)
	}
	wrong := target("mitigations/A/1.yaml", a1)
	wrong.Length++
	other := target("mitigations/A/1.yaml", "something else")
	other.Content = nil
	for name, c := range map[string]struct {
		t         *stopgapv1.PolicyTarget
		permanent bool
	}{
		"length":                    {wrong, true},
		"path":                      {target("mitigations/A/../../x", a1), true},
		"revision 0":                {target("mitigations/A/0.yaml", a1), true},
		"left out, other hash held": {other, false},
		"left out and not held":     {&stopgapv1.PolicyTarget{Path: "mitigations/Z/1.yaml", Sha256: make([]byte, 32)}, false},
	} {
		_, err := Accept(held, &stopgapv1.PolicyUpdate{Version: 5, Targets: []*stopgapv1.PolicyTarget{c.t}}, time.Now())
		var r *Refusal
		if !errors.As(err, &r) || r.Permanent != c.permanent {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADocumentThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	p := Parse(Held{Version: 1, Targets: map[string][]byte{"mitigations/A/1.yaml": []byte(a1), "mitigations/B/1.yaml": []byte("id: ["),
		"mitigations/C/2.yaml": []byte(a1), "fixed-builds.yaml": []byte("revision: x")}})
	if p.Revisions["A"][1].Document == nil || p.Revisions["B"][1].Err == nil || p.FixedError == nil {
		t.Errorf("%+v", p)
	}
	if p.Revisions["C"][2].Err == nil {
		t.Error("a document under another's path is believed")
	}
}

func FuzzAccept(f *testing.F) {
	raw, err := proto.Marshal(&stopgapv1.PolicyUpdate{Version: 9, Targets: []*stopgapv1.PolicyTarget{target("mitigations/A/1.yaml", a1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	held, err := Accept(Held{}, &stopgapv1.PolicyUpdate{Version: 3, Targets: []*stopgapv1.PolicyTarget{target("mitigations/A/1.yaml", a1)}}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Decode(data)
		if err != nil {
			return
		}
		next, err := Accept(held, u, time.Now())
		if err != nil && next.Version != held.Version {
			t.Fatal("refused, and something changed")
		}
		if err == nil {
			if next.Version <= held.Version {
				t.Fatal("went back")
			}
			Parse(next)
		}
	})
}
