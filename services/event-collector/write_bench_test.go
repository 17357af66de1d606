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

// BenchmarkWrite is what a request's records cost beside its parsing, the broker (in this process) or the disk
// included, and how fast the spool is drained.
func BenchmarkWrite(b *testing.B) {
	for _, direct := range []bool{true, false} {
		for _, size := range []int{1, 100} {
			b.Run(fmt.Sprintf("direct=%t/events=%d", direct, size), func(b *testing.B) {
				k := kafkatest.Start(b, kafkatest.Partitions(16))
				cfg := intakeConfig(k.Config())
				cfg.Intake.AckTimeout, cfg.Spool = 5*time.Second, SpoolConfig{Dir: b.TempDir(), MaxMiB: 16 << 10}
				w := output.New(output.Options{Cluster: k.Cluster(b, topic.Collector), Spool: cfg.spool("x"), AckTimeout: cfg.Intake.AckTimeout, Tel: kafkatest.Telemetry(b, topic.Collector)})
				require.NoError(b, w.Open())
				b.Cleanup(func() { require.NoError(b, w.Stop(context.Background())) })
				if direct {
					require.NoError(b, w.Start())
				}
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
				b.StopTimer()
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
				if direct {
					return
				}
				began := time.Now()
				require.NoError(b, w.Start())
				for !w.Direct() {
					time.Sleep(time.Millisecond)
				}
				b.ReportMetric(float64(b.N*size)/time.Since(began).Seconds(), "drained/s")
			})
		}
	}
}
