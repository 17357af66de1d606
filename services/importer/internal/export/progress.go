package export

import (
	"log/slog"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/exports"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// entry is what is known of one export. It is replaced, never changed.
type entry struct {
	event.Export
	owner string // member that wrote it; empty if whoever asked for it did
}

// progress is the topic exports in memory.
type progress struct {
	table *kafka.Table

	mu   sync.RWMutex
	byID map[identity.ID]*entry
}

func newProgress(c *kafka.Cluster, log *slog.Logger) *progress {
	p := &progress{byID: map[identity.ID]*entry{}}
	p.table = c.Table([]topic.Name{topic.Exports}, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		e := &entry{}
		switch err := c.Decode(r, &e.Export); {
		case fault.ClassOf(err) == fault.ClassPoison:
			// As if it had not been written: an export is done again.
			log.Error("what is kept of an export cannot be read", "export_id", string(r.Key), "error", err)
			return nil
		case err != nil:
			return err
		}
		e.owner = kafka.Owner(r)
		if exports.Ended(e.State) {
			e.Definition, e.Columns, e.Files = "", nil, nil // nobody reads on from here
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.byID[e.ExportID] = e
		return nil
	})
	return p
}

func (p *progress) get(id identity.ID) *entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.byID[id]
}

func (p *progress) unfinished() []*entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*entry
	for _, e := range p.byID {
		if !exports.Ended(e.State) {
			out = append(out, e)
		}
	}
	return out
}
