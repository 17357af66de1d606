package csv

import (
	"bytes"
	stdcsv "encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows/rowstest"
)

type got = rowstest.Row

func row(line int64, fields []string, reason string, field int, raw string, at int64) got {
	return got{Line: line, Fields: fields, Reason: reason, Field: field, Raw: raw, At: at}
}

func readAll(t testing.TB, source io.Reader, offset, line int64) []got {
	t.Helper()
	return rowstest.Text(t, NewReader(rows.NewText(source, "", offset, line), ','))
}

func TestRowsWithTheirLines(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want []got
	}{
		"nothing":                {"", nil},
		"only a mark":            {"\xef\xbb\xbf", nil},
		"mark, CRLF, no end":     {"\xef\xbb\xbfa,b\r\n1,2", []got{row(1, []string{"a", "b"}, "", 0, "a,b", 8), row(2, []string{"1", "2"}, "", 0, "1,2", 11)}},
		"empty lines":            {"a\n\n\r\nb\n", []got{row(1, []string{"a"}, "", 0, "a", 2), row(4, []string{"b"}, "", 0, "b", 7)}},
		"empty fields":           {",\n", []got{row(1, []string{"", ""}, "", 0, ",", 2)}},
		"quotes":                 {"\"a,\"\"b\"\"\",\"\"\r\n", []got{row(1, []string{`a,"b"`, ""}, "", 0, `"a,""b""",""`, 14)}},
		"over lines":             {"\"a\nb\r\nc\",d\ne,f\n", []got{row(1, []string{"a\nb\r\nc", "d"}, "", 0, "\"a\nb\r\nc\",d", 11), row(4, []string{"e", "f"}, "", 0, "e,f", 15)}},
		"a quote inside":         {"6\" pan,x\n", []got{row(1, []string{`6" pan`, "x"}, "", 0, `6" pan,x`, 9)}},
		"text after a quote":     {"\"a\"b,c\nd,e\n", []got{row(1, nil, afterQuote.Reason, -1, `"a"b,c`, 7), row(2, []string{"d", "e"}, "", 0, "d,e", 11)}},
		"never closed":           {"x,\"a\nd,e\n", []got{row(1, nil, unclosed.Reason, -1, `x,"a`, 5), row(2, []string{"d", "e"}, "", 0, "d,e", 9)}},
		"a quote at the end":     {"a,\"", []got{row(1, nil, unclosed.Reason, -1, `a,"`, 3)}},
		"closed at the end":      {"a,\"b\"\r", []got{row(1, []string{"a", "b"}, "", 0, `a,"b"`, 6)}},
		"bad UTF-8, which field": {"a,b\xff,c\nd,e,f\n", []got{row(1, nil, "invalid UTF-8", 1, "a,b\xff,c", 7), row(2, []string{"d", "e", "f"}, "", 0, "d,e,f", 13)}},
		"bad UTF-8 in quotes":    {"a,\"b\xff\"\n", []got{row(1, nil, "invalid UTF-8", 1, "a,\"b\xff\"", 7)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, readAll(t, strings.NewReader(c.in), 0, 1))
			require.Equal(t, c.want, readAll(t, iotest.OneByteReader(strings.NewReader(c.in)), 0, 1), "byte by byte")
		})
	}
}

// A quote that is opened in the first gigabyte and never closed must not read
// the second into memory.
func TestMemoryStaysBoundedWhateverTheRows(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*rows.MaxBytes)
	body := strings.Repeat("1,2\n", rows.MaxBytes/2)
	in := "a,b\n" + "1,\"2\n" + body + long + ",2\n" + "\"" + long + "\n" + long[:rows.MaxBytes-3] + ",2\n" + "3,4\n" + long
	r := NewReader(rows.NewText(strings.NewReader(in), "", 0, 1), ',')
	var bad []string
	var lastLine int64
	n := 0
	for {
		row, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		n, lastLine = n+1, row.Line
		if row.Malformed != nil {
			bad = append(bad, fmt.Sprintf("%d %s", row.Line, row.Malformed.Reason))
		}
		require.LessOrEqual(t, cap(r.Data()), 2*rows.MaxBytes)
	}
	lines := int64(rows.MaxBytes / 2)
	require.Equal(t, []string{
		"2 " + unclosed.Reason,
		fmt.Sprintf("%d %s", 3+lines, rows.TooLong.Reason),
		fmt.Sprintf("%d %s", 4+lines, rows.TooLong.Reason),
		fmt.Sprintf("%d %s", 7+lines, rows.TooLong.Reason),
	}, bad)
	require.Equal(t, 7+lines, lastLine)
	require.EqualValues(t, 7+lines, n)
	require.EqualValues(t, len(in), r.Offset())
}

func TestAFailedSourceLosesNoRow(t *testing.T) {
	t.Parallel()
	in := "a,b\n\"1\n2\",3\n4,5\n"
	gone := errors.New("gone")
	for cut := range len(in) {
		r := NewReader(rows.NewText(io.MultiReader(strings.NewReader(in[:cut]), iotest.ErrReader(gone)), "", 0, 1), ',')
		var read []got
		for {
			row, err := r.Next()
			if err != nil {
				require.ErrorIs(t, err, gone)
				break
			}
			g := rowstest.Of(row)
			g.At = r.Offset()
			read = append(read, g)
		}
		rest := readAll(t, strings.NewReader(in[r.Offset():]), r.Offset(), r.Line())
		require.Equal(t, readAll(t, strings.NewReader(in), 0, 1), append(read, rest...), "cut at %d", cut)
	}
}

func TestPeekPassesNothing(t *testing.T) {
	t.Parallel()
	in := strings.Repeat("a,b\n", 64<<10)
	r := NewReader(rows.NewText(iotest.HalfReader(strings.NewReader(in)), "", 0, 1), ',')
	b, err := r.Peek()
	require.NoError(t, err)
	require.Equal(t, in[:64<<10], string(b))
	row, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, row.Fields)

	b, err = NewReader(rows.NewText(strings.NewReader("x"), "", 0, 1), ',').Peek()
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
}

// Whatever the bytes: no row is read twice or not at all, however the bytes
// arrive and wherever reading stops and goes on; and what encoding/csv can
// read is read in the same way.
func FuzzReader(f *testing.F) {
	for _, s := range []string{"a,b\n1,2\n", "\"a\"\"b\",\"c\nd\"\r\n\r\nx,y", "\"\n,\"\n\"x\"y\n", "\xef\xbb\xbf\xff,\"", "a\"b,\"\r\n\"\r\n", "\r\r\n,,\"\"\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, stop uint8) {
		rows := readAll(t, bytes.NewReader(in), 0, 1)
		require.Equal(t, rows, readAll(t, iotest.OneByteReader(bytes.NewReader(in)), 0, 1))

		// Nothing between the rows but line ends and a mark.
		from := int64(0)
		for i, row := range rows {
			require.Contains(t, string(in[from:row.At]), row.Raw)
			between := strings.TrimPrefix(strings.Replace(string(in[from:row.At]), row.Raw, "", 1), "\xef\xbb\xbf")
			require.Empty(t, strings.Trim(between, "\r\n"), "row %d", i)
			require.EqualValues(t, 1+bytes.Count(in[:row.At-int64(len(row.Raw))-trailing(in[:row.At])], []byte("\n")), row.Line)
			from = row.At
		}
		if len(rows) > 0 {
			i := int(stop) % len(rows)
			lines := int64(1 + bytes.Count(in[:rows[i].At], []byte("\n")))
			rest := readAll(t, bytes.NewReader(in[rows[i].At:]), rows[i].At, lines)
			require.Equal(t, rows[i+1:], append([]got{}, rest...))
		}

		std := stdcsv.NewReader(bytes.NewReader(bytes.TrimPrefix(in, []byte("\xef\xbb\xbf"))))
		std.FieldsPerRecord = -1
		records, err := std.ReadAll()
		if err != nil || bytes.Contains(in, []byte("\r")) { // it turns \r\n in quotes into \n
			return
		}
		for i, row := range rows {
			if row.Reason == "invalid UTF-8" {
				continue
			}
			require.Equal(t, records[i], row.Fields)
		}
		require.Len(t, rows, len(records))
	})
}

// trailing is the length of the line end.
func trailing(b []byte) int64 { return int64(len(b) - len(rows.WithoutEnd(b))) }

func BenchmarkReader(b *testing.B) {
	row := "569901,23256,CHILDRENS CUTLERY SPACEBOY ,2,2011-10-06 16:20:00,4.15,12923.0,United Kingdom\n"
	in := strings.Repeat(row, 10000)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(rows.NewText(strings.NewReader(in), "", 0, 1), ',')
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
	}
}
