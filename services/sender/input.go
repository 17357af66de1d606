package sender

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
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// input reads messages.
type input struct{ cluster *kafka.Cluster }

// read decodes a message that this service can send.
func (in input) read(r *kgo.Record) (*event.Message, error) {
	m := new(event.Message)
	if err := in.cluster.Decode(r, m); err != nil {
		return nil, err
	}
	switch {
	case m.Email == nil:
		return nil, fault.Poison(errors.New("the message holds no e-mail"))
	case topic.Partition(m.UserID, in.cluster.P()) != r.Partition:
		// Its outcome would lie where nobody looks for it.
		return nil, fault.Poison(fmt.Errorf("the message lies in partition %d, which is not its person's", r.Partition))
	}
	// What was replayed is the attempt after the one that was parked.
	m.Attempt = max(m.Attempt, kafka.Attempt(r), 1)
	return m, nil
}

// remembered is how far back unsubscriptions are read: longer than a message is on
// its way. What happened before a message was requested was seen by admission.
const remembered = 72 * time.Hour

// stops knows who must not be sent to any more: runs that were cancelled and people
// who have unsubscribed by a link since their message was requested. It is asked
// while tables feed it.
type stops struct {
	mu           sync.RWMutex
	cancelled    map[identity.ID]struct{}
	unsubscribed map[person]time.Time // the latest
	pruneAt      int                  // size at which old entries are dropped
}

type person struct{ channel, userID string }

func newStops() *stops {
	return &stops{cancelled: map[identity.ID]struct{}{}, unsubscribed: map[person]time.Time{}, pruneAt: 10_000}
}

// reason is why a message must not be sent, or "".
func (s *stops) reason(m *event.Message) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, ok := s.cancelled[m.RunID]; ok {
		return "run_cancelled"
	}
	if at, ok := s.unsubscribed[person{m.Channel, m.UserID}]; ok && !at.Before(m.RequestedAt) {
		return "unsubscribed"
	}
	return ""
}

// runs applies the topic runs. What does not decode is no reason to send nothing:
// whoever writes runs looks after them.
func (s *stops) runs(c *kafka.Cluster) func(*kgo.Record) error {
	return func(r *kgo.Record) error {
		// Only states are keyed by the bare run_id; counters are many.
		if r.Value == nil || strings.IndexByte(string(r.Key), '/') >= 0 {
			return nil
		}
		var run event.Run
		if err := c.Decode(r, &run); err != nil {
			return passable(err)
		}
		if run.State != nil && (run.State.CancelRequested || run.State.State == "cancelled") {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cancelled[run.RunID] = struct{}{}
		}
		return nil
	}
}

// unsubscribes applies the topic engagements.
func (s *stops) unsubscribes(c *kafka.Cluster) func(*kgo.Record) error {
	return func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		var e event.Engagement
		if err := c.Decode(r, &e); err != nil {
			return passable(err)
		}
		if e.Kind != "unsubscribed" {
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if p := (person{e.Channel, e.UserID}); e.OccurredAt.After(s.unsubscribed[p]) {
			// Decoded strings share their record; these are kept for days.
			s.unsubscribed[person{strings.Clone(e.Channel), strings.Clone(e.UserID)}] = e.OccurredAt
		}
		if len(s.unsubscribed) > s.pruneAt {
			for p, at := range s.unsubscribed {
				if time.Since(at) > remembered {
					delete(s.unsubscribed, p)
				}
			}
			s.pruneAt = max(10_000, 2*len(s.unsubscribed))
		}
		return nil
	}
}

func passable(err error) error {
	if fault.ClassOf(err) == fault.ClassPoison {
		return nil
	}
	return err
}
