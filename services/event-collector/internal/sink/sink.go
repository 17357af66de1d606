// Package sink writes Kafka to ClickHouse. Offsets move last, and whatever is
// inserted twice is one row: idempotence is a property of rows, not of inserts.
// A crash between insert and commit inserts the same rows again, in another
// cut, and every view shows them once.
package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/classify"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// insertPatience ends one insert. It is below the time that a group waits for a
// member's batch, so that a database that hangs costs no membership.
const insertPatience = 45 * time.Second

// Database is ClickHouse.
type Database interface {
	// Send inserts columns into a table, as one block, and returns when they are stored.
	Send(ctx context.Context, table string, names []string, columns []clickhouse.Column) error
	Exec(ctx context.Context, query string, args ...any) error
}

// Source decodes records and knows their topics.
type Source interface {
	Decode(r *kgo.Record, into event.Record) error
	NameOf(kafkaTopic string) topic.Name
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

// share is one of the parts that a batch is worked on in at the same time, with tables
// of its own.
type share struct {
	readers map[topic.Name]reader
	// facts are inserted before the books: run_balance compares both, and should not see
	// a run's counters before the outcomes they were counted from. And an import is undone
	// when its events are gone.
	facts, books []store

	read       int // records of its part that it has read
	unreadable error
	failed     error
}

func newShare(classifiers []*classify.Classifier, undone *Undone) *share {
	events, profiles, members := &eventRows{newEventRows(), undone}, newProfileRows(), newSegmentMemberRows()
	inputs, outcomes := newMessageInputRows(), newOutcomeRows()
	engagements := &engagementRows{newEngagementRows(), newLabelRows(classifiers)}
	imports := &importRows{newImportRows(), &undoneEvents{}}
	runs := &runRows{newRunRows(), newRunShardRows(), newRunCounterRows()}
	return &share{
		readers: map[topic.Name]reader{
			topic.Events: events, topic.Profiles: profiles, topic.SegmentMembers: members,
			topic.MessageRequestsBulk: inputs, topic.Outcomes: outcomes, topic.Engagements: engagements,
			topic.Imports: imports, topic.Runs: runs,
		},
		facts: []store{events.table, profiles, members, inputs, outcomes, engagements.table, engagements.labels},
		books: []store{imports.undone, imports, runs.shards, runs.counters, runs.states},
	}
}

// forget drops what waits.
func (s *share) forget() {
	for _, t := range s.facts {
		t.forget()
	}
	for _, t := range s.books {
		t.forget()
	}
	s.read, s.unreadable, s.failed = 0, nil, nil
}

const (
	// maxShares is how many parts of a batch are worked on at the same time: while one is
	// inserted, ClickHouse and this process are both at work, each with one core.
	maxShares = 2
	// leastShare is how many records are worth a part: each makes an insert of its own.
	leastShare = 20_000
)

// Sink is the handler of the sink's Effect loop, for one goroutine.
type Sink struct {
	source Source
	into   Database
	erased *Erased
	undone *Undone
	caught func(context.Context) error // erased and undone know of all that was known when it was called
	// committed is up to where the group has passed each partition, whoever has its parts.
	committed func(context.Context) (kafka.Mark, error)
	open      open
	shares    []*share
	// shareRecords is the least that is made a part: leastShare.
	shareRecords int
	rows         *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
}

// New returns a sink whose metrics are registered with reg. Hits are labelled by every one
// of the classifiers, of which the last is the one to go by.
func New(source Source, into Database, reg prometheus.Registerer, classifiers ...*classify.Classifier) *Sink {
	s := &Sink{
		source: source, into: into, erased: NewErased("", nil), undone: &Undone{}, caught: func(context.Context) error { return nil },
		committed: func(context.Context) (kafka.Mark, error) { return nil, nil }, shareRecords: leastShare,
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sink_rows_total", Help: "Rows inserted into ClickHouse, repeats included.",
		}, []string{"table"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sink_insert_seconds", Help: "Time of one insert, in seconds, failed ones included.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}, []string{"table"}),
	}
	for range maxShares {
		s.shares = append(s.shares, newShare(classifiers, s.undone))
	}
	reg.MustRegister(s.rows, s.seconds)
	return s
}

// LeaveOut makes the sink leave out who was erased. It stores no batch until caught has
// returned, which waits until all is known, here and in Undone, that was said before it
// was called; and calls a batch stored when it has looked once more. Committed is how far
// the sink's group is.
func (s *Sink) LeaveOut(erased *Erased, caught func(context.Context) error, committed func(context.Context) (kafka.Mark, error)) {
	s.erased, s.caught, s.committed = erased, caught, committed
}

// Undone are the imports whose events the sink leaves out.
func (s *Sink) Undone() *Undone { return s.undone }

// Handle inserts a batch, a few inserts per table, and returns its durable prefix:
// all of it, or what stands before the first record that cannot be stored.
func (s *Sink) Handle(ctx context.Context, records []*kgo.Record) (int, error) {
	shares := s.shares[:max(1, min(len(s.shares), len(records)/s.shareRecords))]
	defer func() {
		for _, sh := range shares {
			sh.forget()
		}
	}()
	if err := s.settle(ctx); err != nil { // the batch before, if it ended in an error
		return 0, err
	}
	s.open = open{records, s.erased.said.known(), s.undone.said.known()}
	part := (len(records) + len(shares) - 1) / len(shares)
	each(shares, func(i int, sh *share) {
		sh.read, sh.unreadable = s.read(sh, records[min(i*part, len(records)):min((i+1)*part, len(records))])
	})
	n, unreadable := 0, error(nil)
	for i, sh := range shares {
		n += sh.read
		if unreadable = sh.unreadable; unreadable != nil {
			// What stands behind it is handed in again: to insert it now would be for nothing.
			for _, behind := range shares[i+1:] {
				behind.forget()
			}
			break
		}
	}
	crash.At(crash.SinkGathered)
	each(shares, func(_ int, sh *share) { sh.failed = s.insert(ctx, sh.facts) })
	var failed error
	for _, sh := range shares {
		failed = errors.Join(failed, sh.failed)
	}
	for _, sh := range shares {
		if failed == nil {
			failed = s.insert(ctx, sh.books)
		}
	}
	if failed != nil {
		// I1: nothing is done, although other tables have their rows: they will be
		// inserted again and shown once.
		return 0, failed
	}
	if err := s.settle(ctx); err != nil {
		return 0, err
	}
	return n, unreadable
}

// each works on all shares at the same time.
func each(shares []*share, work func(i int, sh *share)) {
	if len(shares) == 1 {
		work(0, shares[0])
		return
	}
	var done sync.WaitGroup
	for i, sh := range shares {
		done.Go(func() { work(i, sh) })
	}
	done.Wait()
}

// read lets the rows of records wait in their tables. It returns how many
// records it has read and what is wrong with the next one.
func (s *Sink) read(sh *share, records []*kgo.Record) (int, error) {
	for n, r := range records {
		if r.Value == nil {
			continue // a tombstone: what it removes is gone from the topic, not from history
		}
		name := s.source.NameOf(r.Topic)
		to, ok := sh.readers[name]
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

// insert flushes tables, one after another.
func (s *Sink) insert(ctx context.Context, tables []store) error {
	for _, t := range tables {
		if err := s.flush(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sink) flush(ctx context.Context, t store) error {
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
