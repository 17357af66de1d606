// Package csv reads rows of comma-separated text (RFC 4180), or separated by another
// character.
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

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

var (
	unclosed   = &rows.Malformed{Field: -1, Reason: "a quote is opened and not closed"}
	afterQuote = &rows.Malformed{Field: -1, Reason: "text follows a closing quote"}
)

// Reader reads rows. It is for one goroutine.
type Reader struct {
	*rows.Text
	comma byte

	fields []string
	text   []byte // of a row's unquoted fields, one after the other
	ends   []int  // of each of them in text
}

// NewReader returns a reader of a text that begins at a row.
func NewReader(text *rows.Text, comma byte) *Reader {
	return &Reader{Text: text, comma: comma}
}

// Header returns the first row, the names of the columns. Errors: *rows.Invalid if
// this is no such text or has no header; the source's.
func (r *Reader) Header() ([]string, error) {
	start, err := r.Peek()
	if err != nil {
		return nil, err
	}
	if n := bytes.IndexByte(start, 0); n >= 0 {
		return nil, &rows.Invalid{Reason: fmt.Sprintf("not a CSV file, or in another encoding than was said: there is a NUL at byte %d", n)}
	}
	if bytes.IndexByte(start, '\n') < 0 && bytes.IndexByte(start[:max(0, len(start)-1)], '\r') >= 0 {
		return nil, &rows.Invalid{Reason: "the lines end in carriage returns alone; write the file with line feeds"}
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
	return slices.Clone(header.Fields), rows.CheckHeader(header.Fields)
}

// Next returns the next row. The error is io.EOF after the last one, or the
// source's, and then Offset is where the first row begins that was not returned.
func (r *Reader) Next() (rows.Row, error) {
	for {
		data, length, err := r.FirstLine()
		switch {
		case err != nil:
			return rows.Row{}, err
		case length < 0:
			return r.SkipOverlong()
		}
		line := rows.WithoutEnd(data[:length])
		if len(line) == 0 {
			r.Pass(length, 1)
			continue
		}
		if bytes.IndexByte(line, '"') < 0 {
			row := rows.Row{Line: r.Line(), Raw: line}
			r.split(&row)
			r.Pass(length, 1)
			return row, nil
		}
		return r.quoted()
	}
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

func (r *Reader) finish(row *rows.Row, text string) {
	if row.Malformed = r.Check(text, r.fields); row.Malformed == nil {
		row.Fields = r.fields
	}
}

// quoted reads a row that has a quote in its first line, which is in hand.
func (r *Reader) quoted() (rows.Row, error) {
	for {
		data := r.Data()
		length, lines, malformed, whole := r.parse(data, r.Ended() == io.EOF)
		if whole && malformed == nil && length <= rows.MaxBytes+1 {
			row := rows.Row{Line: r.Line(), Raw: rows.WithoutEnd(data[:length])}
			text, from := string(r.text), 0
			r.fields = r.fields[:0]
			for _, end := range r.ends {
				r.fields = append(r.fields, text[from:end])
				from = end
			}
			r.finish(&row, text)
			r.Pass(length, lines)
			return row, nil
		}
		if !whole && len(data) <= rows.MaxBytes {
			if r.Ended() != nil && r.Ended() != io.EOF {
				return rows.Row{}, r.Ended()
			}
			r.Fill()
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
		row := rows.Row{Line: r.Line(), Malformed: malformed, Raw: rows.WithoutEnd(data[:length])}
		r.Pass(length, 1)
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
