package topic_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Whoever writes a person topic must agree with every other Kafka client on
// where a person lives.
func TestPartitionIsKafkasOwn(t *testing.T) {
	t.Parallel()
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for _, key := range []string{"a", "ab", "abc", "abcd", "12347", "ユーザー", "c12347@example.test", "a-rather-long-identifier-of-a-person"} {
		for _, n := range []int{1, 3, 16, 120} {
			want := partitioner.Partition(&kgo.Record{Key: []byte(key)}, n)
			require.Equal(t, int32(want), topic.Partition(key, n), "%s over %d", key, n)
		}
	}
}

func TestCatalogueIsConsistent(t *testing.T) {
	t.Parallel()
	seen := map[topic.Name]bool{}
	for _, row := range topic.Catalogue() {
		require.False(t, seen[row.Name], "%s twice", row.Name)
		seen[row.Name] = true
		require.NotEmpty(t, row.Writers, row.Name)
		require.NotEmpty(t, len(row.Readers)+len(row.TableOf), row.Name)
		if row.Cleanup == topic.Compact {
			require.Equal(t, topic.Forever, row.Retain, "%s: kfake applies retention to compacted topics too", row.Name)
		}
		got, ok := topic.ByName(row.Name)
		require.True(t, ok)
		require.Equal(t, row.Record, got.Record)
	}
}
