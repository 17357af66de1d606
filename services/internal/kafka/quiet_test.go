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

func TestABatchIsNoLargerThanWhatTakesASecond(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		size, most, n int
		took          time.Duration
		next          int
	}{
		{"full and quick", 1000, 50_000, 1000, 100 * time.Millisecond, 2000},
		{"not full", 4000, 50_000, 3999, 100 * time.Millisecond, 4000},
		{"full, and a second nearly", 4000, 50_000, 4000, 900 * time.Millisecond, 4000},
		{"slow", 50_000, 50_000, 30_000, 6 * time.Second, 5000},
		{"few records and an outage", 50_000, 50_000, 37, time.Minute, 1000},
		{"as large as it may be", 50_000, 50_000, 50_000, time.Millisecond, 50_000},
		{"always small", 500, 500, 500, time.Minute, 500},
	} {
		require.Equal(t, c.next, kafka.Sized(c.size, c.most, c.n, c.took), c.name)
	}
}

// Who comes back to a long backlog has done its first of it soon.
func TestTheFirstBatchOfABacklogIsSmall(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Renderer)
	var backlog []*kgo.Record
	for i := range 6000 {
		backlog = append(backlog, tick(t, c, 0, i))
	}
	k.Produce(t, backlog...)
	var batches []int
	all := make(chan struct{})
	run(t, func(ctx context.Context) error {
		done := 0
		return c.RunEffect(ctx, kafka.EffectOptions{
			Group: topic.GroupPersonLoop, Topics: []topic.Name{topic.Ticks}, MaxPollRecords: 3000, Linger: 100 * kafkatest.Patience,
			Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
				batches = append(batches, len(recs))
				if done += len(recs); done == len(backlog) {
					close(all)
				}
				return len(recs), nil
			}),
		})
	})
	select {
	case <-all:
		require.Equal(t, []int{1000, 2000, 3000}, batches)
	case <-time.After(kafkatest.Patience):
		t.Fatal("the backlog is not done")
	}
}
