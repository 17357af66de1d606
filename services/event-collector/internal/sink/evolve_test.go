package sink

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// colouredEvent is Event as a later release may have it: with one more field, which may be null.
type colouredEvent struct {
	event.Event
	colour *string
}

func (e *colouredEvent) Schema() string {
	return strings.TrimSuffix(e.Event.Schema(), "]}") + `,{"name":"colour","type":["null","string"],"default":null}]}`
}

func (e *colouredEvent) AppendAvro(b []byte) []byte {
	b = e.Event.AppendAvro(b)
	if e.colour == nil {
		return append(b, 0)
	}
	return append(append(b, 2, byte(2*len(*e.colour))), *e.colour...)
}

func (e *colouredEvent) DecodeAvro(b []byte) error {
	for end := len(b) - 1; end > 0; end-- {
		if e.Event.DecodeAvro(b[:end]) != nil {
			continue
		}
		switch rest := b[end:]; {
		case len(rest) == 1 && rest[0] == 0:
			e.colour = nil
			return nil
		case len(rest) > 2 && rest[0] == 2 && int(rest[1]) == 2*(len(rest)-2):
			colour := string(rest[2:])
			e.colour = &colour
			return nil
		}
	}
	return errors.New("not a coloured event")
}

// registry decodes with the schema that a record's header names: of today's events 1,
// of tomorrow's 2.
type registry struct{}

func (registry) Decode(r *kgo.Record, into event.Record) error {
	id, payload, err := event.SplitHeader(r.Value)
	if err != nil {
		return err
	}
	return event.DecodeWith(map[int]string{1: (&event.Event{}).Schema(), 2: (&colouredEvent{}).Schema()}[id], payload, into)
}

func (registry) NameOf(kafkaTopic string) topic.Name { return topic.Name(kafkaTopic) }

// A field that may be null, and a column that may: the writers, the sinks and the
// migration may come in any order, and nothing has to stop.
func TestANewFieldReachesANewColumnWhileOldAndNewSinksRun(t *testing.T) {
	t.Parallel()
	conn := clickhousetest.Open(t)
	write := func(schema int, rec event.Record, offset int64) *kgo.Record {
		return &kgo.Record{Topic: string(topic.Events), Offset: offset, Timestamp: start, Value: rec.AppendAvro(event.AppendHeader(nil, schema))}
	}
	of := func(id string) event.Event {
		return event.Event{EventID: id, UserID: "u", Name: "visit", OccurredAt: start, ReceivedAt: start, Source: "api:web"}
	}
	oldRecord := func(id string, offset int64) *kgo.Record { e := of(id); return write(1, &e, offset) }
	newRecord := func(id, colour string, offset int64) *kgo.Record {
		return write(2, &colouredEvent{of(id), &colour}, offset)
	}
	older := New(registry{}, conn, prometheus.NewRegistry())
	newer := New(registry{}, conn, prometheus.NewRegistry())
	for _, sh := range newer.shares {
		colour := clickhouse.NewNullable(clickhouse.NewText())
		var columns []column[colouredEvent]
		for _, c := range newEventRows().columns[:13] { // without the place in Kafka
			columns = append(columns, column[colouredEvent]{name: c.name, values: c.values, add: func(r *row[colouredEvent]) {
				if c.add != nil {
					c.add(&row[event.Event]{&r.rec.Event, r.from, r.topic})
				}
			}})
		}
		columns = append(columns, column[colouredEvent]{name: "colour", values: colour, add: func(r *row[colouredEvent]) {
			colour.Null(r.rec.colour == nil)
			if r.rec.colour == nil {
				colour.Values.Append("")
			} else {
				colour.Values.Append(*r.rec.colour)
			}
		}})
		table := newTable[colouredEvent]("event_rows", nil, columns)
		sh.readers[topic.Events], sh.facts[0] = table, table
	}
	stores := func(s *Sink, recs ...*kgo.Record) {
		t.Helper()
		n, err := s.Handle(t.Context(), recs)
		require.NoError(t, err)
		require.Equal(t, len(recs), n)
	}
	// Writers first: to a sink of today the field is unknown.
	stores(older, oldRecord("a", 0), newRecord("b", "red", 1))
	// A sink of tomorrow waits for the column; nothing is lost.
	n, err := newer.Handle(t.Context(), []*kgo.Record{newRecord("c", "red", 2)})
	require.Zero(t, n)
	require.Equal(t, fault.ClassTransient, fault.ClassOf(err), "%v", err)
	require.ErrorContains(t, err, "has no column colour")

	require.NoError(t, conn.Exec(t.Context(), "ALTER TABLE event_rows ADD COLUMN colour Nullable(String)"))
	stores(older, newRecord("d", "red", 3))
	stores(newer, newRecord("c", "red", 2), oldRecord("e", 4), newRecord("f", "blue", 5))
	stores(older, oldRecord("g", 6))

	rows, err := conn.Query(t.Context(), "SELECT event_id || ' ' || ifNull(colour, 'null') FROM event_rows FINAL ORDER BY event_id")
	require.NoError(t, err)
	defer rows.Close()
	var got []string
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		got = append(got, line)
	}
	require.Equal(t, []string{"a null", "b null", "c red", "d null", "e null", "f blue", "g null"}, got)
}
