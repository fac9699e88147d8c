package clirun

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"
)

// Format is how a listing is printed; it is a pflag.Value for -o.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	CSV   Format = "csv"
	YAML  Format = "yaml"
)

var _ pflag.Value = (*Format)(nil)

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	switch v := Format(s); v {
	case Table, JSON, CSV, YAML:
		*f = v
		return nil
	}
	return fmt.Errorf("%q is none of table, json, csv, yaml", s)
}

// Listing is rows for people with the messages they come from.
type Listing struct {
	Header []string
	Rows   [][]string
	// Messages are printed by json (one array) and yaml instead of the rows.
	Messages []proto.Message
}

// Print writes a listing.
func (l Listing) Print(w io.Writer, f Format) error {
	switch f {
	case JSON, YAML:
		return l.structured(w, f)
	case CSV:
		cw := csv.NewWriter(w)
		if err := cw.WriteAll(append([][]string{l.Header}, l.safeRows()...)); err != nil {
			return err
		}
		return cw.Error()
	case Table:
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, r := range append([][]string{l.Header}, l.Rows...) {
		for i, c := range r {
			r[i] = Printable(c)
		}
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// safeRows keeps a spreadsheet from running a cell that an agent wrote as a formula.
func (l Listing) safeRows() [][]string {
	out := make([][]string, len(l.Rows))
	for i, r := range l.Rows {
		out[i] = make([]string, len(r))
		for j, c := range r {
			if c != "" && strings.ContainsRune("=+-@\t\r", rune(c[0])) {
				c = "'" + c
			}
			out[i][j] = c
		}
	}
	return out
}

func (l Listing) structured(w io.Writer, f Format) error {
	all := make([]any, 0, len(l.Messages))
	for _, m := range l.Messages {
		raw, err := protojson.Marshal(m)
		if err != nil {
			return err
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		all = append(all, v)
	}
	if f == YAML {
		e := yaml.NewEncoder(w)
		e.SetIndent(2)
		if err := e.Encode(all); err != nil {
			return err
		}
		return e.Close()
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

// Printable takes out what a terminal would obey: text from agents and documents is shown, never executed.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

// PrintRow writes the listing's only row as one line of a stream: NDJSON, a YAML document, or a CSV line without header.
func (l Listing) PrintRow(w io.Writer, f Format) error {
	switch f {
	case JSON:
		raw, err := protojson.Marshal(l.Messages[0])
		if err != nil {
			return err
		}
		var line bytes.Buffer
		if err := json.Compact(&line, raw); err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, line.String())
		return err
	case YAML:
		return l.structured(w, f)
	case CSV, Table:
	}
	cw := csv.NewWriter(w)
	if err := cw.WriteAll(l.safeRows()); err != nil {
		return err
	}
	return cw.Error()
}
