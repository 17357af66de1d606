package liquid

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"math"
	"net/url"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/osteele/liquid/values"
	"github.com/osteele/tuesday"
)

// filterError says why a filter cannot work, without a value in it.
type filterError struct{ message string }

func (e *filterError) Error() string { return e.message }

func refuse(format string, a ...any) error { return &filterError{fmt.Sprintf(format, a...)} }

// maxItems bounds a list that a filter makes.
const maxItems = 100_000

// filters are all filters of a mode. They replace the library's, of which some read the clock, the local zone or Go's map order, cut
// strings inside a character, print 1000000.0 as 1e+06, or panic. limit is the longest text one may make, in bytes.
func filters(mode Mode, limit int) map[string]any {
	checked := func(s string) (any, error) {
		if len(s) > limit {
			return nil, refuse("makes more than %d bytes", limit)
		}
		return s, nil
	}
	// keep makes a filter that turns text into text and markup into markup: what is escaped stays so.
	keep := func(change func(string) string) func(any) (any, error) {
		return func(v any) (any, error) {
			if m, ok := v.(markup); ok {
				return markup{change(m.html)}, nil
			}
			return checked(change(text(v)))
		}
	}
	// mix is keep with other values in it, which are escaped on their way into markup.
	mix := func(change func(s string, with ...string) (string, error), v any, with ...any) (any, error) {
		isMarkup := false
		if _, ok := v.(markup); ok {
			isMarkup = true
		}
		for _, w := range with {
			if _, ok := w.(markup); ok {
				isMarkup = true
			}
		}
		as := text
		if isMarkup {
			as = func(v any) string { return string(appendValue(nil, escapable(v), HTML)) }
		}
		texts := make([]string, len(with))
		for i, w := range with {
			texts[i] = as(w)
		}
		out, err := change(as(v), texts...)
		if err != nil {
			return nil, err
		}
		if len(out) > limit {
			return nil, refuse("makes more than %d bytes", limit)
		}
		if isMarkup {
			return markup{out}, nil
		}
		return out, nil
	}
	replace := func(n int) func(string, ...string) (string, error) {
		return func(s string, with ...string) (string, error) {
			// Before it is made: a short text replaced by a long one may grow beyond memory.
			if grow := len(with[1]) - len(with[0]); grow > 0 && n < 0 && (strings.Count(s, with[0]))*grow > limit {
				return "", refuse("makes more than %d bytes", limit)
			}
			return strings.Replace(s, with[0], with[1], n), nil
		}
	}
	remove := func(n int) func(string, ...string) (string, error) {
		return func(s string, with ...string) (string, error) { return strings.Replace(s, with[0], "", n), nil }
	}
	arithmetic := func(ints func(a, b int) (int, bool), floats func(a, b float64) float64) func(a, b any) (any, error) {
		return func(a, b any) (any, error) {
			x, err := number(a)
			if err != nil {
				return nil, err
			}
			y, err := number(b)
			if err != nil {
				return nil, err
			}
			if x.whole && y.whole {
				if n, ok := ints(x.int, y.int); ok {
					return n, nil
				}
				return nil, refuse("makes a whole number beyond 64 bits, or divides by zero")
			}
			f := floats(x.float, y.float)
			if math.IsNaN(f) || math.IsInf(f, 0) {
				return nil, refuse("makes no number")
			}
			return f, nil
		}
	}
	whole := func(f func(float64) float64) func(any) (any, error) {
		return func(v any) (any, error) {
			n, err := number(v)
			if err != nil || n.whole {
				return n.int, err
			}
			if f := f(n.float); math.Abs(f) < 1<<62 {
				return int(f), nil
			}
			return nil, refuse("makes a whole number beyond 64 bits")
		}
	}

	all := map[string]any{
		// Values.
		"default": func(v, other any) any {
			switch x := v.(type) {
			case nil:
				return other
			case markup:
				if x.html == "" {
					return other
				}
			default:
				if v == false || values.IsEmpty(v) {
					return other
				}
			}
			return v
		},
		"json": func(v any) (any, error) {
			if m, ok := v.(markup); ok {
				v = m.text()
			}
			b, err := json.Marshal(v)
			if err != nil {
				return nil, refuse("cannot write this value")
			}
			return checked(string(b))
		},
		"date": date,
		"size": func(v any) any {
			if r, ok := v.(values.Range); ok {
				return max(0, r.Len())
			}
			if m, ok := v.(markup); ok {
				return utf8.RuneCountInString(m.text())
			}
			return values.Length(v)
		},

		// Lists.
		"compact": onList(func(a []any) any {
			out := []any{}
			for _, item := range a {
				if item != nil {
					out = append(out, item)
				}
			}
			return out
		}),
		"concat": func(v, w any) (any, error) {
			a, err := list(v)
			if err != nil {
				return nil, err
			}
			b, err := list(w)
			if err != nil {
				return nil, err
			}
			if len(a)+len(b) > maxItems {
				return nil, refuse("makes more than %d items", maxItems)
			}
			return append(append(make([]any, 0, len(a)+len(b)), a...), b...), nil
		},
		"first": func(v any) (any, error) {
			if s, ok := v.([]string); ok { // the way of split
				if len(s) == 0 {
					return nil, nil
				}
				return s[0], nil
			}
			a, err := list(v)
			if err != nil || len(a) == 0 {
				return nil, err
			}
			return a[0], nil
		},
		"last": func(v any) (any, error) {
			a, err := list(v)
			if err != nil || len(a) == 0 {
				return nil, err
			}
			return a[len(a)-1], nil
		},
		"join": func(v any, separator ...any) (any, error) {
			a, err := list(v)
			if err != nil {
				return nil, err
			}
			between := " "
			if len(separator) > 0 {
				between = text(separator[0])
			}
			var b strings.Builder
			written := false
			for _, item := range a {
				if item == nil {
					continue
				}
				if written {
					b.WriteString(between)
				}
				written = true
				b.WriteString(text(item))
				if b.Len() > limit {
					break
				}
			}
			return checked(b.String())
		},
		"map": func(v, key any) (any, error) {
			a, err := list(v)
			if err != nil {
				return nil, err
			}
			out := make([]any, len(a))
			for i, item := range a {
				out[i] = values.ValueOf(item).IndexValue(values.ValueOf(text(key))).Interface()
			}
			return out, nil
		},
		"reverse": onList(func(a []any) any {
			out := make([]any, len(a))
			for i, item := range a {
				out[len(a)-1-i] = item
			}
			return out
		}),
		"sort":         sorted(values.Less),
		"sort_natural": sorted(func(a, b any) bool { return strings.ToLower(text(a)) < strings.ToLower(text(b)) }),
		"uniq": onList(func(a []any) any {
			seen := map[string]bool{}
			out := []any{}
			for _, item := range a {
				key := fmt.Sprintf("%T %s", item, text(item))
				if !seen[key] {
					seen[key] = true
					out = append(out, item)
				}
			}
			return out
		}),

		// Numbers.
		"plus":  arithmetic(func(a, b int) (int, bool) { c := a + b; return c, (c > a) == (b > 0) }, func(a, b float64) float64 { return a + b }),
		"minus": arithmetic(func(a, b int) (int, bool) { c := a - b; return c, (c < a) == (b > 0) }, func(a, b float64) float64 { return a - b }),
		"times": arithmetic(func(a, b int) (int, bool) {
			if a == 0 || b == 0 {
				return 0, true
			}
			c := a * b
			return c, c/b == a && !(a == -1 && b == math.MinInt) && !(b == -1 && a == math.MinInt)
		}, func(a, b float64) float64 { return a * b }),
		"divided_by": arithmetic(func(a, b int) (int, bool) {
			if b == 0 || a == math.MinInt && b == -1 {
				return 0, false
			}
			q := a / b
			if a%b != 0 && (a < 0) != (b < 0) {
				q--
			}
			return q, true
		}, func(a, b float64) float64 { return a / b }),
		"modulo": arithmetic(func(a, b int) (int, bool) {
			if b == 0 {
				return 0, false
			}
			m := a % b
			if m != 0 && (m < 0) != (b < 0) {
				m += b
			}
			return m, true
		}, math.Mod),
		"at_least": pick(func(a, b float64) bool { return a >= b }),
		"at_most":  pick(func(a, b float64) bool { return a <= b }),
		"abs": func(v any) (any, error) {
			n, err := number(v)
			if err != nil || !n.whole {
				return math.Abs(n.float), err
			}
			return max(n.int, -n.int), nil
		},
		"ceil":  whole(math.Ceil),
		"floor": whole(math.Floor),
		"round": func(v any, places ...any) (any, error) {
			n, err := number(v)
			if err != nil {
				return nil, err
			}
			if len(places) == 0 || places[0] == nil {
				return whole(math.Round)(v)
			}
			p, err := number(places[0])
			if err != nil || !p.whole || p.int < 0 || p.int > 15 {
				return nil, refuse("takes 0 to 15 places")
			}
			if n.whole {
				return n.int, nil
			}
			f, err := strconv.ParseFloat(strconv.FormatFloat(n.float, 'f', p.int, 64), 64)
			return f, err
		},

		// Text.
		"append": func(v, w any) (any, error) {
			return mix(func(s string, with ...string) (string, error) { return s + with[0], nil }, v, w)
		},
		"prepend": func(v, w any) (any, error) {
			return mix(func(s string, with ...string) (string, error) { return with[0] + s, nil }, v, w)
		},
		"remove":        func(v, w any) (any, error) { return mix(remove(-1), v, w) },
		"remove_first":  func(v, w any) (any, error) { return mix(remove(1), v, w) },
		"replace":       func(v, old, w any) (any, error) { return mix(replace(-1), v, old, w) },
		"replace_first": func(v, old, w any) (any, error) { return mix(replace(1), v, old, w) },
		"capitalize": keep(func(s string) string {
			r, size := utf8.DecodeRuneInString(s)
			if size == 0 {
				return s
			}
			return string(unicode.ToTitle(r)) + s[size:]
		}),
		"downcase":       keep(strings.ToLower),
		"upcase":         keep(strings.ToUpper),
		"strip":          keep(strings.TrimSpace),
		"lstrip":         keep(func(s string) string { return strings.TrimLeftFunc(s, unicode.IsSpace) }),
		"rstrip":         keep(func(s string) string { return strings.TrimRightFunc(s, unicode.IsSpace) }),
		"strip_newlines": keep(func(s string) string { return strings.NewReplacer("\r\n", "", "\n", "").Replace(s) }),
		"strip_html": func(v any) (any, error) {
			if m, ok := v.(markup); ok {
				return html.UnescapeString(tags.ReplaceAllString(m.html, "")), nil
			}
			return checked(tags.ReplaceAllString(text(v), ""))
		},
		"slice": func(v any, start any, length ...any) (any, error) {
			from, err := number(start)
			if err != nil || !from.whole {
				return nil, refuse("starts at a whole number")
			}
			n := 1
			if len(length) > 0 {
				l, err := number(length[0])
				if err != nil || !l.whole {
					return nil, refuse("takes a whole number of characters")
				}
				n = l.int
			}
			runes := []rune(text(v))
			i := from.int
			if i < 0 {
				i += len(runes)
			}
			if i < 0 || i >= len(runes) || n <= 0 {
				return "", nil
			}
			return string(runes[i:min(len(runes), i+min(n, len(runes)))]), nil
		},
		"split": func(v, separator any) (any, error) {
			s, by := text(v), text(separator)
			if strings.Count(s, by) > maxItems {
				return nil, refuse("makes more than %d items", maxItems)
			}
			var parts []string
			if by == " " {
				parts = strings.Fields(s)
			} else {
				parts = strings.Split(s, by)
			}
			for len(parts) > 0 && parts[len(parts)-1] == "" {
				parts = parts[:len(parts)-1]
			}
			return parts, nil
		},
		"truncate": func(v any, args ...any) (any, error) {
			n, ellipsis, err := cutting(50, args)
			if err != nil {
				return nil, err
			}
			runes := []rune(text(v))
			if len(runes) <= n {
				return string(runes), nil
			}
			return checked(string(runes[:max(0, n-utf8.RuneCountInString(ellipsis))]) + ellipsis)
		},
		"truncatewords": func(v any, args ...any) (any, error) {
			n, ellipsis, err := cutting(15, args)
			if err != nil {
				return nil, err
			}
			words := strings.Fields(text(v))
			if len(words) <= n {
				return text(v), nil
			}
			return checked(strings.Join(words[:max(n, 1)], " ") + ellipsis)
		},
		"url_encode": func(v any) (any, error) { return checked(url.QueryEscape(text(v))) },
		"url_decode": func(v any) (any, error) {
			s, err := url.QueryUnescape(text(v))
			if err != nil || !utf8.ValidString(s) {
				return nil, refuse("cannot decode this value")
			}
			return s, nil
		},
	}
	if mode == Text {
		all["raw"] = func(v any) any { return v }
		all["escape"] = func(v any) (any, error) { return checked(string(appendEscaped(nil, text(v)))) }
		all["escape_once"] = func(v any) (any, error) { return checked(string(appendEscaped(nil, html.UnescapeString(text(v))))) }
		all["newline_to_br"] = func(v any) (any, error) { return checked(strings.ReplaceAll(text(v), "\n", "<br />\n")) }
		return all
	}
	all["raw"] = func(v any) any {
		if m, ok := v.(markup); ok {
			return m
		}
		return markup{text(v)}
	}
	// Escaping by hand does what would have been done anyway, and marks it as done.
	all["escape"] = func(v any) any { return markup{string(appendValue(nil, escapable(v), HTML))} }
	all["escape_once"] = func(v any) any {
		if m, ok := v.(markup); ok {
			return m
		}
		return markup{string(appendEscaped(nil, html.UnescapeString(text(v))))}
	}
	all["newline_to_br"] = func(v any) any {
		return markup{strings.ReplaceAll(string(appendValue(nil, escapable(v), HTML)), "\n", "<br />\n")}
	}
	return all
}

// escapable leaves markup alone and makes text of everything else.
func escapable(v any) any {
	if m, ok := v.(markup); ok {
		return m
	}
	return text(v)
}

var tags = regexp.MustCompile(`(?s)<.*?>`)

// list is a value as the list filters see it. A map is refused: it has no order.
func list(v any) ([]any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []any:
		return v, nil
	case string, markup, bool, int, float64, map[string]any:
		return nil, refuse("needs a list")
	}
	n, at := iterate(v)
	if at == nil {
		return nil, refuse("needs a list")
	}
	if n > maxItems {
		return nil, refuse("needs a list of at most %d items", maxItems)
	}
	out := make([]any, n)
	for i := range out {
		out[i] = at(i)
	}
	return out, nil
}

func onList(f func([]any) any) func(any) (any, error) {
	return func(v any) (any, error) {
		a, err := list(v)
		if err != nil {
			return nil, err
		}
		return f(a), nil
	}
}

// sorted orders a list, or its items by a property; items without it come first, and equal ones keep their order.
func sorted(less func(a, b any) bool) func(v any, key ...any) (any, error) {
	return func(v any, key ...any) (any, error) {
		a, err := list(v)
		if err != nil {
			return nil, err
		}
		by := func(item any) any {
			if len(key) == 0 || key[0] == nil {
				return item
			}
			return values.ValueOf(item).IndexValue(values.ValueOf(text(key[0]))).Interface()
		}
		out := append([]any(nil), a...)
		sort.SliceStable(out, func(i, j int) bool {
			x, y := by(out[i]), by(out[j])
			if x == nil || y == nil {
				return x == nil && y != nil
			}
			return less(x, y)
		})
		return out, nil
	}
}

func pick(first func(a, b float64) bool) func(a, b any) (any, error) {
	return func(a, b any) (any, error) {
		x, err := number(a)
		if err != nil {
			return nil, err
		}
		y, err := number(b)
		if err != nil {
			return nil, err
		}
		if first(x.float, y.float) {
			return x.value(), nil
		}
		return y.value(), nil
	}
}

// num is a number; float holds it in either case.
type num struct {
	whole bool
	int   int
	float float64
}

func (n num) value() any {
	if n.whole {
		return n.int
	}
	return n.float
}

// number reads a number: nil is 0, text is read.
func number(v any) (num, error) {
	whole := func(n int) num { return num{true, n, float64(n)} }
	switch v := v.(type) {
	case nil:
		return whole(0), nil
	case int:
		return whole(v), nil
	case float64:
		return num{false, 0, v}, nil
	case string, markup:
		s := strings.TrimSpace(text(v))
		if n, err := strconv.Atoi(s); err == nil {
			return whole(n), nil
		}
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return num{}, refuse("needs a number")
		}
		return num{false, 0, f}, nil
	}
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return whole(int(rv.Int())), nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return whole(int(rv.Uint())), nil
	case reflect.Float32:
		return num{false, 0, rv.Float()}, nil
	}
	return num{}, refuse("needs a number")
}

// cutting reads the arguments of truncate and truncatewords.
func cutting(n int, args []any) (int, string, error) {
	ellipsis := "..."
	if len(args) > 0 {
		l, err := number(args[0])
		if err != nil || !l.whole || l.int < 0 {
			return 0, "", refuse("takes a whole number")
		}
		n = l.int
	}
	if len(args) > 1 {
		ellipsis = text(args[1])
	}
	return n, ellipsis, nil
}

// layouts are the spellings of a time that `date` reads; without a zone it is UTC, never the machine's.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02 15:04:05", time.DateOnly, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02 15:04:05 -0700",
	time.RFC1123Z, time.RFC1123, "02 Jan 2006", "02 January 2006", "January 2, 2006", "Jan 2, 2006",
}

// wide finds a width in a format that would make a text without end.
var wide = regexp.MustCompile(`%[-_^#0:]*[0-9]{3}`)

// date formats a time by strftime. Whole numbers are seconds since 1970. There is no now: a message rendered again must be the same.
func date(v any, format ...any) (any, error) {
	var t time.Time
	switch v := v.(type) {
	case nil:
		return nil, nil
	case time.Time:
		t = v
	case int:
		t = time.Unix(int64(v), 0).UTC()
	case int64:
		t = time.Unix(v, 0).UTC()
	case string, markup:
		s := strings.TrimSpace(text(v))
		if s == "now" || s == "today" {
			return nil, refuse("knows no %s; use a variable, such as requested_at", s)
		}
		err := errors.New("no layout")
		for _, l := range layouts {
			if t, err = time.ParseInLocation(l, s, time.UTC); err == nil {
				break
			}
		}
		if err != nil {
			return nil, refuse("needs a time")
		}
	default:
		return nil, refuse("needs a time")
	}
	f := "%a, %b %d, %y"
	if len(format) > 0 && format[0] != nil {
		f = text(format[0])
	}
	if wide.MatchString(f) {
		return nil, refuse("takes widths of at most two digits")
	}
	return tuesday.Strftime(f, t)
}
