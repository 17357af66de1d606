package export

import (
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/audience"
)

// profileRow is a profile of eight attributes, as it is selected.
func profileRow(i int) []any {
	user := fmt.Sprintf("user-%012d", i)
	return []any{
		user, user,
		map[string]any{"city": fmt.Sprint("city-", i%300), "plan": "gold", "likes": "tea and cake", "language": "en"},
		map[string]any{"points": int64(i % 1000)}, map[string]any{"score": float64(i) / 7}, map[string]any{"news": i%2 == 0},
		map[string]any{"since": int64(1500000000000000 + i*1000000)}, map[string]any{},
		map[string]any{"email": fmt.Sprintf("user-%d@example.test", i)}, map[string]any{"email": "subscribed"}, "en-GB", "Europe/London", nil,
	}
}

// again is a block over and over.
type again struct{ block, left []byte }

func (a *again) Read(b []byte) (int, error) {
	if len(a.left) == 0 {
		a.left = a.block
	}
	n := copy(b, a.left)
	a.left = a.left[n:]
	return n, nil
}

// What the importer does with a row between ClickHouse and S3.
func BenchmarkRows(b *testing.B) {
	for _, format := range []string{definition.FormatParquet, definition.FormatCSV, definition.FormatJSONL, definition.FormatAvro} {
		b.Run(format, func(b *testing.B) {
			e := &definition.Export{What: definition.WhatProfiles, Format: format, Compression: definition.CompressionZstd, MaxFileBytes: 256 << 20}
			q, columns, err := queryOf(e, nil, audience.Moment{})
			require.NoError(b, err)
			const rows = 8192
			var profiles [][]any
			for i := range rows {
				profiles = append(profiles, profileRow(i*7919%rows))
			}
			block := native(q.types, profiles)
			b.ReportAllocs()
			f, err := newFile(e, columns, io.Discard)
			require.NoError(b, err)
			packed, r := newPacker(columns), newReader(columns)
			s := newSorter(sortBytes)
			b.ResetTimer()
			a := newAnswer(&again{block: block}, q.types)
			for i := 0; i < b.N; i += rows {
				require.NoError(b, a.next())
				for n := range a.rows {
					if err := s.add(a.columns[0].text(n), packed.row(a, n)); err != nil {
						b.Fatal(err)
					}
				}
				if i%(8*rows) != 7*rows {
					continue
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
