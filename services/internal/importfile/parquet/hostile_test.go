package parquet

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows/rowstest"
)

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := thrift.Marshal(new(thrift.CompactProtocol), v)
	require.NoError(t, err)
	return b
}

func some[T any](v T) thrift.Null[T] { return thrift.Null[T]{V: v, Valid: true} }

// page is a page as it is in a file.
func page(t testing.TB, h format.PageHeader, body []byte) []byte {
	t.Helper()
	if h.CompressedPageSize == 0 {
		h.CompressedPageSize = int32(len(body))
	}
	if h.UncompressedPageSize == 0 {
		h.UncompressedPageSize = int32(len(body))
	}
	return append(marshal(t, h), body...)
}

func dataPage(t testing.TB, n int32, e format.Encoding, body []byte) []byte {
	t.Helper()
	return page(t, format.PageHeader{Type: format.DataPage, DataPageHeader: some(format.DataPageHeader{NumValues: n, Encoding: e, DefinitionLevelEncoding: format.RLE, RepetitionLevelEncoding: format.RLE})}, body)
}

func dictionaryPage(t testing.TB, n int32, body []byte) []byte {
	t.Helper()
	return page(t, format.PageHeader{Type: format.DictionaryPage, DictionaryPageHeader: some(format.DictionaryPageHeader{NumValues: n})}, body)
}

// metadata describes a file of one column of bytes, in one row group of so many rows.
func metadata(n int64, pages []byte) *format.FileMetaData {
	return &format.FileMetaData{
		Version: 1,
		Schema: []format.SchemaElement{
			{Name: "r", NumChildren: some(int32(1))},
			{Name: "v", Type: some(format.ByteArray), RepetitionType: some(format.Required), ConvertedType: some(deprecated.UTF8)},
		},
		NumRows: n,
		RowGroups: []format.RowGroup{{NumRows: n, Columns: []format.ColumnChunk{{MetaData: format.ColumnMetaData{
			Type: format.ByteArray, PathInSchema: []string{"v"}, NumValues: n, DataPageOffset: 4, TotalCompressedSize: int64(len(pages)), TotalUncompressedSize: int64(len(pages)),
		}}}}},
	}
}

// file puts a file together.
func file(footer, pages []byte) []byte {
	b := slices.Concat([]byte("PAR1"), pages, footer)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(footer)))
	return append(b, "PAR1"...)
}

func plain(values ...string) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

// Whatever the file says, it ends in a sentence for its owner, and no more than
// 128 MiB are ever asked for.
func TestHostileFilesEndInASentence(t *testing.T) { //nolint:paralleltest // it measures what is allocated
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err = w.Write(make([]byte, 1<<24))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	good := plain("a", "b")
	goodPage := dataPage(t, 2, format.Plain, good)
	uvarint := binary.AppendUvarint
	// The head of a list of so many structs.
	list := func(field byte, n uint64) []byte { return uvarint([]byte{field<<4 | typeList, 0xf0 | typeStruct}, n) }
	deep := bytes.Repeat([]byte{0x1c}, 1000)

	// Of a list of pairs, one half in one row and the other in two.
	oneRow := dataPage(t, 2, format.Plain, slices.Concat([]byte{2, 0, 0, 0, 3, 2}, []byte{2, 0, 0, 0, 4, 1}, good))
	twoRows := dataPage(t, 2, format.Plain, slices.Concat([]byte{2, 0, 0, 0, 4, 0}, []byte{2, 0, 0, 0, 4, 1}, good))
	pairs := func(m *format.FileMetaData) {
		m.Schema = append(m.Schema[:1:1], format.SchemaElement{Name: "g", NumChildren: some(int32(2)), RepetitionType: some(format.Repeated)}, m.Schema[1], m.Schema[1])
		m.RowGroups[0].Columns = slices.Repeat(m.RowGroups[0].Columns, 2)
		first, second := &m.RowGroups[0].Columns[0].MetaData, &m.RowGroups[0].Columns[1].MetaData
		first.NumValues, second.NumValues = 2, 2
		first.TotalCompressedSize /= 2
		second.TotalCompressedSize /= 2
		second.DataPageOffset += first.TotalCompressedSize
	}

	type meta = format.FileMetaData
	chunk := func(m *meta) *format.ColumnMetaData { return &m.RowGroups[0].Columns[0].MetaData }
	for name, c := range map[string]struct {
		rows  int64
		pages []byte
		lie   func(m *meta)
		want  string
	}{
		"rows below 0":          {-1, nil, nil, "has -1 rows"},
		"more rows than values": {2, goodPage, func(m *meta) { m.RowGroups[0].NumRows = 1 << 40 }, "has 2 values"},
		"more rows and values":  {1 << 40, goodPage, nil, "has fewer values"},
		"rows without end": {2, goodPage, func(m *meta) {
			m.RowGroups = append(m.RowGroups, m.RowGroups[0])
			m.RowGroups[0].NumRows, m.RowGroups[1].NumRows = math.MaxInt64, 2
		}, "row group 1 has 2 rows"},
		"no columns in a row group": {2, goodPage, func(m *meta) { m.RowGroups[0].Columns = nil }, "and 0 columns"},
		"an offset below the file":  {2, goodPage, func(m *meta) { chunk(m).DataPageOffset = -1 }, "where the file is not"},
		"an offset behind the file": {2, goodPage, func(m *meta) { chunk(m).DataPageOffset = math.MaxInt64 - 1 }, "where the file is not"},
		"a size below 0":            {2, goodPage, func(m *meta) { chunk(m).TotalCompressedSize = -1 }, "where the file is not"},
		"a size over the file":      {2, goodPage, func(m *meta) { chunk(m).TotalCompressedSize = math.MaxInt64 }, "where the file is not"},
		"another type":              {2, goodPage, func(m *meta) { chunk(m).Type = format.Int32 }, "another type"},
		"a type that is none":       {2, goodPage, func(m *meta) { m.Schema[1].Type = some(format.Type(77)) }, "does not know"},
		"another file":              {2, goodPage, func(m *meta) { m.RowGroups[0].Columns[0].FilePath = "/etc/passwd" }, "another file"},
		"an unknown compression":    {2, goodPage, func(m *meta) { chunk(m).Codec = 77 }, "cannot be read"},
		"LZO":                       {2, goodPage, func(m *meta) { chunk(m).Codec = format.LZO }, "LZO"},
		"no snappy":                 {2, goodPage, func(m *meta) { chunk(m).Codec = format.Snappy }, "compressed length"},
		"no zstd":                   {2, goodPage, func(m *meta) { chunk(m).Codec = format.Zstd }, "cannot be read"},
		"no lz4":                    {2, goodPage, func(m *meta) { chunk(m).Codec = format.Lz4Raw }, "cannot be read"},
		"no brotli":                 {2, goodPage, func(m *meta) { chunk(m).Codec = format.Brotli }, "cannot be read"},
		"a fixed of two gigabytes": {2, goodPage, func(m *meta) {
			m.Schema[1].Type, m.Schema[1].TypeLength = some(format.FixedLenByteArray), some(int32(math.MaxInt32))
		}, "values of 2147483647 bytes"},
		"a fixed of nothing": {2, goodPage, func(m *meta) { m.Schema[1].Type = some(format.FixedLenByteArray) }, "values of 0 bytes"},
		"too many children":  {2, goodPage, func(m *meta) { m.Schema[0].NumChildren = some(int32(math.MaxInt32)) }, "ends too early"},
		"children below 0":   {2, goodPage, func(m *meta) { m.Schema[0].NumChildren = some(int32(-5)) }, "a group without fields"},
		"too few children":   {2, goodPage, func(m *meta) { m.Schema = append(m.Schema, m.Schema[1]) }, "no tree"},
		"no schema":          {2, goodPage, func(m *meta) { m.Schema = nil }, "ends too early"},
		"a schema without end": {2, goodPage, func(m *meta) {
			m.Schema = slices.Repeat([]format.SchemaElement{{Name: "g", NumChildren: some(int32(1))}}, 100)
		}, "nested deeper"},
		"too many columns": {2, goodPage, func(m *meta) {
			m.Schema = append(m.Schema[:1:1], slices.Repeat(m.Schema[1:], 11_000)...)
			m.Schema[0].NumChildren.V = 11_000
		}, "more than 10000 columns"},
		"too many row groups":       {2, goodPage, func(m *meta) { m.RowGroups = slices.Repeat(m.RowGroups, 40_000) }, "row groups"},
		"endless statistics":        {2, goodPage, func(m *meta) { chunk(m).Encoding = make([]format.Encoding, 100_000) }, "footer is broken"},
		"a page of two gigabytes":   {2, page(t, format.PageHeader{Type: format.DataPage, CompressedPageSize: math.MaxInt32, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, good), nil, "larger than 32 MiB"},
		"a page of a negative size": {2, page(t, format.PageHeader{Type: format.DataPage, CompressedPageSize: -1, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, good), nil, "what cannot be"},
		"a page over its column":    {2, page(t, format.PageHeader{Type: format.DataPage, CompressedPageSize: 1000, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, good), nil, "over the end"},
		"a page that grows":         {2, page(t, format.PageHeader{Type: format.DataPage, UncompressedPageSize: math.MaxInt32, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, good), nil, "larger than 32 MiB"},
		"values below 0":            {2, dataPage(t, -1, format.Plain, good), nil, "what cannot be"},
		"two billion values":        {math.MaxInt32, dataPage(t, math.MaxInt32, format.Plain, good), nil, "what cannot be"},
		"more values than bytes":    {1000, dataPage(t, 1000, format.Plain, good), nil, "values are broken"},
		"a value of four gigabytes": {1, dataPage(t, 1, format.Plain, []byte{0xff, 0xff, 0xff, 0xff, 1}), nil, "values are broken"},
		"an unknown encoding":       {1, dataPage(t, 1, 77, good), nil, "cannot be read as"},
		"an encoding of others":     {1, dataPage(t, 1, format.DeltaBinaryPacked, good), nil, "cannot be read as"},
		"no dictionary":             {1, dataPage(t, 1, format.RLEDictionary, good), nil, "no dictionary"},
		"a broken dictionary":       {1, dictionaryPage(t, 1000, good), nil, "do not fill it"},
		"a dictionary below 0":      {1, dictionaryPage(t, -1, good), nil, "what cannot be"},
		"two dictionaries":          {1, slices.Concat(dictionaryPage(t, 2, good), dictionaryPage(t, 2, good)), nil, "second dictionary"},
		"an index over its end":     {1, slices.Concat(dictionaryPage(t, 2, good), dataPage(t, 1, format.RLEDictionary, []byte{8, 2, 200})), nil, "values are broken"},
		"indexes of 255 bits":       {1, slices.Concat(dictionaryPage(t, 2, good), dataPage(t, 1, format.RLEDictionary, []byte{255, 2, 0})), nil, "more than 32 bits"},
		"lengths without end":       {1, dataPage(t, 1, format.DeltaLengthByteArray, slices.Concat(uvarint(nil, 128), uvarint(nil, 4), uvarint(nil, 1<<60), []byte{0})), nil, "cannot be read as"},
		"a block of a gigabyte":     {1, dataPage(t, 1, format.DeltaLengthByteArray, slices.Concat(uvarint(nil, 1<<30), uvarint(nil, 1<<27), uvarint(nil, 2), []byte{0})), nil, "cannot be read as"},
		"a prefix of what is not":   {1, dataPage(t, 1, format.DeltaByteArray, slices.Concat(uvarint(nil, 128), uvarint(nil, 4), uvarint(nil, 1), []byte{20}, uvarint(nil, 128), uvarint(nil, 4), uvarint(nil, 1), []byte{0})), nil, "values are broken"},
		"levels without end":        {1000, dataPage(t, 1000, format.Plain, slices.Concat([]byte{0xff, 0xff, 0xff, 0x7f}, good)), func(m *meta) { m.Schema[1].RepetitionType.V = format.Optional }, "EOF"},
		"levels above the highest":  {1, dataPage(t, 1, format.Plain, slices.Concat([]byte{2, 0, 0, 0, 2, 1}, []byte{2, 0, 0, 0, 2, 3}, good)), func(m *meta) { m.Schema[1].RepetitionType.V = format.Repeated }, "levels are broken"},
		"pairs that are not":        {1, slices.Concat(oneRow, twoRows), pairs, "do not fit together"},
		"more rows than it says":    {1, twoRows, func(m *meta) { m.Schema[1].RepetitionType.V = format.Repeated; chunk(m).NumValues = 2 }, "do not fit together"},
		"pairs the other way":       {1, slices.Concat(twoRows, oneRow), pairs, "do not fit together"},
		"a page of no kind":         {1, page(t, format.PageHeader{Type: 77}, good), nil, "what cannot be"},
		"levels below 0":            {1, page(t, format.PageHeader{Type: format.DataPageV2, DataPageHeaderV2: some(format.DataPageHeaderV2{NumValues: 1, DefinitionLevelsByteLength: -1})}, good), nil, "what cannot be"},
		"levels over the page":      {1, page(t, format.PageHeader{Type: format.DataPageV2, DataPageHeaderV2: some(format.DataPageHeaderV2{NumValues: 1, DefinitionLevelsByteLength: math.MaxInt32, RepetitionLevelsByteLength: math.MaxInt32})}, good), nil, "EOF"},
		"nested headers":            {1, deep, nil, "header is broken"},
		"no header":                 {1, bytes.Repeat([]byte{0xff}, 100), nil, "header is broken"},
		"a zstd bomb":               {2, page(t, format.PageHeader{Type: format.DataPage, UncompressedPageSize: 100, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, z.EncodeAll(make([]byte, 1<<24), nil)), func(m *meta) { chunk(m).Codec = format.Zstd }, "cannot be read"},
		"a gzip bomb":               {2, page(t, format.PageHeader{Type: format.DataPage, UncompressedPageSize: 100, DataPageHeader: some(format.DataPageHeader{NumValues: 2})}, gz.Bytes()), func(m *meta) { chunk(m).Codec = format.Gzip }, "longer than its header says"},
		"a zstd bomb of 32 MiB":     {1 << 20, page(t, format.PageHeader{Type: format.DataPage, UncompressedPageSize: 1 << 25, DataPageHeader: some(format.DataPageHeader{NumValues: 1 << 20})}, z.EncodeAll(make([]byte, 1<<25), nil)), func(m *meta) { chunk(m).Codec = format.Zstd; m.RowGroups[0].NumRows++; chunk(m).NumValues++ }, "has fewer values"},
		"the same pages ten times": {1, page(t, format.PageHeader{Type: format.DataPage, UncompressedPageSize: 1 << 25, DataPageHeader: some(format.DataPageHeader{NumValues: 1})}, z.EncodeAll(plain(strings.Repeat("x", 1<<25-4)), nil)), func(m *meta) {
			chunk(m).Codec = format.Zstd
			m.Schema = append(m.Schema, slices.Repeat(m.Schema[1:], 9)...)
			m.Schema[0].NumChildren.V = 10
			m.RowGroups[0].Columns = slices.Repeat(m.RowGroups[0].Columns, 10)
		}, "more than 96 MiB together"},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // as above
			m := metadata(c.rows, c.pages)
			if c.lie != nil {
				c.lie(m)
			}
			in := file(marshal(t, m), c.pages)
			refused(t, in, c.want)
		})
	}
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":                     {nil, "empty"},
		"too short":                   {[]byte("PAR1PAR1"), "not a Parquet file"},
		"another format":              {[]byte("id,name\n1,Ann\n"), "not a Parquet file"},
		"an encrypted footer":         {[]byte("PAREPARE\x00\x00\x00\x00PARE"), "encrypted"},
		"a footer of four gigabytes":  {[]byte("PAR1\xff\xff\xff\xffPAR1"), "larger than 16 MiB"},
		"a footer larger than all":    {[]byte("PAR1\x10\x00\x00\x00PAR1"), "larger than the file"},
		"no footer":                   {file([]byte{0xff, 0xff}, nil), "footer is broken"},
		"a schema of a billion":       {file(list(2, 1<<30), nil), "footer is broken"},
		"row groups, a billion":       {file(list(4, 1<<30), nil), "footer is broken"},
		"a million columns":           {file(slices.Concat(list(2, 1_000_000), bytes.Repeat(marshal(t, format.SchemaElement{Name: "v"}), 1_000_000)), nil), "more than 20000 fields"},
		"a name of two gigabytes":     {file(slices.Concat(list(2, 1), []byte{0x48}, uvarint(nil, 1<<31)), nil), "footer is broken"},
		"a footer nested without end": {file(bytes.Repeat([]byte{0x1c}, 12<<20), nil), "footer is broken"},
		"nothing but a stop":          {file([]byte{0}, nil), "ends too early"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.in, c.want) }) //nolint:paralleltest // as above
	}
}

func refused(t *testing.T, in []byte, want string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewReader(bytes.NewReader(in), int64(len(in)), 0)
	_, err := r.Header()
	for err == nil {
		_, err = r.Next()
	}
	runtime.ReadMemStats(&after)
	var invalid *rows.Invalid
	require.ErrorAs(t, err, &invalid)
	require.Contains(t, invalid.Reason, want)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(128<<20))
}

// A page of some bytes may have millions of rows, honestly: they are not held.
func TestManyEqualRowsTakeNoRoom(t *testing.T) { //nolint:paralleltest // it measures what is allocated
	pages := slices.Concat(dictionaryPage(t, 1, plain("x")), dataPage(t, 1<<20, format.RLEDictionary, append([]byte{1}, append(binary.AppendUvarint(nil, 1<<40), 0)...)))
	in := file(marshal(t, metadata(1<<20, pages)), pages)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewReader(bytes.NewReader(in), int64(len(in)), 0)
	_, err := r.Header()
	require.NoError(t, err)
	for range 1 << 20 {
		row, err := r.Next()
		require.NoError(t, err)
		if row.Fields[0] != "x" {
			require.Equal(t, "x", row.Fields[0])
		}
	}
	runtime.ReadMemStats(&after)
	_, err = r.Next()
	require.Error(t, err)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20)) // the rows' own text
}

func TestAFileThatIsCutIsRefused(t *testing.T) {
	t.Parallel()
	in := written(t, 2, []person{{ID: "1"}, {ID: "2", Phones: []string{"x"}}, {ID: "3"}})
	for n := range len(in) {
		_, _, err := readBytes(in[:n], 0)
		require.ErrorAs(t, err, new(*rows.Invalid), "cut at %d", n)
		// Listed with its size, and cut since.
		_, _, err = readAll(bytes.NewReader(in[:n]), int64(len(in)), 0)
		require.ErrorAs(t, err, new(*rows.Invalid), "cut at %d", n)
	}
}

// Lists, maps and groups in each other come out as they went in.
func TestListsOfAnyShape(t *testing.T) {
	t.Parallel()
	type inner struct {
		X *string            `parquet:"x,optional" json:"x"`
		L []int32            `parquet:"l,list" json:"l"`
		M map[string]*string `parquet:"m" json:"m"`
	}
	type outer struct {
		A []inner          `parquet:"a,list" json:"a"`
		B []*inner         `parquet:"b,list" json:"b"`
		C map[string]inner `parquet:"c" json:"c"`
		D []inner          `parquet:"d" json:"d"`
	}
	random := rand.New(rand.NewPCG(1, 2))
	str := func() string { return string(rune('a' + random.IntN(26))) }
	anInner := func() (v inner) {
		if random.IntN(2) == 0 {
			v.X = ptr(str())
		}
		v.L, v.M = []int32{}, map[string]*string{}
		for range random.IntN(3) {
			v.L = append(v.L, random.Int32())
		}
		if random.IntN(2) == 0 {
			v.M[str()] = ptr(str())
		}
		return v
	}
	var data []outer
	for range 500 {
		v := outer{A: []inner{}, B: []*inner{}, C: map[string]inner{}, D: []inner{}}
		for range random.IntN(4) {
			v.A = append(v.A, anInner())
		}
		for range random.IntN(3) {
			v.B = append(v.B, ptr(anInner()))
		}
		for range random.IntN(3) {
			v.C[str()] = anInner()
		}
		for range random.IntN(3) {
			v.D = append(v.D, anInner())
		}
		data = append(data, v)
	}
	for _, version := range []int{1, 2} {
		columns, read, err := readBytes(written(t, 123, data, parquet.DataPageVersion(version), parquet.PageBufferSize(500)), 0)
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b", "c", "d"}, columns)
		require.Len(t, read, len(data))
		for i, row := range read {
			for j, want := range []any{data[i].A, data[i].B, data[i].C, data[i].D} {
				b, err := json.Marshal(want)
				require.NoError(t, err)
				require.JSONEq(t, string(b), row.Fields[j], "row %d column %d", i, j)
			}
		}
	}
}

// Whatever the bytes: reading ends in rows or in a sentence, and what is skipped is
// what was before.
func FuzzReader(f *testing.F) {
	data := []person{{ID: "1", Phones: []string{"x", "y"}, Home: &address{City: "Rome"}}, {ID: "2", Age: ptr[int64](7), Scores: map[string]float64{"a": 1}}}
	f.Add(written(f, 1, data, parquet.Compression(&parquet.Snappy)), uint8(1))
	f.Add(written(f, 2, data, parquet.DataPageVersion(1)), uint8(0))
	pages := slices.Concat(dictionaryPage(f, 2, plain("a", "b")), dataPage(f, 4, format.RLEDictionary, []byte{1, 8, 1}))
	f.Add(file(marshal(f, metadata(4, pages)), pages), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, skip uint8) {
		const most = 2000 // a few bytes can be millions of rows
		read := func(skip int64) (all []got, whole bool) {
			r := NewReader(bytes.NewReader(in), int64(len(in)), skip)
			columns, err := r.Header()
			for err == nil && len(all) < most {
				var row rows.Row
				if row, err = r.Next(); err == nil {
					if row.Malformed == nil {
						require.Len(t, row.Fields, len(columns))
						require.True(t, json.Valid(row.Raw), "%s", row.Raw)
					}
					all = append(all, rowstest.Of(row))
				}
			}
			if err != nil && err != io.EOF {
				require.ErrorAs(t, err, new(*rows.Invalid))
				return all, false
			}
			return all, err != nil
		}
		all, whole := read(0)
		if rest, restWhole := read(int64(skip)); whole {
			require.True(t, restWhole)
			require.Equal(t, append([]got{}, all[min(int(skip), len(all)):]...), append([]got{}, rest...))
		}
	})
}

// Whatever a page holds, of whatever type: it is read as rows or refused.
func FuzzPage(f *testing.F) {
	f.Add(plain("a", "b"), plain("a"), int32(2), uint8(format.Plain), uint8(format.ByteArray), uint8(format.Required), false)
	f.Add([]byte{2, 0, 0, 0, 4, 1, 1, 4, 0}, plain("a"), int32(2), uint8(format.RLEDictionary), uint8(format.ByteArray), uint8(format.Optional), false)
	f.Add([]byte{2, 0, 0, 0, 3, 2, 2, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0}, []byte(nil), int32(2), uint8(format.Plain), uint8(format.Int32), uint8(format.Repeated), false)
	f.Add([]byte{128, 1, 4, 3, 20, 2, 0, 0, 0, 0, 1, 2, 3}, []byte(nil), int32(3), uint8(format.DeltaBinaryPacked), uint8(format.Int64), uint8(format.Required), true)
	f.Add([]byte{128, 1, 4, 1, 2, 'a'}, []byte(nil), int32(1), uint8(format.DeltaLengthByteArray), uint8(format.ByteArray), uint8(format.Required), true)
	f.Add([]byte{128, 1, 4, 1, 0, 128, 1, 4, 1, 2, 'a'}, []byte(nil), int32(1), uint8(format.DeltaByteArray), uint8(format.FixedLenByteArray), uint8(format.Required), true)
	f.Add(make([]byte, 16), []byte(nil), int32(2), uint8(format.ByteStreamSplit), uint8(format.Double), uint8(format.Required), false)
	f.Add([]byte{1, 0, 0, 0, 3, 2}, []byte(nil), int32(2), uint8(format.RLE), uint8(format.Boolean), uint8(format.Required), true)
	f.Fuzz(func(t *testing.T, body, dict []byte, n int32, encoding, physical, repetition uint8, v2 bool) {
		var pages []byte
		if len(dict) > 0 {
			pages = dictionaryPage(t, int32(len(dict)/4), dict)
		}
		data := dataPage(t, n, format.Encoding(encoding), body)
		if v2 {
			data = page(t, format.PageHeader{Type: format.DataPageV2, DataPageHeaderV2: some(format.DataPageHeaderV2{NumValues: n, Encoding: format.Encoding(encoding),
				RepetitionLevelsByteLength: int32(repetition >> 6), DefinitionLevelsByteLength: int32(repetition >> 4 & 3)})}, body)
		}
		pages = append(pages, data...)
		m := metadata(int64(n), pages)
		m.Schema[1].Type, m.Schema[1].TypeLength = some(format.Type(physical%8)), some(int32(repetition>>3))
		m.Schema[1].RepetitionType = some(format.FieldRepetitionType(repetition % 3))
		m.RowGroups[0].Columns[0].MetaData.Type = format.Type(physical % 8)
		in := file(marshal(t, m), pages)
		r := NewReader(bytes.NewReader(in), int64(len(in)), 0)
		_, err := r.Header()
		for range 5000 {
			var row rows.Row
			if err == nil {
				row, err = r.Next()
			}
			if err != nil {
				break
			}
			require.True(t, row.Malformed != nil || json.Valid(row.Raw), "%s", row.Raw)
		}
		if err != nil && err != io.EOF {
			require.ErrorAs(t, err, new(*rows.Invalid))
		}
	})
}

// What parquet-go writes is read, in every encoding.
func FuzzEncodings(f *testing.F) {
	f.Add([]byte("some text, and some more of the text"), uint8(3), uint8(0))
	f.Add(bytes.Repeat([]byte{0, 1, 0xff}, 100), uint8(8), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, size, which uint8) {
		c := []struct {
			node  parquet.Node
			value func(b []byte) parquet.Value
		}{
			{parquet.Encoded(parquet.Leaf(parquet.ByteArrayType), &parquet.Plain), parquet.ByteArrayValue},
			{parquet.Encoded(parquet.Leaf(parquet.ByteArrayType), &parquet.RLEDictionary), parquet.ByteArrayValue},
			{parquet.Encoded(parquet.Leaf(parquet.ByteArrayType), &parquet.DeltaLengthByteArray), parquet.ByteArrayValue},
			{parquet.Encoded(parquet.Leaf(parquet.ByteArrayType), &parquet.DeltaByteArray), parquet.ByteArrayValue},
			{parquet.Encoded(parquet.Int(64), &parquet.DeltaBinaryPacked), func(b []byte) parquet.Value {
				return parquet.Int64Value(integer(slices.Concat(b, make([]byte, 8))[:8]))
			}},
			{parquet.Encoded(parquet.Int(32), &parquet.DeltaBinaryPacked), func(b []byte) parquet.Value {
				return parquet.Int32Value(int32(integer(slices.Concat(b, make([]byte, 4))[:4])))
			}},
			{parquet.Encoded(parquet.Int(32), &parquet.ByteStreamSplit), func(b []byte) parquet.Value {
				return parquet.Int32Value(int32(integer(slices.Concat(b, make([]byte, 4))[:4])))
			}},
			{parquet.Encoded(parquet.Leaf(parquet.BooleanType), &parquet.RLE), func(b []byte) parquet.Value { return parquet.BooleanValue(len(b) > 0 && b[0]&1 == 1) }},
		}[which%8]
		var vs []parquet.Value
		var want []string
		for b := range slices.Chunk(in, int(size%16)+1) {
			if b[0]%5 == 0 {
				vs, want = append(vs, parquet.NullValue()), append(want, "")
				continue
			}
			v := c.value(b).Level(0, 1, 0)
			vs = append(vs, v)
			if v.Kind() == parquet.ByteArray {
				want = append(want, string(rows.AppendBytes(nil, b)))
			} else {
				want = append(want, v.String())
			}
		}
		if len(vs) == 0 {
			return
		}
		_, read, err := readBytes(wrote(t, parquet.Optional(c.node), []parquet.WriterOption{parquet.DataPageVersion(1 + int(which>>7))}, vs...), 0)
		require.NoError(t, err)
		require.Len(t, read, len(want))
		for i, row := range read {
			require.Equal(t, want[i], row.Fields[0])
		}
	})
}
