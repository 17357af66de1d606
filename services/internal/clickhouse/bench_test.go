package clickhouse_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

const benchRows = 50000

func benchmarkInsert(b *testing.B, c *clickhouse.Conn, table string, columns []string, values func(i int) []any) {
	b.Helper()
	for i := 0; b.Loop(); i++ {
		err := c.Insert(b.Context(), table, columns, benchRows, func(batch driver.Batch) error {
			for r := range benchRows {
				if err := batch.Append(values(i*benchRows + r)...); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*benchRows/b.Elapsed().Seconds(), "rows/s")
}

func uuidOf(space byte, i int) (u uuid.UUID) {
	u[0] = space
	binary.BigEndian.PutUint64(u[8:], uint64(i)*0x9E3779B97F4A7C15)
	return u
}

// What clickhouse-go and the tables can do, views included: the sink is
// measured against it.
func BenchmarkInsertEvents(b *testing.B) {
	c := clickhousetest.Open(b)
	now := time.Now()
	columns := []string{"event_id", "user_id", "name", "occurred_at", "received_at", "source", "prop_string", "prop_int", "prop_float", "ingested_at", "kafka_topic", "kafka_partition", "kafka_offset"}
	benchmarkInsert(b, c, "event_rows", columns, func(i int) []any {
		return []any{fmt.Sprintf("%032x", i), fmt.Sprint("user-", i%100000), "purchase", now, now, "import:x",
			map[string]string{"sku": "85123A", "country": "France"}, map[string]int64{"quantity": 6, "invoice": int64(i)}, map[string]float64{"price": 2.55}, now, "events", int32(i % 16), int64(i)}
	})
}

func BenchmarkInsertOutcomes(b *testing.B) {
	for _, messages := range []bool{true, false} {
		b.Run(fmt.Sprintf("messages=%t", messages), func(b *testing.B) {
			c := clickhousetest.Open(b)
			if !messages {
				if err := c.Exec(b.Context(), "DROP VIEW message_rows_from_outcomes"); err != nil {
					b.Fatal(err)
				}
			}
			now, run := time.Now(), uuidOf(1, 1)
			columns := []string{"outcome_id", "message_id", "run_id", "campaign_id", "lane", "user_id", "channel", "outcome", "attempt", "reason", "detail", "occurred_at",
				"source_topic", "source_partition", "source_offset", "provider", "provider_id", "ingested_at", "kafka_topic", "kafka_partition", "kafka_offset"}
			benchmarkInsert(b, c, "outcome_rows", columns, func(i int) []any {
				return []any{uuidOf(2, i), uuidOf(3, i), run, "autumn", "bulk", fmt.Sprint("user-", i), "email", "accepted", int32(1), "", "250 2.0.0 queued", now,
					"messages.email.bulk", int32(i % 16), int64(i), "smtp", "", now, "outcomes", int32(i % 16), int64(i)}
			})
		})
	}
}
