package drill

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// Who has all that was committed is back at work, whatever was aborted behind it.
func TestWhatWasAbortedWaitsForNobody(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Collector)
	d := &drill{own: map[string]string{"KAFKA_BROKERS": strings.Join(k.Fake.ListenAddrs(), ",")}}
	ctx, cancel := context.WithTimeout(t.Context(), kafkatest.Patience)
	defer cancel()
	txn, err := c.TransactionalProducer("writer")
	require.NoError(t, err)
	defer txn.Close()
	var at *kgo.Record
	write := func(records int, end kgo.TransactionEndTry) {
		require.NoError(t, txn.BeginTransaction())
		for range records {
			at, err = c.Record(topic.Profiles, "a", &event.Profile{UserID: "a"})
			require.NoError(t, err)
			require.NoError(t, kafka.ProduceSync(ctx, txn, at))
		}
		require.NoError(t, txn.EndTransaction(ctx, end))
	}
	write(2, kgo.TryCommit) // 0 and 1, and a marker
	write(5, kgo.TryAbort)  // 3 to 7, and a marker
	require.True(t, d.nothing(ctx, at.Topic, at.Partition, 2, 9))
	require.False(t, d.nothing(ctx, at.Topic, at.Partition, 1, 9))
	write(1, kgo.TryCommit) // 9, and a marker
	require.False(t, d.nothing(ctx, at.Topic, at.Partition, 2, 11))
	require.True(t, d.nothing(ctx, at.Topic, at.Partition, 10, 11))
}
