// Package csv reads rows of comma-separated text (RFC 4180) in constant memory
// and says exactly, in bytes and lines, where each row begins, so that reading
// can stop after any row and go on from there another day.
//
// Unlike encoding/csv it survives bad rows: a row whose quotes do not add up
// spoils its own line and no more, and none can make the reader hold more than
// rows.MaxBytes. A quote inside an unquoted field is a character like any other.
// Empty lines are no rows. Line ends are \n or \r\n; inside quotes they are data.
package csv

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/services/importer/internal/rows"
)

const (
	peekBytes   = 64 << 10  // of a file are looked at before the first row, and kept of an overlong one
	bufferBytes = 256 << 10 // at first; it grows up to rows.MaxBytes + 1
)

var (
	unclosed   = &rows.Malformed{Field: -1, Reason: "a quote is opened and not closed"}
	afterQuote = &rows.Malformed{Field: -1, Reason: "text follows a closing quote"}
	tooLong    = &rows.Malformed{Field: -1, Reason: "the row is longer than 1 MiB"}
)

// Reader reads rows. It is for one goroutine.
type Reader struct {
	source io.Reader
	comma  byte

	buf        []byte
	start, end int   // what has been read and not yet been returned
	ended      error // what the source said last; io.EOF at the end

	offset int64 // in the file, of buf[start]
	line   int64 // of buf[start]

	fields []string
	text   []byte // of a row's unquoted fields, one after the other
	ends   []int  // of each of them in text
}

// NewReader returns a reader of a source that begins at a row: at byte offset
// and line number line (from 1) of the file. At byte 0 a byte order mark is
// skipped.
func NewReader(source io.Reader, comma byte, offset, line int64) *Reader {
	return &Reader{source: source, comma: comma, buf: make([]byte, bufferBytes), offset: offset, line: line}
}

// Offset is the byte of the file at which the next row begins, or an empty
// line before it.
func (r *Reader) Offset() int64 { return r.offset }

// Line is the number of the line at Offset, from 1.
func (r *Reader) Line() int64 { return r.line }

// Header returns the first row, the names of the columns. Errors: *rows.Invalid if
// this is no text or has no header; the source's.
func (r *Reader) Header() ([]string, error) {
	start, err := r.peek()
	if err != nil {
		return nil, err
	}
	if n := bytes.IndexByte(start, 0); n >= 0 {
		return nil, &rows.Invalid{Reason: fmt.Sprintf("not a CSV file in UTF-8: there is a NUL at byte %d", n)}
	}
	header, err := r.Next()
	switch {
	case err == io.EOF:
		return nil, &rows.Invalid{Reason: "the file is empty"}
	case err != nil:
		return nil, err
	case header.Malformed != nil:
		return nil, &rows.Invalid{Reason: fmt.Sprintf("the header, line %d: %s", header.Line, header.Malformed.Reason)}
	}
	return slices.Clone(header.Fields), nil
}

// peek returns the next bytes, fewer than peekBytes only if the source ends,
// without passing them. The error is the source's.
func (r *Reader) peek() ([]byte, error) {
	for r.end-r.start < peekBytes && r.ended == nil {
		r.fill()
	}
	if r.ended != nil && r.ended != io.EOF {
		return nil, r.ended
	}
	return r.buf[r.start:min(r.end, r.start+peekBytes)], nil
}

// Next returns the next row. The error is io.EOF after the last one, or the
// source's, and then Offset is where the first row begins that was not returned.
func (r *Reader) Next() (rows.Row, error) {
	if r.offset == 0 {
		if err := r.skipMark(); err != nil {
			return rows.Row{}, err
		}
	}
	for {
		data, length, err := r.firstLine()
		switch {
		case err != nil:
			return rows.Row{}, err
		case length < 0:
			return r.skipOverlong()
		}
		line := withoutEnd(data[:length])
		if len(line) == 0 {
			r.pass(length, 1)
			continue
		}
		if bytes.IndexByte(line, '"') < 0 {
			row := rows.Row{Line: r.line, Raw: line}
			r.split(&row)
			r.pass(length, 1)
			return row, nil
		}
		return r.quoted()
	}
}

// skipMark passes a UTF-8 byte order mark at the beginning of the file.
func (r *Reader) skipMark() error {
	mark := []byte("\xef\xbb\xbf")
	for r.end-r.start < len(mark) && r.ended == nil {
		r.fill()
	}
	if bytes.HasPrefix(r.buf[r.start:r.end], mark) {
		r.pass(len(mark), 0)
	}
	if r.ended != nil && r.ended != io.EOF {
		return r.ended
	}
	return nil
}

// firstLine returns what is in hand and the length of its first line with its
// end; -1 if that is longer than a row may be.
func (r *Reader) firstLine() (data []byte, length int, err error) {
	seen := 0
	for {
		data = r.buf[r.start:r.end]
		if i := bytes.IndexByte(data[seen:], '\n'); i >= 0 && seen+i < rows.MaxBytes {
			return data, seen + i + 1, nil
		}
		seen = len(data)
		switch {
		case seen > rows.MaxBytes:
			return nil, -1, nil
		case r.ended == io.EOF && seen > 0:
			return data, seen, nil
		case r.ended != nil:
			return nil, 0, r.ended
		}
		r.fill()
	}
}

// fill reads once more, making room first.
func (r *Reader) fill() {
	if r.start > 0 && (r.end == len(r.buf) || r.start == r.end) {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	if r.end == len(r.buf) {
		larger := make([]byte, 2*len(r.buf))
		r.end = copy(larger, r.buf[:r.end])
		r.buf = larger
	}
	var n int
	n, r.ended = r.source.Read(r.buf[r.end:])
	r.end += n
}

// pass moves over n bytes with so many line ends.
func (r *Reader) pass(n int, lines int64) {
	r.start += n
	r.offset += int64(n)
	r.line += lines
}

// split cuts a row without quotes.
func (r *Reader) split(row *rows.Row) {
	s := string(row.Raw)
	r.fields = r.fields[:0]
	from := 0
	for i := 0; i < len(s); i++ {
		if s[i] == r.comma {
			r.fields = append(r.fields, s[from:i])
			from = i + 1
		}
	}
	r.fields = append(r.fields, s[from:])
	r.finish(row, s)
}

// finish checks the text of all fields at once, and if it is bad looks for the
// field.
func (r *Reader) finish(row *rows.Row, text string) {
	if utf8.ValidString(text) {
		row.Fields = r.fields
		return
	}
	row.Malformed = &rows.Malformed{Field: -1, Reason: "invalid UTF-8"}
	for i, f := range r.fields {
		if !utf8.ValidString(f) {
			row.Malformed.Field = i
			return
		}
	}
}

// quoted reads a row that has a quote in its first line, which is in hand.
func (r *Reader) quoted() (rows.Row, error) {
	for {
		data := r.buf[r.start:r.end]
		length, lines, malformed, whole := r.parse(data, r.ended == io.EOF)
		if whole && malformed == nil && length <= rows.MaxBytes+1 {
			row := rows.Row{Line: r.line, Raw: withoutEnd(data[:length])}
			text, from := string(r.text), 0
			r.fields = r.fields[:0]
			for _, end := range r.ends {
				r.fields = append(r.fields, text[from:end])
				from = end
			}
			r.finish(&row, text)
			r.pass(length, lines)
			return row, nil
		}
		if !whole && len(data) <= rows.MaxBytes {
			if r.ended != nil && r.ended != io.EOF {
				return rows.Row{}, r.ended
			}
			r.fill()
			continue
		}
		// Where the row was meant to end nobody can tell. Its first line is
		// given up, the next may be a row again.
		if malformed == nil {
			malformed = unclosed
		}
		length = len(data)
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			length = i + 1
		}
		row := rows.Row{Line: r.line, Malformed: malformed, Raw: withoutEnd(data[:length])}
		r.pass(length, 1)
		return row, nil
	}
}

// parse takes one row from the front of data into text and ends. It says how
// long the row is and over how many lines it goes; whole is false if data ends
// before the row does. A row that breaks the rules is whole.
func (r *Reader) parse(data []byte, atEnd bool) (length int, lines int64, malformed *rows.Malformed, whole bool) {
	r.text, r.ends = r.text[:0], r.ends[:0]
	i := 0
	for {
		if i < len(data) && data[i] == '"' {
			i++
			for {
				q := bytes.IndexByte(data[i:], '"')
				if q < 0 {
					if atEnd {
						return 0, 0, unclosed, true
					}
					return 0, 0, nil, false
				}
				r.text = append(r.text, data[i:i+q]...)
				lines += int64(bytes.Count(data[i:i+q], []byte{'\n'}))
				i += q + 1
				if i == len(data) && !atEnd {
					return 0, 0, nil, false
				}
				if i == len(data) || data[i] != '"' {
					break
				}
				r.text = append(r.text, '"')
				i++
			}
		} else {
			from := i
			for i < len(data) && data[i] != r.comma && data[i] != '\n' {
				i++
			}
			if i == len(data) && !atEnd {
				return 0, 0, nil, false
			}
			field := data[from:i]
			if i == len(data) || data[i] == '\n' {
				field = bytes.TrimSuffix(field, []byte{'\r'})
			}
			r.text = append(r.text, field...)
		}
		r.ends = append(r.ends, len(r.text))
		// After a quoted field a \r may stand before the line end.
		if i < len(data) && data[i] == '\r' {
			if i+1 == len(data) && !atEnd {
				return 0, 0, nil, false
			}
			if i+1 == len(data) || data[i+1] == '\n' {
				i++
			}
		}
		switch {
		case i == len(data):
			return i, lines + 1, nil, true
		case data[i] == '\n':
			return i + 1, lines + 1, nil, true
		case data[i] == r.comma:
			i++
		default:
			return 0, 0, afterQuote, true
		}
	}
}

// skipOverlong passes a line that is longer than a row may be. Offset stays at
// its beginning while its bytes are dropped: if the source fails before the
// end, the row was not returned.
func (r *Reader) skipOverlong() (rows.Row, error) {
	row := rows.Row{Line: r.line, Malformed: tooLong, Raw: bytes.Clone(r.buf[r.start : r.start+peekBytes])}
	var dropped int64
	for {
		i := bytes.IndexByte(r.buf[r.start:r.end], '\n')
		if i >= 0 {
			r.offset += dropped
			r.pass(i+1, 1)
			return row, nil
		}
		dropped += int64(r.end - r.start)
		r.start, r.end = 0, 0
		switch r.ended {
		case nil:
			r.fill()
		case io.EOF:
			r.offset += dropped
			r.line++
			return row, nil
		default:
			return rows.Row{}, r.ended
		}
	}
}

// withoutEnd cuts \n or \r\n, or a \r at the end of the file.
func withoutEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte{'\n'}), []byte{'\r'})
}
