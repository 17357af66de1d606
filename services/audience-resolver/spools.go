package resolver

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// spools is how many records lie in collectors' spools, as the topic spools says. The record
// of a collector that does not come back stays, and counts: nobody has read what lies there.
type spools struct {
	caught func(ctx context.Context) error // the topic has been read to its present end

	mu      sync.Mutex
	records map[string]int64 // by the spool's name; no zeros
}

func (s *spools) put(name string, records int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = map[string]int64{}
	}
	if s.records[name] = records; records == 0 {
		delete(s.records, name)
	}
}

// now is what the topic says at the moment of the call.
func (s *spools) now(ctx context.Context) (map[string]int64, error) {
	if err := s.caught(ctx); err != nil {
		return nil, fault.Transient(fmt.Errorf("reading the topic spools: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.records), nil
}

// unread is how many records may have been passed by between two moments: of each spool the larger
// number. One may be drained meanwhile, too late to be waited for, and another's collector may
// have had no word with Kafka before.
func unread(before, after map[string]int64) (n int64) {
	for name, records := range before {
		n += max(records, after[name])
	}
	for name, records := range after {
		if _, counted := before[name]; !counted {
			n += records
		}
	}
	return n
}

// applySpool reads one record of the topic spools. One that cannot be read leaves the one before
// it in force: what follows is a number that people are told, and no decision.
func applySpool(c *kafka.Cluster, s *spools, log *slog.Logger, r *kgo.Record) error {
	if r.Value == nil {
		s.put(string(r.Key), 0)
		return nil
	}
	var rec event.Spool
	err := c.Decode(r, &rec)
	if err == nil {
		s.put(rec.Spool, rec.Records)
		return nil
	}
	if fault.ClassOf(err) != fault.ClassPoison {
		return fmt.Errorf("reading the spool %s: %w", r.Key, err)
	}
	log.Error("a record of a spool cannot be read: the one before it counts", "spool", string(r.Key), "error", err)
	return nil
}
