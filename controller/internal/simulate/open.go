package simulate

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// Archives and encodings are told from their first bytes, whatever the file's name is.
var (
	gzipMagic = []byte{0x1f, 0x8b, 8}
	otherwise = []struct {
		magic, what string
	}{
		{"PK\x03\x04", "it is a zip archive"}, {"PK\x05\x06", "it is a zip archive"}, {"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive"},
		{"\x28\xb5\x2f\xfd", "it is packed with zstd"}, {"BZh", "it is packed with bzip2"}, {"\xfd7zXZ\x00", "it is packed with xz"},
		{"Rar!", "it is a RAR archive"}, {"MSCF", "it is a cabinet archive"},
	}
	errPacked   = errors.New("only gzip is unpacked here: unpack it first")
	errUTF32    = errors.New("it is UTF-32; save it as UTF-8")
	errNotSaved = errors.New("it is UTF-16 and ends within a character")
)

// peekBytes is enough for every mark.
const peekBytes = 8

// open returns a log's text: unpacked, in UTF-8 or in IIS's own code page. Problems that occur while it is read are added to lost.
// packed says that the file's name promises gzip: then it is not taken for text because its first bytes are damaged.
func open(ctx context.Context, file io.Reader, packed bool, lost *lost) (io.Reader, error) {
	in := bufio.NewReaderSize(within{ctx, file}, maxLine)
	first, _ := in.Peek(peekBytes)
	for _, o := range otherwise {
		if bytes.HasPrefix(first, []byte(o.magic)) {
			return nil, fmt.Errorf("%s; %w", o.what, errPacked)
		}
	}
	if packed && len(first) == 0 {
		lost.add("it is empty, which no archive is")
	}
	if bytes.HasPrefix(first, gzipMagic) || packed && !beginsText(first) {
		in = bufio.NewReaderSize(&members{in: in, lost: lost}, maxLine)
		first, _ = in.Peek(peekBytes)
	}
	return decoded(in, first)
}

// beginsText says whether these can be the first bytes of a log in any encoding.
func beginsText(first []byte) bool {
	return len(first) == 0 || bytes.IndexByte([]byte("#0123456789\xef\xff\xfe"), first[0]) >= 0 || bytes.HasPrefix(first, []byte("\x00#"))
}

// decoded gives UTF-8 of UTF-16, as PowerShell writes it; everything else as it is.
func decoded(in *bufio.Reader, first []byte) (io.Reader, error) {
	has := func(mark string) bool { return bytes.HasPrefix(first, []byte(mark)) }
	switch {
	case has("\xff\xfe\x00\x00"), has("\x00\x00\xfe\xff"), has("#\x00\x00\x00"), has("\x00\x00\x00#"):
		return nil, errUTF32
	case has("\xff\xfe"), has("#\x00") && len(first) > 3 && first[3] == 0:
		return &fromUTF16{in: in}, nil
	case has("\xfe\xff"), has("\x00#\x00"):
		return &fromUTF16{in: in, big: true}, nil
	}
	return in, nil
}

// within ends reading with its context.
type within struct {
	ctx context.Context
	in  io.Reader
}

func (w within) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.in.Read(p)
}

// fromUTF16 gives UTF-8 of UTF-16. Its byte order mark becomes that of UTF-8, which the reader of lines removes.
type fromUTF16 struct {
	in  *bufio.Reader
	big bool
	// high is the first half of a character, or 0.
	high rune
	out  []byte
	err  error
}

func (u *fromUTF16) Read(p []byte) (int, error) {
	for len(u.out) == 0 {
		if u.err != nil {
			return 0, u.err
		}
		u.fill()
	}
	n := copy(p, u.out)
	u.out = u.out[n:]
	return n, nil
}

// fill decodes what is there, up to one buffer.
func (u *fromUTF16) fill() {
	if _, err := u.in.Peek(2); err != nil {
		if left, _ := u.in.Peek(1); errors.Is(err, io.EOF) && len(left) > 0 {
			err = errNotSaved
		}
		if u.high != 0 {
			u.out, u.high = utf8.AppendRune(u.out[:0], utf8.RuneError), 0
		}
		u.err = err
		return
	}
	data, _ := u.in.Peek(min(u.in.Buffered()&^1, maxLine))
	u.out = make([]byte, 0, 2*len(data))
	for i := 0; i < len(data); i += 2 {
		c := rune(data[i]) | rune(data[i+1])<<8
		if u.big {
			c = rune(data[i])<<8 | rune(data[i+1])
		}
		if u.high != 0 {
			whole := utf16.DecodeRune(u.high, c)
			u.out, u.high = utf8.AppendRune(u.out, whole), 0
			if whole != utf8.RuneError {
				continue
			}
		}
		if c >= 0xd800 && c < 0xdc00 {
			u.high = c
			continue
		}
		u.out = utf8.AppendRune(u.out, c)
	}
	_, _ = u.in.Discard(len(data))
}

// Bounds on unpacking. Logs pack to a tenth, and to a hundredth where one request is repeated; a bomb packs to a thousandth.
const (
	maxRatio  = 400
	freeBytes = 256 << 20 // below that no ratio is looked at
)

// members unpacks a gzip file, member by member. A damaged one costs itself: what was unpacked of it counts, and reading goes on
// with the next that is found.
type members struct {
	in   *bufio.Reader
	lost *lost
	z    *gzip.Reader
	// open says that a member is being read.
	open bool
	// searching says that the bytes at hand are known not to begin a member.
	searching     bool
	packed, plain int64
	ended         bool
}

func (m *members) Read(p []byte) (int, error) {
	for !m.ended {
		if !m.open {
			if err := m.find(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := m.z.Read(p)
		m.plain += int64(n)
		if m.plain > freeBytes && m.plain > maxRatio*m.packed {
			m.ended = true
			m.lost.add("it unpacks to more than %d times its size, as no log does; the rest was not read", maxRatio)
			return n, nil
		}
		if n > 0 {
			return n, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			m.open = false
		case err != nil:
			if ended := m.damaged(err); ended != nil {
				return 0, ended
			}
			p[0] = '\n' // the next member begins with another line
			return 1, nil
		}
	}
	return 0, io.EOF
}

// damaged notes damage inside a member. The error is one of reading the file, which no other member survives.
func (m *members) damaged(err error) error {
	m.open, m.searching = false, true
	if _, ended := m.in.Peek(1); ended != nil && !errors.Is(ended, io.EOF) {
		return ended
	}
	m.lost.add("the archive is damaged (%v) after %d bytes of text; the text before that and later members were read", err, m.plain)
	return nil
}

// find looks for the next member.
func (m *members) find() error {
	for {
		head, err := m.in.Peek(len(gzipMagic))
		if len(head) < len(gzipMagic) {
			if !errors.Is(err, io.EOF) {
				return err
			}
			if !m.searching && len(bytes.Trim(head, "\x00")) > 0 {
				m.lost.add("the archive ends in bytes that are not gzip")
			}
			m.ended = true
			return nil
		}
		if !bytes.Equal(head, gzipMagic) {
			skip := 1
			if there, _ := m.in.Peek(m.in.Buffered()); len(there) > 1 {
				if skip = bytes.IndexByte(there[1:], gzipMagic[0]) + 1; skip == 0 {
					skip = len(there)
				}
				if !m.searching && len(bytes.Trim(there[:skip], "\x00")) > 0 {
					m.lost.add("between its members the archive holds bytes that are not gzip")
					m.searching = true
				}
			}
			_, _ = m.in.Discard(skip)
			continue
		}
		if m.z == nil {
			m.z, err = gzip.NewReader(&counting{m})
		} else {
			err = m.z.Reset(&counting{m})
		}
		if err != nil {
			if !m.searching {
				m.lost.add("the archive is damaged: %v", err)
			}
			m.searching = true
			continue
		}
		m.z.Multistream(false)
		m.open, m.searching = true, false
		return nil
	}
}

// counting counts the packed bytes. It reads no byte too many, so that the next member is found where it begins.
type counting struct{ m *members }

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.m.in.Read(p)
	c.m.packed += int64(n)
	return n, err
}

func (c *counting) ReadByte() (byte, error) {
	b, err := c.m.in.ReadByte()
	if err == nil {
		c.m.packed++
	}
	return b, err
}
