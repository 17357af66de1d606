package kafka_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// What the Transform loop itself costs, broker included: decode a request, write an
// outcome. The share of time between a batch's last decision and the next poll is
// the bubble.
func BenchmarkTransform(b *testing.B) {
	for _, batch := range []int{50, 500, 2000} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			k := kafkatest.Start(b)
			tel := kafkatest.Telemetry(b, topic.Renderer)
			c, err := kafka.New(k.Config(), topic.Renderer, tel)
			require.NoError(b, err)
			require.NoError(b, c.Start(context.Background()))
			defer c.Close()
			p, err := c.Producer()
			require.NoError(b, err)
			for i := range b.N {
				r, err := c.Record(topic.MessageRequestsBulk, fmt.Sprint(i), request(fmt.Sprint(i)))
				require.NoError(b, err)
				p.Produce(context.Background(), r, nil)
			}
			require.NoError(b, p.Flush(context.Background()))
			p.Close()

			ctx, cancel := context.WithCancel(context.Background())
			n := 0
			t := &observed{
				before: func() error { return nil },
				committed: func(out []*kgo.Record) {
					if n += len(out); n >= b.N {
						cancel()
					}
				},
				Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
					out, err := rendered(c, r)
					return []*kgo.Record{out}, err
				}),
			}
			b.ReportAllocs()
			b.ResetTimer()
			require.NoError(b, c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, MaxPollRecords: batch, Transformer: t}))
			b.StopTimer()
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
			for _, phase := range []string{"wait", "work", "commit"} {
				b.ReportMetric(100*seconds(b, tel.Registry, phase)/b.Elapsed().Seconds(), phase+"-%")
			}
		})
	}
}

func seconds(b *testing.B, g prometheus.Gatherer, phase string) float64 {
	families, err := g.Gather()
	require.NoError(b, err)
	for _, f := range families {
		if f.GetName() != "stage_seconds_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "phase" && l.GetValue() == phase {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}
