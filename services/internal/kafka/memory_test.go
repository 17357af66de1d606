package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func TestRecordsThatShareMemoryAreWhatTheyWouldBeAlone(t *testing.T) {
	c := kafkatest.Start(t).Cluster(t, topic.Importer)
	var m kafka.Memory
	patch := func(i int) (string, *event.ProfilePatch) {
		id := fmt.Sprintf("user-%d", i)
		text := strings.Repeat("x", i%3000) // more than one piece has room for
		if i == 700 {
			text = strings.Repeat("y", 300<<10)
		}
		return id, &event.ProfilePatch{UserID: id, Set: []event.NamedValue{{Name: "text", Value: event.String(text)}}}
	}
	var shared []*kgo.Record
	for i := range 2000 {
		id, p := patch(i)
		r, err := c.RecordIn(&m, topic.ProfileUpdates, id, p)
		require.NoError(t, err)
		shared = append(shared, r)
	}
	// Who appends to one does not write into the next.
	_ = append(append(shared[0].Key, "more"...), append(shared[0].Value, "more"...)...)
	for i, r := range shared {
		id, p := patch(i)
		alone, err := c.Record(topic.ProfileUpdates, id, p)
		require.NoError(t, err)
		require.Equal(t, alone, r)
	}
}

func TestARecordThatIsTooLargeLeavesItsNeighboursAlone(t *testing.T) {
	c := kafkatest.Start(t).Cluster(t, topic.Importer)
	var m kafka.Memory
	member := &event.SegmentMember{SegmentID: "s", UserID: "u"}
	before, err := c.RecordIn(&m, topic.SegmentMembers, "u", member)
	require.NoError(t, err)
	_, err = c.RecordIn(&m, topic.SegmentMembers, "u", &event.SegmentMember{SegmentID: strings.Repeat("s", topic.MaxRecordBytes), UserID: "u"})
	require.ErrorIs(t, err, kafka.ErrTooLarge)
	after, err := c.RecordIn(&m, topic.SegmentMembers, "u", member)
	require.NoError(t, err)
	require.Equal(t, before, after)
}
