package liquid

import (
	"encoding/json"
	"fmt"
	"html"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/osteele/liquid/values"
)

// markup is HTML that must not be escaped again. It is a struct, so that no operator of the library takes it for a string; compared or
// searched, it is the text a reader would see.
type markup struct{ html string }

func (m markup) text() string { return html.UnescapeString(m.html) }

// The methods of values.Value, which is how the library lets a type of ours take part in expressions.
func (m markup) Interface() any                       { return m }
func (m markup) Int() int                             { panic(values.TypeError("markup is no number")) }
func (m markup) Equal(o values.Value) bool            { return plainValue(o) == any(m.text()) }
func (m markup) Less(o values.Value) bool             { s, ok := plainValue(o).(string); return ok && m.text() < s }
func (m markup) Contains(o values.Value) bool         { return strings.Contains(m.text(), text(o.Interface())) }
func (m markup) IndexValue(values.Value) values.Value { return values.ValueOf(nil) }
func (m markup) Test() bool                           { return true }
func (m markup) PropertyValue(o values.Value) values.Value {
	if o.Interface() == "size" {
		return values.ValueOf(values.Length(m.text()))
	}
	return values.ValueOf(nil)
}

func plainValue(o values.Value) any {
	switch v := o.Interface().(type) {
	case markup:
		return v.text()
	case string:
		return v
	}
	return nil
}

// appendValue writes a value: numbers without exponent, times in full, lists one item after the other, maps as JSON.
func appendValue(dst []byte, v any, mode Mode) []byte {
	switch v := v.(type) {
	case nil:
		return dst
	case string:
		if mode == HTML {
			return appendEscaped(dst, v)
		}
		return append(dst, v...)
	case markup:
		return append(dst, v.html...)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case float64:
		return strconv.AppendFloat(dst, v, 'f', -1, 64)
	case bool:
		return strconv.AppendBool(dst, v)
	case time.Time:
		return v.AppendFormat(dst, "2006-01-02 15:04:05 -0700")
	case []string:
		for _, item := range v {
			dst = appendValue(dst, item, mode)
		}
		return dst
	case []any:
		for _, item := range v {
			dst = appendValue(dst, item, mode)
		}
		return dst
	}
	if mode == HTML {
		return appendEscaped(dst, text(v))
	}
	return append(dst, text(v)...)
}

// appendEscaped writes s so that it is text, in an element as well as in a quoted attribute.
func appendEscaped(dst []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); i++ {
		var entity string
		switch s[i] {
		case '&':
			entity = "&amp;"
		case '<':
			entity = "&lt;"
		case '>':
			entity = "&gt;"
		case '"':
			entity = "&#34;"
		case '\'':
			entity = "&#39;"
		default:
			continue
		}
		dst = append(append(dst, s[from:i]...), entity...)
		from = i + 1
	}
	return append(dst, s[from:]...)
}

// text is a value as filters see it; markup is what a reader would see.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case markup:
		return v.text()
	case int, int64, float64, bool, time.Time, []string, []any:
		return string(appendValue(nil, v, Text))
	case []byte:
		return string(v)
	case values.Range:
		return fmt.Sprintf("%d..%d", v.Index(0), v.Index(v.Len()-1))
	case fmt.Stringer:
		return v.String()
	}
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Slice, reflect.Array:
		var b []byte
		for i := range rv.Len() {
			b = append(b, text(rv.Index(i).Interface())...)
		}
		return string(b)
	case reflect.Map:
		if b, err := json.Marshal(v); err == nil { // sorts the keys
			return string(b)
		}
		return ""
	case reflect.Float32:
		return strconv.FormatFloat(rv.Float(), 'f', -1, 32)
	}
	return fmt.Sprint(v)
}

// iterate is how a for goes over a value: lists in their order, maps as [key, value] by key, ranges without making them.
func iterate(v any) (n int, at func(int) any) {
	switch v := v.(type) {
	case nil, string, markup:
		return 0, nil
	case []any:
		return len(v), func(i int) any { return v[i] }
	case []string:
		return len(v), func(i int) any { return v[i] }
	case values.Range:
		return max(0, v.Len()), v.Index
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		return len(keys), func(i int) any { return []any{keys[i], v[keys[i]]} }
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice || rv.Kind() == reflect.Array {
		return rv.Len(), func(i int) any { return rv.Index(i).Interface() }
	}
	return 0, nil
}
