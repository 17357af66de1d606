package kafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func TestABatchLingersNoLongerThanRecordsCome(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Renderer)
	batches := make(chan int, 10)
	run(t, func(ctx context.Context) error {
		return c.RunEffect(ctx, kafka.EffectOptions{
			Group: topic.GroupPersonLoop, Topics: []topic.Name{topic.Ticks}, MaxPollRecords: 1000, Linger: 100 * kafkatest.Patience, Quiet: 50 * time.Millisecond,
			Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
				batches <- len(recs)
				return len(recs), nil
			}),
		})
	})
	k.Produce(t, tick(t, c, 0, 0))
	select {
	case n := <-batches:
		require.Equal(t, 1, n)
	case <-time.After(kafkatest.Patience):
		t.Fatal("the batch waits for records that do not come")
	}
}
