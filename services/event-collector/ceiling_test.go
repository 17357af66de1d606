package collector

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/spool"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/intake"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// BenchmarkCeilingPublish is the second half of intake alone, for scripts/bench intake: the
// records of its batches, which are the lines of the file that BENCH_BATCHES names, are written by
// 32 callers, a batch at a time, awaited. (The first half is intake.BenchmarkCeilingParse.)
func BenchmarkCeilingPublish(b *testing.B) {
	path := os.Getenv("BENCH_BATCHES")
	if path == "" {
		b.Skip("BENCH_BATCHES is not set: scripts/bench intake runs this")
	}
	text, err := os.ReadFile(path)
	require.NoError(b, err)
	var kept [][]output.Entry
	keys, err := intake.ParseKeys("dev", 0)
	require.NoError(b, err)
	handler := intake.New(intake.Options{Keys: keys, AckTimeout: time.Minute, Concurrency: 1, Registry: prometheus.NewRegistry(),
		Write: func(_ context.Context, entries ...output.Entry) error { kept = append(kept, entries); return nil }})
	mux := http.NewServeMux()
	handler.Register(mux)
	for _, body := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		r := httptest.NewRequestWithContext(b.Context(), "POST", "/v1/batch", strings.NewReader(body))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		require.Equal(b, 200, w.Code, w.Body.String())
	}
	cfg, err := config.Load[struct{ Kafka kafka.Config }](b.Context(), envconfig.OsLookuper())
	require.NoError(b, err)
	tel := kafkatest.Telemetry(b, topic.Collector)
	cluster, err := kafka.New(cfg.Kafka, topic.Collector, tel)
	require.NoError(b, err)
	require.NoError(b, cluster.Start(b.Context()))
	defer cluster.Close()
	out := output.New(output.Options{Cluster: cluster, Spool: spool.Options{Dir: b.TempDir(), Label: cfg.Kafka.Namespace, MaxBytes: 1 << 30}, AckTimeout: time.Minute, Tel: tel})
	require.NoError(b, out.Open())
	require.NoError(b, out.Start())
	defer func() { _ = out.Stop(context.WithoutCancel(b.Context())) }()
	kafkatest.Eventually(b, func() bool { return out.Write(b.Context(), kept[0]...) == nil }, "nothing is written")

	b.ResetTimer()
	for b.Loop() {
		const callers = 32
		var written atomic.Int64
		var all sync.WaitGroup
		until := time.Now().Add(5 * time.Second)
		for c := range callers {
			all.Go(func() {
				for i := c; time.Now().Before(until); i++ {
					entries := kept[i%len(kept)]
					if err := out.Write(b.Context(), entries...); err != nil {
						b.Error(err)
						return
					}
					written.Add(int64(len(entries)))
				}
			})
		}
		all.Wait()
		b.ReportMetric(float64(written.Load())/b.Elapsed().Seconds(), "events/s")
	}
}
