package importer

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func TestTheOffsetsAfterTheLastRowKeepTheHighestOfEachPartition(t *testing.T) {
	c := kafkatest.Start(t).Cluster(t, topic.Importer)
	at := func(name topic.Name, partition int32, offset int64) *kgo.Record {
		return &kgo.Record{Topic: name.In(c.Namespace()), Partition: partition, Offset: offset}
	}
	before := []event.Written{
		{Topic: "profile-updates", Partition: 0, Offset: 7},
		{Topic: "profile-updates", Partition: 2, Offset: 90},
		{Topic: "segment-members", Partition: 1, Offset: 4},
	}
	got := written(before, c, []*kgo.Record{
		at(topic.SegmentMembers, 0, 0), at(topic.ProfileUpdates, 3, 11), at(topic.SegmentMembers, 1, 9),
		at(topic.ProfileUpdates, 0, 12), at(topic.ProfileUpdates, 0, 10), at(topic.ImportRejects, 0, 5),
	})
	require.Equal(t, []event.Written{
		{Topic: "import-rejects", Partition: 0, Offset: 6},
		{Topic: "profile-updates", Partition: 0, Offset: 13},
		{Topic: "profile-updates", Partition: 2, Offset: 90},
		{Topic: "profile-updates", Partition: 3, Offset: 12},
		{Topic: "segment-members", Partition: 0, Offset: 1},
		{Topic: "segment-members", Partition: 1, Offset: 10},
	}, got)
	require.EqualValues(t, 7, before[0].Offset, "what was committed is not written over")
}
