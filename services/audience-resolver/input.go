package resolver

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// order is the order in which the records of one batch are handled: what is
// known of people first, candidates last, so that whoever is admitted is
// admitted by what was known when the batch was read.
var order = map[topic.Name]int{
	topic.ProfileUpdates: 0,
	topic.SegmentMembers: 1,
	topic.Outcomes:       2,
	topic.RunRequests:    3,
	topic.Ticks:          4,
	topic.Candidates:     5,
}

// inOrder sorts a batch by topic. The order within a partition stays.
func inOrder(name func(kafkaTopic string) topic.Name, records []*kgo.Record) []*kgo.Record {
	sorted := slices.Clone(records)
	// I6: stable, so that one topic's records of a person stay as they came.
	slices.SortStableFunc(sorted, func(a, b *kgo.Record) int { return order[name(a.Topic)] - order[name(b.Topic)] })
	return sorted
}
