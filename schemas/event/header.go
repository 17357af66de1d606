package event

import (
	"encoding/binary"
	"fmt"
)

// HeaderBytes is the length of the Confluent wire format's header.
const HeaderBytes = 5

// AppendHeader appends the Confluent wire format's header: a zero byte and the
// id under which the registry knows the writer's schema.
func AppendHeader(b []byte, schemaID int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0), uint32(schemaID))
}

// SplitHeader splits a record's value into the id of the writer's schema and
// its Avro bytes, which alias b.
func SplitHeader(b []byte) (schemaID int, payload []byte, err error) {
	if len(b) < HeaderBytes {
		return 0, nil, fmt.Errorf("splitting header: %d bytes, want at least %d", len(b), HeaderBytes)
	}
	if b[0] != 0 {
		return 0, nil, fmt.Errorf("splitting header: magic byte %d, want 0", b[0])
	}
	return int(binary.BigEndian.Uint32(b[1:])), b[HeaderBytes:], nil
}
