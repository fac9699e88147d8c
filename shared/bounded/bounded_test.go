package bounded

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestATextIsCutBetweenTwoCharacters(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s     string
		limit int
		want  string
	}{
		{"", 0, ""}, {"short", 5, "short"}, {"longer", 5, "lo..."}, {"longer", 2, "lo"}, {"longer", 0, ""}, {"longer", -1, ""},
		{"aé", 3, "aé"}, {"aaéa", 4, "a..."}, {"aéaa", 4, "a..."}, {"éé", 3, "..."}, {"é", 1, ""},
		{strings.Repeat("a", 252) + "éaaaa", 256, strings.Repeat("a", 252) + "..."},
		{strings.Repeat("a", 251) + "éaaaa", 256, strings.Repeat("a", 251) + "é..."},
		{"a\xff\xfeb", 10, "a?b"}, {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 8, "?..."}, {"𝄞𝄞𝄞", 9, "𝄞..."},
	} {
		if got := Text(c.s, c.limit); got != c.want {
			t.Errorf("%q to %d bytes is %q, want %q", c.s, c.limit, got, c.want)
		}
	}
}

func TestACutTextIsShortEnoughValidAndTheBeginningOfTheOther(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, limit := rapid.String().Draw(t, "s"), rapid.IntRange(0, 40).Draw(t, "limit")
		if rapid.Bool().Draw(t, "bytes") {
			s = string(rapid.SliceOf(rapid.Byte()).Draw(t, "s"))
		}
		got := Text(s, limit)
		if len(got) > limit || !utf8.ValidString(got) {
			t.Fatalf("%q", got)
		}
		if utf8.ValidString(s) && !strings.HasPrefix(s, strings.TrimSuffix(got, cutMark)) {
			t.Fatalf("%q begins otherwise than %q", got, s)
		}
		if limit >= len(cutMark) && utf8.ValidString(s) && len(s) > limit && len(got) <= limit-utf8.UTFMax {
			t.Fatalf("%q is shorter than it has to be", got)
		}
	})
}
