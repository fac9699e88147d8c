package bundle

import (
	"archive/zip"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

func pack(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(&b, files); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func small() map[string][]byte {
	return map[string][]byte{"metadata/1.root.json": []byte("r1"), "metadata/2.root.json": []byte("r2"), "metadata/7.targets.json": []byte("t7"),
		"targets/policy.yaml": []byte("p"), "targets/mitigations/M1/1.yaml": []byte("m")}
}

func TestWhatIsPackedComesOutAndIsTheSameEachTime(t *testing.T) {
	t.Parallel()
	data := pack(t, small())
	if !bytes.Equal(data, pack(t, small())) {
		t.Error("two bundles of the same files differ")
	}
	s, err := Unpack(data)
	if err != nil || len(s.Roots) != 2 || string(s.Roots[1]) != "r2" || string(s.Targets) != "t7" || string(s.Documents["mitigations/M1/1.yaml"]) != "m" || len(s.Documents) != 2 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestUnpackRefusesAndNamesTheEntry(t *testing.T) {
	t.Parallel()
	with := func(name string, content []byte) map[string][]byte {
		f := small()
		f[name] = content
		return f
	}
	without := func(name string) map[string][]byte {
		f := small()
		delete(f, name)
		return f
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "not a zip"},
		"garbage":          {[]byte("PK\x03\x04 nothing"), "not a zip"},
		"too large":        {make([]byte, MaxBytes+1), "limit"},
		"path traversal":   {pack(t, with("targets/../../etc/passwd", nil)), `"targets/../../etc/passwd" has no place`},
		"absolute":         {pack(t, with("/metadata/1.root.json", nil)), "has no place"},
		"online metadata":  {pack(t, with("metadata/timestamp.json", nil)), "has no place"},
		"a zip bomb":       {pack(t, with("targets/mitigations/B/1.yaml", make([]byte, 56<<20))), "targets/mitigations/B/1.yaml: more than"},
		"a large root":     {pack(t, with("metadata/3.root.json", make([]byte, tufpolicy.MaxRoot+1))), "metadata/3.root.json: more than"},
		"two targets":      {pack(t, with("metadata/8.targets.json", nil)), "there can be only one"},
		"no targets":       {pack(t, without("metadata/7.targets.json")), "no targets metadata"},
		"a gap":            {pack(t, without("metadata/1.root.json")), "root 1 is missing"},
		"no root":          {pack(t, map[string][]byte{"metadata/7.targets.json": nil}), "no root"},
		"a name twice":     {twice(t, "targets/policy.yaml"), "there can be only one"},
		"too many entries": {many(t), "entries, limit"},
	} {
		if _, err := Unpack(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", name, err, c.want)
		}
	}
}

func twice(t *testing.T, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for range 2 {
		if _, err := z.Create(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func many(t *testing.T) []byte {
	t.Helper()
	f := map[string][]byte{}
	for i := range maxEntries + 1 {
		f[fmt.Sprintf("targets/mitigations/A/%d.yaml", i+1)] = nil
	}
	return pack(t, f)
}

func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, small()))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Unpack(data)
		if err != nil {
			return
		}
		files := map[string][]byte{"metadata/1.targets.json": s.Targets}
		for i, r := range s.Roots {
			files[fmt.Sprintf("metadata/%d.root.json", i+1)] = r
		}
		for p, d := range s.Documents {
			files["targets/"+p] = d
		}
		again, err := Unpack(pack(t, files))
		if err != nil || len(again.Documents) != len(s.Documents) || len(again.Roots) != len(s.Roots) {
			t.Fatalf("packed again it is refused: %v", err)
		}
	})
}
