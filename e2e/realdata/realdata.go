// Package realdata finds the folder of real input for tests: Exchange configurations, URL Rewrite vectors. It holds none.
package realdata

import (
	"os"
	"path/filepath"
	"testing"
)

// Dir is the folder named by STOPGAP_TESTDATA, or ../shared/data beside the checkout; where neither is there the test is
// skipped. A folder that is named and lacks something fails the test that wants it.
func Dir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("STOPGAP_TESTDATA"); dir != "" {
		return dir
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "buf.yaml")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("not inside the checkout")
		}
		root = filepath.Dir(root)
	}
	dir := filepath.Join(root, "..", "shared", "data")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("REAL DATA: absent")
	}
	return dir
}
