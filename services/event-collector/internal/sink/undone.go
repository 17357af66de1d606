package sink

import (
	"context"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	schema "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

const (
	undoneState = "undone"
	bySource    = "import:" // and the import's id: what the source of its events is
)

// Undone are the imports that were undone. What Kafka still has of their events is left
// out, so that reading the topic again from its beginning, which may come to them long
// after the word that they are undone, stores none again. An import that is repeated is
// another import.
type Undone struct {
	mu      sync.RWMutex
	sources map[string]bool
	said    said[identity.ID]
}

// Put takes in what is said of an import.
func (u *Undone) Put(i *event.Import) {
	if i.State != undoneState {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sources == nil {
		u.sources = map[string]bool{}
	}
	if source := bySource + i.ImportID.String(); !u.sources[source] {
		u.sources[source] = true
		u.said.add(i.ImportID)
	}
}

func (u *Undone) has(source string) bool {
	if !strings.HasPrefix(source, bySource) {
		return false
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.sources[source]
}

// eventRows is the table of events, of imports that were not undone.
type eventRows struct {
	*table[event.Event, *event.Event]
	undone *Undone
}

func (t *eventRows) read(source Source, name topic.Name, r *kgo.Record) error {
	if err := source.Decode(r, &t.rec); err != nil {
		return err
	}
	if t.undone.has(t.rec.Source) {
		return nil
	}
	return t.add(&t.rec, name, r)
}

// importRows is the table of imports, and what follows from one being undone.
type importRows struct {
	*table[event.Import, *event.Import]
	undone *undoneEvents
}

func (t *importRows) read(source Source, name topic.Name, r *kgo.Record) error {
	if err := t.table.read(source, name, r); err != nil {
		return err
	}
	if i := &t.rec; i.State == undoneState && i.Events > 0 {
		t.undone.imports = append(t.undone.imports, i.ImportID)
	}
	return nil
}

// undoneEvents are the events of imports that have been undone, to be removed. A mark on
// them would not do: of two copies of an event the first is kept, and the next import of a
// mended file may have the same. Once more is harmless.
type undoneEvents struct{ imports []identity.ID }

func (u *undoneEvents) String() string { return "event_rows, removed" }

func (u *undoneEvents) forget() { u.imports = nil }

func (u *undoneEvents) flush(ctx context.Context, db Database) (int, error) {
	for _, id := range u.imports {
		// It returns when they are gone from every part.
		if err := db.Exec(ctx, "DELETE FROM event_rows WHERE source = ? SETTINGS lightweight_deletes_sync = 1", bySource+id.String()); err != nil {
			return 0, err
		}
	}
	if len(u.imports) == 0 {
		return 0, nil
	}
	return 0, schema.ForgetFunnels(func(query string) error { return db.Exec(ctx, query) })
}
