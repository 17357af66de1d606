package sink

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

var start = time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)

func second(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }

func TestAPartitionIsCompleteUntilTheLastLookThatWasPassed(t *testing.T) {
	var l lane
	l.see(second(0), 0, 0)
	require.Equal(t, second(0), l.until, "an empty partition is complete")
	l.see(second(1), 10, 0)
	require.Equal(t, second(0), l.until)
	l.see(second(2), 20, 5)
	require.Equal(t, second(0), l.until)
	l.see(second(3), 30, 19)
	require.Equal(t, second(1), l.until, "the look at 20 is not passed")
	l.see(second(4), 30, 20)
	require.Equal(t, second(2), l.until)
	l.see(second(5), 30, 30)
	require.Equal(t, second(5), l.until, "nothing came since")
	l.see(second(6), 30, 30)
	require.Equal(t, second(6), l.until, "what is idle goes on being complete")
}

// A mark never claims more than is stored, and lags no more than it must.
func TestAMarkNeverClaimsMoreThanIsPassed(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var l lane
		var end, passed int64
		ends := []int64{}
		for i := range rapid.IntRange(1, 400).Draw(r, "looks") {
			end += rapid.Int64Range(0, 5).Draw(r, "came")
			passed = min(end, passed+rapid.Int64Range(0, 5).Draw(r, "stored"))
			ends = append(ends, end)
			l.see(second(i), end, passed)
			if !l.until.IsZero() {
				at := int(l.until.Sub(start) / time.Second)
				require.LessOrEqual(r, ends[at], passed, "claimed at look %d", i)
			}
			if passed == end {
				require.Equal(r, second(i), l.until)
			}
			require.LessOrEqual(r, len(l.looks), maxLooks)
		}
	})
}

func TestAllIsCompleteUntilTheLeastOfItsPartitionsIs(t *testing.T) {
	ls := lanes{}
	ls.see(second(0), kafka.Mark{topic.Events: {0: 0, 1: 7}, topic.Runs: {0: 0}}, kafka.Mark{topic.Events: {0: 0, 1: 6}})
	require.Zero(t, ls.until(), "a partition was never complete")
	require.Equal(t, map[topic.Name]int64{topic.Events: 1, topic.Runs: 0}, ls.lag())
	ls.see(second(1), kafka.Mark{topic.Events: {0: 0, 1: 9}, topic.Runs: {0: 4}}, kafka.Mark{topic.Events: {0: 0, 1: 7}, topic.Runs: {0: 4}})
	require.Equal(t, second(0), ls.until())
	require.Equal(t, map[topic.Name]int64{topic.Events: 2, topic.Runs: 0}, ls.lag())
	require.Len(t, ls.rows(), 3)
}
