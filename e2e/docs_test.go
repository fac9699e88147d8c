package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stopgap-em/stopgap/shared"
)

// repository is the root of the repository, seen from this package.
const repository = ".."

// docPages gives every Markdown file of the repository, by its path with slashes.
func docPages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != repository && (strings.HasPrefix(name, ".") && name != ".github" || name == "bin" || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".md" {
			return nil
		}
		data, err := os.ReadFile(path)
		rel, rerr := filepath.Rel(repository, path)
		if err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		out[filepath.ToSlash(rel)] = string(data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	fence   = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	code    = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// links gives what a page links to within the repository: the path of the file, and the anchor in it.
func links(page, text string) (out [][2]string) {
	text = code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		target, anchor, _ := strings.Cut(m[1], "#")
		if target = filepath.ToSlash(filepath.Join(filepath.Dir(page), target)); strings.HasPrefix(m[1], "#") {
			target = page
		}
		out = append(out, [2]string{target, anchor})
	}
	return out
}

// anchors gives the anchors of a page, as forges make them of its headings.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := noSlug.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		out[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return out
}

func TestEveryPageIsListedAndEveryLinkLeadsToAFile(t *testing.T) {
	t.Parallel()
	all := docPages(t)
	if len(all) < 20 {
		t.Fatalf("only %d pages were found", len(all))
	}
	listed := map[string]bool{}
	for page, text := range all {
		for _, l := range links(page, text) {
			target, anchor := l[0], l[1]
			if filepath.Base(page) == "README.md" && strings.HasPrefix(page, "docs/") {
				listed[target] = true
			}
			if _, err := os.Stat(filepath.Join(repository, filepath.FromSlash(target))); err != nil {
				t.Errorf("%s links to %s, which is not there", page, target)
				continue
			}
			if to, ok := all[target]; anchor != "" && ok && !anchors(to)[anchor] {
				t.Errorf("%s links to %s#%s, and no heading there has that anchor", page, target, anchor)
			}
		}
	}
	for page := range all {
		if strings.HasPrefix(page, "docs/") && page != "docs/README.md" && !listed[page] {
			t.Errorf("%s is not listed in docs/README.md (a decision: in docs/decisions/README.md)", page)
		}
	}
}

// declared gives what the Go files of a directory declare, tests left out: "Parse", "Pass", "Pass.Flush".
func declared(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	names, err := filepath.Glob(filepath.Join(repository, filepath.FromSlash(dir), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				out[receiver(d)+d.Name.Name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok {
						out[ts.Name.Name] = true
					}
				}
			}
		}
	}
	return out
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name + "."
	}
	return ""
}

// testNames gives the names of every test of the repository.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	test := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != repository && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		for _, m := range test.FindAllStringSubmatch(string(data), -1) {
			out[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryPathAndTestThatAPageNamesIsThere(t *testing.T) {
	t.Parallel()
	path := regexp.MustCompile("`((?:agent|controller|shared|proto|e2e|docs|tools|deploy)/[\\w./-]*\\w)`")
	test := regexp.MustCompile(`\b(Test[A-Z]\w+)(\.\.\.)?`)
	tests := testNames(t)
	for page, text := range docPages(t) {
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(repository, filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s names %s, which is not there", page, m[1])
			}
		}
		for _, m := range test.FindAllStringSubmatch(text, -1) {
			found := tests[m[1]]
			for name := range tests {
				found = found || m[2] != "" && strings.HasPrefix(name, m[1])
			}
			if !found {
				t.Errorf("%s names %s, and there is no such test", page, m[0])
			}
		}
	}
}

func TestWhatTheArchitecturePageNamesIsThere(t *testing.T) {
	t.Parallel()
	const page = "docs/architecture.md"
	text := docPages(t)[page]
	// The table of a publish: | step | `room` | `function`, `function` | what |
	row := regexp.MustCompile("(?m)^\\| \\d+ \\| `([^`]+)` \\| ([^|]+) \\|")
	rows := row.FindAllStringSubmatch(text, -1)
	if len(rows) < 20 {
		t.Fatalf("the table of a publish has %d rows", len(rows))
	}
	rooms := map[string]map[string]bool{}
	for _, r := range rows {
		if rooms[r[1]] == nil {
			rooms[r[1]] = declared(t, r[1])
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(r[2], -1) {
			if !rooms[r[1]][m[1]] {
				t.Errorf("%s: %s has no %s any more: say in the table, and in the picture, which way a publish goes now", page, r[1], m[1])
			}
		}
	}
	for _, side := range []string{"agent/internal", "controller/internal", "shared"} {
		dirs, err := os.ReadDir(filepath.Join(repository, filepath.FromSlash(side)))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if d.IsDir() && !strings.Contains(text, "`"+d.Name()+"`") && !strings.Contains(text, "`"+side+"/"+d.Name()+"`") {
				t.Errorf("%s does not name the room %s/%s: add it to its lists of rooms", page, side, d.Name())
			}
		}
	}
}

func TestTheChangelogHasTheVersionOfThePrograms(t *testing.T) {
	t.Parallel()
	// The programs carry the number of the next release from its first change on; until then its section is Unreleased.
	text := docPages(t)["CHANGELOG.md"]
	if !strings.Contains(text, "\n## ["+shared.Version+"] - ") && !strings.Contains(text, "\n## [Unreleased]\n\nThis will be "+shared.Version+".") {
		t.Errorf("CHANGELOG.md has no section for %s, which is the version in shared/version.go", shared.Version)
	}
}
