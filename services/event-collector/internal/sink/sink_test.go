package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// plain decodes what appendix writes; a record that says so is poison.
type plain struct{}

func (plain) Decode(r *kgo.Record, into event.Record) error {
	if string(r.Value) == "poison" {
		return fault.Poison(errors.New("poison"))
	}
	return into.DecodeAvro(r.Value)
}

func (plain) NameOf(kafkaTopic string) topic.Name { return topic.Name(kafkaTopic) }

// ledger is a database that notes what it is sent, in order.
type ledger struct {
	mu   sync.Mutex
	sent []string // table and rows
	fail func(table string) error
}

func (l *ledger) Send(_ context.Context, table string, names []string, columns []clickhouse.Column) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, c := range columns {
		if c.Rows() != columns[0].Rows() {
			return fault.Fatal(fmt.Errorf("%s.%s has %d rows of %d", table, names[i], c.Rows(), columns[0].Rows()))
		}
	}
	if l.fail != nil {
		if err := l.fail(table); err != nil {
			return err
		}
	}
	l.sent = append(l.sent, fmt.Sprint(table, " ", columns[0].Rows()))
	if table == "event_rows" {
		slices.Sort(l.sent) // the two parts are inserted at the same time
	}
	return nil
}

func (l *ledger) Exec(context.Context, string, ...any) error { return nil }

func newSink(db Database, shareRecords int) *Sink {
	s := New(plain{}, db, prometheus.NewRegistry())
	s.shareRecords = shareRecords
	return s
}

func recordOf(name topic.Name, offset int64, rec event.Record) *kgo.Record {
	return &kgo.Record{Topic: string(name), Offset: offset, Timestamp: start, Value: rec.AppendAvro(nil)}
}

func visit(i int64) *kgo.Record {
	return recordOf(topic.Events, i, &event.Event{EventID: fmt.Sprint("e", i), UserID: "u", Name: "visit", OccurredAt: start, ReceivedAt: start, Source: "api:web",
		Properties: []event.NamedValue{{Name: "price", Value: event.Float(1.5)}, {Name: "sku", Value: event.String("a")}}})
}

func TestPartsOfABatchAreOnePrefix(t *testing.T) {
	books := recordOf(topic.Runs, 9, &event.Run{RunID: identity.Run("n", "c", "o"), CampaignID: "c", Counters: &event.RunCounters{UpdatedAt: start}})
	poison := &kgo.Record{Topic: string(topic.Events), Value: []byte("poison")}
	for name, c := range map[string]struct {
		batch []*kgo.Record
		fail  func(table string) error
		n     int
		class fault.Class // of the error, if one is wanted
		sent  string
	}{
		"all":                           {batch: []*kgo.Record{visit(0), visit(1), visit(2), visit(3), visit(4)}, n: 5, sent: "event_rows 2, event_rows 3"},
		"books after the facts of both": {batch: []*kgo.Record{books, books, visit(0), visit(1)}, n: 4, sent: "event_rows 2, run_counter_rows 2"},
		"poison in the first part":      {batch: []*kgo.Record{visit(0), poison, visit(1), visit(2)}, n: 1, class: fault.ClassPoison, sent: "event_rows 1"},
		"poison in the second part":     {batch: []*kgo.Record{visit(0), visit(1), visit(2), poison}, n: 3, class: fault.ClassPoison, sent: "event_rows 1, event_rows 2"},
		"poison at the seam":            {batch: []*kgo.Record{visit(0), visit(1), poison, visit(2)}, n: 2, class: fault.ClassPoison, sent: "event_rows 2"},
		"the books are refused": {batch: []*kgo.Record{visit(0), visit(1), books, books}, n: 0, class: fault.ClassTransient, sent: "event_rows 2",
			fail: func(table string) error {
				if strings.HasPrefix(table, "run_") {
					return fault.Transient(io.EOF)
				}
				return nil
			}},
	} {
		t.Run(name, func(t *testing.T) {
			db := &ledger{fail: c.fail}
			s := newSink(db, 2)
			for range 2 { // nothing is left of the first time
				db.sent = nil
				n, err := s.Handle(t.Context(), c.batch)
				require.Equal(t, c.n, n)
				if c.class == 0 {
					require.NoError(t, err)
				} else {
					require.Equal(t, c.class, fault.ClassOf(err))
				}
				require.Equal(t, c.sent, strings.Join(db.sent, ", "))
			}
		})
	}
	// One part fails, and then the other: nothing is done either way.
	for failing := range 2 {
		db := &ledger{}
		seen := 0
		db.fail = func(string) error {
			if seen++; seen-1 == failing {
				return fault.Transient(io.EOF)
			}
			return nil
		}
		n, err := newSink(db, 2).Handle(t.Context(), []*kgo.Record{visit(0), visit(1), visit(2), visit(3)})
		require.Zero(t, n)
		require.Equal(t, fault.ClassTransient, fault.ClassOf(err))
	}
}

// BenchmarkRead is what the sink does beside waiting for ClickHouse.
func BenchmarkRead(b *testing.B) {
	kinds := map[string]func(i int64) *kgo.Record{
		"events": func(i int64) *kgo.Record {
			return recordOf(topic.Events, i, &event.Event{EventID: fmt.Sprint("event-", i), UserID: fmt.Sprint("user-", i), Name: []string{"a", "b", "c"}[i%3], OccurredAt: start, ReceivedAt: start, Source: "api:web",
				Properties: []event.NamedValue{{Name: "currency", Value: event.String("JPY")}, {Name: "gift", Value: event.Bool(i%3 == 0)}, {Name: "price", Value: event.Float(float64(i) / 100)},
					{Name: "quantity", Value: event.Int(i % 7)}, {Name: "sku", Value: event.String(fmt.Sprint("sku-", i%500))}}})
		},
		"outcomes": func(i int64) *kgo.Record {
			id := identity.Message("n", "c", "o", fmt.Sprint(i), "")
			return recordOf(topic.Outcomes, i, &event.Outcome{OutcomeID: id, MessageID: id, RunID: id, CampaignID: "autumn", Lane: "bulk", UserID: fmt.Sprint("user-", i), Channel: "email", Outcome: []string{"rendered", "accepted"}[i%2],
				Attempt: 1, Detail: "250 2.0.0 OK", OccurredAt: start, Provider: "smtp", ProviderID: fmt.Sprint("queued as ", i), Source: &event.Source{Topic: "messages.email.bulk", Offset: i}})
		},
	}
	for name, of := range kinds {
		b.Run(name, func(b *testing.B) {
			var batch []*kgo.Record
			for i := range int64(100_000) {
				batch = append(batch, of(i))
			}
			s := newSink(&ledger{}, 1_000_000)
			b.ReportAllocs()
			from := time.Now()
			for b.Loop() {
				_, err := s.Handle(b.Context(), batch)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(time.Since(from).Nanoseconds())/float64(b.N)/float64(len(batch)), "ns/row")
		})
	}
}
