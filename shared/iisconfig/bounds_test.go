package iisconfig_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/labdir"
)

// soon fails a test whose work takes longer than any bounded work does, on a slow machine with the race detector too.
func soon(t *testing.T, what string, work func()) {
	t.Helper()
	began := time.Now()
	work()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("%s took %s", what, took)
	}
}

func TestADeepPathIsComposedLevelByLevel(t *testing.T) {
	deep := strings.Repeat("/d", 200)
	w := world{files: files{"W": "rules +A", "W" + deep[:80]: "rules clear +B", "W" + deep: "rules +C"}}
	w.ask(t, map[string]string{deep: "B C", deep[:78]: "A", deep + "/x": "B C"})
}

func TestAPathWithMoreSegmentsThanHTTPSysTakesIsNamedAndCostsItselfOnly(t *testing.T) {
	m, site := world{files: files{"W": "rules +A"}}.model(t)
	soon(t, "50,000 segments", func() {
		for _, n := range []int{256, 50_000} {
			p := m.At(site, strings.Repeat("/d", n))
			bad := p.Invalid()
			if bad == nil || !bad.Unsure || !strings.Contains(bad.Error(), fmt.Sprint(n, " segments")) {
				t.Errorf("%d segments: %v", n, bad)
			}
			if got := p.Section("preConditions").Err; got == nil {
				t.Error("preconditions are judged all the same")
			}
		}
	})
	if got := answer(m.At(site, strings.Repeat("/d", 255)), "rules"); got != "A" {
		t.Errorf("255 segments: %q", got)
	}
	if got := answer(m.At(site, "/"+strings.Repeat("d", 100<<10)), "rules"); got != "A" {
		t.Errorf("one long segment: %q", got)
	}
}

// manyRules is a web.config of nearly the largest size that IIS reads.
func manyRules(clear bool) string {
	var b strings.Builder
	b.WriteString("<configuration><system.webServer><rewrite><rules>")
	if clear {
		b.WriteString("<clear/>")
	}
	for i := 0; b.Len() < 250_000; i++ {
		fmt.Fprintf(&b, "<rule name=\"%d\"/>\n", i)
	}
	return b.String() + "</rules></rewrite></system.webServer></configuration>"
}

func TestLargeFilesOnEachOfManyLevelsAreBounded(t *testing.T) {
	text := manyRules(true)
	w := world{files: files{"E": "rules +C"}}
	for i := 1; i <= 100; i++ {
		w.files["W"+strings.Repeat("/d", i)] = text
	}
	m, site := w.model(t)
	soon(t, "100 levels of 250 KB", func() {
		p := m.At(site, strings.Repeat("/d", 100))
		if bad := p.Invalid(); bad == nil || !bad.Unsure {
			t.Errorf("it is judged: %v", bad)
		}
	})
	if got := answer(m.At(site, "/ecp"), "rules"); got != "C" {
		t.Errorf("another place: %q", got)
	}
}

// onDisk makes a copy of a server's disk whose site root is DIR/C/inetpub/wwwroot.
func onDisk(t *testing.T) (root string, site func() (*iisconfig.Model, *iisconfig.Site)) {
	t.Helper()
	dir := t.TempDir()
	root = filepath.Join(dir, "C", "inetpub", "wwwroot")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root, "rules +A")
	return root, func() (*iisconfig.Model, *iisconfig.Site) {
		srv, err := iisconfig.Parse([]byte(world{}.appHost()), "applicationHost.config")
		if err != nil {
			t.Fatal(err)
		}
		return iisconfig.NewModel(srv, labdir.Dir(dir)), srv.Site("S")
	}
}

func write(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "web.config"), []byte("<configuration>"+lines(text)+"</configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWhatStrangersWriteBelowASiteCostsThatPlaceOnlyAndIsNamed(t *testing.T) {
	root, open := onDisk(t)
	write(t, filepath.Join(root, "huge"), "rules +B")
	if err := os.Truncate(filepath.Join(root, "huge", "web.config"), 2<<30); err != nil { // sparse: it takes no room
		t.Fatal(err)
	}
	bad := filepath.Join(root, "malformed")
	write(t, bad, "rules +B")
	if err := os.WriteFile(filepath.Join(bad, "web.config"), []byte("<configuration>\n<system.webServer>\n</configuration>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "selfish"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"loop": ".", "selfish/web.config": "web.config", "directory": root} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "selfish", "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "selfish", "d", "web.config"), 0o755); err != nil { // a directory of that name
		t.Fatal(err)
	}
	m, site := open()
	soon(t, "all of it", func() {
		for path, says := range map[string]string{
			"/huge":                      "huge/web.config: ",
			"/huge/below":                "IIS reads at most 256000 bytes",
			"/malformed":                 "malformed/web.config:3: ",
			"/selfish":                   "selfish/web.config: can't be read",
			"/loop":                      "is defined a second time", // the same file at two levels
			strings.Repeat("/loop", 200): "is defined a second time",
			"/directory":                 "is defined a second time",
		} {
			got := m.At(site, path).Invalid()
			if got == nil || !strings.Contains(got.Error(), says) {
				t.Errorf("%.40s: %v, want %q", path, got, says)
			}
		}
	})
	for _, path := range []string{"/", "/other", "/hug"} {
		if got := answer(m.At(site, path), "rules"); got != "A" {
			t.Errorf("%s: %q, want what the site's own file says", path, got)
		}
	}
}

// TestManyDirectoriesAreNotWalked: 2,000 stand for 200,000; what a path needs does not depend on how many there are, but for
// finding a name that is written in another letter case.
func TestManyDirectoriesAreNotWalked(t *testing.T) {
	root, open := onDisk(t)
	for i := range 2_000 {
		if err := os.Mkdir(filepath.Join(root, fmt.Sprint("d", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "d77"), "rules +D")
	m, site := open()
	soon(t, "some paths among many directories", func() {
		for path, want := range map[string]string{"/d77": "A D", "/D77/x": "A D", "/d78": "A", "/none": "A"} {
			if got := answer(m.At(site, path), "rules"); got != want {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
	})
}

func TestAModelThatIsAskedForEverRemembersABoundedNumber(t *testing.T) {
	m, site := world{files: files{"W": "rules +A"}}.model(t)
	soon(t, "30,000 paths", func() {
		for i := range 30_000 {
			if got := answer(m.At(site, fmt.Sprint("/p", i)), "rules"); got != "A" {
				t.Fatalf("path %d: %q", i, got)
			}
		}
	})
}
