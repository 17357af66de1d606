package sink

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	schema "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// said is what was said, in the order in which it was taken in.
type said[T any] struct {
	mu   sync.RWMutex
	list []T
}

func (s *said[T]) add(x T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, x)
}

// known is how much was taken in; since returns what came after so much.
func (s *said[T]) known() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.list)
}

func (s *said[T]) since(known int) []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list[known:]
}

// open is a batch that may have been stored, and what was known of removals when it was
// read.
type open struct {
	records        []*kgo.Record
	erased, undone int
}

// settle waits until all is known that was erased and undone by now. Then it removes
// again what the open batch has stored of people who were erased, and of imports that were
// undone, since it was read, after the group had passed it. Who removes waits until the
// group has passed what is to go; but a sink that stood still for so long that others took
// its partitions still has such a batch in hand, and an insert cannot be told to fail for
// that. What the group has not passed is left to who removes, and counts it. Until settle
// has succeeded the batch stays open. Once more is harmless.
func (s *Sink) settle(ctx context.Context) error {
	if err := s.caught(ctx); err != nil {
		return fault.Transient(fmt.Errorf("reading what was erased and undone: %w", err))
	}
	if s.open.records == nil {
		return nil
	}
	erased, undone := s.erased.said.since(s.open.erased), s.undone.said.since(s.open.undone)
	if len(erased)+len(undone) > 0 {
		committed, err := s.committed(ctx)
		if err != nil {
			return err
		}
		overtaken := slices.DeleteFunc(slices.Clone(s.open.records), func(r *kgo.Record) bool {
			return r.Offset >= committed[s.source.NameOf(r.Topic)][r.Partition]
		})
		ctx, cancel := context.WithTimeoutCause(ctx, insertPatience, fault.Transient(errNoAnswer))
		defer cancel()
		if err := s.eraseAgain(ctx, erased, overtaken); err != nil {
			return fmt.Errorf("erasing who was erased while a batch was stored: %w", err)
		}
		again := undoneEvents{s.imported(undone, overtaken)}
		if _, err := again.flush(ctx, s.into); err != nil {
			return fmt.Errorf("removing the events of what was undone while a batch was stored: %w", err)
		}
	}
	s.open = open{}
	return nil
}

func (s *Sink) eraseAgain(ctx context.Context, erased []*event.Erasure, records []*kgo.Record) error {
	people := map[identity.ID]*event.Erasure{}
	for _, x := range erased {
		people[x.Person] = x
	}
	looked, found := map[string]bool{}, false
	for _, r := range records {
		userID := string(r.Key)
		if userID == "" || looked[userID] {
			continue
		}
		looked[userID] = true
		x := people[s.erased.person(r.Key)]
		if x == nil {
			continue
		}
		found = true
		for _, t := range clickhouse.PersonTables {
			query, args := t.Erase(userID, x)
			if err := s.into.Exec(ctx, query, args...); err != nil {
				return err
			}
		}
	}
	if !found {
		return nil
	}
	return schema.ForgetFunnels(func(query string) error { return s.into.Exec(ctx, query) })
}

// imported returns those of the imports of whose events there are some among the records.
func (s *Sink) imported(imports []identity.ID, records []*kgo.Record) (found []identity.ID) {
	left := map[string]identity.ID{}
	for _, id := range imports {
		left[bySource+id.String()] = id
	}
	var e event.Event
	for _, r := range records {
		if len(left) == 0 {
			break
		}
		if s.source.NameOf(r.Topic) != topic.Events || r.Value == nil || s.source.Decode(r, &e) != nil {
			continue // what cannot be read was not stored
		}
		if id, ok := left[e.Source]; ok {
			found = append(found, id)
			delete(left, e.Source)
		}
	}
	return found
}
