package export

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
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

// cell is one value of a row.
type cell struct {
	null  bool
	text  []byte  // of a string or JSON
	int   int64   // of an int, a bool (0 or 1), a time
	float float64 // of a float
}

// instant is the time of a cell of kindTime.
func (c *cell) instant() time.Time { return time.UnixMicro(c.int).UTC() }

// reader takes rows apart that ClickHouse has written in the format RowBinary.
type reader struct {
	columns []column
	b       []byte // what is left of the row
	text    []byte // JSON that is put together
	cells   []cell
	values  []named // of a JSON object being put together
	broken  bool
}

func newReader(columns []column) *reader {
	return &reader{columns: columns, cells: make([]cell, len(columns))}
}

// row returns the cells of a row, good until the next call. The error is errBroken.
func (r *reader) row(b []byte) ([]cell, error) {
	r.b, r.text = b, r.text[:0]
	for i := range r.columns {
		c := &r.cells[i]
		*c = cell{}
		r.columns[i].read(r, c)
	}
	if r.broken || len(r.b) > 0 {
		return nil, errBroken
	}
	return r.cells, nil
}

// take returns the next bytes; none if there are not so many.
func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.broken, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.broken, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() []byte { return r.take(r.uvarint()) }

func (r *reader) int64() int64 {
	if b := r.take(8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
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
	for n := r.uvarint(); n > 0 && !r.broken; n-- {
		r.values = append(r.values, named{name: r.string(), kind: k})
		read(r, &r.values[len(r.values)-1].cell)
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
