// Package sink writes Kafka to ClickHouse. Offsets move last, and whatever is
// inserted twice is one row: idempotence is a property of rows, not of inserts.
// A crash between insert and commit inserts the same rows again, in another
// cut, and every view shows them once.
package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// insertPatience ends one insert. It is below the time that a group waits for a
// member's batch, so that a database that hangs costs no membership.
const insertPatience = 45 * time.Second

// Database is ClickHouse.
type Database interface {
	// Insert inserts rows into a table and returns when they are stored.
	Insert(ctx context.Context, table string, columns []string, rows int, fill func(driver.Batch) error) error
	Exec(ctx context.Context, query string, args ...any) error
}

// Source decodes records and knows their topics.
type Source interface {
	Decode(r *kgo.Record, into event.Record) error
	NameOf(kafkaTopic string) topic.Name
	Record(name topic.Name, key string, rec event.Record) (*kgo.Record, error)
}

// reader turns the records of a topic into rows that wait in their tables.
type reader interface {
	read(source Source, name topic.Name, r *kgo.Record) error
}

// store is a table, whatever its records are.
type store interface {
	fmt.Stringer
	flush(ctx context.Context, into Database) (rows int, err error)
	forget()
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
	if i := &t.rows[len(t.rows)-1].rec; i.State == "undone" && i.Events > 0 {
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
		if err := db.Exec(ctx, "DELETE FROM event_rows WHERE source = ? SETTINGS lightweight_deletes_sync = 1", "import:"+id.String()); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// Sink is the handler of the sink's Effect loop, for one goroutine.
type Sink struct {
	source  Source
	into    Database
	erased  *Erased
	caught  func(context.Context) error // erased knows of everybody who was erased when it was called
	readers map[topic.Name]reader
	stores  []store
	rows    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// LeaveOut makes the sink leave out who was erased. It stores no batch until caught has
// returned, which waits until everybody is known who was erased before it was called.
func (s *Sink) LeaveOut(erased *Erased, caught func(context.Context) error) {
	s.erased, s.caught = erased, caught
}

// New returns a sink whose metrics are registered with reg.
func New(source Source, into Database, reg prometheus.Registerer) *Sink {
	events, profiles, members := newEventRows(), newProfileRows(), newSegmentMemberRows()
	inputs, outcomes, engagements := newMessageInputRows(), newOutcomeRows(), newEngagementRows()
	imports := &importRows{newImportRows(), &undoneEvents{}}
	runs := &runRows{newRunRows(), newRunShardRows(), newRunCounterRows()}
	s := &Sink{
		source: source, into: into, erased: NewErased(""), caught: func(context.Context) error { return nil },
		readers: map[topic.Name]reader{
			topic.Events: events, topic.Profiles: profiles, topic.SegmentMembers: members,
			topic.MessageRequestsBulk: inputs, topic.Outcomes: outcomes, topic.Engagements: engagements,
			topic.Imports: imports, topic.Runs: runs,
		},
		// Facts before the books: run_balance compares both, and should not see a
		// run's counters before the outcomes they were counted from. And an import is
		// undone when its events are gone.
		stores: []store{events, profiles, members, inputs, outcomes, engagements, imports.undone, imports, runs.shards, runs.counters, runs.states},
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sink_rows_total", Help: "Rows inserted into ClickHouse, repeats included.",
		}, []string{"table"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sink_insert_seconds", Help: "Time of one insert, in seconds, failed ones included.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}, []string{"table"}),
	}
	reg.MustRegister(s.rows, s.seconds)
	return s
}

// Handle inserts a batch, one insert per table, and returns its durable prefix:
// all of it, or what stands before the first record that cannot be stored.
func (s *Sink) Handle(ctx context.Context, records []*kgo.Record) (int, error) {
	defer func() {
		for _, t := range s.stores {
			t.forget()
		}
	}()
	if err := s.caught(ctx); err != nil {
		return 0, fault.Transient(fmt.Errorf("reading who was erased: %w", err))
	}
	n, unreadable := s.read(records)
	crash.At(crash.SinkGathered)
	for _, t := range s.stores {
		if err := s.insert(ctx, t); err != nil {
			// I1: nothing is done, although tables before this one have their rows:
			// they will be inserted again and shown once.
			return 0, err
		}
	}
	return n, unreadable
}

// read lets the rows of records wait in their tables. It returns how many
// records it has read and what is wrong with the next one.
func (s *Sink) read(records []*kgo.Record) (int, error) {
	for n, r := range records {
		if r.Value == nil {
			continue // a tombstone: what it removes is gone from the topic, not from history
		}
		name := s.source.NameOf(r.Topic)
		to, ok := s.readers[name]
		if !ok {
			return n, fault.Fatal(fmt.Errorf("the sink has no table for the topic %s", name))
		}
		r, err := s.erased.without(s.source, name, r)
		if r == nil && err == nil {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("leaving a person out of %s: %w", name, err)
		}
		if err := to.read(s.source, name, r); err != nil {
			return n, fmt.Errorf("making a row of %s/%d at offset %d: %w", name, r.Partition, r.Offset, err)
		}
	}
	return len(records), nil
}

var errNoAnswer = errors.New("ClickHouse has not answered in time")

func (s *Sink) insert(ctx context.Context, t store) error {
	ctx, cancel := context.WithTimeoutCause(ctx, insertPatience, fault.Transient(errNoAnswer))
	defer cancel()
	start := time.Now()
	n, err := t.flush(ctx, s.into)
	if n > 0 {
		s.seconds.WithLabelValues(t.String()).Observe(time.Since(start).Seconds())
	}
	if err != nil {
		return err
	}
	if n > 0 {
		crash.At(crash.SinkBetween)
	}
	s.rows.WithLabelValues(t.String()).Add(float64(n))
	return nil
}
