package ocf

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/linkedin/goavro/v2"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

// judged are the schemas whose rows goavro reads too, to say what is right.
var judged = []string{
	`{"type":"record","name":"flat","fields":[
		{"name":"s","type":"string"},{"name":"os","type":["null","string"]},{"name":"so","type":["string","null"]},
		{"name":"i","type":"int"},{"name":"l","type":["null","long"]},{"name":"f","type":"float"},{"name":"d","type":["null","double"]},
		{"name":"b","type":"boolean"},{"name":"x","type":"bytes"},
		{"name":"e","type":{"type":"enum","name":"en","symbols":["A","B","C"]}},{"name":"fx","type":{"type":"fixed","name":"fi","size":3}},
		{"name":"e2","type":["null","en"]},{"name":"u","type":["null","int","string","fi"]}]}`,
	`{"type":"record","name":"logical","fields":[
		{"name":"d","type":{"type":"int","logicalType":"date"}},{"name":"od","type":["null",{"type":"int","logicalType":"date"}]},
		{"name":"tm","type":{"type":"int","logicalType":"time-millis"}},{"name":"tu","type":{"type":"long","logicalType":"time-micros"}},
		{"name":"m","type":{"type":"long","logicalType":"timestamp-millis"}},{"name":"u","type":{"type":"long","logicalType":"timestamp-micros"}},
		{"name":"dec","type":{"type":"bytes","logicalType":"decimal","precision":30,"scale":4}},
		{"name":"df","type":{"type":"fixed","name":"dfi","size":9,"logicalType":"decimal","precision":20,"scale":2}}]}`,
	people,
	`{"type":"record","name":"nested","fields":[
		{"name":"a","type":{"type":"array","items":["null","long","string"]}},
		{"name":"m","type":{"type":"map","values":{"type":"array","items":"double"}}},
		{"name":"r","type":["null","string",{"type":"record","name":"in","fields":[{"name":"x","type":"int"},{"name":"next","type":["null","in"]}]}]},
		{"name":"same","type":["null","in"]}]}`,
}

// textOf is what the contract of rows.Reader says of a value that goavro read. Its
// second result is the value in JSON.
func textOf(t testing.TB, name string, v any) (string, any) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case bool:
		return strconv.FormatBool(v), v
	case int32:
		return fmt.Sprint(v), float64(v)
	case int64:
		return fmt.Sprint(v), float64(v)
	case float32:
		return floatText(float64(v), 32)
	case float64:
		return floatText(v, 64)
	case string:
		return v, v
	case []byte:
		if utf8.Valid(v) {
			return string(v), string(v)
		}
		s := base64.StdEncoding.EncodeToString(v)
		return s, s
	case time.Time:
		s := v.Format(time.RFC3339Nano)
		if name == "d" || name == "od" {
			s = v.Format("2006-01-02")
		}
		return s, s
	case time.Duration:
		s := time.Time{}.Add(v).Format("15:04:05.999999999")
		return s, s
	case *big.Rat:
		s := v.FloatString(map[string]int{"dec": 4, "df": 2}[name])
		return s, s
	case []any:
		list := []any{}
		for _, item := range v {
			_, j := textOf(t, "", item)
			list = append(list, j)
		}
		return "", list
	case map[string]any:
		object := map[string]any{}
		for k, item := range v {
			_, object[k] = textOf(t, k, item)
		}
		return "", object
	}
	require.Fail(t, "no text", "%T", v)
	return "", nil
}

func floatText(f float64, bits int) (string, any) {
	s := strconv.FormatFloat(f, 'f', -1, bits)
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		s = strconv.FormatFloat(f, 'g', -1, bits)
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return s, s
	}
	return s, f
}

// unwrap takes goavro's names of branches away: a union of a type is a map of one.
// Only where the schema has a union can there be one, so the schema leads.
func unwrap(schema, v any, named map[string]any) any {
	switch s := schema.(type) {
	case []any:
		m, ok := v.(map[string]any)
		if !ok {
			return v
		}
		for k, inner := range m {
			for _, b := range s {
				if name := nameOf(b); name == k || strings.HasSuffix(k, "."+name) || strings.HasPrefix(k, name+".") {
					return unwrap(b, inner, named)
				}
			}
		}
		panic(fmt.Sprint("no branch for ", m))
	case string:
		if d, ok := named[s]; ok {
			return unwrap(d, v, named)
		}
	case map[string]any:
		switch s["type"] {
		case "record":
			for _, f := range s["fields"].([]any) {
				f := f.(map[string]any)
				n := f["name"].(string)
				v.(map[string]any)[n] = unwrap(f["type"], v.(map[string]any)[n], named)
			}
		case "array":
			for i, item := range v.([]any) {
				v.([]any)[i] = unwrap(s["items"], item, named)
			}
		case "map":
			for k, item := range v.(map[string]any) {
				v.(map[string]any)[k] = unwrap(s["values"], item, named)
			}
		}
	}
	return v
}

// names finds the records that a schema describes.
func names(schema any, named map[string]any) map[string]any {
	switch s := schema.(type) {
	case []any:
		for _, b := range s {
			names(b, named)
		}
	case map[string]any:
		if s["type"] == "record" {
			named[s["name"].(string)] = s
		}
		for _, inner := range s {
			names(inner, named)
		}
	}
	return named
}

func nameOf(schema any) string {
	if m, ok := schema.(map[string]any); ok {
		if name, ok := m["name"].(string); ok {
			return name
		}
		return m["type"].(string)
	}
	return schema.(string)
}

// Whatever the bytes: a row that is read is what goavro reads from them, and as many
// bytes of them.
func FuzzRowsAreWhatGoavroReads(f *testing.F) {
	type pair struct {
		schema any
		codec  *goavro.Codec
		steps  []step
		plan   plan
	}
	var pairs []pair
	for _, s := range judged {
		p := pair{}
		require.NoError(f, json.Unmarshal([]byte(s), &p.schema))
		var err error
		p.codec, err = goavro.NewCodec(s)
		require.NoError(f, err)
		n, err := parseSchema([]byte(s))
		require.NoError(f, err)
		p.steps, err = p.plan.record(n, "", nil)
		require.NoError(f, err)
		pairs = append(pairs, p)
	}
	geo := map[string]any{"lat": 1.5, "lon": nil}
	address := map[string]any{"city": "Rome", "geo": geo}
	now := time.Date(2026, 7, 1, 10, 20, 30, 123_456_000, time.UTC)
	for i, v := range []map[string]any{
		{"s": "x\"", "os": nil, "so": goavro.Union("string", "é"), "i": 5, "l": goavro.Union("long", math.MinInt64), "f": float32(1e22), "d": goavro.Union("double", math.NaN()),
			"b": true, "x": []byte{0xff}, "e": "B", "fx": []byte("abc"), "e2": goavro.Union("en", "C"), "u": goavro.Union("fi", []byte("\xff\x00\x01"))},
		{"d": now, "od": goavro.Union("int.date", now), "tm": time.Minute, "tu": -time.Hour, "m": now, "u": now, "dec": big.NewRat(-12345, 10000), "df": big.NewRat(1, 4)},
		{"id": "1", "age": goavro.Union("int", 7), "home": goavro.Union("a.b.address", address), "work": address, "tags": []any{"a", "b"}},
		{"a": []any{nil, goavro.Union("long", 1), goavro.Union("string", "1")}, "m": map[string]any{"k": []any{1.5, math.Inf(1)}},
			"r": goavro.Union("in", map[string]any{"x": 1, "next": goavro.Union("in", map[string]any{"x": 2, "next": nil})}), "same": goavro.Union("in", map[string]any{"x": 1, "next": nil})},
	} {
		b, err := pairs[i].codec.BinaryFromNative(nil, v)
		require.NoError(f, err)
		f.Add(b, uint8(i))
	}
	f.Fuzz(func(t *testing.T, in []byte, which uint8) {
		p := pairs[int(which)%len(pairs)]
		d := decoder{b: in, Builder: rows.NewBuilder(p.plan.columns, p.plan.quoted)}
		d.row(p.steps)
		if d.failed != "" {
			return // what goavro makes of it can be more than the memory there is
		}
		native, rest, err := p.codec.NativeFromBinary(in)
		if err != nil && strings.Contains(err.Error(), "duplicate key") {
			return
		}
		require.NoError(t, err)
		require.Len(t, d.b, len(rest))
		row := d.Row(1)
		fields := row.Fields
		if row.Malformed != nil {
			require.False(t, utf8.Valid(d.Text) && !d.Over())
			return
		}
		native = unwrap(p.schema, native, names(p.schema, map[string]any{}))
		require.Len(t, fields, len(p.plan.columns))
		scalar := scalars(p.steps)
		for i, c := range p.plan.columns {
			value, name := native, ""
			for part := range strings.SplitSeq(c, ".") {
				name = part
				m, _ := value.(map[string]any)
				value = m[part]
			}
			if n, err := strconv.ParseInt(fields[i], 10, 64); err == nil && (name == "tm" || name == "tu") {
				// No time of a day. goavro's duration goes round where it is too large.
				require.Equal(t, value, time.Duration(n)*map[string]time.Duration{"tm": time.Millisecond, "tu": time.Microsecond}[name])
				continue
			}
			text, inJSON := textOf(t, name, value)
			switch inJSON.(type) {
			case []any, map[string]any:
			default:
				if scalar[i] {
					require.Equal(t, text, fields[i], c)
					continue
				}
			}
			if value == nil && fields[i] == "" {
				continue
			}
			var got any
			require.NoError(t, json.Unmarshal([]byte(fields[i]), &got), "%s %s", c, fields[i])
			require.Equal(t, inJSON, got, c)
		}
		require.True(t, json.Valid(row.Raw), "%s", row.Raw)
	})
}

// scalars says of each column whether it is one.
func scalars(steps []step) (is []bool) {
	for _, s := range steps {
		if s.steps != nil {
			is = append(is, scalars(s.steps)...)
		} else {
			is = append(is, s.scalar)
		}
	}
	return is
}

// Whatever the bytes: reading ends in rows or in a sentence, however the bytes arrive.
func FuzzReader(f *testing.F) {
	f.Add(written(f, one(`"string"`), "null", 1, map[string]any{"v": "a"}, map[string]any{"v": "b"}))
	f.Add(written(f, one(`["null","int"]`), "deflate", 2, map[string]any{"v": nil}, map[string]any{"v": goavro.Union("int", 1)}))
	f.Add(written(f, one(`{"type":"array","items":"bytes"}`), "snappy", 1, map[string]any{"v": []any{[]byte("a")}}))
	f.Add(file(one(`{"type":"array","items":"null"}`), "null", block(1, append(varint(1<<40), 0))))
	f.Fuzz(func(t *testing.T, in []byte) {
		columns, read, err := readAll(bytes.NewReader(in))
		if err != nil {
			require.ErrorAs(t, err, new(*rows.Invalid))
		}
		for i, row := range read {
			require.EqualValues(t, i+1, row.Line)
			if row.Reason == "" {
				require.Len(t, row.Fields, len(columns))
			}
		}
		columns2, read2, err2 := readAll(iotest.OneByteReader(bytes.NewReader(in)))
		require.Equal(t, columns, columns2)
		require.Equal(t, read, read2)
		require.Equal(t, err, err2)
	})
}

func BenchmarkReader(b *testing.B) {
	names := []string{"id", "stock_code", "description", "quantity", "date", "price", "customer", "country", "note"}
	values := []string{"569901", "23256", "CHILDRENS CUTLERY SPACEBOY ", "2", "2011-10-06 16:20:00", "4.15", "12923.0", "United Kingdom", "a note"}
	var fields []string
	row := map[string]any{}
	for i, n := range names {
		fields = append(fields, `{"name":"`+n+`","type":["null","string"]}`)
		row[n] = goavro.Union("string", values[i])
	}
	schema := `{"type":"record","name":"r","fields":[` + strings.Join(fields, ",") + `]}`
	data := make([]any, 10000)
	for i := range data {
		data[i] = row
	}
	for _, codec := range []string{"null", "snappy", "deflate"} {
		in := written(b, schema, codec, 500, data...)
		b.Run(codec, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := NewReader(bytes.NewReader(in))
				_, err := r.Header()
				require.NoError(b, err)
				for err == nil {
					_, err = r.Next()
				}
			}
			b.ReportMetric(float64(len(data)*b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
