package definitions

import (
	"encoding/json"
	"fmt"

	"github.com/hikyaku/hikyaku/schemas/identity"
)

// KindSegment is the kind that the importer writes and nobody else: which
// imports make up the segment now. Its id is the segment's.
const KindSegment = "Segment"

// Segment is the body of a KindSegment definition: a person is a member who is
// in one of the imports.
type Segment struct {
	Imports []identity.ID `json:"imports"`
}

// Encode returns the canonical body.
func (s Segment) Encode() ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding segment: %w", err)
	}
	return body, nil
}

// DecodeSegment reads the body of a KindSegment version.
func DecodeSegment(v Version) (Segment, error) {
	var s Segment
	if err := json.Unmarshal(v.Body, &s); err != nil {
		return s, fmt.Errorf("decoding segment %s version %d: %w", v.ID, v.Number, err)
	}
	return s, nil
}
