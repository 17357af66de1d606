package export

import (
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/hikyaku/hikyaku/schemas/definition"
)

// maxGroupRows is how many rows a row group has at most; contents may end it before.
const maxGroupRows = 128 << 10

// chunkRows are handed to the columns at once.
const chunkRows = 512

// parquetFile has flat columns, optional but for those that always have a value.
type parquetFile struct {
	columns []column
	w       *parquet.GenericWriter[any]
	values  [][]parquet.Value // by column: the rows that are not handed on yet
	texts   []byte            // their texts
	waiting int               // of these rows
	rows    int64             // of the row group
	bytes   int64             // of its texts
	most    int64             // of them
}

// ordered is a group of columns in the order in which they are given; parquet.Group sorts
// them by name.
type ordered struct {
	parquet.Group
	fields []parquet.Field
}

func (o ordered) Fields() []parquet.Field { return o.fields }

func schemaOf(columns []column) *parquet.Schema {
	group := parquet.Group{}
	for _, c := range columns {
		var n parquet.Node
		switch c.kind {
		case kindString:
			n = parquet.String()
		case kindInt:
			n = parquet.Int(64)
		case kindFloat:
			n = parquet.Leaf(parquet.DoubleType)
		case kindBool:
			n = parquet.Leaf(parquet.BooleanType)
		case kindTime:
			n = parquet.Timestamp(parquet.Microsecond)
		case kindJSON:
			n = parquet.JSON()
		}
		if !c.required {
			n = parquet.Optional(n)
		}
		group[c.name] = n
	}
	root := ordered{Group: group}
	sorted := map[string]parquet.Field{}
	for _, f := range group.Fields() {
		sorted[f.Name()] = f
	}
	for _, c := range columns {
		root.fields = append(root.fields, sorted[c.name])
	}
	return parquet.NewSchema("row", root)
}

func newParquet(columns []column, compression string, w io.Writer, most int64) *parquetFile {
	options := []parquet.WriterOption{
		schemaOf(columns),
		parquet.CreatedBy("hikyaku", "1", ""),
		parquet.DataPageStatistics(false),                    // the column index has them
		parquet.MaxRowsPerRowGroup(maxGroupRows + chunkRows), // it is ended here
	}
	for _, c := range columns {
		if c.kind == kindJSON {
			options = append(options, parquet.SkipPageBounds(c.name)) // of no use to anybody
		}
	}
	switch compression {
	case definition.CompressionGzip:
		options = append(options, parquet.Compression(&parquet.Gzip))
	case definition.CompressionZstd:
		options = append(options, parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}))
	default:
		options = append(options, parquet.Compression(&parquet.Uncompressed))
	}
	return &parquetFile{columns: columns, w: parquet.NewGenericWriter[any](w, options...), values: make([][]parquet.Value, len(columns)), most: most}
}

func (f *parquetFile) Write(row []cell) error {
	for i := range row {
		f.values[i] = append(f.values[i], f.value(i, &row[i]))
	}
	if f.waiting++; f.waiting == chunkRows {
		if err := f.hand(); err != nil {
			return err
		}
	}
	if f.rows++; f.rows < maxGroupRows && f.bytes < f.most {
		return nil
	}
	return f.group()
}

func (f *parquetFile) value(i int, c *cell) parquet.Value {
	level := 1
	if f.columns[i].required {
		level = 0
	}
	if c.null {
		return parquet.NullValue().Level(0, 0, i)
	}
	var v parquet.Value
	switch f.columns[i].kind {
	case kindString, kindJSON:
		at := len(f.texts)
		f.texts = append(f.texts, c.text...)
		f.bytes += int64(len(c.text))
		v = parquet.ByteArrayValue(f.texts[at:len(f.texts):len(f.texts)])
	case kindInt, kindTime:
		v = parquet.Int64Value(c.int)
	case kindFloat:
		v = parquet.DoubleValue(c.float)
	case kindBool:
		v = parquet.BooleanValue(c.int != 0)
	}
	return v.Level(0, level, i)
}

// hand gives the columns the rows that wait.
func (f *parquetFile) hand() error {
	for i, w := range f.w.ColumnWriters() {
		if _, err := w.WriteRowValues(f.values[i]); err != nil {
			return err
		}
		f.values[i] = f.values[i][:0]
	}
	f.texts, f.waiting = f.texts[:0], 0
	return nil
}

// group ends the row group.
func (f *parquetFile) group() error {
	if err := f.hand(); err != nil {
		return err
	}
	f.rows, f.bytes = 0, 0
	return f.w.Flush()
}

func (f *parquetFile) Close() error {
	if err := f.hand(); err != nil {
		return err
	}
	return f.w.Close()
}
