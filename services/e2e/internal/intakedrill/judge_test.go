package intakedrill

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEveryLossAndEveryCopyIsSeen(t *testing.T) {
	t.Parallel()
	well := func() facts {
		return facts{sent: 3, acknowledged: map[string]bool{"1": true, "2": true, "3": true}, rows: []string{"1", "2", "3"},
			records: map[string][]string{"a": {"1", "3", "1", "3"}, "b": {"2"}}}
	}
	require.Equal(t, verdict{copies: 2}, judge(well()), "copies in Kafka are what ids are for")
	for name, c := range map[string]struct {
		spoil func(*facts)
		bars  int
	}{
		"an event is missing":            {func(f *facts) { f.rows = f.rows[1:] }, 1},
		"an event is there twice":        {func(f *facts) { f.rows = append(f.rows, "2") }, 1},
		"a stranger":                     {func(f *facts) { f.rows = append(f.rows, "4") }, 1},
		"an event was given up":          {func(f *facts) { f.sent++ }, 1},
		"the sink has nothing":           {func(f *facts) { f.rows = nil }, 1},
		"a later event of one is before": {func(f *facts) { f.records["a"] = []string{"3", "1"} }, 1},
	} {
		f := well()
		c.spoil(&f)
		require.Len(t, judge(f).broken, c.bars, name)
	}
}

func TestTheCollectorIsKilledWhileTheBrokerIsAwayAndWhileItDrains(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		o := options{events: 5000, kills: 5, outage: 8 * time.Second, rate: 312.5, seed: seed}
		gone, back, kills := o.moments()
		require.Equal(t, o.outage, back-gone)
		require.Less(t, back, o.load())
		require.Len(t, kills, 5)
		require.True(t, kills[0] > gone && kills[0] < back && kills[3] > gone && kills[3] < back)
		require.True(t, kills[1] > back && kills[1] < back+2*time.Second)
		require.True(t, kills[2] < gone)
	}
	_, err := parse([]string{"--events", "1000", "--rate", "1000", "--outage", "5s"}, io.Discard)
	require.ErrorContains(t, err, "no longer than the outage")
}
