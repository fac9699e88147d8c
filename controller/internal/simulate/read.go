package simulate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// blockBytes is how much a worker gets at a time.
const blockBytes = 1 << 20

// regular returns a file's size, or says why it can't be read as a log. A pipe or a device is refused because it might never end.
func regular(name string) (size int64, why string) {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return 0, reason(err)
	case st.IsDir():
		return 0, "it is a directory; name the logs in it, DIR/*.log"
	case !st.Mode().IsRegular():
		return 0, "it is not a regular file"
	}
	return st.Size(), ""
}

// reason is an error without the name of the file, which stands beside it.
func reason(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return err.Error()
}

// reader gives files in blocks of whole lines.
type reader struct {
	ctx  context.Context
	tell func(int)
	give func(block) error

	cur block
	buf []byte
	// line is the number of the line that was read last.
	line int64
	// format is what the last #Software line says; IIS may write it behind #Fields.
	format format
	// named says that there was a #Fields line, or that its absence was noted.
	named bool
	lost  lost
}

// lost collects the problems of one file: the text of the first one, and the number of the others.
type lost struct {
	first string
	more  int
}

func (l *lost) add(format string, args ...any) {
	if l.first == "" {
		l.first = clip(fmt.Sprintf(format, args...))
		return
	}
	l.more++
}

func (l *lost) String() string {
	if l.more == 0 {
		return l.first
	}
	return fmt.Sprintf("%s (and %d more)", l.first, l.more)
}

// file reads one file, and says what of it could not be read.
func (r *reader) file(name string) (why string) {
	f, err := os.Open(name)
	if err != nil {
		return reason(err)
	}
	defer func() { _ = f.Close() }()
	in, err := open(r.ctx, counted{f, r.tell}, strings.HasSuffix(strings.ToLower(name), ".gz"), &r.lost)
	if err != nil {
		r.lost.add("%s", reason(err))
		return r.lost.String()
	}
	if err := r.read(in); err != nil && r.ctx.Err() == nil {
		r.lost.add("after line %d: %s", r.line, reason(err))
	}
	return r.lost.String()
}

// counted reports how much is read.
type counted struct {
	io.Reader
	tell func(int)
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.tell(n)
	return n, err
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// read gives the lines of a log. Directives are read wherever they are: IIS writes them anew when it starts, and when the fields
// are changed.
func (r *reader) read(in io.Reader) error {
	lines := bufio.NewReaderSize(in, maxLine)
	r.cur = block{fields: noFields(), first: 1}
	for {
		line, err := next(lines)
		if len(line) > 0 {
			r.line++
		}
		// Files that were put together have byte order marks in the middle.
		line = bytes.TrimPrefix(line, byteOrderMark)
		if len(line) > 0 && line[0] == 0 {
			line = behindZeros(line)
		}
		if len(line) > 0 && line[0] == '#' {
			if ferr := r.directive(line); ferr != nil {
				return ferr
			}
		} else if !r.named && len(bytes.TrimSpace(line)) > 0 {
			r.named = true
			r.lost.add("line %d: there is no #Fields line before it: this is no W3C extended log, or its beginning is missing", r.line)
		}
		if r.buf = append(r.buf, line...); len(r.buf) >= blockBytes {
			if ferr := r.flush(r.line + 1); ferr != nil {
				return ferr
			}
		}
		if err != nil {
			if len(r.buf) > 0 && r.buf[len(r.buf)-1] != '\n' {
				r.buf = append(r.buf, '\n')
			}
			if ferr := r.flush(r.line + 1); ferr != nil || errors.Is(err, io.EOF) {
				return ferr
			}
			return err
		}
	}
}

// next reads a line with its end. A line that is too long is replaced. Zero bytes before a line do not count: they come from a
// part of the disk that was never written.
func next(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	zeros := true
	for errors.Is(err, bufio.ErrBufferFull) {
		zeros = zeros && len(bytes.TrimLeft(line, "\x00")) == 0
		line, err = in.ReadSlice('\n')
	}
	if zeros && len(line) > 0 {
		return line, err
	}
	return []byte(overlong + "\n"), err
}

// directive reads a line that begins with a number sign. Before the fields change, the lines before it are handed to a worker.
func (r *reader) directive(line []byte) error {
	name, value, _ := bytes.Cut(line, []byte(":"))
	isFields := bytes.EqualFold(name, []byte("#Fields"))
	if bytes.EqualFold(name, []byte("#Software")) {
		r.format = formatOf(value)
	}
	if !isFields && (r.format == unsaid || r.format == r.cur.fields.format) {
		return nil
	}
	if err := r.flush(r.line); err != nil {
		return err
	}
	if isFields {
		r.named = true
		r.cur.fields = parseFields(value)
		if r.cur.fields.count() == 0 {
			r.lost.add("line %d: #Fields names no column, or more than %d", r.line, maxColumns)
		} else if r.cur.fields.stem < 0 {
			r.lost.add("line %d: #Fields does not name cs-uri-stem, without which no request can be read", r.line)
		}
	}
	if r.format != unsaid {
		r.cur.fields.format = r.format
	}
	return nil
}

// behindZeros removes the zero bytes at the beginning of a line: they are a part of the disk that was never written. A line of
// zero bytes alone, and the mark of a line that is too long, are returned unchanged.
func behindZeros(line []byte) []byte {
	rest := bytes.TrimPrefix(bytes.TrimLeft(line, "\x00"), byteOrderMark)
	if len(bytes.TrimSpace(rest)) == 0 || string(line) == overlong+"\n" {
		return line
	}
	return rest
}

// flush hands the lines that were read to a worker. next is the number of the line that is read next.
func (r *reader) flush(next int64) error {
	if len(r.buf) > 0 {
		b := r.cur
		b.lines = r.buf
		r.buf = make([]byte, 0, blockBytes+maxLine)
		if err := r.give(b); err != nil {
			return err
		}
	}
	r.cur.first = next
	return nil
}
