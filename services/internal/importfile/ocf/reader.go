// Package ocf reads rows of Avro object container files in constant memory: a
// block at a time, and of that no more than maxBlock, whatever the file says.
//
// It decodes the bytes itself, by a plan made from the file's schema. goavro, the
// judge of it in the tests, makes room for as many items as a list claims to have,
// and goes as deep as a recursive schema lets the data go.
//
// Columns are the fields of the schema's record; those of a record inside it,
// though it may be null, are columns called record.field. A choice between scalars
// has the text of the one that is there. Whatever else may be a list, map or record
// is JSON.
package ocf

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

const (
	maxBlock  = 16 << 20 // bytes of a block, both as it is written and decompressed
	maxHeader = 16 << 20
	maxSchema = 1 << 20

	bufferBytes = 256 << 10
	syncBytes   = 16
)

var (
	behindBad = &rows.Malformed{Field: -1, Reason: "a row before it in the same block cannot be read"}
	cutOff    = &rows.Invalid{Reason: "the file is cut off in the middle of a block"}
)

// Reader reads rows. It is for one goroutine.
type Reader struct {
	source  *bufio.Reader
	offset  int64 // in the file, of what source gives next
	blockAt int64 // of the block in hand
	line    int64 // of the next row
	err     error // that ended it

	sync    [syncBytes]byte
	inflate func(block []byte) ([]byte, error) // nil if blocks are not compressed
	block   []byte                             // as it is written
	plain   []byte                             // decompressed

	steps   []step
	decoder decoder
	left    int64 // rows of the block in hand
}

// NewReader returns a reader of a source that begins where the file does.
func NewReader(source io.Reader) *Reader {
	return &Reader{source: bufio.NewReaderSize(source, bufferBytes), line: 1}
}

// Offset is where in the file the block begins in which the next row is.
func (r *Reader) Offset() int64 {
	if r.left > 0 {
		return r.blockAt
	}
	return r.offset
}

// Line is the number of the next row, from 1.
func (r *Reader) Line() int64 { return r.line }

// Header reads the beginning of the file, and returns the names of the columns.
// Errors: *rows.Invalid if this is no such file, or its schema is not a record; the
// source's.
func (r *Reader) Header() ([]string, error) {
	columns, err := r.header()
	if err == io.EOF {
		err = &rows.Invalid{Reason: "the file is cut off before its first row"}
		if r.offset == 0 {
			err = &rows.Invalid{Reason: "the file is empty"}
		}
	}
	r.err = err
	return columns, err
}

// header is Header, but for io.EOF where the file ends too early.
func (r *Reader) header() ([]string, error) {
	magic := make([]byte, 4)
	if err := r.read(magic); err != nil {
		return nil, err
	}
	if string(magic) != "Obj\x01" {
		return nil, &rows.Invalid{Reason: "not an Avro object container file"}
	}
	described, codec, err := r.metadata()
	if err != nil {
		return nil, err
	}
	if err := r.read(r.sync[:]); err != nil {
		return nil, err
	}
	if err := r.setCodec(string(codec)); err != nil {
		return nil, err
	}
	if described == nil {
		return nil, &rows.Invalid{Reason: "the file has no schema"}
	}
	n, err := parseSchema(described)
	if err != nil {
		return nil, err
	}
	var p plan
	if r.steps, err = p.record(n, "", nil); err != nil {
		return nil, err
	}
	if len(p.columns) == 0 {
		return nil, &rows.Invalid{Reason: "the file's schema has no fields"}
	}
	r.decoder.Builder = rows.NewBuilder(p.columns, p.quoted)
	return p.columns, nil
}

// metadata reads the map in the header. Of its values two matter.
func (r *Reader) metadata() (described, codec []byte, err error) {
	tooLarge := &rows.Invalid{Reason: fmt.Sprintf("the file's header is larger than %d MiB, or its schema than %d MiB", maxHeader>>20, maxSchema>>20)}
	for {
		n, err := r.long()
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			return described, codec, nil
		}
		if n < 0 { // then a length in bytes follows
			if _, err := r.long(); err != nil {
				return nil, nil, err
			}
			n = -n
		}
		for ; n != 0; n-- {
			key, err := r.value(maxSchema, tooLarge)
			if err != nil {
				return nil, nil, err
			}
			limit := int64(0)
			switch string(key) {
			case "avro.schema", "avro.codec":
				limit = maxSchema
			}
			value, err := r.value(limit, tooLarge)
			if err != nil {
				return nil, nil, err
			}
			switch string(key) {
			case "avro.schema":
				described = value
			case "avro.codec":
				codec = value
			}
		}
	}
}

// value reads a value of the header with its length before it. If it may have no
// byte it is passed over.
func (r *Reader) value(limit int64, tooLarge error) ([]byte, error) {
	n, err := r.long()
	switch {
	case err != nil:
		return nil, err
	case n < 0 || r.offset+n > maxHeader || limit > 0 && n > limit:
		return nil, tooLarge
	case limit == 0:
		discarded, err := r.source.Discard(int(n))
		r.offset += int64(discarded)
		return nil, err
	}
	b := make([]byte, n)
	return b, r.read(b)
}

// setCodec chooses how blocks are decompressed. Errors: *rows.Invalid if it is in a
// way that this package does not know.
func (r *Reader) setCodec(name string) error {
	switch name {
	case "", "null":
	case "deflate":
		source := bytes.NewReader(nil)
		z := flate.NewReader(source)
		r.inflate = func(block []byte) ([]byte, error) {
			source.Reset(block)
			if err := z.(flate.Resetter).Reset(source, nil); err != nil {
				return nil, err
			}
			return r.drain(z)
		}
	case "bzip2":
		r.inflate = func(block []byte) ([]byte, error) { return r.drain(bzip2.NewReader(bytes.NewReader(block))) }
	case "zstandard":
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlock), zstd.WithDecoderMaxWindow(maxBlock))
		if err != nil {
			return fmt.Errorf("making a zstd decoder: %w", err)
		}
		r.inflate = func(block []byte) ([]byte, error) {
			b, err := z.DecodeAll(block, r.plain[:0])
			if err == zstd.ErrDecoderSizeExceeded || err == zstd.ErrWindowSizeExceeded {
				return nil, errTooLarge
			}
			return b, err
		}
	case "snappy":
		r.inflate = func(block []byte) ([]byte, error) {
			at := len(block) - crc32.Size
			if at < 0 {
				return nil, io.ErrUnexpectedEOF
			}
			switch n, err := snappy.DecodedLen(block[:at]); {
			case err != nil:
				return nil, err
			case n > maxBlock:
				return nil, errTooLarge
			}
			b, err := snappy.Decode(r.plain[:cap(r.plain)], block[:at])
			if err == nil && crc32.ChecksumIEEE(b) != binary.BigEndian.Uint32(block[at:]) {
				err = fmt.Errorf("its checksum is wrong")
			}
			return b, err
		}
	default:
		return &rows.Invalid{Reason: fmt.Sprintf("the file's blocks are compressed by %.50q; null, deflate, snappy, zstandard and bzip2 can be read", name)}
	}
	return nil
}

var errTooLarge = fmt.Errorf("too large")

// drain reads all of z into the buffer of decompressed blocks.
func (r *Reader) drain(z io.Reader) ([]byte, error) {
	b := r.plain[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, max(len(b), bufferBytes))...)[:len(b)]
		}
		n, err := z.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxBlock:
			return nil, errTooLarge
		case err == io.EOF:
			return b, nil
		case err != nil:
			return nil, err
		}
	}
}

// Next returns the next row. Bytes that are not what the schema says spoil the rest
// of their block: each of its rows is malformed.
func (r *Reader) Next() (rows.Row, error) {
	for r.err == nil && r.left == 0 {
		r.err = r.nextBlock()
	}
	if r.err != nil {
		return rows.Row{}, r.err
	}
	line := r.line
	r.line++
	r.left--
	d := &r.decoder
	if d.failed != "" {
		return rows.Row{Line: line, Malformed: behindBad}, nil
	}
	d.row(r.steps)
	if d.failed != "" {
		return rows.Row{Line: line, Malformed: &rows.Malformed{Field: -1, Reason: d.failed}}, nil
	}
	if r.left == 0 && len(d.b) > 0 {
		r.err = &rows.Invalid{Reason: fmt.Sprintf("the block at byte %d has more bytes than its rows", r.blockAt)}
	}
	return d.Row(line), nil
}

// nextBlock reads a block. Errors: io.EOF if there is none; *rows.Invalid; the
// source's.
func (r *Reader) nextBlock() error {
	r.blockAt = r.offset
	count, err := r.long()
	if err == io.EOF && r.offset == r.blockAt {
		return io.EOF
	}
	var size int64
	if err == nil {
		size, err = r.long()
	}
	if err == io.EOF {
		err = cutOff
	}
	if err != nil {
		return err
	}
	invalid := func(reason string) error {
		return &rows.Invalid{Reason: fmt.Sprintf("the block at byte %d %s", r.blockAt, reason)}
	}
	tooLarge := func() error { return invalid(fmt.Sprintf("is larger than %d MiB", maxBlock>>20)) }
	if size > maxBlock {
		return tooLarge()
	}
	if size < 0 || count < 0 {
		return invalid("has a size or count below 0")
	}
	if int64(cap(r.block)) < size {
		r.block = make([]byte, size)
	}
	block := r.block[:size]
	var sync [syncBytes]byte
	if err = r.read(block); err == nil {
		err = r.read(sync[:])
	}
	switch {
	case err == io.EOF:
		return cutOff
	case err != nil:
		return err
	case sync != r.sync:
		return invalid("does not end with the file's sync marker")
	}
	if r.inflate != nil {
		plain, err := r.inflate(block)
		if err == errTooLarge {
			return tooLarge()
		}
		if err != nil {
			return invalid("cannot be decompressed: " + err.Error())
		}
		r.plain, block = plain, plain
	}
	// So that no file of a few bytes has endless rows of nothing.
	if count > int64(len(block)) {
		return invalid(fmt.Sprintf("has %d bytes and says it has %d rows", len(block), count))
	}
	if count == 0 && len(block) > 0 {
		return invalid("has more bytes than its rows")
	}
	r.left = count
	r.decoder.b, r.decoder.failed = block, ""
	return nil
}

// read fills b. Errors: io.EOF if the source ends before; the source's.
func (r *Reader) read(b []byte) error {
	for len(b) > 0 {
		n, err := r.source.Read(b)
		r.offset += int64(n)
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

// long reads a number. Errors: as read; *rows.Invalid if it has more than 64 bits.
func (r *Reader) long() (int64, error) {
	var u uint64
	for shift := 0; shift < 64; shift += 7 {
		c, err := r.source.ReadByte()
		if err != nil {
			return 0, err
		}
		r.offset++
		u |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return int64(u>>1) ^ -int64(u&1), nil
		}
	}
	return 0, &rows.Invalid{Reason: fmt.Sprintf("there is no number at byte %d", r.offset)}
}
