// Package bounded cuts what came from outside to a size, for logs, messages and the store. Every room cuts texts with it, so
// that a cut text is always one that a protobuf message can carry.
package bounded

import (
	"strings"
	"unicode/utf8"
)

// cutMark ends a text that was cut.
const cutMark = "..."

// Text gives a text of at most limit bytes, as valid UTF-8. A text that is too long is cut between two characters and ends in
// "...". Bytes that are not UTF-8 become "?".
func Text(s string, limit int) string {
	if len(s) <= limit {
		return strings.ToValidUTF8(s, "?")
	}
	mark := cutMark
	if limit < len(mark) {
		mark = ""
	}
	end := max(limit-len(mark), 0)
	// A character has at most UTFMax bytes. Where none begins within that, the bytes are not UTF-8 and any place will do.
	for at := end; at >= 0 && end-at < utf8.UTFMax; at-- {
		if utf8.RuneStart(s[at]) {
			end = at
			break
		}
	}
	return strings.ToValidUTF8(s[:end], "?") + mark
}
