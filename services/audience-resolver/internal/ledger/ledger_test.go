package ledger_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/event"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
)

type said struct {
	outcome string
	attempt int32
}

func classOf(outcomes []said) string {
	m := event.MessageState{Class: ledger.Waiting}
	for _, o := range outcomes {
		ledger.Apply(&m, o.outcome, o.attempt)
	}
	return m.Class
}

func TestClassOfAMessage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		outcomes []said
		want     string
	}{
		{"nothing yet", nil, ledger.Waiting},
		{"rendered is a step, not an ending", []said{{"rendered", 0}}, ledger.Waiting},
		{"rejected by the renderer", []said{{"rejected", 0}}, ledger.Rejected},
		{"accepted", []said{{"rendered", 0}, {"accepted", 1}}, ledger.Accepted},
		{"a retry follows", []said{{"deferred", 1}}, ledger.Waiting},
		{"accepted at the second try", []said{{"deferred", 1}, {"accepted", 2}}, ledger.Accepted},
		{"never heard back", []said{{"uncertain", 1}}, ledger.Uncertain},
		{"an answer outranks uncertain for that attempt", []said{{"uncertain", 1}, {"failed", 1}}, ledger.Failed},
		{"uncertain does not outrank an answer", []said{{"failed", 1}, {"uncertain", 1}}, ledger.Failed},
		{"a retry after an unresolved attempt", []said{{"uncertain", 1}, {"deferred", 1}, {"failed", 2}}, ledger.Failed},
		{"acceptance stands", []said{{"accepted", 1}, {"failed", 2}, {"uncertain", 3}}, ledger.Accepted},
		{"acceptance arrives late", []said{{"failed", 2}, {"accepted", 1}}, ledger.Accepted},
		{"delivered is evidence of acceptance", []said{{"uncertain", 1}, {"delivered", 1}}, ledger.Accepted},
		{"who bounced had been taken by the provider", []said{{"uncertain", 1}, {"bounced", 0}}, ledger.Accepted},
		{"who complained even got it", []said{{"complained", 0}, {"failed", 2}}, ledger.Accepted},
		{"a delay says nothing yet", []said{{"uncertain", 1}, {"delayed", 0}}, ledger.Uncertain},
		{"parked ends the wait", []said{{"parked", 0}}, ledger.Parked},
		{"replayed, it waits again", []said{{"parked", 1}, {"replayed", 1}}, ledger.Waiting},
		{"parked again, though it was replayed", []said{{"parked", 1}, {"replayed", 1}, {"parked", 2}}, ledger.Parked},
		{"replayed twice", []said{{"parked", 0}, {"replayed", 0}, {"parked", 1}, {"replayed", 1}}, ledger.Waiting},
		{"the replay is refused for good", []said{{"parked", 1}, {"replayed", 1}, {"failed", 2}}, ledger.Failed},
		{"nobody heard of the replay", []said{{"parked", 1}, {"replayed", 1}, {"uncertain", 2}}, ledger.Uncertain},
		{"the replay is accepted", []said{{"parked", 0}, {"replayed", 0}, {"rendered", 1}, {"accepted", 1}}, ledger.Accepted},
		{"an outcome that could not be read", []said{{"parked", -1}}, ledger.Parked},
		{"whatever could be read speaks over it", []said{{"parked", -1}, {"rejected", 0}}, ledger.Rejected},
		{"given up in time", []said{{"deferred", 1}, {"expired", 2}}, ledger.Expired},
	} {
		require.Equal(t, c.want, classOf(c.outcomes), c.name)
	}
}

// The class depends on what was said, not on when it arrived or how often.
func TestOrderAndRepetitionDoNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Custom(func(t *rapid.T) said {
			return said{rapid.SampledFrom([]string{"rendered", "rejected", "accepted", "deferred", "failed", "uncertain", "expired", "cancelled", "parked", "replayed", "delivered", "bounced", "complained", "delayed"}).Draw(t, "outcome"),
				rapid.Int32Range(-1, 3).Draw(t, "attempt")}
		})
		outcomes := rapid.SliceOfN(one, 0, 6).Draw(t, "outcomes")
		want := classOf(outcomes)
		more := append(append([]said{}, outcomes...), outcomes...)
		require.Equal(t, want, classOf(rapid.Permutation(more).Draw(t, "again")))
	})
}

// Units move between counters and are neither made nor lost.
func TestMovesKeepTheSum(t *testing.T) {
	t.Parallel()
	c := event.RunCounters{Requested: 3, Waiting: 3}
	m := event.MessageState{Class: ledger.Waiting}
	for _, o := range []said{{"uncertain", 1}, {"uncertain", 1}, {"accepted", 1}, {"accepted", 1}} {
		if before, moved := ledger.Apply(&m, o.outcome, o.attempt); moved {
			ledger.Move(&c, before, m.Class)
		}
	}
	require.Equal(t, event.RunCounters{Requested: 3, Waiting: 2, Accepted: 1}, c)
}

func TestExclusionsAreCountedByReason(t *testing.T) {
	t.Parallel()
	var c event.RunCounters
	for _, r := range []string{"unsubscribed", "no_address", "unsubscribed", "run_cancelled"} {
		ledger.CountExclusion(&c, r)
	}
	require.Equal(t, []event.ReasonCount{{Reason: "no_address", Count: 1}, {Reason: "run_cancelled", Count: 1}, {Reason: "unsubscribed", Count: 2}}, c.Excluded)
	require.EqualValues(t, 4, ledger.ExcludedTotal(&c))
}
