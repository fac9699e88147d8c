package policy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stopgap-em/stopgap/controller/internal/store/boltstore"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

func doc(id string, rev int, title string) File {
	return File{Name: id + ".yaml", Content: fmt.Appendf(nil, "id: %s\nrevision: %d\ntitle: %s\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n", id, rev, title)}
}

func open(t *testing.T) (*Policy, func() *Policy) {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	load := func() *Policy {
		p, err := Load(t.Context(), st, func() {})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	return load(), load
}

func publish(t *testing.T, p *Policy, files ...File) uint64 {
	t.Helper()
	v, _, err := p.Publish(t.Context(), files, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAPublishedRevisionNeverChangesNotEvenAfterItWasWithdrawnAndTheControllerRestarted(t *testing.T) {
	t.Parallel()
	p, reload := open(t)
	publish(t, p, doc("A", 1, "first"))
	if _, _, err := p.Publish(t.Context(), []File{doc("A", 1, "other")}, 0); !errors.Is(err, ErrImmutable) {
		t.Errorf("in policy: %v", err)
	}
	if _, err := p.Withdraw(t.Context(), "A", 1); err != nil {
		t.Fatal(err)
	}
	for _, q := range []*Policy{p, reload()} {
		if _, _, err := q.Publish(t.Context(), []File{doc("A", 1, "other")}, 0); !errors.Is(err, ErrImmutable) {
			t.Errorf("after withdrawal: %v", err)
		}
	}
	publish(t, p, doc("A", 1, "first")) // the same bytes may come back
	if _, err := p.Withdraw(t.Context(), "A", 9); !errors.Is(err, ErrNotFound) {
		t.Errorf("a revision that is not there: %v", err)
	}
}

func TestAllFilesOrNone(t *testing.T) {
	t.Parallel()
	p, _ := open(t)
	_, _, err := p.Publish(t.Context(), []File{doc("A", 1, "t"), {Name: "bad.yaml", Content: []byte("id: [")}}, 0)
	var ps mitigation.Problems
	if !errors.As(err, &ps) || ps[0].File != "bad.yaml" || p.Current().Version != 0 {
		t.Errorf("%v, version %d", err, p.Current().Version)
	}
	var many []File
	for i := range 60 {
		many = append(many, File{Name: "x", Content: append(doc(fmt.Sprintf("B%d", i), 1, "t").Content, bytes.Repeat([]byte("#"), 250<<10)...)})
	}
	if _, _, err := p.Publish(t.Context(), many, 0); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "bytes in all documents") {
		t.Errorf("15 MB of documents: %v", err)
	}
	if _, _, err := p.Publish(t.Context(), []File{doc("A", 1, "t")}, 10_000_000); !errors.Is(err, ErrLimit) {
		t.Errorf("a far jump of the version: %v", err)
	}
}

func TestAnUpdateCarriesOnlyWhatTheAgentLacks(t *testing.T) {
	t.Parallel()
	p, reload := open(t)
	one := publish(t, p, doc("A", 1, "t"))
	two := publish(t, p, doc("B", 1, "t"))
	if same := publish(t, p, doc("B", 1, "t")); same != two {
		t.Errorf("the same again made version %d", same)
	}
	for _, q := range []*Policy{p, reload()} {
		for held, want := range map[uint64]string{0: "A B", one: "B", 777: ""} {
			data, version := q.Update(held)
			if held == 777 {
				if data != nil {
					t.Error("an agent that is ahead is sent something")
				}
				continue
			}
			u := &stopgapv1.PolicyUpdate{}
			if err := proto.Unmarshal(data, u); err != nil || version != two || len(u.GetTargets()) != 2 {
				t.Fatalf("%v %v", u, err)
			}
			var got []string
			for _, x := range u.GetTargets() {
				if x.GetContent() != nil {
					got = append(got, strings.Split(x.GetPath(), "/")[1])
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("held %d: sent %v, want %s", held, got, want)
			}
		}
	}
	if data, _ := p.Update(two); data != nil {
		t.Error("an agent that has the newest is sent something")
	}
}

func TestOldVersionsAreForgottenAndTheirDocumentsWithThem(t *testing.T) {
	t.Parallel()
	p, reload := open(t)
	for i := 1; i <= keptVersions+10; i++ {
		publish(t, p, doc("A", i, "t"))
		if i > 1 {
			if _, err := p.Withdraw(t.Context(), "A", uint32(i-1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	q := reload()
	if len(q.old) > keptVersions {
		t.Errorf("%d versions kept", len(q.old))
	}
	kvs, _, err := q.st.List(t.Context(), kDoc)
	if err != nil || len(kvs) > keptVersions {
		t.Errorf("%d documents kept, %v", len(kvs), err)
	}
	if data, _ := q.Update(1); data == nil {
		t.Error("an agent at a forgotten version gets nothing")
	}
}
