// Package layers turns the bytes of an object into the text that a reader takes
// apart: decompressed, and re-encoded to UTF-8.
package layers

import (
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

// HeadBytes of a file are enough to tell its compression and its byte order mark.
const HeadBytes = 4

// Compressions that a file's first bytes tell; empty for none.
const (
	Gzip  = "gzip"
	Zstd  = "zstd"
	Bzip2 = "bzip2"
)

// Compression tells how a file is compressed from its first HeadBytes. No text
// begins like this, but for BZh, which a header may: there the fourth byte is a digit.
func Compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(head) >= 4 && bytes.HasPrefix(head, []byte("BZh")) && head[3] >= '1' && head[3] <= '9':
		return Bzip2
	}
	return ""
}

// maxWindow bounds what a zstd frame may ask for (zstd --long=26).
const maxWindow = 64 << 20

// Decompress returns the decompressed source, which ends with *rows.Invalid when the
// data are damaged or cut off, or become more than limit bytes. Errors of the source
// come through as they are. close frees what the decompressor holds, not the source.
func Decompress(compression string, source io.Reader, limit int64) (text io.Reader, close func()) {
	d := &decompressor{source: watched{r: source}, compression: compression, limit: limit}
	return d, func() {
		if z, ok := d.stream.(*zstd.Decoder); ok {
			z.Close()
		}
	}
}

type decompressor struct {
	source      watched
	compression string
	stream      io.Reader // nil until the first Read
	read, limit int64
}

// watched remembers what its source said.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// Read implements io.Reader.
func (d *decompressor) Read(p []byte) (int, error) {
	var err error
	if d.stream == nil {
		if err = d.begin(); err != nil {
			return 0, d.judge(err)
		}
	}
	n, err := d.stream.Read(p)
	d.read += int64(n)
	if d.read > d.limit {
		return 0, &rows.Invalid{Reason: fmt.Sprintf("the %s data become more than %d bytes; say source.max_decompressed_bytes in the import spec if that is meant", d.compression, d.limit)}
	}
	return n, d.judge(err)
}

func (d *decompressor) begin() (err error) {
	switch d.compression {
	case Gzip:
		var z *gzip.Reader
		if z, err = gzip.NewReader(&d.source); err == nil {
			d.stream = z
		}
	case Zstd:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(&d.source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			d.stream = z
		}
	default:
		d.stream = bzip2.NewReader(&d.source)
	}
	return err
}

// judge tells the source's errors from the decompressor's.
func (d *decompressor) judge(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case d.source.err != nil && d.source.err != io.EOF:
		return d.source.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return &rows.Invalid{Reason: fmt.Sprintf("the zstd data need a window of more than %d MiB; compress without --long", maxWindow>>20)}
	case d.source.err == io.EOF && (errors.Is(err, io.ErrUnexpectedEOF) || d.compression == Bzip2):
		return &rows.Invalid{Reason: fmt.Sprintf("the %s data are cut off after %d bytes of text", d.compression, d.read)}
	}
	return &rows.Invalid{Reason: fmt.Sprintf("the %s data are damaged after %d bytes of text: %v", d.compression, d.read, err)}
}

// UTF8 is the encoding that needs no layer.
const UTF8 = "utf-8"

// Auto takes a byte order mark's word and else means UTF-8.
const Auto = "auto"

// encodings by their names in import specs, all but utf-8.
var encodings = map[string]encoding.Encoding{
	"utf-16":       unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), // little-endian without a mark, as Windows writes it
	"shift_jis":    japanese.ShiftJIS,                                   // with the extensions of Windows-31J
	"euc-jp":       japanese.EUCJP,
	"iso-8859-1":   charmap.ISO8859_1,
	"windows-1252": charmap.Windows1252,
}

// Encoding tells a file's encoding from the word in the import spec, of which none is
// auto, and the text's first bytes.
func Encoding(word string, head []byte) string {
	switch {
	case word != "" && word != Auto:
		return word
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}), bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		return "utf-16"
	}
	return UTF8
}

// Decode re-encodes a source to UTF-8, with U+FFFD for what is not of the encoding;
// UTF-8 it returns as it is.
func Decode(name string, source io.Reader) io.Reader {
	if name == UTF8 {
		return source
	}
	return transform.NewReader(source, encodings[name].NewDecoder())
}
