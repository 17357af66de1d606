package importfile

import (
	"cmp"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func byLine(a, b RejectKind) int { return cmp.Compare(a.FirstLine, b.FirstLine) }

func TestRejectsAreCountedByColumnAndReason(t *testing.T) {
	t.Parallel()
	var tally Tally
	require.Empty(t, tally.Kinds(byLine))
	for n, kind := range []string{"a", "b", "a", "c"} {
		tally.Add(int64(n+2), kind, "is bad")
	}
	tally.Add(6, "a", "is worse")
	require.Equal(t, []RejectKind{{"a", "is bad", 2, 2}, {"b", "is bad", 1, 3}, {"c", "is bad", 1, 5}, {"a", "is worse", 1, 6}}, tally.Kinds(byLine))
}

func TestReasonsBeyondAHundredAreCountedTogetherAndLast(t *testing.T) {
	t.Parallel()
	var tally Tally
	for n := range 350 {
		tally.Add(int64(n+2), "a", fmt.Sprintf("reason %d", n))
	}
	tally.Add(400, "a", "reason 7")
	kinds := tally.Kinds(byLine)
	require.Len(t, kinds, 101)
	require.Equal(t, RejectKind{"a", "reason 7", 2, 9}, kinds[0])
	require.Equal(t, RejectKind{"a", "reason 0", 1, 2}, kinds[1])
	require.Equal(t, RejectKind{"", "other reasons", 250, 102}, kinds[100])
}
