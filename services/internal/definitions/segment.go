package definitions

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// KindSegment is the kind that the importer writes and nobody else: which
// imports make up the segment now. Its id is the segment's.
const KindSegment = "Segment"

// Segment is the body of a KindSegment definition: a person is a member if the
// last of the imports that lists her is not one that removes.
type Segment struct {
	Imports []identity.ID `json:"imports"`           // in the order in which they count
	Removes []identity.ID `json:"removes,omitempty"` // those of Imports that remove whom they list

	// Why the version was written; at most one is set.
	Ended  identity.ID `json:"ended,omitzero"`  // an import ended
	Undone identity.ID `json:"undone,omitzero"` // an import was undone
}

// Same says whether two versions have the same members.
func (s Segment) Same(o Segment) bool {
	return slices.Equal(s.Imports, o.Imports) && slices.Equal(s.Removes, o.Removes)
}

// Pin is what a run keeps of a segment.
func (s Segment) Pin(id string) event.SegmentPin {
	return event.SegmentPin{SegmentID: id, ImportIDs: s.Imports, Removes: s.Removes}
}

// Encode returns the canonical body.
func (s Segment) Encode() ([]byte, error) {
	if s.Imports == nil {
		s.Imports = []identity.ID{}
	}
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

// Pins are what a run would keep of segments now: nothing of one that no import has
// filled yet. The error is for people: what makes one up cannot be read.
func (s *Store) Pins(segments []string) (pins []event.SegmentPin, err error) {
	for _, id := range segments {
		pin := event.SegmentPin{SegmentID: id}
		if v, ok := s.Head(KindSegment, id); ok {
			now, err := DecodeSegment(v)
			if err != nil {
				return nil, err
			}
			pin = now.Pin(id)
		} else if why := s.Unreadable(KindSegment, id, 0); why != "" {
			return nil, fmt.Errorf("which imports make up segment %s cannot be read (%s)", id, why)
		}
		pins = append(pins, pin)
	}
	return pins, nil
}
