package rows

import (
	"encoding/base64"
	"math"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"
)

// How binary formats write a value as text; see Reader.
const (
	dateLayout  = "2006-01-02"
	clockLayout = "15:04:05.999999999"
	localLayout = "2006-01-02T15:04:05.999999999" // of a time without a zone
)

// AppendFloat appends a float of 32 or 64 bits, shortest and, but for the very
// large and small, without an exponent: an id that went through a spreadsheet is
// 12345678, not 1.2345678e+07.
func AppendFloat(b []byte, f float64, bits int) []byte {
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		return strconv.AppendFloat(b, f, 'g', -1, bits)
	}
	return strconv.AppendFloat(b, f, 'f', -1, bits)
}

// AppendDate appends the day that so many days after 1970-01-01 is.
func AppendDate(b []byte, days int32) []byte {
	return time.Unix(int64(days)*86400, 0).UTC().AppendFormat(b, dateLayout)
}

// AppendClock appends a time of day, in units of which a second has so many. What
// is outside of a day is appended as the number it is.
func AppendClock(b []byte, n, perSecond int64) []byte {
	if n < 0 || n >= 86400*perSecond {
		return strconv.AppendInt(b, n, 10)
	}
	return unix(n, perSecond).AppendFormat(b, clockLayout)
}

// AppendTime appends a time since 1970 in units of which a second has so many; if
// it is local, so that nobody knows its zone, without one.
func AppendTime(b []byte, n, perSecond int64, local bool) []byte {
	layout := time.RFC3339Nano
	if local {
		layout = localLayout
	}
	return unix(n, perSecond).AppendFormat(b, layout)
}

func unix(n, perSecond int64) time.Time {
	seconds, rest := n/perSecond, n%perSecond
	return time.Unix(seconds, rest*(1e9/perSecond)).UTC()
}

// AppendDecimal appends unscaled / 10^scale with all its digits.
func AppendDecimal(b []byte, unscaled int64, scale int) []byte {
	var digits [20]byte
	return appendPoint(b, strconv.AppendInt(digits[:0], unscaled, 10), scale)
}

// AppendBigDecimal is AppendDecimal of a number in two's complement, the highest byte
// first.
func AppendBigDecimal(b, unscaled []byte, scale int) []byte {
	if len(unscaled) <= 8 {
		var n int64
		if len(unscaled) > 0 {
			n = int64(int8(unscaled[0])) // with its sign
			for _, c := range unscaled[1:] {
				n = n<<8 | int64(c)
			}
		}
		return AppendDecimal(b, n, scale)
	}
	n := new(big.Int).SetBytes(unscaled)
	if unscaled[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(len(unscaled))*8))
	}
	return appendPoint(b, n.Append(nil, 10), scale)
}

// appendPoint appends the digits of a whole number, perhaps with a minus before
// them, with scale of them after the point.
func appendPoint(b, digits []byte, scale int) []byte {
	if digits[0] == '-' {
		b, digits = append(b, '-'), digits[1:]
	}
	if scale == 0 {
		return append(b, digits...)
	}
	whole := len(digits) - scale
	if whole <= 0 {
		b = append(b, '0', '.')
		for ; whole < 0; whole++ {
			b = append(b, '0')
		}
		return append(b, digits...)
	}
	b = append(b, digits[:whole]...)
	b = append(b, '.')
	return append(b, digits[whole:]...)
}

// AppendBytes appends bytes that are UTF-8 as they are, others in base64.
func AppendBytes(b, v []byte) []byte {
	if utf8.Valid(v) {
		return append(b, v...)
	}
	return base64.StdEncoding.AppendEncode(b, v)
}

// AppendUUID appends the text of the 16 bytes of a UUID.
func AppendUUID(b, v []byte) []byte {
	for i, c := range v {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hex[c>>4], hex[c&15])
	}
	return b
}

const hex = "0123456789abcdef"

// AppendString appends s as a JSON string. Bytes that are no UTF-8 stay as they are.
func AppendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}
