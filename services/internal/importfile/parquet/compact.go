package parquet

import (
	"encoding/binary"
	"fmt"

	"github.com/parquet-go/parquet-go/encoding/thrift"
)

const (
	maxDepth = 32   // of thrift structs in thrift structs
	maxList  = 1000 // items of a list in what decode is given
)

// compact goes over thrift's compact protocol without making room for what it says:
// a list of a gigabyte that is not there is no list. Its first failure stays.
type compact struct {
	b      []byte // what has not been read
	failed bool
	cut    bool // it failed because b ended
	list   int  // the most items a list may have; 0 if there is no limit but the bytes
}

func (c *compact) fail(cut bool) {
	if !c.failed {
		c.failed, c.cut = true, cut
	}
	c.b = nil
}

func (c *compact) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail(true)
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *compact) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *compact) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail(n == 0)
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *compact) varint() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

const (
	typeStop   = 0
	typeI64    = 6
	typeList   = 9
	typeStruct = 12
)

// fields calls f for each field of a struct. f passes over the field's value.
func (c *compact) fields(f func(id int64, kind byte)) {
	id := int64(0)
	for {
		b := c.byte()
		if c.failed || b&15 == typeStop {
			return
		}
		if b>>4 != 0 {
			id += int64(b >> 4)
		} else {
			id = c.varint()
		}
		f(id, b&15)
	}
}

// items reads the head of a list: how many there are said to be, and of which kind.
func (c *compact) items() (n uint64, kind byte) {
	b := c.byte()
	n, kind = uint64(b>>4), b&15
	if n == 15 {
		n = c.uvarint()
	}
	if c.list > 0 && n > uint64(c.list) {
		c.fail(false)
	}
	if c.failed {
		return 0, kind
	}
	return n, kind
}

// skip passes over a value.
func (c *compact) skip(kind byte, depth int) {
	if depth > maxDepth {
		c.fail(false)
		return
	}
	switch kind {
	case 1, 2: // a truth value is in its field's head
	case 3:
		c.take(1)
	case 4, 5, typeI64:
		c.uvarint()
	case 7:
		c.take(8)
	case 8:
		c.take(c.uvarint())
	case typeList, 10:
		n, kind := c.items()
		if kind == 1 || kind == 2 {
			kind = 3 // in a list it has a byte
		}
		for ; n > 0 && !c.failed; n-- {
			c.skip(kind, depth+1)
		}
	case typeStruct:
		c.fields(func(_ int64, kind byte) { c.skip(kind, depth+1) })
	default: // maps are not in Parquet
		c.fail(false)
	}
}

// structure returns the bytes of the struct that follows.
func (c *compact) structure() []byte {
	b := c.b
	c.skip(typeStruct, 0)
	if c.failed {
		return nil
	}
	return b[:len(b)-len(c.b)]
}

// decode reads a struct of the format from its bytes, which structure has gone over.
func decode(b []byte, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return thrift.Unmarshal(new(thrift.CompactProtocol), b, v)
}
