package spool

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

const (
	magic       = "HKs1"
	headerBytes = 4 + 4 + 4 + 8 + 8 + 4
	// maxBodyBytes is more than a batch ever has: a request's records are one batch, and several
	// requests' up to commitBytes.
	maxBodyBytes = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what stands before a batch's body.
type header struct {
	length   int // of the body
	records  int
	number   uint64
	at       time.Time
	checksum uint32
}

// seal fills in the header of a batch whose body begins at headerBytes.
func seal(b []byte, records int, number uint64, at time.Time) {
	copy(b, magic)
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-headerBytes))
	binary.BigEndian.PutUint32(b[8:], uint32(records))
	binary.BigEndian.PutUint64(b[12:], number)
	binary.BigEndian.PutUint64(b[20:], uint64(at.UnixMicro()))
	binary.BigEndian.PutUint32(b[28:], checksum(b))
}

// checksum is that of a batch, header and body.
func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[4:28], castagnoli), castagnoli, b[headerBytes:])
}

// parseHeader reads a header, which may still be wrong: only the checksum tells.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerBytes {
		return header{}, fmt.Errorf("a header of %d bytes instead of %d", len(b), headerBytes)
	}
	if string(b[:4]) != magic {
		return header{}, errors.New("no batch begins here")
	}
	h := header{length: int(binary.BigEndian.Uint32(b[4:])), records: int(binary.BigEndian.Uint32(b[8:])), number: binary.BigEndian.Uint64(b[12:]),
		at: time.UnixMicro(int64(binary.BigEndian.Uint64(b[20:]))).UTC(), checksum: binary.BigEndian.Uint32(b[28:])}
	if h.length > maxBodyBytes {
		return header{}, fmt.Errorf("a batch of %d bytes", h.length)
	}
	return h, nil
}

// parseBatch reads the batch that b begins with.
func parseBatch(b []byte) (header, error) {
	h, err := parseHeader(b)
	if err != nil {
		return h, err
	}
	if len(b) < headerBytes+h.length {
		return h, fmt.Errorf("%d bytes of a batch of %d", len(b), headerBytes+h.length)
	}
	if got := checksum(b[:headerBytes+h.length]); got != h.checksum {
		return h, fmt.Errorf("the checksum is %08x instead of %08x", got, h.checksum)
	}
	return h, nil
}

// fingerprint names a schema in the spool.
type fingerprint [8]byte

func fingerprintOf(name, schema string) (f fingerprint) {
	h := sha256.New()
	h.Write([]byte(name))
	h.Write([]byte{'\n'})
	h.Write([]byte(schema))
	copy(f[:], h.Sum(nil))
	return f
}

// fingerprints remembers those of the schemas known here, which follow from the record's
// name alone.
var fingerprints sync.Map // name → fingerprint

func fingerprintFor(r event.Record) fingerprint {
	if f, ok := fingerprints.Load(r.SchemaName()); ok {
		return f.(fingerprint)
	}
	f := fingerprintOf(r.SchemaName(), r.Schema())
	fingerprints.Store(r.SchemaName(), f)
	return f
}

// ErrTooLarge says that Kafka would not take a record, so that it must not come to lie in a spool.
var ErrTooLarge = errors.New("record too large")

// Encode appends entries as they lie in a spool. Errors: ErrTooLarge.
func Encode(b []byte, entries []Entry) ([]byte, error) {
	for _, e := range entries {
		from := len(b)
		b = appendRecord(b, e)
		if n := len(b) - from; n > topic.MaxRecordBytes {
			return nil, fmt.Errorf("%w: %s of %d bytes for %s", ErrTooLarge, e.Record.SchemaName(), n, e.Topic)
		}
	}
	return b, nil
}

// appendRecord appends one record: topic and key, each after its length, the schema's fingerprint, and
// the Avro bytes after their length as four bytes.
func appendRecord(b []byte, e Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(e.Topic)))
	b = append(b, e.Topic...)
	b = binary.AppendUvarint(b, uint64(len(e.Key)))
	b = append(b, e.Key...)
	f := fingerprintFor(e.Record)
	b = append(b, f[:]...)
	at := len(b)
	b = e.Record.AppendAvro(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// raw is a record as it lies in a spool; it aliases the batch.
type raw struct {
	topic, key, value []byte
	schema            fingerprint
}

var errShort = errors.New("a record ends early")

// readRecord reads the record that b begins with, and returns what follows it.
func readRecord(b []byte) (r raw, rest []byte, err error) {
	text := func() (t []byte) {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			err = errShort
			return nil
		}
		t, b = b[used:used+int(n)], b[used+int(n):]
		return t
	}
	if r.topic = text(); err != nil {
		return r, nil, err
	}
	if r.key = text(); err != nil {
		return r, nil, err
	}
	if len(b) < len(r.schema)+4 {
		return r, nil, errShort
	}
	copy(r.schema[:], b)
	n := binary.BigEndian.Uint32(b[len(r.schema):])
	b = b[len(r.schema)+4:]
	if uint64(n) > uint64(len(b)) {
		return r, nil, errShort
	}
	r.value = b[:n]
	return r, b[n:], nil
}
