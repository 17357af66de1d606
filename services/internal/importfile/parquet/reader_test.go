package parquet

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows/rowstest"
)

type got = rowstest.Row

// readAll returns the rows behind the first skip, and what ended them if it was not
// the end.
func readAll(source io.ReaderAt, size, skip int64) (columns []string, read []got, err error) {
	r := NewReader(source, size, skip)
	if columns, err = r.Header(); err != nil {
		return nil, nil, err
	}
	read, err = rowstest.Read(r)
	return columns, read, err
}

func readBytes(b []byte, skip int64) ([]string, []got, error) {
	return readAll(bytes.NewReader(b), int64(len(b)), skip)
}

// written returns a file that parquet-go wrote, with so many rows in each row group.
func written[T any](t testing.TB, perGroup int, data []T, options ...parquet.WriterOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w := parquet.NewGenericWriter[T](&b, options...)
	for chunk := range slices.Chunk(data, perGroup) {
		_, err := w.Write(chunk)
		require.NoError(t, err)
		require.NoError(t, w.Flush())
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

type address struct {
	City string   `parquet:"city"`
	Zip  *int32   `parquet:"zip,optional"`
	Tags []string `parquet:"tags,list"`
}

type line struct {
	Row []int32 `parquet:"row"`
}

type person struct {
	ID     string             `parquet:"id"`
	Age    *int64             `parquet:"age,optional"`
	Home   *address           `parquet:"home,optional"`
	Phones []string           `parquet:"phones"`
	Scores map[string]float64 `parquet:"scores"`
	Past   []address          `parquet:"past,list,optional"`
	Matrix []line             `parquet:"matrix"`
}

func ptr[T any](v T) *T { return &v }

func TestGroupsAreColumnsAndListsAreJSON(t *testing.T) {
	t.Parallel()
	data := []person{
		{ID: "1", Age: ptr[int64](30), Home: &address{City: "Rome", Zip: ptr[int32](7), Tags: []string{"a", `"b"`}}, Phones: []string{"x", "y"},
			Scores: map[string]float64{"k": 1.5}, Past: []address{{City: "Pisa", Tags: []string{"p"}}, {City: "Bari", Zip: ptr[int32](8)}}, Matrix: []line{{[]int32{1, 2}}, {}, {[]int32{3}}}},
		{ID: "2"},
		{ID: "3", Home: &address{City: "Oslo"}, Phones: []string{"z"}, Past: []address{{City: "Wien"}}},
	}
	for name, in := range map[string][]byte{
		"one group":     written(t, 3, data),
		"three groups":  written(t, 1, data, parquet.Compression(&parquet.Snappy)),
		"pages of v1":   written(t, 2, data, parquet.DataPageVersion(1), parquet.Compression(&parquet.Zstd)),
		"pages of rows": written(t, 3, data, parquet.PageBufferSize(1)),
	} {
		columns, read, err := readBytes(in, 0)
		require.NoError(t, err)
		require.Equal(t, []string{"id", "age", "home.city", "home.zip", "home.tags", "phones", "scores", "past", "matrix"}, columns)
		require.Equal(t, []got{
			{Line: 1, Fields: []string{"1", "30", "Rome", "7", `["a","\"b\""]`, `["x","y"]`, `{"k":1.5}`, `[{"city":"Pisa","zip":null,"tags":["p"]},{"city":"Bari","zip":8,"tags":[]}]`, `[{"row":[1,2]},{"row":[]},{"row":[3]}]`},
				Raw: `{"id":"1","age":30,"home.city":"Rome","home.zip":7,"home.tags":["a","\"b\""],"phones":["x","y"],"scores":{"k":1.5},"past":[{"city":"Pisa","zip":null,"tags":["p"]},{"city":"Bari","zip":8,"tags":[]}],"matrix":[{"row":[1,2]},{"row":[]},{"row":[3]}]}`},
			{Line: 2, Fields: []string{"2", "", "", "", "", "[]", "{}", "", "[]"}, Raw: `{"id":"2","phones":[],"scores":{},"matrix":[]}`},
			{Line: 3, Fields: []string{"3", "", "Oslo", "", "[]", `["z"]`, "{}", `[{"city":"Wien","zip":null,"tags":[]}]`, "[]"},
				Raw: `{"id":"3","home.city":"Oslo","home.tags":[],"phones":["z"],"scores":{},"past":[{"city":"Wien","zip":null,"tags":[]}],"matrix":[]}`},
		}, read, name)
	}
}

// wrote returns a file of one column of a type, with the values.
func wrote(t testing.TB, n parquet.Node, options []parquet.WriterOption, vs ...parquet.Value) []byte {
	t.Helper()
	var b bytes.Buffer
	options = append([]parquet.WriterOption{parquet.NewSchema("r", parquet.Group{"v": n})}, options...)
	w := parquet.NewWriter(&b, options...)
	for _, v := range vs {
		_, err := w.WriteRows([]parquet.Row{{v.Level(0, v.DefinitionLevel(), 0)}})
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestValuesAreText(t *testing.T) {
	t.Parallel()
	moment := time.Date(2026, 7, 1, 10, 20, 30, 45_000_000, time.UTC)
	days := int32(moment.Unix() / 86400)
	clock := int64(10*3600+20*60+30)*1e9 + 45e6
	big := append(make([]byte, 9), 0xfb, 0x2e) // -1234 in 11 bytes
	for i := range 9 {
		big[i] = 0xff
	}
	type v = parquet.Value
	for name, c := range map[string]struct {
		node  parquet.Node
		value v
		want  string
	}{
		"boolean":              {parquet.Leaf(parquet.BooleanType), parquet.BooleanValue(true), "true"},
		"int 8":                {parquet.Int(8), parquet.Int32Value(-8), "-8"},
		"int 64":               {parquet.Int(64), parquet.Int64Value(math.MinInt64), "-9223372036854775808"},
		"uint 32":              {parquet.Uint(32), parquet.Int32Value(-1), "4294967295"},
		"uint 64":              {parquet.Uint(64), parquet.Int64Value(-1), "18446744073709551615"},
		"float":                {parquet.Leaf(parquet.FloatType), parquet.FloatValue(0.1), "0.1"},
		"double":               {parquet.Leaf(parquet.DoubleType), parquet.DoubleValue(12345678), "12345678"},
		"not a number":         {parquet.Leaf(parquet.DoubleType), parquet.DoubleValue(math.NaN()), "NaN"},
		"string":               {parquet.String(), parquet.ByteArrayValue([]byte("é\"\n")), "é\"\n"},
		"enum":                 {parquet.Enum(), parquet.ByteArrayValue([]byte("A")), "A"},
		"JSON":                 {parquet.JSON(), parquet.ByteArrayValue([]byte(`{"a":1}`)), `{"a":1}`},
		"BSON":                 {parquet.BSON(), parquet.ByteArrayValue([]byte{5, 0, 0, 0, 0xff}), "BQAAAP8="},
		"bytes that are text":  {parquet.Leaf(parquet.ByteArrayType), parquet.ByteArrayValue([]byte("abc")), "abc"},
		"bytes that are not":   {parquet.Leaf(parquet.ByteArrayType), parquet.ByteArrayValue([]byte{0xff, 0}), "/wA="},
		"fixed":                {parquet.Leaf(parquet.FixedLenByteArrayType(3)), parquet.FixedLenByteArrayValue([]byte("abc")), "abc"},
		"UUID":                 {parquet.UUID(), parquet.FixedLenByteArrayValue([]byte("\x6b\xa7\xb8\x10\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8")), "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
		"date":                 {parquet.Date(), parquet.Int32Value(days), "2026-07-01"},
		"time ms":              {parquet.Time(parquet.Millisecond), parquet.Int32Value(int32(clock / 1e6)), "10:20:30.045"},
		"time µs":              {parquet.Time(parquet.Microsecond), parquet.Int64Value(clock/1e3 + 1), "10:20:30.045001"},
		"time ns":              {parquet.Time(parquet.Nanosecond), parquet.Int64Value(clock + 1), "10:20:30.045000001"},
		"timestamp ms":         {parquet.Timestamp(parquet.Millisecond), parquet.Int64Value(moment.UnixMilli()), "2026-07-01T10:20:30.045Z"},
		"timestamp µs":         {parquet.Timestamp(parquet.Microsecond), parquet.Int64Value(moment.UnixMicro() + 1), "2026-07-01T10:20:30.045001Z"},
		"timestamp ns":         {parquet.Timestamp(parquet.Nanosecond), parquet.Int64Value(moment.UnixNano() + 1), "2026-07-01T10:20:30.045000001Z"},
		"timestamp, no zone":   {parquet.TimestampAdjusted(parquet.Millisecond, false), parquet.Int64Value(moment.UnixMilli()), "2026-07-01T10:20:30.045"},
		"INT96":                {parquet.Leaf(parquet.Int96Type), parquet.Int96Value(deprecated.Int96{uint32(clock), uint32(clock >> 32), uint32(days + julianDay1970)}), "2026-07-01T10:20:30.045Z"},
		"decimal in 4 bytes":   {parquet.Decimal(2, 9, parquet.Int32Type), parquet.Int32Value(-4020), "-40.20"},
		"decimal in 8 bytes":   {parquet.Decimal(3, 18, parquet.Int64Type), parquet.Int64Value(5), "0.005"},
		"decimal in fixed":     {parquet.Decimal(2, 20, parquet.FixedLenByteArrayType(11)), parquet.FixedLenByteArrayValue(big), "-12.34"},
		"decimal in any bytes": {parquet.Decimal(0, 4, parquet.ByteArrayType), parquet.ByteArrayValue([]byte{0x01, 0x00}), "256"},
		"null":                 {parquet.Optional(parquet.String()), parquet.NullValue(), ""},
		"not null":             {parquet.Optional(parquet.String()), parquet.ByteArrayValue([]byte("x")).Level(0, 1, 0), "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			columns, read, err := readBytes(wrote(t, c.node, nil, c.value), 0)
			require.NoError(t, err)
			require.Equal(t, []string{"v"}, columns)
			require.Len(t, read, 1)
			require.Empty(t, read[0].Reason)
			require.Equal(t, c.want, read[0].Fields[0])
			require.True(t, json.Valid([]byte(read[0].Raw)), read[0].Raw)
		})
	}
	require.Equal(t, []float64{1, -2, 65504, 5.960464477539063e-08, 0.333251953125}, []float64{half(0x3c00), half(0xc000), half(0x7bff), half(1), half(0x3555)})
}

// Each encoding that parquet-go writes, in every compression, for each type that has
// it; so many values that there are several pages, and among them nulls.
func TestEveryEncodingAndCompression(t *testing.T) {
	t.Parallel()
	strs := func(i int) parquet.Value {
		return parquet.ByteArrayValue([]byte(strings.Repeat("prefix", i%4) + string(rune('a'+i%26))))
	}
	ints := func(i int) parquet.Value { return parquet.Int64Value(int64(i*i*7919) - 1e6) }
	for name, c := range map[string]struct {
		node  parquet.Node
		value func(i int) parquet.Value
	}{
		"plain string":     {parquet.Encoded(parquet.String(), &parquet.Plain), strs},
		"dictionary":       {parquet.Encoded(parquet.String(), &parquet.RLEDictionary), strs},
		"delta lengths":    {parquet.Encoded(parquet.String(), &parquet.DeltaLengthByteArray), strs},
		"delta strings":    {parquet.Encoded(parquet.String(), &parquet.DeltaByteArray), strs},
		"plain int":        {parquet.Encoded(parquet.Int(64), &parquet.Plain), ints},
		"delta int":        {parquet.Encoded(parquet.Int(64), &parquet.DeltaBinaryPacked), ints},
		"delta int 32":     {parquet.Encoded(parquet.Int(32), &parquet.DeltaBinaryPacked), func(i int) parquet.Value { return parquet.Int32Value(int32(i * 1_000_003)) }},
		"int dictionary":   {parquet.Encoded(parquet.Int(64), &parquet.RLEDictionary), func(i int) parquet.Value { return parquet.Int64Value(int64(i % 300)) }},
		"split doubles":    {parquet.Encoded(parquet.Leaf(parquet.DoubleType), &parquet.ByteStreamSplit), func(i int) parquet.Value { return parquet.DoubleValue(float64(i) / 8) }},
		"plain booleans":   {parquet.Encoded(parquet.Leaf(parquet.BooleanType), &parquet.Plain), func(i int) parquet.Value { return parquet.BooleanValue(i%3 == 0) }},
		"run booleans":     {parquet.Encoded(parquet.Leaf(parquet.BooleanType), &parquet.RLE), func(i int) parquet.Value { return parquet.BooleanValue(i%30 < 20) }},
		"fixed dictionary": {parquet.Encoded(parquet.Leaf(parquet.FixedLenByteArrayType(2)), &parquet.RLEDictionary), func(i int) parquet.Value { return parquet.FixedLenByteArrayValue([]byte{'a', byte('a' + i%20)}) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want []string
			var vs []parquet.Value
			for i := range 3000 {
				if i%7 == 3 || i > 900 && i < 1200 {
					vs, want = append(vs, parquet.NullValue()), append(want, "")
					continue
				}
				v := c.value(i).Level(0, 1, 0)
				vs, want = append(vs, v), append(want, v.String())
			}
			for version := 1; version <= 2; version++ {
				for _, codec := range []parquet.WriterOption{parquet.Compression(&parquet.Uncompressed), parquet.Compression(&parquet.Snappy), parquet.Compression(&parquet.Gzip),
					parquet.Compression(&parquet.Zstd), parquet.Compression(&parquet.Brotli), parquet.Compression(&parquet.Lz4Raw)} {
					in := wrote(t, parquet.Optional(c.node), []parquet.WriterOption{codec, parquet.DataPageVersion(version), parquet.PageBufferSize(4096)}, vs...)
					_, read, err := readBytes(in, 0)
					require.NoError(t, err)
					for i, row := range read {
						require.Equal(t, want[i], row.Fields[0])
					}
					require.Len(t, read, len(want))
				}
			}
		})
	}
}

func TestSkippedRowsAreThoseBefore(t *testing.T) {
	t.Parallel()
	var data []person
	for i := range 40 {
		p := person{ID: strings.Repeat("x", i), Phones: make([]string, i%4)}
		if i%3 == 0 {
			p.Age = ptr(int64(i))
		}
		data = append(data, p)
	}
	for _, version := range []int{1, 2} {
		in := written(t, 15, data, parquet.DataPageVersion(version), parquet.PageBufferSize(64))
		_, all, err := readBytes(in, 0)
		require.NoError(t, err)
		require.Len(t, all, 40)
		for skip := range int64(42) {
			_, rest, err := readBytes(in, skip)
			require.NoError(t, err)
			require.Equal(t, append([]got{}, all[min(skip, 40):]...), append([]got{}, rest...), "skip %d", skip)
		}
	}
}

// counting is an object that counts what is asked of it, and fails after some.
type counting struct {
	io.ReaderAt
	size  int64
	calls int
	bytes int64
	after int // calls it fails; 0 for never
	err   error
}

func (c *counting) ReadAt(b []byte, at int64) (int, error) {
	c.calls++
	if c.after > 0 && c.calls >= c.after {
		return 0, c.err
	}
	n, err := c.ReaderAt.ReadAt(b, at)
	c.bytes += int64(n)
	return n, err
}

// readOn reads rows until the end or an error, and returns how many.
func readOn(t testing.TB, object *counting, skip int64) (n int64, err error) {
	t.Helper()
	r := NewReader(object, object.size, skip)
	if _, err = r.Header(); err != nil {
		return 0, err
	}
	for {
		require.Equal(t, skip+n+1, r.Line())
		row, err := r.Next()
		if err != nil {
			return n, err
		}
		if row.Malformed != nil {
			require.Nil(t, row.Malformed)
		}
		n++
	}
}

func TestTheObjectIsReadInLargePieces(t *testing.T) {
	t.Parallel()
	type row struct {
		A, B, C []byte
	}
	random := rand.New(rand.NewPCG(1, 2))
	noise := func() []byte {
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	var data []row
	for range 20_000 {
		data = append(data, row{noise(), noise(), noise()})
	}
	for name, perGroup := range map[string]int{"one large group": len(data), "small groups": len(data) / 4} {
		in := written(t, perGroup, data, parquet.Compression(&parquet.Uncompressed))
		object := &counting{ReaderAt: bytes.NewReader(in), size: int64(len(in))}
		n, err := readOn(t, object, 0)
		require.Equal(t, io.EOF, err)
		require.EqualValues(t, len(data), n)
		require.LessOrEqual(t, object.calls, 8+len(in)>>21, name)
		require.LessOrEqual(t, object.bytes, object.size+1<<20, name)

		// Resumed, nothing of the groups before is read.
		object = &counting{ReaderAt: bytes.NewReader(in), size: int64(len(in))}
		n, err = readOn(t, object, int64(len(data))-10)
		require.Equal(t, io.EOF, err)
		require.EqualValues(t, 10, n)
		if perGroup < len(data) {
			require.LessOrEqual(t, object.calls, 2)
		}
	}
}

func TestAFailedSourceIsNoBadFile(t *testing.T) {
	t.Parallel()
	type row struct{ A, B string }
	long := strings.Repeat("x", 500_000)
	in := written(t, 20, slices.Repeat([]row{{A: long, B: long}}, 25), parquet.Compression(&parquet.Uncompressed))
	whole := &counting{ReaderAt: bytes.NewReader(in), size: int64(len(in))}
	n, err := readOn(t, whole, 0)
	require.Equal(t, io.EOF, err)
	require.EqualValues(t, 25, n)
	require.Greater(t, whole.calls, 5)
	for _, gone := range []error{errors.New("gone"), io.ErrUnexpectedEOF} {
		for after := 1; after <= whole.calls; after++ {
			n, err := readOn(t, &counting{ReaderAt: bytes.NewReader(in), size: whole.size, after: after, err: gone}, 0)
			require.ErrorIs(t, err, gone)
			require.False(t, errors.As(err, new(*rows.Invalid)))
			require.Less(t, n, int64(25))
		}
	}
}

func TestAnOverlongOrBadRowCostsNoOther(t *testing.T) {
	t.Parallel()
	type row struct {
		A string   `parquet:"a"`
		B []string `parquet:"b"`
	}
	in := written(t, 10, []row{
		{A: "1", B: []string{"x"}},
		{A: strings.Repeat("2", rows.MaxBytes+1), B: []string{"x"}},
		{A: "3", B: make([]string, rows.MaxBytes)},
		{A: "4", B: []string{"\xff"}},
		{A: "5\xff", B: []string{"y"}},
		{A: "6", B: []string{"z", ""}},
		{A: strings.Repeat("\x01", rows.MaxBytes/2)}, // six times as long in JSON
	})
	_, read, err := readBytes(in, 0)
	require.NoError(t, err)
	require.Len(t, read, 7)
	require.Equal(t, []string{"1", `["x"]`}, read[0].Fields)
	for _, i := range []int{1, 2, 6} {
		require.Equal(t, "the row is longer than 1 MiB", read[i].Reason)
		require.Equal(t, -1, read[i].Field)
		require.Len(t, read[i].Raw, 64<<10)
	}
	require.Equal(t, got{Line: 4, Reason: "invalid UTF-8", Field: 1, Raw: "{\"a\":\"4\",\"b\":[\"\xff\"]}"}, read[3])
	require.Equal(t, got{Line: 5, Reason: "invalid UTF-8", Field: 0, Raw: "{\"a\":\"5\xff\",\"b\":[\"y\"]}"}, read[4])
	require.Equal(t, []string{"6", `["z",""]`}, read[5].Fields)
}

func BenchmarkReader(b *testing.B) {
	type row struct {
		ID, StockCode, Description, Quantity, Date, Price, Customer, Country, Note string
	}
	data := make([]row, 100_000)
	for i := range data {
		data[i] = row{time.Unix(int64(i), 0).String(), "23256", "CHILDRENS CUTLERY SPACEBOY ", "2", "2011-10-06 16:20:00", "4.15", "12923.0", "United Kingdom", "a note"}
	}
	for name, options := range map[string][]parquet.WriterOption{
		"plain-snappy":    {parquet.Compression(&parquet.Snappy)},
		"dictionary-zstd": {parquet.Compression(&parquet.Zstd), parquet.DefaultEncodingFor(parquet.ByteArray, &parquet.RLEDictionary)},
	} {
		in := written(b, len(data), data, options...)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := NewReader(bytes.NewReader(in), int64(len(in)), 0)
				_, err := r.Header()
				require.NoError(b, err)
				for err == nil {
					_, err = r.Next()
				}
				require.Equal(b, io.EOF, err)
			}
			b.ReportMetric(float64(len(data)*b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
