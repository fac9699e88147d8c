package iisconfig_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stopgap-em/stopgap/shared/iisconfig"
)

// The levels of the generated configurations: the path that is asked for, and who may say something there.
var (
	levels   = []string{"/", "/owa", "/owa/auth", "/owa/auth/x"}
	ownFiles = []string{"W", "O", "O/auth", "O/auth/x"}
)

// saying is what one writer says at one level: some rules of its own, and perhaps <clear/> or <remove> in front of them.
type saying struct {
	level  int    // of levels
	writer int    // 0: applicationHost.config; i+1: ownFiles[i]
	clear  bool   // removes everything above
	remove string // removes one rule
	rules  []string
}

// line is a saying in notation: in a <location> unless the writer is the level's own file.
func (s saying) line() (file, line string) {
	items := ""
	if s.clear {
		items += " clear"
	}
	if s.remove != "" {
		items += " -" + s.remove
	}
	for _, r := range s.rules {
		items += " +" + r
	}
	switch {
	case s.writer == 0 && s.level == 0:
		return "apphost", "@S rules" + items
	case s.writer == 0:
		return "apphost", "@S" + levels[s.level] + " rules" + items
	case s.writer-1 == s.level:
		return ownFiles[s.level], "rules" + items
	}
	above := strings.TrimSuffix(levels[s.writer-1], "/")
	return ownFiles[s.writer-1], "@" + strings.TrimPrefix(levels[s.level], above+"/") + " rules" + items
}

// sayings draws a configuration without duplicates: each rule has a name of its own. Their order is the order of composition: by
// level, at each level applicationHost.config, then the files above, outermost first, then the level's own.
func sayings(t *rapid.T) []saying {
	var out []saying
	n := 0
	for level := range levels {
		for writer := 0; writer <= level+1; writer++ {
			if rapid.Bool().Draw(t, "absent") {
				continue
			}
			s := saying{level: level, writer: writer, clear: rapid.IntRange(0, 5).Draw(t, "clear") == 0}
			if n > 0 && rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				s.remove = fmt.Sprint("r", rapid.IntRange(0, n-1).Draw(t, "which"))
			}
			for range rapid.IntRange(0, 2).Draw(t, "rules") {
				s.rules = append(s.rules, fmt.Sprint("r", n))
				n++
			}
			out = append(out, s)
		}
	}
	return out
}

// build makes the files of sayings, with each file's lines in an order of one's choice.
func build(all []saying, order func([]string) []string) world {
	byFile := map[string][]string{}
	for _, s := range all {
		f, l := s.line()
		byFile[f] = append(byFile[f], l)
	}
	w := world{files: files{}}
	for _, f := range slices.Sorted(maps.Keys(byFile)) {
		w.files[f] = strings.Join(order(byFile[f]), "\n")
	}
	return w
}

func asIs(l []string) []string { return l }

// plain composes sayings the plain way: a list of names, nothing of the model.
func plain(all []saying, level int) string {
	var names []string
	for _, s := range all {
		if s.level > level {
			continue
		}
		if s.clear {
			names = nil
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == s.remove })
		names = append(names, s.rules...)
	}
	return strings.Join(names, " ")
}

func composed(t testing.TB, w world) []string {
	m, site := w.model(t)
	var out []string
	for _, l := range levels {
		out = append(out, answer(m.At(site, l), "rules"))
	}
	return out
}

func TestLawOrderIsByLevelAndAtEachLevelByFile(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		all := sayings(rt)
		for i, got := range composed(t, build(all, asIs)) {
			if want := plain(all, i); got != want {
				rt.Fatalf("%s: got %q, want %q of %v", levels[i], got, want, build(all, asIs).files)
			}
		}
	})
}

func TestLawTheOrderOfElementsInAFileChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		all := sayings(rt)
		other := build(all, func(l []string) []string { return rapid.Permutation(l).Draw(rt, "order") })
		if a, b := composed(t, build(all, asIs)), composed(t, other); !slices.Equal(a, b) {
			rt.Fatalf("%q and %q of %v", a, b, other.files)
		}
	})
}

func TestLawLetterCaseOfPathsAndNamesChangesNothing(t *testing.T) {
	swap := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case 'a' <= r && r <= 'z':
				return r - 'a' + 'A'
			case 'A' <= r && r <= 'Z':
				return r - 'A' + 'a'
			}
			return r
		}, s)
	}
	rapid.Check(t, func(rt *rapid.T) {
		all := sayings(rt)
		inherits := rapid.Bool().Draw(rt, "inherits")
		w := build(all, asIs)
		if !inherits && w.files["O"] != "" && !strings.Contains(w.files["O"], "\nrules") && strings.HasPrefix(w.files["O"], "rules") {
			w.files["O"] = "@.[inheritInChildApplications=false] " + w.files["O"]
		}
		m, site := w.model(t)
		m2, site2 := w.model(t) // the first spelling that a model sees must not matter either
		for i := range levels {
			lower, upper := answer(m.At(site, levels[i]), "rules"), answer(m2.At(site2, swap(levels[i])), "rules")
			if lower != upper {
				rt.Fatalf("%s: %q, %s: %q of %v", levels[i], lower, swap(levels[i]), upper, w.files)
			}
		}
		x := build(all, func(l []string) []string {
			out := slices.Clone(l)
			for j := range out {
				at, rest, ok := strings.Cut(out[j], " ")
				if strings.HasPrefix(at, "@") && ok {
					out[j] = swap(at) + " " + rest
				}
				out[j] = strings.ReplaceAll(out[j], "-r", "-R") // removes by another spelling
			}
			return out
		})
		if a, b := composed(t, build(all, asIs)), composed(t, x); !slices.Equal(a, b) {
			rt.Fatalf("%q and %q of %v", a, b, x.files)
		}
	})
}

func TestLawClearHidesAllAboveAndNothingBelow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		all := sayings(rt)
		at := rapid.IntRange(0, len(levels)-1).Draw(rt, "at")
		own := slices.IndexFunc(all, func(s saying) bool { return s.level == at && s.writer == at+1 })
		if own < 0 {
			rt.Skip("the level has no file of its own")
		}
		before := composed(t, build(all, asIs))
		all[own].clear = true
		after := composed(t, build(all, asIs))
		for i := range levels {
			switch {
			case i < at && after[i] != before[i]:
				rt.Fatalf("%s, above %s: %q became %q", levels[i], levels[at], before[i], after[i])
			case i >= at:
				for _, s := range all[:own] {
					for _, r := range s.rules {
						if slices.Contains(strings.Fields(after[i]), r) {
							rt.Fatalf("%s: %s of above is in effect: %q", levels[i], r, after[i])
						}
					}
				}
			}
		}
		if own := strings.Join(all[own].rules, " "); after[at] != own {
			rt.Fatalf("%s: %q, want its own %q", levels[at], after[at], own)
		}
	})
}

func TestLawRemoveThenAddIsNoDuplicateAndAddAloneIsOne(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		all := sayings(rt)
		at := rapid.IntRange(0, len(levels)-1).Draw(rt, "at")
		visible := strings.Fields(plain(all, at))
		if len(visible) == 0 || slices.ContainsFunc(all, func(s saying) bool { return s.level == at && s.writer == at+1 }) {
			rt.Skip("nothing to repeat, or the level's own file is taken")
		}
		name := rapid.SampledFrom(visible).Draw(rt, "name")
		for _, remove := range []bool{true, false} {
			w := build(all, asIs)
			items := " +" + strings.ToUpper(name)
			if remove {
				items = " -" + name + items
			}
			w.files[ownFiles[at]] = "rules" + items + "\n" + w.files[ownFiles[at]]
			got := composed(t, w)[at]
			names := strings.Fields(got)
			if ok := len(names) == len(visible) && strings.EqualFold(names[len(names)-1], name); remove && !ok || !remove && got != duplicate {
				rt.Fatalf("%s%s after %v: %q", levels[at], items, visible, got)
			}
		}
	})
}

func TestLawALockedSectionFailsAtAndBelowTheViolatingLevelAndNowhereElse(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		locks := rapid.IntRange(-1, 2).Draw(rt, "locks") // -1: applicationHost.config, for the whole site
		violates := rapid.IntRange(locks+1, 3).Draw(rt, "violates")
		w := world{files: files{ownFiles[violates]: rapid.SampledFrom([]string{"rules +V", "rules", "rules clear"}).Draw(rt, "how")}}
		lock := "@.[overrideMode=Deny] rules +L"
		if locks < 0 {
			w.files["apphost"] = "@S[overrideMode=Deny] rules +L"
		} else {
			w.files[ownFiles[locks]] = lock
		}
		w.files["E"] = "outboundRules +X"
		m, site := w.model(t)
		for i, l := range levels {
			got, want := answer(m.At(site, l), "rules"), ""
			switch {
			case i >= violates:
				want = locked
			case i >= locks:
				want = "L"
			}
			if got != want {
				rt.Fatalf("%s: %q, want %q of %v", l, got, want, w.files)
			}
			if got := answer(m.At(site, l), "outboundRules"); got != "" {
				rt.Fatalf("%s: another section fails too: %q", l, got)
			}
		}
		if got := answer(m.At(site, "/ecp"), "outboundRules"); got != "X" {
			rt.Fatalf("a sibling fails: %q", got)
		}
	})
}

func TestLawTheSameModelGivesTheSameAnswerWhateverIsAskedFirst(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := build(sayings(rt), asIs)
		m, site := w.model(t)
		first := map[string]string{}
		for range 12 {
			path := rapid.SampledFrom(levels).Draw(rt, "path")
			section := rapid.SampledFrom(iisconfig.SectionNames()).Draw(rt, "section")
			got := answer(m.At(site, path), section)
			if old, ok := first[path+section]; ok && old != got {
				rt.Fatalf("%s %s: %q, then %q", path, section, old, got)
			}
			first[path+section] = got
			fresh, freshSite := w.model(t)
			if alone := answer(fresh.At(freshSite, path), section); alone != got {
				rt.Fatalf("%s %s: %q, alone %q", path, section, got, alone)
			}
		}
	})
}
