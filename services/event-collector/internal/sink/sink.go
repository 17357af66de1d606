// Package sink writes Kafka to ClickHouse. Offsets move last, and whatever is
// inserted twice is one row: idempotence is a property of rows, not of inserts.
// A crash between insert and commit inserts the same rows again, in another
// cut, and every view shows them once.
package sink

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Inserter inserts rows into a table and returns when they are stored.
type Inserter interface {
	Insert(ctx context.Context, table string, columns []string, rows int, fill func(driver.Batch) error) error
}

// Source decodes records and knows their topics.
type Source interface {
	Decode(r *kgo.Record, into event.Record) error
	NameOf(kafkaTopic string) topic.Name
}

// Sink is the handler of the sink's Effect loop.
type Sink struct {
	source Source
	into   Inserter
	rows   *prometheus.CounterVec
}

// New returns a sink whose counters are registered with reg.
func New(source Source, into Inserter, reg prometheus.Registerer) *Sink {
	s := &Sink{source: source, into: into,
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sink_rows_total", Help: "Rows inserted into ClickHouse, repeats included, by table."}, []string{"table"})}
	reg.MustRegister(s.rows)
	return s
}

// Handle inserts a batch, one insert per table, and returns its durable prefix:
// all of it, or what stands before the first record that cannot be stored.
func (s *Sink) Handle(ctx context.Context, records []*kgo.Record) (int, error) {
	byTable := map[*table][][]any{}
	n, stopped := 0, error(nil)
	for _, r := range records {
		row, err := rowOf(s.source, s.source.NameOf(r.Topic), r)
		if err != nil {
			stopped = fmt.Errorf("reading %s/%d at offset %d: %w", r.Topic, r.Partition, r.Offset, err)
			break
		}
		if row.table != nil {
			byTable[row.table] = append(byTable[row.table], row.values)
		}
		n++
	}
	// Facts before the books: run_balance compares both, and must not see a
	// run's counters before the outcomes they were counted from.
	for _, t := range inOrder {
		rows := byTable[t]
		if len(rows) == 0 {
			continue
		}
		err := s.into.Insert(ctx, t.name, t.columns, len(rows), func(b driver.Batch) error {
			for _, values := range rows {
				if err := b.Append(values...); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			// I1: other tables' rows may be in; they will be inserted again and
			// shown once.
			return 0, fmt.Errorf("inserting %d rows into %s: %w", len(rows), t.name, err)
		}
		s.rows.WithLabelValues(t.name).Add(float64(len(rows)))
	}
	return n, stopped
}

var inOrder = []*table{eventRows, profileRows, segmentMemberRows, messageInputRows, outcomeRows, engagementRows, runShardRows, runCounterRows, runRows}
