package resolver

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// unreadable is a record whose value is not Avro; its headers are as they were.
func unreadable(r *kgo.Record) *kgo.Record {
	c := *r
	c.Value = []byte("not Avro")
	return &c
}

// replay returns what an operator's replay of the dead letter in out writes: the
// record and, if there is one, the outcome.
func (b *bench) replay(out []*kgo.Record) []*kgo.Record {
	b.t.Helper()
	letters := of[event.DeadLetter](b, topic.DeadLettersResolver, out)
	require.Len(b.t, letters, 1)
	back, err := b.c.Replay(&letters[0], t0)
	require.NoError(b.t, err)
	return back
}

// outcomes are those among the records, to be read by the loop.
func (b *bench) outcomes(out []*kgo.Record) []*kgo.Record {
	var found []*kgo.Record
	for _, r := range out {
		if b.c.NameOf(r.Topic) == topic.Outcomes {
			found = append(found, r)
		}
	}
	return found
}

func (b *bench) books(run identity.ID, id string) event.RunCounters {
	b.t.Helper()
	c := b.view.Counters(run, topic.Partition(id, b.c.P()))
	require.NotNil(b.t, c)
	c.UpdatedAt, c.Partition = time.Time{}, 0
	return *c
}

// A candidate that is parked does not keep its run open: it is counted as
// requested and parked, once. Replayed, it is admitted as any other, once; and
// what is said of the message then speaks over both.
func TestAParkedCandidateIsCountedAndAdmittedByItsReplay(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"))
	lost := b.candidate(run, "greeting", "ann")
	lost.Partition = (lost.Partition + 1) % int32(b.c.P())
	out := b.commit(lost)
	said := b.outcomes(out)
	require.Len(t, said, 1)
	b.commit(said...)
	b.commit(said...)
	require.Equal(t, event.RunCounters{Requested: 1, Parked: 1}, b.books(run, "ann"))

	// Parked again by a fault of the same kind: the next attempt.
	back := b.replay(out)
	require.Len(t, back, 2)
	require.Empty(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, b.commit(back[1])))
	require.Equal(t, event.RunCounters{Requested: 1, Waiting: 1}, b.books(run, "ann"))
	again := b.commit(unreadable(back[0]))
	b.commit(b.outcomes(again)...)
	require.Equal(t, event.RunCounters{Requested: 1, Parked: 1}, b.books(run, "ann"))

	// The record may be read before what says that it was replayed.
	back = b.replay(again)
	back[0].Value = b.candidate(run, "greeting", "ann").Value // mended
	require.EqualValues(t, 2, kafka.Attempt(back[0]))
	requested := b.commit(back[0])
	require.Len(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, requested), 1)
	for _, r := range requested {
		if b.c.NameOf(r.Topic) == topic.MessageRequestsBulk {
			require.EqualValues(t, 2, kafka.Attempt(r), "whatever is said of it speaks over what was parked")
		}
	}
	after := b.commit(append(said, back...)...)
	require.Empty(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, after), "I5: admission drops what it has admitted, replayed or not")
	require.Equal(t, event.RunCounters{Requested: 1, Waiting: 1}, b.books(run, "ann"))
	b.commit(b.candidate(run, "greeting", "ann"))
	require.Equal(t, event.RunCounters{Repeats: 1, Requested: 1, Waiting: 1}, b.books(run, "ann"))

	q := of[event.MessageRequest](b, topic.MessageRequestsBulk, requested)[0]
	b.commit(b.record(topic.Outcomes, "ann", outcome(&q, "failed", 2)))
	require.Equal(t, event.RunCounters{Repeats: 1, Requested: 1, Failed: 1}, b.books(run, "ann"))
}

// Whoever may not be sent to at the replay is excluded, and was not requested.
func TestAReplayedCandidateMayBeExcluded(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	out := b.commit(unreadable(b.candidate(run, "greeting", "ann")))
	b.commit(b.outcomes(out)...)
	back := b.replay(out)
	back[0].Value = b.candidate(run, "greeting", "ann").Value
	out = b.commit(back...)
	excluded := of[event.Outcome](b, topic.Outcomes, out)
	require.Len(t, excluded, 1)
	require.Equal(t, []any{"excluded", "no_address", int32(1)}, []any{excluded[0].Outcome, excluded[0].Reason, excluded[0].Attempt})
	require.Equal(t, event.RunCounters{Excluded: []event.ReasonCount{{Reason: "no_address", Count: 1}}}, b.books(run, "ann"))
	b.commit(back...)
	require.Equal(t, event.RunCounters{Excluded: []event.ReasonCount{{Reason: "no_address", Count: 1}}}, b.books(run, "ann"))
}

// An outcome that cannot be read ends the wait: nobody would ever say it again.
// Whatever can be read speaks over it.
func TestAnOutcomeThatCannotBeReadParksItsMessage(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	out := b.commit(unreadable(b.outcome(run, "greeting", "ann", "accepted")))
	b.commit(b.outcomes(out)...)
	require.Equal(t, event.RunCounters{Requested: 1, Parked: 1}, b.books(run, "ann"))
	b.commit(b.outcome(run, "greeting", "ann", "failed"))
	require.Equal(t, event.RunCounters{Requested: 1, Failed: 1}, b.books(run, "ann"))
}

// What is kept of one person cannot be read: what is about her is parked with the
// reason, and everybody else goes on.
func TestAPersonWhoseStateCannotBeReadStopsNobodyElse(t *testing.T) {
	for _, broken := range []struct {
		name topic.Name
		key  string
	}{{topic.Profiles, "ann"}, {topic.PersonState, "ann/" + kindMessages}} {
		t.Run(string(broken.name), func(t *testing.T) {
			b := newBench(t)
			run := b.running("greeting")
			b.commit(b.patch("ann"), b.patch("bob"))
			home := topic.Partition("ann", b.c.P())
			b.k.Produce(t, &kgo.Record{Topic: broken.name.In(b.c.Namespace()), Partition: home, Key: []byte(broken.key), Value: []byte("not Avro")})
			require.NoError(t, b.Assigned(t.Context(), []int32{0, 1, 2, 3}))

			out := b.commit(b.candidate(run, "greeting", "ann"), b.candidate(run, "greeting", "bob"))
			require.Len(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, out), 1, "bob")
			letters := of[event.DeadLetter](b, topic.DeadLettersResolver, out)
			require.Len(t, letters, 1)
			require.Contains(t, letters[0].Reason, "what is kept of the person in "+string(broken.name))
			// What says so may itself be impossible to keep; it goes on no further.
			for rounds := 0; len(b.outcomes(out)) > 0; rounds++ {
				require.Less(t, rounds, 3, "parking goes on for ever")
				out = b.commit(b.outcomes(out)...)
			}
			if broken.name == topic.Profiles {
				require.EqualValues(t, 1, b.books(run, "ann").Parked)
			}
		})
	}
}

// A record of one run that cannot be read keeps that run from balancing until it
// is written anew, and no other.
func TestARunThatCannotBeReadStopsNobodyElse(t *testing.T) {
	b := newBench(t)
	one, other := b.running("greeting"), b.running("other")
	key := runs.CountersKey(one, 0)
	b.k.Produce(t, &kgo.Record{Topic: topic.Runs.In(b.c.Namespace()), Key: []byte(key), Value: []byte("not Avro")},
		&kgo.Record{Topic: topic.Runs.In(b.c.Namespace()), Key: []byte("nobody's"), Value: []byte("not Avro")})
	require.NoError(t, b.caught(t.Context()))
	totals := b.view.Totals(one)
	require.Contains(t, totals.Balance(), key)
	totals = b.view.Totals(other)
	require.NotContains(t, totals.Balance(), "cannot be read")
	b.k.Produce(t, b.record(topic.Runs, key, &event.Run{RunID: one, CampaignID: "greeting", Counters: &event.RunCounters{}}))
	require.NoError(t, b.caught(t.Context()))
	totals = b.view.Totals(one)
	require.NotContains(t, totals.Balance(), "cannot be read")
}

// A finished run one of whose messages is replayed is open again, and balances and
// finishes like any other.
func TestAReplayOpensItsRunAgain(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(3)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 3 })
	got := s.requests(run)
	lost := got["u001"]
	delete(got, "u001")
	s.answer(got, "accepted")
	say := func(what string, attempt int32) {
		s.write(topic.Outcomes, "u001", outcome(&lost, what, attempt))
	}
	say("parked", 1)
	state := s.until(run, runs.Finished)
	require.True(t, state.Balanced)
	require.EqualValues(t, 1, s.view.Totals(run).Parked)

	for attempt := int32(1); attempt < 3; attempt++ {
		say("replayed", attempt)
		state = s.until(run, runs.Sending)
		require.False(t, state.Balanced)
		require.Nil(t, state.FinishedAt)
		require.EqualValues(t, 1, s.view.Totals(run).Waiting)
		if attempt == 1 {
			say("parked", 2)
		} else {
			say("accepted", 3)
		}
		state = s.until(run, runs.Finished)
		require.True(t, state.Balanced)
		require.NotNil(t, state.FinishedAt)
	}
	totals := s.view.Totals(run)
	require.Equal(t, []int64{3, 0, 3}, []int64{totals.Requested, totals.Parked, totals.Accepted})
	require.Empty(t, ledger.ExcludedTotal(&totals.RunCounters))
}

// A shard's record that cannot be read is read by its key: nobody in it is lost.
func TestAShardThatCannotBeReadIsResolvedByItsKey(t *testing.T) {
	s := newStage(t)
	s.greeting()
	s.people(5)
	s.sender()
	run := s.request("greeting", false)
	stop := s.start("0")
	s.until(run, runs.Finished)
	stop()
	// The same run's shards once more, and one that nobody has read: of another run.
	other := identity.Hash("another run")
	state := *mustState(s, run)
	state.State, state.FinishedAt, state.Balanced = runs.Resolving, nil, false
	s.write(topic.Runs, runs.StateKey(other), &event.Run{RunID: other, CampaignID: "greeting", State: &state})
	for _, key := range []string{runs.ShardKey(run, 0, 1), runs.ShardKey(other, 0, 1), "no key of a shard"} {
		s.Produce(t, &kgo.Record{Topic: topic.RunShards.In(s.put.Namespace()), Key: []byte(key), Value: []byte("not Avro")})
	}
	s.start("0")
	s.until(other, runs.Finished)
	require.EqualValues(t, 5, s.view.Totals(other).Candidates)
	require.EqualValues(t, 5, s.view.Totals(run).Candidates, "what was read is not read again")
	s.eventually(func() bool { return len(read[event.DeadLetter](s, topic.DeadLettersResolver)) == 3 }, "all are listed")
}

func mustState(s *stage, run identity.ID) *event.RunState {
	_, state, ok := s.view.State(run)
	require.True(s.t, ok)
	return &state
}
