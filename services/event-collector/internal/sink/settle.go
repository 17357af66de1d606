package sink

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	schema "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// open is a batch that may have been stored, and what was known of removals when it was
// read.
type open struct {
	records        []*kgo.Record
	erased, undone int
}

// settle removes again what the open batch has stored of people who were erased, and of
// imports that were undone, since it was read. Who removes waits until the group has
// passed what is to go; but a sink that stood still for so long that others took its
// partitions still has such a batch in hand, and an insert cannot be told to fail for
// that. Until it has succeeded the batch stays open. Once more is harmless.
func (s *Sink) settle(ctx context.Context) error {
	if s.open.records == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, insertPatience, fault.Transient(errNoAnswer))
	defer cancel()
	people := map[identity.ID]*event.Erasure{}
	for _, x := range s.erased.since(s.open.erased) {
		people[x.Person] = x
	}
	if len(people) > 0 {
		if err := s.eraseAgain(ctx, people); err != nil {
			return fmt.Errorf("erasing who was erased while a batch was stored: %w", err)
		}
	}
	if imports := s.undone.since(s.open.undone); len(imports) > 0 {
		again := undoneEvents{s.stored(imports)}
		if _, err := again.flush(ctx, s.into); err != nil {
			return fmt.Errorf("removing the events of what was undone while a batch was stored: %w", err)
		}
	}
	s.open = open{}
	return nil
}

func (s *Sink) eraseAgain(ctx context.Context, people map[identity.ID]*event.Erasure) error {
	looked, found := map[string]bool{}, false
	for _, r := range s.open.records {
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

// stored returns those of the imports of whose events the open batch has some.
func (s *Sink) stored(imports []identity.ID) (found []identity.ID) {
	left := map[string]identity.ID{}
	for _, id := range imports {
		left[bySource+id.String()] = id
	}
	var e event.Event
	for _, r := range s.open.records {
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
