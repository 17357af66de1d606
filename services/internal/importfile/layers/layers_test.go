package layers

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/unicode"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

func gzipped(t testing.TB, s string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, s)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

func zstded(t testing.TB, s string) []byte {
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return z.EncodeAll([]byte(s), nil)
}

// bzipped is "a,b\n1,2\n" as bzip2 writes it, since Go cannot.
var bzipped = []byte("\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\xbf\x87\x40\x7f\x00\x00\x03\x59\x00\x00\x10\x00\x04\x30\x00\x30\x00\x20\x00\x30\xc0\x08\x69\xb2\x88\x23\x27\x8b\xb9\x22\x9c\x28\x48\x5f\xc3\xa0\x3f\x80")

func read(compression string, source io.Reader, limit int64) (string, error) {
	r, done := Decompress(compression, source, limit)
	defer done()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestCompressionIsToldByContentAndUndone(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("a,b\n1,2\n", 1000)
	for name, c := range map[string]struct {
		want string
		data []byte
	}{
		"gzip": {Gzip, gzipped(t, text)}, "two members": {Gzip, append(gzipped(t, text[:4000]), gzipped(t, text[4000:])...)},
		"zstd": {Zstd, zstded(t, text)}, "two frames": {Zstd, append(zstded(t, text[:4000]), zstded(t, text[4000:])...)},
	} {
		require.Equal(t, c.want, Compression(c.data[:HeadBytes]), name)
		got, err := read(c.want, iotest.OneByteReader(bytes.NewReader(c.data)), 1<<20)
		require.NoError(t, err, name)
		require.Equal(t, text, got, name)
	}
	for _, plain := range []string{"", "a", "id,e-mail", "BZhname,x", "\xff\xfea\x00", "{}", "PK\x03\x04"} {
		require.Empty(t, Compression([]byte(plain)[:min(len(plain), HeadBytes)]), plain)
	}
}

func TestBzip2(t *testing.T) {
	t.Parallel()
	require.Equal(t, Bzip2, Compression(bzipped[:HeadBytes]))
	got, err := read(Bzip2, bytes.NewReader(append(bytes.Clone(bzipped), bzipped...)), 1<<20)
	require.NoError(t, err)
	require.Equal(t, "a,b\n1,2\na,b\n1,2\n", got)
	requireInvalid(t, "cut off", Bzip2, bytes.NewReader(bzipped[:len(bzipped)/2]), 1<<20)
	requireInvalid(t, "damaged", Bzip2, bytes.NewReader(append([]byte("BZh91AY&SX"), bzipped[10:]...)), 1<<20)
}

func requireInvalid(t *testing.T, want, compression string, source io.Reader, limit int64) {
	t.Helper()
	_, err := read(compression, source, limit)
	var invalid *rows.Invalid
	require.ErrorAs(t, err, &invalid)
	require.Contains(t, invalid.Reason, want)
}

func TestDamagedDataAreSaidToBe(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range 20_000 {
		text.WriteString(strings.Repeat("x", i%17) + "\n")
	}
	for compression, data := range map[string][]byte{Gzip: gzipped(t, text.String()), Zstd: zstded(t, text.String())} {
		requireInvalid(t, "cut off after", compression, bytes.NewReader(data[:len(data)/2]), 1<<20)
		requireInvalid(t, "cut off after", compression, bytes.NewReader(data[:len(data)-1]), 1<<20)
		broken := bytes.Clone(data)
		for i := len(data) / 2; i < len(data)/2+20; i++ {
			broken[i] ^= 0xff
		}
		requireInvalid(t, " after ", compression, bytes.NewReader(broken), 1<<20) // it may look as if it went on
		requireInvalid(t, "damaged after", compression, bytes.NewReader(append(bytes.Clone(data), "and more text that is none"...)), 1<<20)
	}
}

// What a source says is the source's: an import that waits must not fail for it.
func TestErrorsOfTheSourceComeThrough(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	text := strings.Repeat("some text, ", 10_000)
	for compression, data := range map[string][]byte{Gzip: gzipped(t, text), Zstd: zstded(t, text)} {
		for cut := range len(data) {
			_, err := read(compression, io.MultiReader(bytes.NewReader(data[:cut]), iotest.ErrReader(away)), 1<<20)
			require.ErrorIs(t, err, away, "%s cut at %d", compression, cut)
		}
	}
}

func TestABombIsStopped(t *testing.T) {
	t.Parallel()
	bomb := strings.Repeat("\x00", 16<<20)
	for compression, data := range map[string][]byte{Gzip: gzipped(t, bomb), Zstd: zstded(t, bomb)} {
		requireInvalid(t, "max_decompressed_bytes", compression, bytes.NewReader(data), 200*int64(len(data)))
	}
	// Frames of one raw block, that ask for a window of 64 and of 128 MiB.
	text, err := read(Zstd, strings.NewReader("\x28\xb5\x2f\xfd\x00\x80\x19\x00\x00abc"), 1<<30)
	require.NoError(t, err)
	require.Equal(t, "abc", text)
	requireInvalid(t, "window", Zstd, strings.NewReader("\x28\xb5\x2f\xfd\x00\x88\x19\x00\x00abc"), 1<<30)
}

func TestEncodingsBecomeUTF8(t *testing.T) {
	t.Parallel()
	const text = "名前,ﾃｽﾄ\n髙島 ①,é\n"
	for name, e := range map[string]encoding.Encoding{
		"shift_jis": japanese.ShiftJIS, "euc-jp": japanese.EUCJP,
		"utf-16": unicode.UTF16(unicode.BigEndian, unicode.UseBOM),
	} {
		in := text
		if name != "utf-16" {
			in = strings.ReplaceAll(in, "é", "e")
		}
		data, err := e.NewEncoder().String(in)
		require.NoError(t, err, name)
		got, err := io.ReadAll(Decode(name, iotest.OneByteReader(strings.NewReader(data))))
		require.NoError(t, err)
		require.Equal(t, in, string(got), name)
		if name == "utf-16" {
			require.Equal(t, "utf-16", Encoding(Auto, []byte(data)))
		} else {
			require.Equal(t, UTF8, Encoding(Auto, []byte(data)), "nothing is guessed")
		}
	}
	for name, e := range map[string]*charmap.Charmap{"iso-8859-1": charmap.ISO8859_1, "windows-1252": charmap.Windows1252} {
		data, err := e.NewEncoder().String("Müller;é")
		require.NoError(t, err)
		got, err := io.ReadAll(Decode(name, strings.NewReader(data)))
		require.NoError(t, err)
		require.Equal(t, "Müller;é", string(got))
	}
	bad, err := io.ReadAll(Decode("shift_jis", strings.NewReader("a\x81\n")))
	require.NoError(t, err)
	require.Contains(t, string(bad), "\uFFFD", "rows can be told that cannot be read")
	require.Equal(t, "utf-16", Encoding("utf-16", []byte("a\x00")))
}

func TestEveryEncodingThatASpecMayNameIsKnown(t *testing.T) {
	t.Parallel()
	known := append(slices.Collect(maps.Keys(encodings)), Auto, UTF8)
	require.ElementsMatch(t, definition.Encodings(), known)
	require.Equal(t, UTF8, Encoding("", []byte("a,b\n")))
	require.Equal(t, "utf-16", Encoding("", []byte("\xff\xfea\x00")))
}

// Whatever the bytes: an end, no panic, and no more text than the limit.
func FuzzDecompress(f *testing.F) {
	f.Add(gzipped(f, "a,b\n"))
	f.Add(zstded(f, "a,b\n"))
	f.Add(bzipped)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Compression(data[:min(len(data), HeadBytes)])
		if c == "" {
			return
		}
		text, err := read(c, bytes.NewReader(data), 1<<16)
		require.LessOrEqual(t, len(text), 1<<16)
		var invalid *rows.Invalid
		if err != nil {
			require.ErrorAs(t, err, &invalid)
		}
	})
}
