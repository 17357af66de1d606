package kafka_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// Small records may become large ones: a transaction ends before they are more than
// memory holds, and small ones still share one.
func TestABatchEndsWhenItsOutputIsLarge(t *testing.T) {
	t.Parallel()
	const records, limit = 1000, 4 << 20
	for name, size := range map[string]int{"large": 100 << 10, "small": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t)
			c := k.Cluster(t, topic.Renderer)
			for i := range records {
				r, err := c.Record(topic.MessageRequestsBulk, fmt.Sprint(i), request(fmt.Sprint(i)))
				require.NoError(t, err)
				k.Produce(t, r)
			}
			var decided, largest atomic.Int64
			var transactions atomic.Int32
			k.Fake.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
				k.Fake.KeepControl()
				transactions.Add(1)
				largest.Store(max(largest.Load(), decided.Swap(0)))
				return nil, nil, false
			})
			detail := strings.Repeat("x", size)
			stop := run(t, func(ctx context.Context) error {
				return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, MaxPollRecords: records, MaxOutputBytes: limit,
					Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
						var q event.MessageRequest
						if err := c.Decode(r, &q); err != nil {
							return nil, err
						}
						out, err := c.Record(topic.Outcomes, q.UserID, &event.Outcome{MessageID: q.MessageID, UserID: q.UserID, Outcome: "rendered", Detail: detail})
						decided.Add(int64(len(out.Value)))
						return []*kgo.Record{out}, err
					})})
			})
			kafkatest.Eventually(t, func() bool {
				var sum int64
				for _, at := range k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk] {
					sum += at
				}
				return sum == records
			}, "it does not come to the end")
			require.NoError(t, stop())
			require.Len(t, k.All(t, topic.Outcomes), records)
			if name == "large" {
				require.LessOrEqual(t, largest.Load(), int64(limit+20*(size+1000)))
				return
			}
			require.LessOrEqual(t, transactions.Load(), int32(records/100))
		})
	}
}
