package sink

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// row is a record that is being read, and where it lay.
type row[T any] struct {
	rec   *T
	from  *kgo.Record
	topic topic.Name
}

// table is a storage table of schemas/clickhouse with the rows that wait to be
// inserted into it. Every column is a function of its record (I5): a record
// read twice makes the same row.
type table[T any, P interface {
	*T
	event.Record
}] struct {
	name    string
	columns []column[T]
	names   []string
	values  []clickhouse.Column
	// derive computes what columns need beside the record's fields; nil if they
	// need nothing.
	derive func(*T, *kgo.Record)
	rec    T // the record that was read last
}

func newTable[T any, P interface {
	*T
	event.Record
}](name string, derive func(*T, *kgo.Record), columns ...[]column[T]) *table[T, P] {
	t := &table[T, P]{name: name, derive: derive}
	for _, c := range columns {
		t.columns = append(t.columns, c...)
	}
	// Every table ends with when and where the record lay in Kafka.
	t.columns = append(t.columns,
		whole("ingested_at", clickhouse.NewMillis(), func(r *row[T]) time.Time { return r.from.Timestamp }),
		whole("kafka_topic", clickhouse.NewWord(), func(r *row[T]) string { return string(r.topic) }),
		whole("kafka_partition", clickhouse.NewInt32(), func(r *row[T]) int32 { return r.from.Partition }),
		whole("kafka_offset", clickhouse.NewInt64(), func(r *row[T]) int64 { return r.from.Offset }))
	for _, c := range t.columns {
		t.names, t.values = append(t.names, c.name), append(t.values, c.values)
	}
	return t
}

// read decodes a record and lets its row wait.
func (t *table[T, P]) read(source Source, name topic.Name, r *kgo.Record) error {
	if err := source.Decode(r, P(&t.rec)); err != nil {
		return err
	}
	return t.add(&t.rec, name, r)
}

// add lets a row wait. Its error is poison, and then no row waits.
func (t *table[T, P]) add(rec *T, name topic.Name, r *kgo.Record) error {
	if err := t.check(rec); err != nil {
		return fault.Poison(err)
	}
	if t.derive != nil {
		t.derive(rec, r)
	}
	at := row[T]{rec, r, name}
	for i := range t.columns {
		if add := t.columns[i].add; add != nil {
			add(&at)
		}
	}
	return nil
}

// ClickHouse's times end in 2299, those in nanoseconds in 2262: beyond these it would
// silently store another.
var (
	earliest = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Unix(0, math.MaxInt64)
)

// check finds what the database would refuse or store wrongly, while it is
// still known which record it is.
func (t *table[T, P]) check(rec *T) error {
	for i := range t.columns {
		if t.columns[i].moment == nil {
			continue
		}
		// The zero time is one that was never set; it is stored as 1970.
		if at := t.columns[i].moment(rec); !at.IsZero() && (at.Before(earliest) || at.After(latest)) {
			return fmt.Errorf("%s lies outside the years 1900 to 2262", t.columns[i].name)
		}
	}
	return nil
}

// flush inserts the rows that wait, as one block, and returns how many they were.
func (t *table[T, P]) flush(ctx context.Context, into Database) (int, error) {
	n := t.values[0].Rows()
	if n == 0 {
		return 0, nil
	}
	return n, into.Send(ctx, t.name, t.names, t.values)
}

// forget drops the rows that wait and keeps their room.
func (t *table[T, P]) forget() {
	for _, c := range t.values {
		c.Reset()
	}
	var none T
	t.rec = none
}

func (t *table[T, P]) String() string { return t.name }

// object writes values as a JSON object in the order that the record has them.
func object(values []event.NamedValue) string {
	b := []byte{'{'}
	for i := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendValue(b, event.String(values[i].Name)), ':')
		b = appendValue(b, values[i].Value)
	}
	return string(append(b, '}'))
}

// appendValue writes null for what JSON cannot hold, as in the views over typed
// maps: a row that cannot be read as JSON would make every question about its
// table fail.
func appendValue(b []byte, v event.Value) []byte {
	b, err := v.AppendJSON(b)
	if err != nil {
		return append(b, "null"...)
	}
	return b
}
