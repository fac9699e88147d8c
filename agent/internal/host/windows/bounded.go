package windows

import (
	"strings"

	"github.com/stopgap-em/stopgap/agent/internal/host/appcmdxml"
)

// maxOutput bounds what is kept of a program's output.
const maxOutput = appcmdxml.MaxBytes

// boundedOutput keeps the beginning of what a program prints, and steps over the rest, so that the program is not stopped by a full
// pipe.
type boundedOutput struct {
	text strings.Builder
	cut  bool
}

// Write implements io.Writer.
func (b *boundedOutput) Write(p []byte) (int, error) {
	keep := p[:min(len(p), maxOutput-b.text.Len())]
	b.cut = b.cut || len(keep) < len(p)
	b.text.Write(keep)
	return len(p), nil
}
