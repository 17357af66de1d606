package resolver

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// ticker writes the time into every partition that this instance owns, once a
// second (every). An instance that has lost a partition without knowing it may write a
// tick too many: harmless, because time is the maximum seen and what a tick
// causes is committed with its offset by whoever owns the partition.
type ticker struct {
	cluster *kafka.Cluster
	client  *kgo.Client
	every   time.Duration
	owned   func() []int32
}

func (t *ticker) Run(ctx context.Context) error {
	every := time.NewTicker(t.every)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-every.C:
			if err := t.tick(ctx, now.UTC().Truncate(time.Microsecond)); err != nil {
				return err
			}
		}
	}
}

func (t *ticker) tick(ctx context.Context, now time.Time) error {
	for _, partition := range t.owned() {
		r, err := t.cluster.RecordAt(topic.Ticks, partition, strconv.Itoa(int(partition)), &event.Tick{Partition: partition, At: now})
		if err != nil {
			return fmt.Errorf("encoding a tick: %w", err)
		}
		// Not awaited: a tick that is lost or late is made good by the next one,
		// and while Kafka is away the client says so and keeps trying.
		t.client.TryProduce(ctx, r, func(*kgo.Record, error) { crash.At(crash.TicksWritten) })
	}
	return nil
}
