package jsonl

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows/rowstest"
)

type got = rowstest.Row

func readAll(t testing.TB, source io.Reader, columns []string, offset, line int64) []got {
	t.Helper()
	return rowstest.Text(t, NewReader(rows.NewText(source, "", offset, line), columns))
}

func TestValuesAreTextByColumn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		line    string
		columns []string
		want    []string
	}{
		"types as they are written": {`{"s":"a\nü","i":9007199254740993,"d":1.50,"e":1E3,"t":true,"f":false,"n":null}`,
			[]string{"s", "i", "d", "e", "t", "f", "n", "missing"}, []string{"a\nü", "9007199254740993", "1.50", "1E3", "true", "false", "", ""}},
		"lists and objects as JSON":   {`{"l":[1, "a b" ],"o":{"k": 1}}`, []string{"l", "o"}, []string{`[1,"a b"]`, `{"k":1}`}},
		"a key inside an object":      {`{"user":{"id":"u1","address":{"city":"Ueno"}},"id":"x"}`, []string{"user.id", "user.address.city", "user.address", "id"}, []string{"u1", "Ueno", `{"city":"Ueno"}`, "x"}},
		"a key with a dot":            {`{"user.id":"u1","user":{"a.b":2}}`, []string{"user.id", "user.a.b"}, []string{"u1", "2"}},
		"the last of two":             {`{"a":1,"a":2}`, []string{"a"}, []string{"2"}},
		"escapes in keys":             {`{"\u0061":"b"}`, []string{"a"}, []string{"b"}},
		"spaces around, carriage end": {"  {\"a\":\"b\"}\t\r", []string{"a"}, []string{"b"}},
		"a column that is not there":  {`{}`, []string{"a"}, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			read := readAll(t, strings.NewReader(c.line+"\n"), c.columns, 0, 1)
			require.Len(t, read, 1)
			require.Empty(t, read[0].Reason)
			require.Equal(t, c.want, read[0].Fields)
		})
	}
}

func TestABadLineSpoilsItself(t *testing.T) {
	t.Parallel()
	long := `{"a":"` + strings.Repeat("x", rows.MaxBytes) + `"}`
	deep := strings.Repeat(`{"a":[`, rows.MaxBytes/8) + "\n" + `{"a":"` + strings.Repeat("[", 2*maxDepth) + `"}`
	in := "\xef\xbb\xbf{\"a\":1}\n\n{\"a\":\n[1]\nnull\n{\"a\":\"\xff\"}\n" + long + "\n{\"a\":2} {\n" + deep + "\n{\"a\":2}"
	var bad []string
	var good []string
	for _, g := range readAll(t, iotest.HalfReader(strings.NewReader(in)), []string{"a"}, 0, 1) {
		if g.Reason != "" {
			bad = append(bad, g.Reason)
		} else {
			good = append(good, g.Fields[0])
		}
	}
	require.Equal(t, []string{notJSON.Reason, notObject.Reason, notObject.Reason, "invalid UTF-8", rows.TooLong.Reason, notJSON.Reason, tooDeep.Reason}, bad)
	require.Equal(t, []string{"1", strings.Repeat("[", 2*maxDepth), "2"}, good)
}

func TestWhatIsNoJSONLinesSaysWhatItIs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":              "the file is empty",
		"[{\"a\":1}]":   "one JSON array",
		"a,b\n1,2\n":    "does not begin with {",
		"\xef\xbb\xbf[": "one JSON array",
	} {
		_, err := NewReader(rows.NewText(strings.NewReader(in), "", 0, 1), nil).Header()
		var invalid *rows.Invalid
		require.ErrorAs(t, err, &invalid, in)
		require.Contains(t, invalid.Reason, want)
	}
	header, err := NewReader(rows.NewText(strings.NewReader(" \n{}"), "", 0, 1), []string{"a"}).Header()
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, header)
}

// Whatever the bytes: no row is read twice or not at all, however the bytes arrive
// and wherever reading stops and goes on; and what encoding/json can read is read in
// the same way.
func FuzzReader(f *testing.F) {
	for _, s := range []string{`{"a":1}` + "\n{}\r\n", `{"a":{"b":"c"}}`, "\xef\xbb\xbf{\"a.b\":null}\n\n[", `{"a":"😀","a":[1]}`} {
		f.Add([]byte(s), uint8(1))
	}
	columns := []string{"a", "a.b"}
	f.Fuzz(func(t *testing.T, in []byte, stop uint8) {
		read := readAll(t, bytes.NewReader(in), columns, 0, 1)
		require.Equal(t, read, readAll(t, iotest.OneByteReader(bytes.NewReader(in)), columns, 0, 1))
		if len(read) > 0 {
			i := int(stop) % len(read)
			rest := readAll(t, bytes.NewReader(in[read[i].At:]), columns, read[i].At, int64(1+bytes.Count(in[:read[i].At], []byte("\n"))))
			require.Equal(t, read[i+1:], append([]got{}, rest...))
		}
		for _, g := range read {
			var object map[string]json.RawMessage
			err := json.Unmarshal([]byte(g.Raw), &object)
			require.Equal(t, err == nil && object != nil && utf8.ValidString(g.Raw), g.Reason == "", "%q: %v", g.Raw, err)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	columns := []string{"id", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"}
	in := strings.Repeat(`{"id":"user-1","a0":"Tokyo","a1":"gold","a2":"17","a3":"Chocolate","a4":"2025-01-02","a5":"en-GB","a6":"9","a7":"yes"}`+"\n", 10000)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(rows.NewText(strings.NewReader(in), "", 0, 1), columns)
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
	}
}
