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

// packer makes rows of the blocks of an answer: the cells one after the other, each that may be
// without a value with a byte before it that is 1 if it is.
type packer struct {
	columns []column
	shapes  []shape // by column
	b       []byte
	object  []byte
}

// shape is the members of a JSON object made of maps. Most rows have that of the row before.
type shape struct {
	names   [][]byte // as the maps have them, one after the other
	counts  []int    // by map
	members []member // sorted by name
}

type member struct {
	head     []byte // what stands before its value, with the name
	of, item int    // which entry of which map it is
}

func newPacker(columns []column) *packer {
	return &packer{columns: columns, shapes: make([]shape, len(columns))}
}

// row returns a row of a block, good until the next call. Its first column is not of the row,
// but what it is sorted by.
func (p *packer) row(a *answer, i int) []byte {
	p.b = p.b[:0]
	vectors := a.columns[1:]
	for n := range p.columns {
		c := &p.columns[n]
		if c.maps != nil {
			p.text(p.joined(n, vectors[:len(c.maps)], i))
			vectors = vectors[len(c.maps):]
			continue
		}
		v := &vectors[0]
		vectors = vectors[1:]
		if !c.required {
			if v.isNull(i) {
				p.b = append(p.b, 1)
				continue
			}
			p.b = append(p.b, 0)
		}
		switch c.kind {
		case kindString, kindJSON:
			p.text(v.text(i))
		case kindBool:
			p.b = append(p.b, v.data[i])
		default:
			p.b = append(p.b, v.data[8*i:8*i+8]...)
		}
	}
	return p.b
}

func (p *packer) text(text []byte) {
	p.b = append(binary.AppendUvarint(p.b, uint64(len(text))), text...)
}

// joined is the entries of a column's maps as one JSON object, sorted by name.
func (p *packer) joined(column int, maps []vector, i int) []byte {
	kinds, s := p.columns[column].maps, &p.shapes[column]
	if !s.fits(maps, i) {
		s.take(maps, i)
	}
	if len(s.members) == 0 {
		return []byte("{}")
	}
	p.object = p.object[:0]
	for n := range s.members {
		e := &s.members[n]
		p.object = append(p.object, e.head...)
		v := maps[e.of].values
		from, _ := maps[e.of].span(i)
		at := from + e.item
		var c cell
		switch kinds[e.of] {
		case kindString, kindJSON:
			c.text = v.text(at)
		case kindBool:
			c.int = int64(v.data[at])
		case kindFloat:
			c.float = math.Float64frombits(uint64(v.number(at)))
		default:
			c.int = v.number(at)
		}
		p.object = appendJSON(p.object, kinds[e.of], &c)
	}
	p.object = append(p.object, '}')
	return p.object
}

func (s *shape) fits(maps []vector, i int) bool {
	if len(s.counts) != len(maps) {
		return false
	}
	names := s.names
	for m := range maps {
		from, to := maps[m].span(i)
		if to-from != s.counts[m] {
			return false
		}
		for ; from < to; from++ {
			if !bytes.Equal(maps[m].keys.text(from), names[0]) {
				return false
			}
			names = names[1:]
		}
	}
	return true
}

func (s *shape) take(maps []vector, i int) {
	s.names, s.counts, s.members = s.names[:0], s.counts[:0], s.members[:0]
	for m := range maps {
		from, to := maps[m].span(i)
		s.counts = append(s.counts, to-from)
		for n := from; n < to; n++ {
			name := bytes.Clone(maps[m].keys.text(n))
			s.names = append(s.names, name)
			s.members = append(s.members, member{head: name, of: m, item: n - from})
		}
	}
	slices.SortStableFunc(s.members, func(x, y member) int { return bytes.Compare(x.head, y.head) })
	before := byte('{')
	for n := range s.members {
		s.members[n].head = append(appendJSONString([]byte{before}, s.members[n].head), ':')
		before = ','
	}
}

// reader takes rows apart that packer has made.
type reader struct {
	columns []column
	b       []byte // what is left of the row
	cells   []cell
	broken  bool
}

func newReader(columns []column) *reader {
	return &reader{columns: columns, cells: make([]cell, len(columns))}
}

// row returns the cells of a row, good until the next call. The error is errBroken.
func (r *reader) row(b []byte) ([]cell, error) {
	r.b = b
	for i := range r.columns {
		c, column := &r.cells[i], &r.columns[i]
		*c = cell{}
		if !column.required {
			if c.null = r.byte() != 0; c.null {
				continue
			}
		}
		switch column.kind {
		case kindString, kindJSON:
			c.text = r.string()
		case kindBool:
			c.int = int64(r.byte())
		case kindFloat:
			c.float = math.Float64frombits(uint64(r.int64()))
		default:
			c.int = r.int64()
		}
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

func (r *reader) string() []byte {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.broken, r.b = true, nil
		return nil
	}
	r.b = r.b[size:]
	return r.take(n)
}

func (r *reader) int64() int64 {
	if b := r.take(8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
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

// unescaped are the bytes that stand in JSON as they are, and alone make UTF-8.
var unescaped = func() (plain [256]bool) {
	for c := byte(' '); c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// appendJSONString writes a text in quotes. Bytes that are no UTF-8 become U+FFFD.
func appendJSONString(b, s []byte) []byte {
	plain := true
	for _, c := range s {
		if !unescaped[c] {
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
