// Package importfile reads the rows of a file as an import spec says: decompressed,
// re-encoded, taken apart by the reader of its format. Importer and console stand on
// it, so that a plan says what the import will do. Which layers there are follows
// from the spec and the file's first bytes (docs/decisions/20261122-file-formats.md).
package importfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/importfile/csv"
	"github.com/hikyaku/hikyaku/services/internal/importfile/jsonl"
	"github.com/hikyaku/hikyaku/services/internal/importfile/layers"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/ocf"
	"github.com/hikyaku/hikyaku/services/internal/importfile/parquet"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

// Source is one version of a file.
type Source interface {
	io.Reader // from At on
	io.ReaderAt
	// Go moves At.
	Go(to int64)
	// At is the byte that Read reads next. With ReadAt it is how much was read.
	At() int64
	Size() int64
}

// Position is behind a row of a file; the zero one is at its beginning.
type Position struct {
	Offset int64    // the byte at which the next row begins where the bytes of the file are the text that is read, else how much of them was read
	Line   int64    // of the next row, from 1
	Rows   int64    // before it
	Header []string // nil at the beginning
}

// File is a file as the rows in it.
type File struct {
	rows.Reader
	header []string
	source Source
	plain  bool // where the reader is, is where the file is read: no layer lies between
	free   func()
}

// Without a limit in the spec, compressed text may become so many times the size of
// the file, or freeBytes if that is more.
const (
	maxExpansion = 200
	freeBytes    = 1 << 20
)

// Open opens a file at a position. The caller closes the file, and its source. Errors: *rows.Invalid
// when this is no file as the spec says; the source's.
func Open(engine *liquid.Engine, spec *definition.ImportSpec, source Source, at Position) (*File, error) {
	f := &File{source: source, header: at.Header, free: func() {}}
	if err := f.open(engine, spec, at); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *File) open(engine *liquid.Engine, spec *definition.ImportSpec, at Position) (err error) {
	if spec.Source.Format == definition.FormatParquet { // begins at its end, and skips by itself
		f.Reader = parquet.NewReader(f.source, f.source.Size(), at.Rows)
		f.plain = true
		f.header, err = f.Reader.Header()
		return err
	}
	head := make([]byte, layers.HeadBytes)
	n, err := io.ReadFull(f.source, head)
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	head = head[:n]
	text := io.MultiReader(bytes.NewReader(head), f.source)
	compression := layers.Compression(head)
	if compression != "" {
		limit := spec.Source.MaxDecompressedBytes
		if limit == 0 {
			limit = max(maxExpansion*f.source.Size(), freeBytes)
		}
		text, f.free = layers.Decompress(compression, text, limit)
		buffered := bufio.NewReader(text)
		if head, err = buffered.Peek(layers.HeadBytes); err != nil && err != io.EOF {
			return err
		}
		text = buffered
	}
	encoding := layers.Encoding(spec.Source.Encoding, head)
	f.plain = compression == "" && encoding == layers.UTF8
	resume := f.plain && at.Header != nil
	lines := func() *rows.Text {
		switch {
		case resume:
			f.source.Go(at.Offset)
			return rows.NewText(f.source, "", at.Offset, at.Line)
		case encoding == layers.UTF8:
			return rows.NewText(text, "", 0, 1)
		}
		return rows.NewText(layers.Decode(encoding, text), encoding, 0, 1)
	}
	format := spec.Source.Format
	if format == pinpoint.Format {
		format = pinpoint.FormatOf(head)
	}
	switch format {
	case definition.FormatCSV, definition.FormatTSV:
		f.Reader = csv.NewReader(lines(), spec.Source.Delimiter[0])
	case definition.FormatJSONL:
		columns, err := columns(engine, spec)
		if err != nil {
			return &rows.Invalid{Reason: err.Error()}
		}
		f.Reader = jsonl.NewReader(lines(), columns)
	default:
		f.plain, resume = false, false
		f.Reader = ocf.NewReader(text)
	}
	if resume {
		return nil
	}
	if f.header, err = f.Reader.Header(); err != nil {
		return err
	}
	return f.skip(at.Rows)
}

// columns are those of JSON Lines.
func columns(engine *liquid.Engine, spec *definition.ImportSpec) ([]string, error) {
	if spec.Source.Format == pinpoint.Format {
		return []string{pinpoint.Object}, nil
	}
	return mapping.Columns(engine, spec)
}

// skip passes rows that were handled before.
func (f *File) skip(n int64) error {
	for k := range n {
		if _, err := f.Next(); err != nil {
			if err == io.EOF {
				err = &rows.Invalid{Reason: fmt.Sprintf("the file has %d rows, and had %d before", k, n)}
			}
			return err
		}
	}
	return nil
}

// Header names the columns.
func (f *File) Header() []string { return f.header }

// Position is behind the last row; its Rows are the caller's to count.
func (f *File) Position() Position {
	p := Position{Offset: f.source.At(), Line: f.Line(), Header: f.header}
	if f.plain {
		p.Offset = f.Offset()
	}
	return p
}

// Close frees what the layers hold. The source stays open.
func (f *File) Close() { f.free() }
