package event

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/hikyaku/hikyaku/schemas/identity"
)

func appendLong(b []byte, v int64) []byte {
	u := uint64(v<<1) ^ uint64(v>>63)
	if u < 0x80 {
		return append(b, byte(u))
	}
	return binary.AppendUvarint(b, u)
}

func appendString(b []byte, s string) []byte { return append(appendLong(b, int64(len(s))), s...) }

func appendBytes(b, p []byte) []byte { return append(appendLong(b, int64(len(p))), p...) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendDouble(b []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
}

func appendTime(b []byte, t time.Time) []byte { return appendLong(b, t.UnixMicro()) }

// reader walks over a copy of the input. The first fault sticks and moves the
// position to the end, so that whatever is read after it fails at once and
// generated code need not ask after every field.
type reader struct {
	s     string
	at    int
	fault string
	where int // position of the fault
}

func (r *reader) fail(fault string) {
	if r.fault == "" {
		r.fault, r.where = fault, r.at
	}
	r.at = len(r.s)
}

// end reports the fault, or input that was left over.
func (r *reader) end(record string) error {
	if r.fault == "" && r.at != len(r.s) {
		r.fail("the record ends here, the input does not")
	}
	if r.fault == "" {
		return nil
	}
	return fmt.Errorf("decoding %s at byte %d of %d: %s", record, r.where, len(r.s), r.fault)
}

func (r *reader) long() int64 {
	if r.at < len(r.s) && r.s[r.at] < 0x80 {
		c := r.s[r.at]
		r.at++
		return int64(c>>1) ^ -int64(c&1)
	}
	return r.longLong()
}

func (r *reader) longLong() int64 {
	var u uint64
	for i := 0; i < binary.MaxVarintLen64; i++ {
		if r.at+i >= len(r.s) {
			r.fail("a number is cut off")
			return 0
		}
		c := r.s[r.at+i]
		u |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if i == binary.MaxVarintLen64-1 && c > 1 {
				break
			}
			r.at += i + 1
			return int64(u>>1) ^ -int64(u&1)
		}
	}
	r.fail("a number has more than 64 bits")
	return 0
}

func (r *reader) int() int32 {
	v := r.long()
	if v != int64(int32(v)) {
		r.fail("an int has more than 32 bits")
		return 0
	}
	return int32(v)
}

func (r *reader) bool() bool {
	if r.at >= len(r.s) {
		r.fail("a boolean is missing")
		return false
	}
	c := r.s[r.at]
	if c > 1 {
		r.fail("a boolean is neither 0 nor 1")
		return false
	}
	r.at++
	return c == 1
}

func (r *reader) double() float64 {
	if len(r.s)-r.at < 8 {
		r.fail("a double is cut off")
		return 0
	}
	var u uint64
	for i := range 8 {
		u |= uint64(r.s[r.at+i]) << (8 * i)
	}
	r.at += 8
	return math.Float64frombits(u)
}

// string is a part of the reader's copy. Most are shorter than 64 bytes, and
// their length is one byte.
func (r *reader) string() string {
	if r.at < len(r.s) {
		if c := r.s[r.at]; c < 0x80 && c&1 == 0 {
			if end := r.at + 1 + int(c>>1); end <= len(r.s) {
				s := r.s[r.at+1 : end]
				r.at = end
				return s
			}
		}
	}
	return r.longString()
}

func (r *reader) longString() string {
	n := r.long()
	if n < 0 || n > int64(len(r.s)-r.at) {
		r.fail("a string or bytes field is longer than the input")
		return ""
	}
	s := r.s[r.at : r.at+int(n)]
	r.at += int(n)
	return s
}

// bytes is nil if empty.
func (r *reader) bytes() []byte {
	s := r.string()
	if s == "" {
		return nil
	}
	return []byte(s)
}

func (r *reader) id() (id identity.ID) {
	if len(r.s)-r.at < len(id) {
		r.fail("an id is cut off")
		return id
	}
	copy(id[:], r.s[r.at:])
	r.at += len(id)
	return id
}

func (r *reader) time() time.Time { return time.UnixMicro(r.long()).UTC() }

// some reads the branch of a ["null", X] union.
func (r *reader) some() bool {
	switch r.long() {
	case 0:
		return false
	case 1:
		return true
	}
	r.fail("a union has no such branch")
	return false
}

// block reads the count of an array's next block, 0 at the end. A count is
// refused if so many items, each of at least minBytes, cannot be left in the
// input. A negative count is followed by the block's size, which tells a reader
// that skips how far to go; we do not skip.
func (r *reader) block(minBytes int) int {
	n := r.long()
	if n < 0 {
		n = -n
		r.long()
	}
	if n < 0 || n > int64((len(r.s)-r.at)/minBytes) {
		r.fail("an array has more items than the input")
		return 0
	}
	return int(n)
}

// extend adds n zero items and returns them; the first block gets a slice of
// exactly its size, and most writers write one block.
func extend[T any](s *[]T, n int) []T {
	old := len(*s)
	if old == 0 {
		*s = make([]T, n)
	} else {
		*s = append(*s, make([]T, n)...)
	}
	return (*s)[old:]
}
