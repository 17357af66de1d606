package ocf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/linkedin/goavro/v2"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows/rowstest"
)

type got = rowstest.Row

// readAll returns all rows, and what ended them if it was not the end.
func readAll(source io.Reader) (columns []string, read []got, err error) {
	r := NewReader(source)
	if columns, err = r.Header(); err != nil {
		return nil, nil, err
	}
	read, err = rowstest.Read(r)
	return columns, read, err
}

// written returns a file that goavro wrote, with so many rows in each block.
func written(t testing.TB, schema, codec string, perBlock int, data ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := goavro.NewOCFWriter(goavro.OCFConfig{W: &b, Schema: schema, CompressionName: codec})
	require.NoError(t, err)
	for chunk := range slices.Chunk(data, perBlock) {
		require.NoError(t, w.Append(chunk))
	}
	return b.Bytes()
}

var marker = []byte("0123456789abcdef")

func varint(n int64) []byte { return binary.AppendVarint(nil, n) }

func str(s string) []byte { return append(varint(int64(len(s))), s...) }

// file puts a file together from a schema, a codec and what follows the header.
func file(schema, codec string, rest ...[]byte) []byte {
	b := []byte("Obj\x01")
	b = append(b, varint(2)...)
	b = append(append(b, str("avro.codec")...), str(codec)...)
	b = append(append(b, str("avro.schema")...), str(schema)...)
	b = append(append(b, 0), marker...)
	return append(b, bytes.Join(rest, nil)...)
}

// block is one block, its bytes as they are.
func block(count int64, data []byte) []byte {
	return slices.Concat(varint(count), varint(int64(len(data))), data, marker)
}

func one(fieldType string) string {
	return `{"type":"record","name":"r","fields":[{"name":"v","type":` + fieldType + `}]}`
}

const people = `{"type":"record","name":"person","namespace":"a.b","fields":[
	{"name":"id","type":"string"},
	{"name":"age","type":["null","int"],"default":null},
	{"name":"home","type":["null",{"type":"record","name":"address","fields":[
		{"name":"city","type":"string"},
		{"name":"geo","type":{"type":"record","name":"geo","fields":[{"name":"lat","type":"double"},{"name":"lon","type":["double","null"]}]}}]}]},
	{"name":"work","type":"address"},
	{"name":"tags","type":{"type":"array","items":"string"}}]}`

func TestFieldsOfRecordsInsideAreColumns(t *testing.T) {
	t.Parallel()
	geo := map[string]any{"lat": 1.5, "lon": goavro.Union("double", -2.25)}
	home := map[string]any{"city": "Rome", "geo": geo}
	work := map[string]any{"city": "", "geo": map[string]any{"lat": 0.0, "lon": nil}}
	data := []any{
		map[string]any{"id": "1", "age": goavro.Union("int", 30), "home": goavro.Union("a.b.address", home), "work": work, "tags": []any{"a", `"b"`}},
		map[string]any{"id": "2", "age": nil, "home": nil, "work": home, "tags": []any{}},
	}
	for _, codec := range []string{"null", "deflate", "snappy"} {
		columns, read, err := readAll(bytes.NewReader(written(t, people, codec, 1, data...)))
		require.NoError(t, err)
		require.Equal(t, []string{"id", "age", "home.city", "home.geo.lat", "home.geo.lon", "work.city", "work.geo.lat", "work.geo.lon", "tags"}, columns)
		require.Equal(t, []got{
			{Line: 1, Fields: []string{"1", "30", "Rome", "1.5", "-2.25", "", "0", "", `["a","\"b\""]`},
				Raw: `{"id":"1","age":30,"home.city":"Rome","home.geo.lat":"1.5","home.geo.lon":"-2.25","work.geo.lat":"0","tags":["a","\"b\""]}`},
			{Line: 2, Fields: []string{"2", "", "", "", "", "Rome", "1.5", "-2.25", "[]"},
				Raw: `{"id":"2","work.city":"Rome","work.geo.lat":"1.5","work.geo.lon":"-2.25","tags":[]}`},
		}, read, codec)
	}
}

func TestValuesAreText(t *testing.T) {
	t.Parallel()
	moment := time.Date(2026, 7, 1, 10, 20, 30, 45_000_000, time.UTC)
	const list = `{"type":"record","name":"list","fields":[{"name":"n","type":"int"},{"name":"next","type":["null","list"]}]}`
	for name, c := range map[string]struct {
		schema string
		value  any
		want   string
	}{
		"boolean":                {`"boolean"`, true, "true"},
		"int":                    {`"int"`, math.MinInt32, "-2147483648"},
		"long":                   {`"long"`, math.MaxInt64, "9223372036854775807"},
		"float":                  {`"float"`, float32(0.1), "0.1"},
		"double":                 {`"double"`, 12345678.0, "12345678"},
		"small double":           {`"double"`, 1e-7, "1e-07"},
		"not a number":           {`"double"`, math.NaN(), "NaN"},
		"string":                 {`{"type":"string","avro.java.string":"String"}`, "é\"\n", "é\"\n"},
		"bytes":                  {`"bytes"`, []byte("abc"), "abc"},
		"bytes that are no text": {`"bytes"`, []byte{0xff, 0}, "/wA="},
		"fixed":                  {`{"type":"fixed","name":"f","size":2}`, []byte{0xff, 0}, "/wA="},
		"enum":                   {`{"type":"enum","name":"e","symbols":["A","B"]}`, "B", "B"},
		"date":                   {`{"type":"int","logicalType":"date"}`, moment, "2026-07-01"},
		"date before 1970":       {`{"type":"int","logicalType":"date"}`, -1, "1969-12-31"},
		"time-millis":            {`{"type":"int","logicalType":"time-millis"}`, 90061 * time.Millisecond, "00:01:30.061"},
		"time-micros":            {`{"type":"long","logicalType":"time-micros"}`, 1500 * time.Microsecond, "00:00:00.0015"},
		"time of no day":         {`{"type":"long","logicalType":"time-micros"}`, 25 * time.Hour, "90000000000"},
		"timestamp-millis":       {`{"type":"long","logicalType":"timestamp-millis"}`, moment, "2026-07-01T10:20:30.045Z"},
		"timestamp-micros":       {`{"type":"long","logicalType":"timestamp-micros"}`, moment.Add(time.Microsecond), "2026-07-01T10:20:30.045001Z"},
		"timestamp-nanos":        {`{"type":"long","logicalType":"timestamp-nanos"}`, moment.UnixNano() + 1, "2026-07-01T10:20:30.045000001Z"},
		"timestamp before 1970":  {`{"type":"long","logicalType":"timestamp-millis"}`, time.UnixMilli(-1), "1969-12-31T23:59:59.999Z"},
		"local-timestamp-millis": {`{"type":"long","logicalType":"local-timestamp-millis"}`, moment.UnixMilli(), "2026-07-01T10:20:30.045"},
		"decimal":                {`{"type":"bytes","logicalType":"decimal","precision":6,"scale":2}`, big.NewRat(4020, 100), "40.20"},
		"decimal below 1":        {`{"type":"bytes","logicalType":"decimal","precision":6,"scale":3}`, big.NewRat(-5, 1000), "-0.005"},
		"decimal in fixed":       {`{"type":"fixed","name":"d","size":12,"logicalType":"decimal","precision":28,"scale":0}`, big.NewRat(-7, 1), "-7"},
		"uuid":                   {`{"type":"string","logicalType":"uuid"}`, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
		"unknown logical type":   {`{"type":"string","logicalType":"colour"}`, "red", "red"},
		"scalars to choose from": {`["null","string","long"]`, goavro.Union("string", "x"), "x"},
		"array":                  {`{"type":"array","items":["null","long","string"]}`, []any{nil, goavro.Union("long", 7), goavro.Union("string", "7")}, `[null,7,"7"]`},
		"map":                    {`{"type":"map","values":{"type":"long","logicalType":"timestamp-millis"}}`, map[string]any{"é": moment}, `{"é":"2026-07-01T10:20:30.045Z"}`},
		"numbers in a list":      {`{"type":"array","items":"double"}`, []any{1.5, math.Inf(1)}, `[1.5,"+Inf"]`},
		"a list or a text":       {`["string",{"type":"array","items":"int"}]`, goavro.Union("string", "x"), `"x"`},
		"a record in itself":     {`["null",` + list + `]`, goavro.Union("list", map[string]any{"n": 1, "next": goavro.Union("list", map[string]any{"n": 2, "next": nil})}), `{"n":2,"next":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := one(c.schema)
			_, read, err := readAll(bytes.NewReader(written(t, schema, "null", 1, map[string]any{"v": c.value})))
			require.NoError(t, err)
			require.Len(t, read, 1)
			require.Empty(t, read[0].Reason)
			require.Equal(t, c.want, read[0].Fields[len(read[0].Fields)-1])
			require.True(t, json.Valid([]byte(read[0].Raw)), read[0].Raw)
		})
	}
}

func TestCodecsThatGoavroCannotWrite(t *testing.T) {
	t.Parallel()
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	// Of "\x02x", by bzip2.
	bz := []byte("BZh91AY&SY\x99\x06\xf5\xd2\x00\x00\x00@\x80\x10\x00\x00@ \x00!\x00\x82\xb1w$S\x85\t\t\x90o] ")
	for codec, data := range map[string][]byte{"zstandard": z.EncodeAll([]byte("\x02x"), nil), "bzip2": bz, "": []byte("\x02x")} {
		_, read, err := readAll(bytes.NewReader(file(one(`"string"`), codec, block(1, data), block(1, data))))
		require.NoError(t, err, codec)
		require.Len(t, read, 2)
		require.Equal(t, []string{"x"}, read[1].Fields)
	}
}

// A list is written in any number of blocks, with or without their length.
func TestListsInBlocks(t *testing.T) {
	t.Parallel()
	data := slices.Concat(varint(-1), varint(1), varint(5), varint(2), varint(6), varint(7), varint(0))
	_, read, err := readAll(bytes.NewReader(file(one(`{"type":"array","items":"int"}`), "null", block(1, data))))
	require.NoError(t, err)
	require.Equal(t, []string{"[5,6,7]"}, read[0].Fields)
}

func TestABadRowSpoilsItsBlockAndNoMore(t *testing.T) {
	t.Parallel()
	good := slices.Concat(str("a"), str("b"))
	_, read, err := readAll(bytes.NewReader(file(one(`"string"`), "null",
		block(2, good),
		block(3, slices.Concat(str("c"), varint(50), str("d"))),
		block(2, slices.Concat(str("e\xff"), str("f"))))))
	require.NoError(t, err)
	require.Equal(t, []got{
		{Line: 1, Fields: []string{"a"}, Raw: `{"v":"a"}`},
		{Line: 2, Fields: []string{"b"}, Raw: `{"v":"b"}`},
		{Line: 3, Fields: []string{"c"}, Raw: `{"v":"c"}`},
		{Line: 4, Reason: "the row goes over the end of its block", Field: -1},
		{Line: 5, Reason: behindBad.Reason, Field: -1},
		{Line: 6, Reason: "invalid UTF-8", Field: 0, Raw: "{\"v\":\"e\xff\"}"},
		{Line: 7, Fields: []string{"f"}, Raw: `{"v":"f"}`},
	}, read)
}

func TestAnOverlongRowCostsNoOther(t *testing.T) {
	t.Parallel()
	list := `{"type":"array","items":["null","string"]}`
	long1 := slices.Concat(varint(1), varint(1), str(strings.Repeat("x", rows.MaxBytes)), varint(0))
	long2 := slices.Concat(varint(rows.MaxBytes), make([]byte, rows.MaxBytes), varint(0))
	escaped := slices.Concat(varint(1), varint(1), str(strings.Repeat("\x01", rows.MaxBytes/3)), varint(0))
	short := slices.Concat(varint(1), varint(1), str("y"), varint(0))
	_, read, err := readAll(bytes.NewReader(file(one(list), "null", block(4, slices.Concat(long1, long2, escaped, short)))))
	require.NoError(t, err)
	require.Len(t, read, 4)
	for _, row := range read[:3] {
		require.Equal(t, "the row is longer than 1 MiB", row.Reason)
		require.LessOrEqual(t, len(row.Raw), 64<<10)
	}
	require.True(t, strings.HasPrefix(read[0].Raw, `{"v":[`), "of the row %.10s", read[0].Raw)
	require.Len(t, read[0].Raw, 64<<10)
	require.Equal(t, []string{`["y"]`}, read[3].Fields)
}

func deflated(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 9)
	require.NoError(t, err)
	_, err = w.Write(make([]byte, n))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// Whatever the file says, it ends in a sentence for its owner, and no more than
// 64 MiB are ever asked for.
func TestHostileFilesEndInASentence(t *testing.T) { //nolint:paralleltest // it measures what is allocated
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	nested := strings.Repeat(`{"type":"array","items":`, 100) + `"int"` + strings.Repeat(`}`, 100)
	brackets := strings.Repeat("[", 400_000)
	var twice strings.Builder // each record has two of the next: 2^40 columns
	for i := range 40 {
		fmt.Fprintf(&twice, `{"type":"record","name":"r%d","fields":[{"name":"a","type":`, i)
	}
	twice.WriteString(`"null"`)
	for i := range 40 {
		fmt.Fprintf(&twice, `},{"name":"b","type":"%s"}]}`, []string{"null", fmt.Sprintf("r%d", 40-i)}[min(i, 1)])
	}
	var wide []string
	for i := range maxFields + 1 {
		wide = append(wide, fmt.Sprintf(`{"name":"c%d","type":"int"}`, i))
	}
	str1 := one(`"string"`)
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":                   {nil, "the file is empty"},
		"another format":            {[]byte("PAR1 and so on"), "not an Avro object container file"},
		"cut in the header":         {file(str1, "null")[:20], "cut off before"},
		"cut in a block":            {file(str1, "null", block(1, str("abc"))[:4]), "cut off in the middle"},
		"cut after the count":       {file(str1, "null", varint(1)), "cut off in the middle"},
		"no schema":                 {slices.Concat([]byte("Obj\x01"), varint(0), marker), "no schema"},
		"a schema of a gigabyte":    {slices.Concat([]byte("Obj\x01"), varint(1), str("avro.schema"), varint(1<<30)), "larger than"},
		"a key of a gigabyte":       {slices.Concat([]byte("Obj\x01"), varint(1), varint(1<<30)), "larger than"},
		"a length below 0":          {slices.Concat([]byte("Obj\x01"), varint(1), varint(-1)), "larger than"},
		"endless metadata":          {slices.Concat([]byte("Obj\x01"), varint(math.MaxInt64), make([]byte, maxHeader+1)), "larger than"},
		"no number":                 {slices.Concat([]byte("Obj\x01"), bytes.Repeat([]byte{0xff}, 20)), "there is no number"},
		"schema is no JSON":         {file("{", "null"), "not JSON"},
		"schema is no record":       {file(`"string"`, "null"), "not a record"},
		"a record without fields":   {file(`{"type":"record","name":"r","fields":[]}`, "null"), "no fields"},
		"an unknown type":           {file(one(`"decimal"`), "null"), `there is no type "decimal"`},
		"no type":                   {file(`{"type":"record","name":"r","fields":[{"name":"v"}]}`, "null"), "neither a name"},
		"a type is a number":        {file(one(`7`), "null"), "neither a name"},
		"a fixed of a gigabyte":     {file(one(`{"type":"fixed","name":"f","size":1073741824}`), "null"), "a fixed has no size"},
		"a union in a union":        {file(one(`["null",["int"]]`), "null"), "a union stands directly"},
		"the same name twice":       {file(`{"type":"record","name":"r","fields":[{"name":"v","type":{"type":"enum","name":"r","symbols":[]}}]}`, "null"), "defined twice"},
		"nested types":              {file(one(nested), "null"), "nested deeper than 64"},
		"nested JSON":               {file(brackets, "null"), "not JSON"},
		"columns without end":       {file(twice.String(), "null"), "more than 10000 fields"},
		"too many columns":          {file(`{"type":"record","name":"r","fields":[`+strings.Join(wide, ",")+`]}`, "null"), "more than 10000 fields"},
		"an unknown codec":          {file(str1, "xz"), `"xz"`},
		"a block of a gigabyte":     {file(str1, "null", varint(1), varint(1<<30)), "is larger than 16 MiB"},
		"a block below 0":           {file(str1, "null", varint(1), varint(-1)), "below 0"},
		"rows below 0":              {file(str1, "null", varint(-1), varint(1)), "below 0"},
		"more rows than bytes":      {file(one(`"null"`), "null", block(math.MaxInt64, []byte("x"))), "says it has"},
		"fewer rows than bytes":     {file(str1, "null", block(1, []byte("\x02a\x02b"))), "more bytes than its rows"},
		"bytes without a row":       {file(str1, "null", block(0, []byte("\x02a"))), "more bytes than its rows"},
		"another sync marker":       {file(str1, "null", append(block(1, str("a"))[:5], "another marker .."...)), "sync marker"},
		"deflate: a bomb":           {file(str1, "deflate", block(1, deflated(t, 1<<27))), "is larger than 16 MiB"},
		"snappy: a bomb":            {file(str1, "snappy", block(1, append(binary.AppendUvarint(nil, 1<<30), 0, 0, 0, 0))), "is larger than 16 MiB"},
		"snappy: a bad checksum":    {file(str1, "snappy", block(1, append(snappy.Encode(nil, str("a")), 0, 0, 0, 0))), "checksum"},
		"snappy: no checksum":       {file(str1, "snappy", block(1, []byte("a"))), "cannot be decompressed"},
		"zstd: a bomb":              {file(str1, "zstandard", block(1, z.EncodeAll(make([]byte, 1<<26), nil))), "is larger than 16 MiB"},
		"zstd: none":                {file(str1, "zstandard", block(1, []byte("none"))), "cannot be decompressed"},
		"bzip2: none":               {file(str1, "bzip2", block(1, []byte("none"))), "cannot be decompressed"},
		"a list of 2^60 nulls":      {file(one(`{"type":"array","items":"null"}`), "null", block(1, slices.Concat(varint(1<<60), varint(0))), []byte{2}), "cut off"},
		"a record of 2^40 nulls":    {file(one(`{"type":"array","items":`+twice.String()+`}`), "null", block(1, slices.Concat(varint(1), varint(0))), []byte{2}), "cut off"},
		"a list of 2^31 longs":      {file(one(`{"type":"array","items":"long"}`), "null", block(1, slices.Concat(varint(1<<31), varint(0))), []byte{2}), "cut off"},
		"a chain of 16 M records":   {file(one(`{"type":"record","name":"l","fields":[{"name":"next","type":["null","l"]}]}`), "null", block(1, bytes.Repeat([]byte{2}, maxBlock)), []byte{2}), "cut off"},
		"a record surely in itself": {file(`{"type":"record","name":"r","fields":[{"name":"v","type":"r"}]}`, "null", block(1, []byte{0}), []byte{2}), "cut off"},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // as above
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := readAll(bytes.NewReader(c.in))
			runtime.ReadMemStats(&after)
			var invalid *rows.Invalid
			require.ErrorAs(t, err, &invalid)
			require.Contains(t, invalid.Reason, c.want)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
		})
	}
}

func TestAFailedSourceIsNoBadFile(t *testing.T) {
	t.Parallel()
	in := file(one(`"string"`), "null", block(2, []byte("\x02a\x02b")), block(1, []byte("\x02c")))
	_, all, err := readAll(bytes.NewReader(in))
	require.NoError(t, err)
	gone := errors.New("gone")
	for cut := range len(in) {
		_, read, err := readAll(io.MultiReader(bytes.NewReader(in[:cut]), iotest.ErrReader(gone)))
		require.ErrorIs(t, err, gone, "cut at %d", cut)
		require.Equal(t, all[:len(read)], append([]got{}, read...))
		_, read, err = readAll(io.MultiReader(bytes.NewReader(in[:cut]), iotest.ErrReader(io.ErrUnexpectedEOF)))
		require.Equal(t, io.ErrUnexpectedEOF, err)
		require.Equal(t, all[:len(read)], append([]got{}, read...))

		_, read, err = readAll(bytes.NewReader(in[:cut]))
		require.Equal(t, all[:len(read)], append([]got{}, read...))
		if err == nil {
			require.Contains(t, []int{0, 2}, len(read), "cut at %d", cut) // between two blocks nobody can see it
		} else {
			require.ErrorAs(t, err, new(*rows.Invalid))
		}
	}
}

func TestOffsetIsTheBlockOfTheNextRow(t *testing.T) {
	t.Parallel()
	header := file(one(`"string"`), "null")
	first := block(2, []byte("\x02a\x02b"))
	in := slices.Concat(header, first, block(1, []byte("\x02c")))
	r := NewReader(iotest.OneByteReader(bytes.NewReader(in)))
	_, err := r.Header()
	require.NoError(t, err)
	for i, want := range []int{len(header), len(header), len(header) + len(first), len(in)} {
		require.EqualValues(t, want, r.Offset()) // before the row
		require.EqualValues(t, i+1, r.Line())
		_, err = r.Next()
	}
	require.Equal(t, io.EOF, err)
}
