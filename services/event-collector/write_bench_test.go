package collector

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// BenchmarkWrite is what a request's records cost beside its parsing, the broker (in this process) included.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			k := kafkatest.Start(b, kafkatest.Partitions(16))
			cfg := intakeConfig(k.Config())
			cfg.Intake.AckTimeout = 5 * time.Second
			cfg.Spool.Dir = b.TempDir()
			tel := kafkatest.Telemetry(b, topic.Collector)
			cluster := k.Cluster(b, topic.Collector)
			w := output.New(output.Options{Cluster: cluster, Spool: cfg.spool("x"), AckTimeout: cfg.Intake.AckTimeout, Tel: tel})
			require.NoError(b, w.Open())
			require.NoError(b, w.Start())
			b.Cleanup(func() { require.NoError(b, w.Stop(context.Background())) })
			var n atomic.Int64
			b.SetParallelism(64)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					entries := make([]output.Entry, size)
					for i := range entries {
						id := n.Add(1)
						user := fmt.Sprintf("user-%d", id%1000)
						entries[i] = output.Entry{Topic: topic.Events, Key: user, Record: &event.Event{EventID: fmt.Sprint(id), UserID: user, Name: "bought",
							OccurredAt: time.Now(), ReceivedAt: time.Now(), Source: strings.Repeat("x", 200)}}
					}
					if err := w.Write(context.Background(), entries...); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
