package ocf

import (
	"encoding/binary"
	"math"
	"strconv"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
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

	*rows.Builder // of an overlong row too all is read, and no more kept
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
	d.Begin()
	d.columns(steps)
}

func (d *decoder) columns(steps []step) {
	for i := range steps {
		s := &steps[i]
		switch {
		case s.null >= 0 && d.branch(2) == s.null, d.failed != "":
			for range s.columns {
				d.End()
			}
			continue
		case s.steps != nil:
			d.columns(s.steps)
			continue
		case s.node.kind == text: // first, for it is most columns
			d.Keep(d.take(d.long()))
		case s.scalar:
			d.scalar(s.node)
		default:
			d.json(s.node, 0)
		}
		d.End()
	}
}

// scalar reads a value that has a text of its own.
func (d *decoder) scalar(n *node) {
	before, over := len(d.Text), d.Over()
	switch n.kind {
	case null:
	case boolean:
		switch v := d.take(1); {
		case v == nil:
		case v[0] > 1:
			d.fail("a boolean is neither true nor false")
		default:
			d.Text = strconv.AppendBool(d.Text, v[0] == 1)
		}
	case integer:
		d.Text = strconv.AppendInt(d.Text, int64(d.int()), 10)
	case long:
		d.Text = strconv.AppendInt(d.Text, d.long(), 10)
	case float:
		if v := d.take(4); v != nil {
			d.Text = rows.AppendFloat(d.Text, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))), 32)
		}
	case double:
		if v := d.take(8); v != nil {
			d.Text = rows.AppendFloat(d.Text, math.Float64frombits(binary.LittleEndian.Uint64(v)), 64)
		}
	case text:
		d.Keep(d.take(d.long()))
	case octets:
		d.Text = rows.AppendBytes(d.Text, d.Room(d.take(d.long())))
	case fixed:
		d.Text = rows.AppendBytes(d.Text, d.Room(d.take(int64(n.size))))
	case uuidFixed:
		d.Text = rows.AppendUUID(d.Text, d.take(16))
	case enum:
		if i := d.branch(len(n.symbols)); i >= 0 {
			d.Keep(n.symbols[i])
		}
	case date:
		d.Text = rows.AppendDate(d.Text, d.int())
	case clock:
		d.Text = rows.AppendClock(d.Text, int64(d.int()), n.perSecond)
	case clock64:
		d.Text = rows.AppendClock(d.Text, d.long(), n.perSecond)
	case instant, local:
		d.Text = rows.AppendTime(d.Text, d.long(), n.perSecond, n.kind == local)
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
		d.Text = d.Text[:before]
	}
}

func (d *decoder) decimal(v []byte, scale int) {
	if len(v) > maxDecimalBytes {
		d.fail("a decimal has more than " + strconv.Itoa(maxDecimalBytes) + " bytes")
		return
	}
	d.Text = rows.AppendBigDecimal(d.Text, v, scale)
}

// json reads any value as JSON.
func (d *decoder) json(n *node, depth int) {
	if depth > maxDepth {
		d.fail("a value is nested deeper than " + strconv.Itoa(maxDepth))
	}
	if d.failed != "" || d.Over() && n.empty() { // of which there may be any number in no bytes
		return
	}
	switch n.kind {
	case union:
		if i := d.branch(len(n.branches)); i >= 0 {
			d.json(n.branches[i], depth+1)
		}
	case record:
		d.Put('{')
		for i := range n.fields {
			f := &n.fields[i]
			if i > 0 {
				d.Put(',')
			}
			d.Keep(f.key)
			d.json(f.node, depth+1)
		}
		d.Put('}')
	case array:
		d.items('[', n.item, ']', depth)
	case mapping:
		d.items('{', n.item, '}', depth)
	case null:
		d.Keep([]byte("null"))
	case text:
		d.Quote(d.take(d.long()))
	default:
		before := len(d.Text)
		d.scalar(n)
		if v := d.Text[before:]; !d.Over() && !n.isBare() && !(isFloat(n) && isNumber(v)) {
			d.Text = rows.AppendString(d.Text[:before], string(v))
		}
	}
}

// items reads an array, or a map, which has keys. They come in blocks with a count
// before each, or a negative count and a length in bytes; 0 ends them.
func (d *decoder) items(opening byte, item *node, closing byte, depth int) {
	d.Put(opening)
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
			d.Put(closing)
			return
		case n < 0 || n > int64(len(d.b)) && !(closing == ']' && item.empty()):
			d.fail("a list has more items than its block has bytes")
			return
		}
		for ; n > 0 && d.failed == ""; n-- {
			if closing == ']' && d.Over() && item.empty() {
				break
			}
			if !first {
				d.Put(',')
			}
			first = false
			if closing == '}' {
				d.Quote(d.take(d.long()))
				d.Put(':')
			}
			d.json(item, depth+1)
		}
	}
}

func isFloat(n *node) bool { return n.kind == float || n.kind == double }

// isNumber is false for NaN and the infinities.
func isNumber(v []byte) bool { return len(v) > 0 && v[len(v)-1] <= '9' }
