package resolver

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What is drained while a run waits comes too late for it, and a collector may not have
// had its say when the run began.
func TestWhatLayInASpoolBeforeOrAfterCounts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		before, after map[string]int64
		want          int64
	}{
		{nil, nil, 0},
		{map[string]int64{"drained": 5}, nil, 5},
		{nil, map[string]int64{"silent until now": 7}, 7},
		{map[string]int64{"drains": 5, "fills": 1, "rests": 2}, map[string]int64{"drains": 3, "fills": 4, "rests": 2}, 11},
	} {
		require.Equal(t, c.want, unread(c.before, c.after), "%v, then %v", c.before, c.after)
	}
}
