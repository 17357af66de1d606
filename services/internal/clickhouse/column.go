package clickhouse

import (
	"encoding/binary"
	"math"
	"time"
)

// A Column holds the values of one column of a block as ClickHouse's Native format has
// them, so that sending it is copying it. Values are appended one by one; nothing is boxed, and
// what they were read from is not kept.
type Column interface {
	// Kind is the column's type as ClickHouse writes it; the table must have the same.
	Kind() string
	// Rows is how many values it holds.
	Rows() int
	// Reset drops the values and keeps their room.
	Reset()
	// prefix appends what stands once before the values of a block.
	prefix(b []byte) []byte
	// parts are the values, in pieces that follow each other and hold until the next change.
	parts(yield func([]byte))
}

// fixed is a column of values of the same width.
type fixed struct {
	kind string
	data []byte
	n    int
}

func (c *fixed) Kind() string             { return c.kind }
func (c *fixed) Rows() int                { return c.n }
func (c *fixed) Reset()                   { c.data, c.n = c.data[:0], 0 }
func (c *fixed) prefix(b []byte) []byte   { return b }
func (c *fixed) parts(yield func([]byte)) { yield(c.data) }
func (c *fixed) put32(v uint32)           { c.data, c.n = binary.LittleEndian.AppendUint32(c.data, v), c.n+1 }
func (c *fixed) put64(v uint64)           { c.data, c.n = binary.LittleEndian.AppendUint64(c.data, v), c.n+1 }

// Text is a column of type String.
type Text struct{ fixed }

// NewText returns an empty one.
func NewText() *Text { return &Text{fixed{kind: "String"}} }

// Append adds a value.
func (c *Text) Append(v string) {
	c.data = append(appendLength(c.data, len(v)), v...)
	c.n++
}

// AppendBytes adds a value.
func (c *Text) AppendBytes(v []byte) {
	c.data = append(appendLength(c.data, len(v)), v...)
	c.n++
}

func appendLength(b []byte, n int) []byte {
	if n < 0x80 {
		return append(b, byte(n))
	}
	return binary.AppendUvarint(b, uint64(n))
}

// Int32 is a column of type Int32.
type Int32 struct{ fixed }

// NewInt32 returns an empty one.
func NewInt32() *Int32 { return &Int32{fixed{kind: "Int32"}} }

// Append adds a value.
func (c *Int32) Append(v int32) { c.put32(uint32(v)) }

// UInt32 is a column of type UInt32.
type UInt32 struct{ fixed }

// NewUInt32 returns an empty one.
func NewUInt32() *UInt32 { return &UInt32{fixed{kind: "UInt32"}} }

// Append adds a value.
func (c *UInt32) Append(v uint32) { c.put32(v) }

// Int64 is a column of type Int64.
type Int64 struct{ fixed }

// NewInt64 returns an empty one.
func NewInt64() *Int64 { return &Int64{fixed{kind: "Int64"}} }

// Append adds a value.
func (c *Int64) Append(v int64) { c.put64(uint64(v)) }

// Float64 is a column of type Float64.
type Float64 struct{ fixed }

// NewFloat64 returns an empty one.
func NewFloat64() *Float64 { return &Float64{fixed{kind: "Float64"}} }

// Append adds a value.
func (c *Float64) Append(v float64) { c.put64(math.Float64bits(v)) }

// Bool is a column of type Bool.
type Bool struct{ fixed }

// NewBool returns an empty one.
func NewBool() *Bool { return &Bool{fixed{kind: "Bool"}} }

// Append adds a value.
func (c *Bool) Append(v bool) {
	var x byte
	if v {
		x = 1
	}
	c.data, c.n = append(c.data, x), c.n+1
}

// UUID is a column of type UUID.
type UUID struct{ fixed }

// NewUUID returns an empty one.
func NewUUID() *UUID { return &UUID{fixed{kind: "UUID"}} }

// Append adds a value, given as it is written.
func (c *UUID) Append(v [16]byte) {
	// Two numbers, the first half first.
	c.put64(binary.BigEndian.Uint64(v[:8]))
	c.put64(binary.BigEndian.Uint64(v[8:]))
	c.n--
}

// Time is a column of type DateTime64 in UTC.
type Time struct {
	fixed
	micros int64 // of one tick
}

// NewMicros returns an empty column of type DateTime64(6, 'UTC').
func NewMicros() *Time { return &Time{fixed{kind: "DateTime64(6, 'UTC')"}, 1} }

// NewMillis returns an empty column of type DateTime64(3, 'UTC').
func NewMillis() *Time { return &Time{fixed{kind: "DateTime64(3, 'UTC')"}, 1000} }

// Append adds a moment; the zero time is 1970.
func (c *Time) Append(t time.Time) {
	if t.IsZero() {
		c.put64(0)
		return
	}
	micros := t.UnixMicro()
	ticks := micros / c.micros
	if micros%c.micros < 0 {
		ticks-- // before 1970, too, a part of a tick is cut off towards the past
	}
	c.put64(uint64(ticks))
}

// Word is a column of type LowCardinality(String).
type Word struct {
	index  map[string]uint32
	words  Text
	keys   []uint32
	last   string
	lastAt uint32
	made   []byte
}

// NewWord returns an empty one.
func NewWord() *Word { return &Word{index: map[string]uint32{}, words: *NewText()} }

// Append adds a value, of which nothing is kept.
func (c *Word) Append(v string) {
	if v == c.last && len(c.keys) > 0 {
		c.keys = append(c.keys, c.lastAt)
		return
	}
	at, ok := c.index[v]
	if !ok {
		at = uint32(len(c.index))
		v = string(append([]byte(nil), v...))
		c.index[v] = at
		c.words.Append(v)
	}
	c.keys = append(c.keys, at)
	c.last, c.lastAt = v, at
}

// Kind implements Column.
func (c *Word) Kind() string { return "LowCardinality(String)" }

// Rows implements Column.
func (c *Word) Rows() int { return len(c.keys) }

// Reset implements Column.
func (c *Word) Reset() {
	clear(c.index)
	c.words.Reset()
	c.keys, c.last = c.keys[:0], ""
}

// prefix is the version of how keys are written.
func (c *Word) prefix(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, 1) }

const (
	hasWords   = 1 << 9  // the words of this block stand before its keys
	needUpdate = 1 << 10 // they replace those of the block before
)

func (c *Word) parts(yield func([]byte)) {
	if len(c.keys) == 0 {
		return
	}
	width := uint64(0)
	switch {
	case len(c.index) > math.MaxUint16:
		width = 2
	case len(c.index) > math.MaxUint8:
		width = 1
	}
	b := binary.LittleEndian.AppendUint64(c.made[:0], hasWords|needUpdate|width)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.words.n))
	b = append(b, c.words.data...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(c.keys)))
	for _, k := range c.keys {
		switch width {
		case 0:
			b = append(b, byte(k))
		case 1:
			b = binary.LittleEndian.AppendUint16(b, uint16(k))
		default:
			b = binary.LittleEndian.AppendUint32(b, k)
		}
	}
	c.made = b
	yield(b)
}

// Map is a column of type Map.
// The pairs of a row are appended to Keys and Values, and then the row is ended.
type Map[K, V Column] struct {
	Keys   K
	Values V
	ends   fixed
}

// NewMap returns an empty one.
func NewMap[K, V Column](keys K, values V) *Map[K, V] { return &Map[K, V]{Keys: keys, Values: values} }

// End ends a row: what was appended since the one before is in it.
func (c *Map[K, V]) End() { c.ends.put64(uint64(c.Keys.Rows())) }

// Kind implements Column.
func (c *Map[K, V]) Kind() string { return "Map(" + c.Keys.Kind() + ", " + c.Values.Kind() + ")" }

// Rows implements Column.
func (c *Map[K, V]) Rows() int { return c.ends.n }

// Reset implements Column.
func (c *Map[K, V]) Reset() { c.ends.Reset(); c.Keys.Reset(); c.Values.Reset() }

func (c *Map[K, V]) prefix(b []byte) []byte { return c.Values.prefix(c.Keys.prefix(b)) }

func (c *Map[K, V]) parts(yield func([]byte)) {
	yield(c.ends.data)
	c.Keys.parts(yield)
	c.Values.parts(yield)
}

// Array is a column of type Array. The items of a row are appended to Items, and then the
// row is ended.
type Array[V Column] struct {
	Items V
	ends  fixed
}

// NewArray returns an empty one.
func NewArray[V Column](items V) *Array[V] { return &Array[V]{Items: items} }

// End ends a row.
func (c *Array[V]) End() { c.ends.put64(uint64(c.Items.Rows())) }

// Kind implements Column.
func (c *Array[V]) Kind() string { return "Array(" + c.Items.Kind() + ")" }

// Rows implements Column.
func (c *Array[V]) Rows() int { return c.ends.n }

// Reset implements Column.
func (c *Array[V]) Reset() { c.ends.Reset(); c.Items.Reset() }

func (c *Array[V]) prefix(b []byte) []byte { return c.Items.prefix(b) }

func (c *Array[V]) parts(yield func([]byte)) {
	yield(c.ends.data)
	c.Items.parts(yield)
}

// Nullable is a column of type Nullable.
type Nullable[V Column] struct {
	Values V
	nulls  fixed
}

// NewNullable returns an empty one.
func NewNullable[V Column](values V) *Nullable[V] { return &Nullable[V]{Values: values} }

// Null says whether the value that is appended to Values, whatever it is, is none.
func (c *Nullable[V]) Null(null bool) {
	var x byte
	if null {
		x = 1
	}
	c.nulls.data, c.nulls.n = append(c.nulls.data, x), c.nulls.n+1
}

// Kind implements Column.
func (c *Nullable[V]) Kind() string { return "Nullable(" + c.Values.Kind() + ")" }

// Rows implements Column.
func (c *Nullable[V]) Rows() int { return c.nulls.n }

// Reset implements Column.
func (c *Nullable[V]) Reset() { c.nulls.Reset(); c.Values.Reset() }

func (c *Nullable[V]) prefix(b []byte) []byte { return c.Values.prefix(b) }

func (c *Nullable[V]) parts(yield func([]byte)) {
	yield(c.nulls.data)
	c.Values.parts(yield)
}
