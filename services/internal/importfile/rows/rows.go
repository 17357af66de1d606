// Package rows is what the readers of all file formats have in common: they give
// the rows of one file in order, each as text by column, and say of each where it
// stands. What a text means, the import spec says, not the reader.
package rows

// MaxBytes is the longest row there may be, over all its lines.
const MaxBytes = 1 << 20

// Malformed says why a row cannot be taken apart. It never quotes the row.
type Malformed struct {
	Field  int // from 0; -1 if it concerns the whole row
	Reason string
}

// Error is the reason.
func (m *Malformed) Error() string { return m.Reason }

// Column is the name of the field's column, empty if it concerns the whole row.
func (m *Malformed) Column(header []string) string {
	if m.Field < 0 || m.Field >= len(header) {
		return ""
	}
	return header[m.Field]
}

// Invalid says why a file is none of its format, or cannot be read any further, in
// a sentence for the file's owner. Waiting does not mend it.
type Invalid struct{ Reason string }

// Error is the reason.
func (i *Invalid) Error() string { return i.Reason }

// Row is one row. All of it is valid until the next call of Next; strings taken
// from Fields stay valid.
type Row struct {
	Line      int64      // number of its first line, from 1; in formats without lines the number of the row
	Fields    []string   // by column, empty where the row has no value; nil if it is malformed
	Malformed *Malformed // nil if all is well
	Raw       []byte     // as it stands in the file, without the line end, or as JSON in formats that are not text; of an overlong row the beginning
}

// Reader gives the rows of one file, in order. It is for one goroutine.
//
// Values are text: a number as the file writes it, or shortest in binary formats;
// true and false; a time in RFC 3339 in UTC; bytes that are UTF-8 as they are, others in
// base64; a list or map as JSON. A field inside a record is a column called
// record.field. A missing value and null are empty.
type Reader interface {
	// Header names the columns. It is called before Next, and once. Errors: *Invalid, or
	// the source's.
	Header() ([]string, error)
	// Next returns the next row. Errors: io.EOF after the last; *Invalid when the rest
	// cannot be read; the source's.
	Next() (Row, error)
	// Offset is the byte of the source at which the row after the last one begins. It
	// grows with every row only in text that is neither compressed nor re-encoded.
	Offset() int64
	// Line is the number of the line at Offset, from 1.
	Line() int64
}
