package kafka

import (
	"fmt"
	"strconv"
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
)

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
		d.Value, d.Reason = d.Value[:maxParkedBytes], fmt.Sprintf("(value of %d bytes cut) %s", len(r.Value), d.Reason)
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
		Value:   d.AppendAvro(event.AppendHeader(nil, c.ids[name])),
		Headers: r.Headers,
	}
}

// Parked returns the outcome `parked` for a record about a message. It needs the
// record's headers only, so that a value that does not decode is still counted;
// false for a record that is not about a message.
func (c *Cluster) Parked(r *kgo.Record, reason error) (*kgo.Record, bool) {
	switch c.catalogue[c.NameOf(r.Topic)].Record {
	case "MessageRequest", "Message":
	default:
		// An outcome or an engagement ends no wait, so parking one parks no message.
		return nil, false
	}
	message, err := identity.Parse(header(r, HeaderMessageID))
	userID := header(r, HeaderUserID)
	if err != nil || userID == "" {
		return nil, false
	}
	run, _ := identity.Parse(header(r, HeaderRunID))
	attempt, _ := strconv.Atoi(header(r, HeaderAttempt))
	o := &event.Outcome{
		OutcomeID: identity.Outcome(message, "parked", int32(attempt), ""),
		MessageID: message, RunID: run, UserID: userID, Lane: "bulk", Channel: channelOf(c.NameOf(r.Topic)),
		// I5: identified by what it was. Its time is the record's, not the clock's.
		Outcome: "parked", Attempt: int32(attempt), Reason: "poison", Detail: cut(reason.Error(), maxReasonBytes), OccurredAt: r.Timestamp,
	}
	out, err := c.Record(topic.Outcomes, userID, o)
	return out, err == nil
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
