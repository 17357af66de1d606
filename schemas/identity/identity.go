// Package identity derives every id of the pipeline. Ids are never random:
// whatever is done twice yields the same id, which is what lets a repetition
// be recognised (docs/invariants.md, I5).
package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
)

// ID is 128 bits: 32 hex digits in JSON and on screens, fixed(16) in Avro,
// UUID in ClickHouse.
type ID [16]byte

// String returns the 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// UUID returns the id as ClickHouse writes it: 8-4-4-4-12 hex digits.
func (id ID) UUID() string {
	h := id.String()
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero reports whether the id was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	p, err := Parse(string(b))
	*id = p
	return err
}

// Parse reads 32 hex digits; dashes, as in a UUID, are allowed.
func Parse(s string) (ID, error) {
	var id ID
	digits := make([]byte, 0, 32)
	for i := range len(s) {
		if s[i] != '-' {
			digits = append(digits, s[i])
		}
	}
	if len(digits) != 32 {
		return id, fmt.Errorf("parsing id %q: want 32 hex digits", s)
	}
	if _, err := hex.Decode(id[:], digits); err != nil {
		return ID{}, fmt.Errorf("parsing id %q: %w", s, err)
	}
	return id, nil
}

// Hash is the first 16 bytes of SHA-256 over the fields, each preceded by its
// length as four big-endian bytes.
func Hash(fields ...string) ID {
	var stack [256]byte
	b := stack[:0]
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	sum := sha256.Sum256(b)
	return ID(sum[:16])
}

// Message is one campaign, one person, one occurrence. The occurrence is the
// run id's hex digits for a bulk run. Step is empty until campaigns have steps.
func Message(namespace, campaignID, occurrence, userID, step string) ID {
	return Hash(namespace, campaignID, occurrence, userID, step)
}

// Person stands for a user_id where it must not be kept, so that who was erased can
// be recognised without being named.
func Person(namespace, userID string) ID { return Hash(namespace, "person", userID) }

// Run is one execution of a campaign. The moment is the scheduled time in
// RFC 3339, UTC, or the request id's hex digits.
func Run(namespace, campaignID, moment string) ID { return Hash(namespace, campaignID, moment) }

// Outcome identifies one step of one attempt, so that a repetition of it is
// the same row everywhere.
func Outcome(message ID, outcome string, attempt int32, providerEventID string) ID {
	return Hash(string(message[:]), outcome, strconv.Itoa(int(attempt)), providerEventID)
}

// Import is one object version under one spec version. Where a bucket has no
// versions, objectVersion is made by UnversionedObject.
func Import(bucket, key, objectVersion, specID string, specVersion int64) ID {
	return Hash(bucket, key, objectVersion, specID, strconv.FormatInt(specVersion, 10))
}

// ImportAgain is the nth repetition, from 1, of an import that somebody asked for.
func ImportAgain(importID ID, n int64) ID {
	return Hash("again", string(importID[:]), strconv.FormatInt(n, 10))
}

// Undo is the import that takes another back.
func Undo(importID ID) ID { return Hash("undo", string(importID[:])) }

// Export is one execution of a version of an Export. The moment is that of its schedule
// in RFC 3339, UTC, or the request id's hex digits.
func Export(namespace, definitionID string, version int64, moment string) ID {
	return Hash("export", namespace, definitionID, strconv.FormatInt(version, 10), moment)
}

// UnversionedObject stands for the version of an object in a bucket without
// versions: A, then B, then A again are three. A file dropped into the
// embedded folder has no ETag; its size and time of change remain.
func UnversionedObject(etag string, sizeBytes, lastModifiedMicros int64) string {
	return Hash(etag, strconv.FormatInt(sizeBytes, 10), strconv.FormatInt(lastModifiedMicros, 10)).String()
}

// ImportedEvent is the id of the event made from one record of an import.
func ImportedEvent(importID ID, record int64) string {
	return Hash(string(importID[:]), strconv.FormatInt(record, 10)).String()
}
