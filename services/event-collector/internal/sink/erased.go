package sink

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Erased are the people who were erased. What Kafka still has of them is left out, or
// kept without anything that leads back to them, so that reading a topic again from
// its beginning stores what was there before and no more.
type Erased struct {
	namespace string
	record    func(topic.Name, string, event.Record) (*kgo.Record, error)
	mu        sync.RWMutex
	people    map[identity.ID]*event.Erasure
	said      said[*event.Erasure]
}

// NewErased knows nobody yet. Record makes the records that are stored instead of those
// that name somebody.
func NewErased(namespace string, record func(topic.Name, string, event.Record) (*kgo.Record, error)) *Erased {
	return &Erased{namespace: namespace, record: record, people: map[identity.ID]*event.Erasure{}}
}

// Put takes in an erasure; the last one of a person counts.
func (e *Erased) Put(x *event.Erasure) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.people[x.Person] = x
	e.said.add(x)
}

func (e *Erased) person(userID []byte) identity.ID {
	return identity.Person(e.namespace, string(userID))
}

// of returns the erasure of a person, nil if she was not erased.
func (e *Erased) of(userID []byte) *event.Erasure {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if len(e.people) == 0 || len(userID) == 0 {
		return nil
	}
	return e.people[e.person(userID)]
}

// without returns the record as it may be stored: itself, another one, or nil. Its key
// is the user_id, in all topics that name people.
func (e *Erased) without(source Source, name topic.Name, r *kgo.Record) (*kgo.Record, error) {
	x := e.of(r.Key)
	if x == nil {
		return r, nil
	}
	switch name {
	case topic.Events, topic.Profiles, topic.SegmentMembers:
		ends := func(t event.ErasedTopic) bool { return t.Topic == string(name) }
		if i := slices.IndexFunc(x.Ends, ends); i >= 0 && r.Partition == x.Partition && r.Offset < x.Ends[i].Offset {
			return nil, nil
		}
		return r, nil
	}
	if r.Timestamp.After(x.UnlinkedUntil) {
		return r, nil
	}
	switch name {
	case topic.Outcomes:
		var o event.Outcome
		return e.unlinked(source, name, x, r, &o, func() {
			o.UserID, o.Detail, o.ProviderID = x.Pseudonym, "", ""
		})
	case topic.Engagements:
		var g event.Engagement
		return e.unlinked(source, name, x, r, &g, func() {
			// The classifier's view of it stays what it was: by client and network.
			g.UserID, g.URL, g.Referer = x.Pseudonym, "", ""
		})
	case topic.MessageRequestsBulk:
		var q event.MessageRequest
		return e.unlinked(source, name, x, r, &q, func() {
			q.UserID, q.Address, q.Locale, q.TimeZone, q.Attributes, q.Segments = x.Pseudonym, "", "", "", nil, nil
		})
	}
	return r, nil
}

// unlinked is the record about a message that was on its way when its person was erased.
func (e *Erased) unlinked(source Source, name topic.Name, x *event.Erasure, r *kgo.Record, rec event.Record, unlink func()) (*kgo.Record, error) {
	if err := source.Decode(r, rec); err != nil {
		return nil, err
	}
	unlink()
	to, err := e.record(name, x.Pseudonym, rec)
	if err != nil {
		return nil, fmt.Errorf("making the record without its person: %w", err)
	}
	// Where and when it lay is its own: copies are told apart by it.
	to.Topic, to.Partition, to.Offset, to.Timestamp, to.Headers = r.Topic, r.Partition, r.Offset, r.Timestamp.Truncate(time.Millisecond), r.Headers
	return to, nil
}
