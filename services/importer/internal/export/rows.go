package export

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// kind is what a column holds.
type kind uint8

const (
	kindString kind = iota
	kindInt
	kindFloat
	kindBool
	kindTime // microseconds since 1970-01-01 UTC
	kindJSON // text
)

// String is the type's name in definitions and manifests.
func (k kind) String() string {
	return [...]string{"string", "int", "decimal", "bool", "time", "json"}[k]
}

// cell is one value of a row. Text is good until the next row is read.
type cell struct {
	null  bool
	text  []byte  // of a string or JSON
	int   int64   // of an int, a bool (0 or 1), a time
	float float64 // of a float
}

// instant is the time of a cell of kindTime.
func (c *cell) instant() time.Time { return time.UnixMicro(c.int).UTC() }

// maxRowBytes is more than any row has: a record has at most 1 MiB. It bounds what a
// broken answer can claim.
const maxRowBytes = 64 << 20

var errBroken = errors.New("the answer of ClickHouse is not what was asked for")

// reader reads the rows of an answer in the format RowBinary.
type reader struct {
	r       *bufio.Reader
	columns []column
	text    []byte // of the row
	cells   []cell
	values  []named // of a JSON object being put together
	started bool    // a byte of the row was read
	err     error   // the first one
}

func newReader(r io.Reader, columns []column) *reader {
	return &reader{r: bufio.NewReaderSize(r, 256<<10), columns: columns, cells: make([]cell, len(columns))}
}

// Next returns the next row, io.EOF after the last. The row is good until the next
// call.
func (r *reader) Next() ([]cell, error) {
	r.text, r.started = r.text[:0], false
	for i := range r.columns {
		c := &r.cells[i]
		*c = cell{}
		r.columns[i].read(r, c)
		if r.err != nil {
			if r.err == io.EOF && r.started {
				r.err = io.ErrUnexpectedEOF
			}
			return nil, r.err
		}
	}
	return r.cells, nil
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) byte() byte {
	b, err := r.r.ReadByte()
	if err != nil {
		r.fail(err)
		return 0
	}
	r.started = true
	return b
}

func (r *reader) uvarint() uint64 {
	var v uint64
	for shift := uint(0); ; shift += 7 {
		b := r.byte()
		if shift > 63 {
			r.fail(errBroken)
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 || r.err != nil {
			return v
		}
	}
}

// string reads a length and so many bytes, into the text of the row.
func (r *reader) string() []byte {
	n := r.uvarint()
	if r.err == nil && n+uint64(len(r.text)) > maxRowBytes {
		r.fail(errBroken)
	}
	if r.err != nil {
		return nil
	}
	at := len(r.text)
	r.text = slices.Grow(r.text, int(n))[:at+int(n)]
	if _, err := io.ReadFull(r.r, r.text[at:]); err != nil {
		r.fail(unexpected(err))
	}
	return r.text[at:len(r.text):len(r.text)]
}

func (r *reader) int64() int64 {
	b, err := r.r.Peek(8)
	if err != nil {
		r.fail(unexpected(err))
		return 0
	}
	v := int64(binary.LittleEndian.Uint64(b))
	_, _ = r.r.Discard(8) // they were there
	r.started = true
	return v
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// null reads whether a Nullable has no value.
func (r *reader) null() bool { return r.byte() != 0 }

// The ways in which columns come.

func readString(r *reader, c *cell) { c.text = r.string() }

func readNullableString(r *reader, c *cell) {
	if c.null = r.null(); !c.null {
		c.text = r.string()
	}
}

func readInt(r *reader, c *cell) { c.int = r.int64() }

func readNullableInt(r *reader, c *cell) {
	if c.null = r.null(); !c.null {
		c.int = r.int64()
	}
}

func readNullableFloat(r *reader, c *cell) {
	if c.null = r.null(); !c.null {
		c.float = math.Float64frombits(uint64(r.int64()))
	}
}

func readNullableBool(r *reader, c *cell) {
	if c.null = r.null(); !c.null {
		c.int = int64(r.byte())
	}
}

// named is one entry of a JSON object.
type named struct {
	name []byte
	cell cell
	kind kind
}

// entries reads a Map. Its values are what read makes of them.
func (r *reader) entries(k kind, read func(*reader, *cell)) {
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		e := named{name: r.string(), kind: k}
		read(r, &e.cell)
		r.values = append(r.values, e)
	}
}

func readBool(r *reader, c *cell)  { c.int = int64(r.byte()) }
func readFloat(r *reader, c *cell) { c.float = math.Float64frombits(uint64(r.int64())) }

// readAttributes reads the six maps of a profile's attributes as one JSON object.
func readAttributes(r *reader, c *cell) {
	r.values = r.values[:0]
	r.entries(kindString, readString)
	r.entries(kindInt, readInt)
	r.entries(kindFloat, readFloat)
	r.entries(kindBool, readBool)
	r.entries(kindTime, readInt)
	r.entries(kindJSON, readString)
	r.object(c)
}

// readMap reads a Map of strings as a JSON object.
func readMap(r *reader, c *cell) {
	r.values = r.values[:0]
	r.entries(kindString, readString)
	r.object(c)
}

// object writes what was read last as JSON, sorted by name.
func (r *reader) object(c *cell) {
	if r.err != nil {
		return
	}
	slices.SortFunc(r.values, func(a, b named) int { return bytes.Compare(a.name, b.name) })
	at := len(r.text)
	r.text = append(r.text, '{')
	for i := range r.values {
		if i > 0 {
			r.text = append(r.text, ',')
		}
		v := &r.values[i]
		r.text = append(appendJSONString(r.text, v.name), ':')
		r.text = appendJSON(r.text, v.kind, &v.cell)
	}
	r.text = append(r.text, '}')
	c.text = r.text[at:len(r.text):len(r.text)]
}

// appendJSON writes a value that is not null.
func appendJSON(b []byte, k kind, c *cell) []byte {
	switch k {
	case kindString:
		return appendJSONString(b, c.text)
	case kindInt:
		return strconv.AppendInt(b, c.int, 10)
	case kindFloat:
		if math.IsNaN(c.float) || math.IsInf(c.float, 0) {
			return append(b, "null"...) // JSON has none
		}
		return appendFloat(b, c.float)
	case kindBool:
		return strconv.AppendBool(b, c.int != 0)
	case kindTime:
		b = append(b, '"')
		b = c.instant().AppendFormat(b, time.RFC3339Nano)
		return append(b, '"')
	}
	if !json.Valid(c.text) {
		return append(b, "null"...)
	}
	return append(b, c.text...)
}

// appendFloat writes the shortest decimal that reads back as f; a whole one has a
// point, so that it is read back as what it was.
func appendFloat(b []byte, f float64) []byte {
	at := len(b)
	b = strconv.AppendFloat(b, f, 'g', -1, 64)
	if !bytes.ContainsAny(b[at:], ".eNI") {
		b = append(b, ".0"...)
	}
	return b
}

// appendJSONString writes a text in quotes. Bytes that are no UTF-8 become U+FFFD.
func appendJSONString(b, s []byte) []byte {
	plain := true
	for _, c := range s {
		if c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			plain = false
			break
		}
	}
	if plain {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	b = append(b, '"')
	for len(s) > 0 {
		char, n := utf8.DecodeRune(s)
		switch {
		case char == '"' || char == '\\':
			b = append(b, '\\', byte(char))
		case char == '\n':
			b = append(b, '\\', 'n')
		case char == '\r':
			b = append(b, '\\', 'r')
		case char == '\t':
			b = append(b, '\\', 't')
		case char < ' ':
			b = fmt.Appendf(b, `\u%04x`, char)
		default:
			b = utf8.AppendRune(b, char)
		}
		s = s[n:]
	}
	return append(b, '"')
}
