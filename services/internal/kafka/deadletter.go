package kafka

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

const (
	maxReasonBytes = 4 << 10
	// maxParkedBytes leaves room for envelope and headers under the broker's limit.
	maxParkedBytes = topic.MaxMessageBytes - 256<<10
	cutReason      = "(value of %d bytes cut) "
)

// The reasons of the outcome `parked`.
const (
	ReasonPoison    = "poison"
	ReasonCandidate = "poison_candidate" // the message was not requested yet
)

// OriginHTTP stands in a dead letter for the topic where it came over HTTP and was never a record.
const OriginHTTP = "http"

// Park returns what a poison record becomes: its dead letter and, if it is about a
// message, the outcome `parked`. Both must be durable before its offset moves (I2).
func (c *Cluster) Park(r *kgo.Record, reason error) []*kgo.Record {
	out := []*kgo.Record{c.DeadLetter(r, reason)}
	if parked, ok := c.Parked(r, reason); ok {
		out = append(out, parked)
	}
	return out
}

// DeadLetter returns the record for dead-letters.<service> with the original's
// key, value and headers inside.
func (c *Cluster) DeadLetter(r *kgo.Record, reason error) *kgo.Record {
	name := topic.DeadLetters(c.service)
	d := &event.DeadLetter{
		Service: c.service, Topic: string(c.NameOf(r.Topic)), Partition: r.Partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Reason: cut(reason.Error(), maxReasonBytes),
		ParkedAt: time.Now(), ProducedAt: r.Timestamp, UserID: header(r, HeaderUserID),
	}
	if len(d.Value) > maxParkedBytes {
		d.Value, d.Reason = d.Value[:maxParkedBytes], fmt.Sprintf(cutReason+"%s", len(r.Value), d.Reason)
	}
	for _, h := range r.Headers {
		d.Headers = append(d.Headers, event.Header{Key: h.Key, Value: h.Value})
	}
	if id, err := identity.Parse(header(r, HeaderMessageID)); err == nil {
		d.MessageID = &id
	}
	if id, err := identity.Parse(header(r, HeaderRunID)); err == nil {
		d.RunID = &id
	}
	// Not through Record: a dead letter may be larger than what services produce,
	// up to the broker's own limit, or the largest records could not be parked.
	return &kgo.Record{
		Topic: name.In(c.cfg.Namespace), Key: r.Key,
		Value:   d.AppendAvro(event.AppendHeader(nil, c.homes[name].schemaID)),
		Headers: r.Headers,
	}
}

// Parked returns the outcome `parked` for a record on a message's way. It needs the
// record's headers only, so that a value that does not decode is still counted;
// false for a record that is not about a message.
//
// An outcome that cannot be read may have been any, and its message may wait for
// it for ever: the message is parked as of the attempt before all others, so that
// whatever can be read speaks over it.
func (c *Cluster) Parked(r *kgo.Record, reason error) (*kgo.Record, bool) {
	message, err := identity.Parse(header(r, HeaderMessageID))
	run, _ := identity.Parse(header(r, HeaderRunID))
	campaign, userID := header(r, HeaderCampaignID), header(r, HeaderUserID)
	word, first := ReasonPoison, int32(0)
	switch c.catalogue[c.NameOf(r.Topic)].Record {
	case "MessageRequest", "Message":
	case "Candidate":
		word = ReasonCandidate
		if run == (identity.ID{}) || campaign == "" {
			return nil, false
		}
		message, err = identity.Message(c.cfg.Namespace, campaign, run.String(), userID, ""), nil
	case "Outcome":
		var o event.Outcome
		if c.Decode(r, &o) == nil && o.Outcome == "parked" {
			return nil, false // said already; saying it again would go on for ever
		}
		first = -1
	default:
		// An engagement ends no wait, so parking one parks no message.
		return nil, false
	}
	if err != nil || message == (identity.ID{}) || userID == "" {
		return nil, false
	}
	n := attempt(r, first)
	o := &event.Outcome{
		OutcomeID: identity.Outcome(message, "parked", n, ""),
		MessageID: message, RunID: run, CampaignID: campaign, UserID: userID, Lane: "bulk", Channel: channelOf(c.NameOf(r.Topic)),
		// I5: identified by what it was. Its time is the record's, not the clock's.
		Outcome: "parked", Attempt: n, Reason: word, Detail: cut(reason.Error(), maxReasonBytes), OccurredAt: r.Timestamp,
	}
	out, err := c.Record(topic.Outcomes, userID, o)
	return out, err == nil
}

// Replay returns what puts the record of a dead letter back: the record, on its
// topic and for the service that parked it, and, if parking it parked a message,
// the outcome `replayed`. They belong into one transaction. The error says in
// words why there is nothing to put back.
//
// A replay is to a parked attempt what a retry is to a deferred one: `replayed` of
// the attempt that was parked, and the next number on the record.
func (c *Cluster) Replay(d *event.DeadLetter, now time.Time) ([]*kgo.Record, error) {
	name := topic.Name(d.Topic)
	t, known := c.catalogue[name]
	switch {
	case d.Topic == OriginHTTP:
		return nil, errors.New("it came over HTTP and was never in Kafka: whoever sent it has to mend it and send it again")
	case !known:
		return nil, fmt.Errorf("topic %s is not in the catalogue (any more)", d.Topic)
	case name == topic.Ticks:
		return nil, errors.New("it is a tick: time has gone on, and each tick says all that the ones before it said")
	case t.Cleanup == topic.Compact:
		return nil, fmt.Errorf("%s is a table: an old row would overwrite what was written since; the next change of %s writes the row whole", d.Topic, t.Key)
	case len(d.Value) == maxParkedBytes && strings.HasPrefix(d.Reason, "(value of "):
		return nil, fmt.Errorf("its value was too large to be kept whole: only the first %d bytes are here", len(d.Value))
	}
	if d.Partition < 0 || int(d.Partition) >= t.PartitionCount(c.p) {
		return nil, fmt.Errorf("%s has no partition %d", d.Topic, d.Partition)
	}
	was := &kgo.Record{Topic: name.In(c.cfg.Namespace), Partition: d.Partition, Offset: d.Offset, Key: d.Key, Value: d.Value, Timestamp: d.ProducedAt}
	back := &kgo.Record{Topic: was.Topic, Partition: d.Partition, Key: d.Key, Value: d.Value}
	for _, h := range d.Headers {
		was.Headers = append(was.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		switch h.Key {
		case HeaderAttempt, HeaderReplayFor, HeaderReplayOf:
		default:
			back.Headers = append(back.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
	}
	if t.ByKey() && len(d.Key) > 0 {
		back.Partition = topic.Partition(string(d.Key), t.PartitionCount(c.p)) // it may have lain elsewhere, and been parked for that
	}
	out := []*kgo.Record{back}
	if d.Service != topic.Collector { // which keeps copies: what it parks parks no message
		if parked, ok := c.Parked(was, errors.New("")); ok {
			var o event.Outcome
			if err := c.Decode(parked, &o); err != nil {
				return nil, err
			}
			o.Outcome, o.OccurredAt = "replayed", now
			o.OutcomeID = identity.Outcome(o.MessageID, o.Outcome, o.Attempt, "")
			rec, err := c.Record(topic.Outcomes, o.UserID, &o)
			if err != nil {
				return nil, err
			}
			WithAttempt(back, o.Attempt+1)
			out = append(out, rec)
		}
	}
	back.Headers = append(back.Headers, kgo.RecordHeader{Key: HeaderReplayFor, Value: []byte(d.Service)},
		kgo.RecordHeader{Key: HeaderReplayOf, Value: fmt.Appendf(nil, "%s/%d@%d", d.Topic, d.Partition, d.Offset)})
	return out, nil
}

// channelOf reads the channel from a name such as messages.email.bulk.
func channelOf(n topic.Name) string {
	if parts := strings.Split(string(n), "."); len(parts) > 1 && (parts[0] == "messages" || parts[0] == "retries") {
		return parts[1]
	}
	return ""
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "�")
}

// breaker counts dead letters. Too many in a minute mean that the fault is ours,
// and a stopped service loses less than a topic full of parked records.
type breaker struct {
	limit int

	mu     sync.Mutex
	parked []time.Time
}

// add counts n dead letters and returns a Fatal error when they are too many.
func (b *breaker) add(n int, now time.Time) error {
	if n == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := b.parked[:0]
	for _, t := range b.parked {
		if now.Sub(t) < time.Minute {
			keep = append(keep, t)
		}
	}
	for range min(n, b.limit+1) {
		keep = append(keep, now)
	}
	if b.parked = keep; len(keep) > b.limit {
		return fault.Fatal(fmt.Errorf("more than %d dead letters within a minute (DEAD_LETTERS_PER_MINUTE): stopping before more are parked", b.limit))
	}
	return nil
}
