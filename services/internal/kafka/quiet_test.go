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
	for i := range 2 { // the first does not linger at all
		k.Produce(t, tick(t, c, 0, i))
		select {
		case n := <-batches:
			require.Equal(t, 1, n)
		case <-time.After(kafkatest.Patience):
			t.Fatal("the batch waits for records that do not come")
		}
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
		{"full and quick", 1000, 50_000, 1000, 100 * time.Millisecond, 8000},
		{"not full", 4000, 50_000, 3999, 100 * time.Millisecond, 4000},
		{"full, and a second nearly", 4000, 50_000, 4000, 800 * time.Millisecond, 5000},
		{"full, and no time at all", 4000, 50_000, 4000, 0, 32_000},
		{"slow", 50_000, 50_000, 30_000, 6 * time.Second, 5000},
		{"few records and an outage", 50_000, 50_000, 37, time.Minute, 1000},
		{"as large as it may be", 50_000, 50_000, 50_000, time.Millisecond, 50_000},
		{"always small", 500, 500, 500, time.Minute, 500},
	} {
		require.Equal(t, c.next, kafka.Sized(c.size, c.most, c.n, c.took, time.Second), c.name)
	}
	require.Equal(t, 50_000, kafka.Sized(50_000, 100_000, 30_000, 1500*time.Millisecond, 2*time.Second), "not full, and quick enough for a loop whose batches may take two")
	require.Equal(t, 20_000, kafka.Sized(50_000, 100_000, 30_000, 3*time.Second, 2*time.Second))
}

// Who comes back to a long backlog has done its first of it soon.
func TestTheFirstBatchOfABacklogIsSmall(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Renderer)
	var backlog []*kgo.Record
	for i := range 7000 {
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
		require.Equal(t, []int{1000, 3000, 3000}, batches)
	case <-time.After(kafkatest.Patience):
		t.Fatal("the backlog is not done")
	}
}

// All members of a group together do what costs the same for one record as for a
// thousand about as often as one would, as far as freshness allows.
func TestWhoHasAPartLingersLonger(t *testing.T) {
	t.Parallel()
	require.Equal(t, 2*time.Second, kafka.Lingers(2*time.Second, 12, 12))
	require.Equal(t, 4*time.Second, kafka.Lingers(2*time.Second, 6, 12))
	require.Equal(t, 5*time.Second, kafka.Lingers(2*time.Second, 3, 12), "not for ever")
	require.Equal(t, 2*time.Second, kafka.Lingers(2*time.Second, 12, 0), "before the first assignment")
	require.Equal(t, 5*time.Second, kafka.Lingers(2*time.Second, 0, 12))
	require.Equal(t, 10*time.Second, kafka.Lingers(10*time.Second, 3, 12), "what was asked for is no less")
	require.Zero(t, kafka.Lingers(0, 3, 12))
}

// The longer a transaction takes to end, the further batches are apart, as far as
// latency allows.
func TestBatchesAreFurtherApartWhereTransactionsTakeLong(t *testing.T) {
	t.Parallel()
	const pace = 60 * time.Millisecond
	require.Equal(t, pace, kafka.Apart(pace, 5*time.Millisecond))
	require.Equal(t, 2*pace, kafka.Apart(pace, 30*time.Millisecond))
	require.Equal(t, 4*pace, kafka.Apart(pace, time.Second))
	require.Zero(t, kafka.Apart(0, time.Second), "where no pace is asked for")
}
