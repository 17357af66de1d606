package parquet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/format"
	"github.com/pierrec/lz4/v4"
)

const (
	maxPage       = 32 << 20 // bytes, both as it is written and decompressed
	maxPageHeader = 8 << 20  // it repeats values, as statistics
	maxPageValues = 1 << 24
	headerBytes   = 1 << 10 // of a page header, at first

	plainDictionary = format.Encoding(2) // as old files call a dictionary, and the indexes of one
)

// leaf reads the values of one column of a row group, with their levels.
type leaf struct {
	*node
	codec format.CompressionCodec
	at    int64 // of the next page
	end   int64 // of the column in the file
	left  int64 // values, null or not, in pages that have not been begun

	own  window // unless the row group has been read at once
	win  *window
	page []byte // decompressed
	dict *dictionary
	// Buffers of dict.
	dictBytes []byte
	dictEnds  []uint32

	inPage     int64 // values, null or not
	reps, defs hybrid
	vals       values

	peeked bool
	rep    int
	def    int
	begun  bool // a value of the row has been read
}

// nextPage goes to the next page with values. One that has skip values at most is
// passed instead, unread, if each row has one: then passed says how many it has.
func (r *Reader) nextPage(l *leaf, skip int64) (passed int64, err error) {
	for {
		h, body, err := r.pageHeader(l)
		if err != nil {
			return 0, err
		}
		n := int64(-1)
		switch {
		case h.Type == format.DataPage && h.DataPageHeader.Valid:
			n = int64(h.DataPageHeader.V.NumValues)
		case h.Type == format.DataPageV2 && h.DataPageHeaderV2.Valid:
			n = int64(h.DataPageHeaderV2.V.NumValues)
		case h.Type == format.DictionaryPage && h.DictionaryPageHeader.Valid:
			if err := r.readDictionary(l, h, body); err != nil {
				return 0, r.inPage(l, err)
			}
			l.at = body + int64(h.CompressedPageSize)
			continue
		case h.Type == format.IndexPage:
			l.at = body + int64(h.CompressedPageSize)
			continue
		}
		if n < 0 || n > maxPageValues || n > l.left {
			return 0, r.inPage(l, errors.New("its header says what cannot be"))
		}
		l.left -= n
		if n > 0 && n <= skip && l.node.rep == 0 {
			l.at = body + int64(h.CompressedPageSize)
			return n, nil
		}
		if err := r.readPage(l, h, body); err != nil {
			return 0, r.inPage(l, err)
		}
		l.inPage = n
		l.at = body + int64(h.CompressedPageSize)
		if n > 0 {
			return 0, nil
		}
	}
}

// inPage says in which page something is wrong, unless the source is.
func (r *Reader) inPage(l *leaf, err error) error {
	if r.isEnd(err) {
		return err
	}
	return invalid("the page of column %.50q at byte %d cannot be read: %v", l.name, l.at, err)
}

// pageHeader reads the header of the page at l.at. body is where the page begins.
func (r *Reader) pageHeader(l *leaf) (h *format.PageHeader, body int64, err error) {
	if l.left == 0 || l.at >= l.end {
		return nil, 0, invalid("column %.50q has fewer values in row group %d than that has rows", l.name, r.group)
	}
	for n := int64(headerBytes); ; n *= 8 {
		n = min(n, l.end-l.at, maxPageHeader)
		b, err := r.source.bytes(l.win, l.at, n, r.ahead, l.end)
		if err != nil {
			return nil, 0, err
		}
		c := compact{b: b, list: maxList}
		head := c.structure()
		if c.cut && n < min(l.end-l.at, maxPageHeader) {
			continue
		}
		if c.failed || len(head) > maxPageHeader {
			return nil, 0, r.inPage(l, errors.New("its header is broken"))
		}
		h = new(format.PageHeader)
		if err := decode(head, h); err != nil {
			return nil, 0, r.inPage(l, errors.New("its header is broken"))
		}
		body = l.at + int64(len(head))
		switch compressed, plain := int64(h.CompressedPageSize), int64(h.UncompressedPageSize); {
		case compressed < 0 || plain < 0:
			return nil, 0, r.inPage(l, errors.New("its header says what cannot be"))
		case compressed > maxPage || plain > maxPage:
			return nil, 0, r.inPage(l, fmt.Errorf("it is larger than %d MiB", maxPage>>20))
		case body+compressed > l.end:
			return nil, 0, r.inPage(l, errors.New("it goes over the end of its column"))
		}
		return h, body, nil
	}
}

// content returns the bytes of a page, all but the first plainBytes decompressed into
// buffer, if they are compressed; otherwise they are valid until the next page.
func (r *Reader) content(l *leaf, h *format.PageHeader, body, plainBytes int64, compressed bool, buffer *[]byte) ([]byte, error) {
	compressed = compressed && l.codec != format.Uncompressed
	read := buffer
	if compressed {
		read = &r.compressed
	}
	b, err := r.source.page(l.win, read, body, int64(h.CompressedPageSize), r.ahead, l.end)
	if err != nil {
		return nil, err
	}
	if plainBytes > int64(len(b)) || plainBytes > int64(h.UncompressedPageSize) {
		return nil, io.ErrUnexpectedEOF
	}
	if !compressed {
		return b, nil
	}
	*buffer, err = r.source.grow(*buffer, int64(h.UncompressedPageSize))
	if err != nil {
		return nil, err
	}
	copy(*buffer, b[:plainBytes])
	if int(plainBytes) == len(*buffer) {
		return *buffer, nil // all values are null
	}
	if err := r.decompress(l.codec, (*buffer)[plainBytes:], b[plainBytes:]); err != nil {
		return nil, err
	}
	return *buffer, nil
}

// decompress fills dst from src, which must be as long.
func (r *Reader) decompress(codec format.CompressionCodec, dst, src []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	var n int
	switch codec {
	case format.Snappy:
		if n, err = snappy.DecodedLen(src); err != nil || n != len(dst) {
			return errors.New("its compressed length is wrong")
		}
		_, err = snappy.Decode(dst, src)
		return err
	case format.Zstd:
		if r.zstd == nil {
			r.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPage), zstd.WithDecoderMaxWindow(maxPage), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return err
			}
		}
		b, err := r.zstd.DecodeAll(src, dst[:0:len(dst)])
		if err == nil && len(b) != len(dst) {
			err = io.ErrUnexpectedEOF
		}
		return err
	case format.Gzip:
		if r.gzip == nil {
			r.gzip = new(gzip.Reader)
		}
		if err := r.gzip.Reset(bytes.NewReader(src)); err != nil {
			return err
		}
		return fill(dst, r.gzip)
	case format.Brotli:
		return fill(dst, brotli.NewReader(bytes.NewReader(src)))
	case format.Lz4Raw:
		n, err = lz4.UncompressBlock(src, dst)
		if err == nil && n != len(dst) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return fmt.Errorf("it is compressed by %s, which cannot be read", codec)
}

// fill reads just as much as dst holds.
func fill(dst []byte, z io.Reader) error {
	if _, err := io.ReadFull(z, dst); err != nil {
		return err
	}
	if n, err := z.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return errors.New("it is longer than its header says")
	}
	return nil
}

func (r *Reader) readDictionary(l *leaf, h *format.PageHeader, body int64) error {
	n := int64(h.DictionaryPageHeader.V.NumValues)
	switch e := h.DictionaryPageHeader.V.Encoding; {
	case l.dict != nil:
		return errors.New("it is the second dictionary")
	case e != format.Plain && e != plainDictionary:
		return fmt.Errorf("its encoding is %s", e)
	case l.physical == format.Boolean:
		return errors.New("truth values have no dictionary")
	case n < 0 || n > maxPageValues:
		return errors.New("its header says what cannot be")
	}
	b, err := r.content(l, h, body, 0, true, &l.dictBytes)
	if err != nil {
		return err
	}
	if l.codec == format.Uncompressed { // b may go with the window
		if l.dictBytes, err = r.source.grow(l.dictBytes, int64(len(b))); err != nil {
			return err
		}
		copy(l.dictBytes, b)
		b = l.dictBytes
	}
	if more := (n - int64(cap(l.dictEnds))) * 4; l.size < 0 && more > 0 && n <= int64(len(b)/4) {
		if r.source.held+more > maxHeld {
			return errTooMuch
		}
		r.source.held += more
		l.dictEnds = make([]uint32, 0, n)
	}
	d, ok := newDictionary(b, int(n), l.size, l.dictEnds)
	if !ok {
		return errors.New("its values do not fill it")
	}
	l.dict = d
	return nil
}

// readPage takes a page of values apart.
func (r *Reader) readPage(l *leaf, h *format.PageHeader, body int64) error {
	l.reps, l.defs = hybrid{}, hybrid{}
	var b []byte
	var err error
	var encoding format.Encoding
	if h.Type == format.DataPage {
		v1 := h.DataPageHeader.V
		encoding = v1.Encoding
		if b, err = r.content(l, h, body, 0, true, &l.page); err != nil {
			return err
		}
		for _, level := range []struct {
			max      int
			encoding format.Encoding
			levels   *hybrid
		}{{l.node.rep, v1.RepetitionLevelEncoding, &l.reps}, {l.node.def, v1.DefinitionLevelEncoding, &l.defs}} {
			if level.max == 0 {
				continue
			}
			if level.encoding != format.RLE {
				return fmt.Errorf("its levels are encoded as %s", level.encoding)
			}
			if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
				return io.ErrUnexpectedEOF
			}
			n := int(binary.LittleEndian.Uint32(b))
			*level.levels = hybrid{b: b[4 : 4+n], width: widthOf(level.max)}
			b = b[4+n:]
		}
	} else {
		v2 := h.DataPageHeaderV2.V
		encoding = v2.Encoding
		reps, defs := int64(v2.RepetitionLevelsByteLength), int64(v2.DefinitionLevelsByteLength)
		if reps < 0 || defs < 0 {
			return errors.New("its header says what cannot be")
		}
		if b, err = r.content(l, h, body, reps+defs, !v2.IsCompressed.Valid || v2.IsCompressed.V, &l.page); err != nil {
			return err
		}
		l.reps = hybrid{b: b[:reps], width: widthOf(l.node.rep)}
		l.defs = hybrid{b: b[reps : reps+defs], width: widthOf(l.node.def)}
		b = b[reps+defs:]
	}
	return l.setValues(encoding, b)
}

// setValues reads how the values of a page are written.
func (l *leaf) setValues(encoding format.Encoding, b []byte) error {
	l.vals = values{size: l.size, b: b, last: l.vals.last[:0]}
	v := &l.vals
	if len(b) == 0 { // all are null
		return nil
	}
	ok := true
	switch encoding {
	case format.Plain:
		switch {
		case l.physical == format.Boolean:
			v.kind = plainBoolean
		case l.size < 0:
			v.kind = plainBytes
		default:
			v.kind = plainFixed
		}
	case plainDictionary, format.RLEDictionary:
		v.kind, v.dict = inDictionary, l.dict
		switch {
		case l.dict == nil:
			return errors.New("there is no dictionary")
		case b[0] > 32:
			return errors.New("its indexes have more than 32 bits")
		default:
			v.indexes = hybrid{b: b[1:], width: uint(b[0])}
		}
	case format.RLE:
		if ok = l.physical == format.Boolean && len(b) >= 4; ok {
			v.kind, v.indexes = runBoolean, hybrid{b: b[4:], width: 1}
		}
	case format.DeltaBinaryPacked:
		v.kind = deltaInts
		if ok = l.physical == format.Int32 || l.physical == format.Int64; ok {
			v.numbers, ok = newDeltas(b, maxPageValues)
		}
	case format.DeltaLengthByteArray:
		v.kind = deltaLengths
		if ok = l.physical == format.ByteArray; ok {
			if v.lengths, ok = newDeltas(b, maxPageValues); ok {
				v.b, ok = v.lengths.rest()
			}
		}
	case format.DeltaByteArray:
		v.kind = deltaStrings
		if ok = l.physical == format.ByteArray || l.physical == format.FixedLenByteArray; ok {
			if v.prefix, ok = newDeltas(b, maxPageValues); ok {
				if b, ok = v.prefix.rest(); ok {
					if v.lengths, ok = newDeltas(b, maxPageValues); ok {
						v.b, ok = v.lengths.rest()
					}
				}
			}
		}
	case format.ByteStreamSplit:
		v.kind = streamSplit
		if ok = l.size > 0 && l.size <= len(v.scratch) && l.physical != format.Boolean; ok {
			v.split = len(b) / l.size
		}
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("its values cannot be read as %s", encoding)
	}
	return nil
}
