package export

import (
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/hikyaku/hikyaku/schemas/definition"
)

// file writes rows in one format. What it writes is a function of the rows: no clock, no
// chance, no name is in it.
type file interface {
	Write(row []cell) error
	Close() error // writes the end of the file
}

// contents is the most of a row group, before it is compressed, in bytes.
const contents = 4 << 20

// newFile begins a file of the export.
func newFile(e *definition.Export, columns []column, w io.Writer) (file, error) {
	switch e.Format {
	case definition.FormatAvro:
		return newAvro(columns, e.Compression, w)
	case definition.FormatParquet:
		return newParquet(columns, e.Compression, w, min(contents, e.MaxFileBytes)), nil
	}
	// A compressor of its own goes around text.
	var compressor io.WriteCloser
	switch e.Compression {
	case definition.CompressionGzip:
		compressor = gzip.NewWriter(w)
	case definition.CompressionZstd:
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("beginning a file: %w", err)
		}
		compressor = z
	default:
		compressor = plain{w}
	}
	if e.Format == definition.FormatCSV {
		return newCSV(columns, compressor)
	}
	return newJSONL(columns, compressor), nil
}

// extension is how the names of the export's files end.
func extension(e *definition.Export) string {
	name := "." + e.Format
	if e.Format == definition.FormatCSV || e.Format == definition.FormatJSONL {
		name += map[string]string{definition.CompressionGzip: ".gz", definition.CompressionZstd: ".zst"}[e.Compression]
	}
	return name
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// csvFile is RFC 4180 with a header. A text that a spreadsheet would take for a formula gets
// a ' before it.
type csvFile struct {
	columns []column
	w       *csv.Writer
	below   io.WriteCloser
	fields  []string
	scratch []byte
}

func newCSV(columns []column, w io.WriteCloser) (*csvFile, error) {
	f := &csvFile{columns: columns, w: csv.NewWriter(w), below: w, fields: make([]string, len(columns))}
	for i, c := range columns {
		f.fields[i] = neutral([]byte(c.name))
	}
	return f, f.w.Write(f.fields)
}

// neutral is a text that no spreadsheet computes.
func neutral(text []byte) string {
	if len(text) > 0 {
		switch text[0] {
		case '=', '+', '-', '@', '\t', '\r':
			return "'" + string(text)
		}
	}
	return string(text)
}

func (f *csvFile) Write(row []cell) error {
	for i := range row {
		c := &row[i]
		switch k := f.columns[i].kind; {
		case c.null:
			f.fields[i] = ""
		case k == kindString:
			f.fields[i] = neutral(c.text)
		case k == kindFloat:
			f.fields[i] = strconv.FormatFloat(c.float, 'g', -1, 64)
		case k == kindTime:
			f.fields[i] = c.instant().Format(time.RFC3339Nano)
		case k == kindJSON:
			f.fields[i] = string(c.text)
		default:
			f.scratch = appendJSON(f.scratch[:0], k, c)
			f.fields[i] = string(f.scratch)
		}
	}
	return f.w.Write(f.fields)
}

func (f *csvFile) Close() error {
	f.w.Flush()
	if err := f.w.Error(); err != nil {
		return err
	}
	return f.below.Close()
}

// jsonlFile has an object on each line. What has no value is not in it.
type jsonlFile struct {
	columns []column
	names   [][]byte // as JSON, with the colon
	below   io.WriteCloser
	b       []byte
}

// piece is about how much text is handed on at once, in bytes.
const piece = 64 << 10

func newJSONL(columns []column, w io.WriteCloser) *jsonlFile {
	f := &jsonlFile{columns: columns, below: w}
	for _, c := range columns {
		f.names = append(f.names, append(appendJSONString(nil, []byte(c.name)), ':'))
	}
	return f
}

func (f *jsonlFile) Write(row []cell) error {
	f.b = append(f.b, '{')
	first := true
	for i := range row {
		if row[i].null {
			continue
		}
		if !first {
			f.b = append(f.b, ',')
		}
		first = false
		f.b = append(f.b, f.names[i]...)
		f.b = appendJSON(f.b, f.columns[i].kind, &row[i])
	}
	f.b = append(f.b, '}', '\n')
	if len(f.b) < piece {
		return nil
	}
	return f.flush()
}

func (f *jsonlFile) flush() error {
	_, err := f.below.Write(f.b)
	f.b = f.b[:0]
	return err
}

func (f *jsonlFile) Close() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.below.Close()
}

// avroFile is an object container file. Goavro writes them too, but with a marker made by
// chance, and a map for each row.
type avroFile struct {
	columns []column
	w       io.Writer
	sync    [16]byte
	rows    int64
	b       []byte // the block's rows
	out     []byte // the block as it is written
	deflate *flate.Writer
	zstd    *zstd.Encoder
}

// appender makes a Writer of a slice.
type appender struct{ b *[]byte }

func (a appender) Write(p []byte) (int, error) {
	*a.b = append(*a.b, p...)
	return len(p), nil
}

func newAvro(columns []column, compression string, w io.Writer) (*avroFile, error) {
	f := &avroFile{columns: columns, w: w}
	codec := "null"
	var err error
	switch compression {
	case definition.CompressionGzip:
		codec = "deflate"
		f.deflate, err = flate.NewWriter(io.Discard, flate.DefaultCompression)
	case definition.CompressionZstd:
		codec = "zstandard"
		f.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	}
	if err != nil {
		return nil, fmt.Errorf("beginning an Avro file: %w", err)
	}
	schema, err := avroSchema(columns)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(codec + " " + string(schema)))
	copy(f.sync[:], sum[:])
	head := append([]byte("Obj\x01"), 4) // a map of two entries
	for _, text := range []string{"avro.codec", codec, "avro.schema", string(schema)} {
		head = append(binary.AppendVarint(head, int64(len(text))), text...)
	}
	head = append(append(head, 0), f.sync[:]...)
	_, err = w.Write(head)
	return f, err
}

// avroSchema is a record of nullable fields.
func avroSchema(columns []column) ([]byte, error) {
	type field struct {
		Name    string `json:"name"`
		Type    any    `json:"type"`
		Default any    `json:"default,omitempty"`
	}
	fields := make([]any, len(columns))
	for i, c := range columns {
		var t any = map[kind]string{kindString: "string", kindInt: "long", kindFloat: "double", kindBool: "boolean", kindJSON: "string"}[c.kind]
		if c.kind == kindTime {
			t = map[string]string{"type": "long", "logicalType": "timestamp-micros"}
		}
		if c.required {
			fields[i] = field{c.name, t, nil}
			continue
		}
		fields[i] = map[string]any{"name": c.name, "type": []any{"null", t}, "default": nil}
	}
	schema, err := json.Marshal(map[string]any{"type": "record", "name": "Row", "fields": fields})
	if err != nil {
		return nil, fmt.Errorf("writing the schema of an Avro file: %w", err)
	}
	return schema, nil
}

func (f *avroFile) Write(row []cell) error {
	for i := range row {
		c, col := &row[i], &f.columns[i]
		if !col.required {
			if c.null {
				f.b = append(f.b, 0)
				continue
			}
			f.b = append(f.b, 2)
		}
		switch col.kind {
		case kindString, kindJSON:
			f.b = append(binary.AppendVarint(f.b, int64(len(c.text))), c.text...)
		case kindInt, kindTime:
			f.b = binary.AppendVarint(f.b, c.int)
		case kindFloat:
			f.b = binary.LittleEndian.AppendUint64(f.b, math.Float64bits(c.float))
		case kindBool:
			f.b = append(f.b, byte(c.int))
		}
	}
	f.rows++
	if len(f.b) < piece {
		return nil
	}
	return f.block()
}

// block writes the rows in hand.
func (f *avroFile) block() error {
	if f.rows == 0 {
		return nil
	}
	data := f.b
	switch {
	case f.deflate != nil:
		f.out = f.out[:0]
		f.deflate.Reset(appender{&f.out})
		if _, err := f.deflate.Write(f.b); err != nil {
			return err
		}
		if err := f.deflate.Close(); err != nil {
			return err
		}
		data = f.out
	case f.zstd != nil:
		f.out = f.zstd.EncodeAll(f.b, f.out[:0])
		data = f.out
	}
	head := binary.AppendVarint(binary.AppendVarint(nil, f.rows), int64(len(data)))
	f.rows, f.b = 0, f.b[:0]
	for _, part := range [][]byte{head, data, f.sync[:]} {
		if _, err := f.w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func (f *avroFile) Close() error { return f.block() }
