package rows

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// maxColumns and maxHeaderBytes bound what is kept of a header.
	maxColumns     = 10_000
	maxHeaderBytes = 256 << 10

	peekBytes   = 64 << 10  // of a file are looked at before its first row, and of an overlong row are kept
	bufferBytes = 256 << 10 // at first; it grows up to MaxBytes + 1
)

// TooLong is what an overlong row is malformed by.
var TooLong = &Malformed{-1, "the row is longer than 1 MiB"}

// Text is text made of lines, in constant memory. Line ends are \n or \r\n. It says
// exactly, in bytes and lines, where it is, so that reading can stop after any line
// and go on from there another day. The readers of text formats stand on it.
type Text struct {
	source   io.Reader
	encoding string

	buf        []byte
	start, end int   // what has been read and not yet been passed
	ended      error // what the source said last; io.EOF at the end

	offset int64 // in the file, of buf[start]
	line   int64 // of buf[start]
}

// NewText returns the text of a source that begins at a row: at byte offset and line
// number line (from 1) of the file. At byte 0 a byte order mark is skipped. encoding
// names what the source was re-encoded from, with U+FFFD for what could not be;
// empty if it is as it was.
func NewText(source io.Reader, encoding string, offset, line int64) *Text {
	return &Text{source: source, encoding: encoding, buf: make([]byte, bufferBytes), offset: offset, line: line}
}

// Offset is the byte of the file at which the next row begins, or an empty line
// before it.
func (t *Text) Offset() int64 { return t.offset }

// Line is the number of the line at Offset, from 1.
func (t *Text) Line() int64 { return t.line }

// Data is what is in hand: from Offset on, and valid until the next call of Fill.
func (t *Text) Data() []byte { return t.buf[t.start:t.end] }

// Ended is io.EOF when Data reaches to the end of the source, the source's error if
// it failed, nil if there is more.
func (t *Text) Ended() error { return t.ended }

// Peek returns the next 64 KiB, less only if the source ends, without passing them.
// The error is the source's.
func (t *Text) Peek() ([]byte, error) {
	for t.end-t.start < peekBytes && t.ended == nil {
		t.Fill()
	}
	if t.ended != nil && t.ended != io.EOF {
		return nil, t.ended
	}
	return t.buf[t.start:min(t.end, t.start+peekBytes)], nil
}

// FirstLine returns what is in hand and the length of its first line with its end;
// -1 if that is longer than a row may be. Errors: io.EOF after the last line, or the
// source's.
func (t *Text) FirstLine() (data []byte, length int, err error) {
	if t.offset == 0 {
		if err := t.skipMark(); err != nil {
			return nil, 0, err
		}
	}
	seen := 0
	for {
		data = t.buf[t.start:t.end]
		if i := bytes.IndexByte(data[seen:], '\n'); i >= 0 && seen+i < MaxBytes {
			return data, seen + i + 1, nil
		}
		seen = len(data)
		switch {
		case seen > MaxBytes:
			return nil, -1, nil
		case t.ended == io.EOF && seen > 0:
			return data, seen, nil
		case t.ended != nil:
			return nil, 0, t.ended
		}
		t.Fill()
	}
}

// skipMark passes a UTF-8 byte order mark at the beginning of the file.
func (t *Text) skipMark() error {
	mark := []byte("\xef\xbb\xbf")
	for t.end-t.start < len(mark) && t.ended == nil {
		t.Fill()
	}
	if bytes.HasPrefix(t.buf[t.start:t.end], mark) {
		t.Pass(len(mark), 0)
	}
	if t.ended != nil && t.ended != io.EOF {
		return t.ended
	}
	return nil
}

// Fill reads once more, making room first.
func (t *Text) Fill() {
	if t.start > 0 && (t.end == len(t.buf) || t.start == t.end) {
		t.end = copy(t.buf, t.buf[t.start:t.end])
		t.start = 0
	}
	if t.end == len(t.buf) {
		larger := make([]byte, 2*len(t.buf))
		t.end = copy(larger, t.buf[:t.end])
		t.buf = larger
	}
	var n int
	n, t.ended = t.source.Read(t.buf[t.end:])
	t.end += n
}

// Pass moves over n bytes of Data with so many line ends.
func (t *Text) Pass(n int, lines int64) {
	t.start += n
	t.offset += int64(n)
	t.line += lines
}

// SkipOverlong passes a line that is longer than a row may be, as FirstLine said.
// Offset stays at its beginning while its bytes are dropped: if the source fails
// before the end, the row was not returned.
func (t *Text) SkipOverlong() (Row, error) {
	row := Row{Line: t.line, Malformed: TooLong, Raw: bytes.Clone(t.buf[t.start : t.start+peekBytes])}
	var dropped int64
	for {
		i := bytes.IndexByte(t.buf[t.start:t.end], '\n')
		if i >= 0 {
			t.offset += dropped
			t.Pass(i+1, 1)
			return row, nil
		}
		dropped += int64(t.end - t.start)
		t.start, t.end = 0, 0
		switch t.ended {
		case nil:
			t.Fill()
		case io.EOF:
			t.offset += dropped
			t.line++
			return row, nil
		default:
			return Row{}, t.ended
		}
	}
}

// WithoutEnd cuts \n or \r\n, or a \r at the end of the file.
func WithoutEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte{'\n'}), []byte{'\r'})
}

// Check says why the text of a row is not what its encoding allows; nil if it is.
// fields are those that the text is of, nil for the whole row.
func (t *Text) Check(text string, fields []string) *Malformed {
	if t.encoding == "" {
		return checkUTF8(text, fields)
	}
	valid := func(s string) bool { return !strings.ContainsRune(s, utf8.RuneError) }
	return check(text, fields, valid, t.encoding)
}

func checkUTF8(text string, fields []string) *Malformed {
	return check(text, fields, utf8.ValidString, "UTF-8")
}

// check looks at the text of all fields at once, and if it is bad looks for the field.
func check(text string, fields []string, valid func(string) bool, encoding string) *Malformed {
	if valid(text) {
		return nil
	}
	bad := slices.IndexFunc(fields, func(f string) bool { return !valid(f) })
	return &Malformed{bad, "invalid " + encoding}
}

// CheckHeader refuses more names than are kept: *Invalid.
func CheckHeader(names []string) error {
	if len(names) > maxColumns {
		return &Invalid{fmt.Sprintf("the file has %d columns, at most %d can be read", len(names), maxColumns)}
	}
	size := 0
	for _, n := range names {
		size += len(n)
	}
	if size > maxHeaderBytes {
		return &Invalid{fmt.Sprintf("the names of the columns are %d bytes long, at most %d can be read", size, maxHeaderBytes)}
	}
	return nil
}
