package export

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
)

// profileRow is a profile of eight attributes as ClickHouse writes it.
func profileRow(i int) []byte {
	var b []byte
	text := func(texts ...string) {
		for _, t := range texts {
			b = append(binary.AppendUvarint(b, uint64(len(t))), t...)
		}
	}
	number := func(v uint64) { b = binary.LittleEndian.AppendUint64(b, v) }
	text(fmt.Sprintf("user-%012d", i))
	b = append(b, 4)
	text("city", fmt.Sprint("city-", i%300), "plan", "gold", "likes", "tea and cake", "language", "en")
	b = append(b, 1)
	text("points")
	number(uint64(i % 1000))
	b = append(b, 1)
	text("score")
	number(math.Float64bits(float64(i) / 7))
	b = append(b, 1)
	text("news")
	b = append(b, byte(i%2), 1)
	text("since")
	number(uint64(1500000000000000 + i*1000000))
	b = append(b, 0, 1)
	text("email", fmt.Sprintf("user-%d@example.test", i))
	b = append(b, 1)
	text("email", "subscribed")
	b = append(b, 0)
	text("en-GB")
	b = append(b, 0)
	text("Europe/London")
	return append(b, 1)
}

// What the importer does with a row between ClickHouse and S3.
func BenchmarkRows(b *testing.B) {
	for _, format := range []string{definition.FormatParquet, definition.FormatCSV, definition.FormatJSONL, definition.FormatAvro} {
		b.Run(format, func(b *testing.B) {
			e := &definition.Export{What: definition.WhatProfiles, Format: format, Compression: definition.CompressionZstd, MaxFileBytes: 256 << 20}
			columns := columnsOf(e, &binder{params: map[string]string{}})
			var rows [][]byte
			for i := range 10000 {
				rows = append(rows, profileRow(i*7919%10000))
			}
			b.ReportAllocs()
			f, err := newFile(e, columns, io.Discard)
			require.NoError(b, err)
			r := newReader(columns)
			s := newSorter(sortBytes)
			b.ResetTimer()
			for i := 0; i < b.N; i += len(rows) {
				for _, row := range rows {
					require.NoError(b, s.add(row[1:18], row))
				}
				require.NoError(b, s.each(func(row []byte) error {
					cells, err := r.row(row)
					if err != nil {
						return err
					}
					return f.Write(cells)
				}))
				s.close()
			}
			require.NoError(b, f.Close())
		})
	}
}
