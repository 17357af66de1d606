package importer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/importer/internal/csv"
	"github.com/hikyaku/hikyaku/services/importer/internal/jsonl"
	"github.com/hikyaku/hikyaku/services/importer/internal/layers"
	"github.com/hikyaku/hikyaku/services/importer/internal/mapping"
	"github.com/hikyaku/hikyaku/services/importer/internal/rows"
)

// reading is an object as the rows in it.
type reading struct {
	rows.Reader
	source *objectReader
	plain  bool // the bytes of the object are the text that is read
	free   func()
}

// Without a limit in the spec, compressed text may become so many times the size of
// the object, or freeBytes if that is more.
const (
	maxExpansion = 200
	freeBytes    = 1 << 20
)

// openFile opens the object at the row after the last one that is committed, and at
// the beginning fills in the header. Errors: *rows.Invalid, and objectReader's.
func (i *importing) openFile(ctx context.Context, at *event.Import) (*reading, error) {
	f := &reading{source: i.open(ctx, objectOf(at), 0), free: func() {}}
	if err := i.openAt(f, at); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (i *importing) openAt(f *reading, at *event.Import) error {
	source := &i.spec.Source
	head := make([]byte, layers.HeadBytes)
	n, err := io.ReadFull(f.source, head)
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	head = head[:n]
	text := io.MultiReader(bytes.NewReader(head), f.source)
	compression := layers.Compression(head)
	if compression != "" {
		limit := source.MaxDecompressedBytes
		if limit == 0 {
			limit = max(maxExpansion*at.SizeBytes, freeBytes)
		}
		text, f.free = layers.Decompress(compression, text, limit)
		buffered := bufio.NewReader(text)
		if head, err = buffered.Peek(layers.HeadBytes); err != nil && err != io.EOF {
			return err
		}
		text = buffered
	}
	encoding := layers.Encoding(source.EncodingOrAuto(), head)
	f.plain = compression == "" && encoding == layers.UTF8 && at.Header != nil
	lines := func() *rows.Text {
		if f.plain {
			f.source.Close()
			f.source = i.open(f.source.ctx, f.source.object, at.OffsetBytes)
			return rows.NewText(f.source, "", at.OffsetBytes, at.Line)
		}
		if encoding == layers.UTF8 {
			return rows.NewText(text, "", 0, 1)
		}
		return rows.NewText(layers.Decode(encoding, text), encoding, 0, 1)
	}
	switch source.Format {
	case definition.FormatCSV, definition.FormatTSV:
		f.Reader = csv.NewReader(lines(), source.Delimiter[0])
	case definition.FormatJSONL:
		columns, err := mapping.Columns(i.liquid, i.spec)
		if err != nil {
			return &rows.Invalid{Reason: err.Error()}
		}
		f.Reader = jsonl.NewReader(lines(), columns)
	default:
		return &rows.Invalid{Reason: fmt.Sprintf("files of format %s cannot be read by this version", source.Format)}
	}
	if f.plain {
		return nil
	}
	f.plain = compression == "" && encoding == layers.UTF8
	header, err := f.Header()
	if err != nil {
		return err
	}
	if at.Header == nil {
		at.Header = header
		at.OffsetBytes, at.Line = f.position()
		return nil
	}
	return f.skip(at.Rows)
}

// skip passes rows that are committed already.
func (f *reading) skip(n int64) error {
	for k := range n {
		if k%1024 == 0 && f.source.ctx.Err() != nil {
			return f.source.ctx.Err()
		}
		if _, err := f.Next(); err != nil {
			if err == io.EOF {
				err = &rows.Invalid{Reason: fmt.Sprintf("the file has %d rows now and had %d before", k, n)}
			}
			return err
		}
	}
	return nil
}

// position is how far the object is read, for people and for going on: the byte at
// which the next row begins where the text is plain, else what was read to make it.
func (f *reading) position() (offset, line int64) {
	if f.plain {
		return f.Offset(), f.Line()
	}
	return f.source.at, f.Line()
}

// end is io.EOF, or why the end that the reader has found is none.
func (f *reading) end() error { return io.EOF }

func (f *reading) close() {
	f.free()
	f.source.Close()
}
