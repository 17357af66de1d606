package output

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// What of it a dead letter holds at most, so that it is a record like any other.
const (
	maxUnusableBytes = 512 << 10
	maxReasonBytes   = 4 << 10
)

// Unusable is the dead letter of what came in and cannot be used. It has no place in Kafka where
// it lay; in its stead it has a number of its own, which is the same if it is sent again
// (I5). The source says who sent it, as in the records that it would have become. The
// userID may be empty.
func Unusable(source, userID string, value []byte, reason string, at time.Time) Entry {
	id := identity.Hash("unusable event", source, string(value))
	if len(value) > maxUnusableBytes {
		reason = fmt.Sprintf("(value of %d bytes cut) %s", len(value), reason)
		value = value[:maxUnusableBytes]
	}
	d := &event.DeadLetter{Service: topic.Collector, Topic: kafka.OriginHTTP, Offset: int64(binary.BigEndian.Uint64(id[:]) >> 1),
		Value: value, Headers: []event.Header{{Key: "source", Value: []byte(source)}},
		Reason: strings.ToValidUTF8(reason[:min(len(reason), maxReasonBytes)], ""), ParkedAt: at, ProducedAt: at, UserID: userID}
	if userID != "" {
		d.Key = []byte(userID)
	}
	return Entry{Topic: topic.DeadLettersCollector, Key: userID, Record: d}
}
