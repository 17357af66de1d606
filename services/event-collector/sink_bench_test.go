package collector

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/sink"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// BenchmarkSink inserts batches of 20,000 records into the real engine, which
// shares the machine.
func BenchmarkSink(b *testing.B) {
	k := kafkatest.Start(b)
	cluster := k.Cluster(b, topic.Collector)
	conn := clickhousetest.Open(b)
	const batch = 20000
	kinds := map[string]func(user string, i int) (topic.Name, event.Record){
		"events": func(user string, i int) (topic.Name, event.Record) {
			return topic.Events, &event.Event{EventID: fmt.Sprintf("event-%d", i), UserID: user, Name: "purchase", OccurredAt: noon, ReceivedAt: noon, Source: "api:web",
				Properties: named(map[string]event.Value{"sku": event.String(fmt.Sprint("sku-", i%500)), "price": event.Float(float64(i) / 100), "quantity": event.Int(int64(i % 7)), "currency": event.String("JPY"), "gift": event.Bool(i%3 == 0)})}
		},
		"outcomes": func(user string, _ int) (topic.Name, event.Record) {
			return topic.Outcomes, outcome(user, "accepted", "", 1)
		},
	}
	for name, make := range kinds {
		b.Run(name, func(b *testing.B) {
			recs := []*kgo.Record{}
			for i := range batch {
				topicName, rec := make(fmt.Sprintf("user-%d", i), i)
				r, err := cluster.Record(topicName, fmt.Sprintf("user-%d", i), rec)
				require.NoError(b, err)
				r.Timestamp, r.Offset = time.Now(), int64(i)
				recs = append(recs, r)
			}
			s := sink.New(cluster, conn, telemetry.New("x", telemetry.Config{}, nil).Registry)
			for b.Loop() {
				_, err := s.Handle(b.Context(), recs)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(batch*b.N)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
