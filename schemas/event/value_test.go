package event_test

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/event"
)

func TestJSONBecomesTheNarrowestKind(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]event.Value{
		`null`: event.Null(), ` true `: event.Bool(true), `false`: event.Bool(false),
		`0`: event.Int(0), `-7`: event.Int(-7), `9223372036854775807`: event.Int(math.MaxInt64), `-9223372036854775808`: event.Int(math.MinInt64),
		`9223372036854775808`: event.Float(9223372036854775808), `1.0`: event.Float(1), `1e3`: event.Float(1000), `-0.0`: event.Float(0), `-0`: event.Int(0),
		`""`: event.String(""), `"飛脚"`: event.String("飛脚"), `"a\"b\u00e9"`: event.String(`a"bé`), "\"\xff\"": event.String("\ufffd"),
		`[]`: event.JSON(`[]`), ` { "b" : 1.50, "a" : [ 1.0, -0, 1e2, "<&>" ], "b": 2 } `: event.JSON(`{"a":[1.0,0,100.0,"<&>"],"b":2}`),
		`[9223372036854775808]`: event.JSON(`[9223372036854776000.0]`),
	} {
		got, err := event.FromJSON(json.RawMessage(raw))
		require.NoError(t, err, raw)
		require.Equal(t, want, got, raw)
		require.True(t, got.Equal(want))
	}
}

func TestWhatIsNotOneJSONValueIsRefused(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{``, ` `, `"`, `"a`, `"a" "b"`, "\"a\nb\"", `1 2`, `1]`, `[1]]`, `[1] x`, `{`, `nil`, `NaN`, `Infinity`, `1e999`, `[1e999]`, `01`, `tru`, `'a'`, "0\f", "\u00a0null"} {
		_, err := event.FromJSON(json.RawMessage(raw))
		require.Error(t, err, "%q", raw)
	}
	for _, x := range []any{math.NaN(), math.Inf(1), float32(math.Inf(-1)), json.Number("1e999"), json.Number(""), []any{math.NaN()}, make(chan int)} {
		_, err := event.FromAny(x)
		require.Error(t, err, "%v", x)
	}
	_, err := json.Marshal(event.Float(math.NaN()))
	require.Error(t, err)
}

func TestGoValuesBecomeValues(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456789, time.FixedZone("JST", 9*3600))
	for _, c := range []struct {
		in   any
		want event.Value
	}{
		{nil, event.Null()}, {true, event.Bool(true)}, {7, event.Int(7)}, {int8(-7), event.Int(-7)}, {uint32(7), event.Int(7)}, {int64(math.MinInt64), event.Int(math.MinInt64)},
		{uint64(math.MaxUint64), event.Float(math.MaxUint64)}, {uint(7), event.Int(7)}, {float32(0.5), event.Float(0.5)}, {1.0, event.Float(1)},
		{"x", event.String("x")}, {json.Number("12"), event.Int(12)}, {json.RawMessage(`[1, 2]`), event.JSON(`[1,2]`)}, {event.Int(1), event.Int(1)},
		{map[string]any{"b": []string{"x"}, "a": nil}, event.JSON(`{"a":null,"b":["x"]}`)}, {at, event.Time(at.Truncate(time.Microsecond))},
	} {
		got, err := event.FromAny(c.in)
		require.NoError(t, err, "%v", c.in)
		require.Equal(t, c.want, got, "%v", c.in)
	}
	require.Equal(t, at.UTC().Truncate(time.Microsecond), event.Time(at).Time())
	require.Equal(t, map[string]any{"a": int64(1), "b": []any{1.5, "x"}}, event.JSON(`{"a":1,"b":[1.5,"x"]}`).Any())
	require.Equal(t, "not json", event.JSON("not json").Any())
}

// Values of another kind read as zero, never as each other's bits.
func TestAccessorsOfAnotherKindAreZero(t *testing.T) {
	t.Parallel()
	for _, v := range []event.Value{event.Null(), event.Bool(true), event.Int(1), event.Float(1), event.String("1"), event.Time(time.UnixMicro(1)), event.JSON(`[1]`)} {
		require.Equal(t, v.Kind() == event.KindBool, v.Bool())
		require.Equal(t, v.Kind() == event.KindInt, v.Int() != 0)
		require.Equal(t, v.Kind() == event.KindInt || v.Kind() == event.KindFloat, v.Float() != 0)
		require.Equal(t, v.Kind() == event.KindString || v.Kind() == event.KindJSON, v.Text() != "")
		require.Equal(t, v.Kind() == event.KindTime, !v.Time().IsZero())
		require.Equal(t, v.Kind() == event.KindNull, v.IsNull())
		require.Equal(t, v.Kind() == event.KindNull, v.Any() == nil)
	}
	require.True(t, event.Float(math.NaN()).Equal(event.Float(math.NaN())))
	require.True(t, event.Float(0).Equal(event.Float(math.Copysign(0, -1))))
	require.False(t, event.Float(1).Equal(event.Int(1)))
	require.False(t, event.String("1").Equal(event.JSON("1")))
}

// A value written as JSON and read again is the same, but for times, which
// JSON does not know, and the sign of zero.
func TestJSONKeepsValues(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var want event.Value
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 1:
			want = event.Bool(rapid.Bool().Draw(t, "bool"))
		case 2:
			want = event.Int(rapid.Int64().Draw(t, "int"))
		case 3:
			want = event.Float(rapid.Float64Range(-math.MaxFloat64, math.MaxFloat64).Draw(t, "float"))
		case 4:
			want = event.String(rapid.String().Draw(t, "string"))
		case 5:
			list, err := event.FromAny([]any{rapid.Float64Range(-1e30, 1e30).Draw(t, "float"), rapid.Int64().Draw(t, "int"), map[string]any{rapid.String().Draw(t, "key"): rapid.String().Draw(t, "string")}})
			require.NoError(t, err)
			want = list
		}
		raw, err := json.Marshal(want)
		require.NoError(t, err)
		var got event.Value
		require.NoError(t, json.Unmarshal(raw, &got))
		require.True(t, want.Equal(got), "%s became %v", raw, got)
	})
}

func TestAppendedValuesAreWhatEncodingJSONWrites(t *testing.T) {
	t.Parallel()
	rest := []byte("before ")
	for _, s := range []string{"", "plain", "two words", `"quoted"`, `back\\slash`, "<b>&</b>", "東京", "line\nbreak", "\x00\x1f\x7f", "\xff", "\u2028"} {
		want, err := json.Marshal(s)
		require.NoError(t, err)
		got, err := event.String(s).AppendJSON(rest)
		require.NoError(t, err)
		require.Equal(t, "before "+string(want), string(got))
	}
	for _, v := range []event.Value{event.Null(), event.Bool(true), event.Bool(false), event.Int(0), event.Int(math.MinInt64), event.Int(math.MaxInt64), event.Float(4.15), event.Float(1e-9), event.Time(time.Unix(0, 1000)), event.JSON(`{"a":[1,null]}`)} {
		want, err := json.Marshal(v.Any())
		require.NoError(t, err)
		got, err := v.AppendJSON(rest)
		require.NoError(t, err)
		require.Equal(t, "before "+string(want), string(got))
	}
	for _, v := range []event.Value{event.Float(math.NaN()), event.Float(math.Inf(-1)), event.Time(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)), event.JSON(`{"a":`), event.JSON("")} {
		got, err := v.AppendJSON(rest)
		require.Error(t, err)
		require.Equal(t, rest, got)
		_, err = json.Marshal(v)
		require.Error(t, err)
	}
}

func FuzzFromJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.50,-0.0,1e2,"é"],"b":null}`, `"a\u0000"`, `-1`, `1E400`, `[[[[]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := event.FromJSON(raw)
		if err != nil {
			return
		}
		if !json.Valid(raw) {
			t.Fatalf("%q is not JSON and became %v", raw, v)
		}
		text, err := json.Marshal(v)
		require.NoError(t, err)
		again, err := event.FromJSON(text)
		require.NoError(t, err)
		require.True(t, v.Equal(again), "%q, then %q", text, again)
	})
}

func TestSortedKeepsTheLastOfEqualNames(t *testing.T) {
	t.Parallel()
	require.Empty(t, event.Sorted(nil))
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOf(rapid.StringMatching(`[a-d]{0,2}`)).Draw(t, "names")
		last := map[string]event.Value{}
		var values []event.NamedValue
		for i, name := range names {
			last[name] = event.Int(int64(i))
			values = append(values, event.NamedValue{Name: name, Value: event.Int(int64(i))})
		}
		values = event.Sorted(values)
		require.Len(t, values, len(last))
		require.True(t, slices.IsSortedFunc(values, func(a, b event.NamedValue) int { return compare(a.Name, b.Name) }))
		for name, want := range last {
			got, ok := event.Lookup(values, name)
			require.True(t, ok)
			require.Equal(t, want, got)
		}
		_, ok := event.Lookup(values, "zz")
		require.False(t, ok)
	})
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func BenchmarkFromJSON(b *testing.B) {
	raws := []json.RawMessage{json.RawMessage(`"a plain string"`), json.RawMessage(`12345`), json.RawMessage(`3.25`), json.RawMessage(`true`)}
	b.ReportAllocs()
	for b.Loop() {
		for _, raw := range raws {
			if _, err := event.FromJSON(raw); err != nil {
				b.Fatal(err)
			}
		}
	}
}
