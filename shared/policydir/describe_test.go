package policydir

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/signkey"
)

func TestASignerIsToldOfEveryKindOfActionOrRefused(t *testing.T) {
	t.Parallel()
	kinds := (&stopgapv1.Action{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range kinds.Len() {
		a := (&stopgapv1.Action{}).ProtoReflect()
		a.Set(kinds.Get(i), protoreflect.ValueOfMessage(a.NewField(kinds.Get(i)).Message()))
		if text, err := describeAction(a.Interface().(*stopgapv1.Action)); err != nil || text == "" {
			t.Errorf("an action of kind %s is described as %q, %v", kinds.Get(i).Name(), text, err)
		}
	}
	if text, err := describeAction(&stopgapv1.Action{Id: "x"}); !errors.Is(err, ErrNotUnderstood) {
		t.Errorf("an action of a kind that is not known: %q, %v", text, err)
	}
}

func TestWhatThisVersionDoesNotUnderstandIsNotSigned(t *testing.T) {
	t.Parallel()
	key := func(role string) *signkey.Key {
		k, err := signkey.Generate(role)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	signer := key(signkey.RoleTargets)
	const life = time.Hour
	d, err := Init(filepath.Join(t.TempDir(), "policy"), InitConfig{
		Root: []signkey.Public{key(signkey.RoleRoot).Public}, Targets: []signkey.Public{signer.Public},
		RootThreshold: 1, TargetsThreshold: 1, Snapshot: key(signkey.RoleSnapshot).Public, Timestamp: key(signkey.RoleTimestamp).Public,
		RootLife: life, TargetsLife: life, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	doc := "id: M9\nrevision: 1\ntitle: t\nseverity: SEVERITY_LOW\nappliesTo: {roles: [ROLE_MAILBOX]}\n"
	if _, err := d.Add([]File{{Name: "M9.yaml", Content: []byte(doc)}}, time.Now(), life); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, content string }{
		"an action of a newer version": {"mitigations/M9/1.yaml", doc + "actions: [{id: a, quantumShield: {}}]\n"},
		"a table of a newer version":   {mitigation.FixedBuildsName, "revision: 1\nfixes: []\nquantum: 1\n"},
	} {
		old := d.docs[c.path]
		d.docs[c.path] = []byte(c.content)
		if err := d.writeHead(); err != nil { // as a colleague's newer version would
			t.Fatal(err)
		}
		if lines, err := d.Diff(); !errors.Is(err, ErrNotUnderstood) {
			t.Errorf("%s is described: %q, %v", name, lines, err)
		}
		if lines, err := d.Sign(signer); !errors.Is(err, ErrNotUnderstood) || len(d.head.Signatures) > 0 {
			t.Errorf("%s is signed: %q, %v", name, lines, err)
		}
		if d.docs[c.path] = old; old == nil {
			delete(d.docs, c.path)
		}
	}
	if err := d.writeHead(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sign(signer); err != nil {
		t.Errorf("what it understands: %v", err)
	}
}
