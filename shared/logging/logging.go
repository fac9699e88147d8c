// Package logging makes the loggers of the binaries. Rooms get a logger passed in and name it after themselves.
package logging

import (
	"fmt"
	"io"

	"github.com/hashicorp/go-hclog"
)

// New makes a root logger. level is one of trace, debug, info, warn, error, off; format is text or json.
func New(name, level, format string, w io.Writer) (hclog.Logger, error) {
	l := hclog.LevelFromString(level)
	if l == hclog.NoLevel {
		return nil, fmt.Errorf("log level %q is none of trace, debug, info, warn, error, off", level)
	}
	if format != "text" && format != "json" {
		return nil, fmt.Errorf("log format %q is neither text nor json", format)
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: l, Output: w, JSONFormat: format == "json"}), nil
}
