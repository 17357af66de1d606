// Package rowstest reads whole files for the tests of readers.
package rowstest

import (
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

// Row is a row that stays valid.
type Row struct {
	Line   int64
	Fields []string
	Reason string // why it is malformed; empty if it is not
	Field  int    // that is malformed
	Raw    string
	At     int64 // offset after the row, of Text
}

// Of keeps a row.
func Of(row rows.Row) Row {
	kept := Row{Line: row.Line, Fields: slices.Clone(row.Fields), Raw: string(row.Raw)}
	if row.Malformed != nil {
		kept.Reason, kept.Field = row.Malformed.Reason, row.Malformed.Field
	}
	return kept
}

// Read returns all rows from where a reader is, and what ended them if it was not the
// end.
func Read(r rows.Reader) (read []Row, err error) {
	for {
		row, err := r.Next()
		if err == io.EOF {
			return read, nil
		}
		if err != nil {
			return read, err
		}
		read = append(read, Of(row))
	}
}

// Text returns all rows from where a reader of text is, with their offsets, and takes
// no error.
func Text(t testing.TB, r rows.Reader) (read []Row) {
	t.Helper()
	for {
		row, err := r.Next()
		if err == io.EOF {
			return read
		}
		require.NoError(t, err)
		kept := Of(row)
		kept.At = r.Offset()
		read = append(read, kept)
	}
}
