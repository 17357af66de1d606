package parquet

import (
	"encoding/binary"
	"math/bits"
)

// The readers in this file give one value after the other and hold none: a run of a
// billion values in five bytes stays five bytes. What they cannot read ends them.

// hybrid reads run lengths and bit-packed groups, mixed.
type hybrid struct {
	b      []byte
	width  uint
	left   uint64 // of the run
	packed []byte // nil if the run is of one value
	at     uint64 // bits of packed that have been read
	value  uint64
}

func (h *hybrid) next() (uint64, bool) {
	for h.left == 0 {
		head, n := binary.Uvarint(h.b)
		if n <= 0 {
			return 0, false
		}
		h.b = h.b[n:]
		if head&1 == 0 {
			size := int(h.width+7) / 8
			if size > len(h.b) {
				return 0, false
			}
			h.left, h.packed, h.value = head>>1, nil, 0
			for i, c := range h.b[:size] {
				h.value |= uint64(c) << (8 * i)
			}
			h.b = h.b[size:]
			continue
		}
		groups := head >> 1
		if h.width == 0 {
			h.left, h.packed, h.value = groups*8, nil, 0
			continue
		}
		// The last group may be cut short.
		size := min(groups, uint64(len(h.b))/uint64(h.width)+1) * uint64(h.width)
		size = min(size, uint64(len(h.b)))
		h.left, h.packed, h.at = size*8/uint64(h.width), h.b[:size], 0
		h.b = h.b[size:]
		if h.left == 0 && groups > 0 {
			return 0, false
		}
	}
	h.left--
	if h.packed == nil {
		return h.value, true
	}
	v := unpack(h.packed, h.at, h.width)
	h.at += uint64(h.width)
	return v, true
}

// unpack reads width bits, at most 64, that begin at a bit. They are there.
func unpack(b []byte, at uint64, width uint) uint64 {
	if width == 0 {
		return 0
	}
	b, shift := b[at/8:], uint(at%8)
	var low uint64
	if len(b) >= 8 {
		low = binary.LittleEndian.Uint64(b)
	} else {
		for i, c := range b {
			low |= uint64(c) << (8 * i)
		}
	}
	v := low >> shift
	if shift+width > 64 {
		v |= uint64(b[8]) << (64 - shift)
	}
	return v & (1<<width - 1)
}

// deltas reads DELTA_BINARY_PACKED: in blocks, the differences between values.
type deltas struct {
	b       []byte
	total   uint64 // values that have not been read
	value   int64
	first   bool // value has not been read
	minimum int64
	perMini uint64
	minis   int
	widths  []byte // of the block's miniblocks that have not been begun
	mini    []byte
	width   uint
	at      uint64 // bits of mini that have been read
	left    uint64 // values of mini
}

// newDeltas reads the head. The most values there can be is max.
func newDeltas(b []byte, max uint64) (deltas, bool) {
	d := deltas{b: b, first: true}
	var head [3]uint64
	for i := range head {
		v, n := binary.Uvarint(d.b)
		if n <= 0 {
			return d, false
		}
		head[i], d.b = v, d.b[n:]
	}
	first, n := binary.Varint(d.b)
	if n <= 0 || head[0] == 0 || head[0] > 1<<20 || head[1] == 0 || head[0]%head[1] != 0 || (head[0]/head[1])%8 != 0 || head[2] > max {
		return d, false
	}
	d.b = d.b[n:]
	d.perMini, d.minis, d.total, d.value = head[0]/head[1], int(head[1]), head[2], first
	return d, true
}

func (d *deltas) next() (int64, bool) {
	if d.total == 0 {
		return 0, false
	}
	d.total--
	if d.first {
		d.first = false
		return d.value, true
	}
	if d.left == 0 && !d.nextMini() {
		d.total = 0
		return 0, false
	}
	d.left--
	d.value += d.minimum + int64(unpack(d.mini, d.at, d.width))
	d.at += uint64(d.width)
	return d.value, true
}

// nextMini goes to the next miniblock. The last may be cut short.
func (d *deltas) nextMini() bool {
	if len(d.widths) == 0 {
		v, n := binary.Varint(d.b)
		if n <= 0 || len(d.b)-n < d.minis {
			return false
		}
		d.minimum = v
		d.widths, d.b = d.b[n:n+d.minis], d.b[n+d.minis:]
	}
	d.width, d.widths = uint(d.widths[0]), d.widths[1:]
	if d.width > 64 {
		return false
	}
	size := min(d.perMini*uint64(d.width)/8, uint64(len(d.b)))
	d.mini, d.b, d.at, d.left = d.b[:size], d.b[size:], 0, d.perMini
	if d.width > 0 {
		d.left = size * 8 / uint64(d.width)
	}
	return d.left > 0
}

// rest passes over all values and returns the bytes behind them.
func (d deltas) rest() ([]byte, bool) {
	for d.total > 0 {
		if _, ok := d.next(); !ok {
			return nil, false
		}
	}
	return d.b, true
}

// values reads the values of a page that are not null.
type values struct {
	kind kind8
	size int // bytes of a value of fixed size

	b       []byte      // plain
	at      int         // bits of b that have been read, of booleans
	indexes hybrid      // of a dictionary, or booleans
	dict    *dictionary // nil if the page is not in one
	numbers deltas
	lengths deltas
	prefix  deltas
	last    []byte // the value before, to which prefix refers
	split   int    // values in b, byte by byte
	scratch [16]byte
}

// kind8 is how the values of a page are written.
type kind8 uint8

const (
	plainBoolean kind8 = iota
	plainFixed         // 4, 8, 12 bytes, or as many as the type says
	plainBytes
	inDictionary
	runBoolean
	deltaInts
	deltaLengths
	deltaStrings
	streamSplit
)

// next returns the bytes of the next value; of a number as many as it has, lowest
// first. They are valid until the next call.
func (v *values) next() ([]byte, bool) {
	switch v.kind {
	case inDictionary:
		i, ok := v.indexes.next()
		if !ok {
			return nil, false
		}
		return v.dict.value(i)
	case plainBytes:
		if len(v.b) < 4 {
			return nil, false
		}
		n := uint64(binary.LittleEndian.Uint32(v.b))
		if n > uint64(len(v.b)-4) {
			return nil, false
		}
		b := v.b[4 : 4+n]
		v.b = v.b[4+n:]
		return b, true
	case plainFixed:
		if len(v.b) < v.size {
			return nil, false
		}
		b := v.b[:v.size]
		v.b = v.b[v.size:]
		return b, true
	case plainBoolean:
		if v.at >= 8*len(v.b) {
			return nil, false
		}
		v.scratch[0] = v.b[v.at/8] >> (v.at % 8) & 1
		v.at++
		return v.scratch[:1], true
	case runBoolean:
		i, ok := v.indexes.next()
		v.scratch[0] = byte(i)
		return v.scratch[:1], ok
	case deltaInts:
		i, ok := v.numbers.next()
		binary.LittleEndian.PutUint64(v.scratch[:8], uint64(i))
		return v.scratch[:v.size], ok
	case deltaLengths:
		n, ok := v.lengths.next()
		if !ok || n < 0 || n > int64(len(v.b)) {
			return nil, false
		}
		b := v.b[:n]
		v.b = v.b[n:]
		return b, true
	case deltaStrings:
		p, ok := v.prefix.next()
		n, ok2 := v.lengths.next()
		if !ok || !ok2 || p < 0 || p > int64(len(v.last)) || n < 0 || n > int64(len(v.b)) {
			return nil, false
		}
		v.last = append(v.last[:p], v.b[:n]...)
		v.b = v.b[n:]
		return v.last, true
	case streamSplit:
		if v.at >= v.split {
			return nil, false
		}
		for i := range v.size {
			v.scratch[i] = v.b[i*v.split+v.at]
		}
		v.at++
		return v.scratch[:v.size], true
	}
	return nil, false
}

// dictionary holds the values that pages refer to by number.
type dictionary struct {
	b    []byte
	ends []uint32 // of values of different sizes
	size int      // of all others
}

// newDictionary goes over n plain values.
func newDictionary(b []byte, n int, size int, ends []uint32) (*dictionary, bool) {
	d := &dictionary{b: b, size: size, ends: ends[:0]}
	if size >= 0 {
		return d, n*size <= len(b)
	}
	if n > len(b)/4 {
		return nil, false
	}
	at := uint64(0)
	for range n {
		if at+4 > uint64(len(b)) {
			return nil, false
		}
		at += 4 + uint64(binary.LittleEndian.Uint32(b[at:]))
		if at > uint64(len(b)) {
			return nil, false
		}
		d.ends = append(d.ends, uint32(at))
	}
	return d, true
}

func (d *dictionary) value(i uint64) ([]byte, bool) {
	if d.size >= 0 {
		if d.size == 0 || i >= uint64(len(d.b)/d.size) {
			return nil, false
		}
		return d.b[int(i)*d.size:][:d.size], true
	}
	if i >= uint64(len(d.ends)) {
		return nil, false
	}
	from := uint32(0)
	if i > 0 {
		from = d.ends[i-1]
	}
	return d.b[from+4 : d.ends[i]], true
}

// widthOf is how many bits a level has that is at most max.
func widthOf(max int) uint { return uint(bits.Len(uint(max))) }
