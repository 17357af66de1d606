package resolver

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Whoever is erased is gone from the changelogs, and the books still add up: what
// comes of her message is counted, and she is not written to once more.
func TestAnErasedPersonIsForgottenAndStaysCounted(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"), b.record(topic.SegmentMembers, "ann", &event.SegmentMember{SegmentID: "s", ImportID: run, UserID: "ann"}), b.candidate(run, "greeting", "ann"))
	b.commit(b.record(topic.ProfileUpdates, "ann", said("ann", imported, 1, 31, "", ""))) // something is replaced

	erase := &event.ProfilePatch{UserID: "ann", Erases: true, SetAt: t0, OccurredAt: t0, SetBy: "erase"}
	out := b.commit(b.record(topic.ProfileUpdates, "ann", erase))
	removed, kept := map[string]bool{}, []string{}
	for _, r := range out {
		if r.Value == nil {
			removed[string(b.c.NameOf(r.Topic))+" "+string(r.Key)] = true
			continue
		}
		kept = append(kept, string(r.Key))
		require.NotContains(t, string(r.Value), "ann")
	}
	for _, gone := range []string{"profiles ann", "person-state ann/memberships", "person-state ann/messages", "person-state ann/replaced"} {
		require.True(t, removed[gone], gone)
	}
	require.Equal(t, []string{identity.Person("test", "ann").String() + "/messages"}, kept)
	require.False(t, strings.Contains(kept[0], "ann"))

	books := func(what string) *event.RunCounters {
		out := b.commit(b.outcome(run, "greeting", "ann", what))
		require.Len(t, of[event.Run](b, topic.Runs, out), 1, what)
		return of[event.Run](b, topic.Runs, out)[0].Counters
	}
	c := books("uncertain")
	require.Equal(t, []int64{1, 0, 1, 0}, []int64{c.Requested, c.Waiting, c.Uncertain, c.Accepted})
	c = books("accepted") // evidence overrules, after as before
	require.Equal(t, []int64{1, 0, 0, 1}, []int64{c.Requested, c.Waiting, c.Uncertain, c.Accepted})

	// She comes back: a new person, whom this run has had.
	out = b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	require.EqualValues(t, 1, of[event.Profile](b, topic.Profiles, out)[0].Revision)
	require.Empty(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, out))
	require.EqualValues(t, 1, of[event.Run](b, topic.Runs, out)[0].Counters.Repeats)
}
