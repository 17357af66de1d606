package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/linkedin/goavro/v2"
	"github.com/parquet-go/parquet-go"
)

// binaryFiles are files of the same rows as rowsOf's, in a format that has to be written whole: on disk, made when
// they are first asked for.
type binaryFiles struct {
	format string
	dir    string

	mu   sync.Mutex
	made map[int64]*io.SectionReader
}

func (b *binaryFiles) describe() string { return "rows of nine columns" }

func (b *binaryFiles) object(rows int64) (*io.SectionReader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made[rows] == nil {
		f, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("%d.%s", rows, b.format)))
		if err != nil {
			return nil, err
		}
		write := writeAvro
		if b.format == "parquet" {
			write = writeParquet
		}
		buffered := bufio.NewWriterSize(f, 1<<20)
		if err := write(buffered, rows); err != nil {
			return nil, err
		}
		if err := buffered.Flush(); err != nil {
			return nil, err
		}
		size, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		b.made[rows] = io.NewSectionReader(f, 0, size)
	}
	content := b.made[rows]
	return io.NewSectionReader(content, 0, content.Size()), nil
}

// binaryRow is a row of the benchmark.
type binaryRow struct {
	ID       string `parquet:"id"`
	City     string `parquet:"city,dict"`
	Plan     string `parquet:"plan,dict"`
	Points   int64  `parquet:"points"`
	Likes    string `parquet:"likes,dict"`
	Since    string `parquet:"since,dict"`
	Language string `parquet:"language,dict"`
	Visits   int64  `parquet:"visits"`
	News     bool   `parquet:"news"`
}

func rowOf(i int64) binaryRow {
	return binaryRow{fmt.Sprintf("user-%09d", i), cityOf(i), "gold", pointsOf(i), "Chocolate", "2025-01-02", "en-GB", 9, true}
}

func writeParquet(w io.Writer, rows int64) error {
	p := parquet.NewGenericWriter[binaryRow](w, parquet.Compression(&parquet.Snappy), parquet.MaxRowsPerRowGroup(100_000))
	for i := range rows {
		if _, err := p.Write([]binaryRow{rowOf(i)}); err != nil {
			return err
		}
	}
	return p.Close()
}

const binaryAvro = `{"type":"record","name":"row","fields":[{"name":"id","type":"string"},{"name":"city","type":"string"},{"name":"plan","type":"string"},{"name":"points","type":"long"},
{"name":"likes","type":"string"},{"name":"since","type":"string"},{"name":"language","type":"string"},{"name":"visits","type":"long"},{"name":"news","type":"boolean"}]}`

func writeAvro(w io.Writer, rows int64) error {
	a, err := goavro.NewOCFWriter(goavro.OCFConfig{W: w, Schema: binaryAvro, CompressionName: goavro.CompressionSnappyLabel})
	if err != nil {
		return err
	}
	const block = 500
	var some []any
	for i := range rows {
		r := rowOf(i)
		some = append(some, map[string]any{
			"id": r.ID, "city": r.City, "plan": r.Plan, "points": r.Points, "likes": r.Likes, "since": r.Since, "language": r.Language, "visits": r.Visits, "news": r.News,
		})
		if len(some) == block || i == rows-1 {
			if err := a.Append(some); err != nil {
				return err
			}
			some = some[:0]
		}
	}
	return nil
}
