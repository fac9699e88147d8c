package simulate

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// logOf is a log with this many ordinary requests and one attack at its end.
func logOf(ordinary int) []byte {
	var b bytes.Buffer
	b.WriteString(head)
	for i := range ordinary {
		b.WriteString(line("GET", "/owa/", fmt.Sprintf("a=%d", i*7919), "192.0.2.7"))
	}
	b.WriteString(line("GET", "/autodiscover/autodiscover.json", exploit, "192.0.2.7"))
	return b.Bytes()
}

func put(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWhatCannotBeReadCostsItselfAndIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	whole := packed(t, logOf(2000))
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 0x55
	wrongSum := bytes.Clone(whole)
	wrongSum[len(wrongSum)-5] ^= 1
	noHead := bytes.Clone(whole)
	noHead[0] = 0
	together := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	// The number of attacks that must be found in each, and what the report says of it: "" is nothing.
	cases := map[string]struct {
		data    []byte
		attacks int64
		says    string
	}{
		"good.log.gz":       {whole, 1, ""},
		"two.log.gz":        {together(whole, whole), 2, ""},
		"padded.log.gz":     {together(whole, make([]byte, 5000)), 1, ""},
		"upper.LOG.GZ":      {whole, 1, ""},
		"packed.log":        {whole, 1, ""},
		"plain.log.gz":      {logOf(10), 1, ""},
		"truncated.log.gz":  {whole[:len(whole)/2], 0, "damaged"},
		"nosum.log.gz":      {whole[:len(whole)-6], 1, "damaged"},
		"sum.log.gz":        {wrongSum, 1, "damaged"},
		"middle.log.gz":     {together(whole, flipped, whole), 2, "damaged"},
		"first.log.gz":      {together(whole[:len(whole)/2], whole), 1, "damaged"},
		"head.log.gz":       {together(noHead, whole), 1, "not gzip"},
		"tail.log.gz":       {together(whole, []byte("copied too far")), 1, "not gzip"},
		"short.log.gz":      {whole[:5], 0, "damaged"},
		"empty.log.gz":      {nil, 0, "empty"},
		"empty.log":         {nil, 0, ""},
		"zip.log":           {[]byte("PK\x03\x04..."), 0, "zip"},
		"ncsa.log":          {[]byte("192.0.2.7 - - [20/Nov/2026:08:00:01 +0000] \"GET / HTTP/1.1\" 200 5\n"), 0, "#Fields"},
		"headless.log":      {logOf(5)[len(head):], 0, "#Fields"},
		"mark.log":          {together(byteOrderMark, logOf(5)), 1, ""},
		"marks.log":         {together(byteOrderMark, logOf(5), byteOrderMark, logOf(5)), 2, ""},
		"utf16.log":         {wide("\ufeff"+string(logOf(5)), false), 1, ""},
		"utf16be.log":       {wide("\ufeff"+string(logOf(5)), true), 1, ""},
		"unmarked.log":      {wide(string(logOf(5)), false), 1, ""},
		"unmarkedbe.log":    {wide(string(logOf(5)), true), 1, ""},
		"utf16.log.gz":      {packed(t, wide("\ufeff"+string(logOf(5)), false)), 1, ""},
		"odd.log":           {append(wide("\ufeff"+string(logOf(5)), false), 'x'), 1, "within a character"},
		"utf32.log":         {[]byte("\xff\xfe\x00\x00#\x00\x00\x00"), 0, "UTF-32"},
		"zeros.log":         {together([]byte(head), make([]byte, 200<<10), logOf(0)[len(head):], make([]byte, 9), logOf(0)[len(head):]), 2, ""},
		"wide-columns.log":  {[]byte("#Fields: cs-uri-stem" + strings.Repeat(" x", 2000) + "\n/a\n"), 0, "no column, or more than"},
		"long-line.log":     {together([]byte(head), bytes.Repeat([]byte("x"), 2<<20), []byte("\n"), logOf(0)[len(head):]), 1, ""},
		"ends-mid-line.log": {together(logOf(3), []byte("2026-11-25 03:00:00 10.0.0.1 GET /autodiscover/a powershell")), 1, ""},
	}
	var attacks, damaged int64
	for name, c := range cases {
		if attacks += c.attacks; c.says != "" {
			damaged++
		}
		p := put(t, dir, name, c.data)
		r, err := sim(t, "M1").Logs(t.Context(), []string{p}, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		said := ""
		for _, x := range r.Unread {
			said += x.What
		}
		if r.Rules[0].Blocked != c.attacks || !strings.Contains(said, c.says) || (said == "") != (c.says == "") {
			t.Errorf("%s: %d attacks, want %d; says %q, want %q", name, r.Rules[0].Blocked, c.attacks, said, c.says)
		}
	}
	// All of them in one report, with what is no file at all.
	if err := os.Mkdir(filepath.Join(dir, "archive.log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "gone.log")); err != nil {
		t.Fatal(err)
	}
	files, _, err := Files(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := sim(t, "M1").Logs(t.Context(), files, nil)
	if err != nil {
		t.Fatal(err)
	}
	if damaged += 2; r.Files != len(cases)+2 || r.DamagedFiles != damaged || len(r.Unread) != int(damaged) || r.Rules[0].Blocked != attacks {
		t.Errorf("%d files, %d damaged, %d attacks: %+v", r.Files, r.DamagedFiles, r.Rules[0].Blocked, r.Unread)
	}
	if first := r.Unread[0]; first.File != filepath.Join(dir, "archive.log") || !strings.Contains(first.What, "directory") {
		t.Errorf("%+v", first)
	}
}

func TestOfManyProblemsTheFirstAreNamedAndAllAreCounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for i := range 60 {
		bad := strings.Repeat("half a line\n"+line("GET", "/owa/", "-", "192.0.2.7"), 2000)
		files = append(files, put(t, dir, fmt.Sprintf("u_ex%02d.log", i), []byte(head+bad)))
	}
	for i := range 60 {
		files = append(files, filepath.Join(dir, fmt.Sprint("missing", i)))
	}
	r, err := sim(t, "M1").Logs(t.Context(), files, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Unreadable != 120_000 || r.Requests != 120_000 || len(r.DamagedLines) != maxNamedLines ||
		r.DamagedFiles != 60 || len(r.Unread) != maxNamedFiles {
		t.Fatalf("%d %d %d %d %d", r.Unreadable, r.Requests, len(r.DamagedLines), r.DamagedFiles, len(r.Unread))
	}
	for i, p := range r.DamagedLines {
		if p.File != files[i/maxLinesOfAFile] || p.Line != int64(3+2*(i%maxLinesOfAFile)) {
			t.Errorf("%d: %+v", i, p)
		}
	}
	if r.Unread[0].File != files[60] {
		t.Errorf("%+v", r.Unread[0])
	}
}

func TestAnArchiveThatUnpacksToMoreThanALogCanIsLeft(t *testing.T) {
	t.Parallel()
	bomb := &members{in: nil, lost: &lost{}}
	bomb.in = bufioOf(packed(t, make([]byte, 1<<20)))
	bomb.plain = freeBytes // as if that much had been read before
	buf := make([]byte, 64<<10)
	var n int
	for range 100 {
		k, err := bomb.Read(buf)
		n += k
		if err != nil {
			break
		}
	}
	if n > len(buf) || !strings.Contains(bomb.lost.String(), "400 times") {
		t.Errorf("%d bytes, %q", n, bomb.lost)
	}
}

func TestDirectoriesOfThePatternThatCannotBeListedAreNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"W3SVC1", "W3SVC2"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, d), "u_ex1.log", logOf(1))
	}
	put(t, dir, "readme", nil)
	loop := filepath.Join(dir, "W3SVC3")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	files, problems, err := Files(filepath.Join(dir, "*", "*.log"))
	if err != nil || len(files) != 2 || len(problems) != 1 || problems[0].File != loop {
		t.Errorf("%v %v %v", files, problems, err)
	}
	if _, _, err := Files("["); err == nil {
		t.Error("a pattern that is none is accepted")
	}
}

func TestReadingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := sim(t, "M1").Logs(ctx, []string{write(t, "u_ex1.log", head)}, nil); err == nil {
		t.Errorf("%+v", r)
	}
}
