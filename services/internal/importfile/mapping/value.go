package mapping

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
)

// typed reads a text that is not empty as the value's type.
func (v *value) typed(s string) (event.Value, *Reject) {
	switch v.kind {
	case definition.TypeInt:
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return event.Value{}, &Reject{v.where, "not a whole number of 64 bits"}
		}
		return event.Int(i), nil
	case definition.TypeDecimal:
		if v.comma {
			s = point(s)
		}
		f, ok := Decimal(s)
		if !ok {
			return event.Value{}, &Reject{v.where, "not a decimal number"}
		}
		return event.Float(f), nil
	case definition.TypeBool:
		switch {
		case s == "1" || strings.EqualFold(s, "true") || strings.EqualFold(s, "yes"):
			return event.Bool(true), nil
		case s == "0" || strings.EqualFold(s, "false") || strings.EqualFold(s, "no"):
			return event.Bool(false), nil
		}
		return event.Value{}, &Reject{v.where, "neither true, yes, 1 nor false, no, 0"}
	case definition.TypeTime:
		t, rej := v.time(s)
		if rej != nil {
			return event.Value{}, rej
		}
		return event.Time(t), nil
	}
	return event.String(s), nil
}

// Decimal reads digits with a point and perhaps an exponent; not what else
// strconv takes for a number (inf, nan, 0x1p4, 1_000).
func Decimal(s string) (float64, bool) {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c == '.', c == '-', c == '+', c == 'e', c == 'E':
		default:
			return 0, false
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil && !math.IsInf(f, 0)
}

// point writes 1.234,5 as 1234.5. Points and spaces may stand between groups of three
// digits only; what is no such number is returned as something that is none.
func point(s string) string {
	whole, fraction, comma := strings.Cut(s, ",")
	if strings.Contains(fraction, ".") {
		return ""
	}
	sign := strings.TrimRight(whole[:min(1, len(whole))], "0123456789. \u00a0\u202f")
	groups := strings.FieldsFunc(whole[len(sign):], func(r rune) bool { return r == '.' || r == ' ' || r == '\u00a0' || r == '\u202f' })
	for i, g := range groups {
		if len(groups) > 1 && (i > 0 && len(g) != 3 || i == 0 && len(g) > 3) {
			return ""
		}
	}
	out := sign + strings.Join(groups, "")
	if comma {
		out += "." + fraction
	}
	return out
}

// time reads a text in the value's layout, in microseconds.
func (v *value) time(s string) (time.Time, *Reject) {
	t, err := time.ParseInLocation(v.layout, s, v.zone)
	if err != nil || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, &Reject{v.where, "not a time written as " + v.layout}
	}
	return t.UTC().Truncate(time.Microsecond), nil
}
