package chdb_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb/chdbtest"
)

const wide = `CREATE TABLE wide (id UUID, user_id String, name LowCardinality(String), occurred_at DateTime64(3,'UTC'), received_at DateTime64(3,'UTC'),
	n Int64, price Float64, source Nullable(String), properties Map(String,String), attributes JSON) ENGINE = ReplacingMergeTree ORDER BY (user_id, id)`

func fill(b testing.TB, conn driver.Conn, table string, from, rows int) time.Duration {
	batch, err := conn.PrepareBatch(context.Background(), "INSERT INTO "+table)
	require.NoError(b, err)
	now := time.Now().UTC()
	for i := from; i < from+rows; i++ {
		row := []any{uuid.New(), fmt.Sprintf("user-%d", i), "purchase", now, now, int64(i), 1.5, nil,
			map[string]string{"country": "United Kingdom", "plan": "gold", "sku": "85123A"}}
		if table == "wide" {
			row = append(row, fmt.Sprintf(`{"country":"United Kingdom","age":%d,"score":1.5,"vip":true,"sku":"85123A"}`, i%90))
		}
		require.NoError(b, batch.Append(row...))
	}
	start := time.Now()
	require.NoError(b, batch.Send())
	return time.Since(start)
}

// BenchmarkInsert sends batches of 50,000 rows of ten columns, one a Map and one JSON; send/s leaves out what the client does to build them.
func BenchmarkInsert(b *testing.B) {
	base, database := chdbtest.Database(b)
	conn := connect(b, base, database, func(o *clickhouse.Options) { o.Compression = nil })
	require.NoError(b, conn.Exec(context.Background(), wide))
	const rows = 50_000
	var sending time.Duration
	n := 0
	for b.Loop() {
		sending += fill(b, conn, "wide", n, rows)
		n += rows
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(n)/sending.Seconds(), "send-rows/s")
}

// BenchmarkSelect reads 500,000 rows: one short string, then every column but the JSON.
func BenchmarkSelect(b *testing.B) {
	base, database := chdbtest.Database(b)
	conn := connect(b, base, database, func(o *clickhouse.Options) { o.Compression = nil })
	require.NoError(b, conn.Exec(context.Background(), wide))
	for i := range 10 {
		fill(b, conn, "wide", i*50_000, 50_000)
	}
	for name, query := range map[string]string{
		"user_id": "SELECT user_id FROM wide", "nine": "SELECT * EXCEPT attributes FROM wide", "json": "SELECT attributes FROM wide LIMIT 100000",
	} {
		b.Run(name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				rows, err := conn.Query(context.Background(), query)
				require.NoError(b, err)
				for rows.Next() {
					n++
				}
				require.NoError(b, rows.Err())
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
