package simulate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Sample is one request, an exploit or somebody's work.
type Sample struct {
	// ID names the sample in the result; without one it is called by its place in the file.
	ID string `json:"id"`
	// CVE that an exploit is of. Without one it counts for every mitigation.
	CVE string `json:"cve"`
	// Method, without one GET; Scheme, without one https.
	Method string `json:"method"`
	Scheme string `json:"scheme"`
	Host   string `json:"host"`
	// PathAndQuery begins with a slash, and is encoded as a client sends it.
	PathAndQuery string            `json:"path_and_query"`
	Headers      map[string]string `json:"headers"`
}

// Samples are requests to try a mitigation with.
type Samples struct {
	Exploit    []Sample `json:"exploit"`
	Legitimate []Sample `json:"legitimate"`
}

// Bounds on a file of samples.
const (
	maxSamplesFile  = 16 << 20
	maxSamplesDepth = 32
)

// Keys of a file and of a sample. The second set of each is for people and for other programs: it is read and has no effect.
var (
	fileKeys    = set("exploit", "legitimate")
	fileNotes   = set("format", "purpose", "model", "labels", "notes", "source", "rules", "outbound_rules")
	sampleKeys  = set("id", "cve", "method", "scheme", "host", "path_and_query", "headers")
	sampleNotes = set("notes", "source", "form", "endpoint", "body", "response", "expected_block", "expected_csp_added", "model_sensitive")
)

func set(names ...string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

// ReadSamples reads a file of samples, bounded. It refuses keys that it does not know and samples without a request: an answer
// over samples that were not understood would read like a good one. Errors name line and column.
func ReadSamples(in io.Reader) (Samples, error) {
	var s Samples
	data, err := samplesText(in)
	if err != nil {
		return s, err
	}
	if err := checkKeys(data); err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, placed(data, err)
	}
	if len(s.Exploit)+len(s.Legitimate) == 0 {
		return s, errors.New(`there are no requests in it: it must hold "exploit", "legitimate" or both`)
	}
	for _, x := range []struct {
		key  string
		list []Sample
	}{{"exploit", s.Exploit}, {"legitimate", s.Legitimate}} {
		for i := range x.list {
			if err := x.list[i].complete(fmt.Sprintf("%s[%d]", x.key, i)); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// complete fills in what may be left out.
func (x *Sample) complete(place string) error {
	if x.ID == "" {
		x.ID = place
	}
	if !strings.HasPrefix(x.PathAndQuery, "/") {
		return fmt.Errorf(`%s: "path_and_query" must begin with a slash, and is %q`, place, clip(x.PathAndQuery))
	}
	x.CVE = strings.TrimSpace(x.CVE)
	if x.Method == "" {
		x.Method = "GET"
	}
	if x.Scheme == "" {
		x.Scheme = "https"
	}
	return nil
}

// samplesText is the file in UTF-8, without a byte order mark.
func samplesText(in io.Reader) ([]byte, error) {
	raw := bufio.NewReader(io.LimitReader(in, maxSamplesFile+1))
	first, _ := raw.Peek(peekBytes)
	text, err := decoded(raw, first)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(text, maxSamplesFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSamplesFile {
		return nil, fmt.Errorf("more than %d bytes", maxSamplesFile)
	}
	return bytes.TrimPrefix(data, byteOrderMark), nil
}

// checkKeys walks the file and refuses the first key that is not known, or is there twice.
func checkKeys(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	w := keyWalk{data: data, dec: dec}
	t, err := dec.Token()
	if err != nil {
		return placed(data, err)
	}
	if t != json.Delim('{') {
		return w.refuse(`the file must hold one object with "exploit" and "legitimate"`)
	}
	err = w.object("", fileKeys, fileNotes, func(key, place string) error {
		if fileNotes[key] {
			return w.skip()
		}
		return w.samples(place)
	})
	if err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return w.refuse("something follows the end of the object")
	}
	return nil
}

// keyWalk is the state of checkKeys.
type keyWalk struct {
	data []byte
	dec  *json.Decoder
}

func (w *keyWalk) refuse(format string, args ...any) error {
	return placedAt(w.data, w.dec.InputOffset(), fmt.Errorf(format, args...))
}

// object reads the keys of an object behind its opening brace.
func (w *keyWalk) object(place string, keys, notes map[string]bool, value func(key, place string) error) error {
	seen := map[string]bool{}
	for w.dec.More() {
		from := w.dec.InputOffset()
		t, err := w.dec.Token()
		if err != nil {
			return placed(w.data, err)
		}
		key, _ := t.(string)
		from += int64(len(w.data[from:]) - len(bytes.TrimLeft(w.data[from:], " \t\r\n,")))
		at := strings.TrimPrefix(place+"."+key, ".")
		switch {
		case !keys[key] && !notes[key]:
			return placedAt(w.data, from, fmt.Errorf("%s: there is no key %q; it can be one of %s", clip(at), clip(key), names(keys)))
		case seen[key]:
			return placedAt(w.data, from, fmt.Errorf("%s: the key is there twice", at))
		}
		seen[key] = true
		if err := value(key, at); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return placed(w.data, err)
}

// samples reads a list of samples.
func (w *keyWalk) samples(place string) error {
	t, err := w.dec.Token()
	switch {
	case err != nil:
		return placed(w.data, err)
	case t == nil:
		return nil
	case t != json.Delim('['):
		return w.refuse("%s must be a list of requests", place)
	}
	for i := 0; w.dec.More(); i++ {
		item := fmt.Sprintf("%s[%d]", place, i)
		if t, err = w.dec.Token(); err != nil {
			return placed(w.data, err)
		}
		if t != json.Delim('{') {
			return w.refuse("%s must be an object", item)
		}
		if err := w.object(item, sampleKeys, sampleNotes, func(string, string) error { return w.skip() }); err != nil {
			return err
		}
	}
	_, err = w.dec.Token()
	return placed(w.data, err)
}

// skip passes over a value of any shape.
func (w *keyWalk) skip() error {
	for depth := 0; ; {
		t, err := w.dec.Token()
		if err != nil {
			return placed(w.data, err)
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxSamplesDepth {
				return w.refuse("nested deeper than %d", maxSamplesDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// names lists keys in the order of the help text.
func names(keys map[string]bool) string {
	var out []string
	for _, k := range []string{"exploit", "legitimate", "id", "cve", "method", "scheme", "host", "path_and_query", "headers"} {
		if keys[k] {
			out = append(out, k)
		}
	}
	return strings.Join(out, ", ")
}

// placed adds line and column to an error of encoding/json, in words of the file's and not of Go's.
func placed(data []byte, err error) error {
	var syntax *json.SyntaxError
	var shape *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return placedAt(data, int64(len(data)), errors.New("the JSON ends too early"))
	case errors.As(err, &syntax):
		return placedAt(data, syntax.Offset, err)
	case errors.As(err, &shape):
		return placedAt(data, shape.Offset, fmt.Errorf("%s must be %s, and is of type %s", shape.Field, shapeName(shape), shape.Value))
	}
	return err
}

func shapeName(e *json.UnmarshalTypeError) string {
	if strings.HasSuffix(e.Field, "headers") {
		return "an object of texts"
	}
	return "a text"
}

func placedAt(data []byte, offset int64, err error) error {
	line, col := xmldoc.LineCol(data, int(min(max(offset, 0), int64(len(data)))))
	return fmt.Errorf("line %d, column %d: %w", line, col, err)
}
