package iisconfig

import (
	"strings"
	"unicode"
)

// fold gives two strings the same result exactly if strings.EqualFold holds for them.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		if r < unicode.MaxASCII && r != 'k' && r != 's' { // these two have relatives outside ASCII
			return r
		}
		least := r
		for x := unicode.SimpleFold(r); x != r; x = unicode.SimpleFold(x) {
			least = min(least, x)
		}
		if 'A' <= least && least <= 'Z' {
			return least + 'a' - 'A'
		}
		return least
	}, s)
}
