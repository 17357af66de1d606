package ocf

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/services/importer/internal/rows"
)

const (
	maxDepth        = 1000 // of a value inside values, which a recursive schema leaves to the data
	maxDecimalBytes = 1024
)

// decoder takes the rows of a block apart. Its first failure stays: what is read
// after it is empty.
type decoder struct {
	b      []byte // of the block, what has not been read
	failed string // why the bytes are not what the schema says; empty if all is well

	text []byte // of the row's columns, one after the other
	ends []int  // of each of them in text
	over bool   // the row is longer than it may be: it is read to its end, and no more kept
}

func (d *decoder) fail(reason string) {
	if d.failed == "" {
		d.failed = reason
	}
	d.b = nil
}

// take returns the next n bytes, nil if there are not so many.
func (d *decoder) take(n int64) []byte {
	if n < 0 || n > int64(len(d.b)) {
		d.fail("the row goes over the end of its block")
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) long() int64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		u := d.b[0]
		d.b = d.b[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(d.b)
	switch {
	case n == 0:
		d.fail("the row goes over the end of its block")
		return 0
	case n < 0:
		d.fail("a number has more than 64 bits")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int32 {
	v := d.long()
	if v != int64(int32(v)) {
		d.fail("an int has more than 32 bits")
		return 0
	}
	return int32(v)
}

// branch reads which of n branches of a union follows, -1 if it fails.
func (d *decoder) branch(n int) int {
	i := d.long()
	if i < 0 || i >= int64(n) {
		d.fail("a union has no such branch")
	}
	if d.failed != "" {
		return -1
	}
	return int(i)
}

// row reads one row.
func (d *decoder) row(steps []step) {
	d.text, d.ends, d.over = d.text[:0], d.ends[:0], false
	d.columns(steps)
}

func (d *decoder) columns(steps []step) {
	for i := range steps {
		s := &steps[i]
		switch {
		case s.null >= 0 && d.branch(2) == s.null, d.failed != "":
			for range s.columns {
				d.ends = append(d.ends, len(d.text))
			}
			continue
		case s.steps != nil:
			d.columns(s.steps)
			continue
		case s.node.kind == text: // first, for it is most columns
			d.keep(d.take(d.long()))
		case s.scalar:
			d.scalar(s.node)
		default:
			d.json(s.node, 0)
		}
		d.ends = append(d.ends, len(d.text))
	}
}

// room returns as much of v as may be kept.
func (d *decoder) room(v []byte) []byte {
	if d.over {
		return nil
	}
	if free := rows.MaxBytes - len(d.text); len(v) > free {
		d.over = true
		return v[:max(free, 0)]
	}
	return v
}

func (d *decoder) keep(v []byte) { d.text = append(d.text, d.room(v)...) }

// scalar reads a value that has a text of its own.
func (d *decoder) scalar(n *node) {
	before, over := len(d.text), d.over
	switch n.kind {
	case null:
	case boolean:
		switch v := d.take(1); {
		case v == nil:
		case v[0] > 1:
			d.fail("a boolean is neither true nor false")
		default:
			d.text = strconv.AppendBool(d.text, v[0] == 1)
		}
	case integer:
		d.text = strconv.AppendInt(d.text, int64(d.int()), 10)
	case long:
		d.text = strconv.AppendInt(d.text, d.long(), 10)
	case float:
		if v := d.take(4); v != nil {
			d.text = rows.AppendFloat(d.text, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))), 32)
		}
	case double:
		if v := d.take(8); v != nil {
			d.text = rows.AppendFloat(d.text, math.Float64frombits(binary.LittleEndian.Uint64(v)), 64)
		}
	case text:
		d.keep(d.take(d.long()))
	case octets:
		d.text = rows.AppendBytes(d.text, d.room(d.take(d.long())))
	case fixed:
		d.text = rows.AppendBytes(d.text, d.room(d.take(int64(n.size))))
	case uuidFixed:
		d.text = rows.AppendUUID(d.text, d.take(16))
	case enum:
		if i := d.branch(len(n.symbols)); i >= 0 {
			d.keep(n.symbols[i])
		}
	case date:
		d.text = rows.AppendDate(d.text, d.int())
	case clock:
		d.text = rows.AppendClock(d.text, int64(d.int()), n.perSecond)
	case clock64:
		d.text = rows.AppendClock(d.text, d.long(), n.perSecond)
	case instant, local:
		d.text = rows.AppendTime(d.text, d.long(), n.perSecond, n.kind == local)
	case decimal:
		d.decimal(d.take(d.long()), n.scale)
	case decimalFixed:
		d.decimal(d.take(int64(n.size)), n.scale)
	case union:
		if i := d.branch(len(n.branches)); i >= 0 {
			d.scalar(n.branches[i])
		}
	}
	if over {
		d.text = d.text[:before]
	}
}

func (d *decoder) decimal(v []byte, scale int) {
	if len(v) > maxDecimalBytes {
		d.fail("a decimal has more than " + strconv.Itoa(maxDecimalBytes) + " bytes")
		return
	}
	d.text = rows.AppendBigDecimal(d.text, v, scale)
}

// json reads any value as JSON.
func (d *decoder) json(n *node, depth int) {
	if depth > maxDepth {
		d.fail("a value is nested deeper than " + strconv.Itoa(maxDepth))
	}
	if d.failed != "" || d.over && n.empty() { // of which there may be any number in no bytes
		return
	}
	switch n.kind {
	case union:
		if i := d.branch(len(n.branches)); i >= 0 {
			d.json(n.branches[i], depth+1)
		}
	case record:
		d.put('{')
		for i := range n.fields {
			f := &n.fields[i]
			if i > 0 {
				d.put(',')
			}
			d.keep(f.key)
			d.json(f.node, depth+1)
		}
		d.put('}')
	case array:
		d.items('[', n.item, ']', depth)
	case mapping:
		d.items('{', n.item, '}', depth)
	case null:
		d.keep([]byte("null"))
	case text:
		d.quote(d.take(d.long()))
	default:
		before := len(d.text)
		d.scalar(n)
		if v := d.text[before:]; !d.over && !n.isBare() && !(isFloat(n) && isNumber(v)) {
			d.text = rows.AppendString(d.text[:before], string(v))
		}
	}
}

func (d *decoder) put(c byte) {
	if d.over = d.over || len(d.text) >= rows.MaxBytes; !d.over {
		d.text = append(d.text, c)
	}
}

func (d *decoder) quote(v []byte) {
	if !d.over {
		d.text = rows.AppendString(d.text, d.room(v))
	}
}

// items reads an array, or a map, which has keys. They come in blocks with a count
// before each, or a negative count and a length in bytes; 0 ends them.
func (d *decoder) items(opening byte, item *node, closing byte, depth int) {
	d.put(opening)
	first := true
	for {
		n := d.long()
		if n < 0 {
			d.long()
		}
		if n < 0 {
			n = -n
		}
		switch {
		case d.failed != "":
			return
		case n == 0:
			d.put(closing)
			return
		case n < 0 || n > int64(len(d.b)) && !(closing == ']' && item.empty()):
			d.fail("a list has more items than its block has bytes")
			return
		}
		for ; n > 0 && d.failed == ""; n-- {
			if closing == ']' && d.over && item.empty() {
				break
			}
			if !first {
				d.put(',')
			}
			first = false
			if closing == '}' {
				d.quote(d.take(d.long()))
				d.put(':')
			}
			d.json(item, depth+1)
		}
	}
}

// finish makes the row's fields; d.ends are as many as its columns.
func (d *decoder) finish(fields []string) ([]string, *rows.Malformed) {
	s, from := string(d.text), 0
	fields = fields[:0]
	for _, end := range d.ends {
		fields = append(fields, s[from:end])
		from = end
	}
	if d.over {
		return fields, tooLong
	}
	if utf8.ValidString(s) {
		return fields, nil
	}
	malformed := &rows.Malformed{Field: -1, Reason: "invalid UTF-8"}
	for i, f := range fields {
		if !utf8.ValidString(f) {
			malformed.Field = i
			break
		}
	}
	return fields, malformed
}

func isFloat(n *node) bool { return n.kind == float || n.kind == double }

// isNumber is false for NaN and the infinities.
func isNumber(v []byte) bool { return len(v) > 0 && v[len(v)-1] <= '9' }
