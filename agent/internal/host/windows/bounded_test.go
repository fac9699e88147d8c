package windows

import (
	"bytes"
	"testing"
)

func TestOutputWithoutEndIsCutAndSaidToBe(t *testing.T) {
	t.Parallel()
	var b boundedOutput
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for b.text.Len() < maxOutput {
		if n, err := b.Write(chunk); n != len(chunk) || err != nil || b.cut {
			t.Fatalf("%d %v %t", n, err, b.cut)
		}
	}
	if n, err := b.Write([]byte("y")); n != 1 || err != nil || !b.cut || b.text.Len() != maxOutput {
		t.Errorf("%d %v, cut %t, %d bytes kept", n, err, b.cut, b.text.Len())
	}
}
