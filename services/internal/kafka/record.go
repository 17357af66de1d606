package kafka

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// ErrTooLarge says that a record is larger than topic.MaxRecordBytes and was not
// made. What that means for the person or message is for the caller to say.
var ErrTooLarge = errors.New("record too large")

// Headers of records about a message, so that one that cannot be decoded can still
// be counted.
const (
	HeaderMessageID  = "message_id" // 32 hex digits; not of Candidate, whose message it follows from
	HeaderRunID      = "run_id"     // 32 hex digits
	HeaderCampaignID = "campaign_id"
	HeaderUserID     = "user_id"
	HeaderAttempt    = "attempt" // decimal; of Message and of what was replayed: see Attempt
)

// Headers of a record that an operator has put back.
const (
	HeaderReplayFor = "replay_for" // the service that parked it: no other handles it again
	HeaderReplayOf  = "replay_of"  // where the record lay that was parked: topic/partition@offset
)

// Attempt is the attempt that a record's headers name, 0 without one. Of what was
// replayed it is the number by which this attempt speaks for all before it,
// whatever number the value holds.
func Attempt(r *kgo.Record) int32 { return attempt(r, 0) }

func attempt(r *kgo.Record, unnamed int32) int32 {
	n, err := strconv.ParseInt(header(r, HeaderAttempt), 10, 32)
	if err != nil {
		return unnamed
	}
	return int32(n)
}

// WithAttempt names the attempt in a record's headers; 0 needs no name.
func WithAttempt(r *kgo.Record, attempt int32) *kgo.Record {
	if attempt != 0 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderAttempt, Value: strconv.AppendInt(nil, int64(attempt), 10)})
	}
	return r
}

// addressed reports whether a record is for this service. One that was replayed
// is for the service that had parked it: others have handled it long ago.
func (c *Cluster) addressed(r *kgo.Record) bool {
	whom := header(r, HeaderReplayFor)
	return whom == "" || whom == c.service
}

// Record makes the record for key, on the partition where the key lives. A nil rec
// is a tombstone. Errors: ErrTooLarge; anything else is a bug.
func (c *Cluster) Record(name topic.Name, key string, rec event.Record) (*kgo.Record, error) {
	return c.RecordIn(nil, name, key, rec)
}

// RecordAt is Record with the partition given, for topics whose key is not what
// they are partitioned by: ticks, person-state.
func (c *Cluster) RecordAt(name topic.Name, partition int32, key string, rec event.Record) (*kgo.Record, error) {
	h, err := c.home(name)
	if err != nil {
		return nil, err
	}
	return h.make(nil, name, partition, key, rec)
}

// headerOwner names the member that wrote a progress record, so that an instance that
// was killed knows its own work again and need not wait until its progress is stale.
const headerOwner = "owner"

// Owned is Record for progress: it names this member as the one who has the work.
func (c *Cluster) Owned(name topic.Name, key string, rec event.Record) (*kgo.Record, error) {
	r, err := c.Record(name, key, rec)
	if err == nil {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerOwner, Value: []byte(c.member)})
	}
	return r, err
}

// Owner is the member that a progress record names; empty if it was written by somebody
// who only asked for the work.
func Owner(r *kgo.Record) string {
	for _, h := range r.Headers {
		if h.Key == headerOwner {
			return string(h.Value)
		}
	}
	return ""
}

// RecordIn is Record in memory that many records share.
func (c *Cluster) RecordIn(m *Memory, name topic.Name, key string, rec event.Record) (*kgo.Record, error) {
	h, err := c.home(name)
	if err != nil {
		return nil, err
	}
	return h.make(m, name, topic.Partition(key, h.partitions), key, rec)
}

// Memory is for records that are made and dropped together by the thousand: three
// allocations for hundreds of them, not for each. It is for one goroutine, and all of a
// piece of it is kept for as long as one of its records.
type Memory struct {
	records []kgo.Record
	bytes   []byte
}

const (
	memoryRecords = 512
	memoryBytes   = 128 << 10
	recordBytes   = 256 // that a record may take before the piece is thought full
)

// take returns a record, and where its bytes are to be appended.
func (m *Memory) take() (*kgo.Record, []byte) {
	if m == nil {
		return &kgo.Record{}, make([]byte, 0, recordBytes)
	}
	if len(m.records) == cap(m.records) {
		m.records = make([]kgo.Record, 0, memoryRecords)
	}
	m.records = m.records[:len(m.records)+1]
	if cap(m.bytes)-len(m.bytes) < recordBytes {
		m.bytes = make([]byte, 0, memoryBytes)
	}
	return &m.records[len(m.records)-1], m.bytes[len(m.bytes):]
}

// taken notes what was appended.
func (m *Memory) taken(b []byte) {
	// What outgrew the piece has memory of its own.
	if m != nil && len(b) <= cap(m.bytes)-len(m.bytes) {
		m.bytes = m.bytes[:len(m.bytes)+len(b)]
	}
}

func (h *home) make(m *Memory, name topic.Name, partition int32, key string, rec event.Record) (*kgo.Record, error) {
	if partition < 0 || int(partition) >= h.partitions {
		return nil, fault.Fatal(fmt.Errorf("making a record for %s: partition %d of %d", name, partition, h.partitions))
	}
	if rec != nil && rec.SchemaName() != h.record {
		return nil, fault.Fatal(fmt.Errorf("making a record for %s: it holds %s, not %s", name, h.record, rec.SchemaName()))
	}
	r, b := m.take()
	b = append(b, key...)
	r.Topic, r.Partition, r.Key = h.kafkaTopic, partition, b[:len(key):len(key)]
	if rec != nil {
		b = rec.AppendAvro(event.AppendHeader(b, h.schemaID))
		r.Key, r.Value = b[:len(key):len(key)], b[len(key):len(b):len(b)]
		r.Headers = headers(rec)
	}
	m.taken(b)
	// Checked here and not by the broker, whose refusal comes when the decision
	// has long been made and would stop the line for ever.
	if rec != nil && len(b) > topic.MaxRecordBytes {
		return nil, fmt.Errorf("%w: %s of %d bytes for %s, at most %d", ErrTooLarge, h.record, len(b), name, topic.MaxRecordBytes)
	}
	return r, nil
}

func headers(rec event.Record) []kgo.RecordHeader {
	switch m := rec.(type) {
	case *event.Candidate:
		return messageHeaders(nil, m.RunID, m.CampaignID, m.UserID, nil)
	case *event.MessageRequest:
		return messageHeaders(&m.MessageID, m.RunID, m.CampaignID, m.UserID, nil)
	case *event.Message:
		return messageHeaders(&m.MessageID, m.RunID, m.CampaignID, m.UserID, strconv.AppendInt(nil, int64(m.Attempt), 10))
	case *event.Outcome:
		return messageHeaders(&m.MessageID, m.RunID, m.CampaignID, m.UserID, nil)
	case *event.Engagement:
		return messageHeaders(&m.MessageID, m.RunID, m.CampaignID, m.UserID, nil)
	}
	return nil
}

func messageHeaders(message *identity.ID, run identity.ID, campaign, userID string, attempt []byte) []kgo.RecordHeader {
	text := make([]byte, 0, 64+len(campaign)+len(userID)) // one allocation for all
	h := make([]kgo.RecordHeader, 0, 5)
	add := func(key string, from int) {
		h = append(h, kgo.RecordHeader{Key: key, Value: text[from:len(text):len(text)]})
	}
	if message != nil {
		text = hex.AppendEncode(text, message[:])
		add(HeaderMessageID, 0)
	}
	from := len(text)
	text = hex.AppendEncode(text, run[:])
	add(HeaderRunID, from)
	from = len(text)
	text = append(text, campaign...)
	add(HeaderCampaignID, from)
	from = len(text)
	text = append(text, userID...)
	add(HeaderUserID, from)
	if attempt != nil {
		h = append(h, kgo.RecordHeader{Key: HeaderAttempt, Value: attempt})
	}
	return h
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// Decode reads a record's value with the schema it was written with. A registry that is away or does not know the schema is
// Transient; bytes that do not fit their schema are Poison.
func (c *Cluster) Decode(r *kgo.Record, into event.Record) error {
	id, payload, err := event.SplitHeader(r.Value)
	if err != nil {
		return fault.Poison(fmt.Errorf("decoding %s: %w", c.origin(r), err))
	}
	w, err := c.writerOf(id)
	if err != nil {
		return fmt.Errorf("decoding %s: %w", c.origin(r), err)
	}
	// I7: whichever version it was written with.
	if err := event.DecodeWith(w.schema, payload, into); err != nil {
		return fault.Poison(fmt.Errorf("decoding %s: %w", c.origin(r), err))
	}
	return nil
}

// origin names a record without saying anything about a person.
func (c *Cluster) origin(r *kgo.Record) string {
	return fmt.Sprintf("%s/%d@%d", c.NameOf(r.Topic), r.Partition, r.Offset)
}
