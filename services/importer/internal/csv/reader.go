// Package csv reads rows of comma-separated text (RFC 4180) in constant memory
// and says exactly, in bytes and lines, where each row begins, so that reading
// can stop after any row and go on from there another day.
//
// Unlike encoding/csv it survives bad rows: a row whose quotes do not add up
// spoils its own line and no more, and none can make the reader hold more than
// MaxRowBytes. A quote inside an unquoted field is a character like any other.
// Empty lines are no rows. Line ends are \n or \r\n; inside quotes they are data.
package csv

import (
	"bytes"
	"io"
	"unicode/utf8"
)

const (
	// MaxRowBytes is the longest row there may be, over all its lines.
	MaxRowBytes = 1 << 20
	// PeekBytes is how much Peek can see.
	PeekBytes = 64 << 10

	bufferBytes = 256 << 10 // at first; it grows up to MaxRowBytes + 1
)

// Malformed says why a row cannot be taken apart. It never quotes the row.
type Malformed struct {
	Field  int // from 0; -1 if it concerns the whole row
	Reason string
}

// Error is the reason.
func (m *Malformed) Error() string { return m.Reason }

var (
	unclosed   = &Malformed{-1, "a quote is opened and not closed"}
	afterQuote = &Malformed{-1, "text follows a closing quote"}
	tooLong    = &Malformed{-1, "the row is longer than 1 MiB"}
)

// Row is one row. All of it is valid until the next call of Next; strings
// taken from Fields stay valid.
type Row struct {
	Line      int64      // number of its first line, from 1
	Fields    []string   // nil if it is malformed
	Malformed *Malformed // nil if all is well
	Raw       []byte     // as it stands in the file, without the line end; of an overlong row the beginning
}

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

// Peek returns the next bytes, fewer than PeekBytes only if the source ends,
// without passing them. The error is the source's.
func (r *Reader) Peek() ([]byte, error) {
	for r.end-r.start < PeekBytes && r.ended == nil {
		r.fill()
	}
	if r.ended != nil && r.ended != io.EOF {
		return nil, r.ended
	}
	return r.buf[r.start:min(r.end, r.start+PeekBytes)], nil
}

// Next returns the next row. The error is io.EOF after the last one, or the
// source's, and then Offset is where the first row begins that was not returned.
func (r *Reader) Next() (Row, error) {
	if r.offset == 0 {
		if err := r.skipMark(); err != nil {
			return Row{}, err
		}
	}
	for {
		data, length, err := r.firstLine()
		switch {
		case err != nil:
			return Row{}, err
		case length < 0:
			return r.skipOverlong()
		}
		line := withoutEnd(data[:length])
		if len(line) == 0 {
			r.pass(length, 1)
			continue
		}
		if bytes.IndexByte(line, '"') < 0 {
			row := Row{Line: r.line, Raw: line}
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
		if i := bytes.IndexByte(data[seen:], '\n'); i >= 0 && seen+i < MaxRowBytes {
			return data, seen + i + 1, nil
		}
		seen = len(data)
		switch {
		case seen > MaxRowBytes:
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
func (r *Reader) split(row *Row) {
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
func (r *Reader) finish(row *Row, text string) {
	if utf8.ValidString(text) {
		row.Fields = r.fields
		return
	}
	row.Malformed = &Malformed{-1, "invalid UTF-8"}
	for i, f := range r.fields {
		if !utf8.ValidString(f) {
			row.Malformed.Field = i
			return
		}
	}
}

// quoted reads a row that has a quote in its first line, which is in hand.
func (r *Reader) quoted() (Row, error) {
	for {
		data := r.buf[r.start:r.end]
		length, lines, malformed, whole := r.parse(data, r.ended == io.EOF)
		if whole && malformed == nil && length <= MaxRowBytes+1 {
			row := Row{Line: r.line, Raw: withoutEnd(data[:length])}
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
		if !whole && len(data) <= MaxRowBytes {
			if r.ended != nil && r.ended != io.EOF {
				return Row{}, r.ended
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
		row := Row{Line: r.line, Malformed: malformed, Raw: withoutEnd(data[:length])}
		r.pass(length, 1)
		return row, nil
	}
}

// parse takes one row from the front of data into text and ends. It says how
// long the row is and over how many lines it goes; whole is false if data ends
// before the row does. A row that breaks the rules is whole.
func (r *Reader) parse(data []byte, atEnd bool) (length int, lines int64, malformed *Malformed, whole bool) {
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
func (r *Reader) skipOverlong() (Row, error) {
	row := Row{Line: r.line, Malformed: tooLong, Raw: bytes.Clone(r.buf[r.start : r.start+PeekBytes])}
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
			return Row{}, r.ended
		}
	}
}

// withoutEnd cuts \n or \r\n, or a \r at the end of the file.
func withoutEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte{'\n'}), []byte{'\r'})
}
