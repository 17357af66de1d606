package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Kind says what a Value holds.
type Kind uint8

// The kinds, in the order of the schema's union.
const (
	KindNull Kind = iota
	KindBool
	KindInt
	KindFloat
	KindString
	KindTime
	KindJSON
)

// String is the kind's name: null, bool, int, float, string, time, json.
func (k Kind) String() string {
	names := [...]string{"null", "bool", "int", "float", "string", "time", "json"}
	if int(k) < len(names) {
		return names[k]
	}
	return "kind " + strconv.Itoa(int(k))
}

// Value is the value of an attribute or property. The zero Value is null.
type Value struct {
	kind Kind
	bits uint64 // bool, int, float bits, micros since 1970
	text string // string, JSON text
}

// Null is the value that says nothing.
func Null() Value { return Value{} }

// Bool is a truth value.
func Bool(b bool) Value {
	v := Value{kind: KindBool}
	if b {
		v.bits = 1
	}
	return v
}

// Int is a whole number.
func Int(i int64) Value { return Value{kind: KindInt, bits: uint64(i)} }

// Float is a number. NaN and infinities can be carried, but not written as JSON.
func Float(f float64) Value { return Value{kind: KindFloat, bits: math.Float64bits(f)} }

// String is a text.
func String(s string) Value { return Value{kind: KindString, text: s} }

// Time is a point in time, cut to microseconds.
func Time(t time.Time) Value { return Value{kind: KindTime, bits: uint64(t.UnixMicro())} }

// JSON is an array or object as canonical JSON text, which is not checked here;
// FromJSON makes text canonical.
func JSON(text string) Value { return Value{kind: KindJSON, text: text} }

// Kind says what the value holds.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether the value says nothing.
func (v Value) IsNull() bool { return v.kind == KindNull }

// Bool is the truth value; false for another kind.
func (v Value) Bool() bool { return v.kind == KindBool && v.bits == 1 }

// Int is the whole number; 0 for another kind.
func (v Value) Int() int64 {
	if v.kind != KindInt {
		return 0
	}
	return int64(v.bits)
}

// Float is the number, whole or not; 0 for another kind.
func (v Value) Float() float64 {
	switch v.kind {
	case KindFloat:
		return math.Float64frombits(v.bits)
	case KindInt:
		return float64(int64(v.bits))
	}
	return 0
}

// Text is the string, or the JSON text; empty for another kind.
func (v Value) Text() string { return v.text }

// Time is the point in time, in UTC; the zero time for another kind.
func (v Value) Time() time.Time {
	if v.kind != KindTime {
		return time.Time{}
	}
	return time.UnixMicro(int64(v.bits)).UTC()
}

// String is the value for people and text files: nothing for null, RFC 3339
// for a time. Values are personal data: not for logs.
func (v Value) String() string {
	switch v.kind {
	case KindBool:
		return strconv.FormatBool(v.Bool())
	case KindInt:
		return strconv.FormatInt(v.Int(), 10)
	case KindFloat:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	case KindTime:
		return v.Time().Format(time.RFC3339Nano)
	}
	return v.text
}

// Equal reports whether kind and content are the same; 1 and 1.0 are not, NaN
// and NaN are.
func (v Value) Equal(w Value) bool {
	return v == w || v.kind == KindFloat && w.kind == KindFloat && v.Float() == w.Float()
}

// Any is the value for templates and encoders: nil, bool, int64, float64,
// string, time.Time, or decoded JSON ([]any, map[string]any, numbers int64
// where they fit, else float64). JSON text that does not parse comes as string.
func (v Value) Any() any {
	switch v.kind {
	case KindBool:
		return v.Bool()
	case KindInt:
		return v.Int()
	case KindFloat:
		return v.Float()
	case KindString:
		return v.text
	case KindTime:
		return v.Time()
	case KindJSON:
		x, err := decodeJSON([]byte(v.text), goNumber)
		if err != nil {
			return v.text
		}
		return x
	}
	return nil
}

// MarshalJSON is AppendJSON.
func (v Value) MarshalJSON() ([]byte, error) { return v.AppendJSON(nil) }

// AppendJSON appends the value as JSON: times as RFC 3339 strings, JSON as it
// is, and a Float so that it is read as one again: 1.0. Its errors are about
// values that JSON cannot hold: NaN, infinities, years beyond 9999, JSON text
// that is not JSON; then it returns b as it was.
func (v Value) AppendJSON(b []byte) ([]byte, error) {
	switch v.kind {
	case KindBool:
		return strconv.AppendBool(b, v.Bool()), nil
	case KindInt:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case KindFloat:
		n, err := floatText(v.Float())
		return append(b, n...), err
	case KindString:
		return appendText(b, v.text), nil
	case KindTime:
		at, err := v.Time().MarshalJSON()
		if err != nil {
			return b, fmt.Errorf("writing time value as JSON: %w", err)
		}
		return append(b, at...), nil
	case KindJSON:
		if !json.Valid([]byte(v.text)) {
			return b, errors.New("writing json value: its text is not JSON")
		}
		return append(b, v.text...), nil
	}
	return append(b, "null"...), nil
}

// appendText writes what json.Marshal writes; most texts need no escape.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a string always can be
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// UnmarshalJSON is FromJSON; a time comes back as a string.
func (v *Value) UnmarshalJSON(raw []byte) (err error) {
	*v, err = FromJSON(raw)
	return err
}

// FromJSON reads one JSON value. A number without fraction and exponent that
// fits 64 bits is an Int, any other a Float, and one too large for that is
// refused; there is no negative zero. Arrays and objects become canonical JSON
// text: no white space, keys sorted, of equal keys the last, numbers as
// MarshalJSON writes them.
func FromJSON(raw json.RawMessage) (Value, error) {
	v, err := fromJSON(bytes.Trim(raw, " \t\r\n"))
	if err != nil {
		return Value{}, fmt.Errorf("reading JSON value: %w", err)
	}
	return v, nil
}

func fromJSON(raw []byte) (Value, error) {
	if len(raw) == 0 {
		return Value{}, errors.New("it is empty")
	}
	switch raw[0] {
	case '"':
		// Most properties are plain strings, which need no parser.
		if n := len(raw) - 1; n > 0 && raw[n] == '"' && plain(raw[1:n]) {
			return String(string(raw[1:n])), nil
		}
		var s string
		err := json.Unmarshal(raw, &s)
		return String(s), err
	case '[', '{':
		x, err := decodeJSON(raw, canonicalNumber)
		if err != nil {
			return Value{}, err
		}
		text, err := canonical(x)
		return JSON(text), err
	}
	if !json.Valid(raw) {
		return Value{}, errors.New("it is not JSON")
	}
	switch raw[0] {
	case 'n':
		return Null(), nil
	case 't', 'f':
		return Bool(raw[0] == 't'), nil
	}
	x, err := goNumber(json.Number(raw))
	if err != nil {
		return Value{}, err
	}
	return scalar(x)
}

// plain reports whether the inside of a JSON string stands for itself.
func plain(inside []byte) bool {
	for _, c := range inside {
		if c < ' ' || c == '"' || c == '\\' {
			return false
		}
	}
	return utf8.Valid(inside)
}

// FromAny makes a Value of what decoders and templates hand out: nil, bool, Go
// numbers, strings, json.Number, json.RawMessage, time.Time, Value, and slices
// and maps of these (as encoding/json writes them). NaN and infinities are
// refused, an unsigned integer beyond int64 becomes a Float.
func FromAny(x any) (Value, error) {
	switch x := x.(type) {
	case Value:
		return x, nil
	case time.Time:
		return Time(x), nil
	case json.RawMessage:
		return FromJSON(x)
	case json.Number:
		return FromJSON(json.RawMessage(x))
	case int:
		return Int(int64(x)), nil
	case int8:
		return Int(int64(x)), nil
	case int16:
		return Int(int64(x)), nil
	case int32:
		return Int(int64(x)), nil
	case uint8:
		return Int(int64(x)), nil
	case uint16:
		return Int(int64(x)), nil
	case uint32:
		return Int(int64(x)), nil
	case uint:
		return fromUint(uint64(x)), nil
	case uint64:
		return fromUint(x), nil
	case float32:
		return scalar(float64(x))
	case nil, bool, int64, float64, string:
		return scalar(x)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		return Value{}, fmt.Errorf("making a value of %T: %w", x, err)
	}
	return FromJSON(raw)
}

func fromUint(u uint64) Value {
	if u > math.MaxInt64 {
		return Float(float64(u))
	}
	return Int(int64(u))
}

func scalar(x any) (Value, error) {
	switch x := x.(type) {
	case bool:
		return Bool(x), nil
	case int64:
		return Int(x), nil
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return Value{}, fmt.Errorf("making a value: JSON has no number %v", x)
		}
		return Float(x), nil
	case string:
		return String(x), nil
	}
	return Null(), nil
}

// canonical writes decoded JSON; encoding/json sorts the keys of maps.
func canonical(x any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// decodeJSON reads exactly one JSON value, its numbers as number returns them.
func decodeJSON(raw []byte, number func(json.Number) (any, error)) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var x any
	if err := d.Decode(&x); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the value")
	}
	return replaceNumbers(x, number)
}

func replaceNumbers(x any, number func(json.Number) (any, error)) (_ any, err error) {
	switch x := x.(type) {
	case json.Number:
		return number(x)
	case []any:
		for i := range x {
			if x[i], err = replaceNumbers(x[i], number); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range x {
			if x[k], err = replaceNumbers(x[k], number); err != nil {
				return nil, err
			}
		}
	}
	return x, nil
}

// goNumber is an int64 or a finite float64.
func goNumber(n json.Number) (any, error) {
	if !strings.ContainsAny(string(n), ".eE") {
		if i, err := n.Int64(); err == nil {
			return i, nil
		}
	}
	f, err := n.Float64()
	if err != nil {
		return nil, fmt.Errorf("number %.40s does not fit 64 bits", n)
	}
	if f == 0 {
		f = 0 // not -0
	}
	return f, nil
}

func canonicalNumber(n json.Number) (any, error) {
	x, err := goNumber(n)
	if err != nil {
		return nil, err
	}
	if f, ok := x.(float64); ok {
		return floatText(f)
	}
	return x, nil
}

// floatText is the shortest text that is read as this float, and not as an int.
func floatText(f float64) (json.Number, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return "", fmt.Errorf("writing float value as JSON: %w", err)
	}
	if !bytes.ContainsAny(b, ".e") {
		b = append(b, ".0"...)
	}
	return json.Number(b), nil
}

func (v *Value) appendAvro(b []byte) []byte {
	b = append(b, byte(v.kind)<<1)
	switch v.kind {
	case KindBool:
		return append(b, byte(v.bits))
	case KindInt, KindTime:
		return appendLong(b, int64(v.bits))
	case KindFloat:
		return appendDouble(b, math.Float64frombits(v.bits))
	case KindString, KindJSON:
		return appendString(b, v.text)
	}
	return b
}

func (v *Value) readAvro(r *reader) {
	branch := r.long()
	if branch < 0 || branch > int64(KindJSON) {
		r.fail("a value has no such branch")
		return
	}
	*v = Value{kind: Kind(branch)}
	switch v.kind {
	case KindBool:
		if r.bool() {
			v.bits = 1
		}
	case KindInt, KindTime:
		v.bits = uint64(r.long())
	case KindFloat:
		v.bits = math.Float64bits(r.double())
	case KindString, KindJSON:
		v.text = r.string()
	}
}

// Sorted sorts by name, in place, as records carry attributes; of equal names
// the last stays. It returns the shortened slice.
func Sorted(values []NamedValue) []NamedValue {
	slices.SortStableFunc(values, func(a, b NamedValue) int { return strings.Compare(a.Name, b.Name) })
	n := 0
	for i := range values {
		if i+1 < len(values) && values[i+1].Name == values[i].Name {
			continue
		}
		values[n] = values[i]
		n++
	}
	return slices.Delete(values, n, len(values))
}

// Lookup finds a name among values that are sorted, as in every record.
func Lookup(values []NamedValue, name string) (Value, bool) {
	i, ok := slices.BinarySearchFunc(values, name, func(nv NamedValue, name string) int { return strings.Compare(nv.Name, name) })
	if !ok {
		return Null(), false
	}
	return values[i].Value, true
}
