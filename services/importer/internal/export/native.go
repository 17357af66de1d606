package export

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
)

// blockBytes bounds what a broken answer can claim of memory. A block has a granule of the table at most, which is
// 8,192 rows or 10 MiB, and those that FINAL puts together.
const blockBytes = 256 << 20

// answer takes apart what ClickHouse has written in the format Native: blocks of rows, and in a
// block column after column. It costs ClickHouse half of what RowBinary does.
type answer struct {
	r       io.Reader
	types   []string // that are expected
	memory  []byte
	b       []byte // of memory, what is not taken yet
	left    int    // bytes that the block may still have
	rows    int    // of the block
	columns []vector
}

// vector is the values of a column in a block.
type vector struct {
	null         []byte // not 0 where there is no value; empty if all have one
	data         []byte // texts one after the other, or numbers of 8 bytes, or Bools of one
	ends         []int  // of a text in data; of a map's entries in keys and values
	keys, values *vector
}

func newAnswer(r io.Reader, types []string) *answer {
	return &answer{r: r, types: types, memory: make([]byte, 256<<10), columns: make([]vector, len(types))}
}

// next reads a block, which is good until the next call; io.EOF after the last.
func (a *answer) next() error {
	if err := a.fill(1); err != nil {
		return err
	}
	a.left = blockBytes
	columns, err := a.length()
	if err != nil {
		return err
	}
	if a.rows, err = a.length(); err != nil {
		return err
	}
	if columns != len(a.types) {
		return errBroken
	}
	for i := range a.columns {
		var head vector // the column's name, and its type
		if err := a.texts(&head, 2); err != nil {
			return err
		}
		if string(head.text(1)) != a.types[i] {
			return errBroken
		}
		if err := a.values(&a.columns[i], a.types[i], a.rows); err != nil {
			return err
		}
	}
	return nil
}

// values reads n values of a type.
func (a *answer) values(v *vector, kind string, n int) (err error) {
	v.null = v.null[:0]
	if inner, ok := strings.CutPrefix(kind, "Nullable("); ok {
		kind = strings.TrimSuffix(inner, ")")
		if v.null, err = a.bytes(v.null, n, 1); err != nil {
			return err
		}
	}
	if inner, ok := strings.CutPrefix(kind, "Map(String, "); ok {
		return a.maps(v, strings.TrimSuffix(inner, ")"), n)
	}
	switch kind {
	case "String":
		return a.texts(v, n)
	case "Bool":
		v.data, err = a.bytes(v.data, n, 1)
	default:
		v.data, err = a.bytes(v.data, n, 8)
	}
	return err
}

func (a *answer) maps(v *vector, kind string, n int) (err error) {
	if v.keys == nil {
		v.keys, v.values = new(vector), new(vector)
	}
	if v.data, err = a.bytes(v.data, n, 8); err != nil {
		return err
	}
	v.ends = v.ends[:0]
	last := 0
	for i := range n {
		end := v.number(i)
		if end < int64(last) || end > blockBytes {
			return errBroken
		}
		last = int(end)
		v.ends = append(v.ends, last)
	}
	if err := a.texts(v.keys, last); err != nil {
		return err
	}
	return a.values(v.values, kind, last)
}

func (a *answer) texts(v *vector, n int) error {
	if a.left -= n; a.left < 0 { // each has its length
		return errBroken
	}
	v.data, v.ends = v.data[:0], slices.Grow(v.ends[:0], n)
	for range n {
		size, err := a.length()
		if err != nil {
			return err
		}
		if size <= len(a.b) && size <= a.left {
			v.data, a.b, a.left = append(v.data, a.b[:size]...), a.b[size:], a.left-size
		} else if v.data, err = a.append(v.data, size); err != nil {
			return err
		}
		v.ends = append(v.ends, len(v.data))
	}
	return nil
}

// bytes reads n values of a fixed size into memory that can be used again.
func (a *answer) bytes(into []byte, n, size int) ([]byte, error) {
	if n > blockBytes/size {
		return into, errBroken
	}
	return a.append(into[:0], n*size)
}

func (a *answer) append(to []byte, n int) ([]byte, error) {
	if a.left -= n; a.left < 0 {
		return to, errBroken
	}
	to = slices.Grow(to, n)
	for n > 0 {
		if err := a.need(1); err != nil {
			return to, err
		}
		some := min(n, len(a.b))
		to, a.b, n = append(to, a.b[:some]...), a.b[some:], n-some
	}
	return to, nil
}

// length reads a number below blockBytes.
func (a *answer) length() (int, error) {
	if len(a.b) > 0 && a.b[0] < 0x80 {
		n := int(a.b[0])
		a.b = a.b[1:]
		return n, nil
	}
	for size := 1; ; size++ {
		if err := a.need(size); err != nil {
			return 0, err
		}
		if v, n := binary.Uvarint(a.b[:size]); n > 0 && v <= blockBytes {
			a.b = a.b[n:]
			return int(v), nil
		} else if n != 0 {
			return 0, errBroken
		}
	}
}

// need makes at least n bytes of a block be there, of which there are few.
func (a *answer) need(n int) error { return unexpected(a.fill(n)) }

// fill is need where the answer may end: io.EOF if it does.
func (a *answer) fill(n int) error {
	if len(a.b) >= n {
		return nil
	}
	had := copy(a.memory, a.b)
	got, err := io.ReadAtLeast(a.r, a.memory[had:], n-had)
	a.b = a.memory[:had+got]
	return err
}

func (v *vector) isNull(i int) bool { return len(v.null) > 0 && v.null[i] != 0 }

func (v *vector) text(i int) []byte {
	from, to := v.span(i)
	return v.data[from:to]
}

// number is the value of an integer; the bits of a Float64.
func (v *vector) number(i int) int64 { return int64(binary.LittleEndian.Uint64(v.data[8*i:])) }

// span is where a text lies in data, or a map's entries in keys and values.
func (v *vector) span(i int) (from, to int) {
	if i > 0 {
		from = v.ends[i-1]
	}
	return from, v.ends[i]
}
