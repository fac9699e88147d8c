package tufpolicy

import (
	"testing"

	"pgregory.net/rapid"
)

func TestEveryFileOfAPolicyHasOnePath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]File{
		"metadata/1.root.json":                       {Root: 1},
		"metadata/9223372036854775807.targets.json":  {Targets: 1<<63 - 1},
		"targets/policy.yaml":                        {Document: "policy.yaml"},
		"targets/fixed-builds.yaml":                  {Document: "fixed-builds.yaml"},
		"targets/mitigations/CVE-2022-41040/12.yaml": {Document: "mitigations/CVE-2022-41040/12.yaml"},
	} {
		if f, ok := ParseFile(path); !ok || f != want || f.Path() != path || f.Limit() <= 0 {
			t.Errorf("%s: %+v %v, and back %s", path, f, ok, f.Path())
		}
	}
	for _, path := range []string{"", "metadata", "metadata/", "metadata/root.json", "metadata/0.root.json", "metadata/01.root.json",
		"metadata/-1.root.json", "metadata/+1.root.json", "metadata/1.5.root.json", "metadata/99999999999999999999.root.json",
		"metadata/1.timestamp.json",
		"metadata/1.root.json~", "metadata/x/1.root.json", "/metadata/1.root.json", "./metadata/1.root.json", "targets/", "targets/other.yaml",
		"targets/mitigations/M1/0.yaml", "targets/mitigations/M1/01.yaml", "targets/mitigations/../M1/1.yaml", "targets/../metadata/1.root.json",
		"Targets/policy.yaml", `targets\policy.yaml`} {
		if f, ok := ParseFile(path); ok {
			t.Errorf("%q has a place: %+v", path, f)
		}
	}
}

func TestAPathThatHasAPlaceIsTheOnlyOneOfItsFile(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.StringMatching(`(metadata|targets)/[0-9.a-z/]{0,12}(root\.json|targets\.json|yaml)?`).Draw(t, "path")
		if f, ok := ParseFile(path); ok && f.Path() != path {
			t.Fatalf("%q is %+v, whose path is %q", path, f, f.Path())
		}
	})
}
