package resolver

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// From the request to the balance: who is asked for, with what, and who is not
// and why.
func TestARunAsksForWhomItMayWithWhatTheyNeed(t *testing.T) {
	s := newStage(t)
	s.start("0")
	older, current := identity.Hash("older"), identity.Hash("current")
	body, err := definitions.Segment{Imports: []identity.ID{current}}.Encode()
	require.NoError(t, err)
	_, err = definitions.Write(t.Context(), s.put, "test", []definitions.Change{{Kind: definitions.KindSegment, ID: "vip", Body: body}})
	require.NoError(t, err)
	audience := adults()
	audience.Filter = &filter.Node{All: []*filter.Node{audience.Filter, {Segment: "vip"}}}
	s.define(audience, hello(), campaign("greeting"))

	s.person("sends", "sends@example.test", "", 40)
	s.person("says-yes", "says-yes@example.test", "subscribed", 41)
	s.person("no-address", "", "", 42)
	s.person("says-no", "says-no@example.test", "unsubscribed", 43)
	s.person("child", "child@example.test", "", 12)
	s.person("no-vip", "no-vip@example.test", "", 44)
	for _, id := range []string{"sends", "says-yes", "no-address", "says-no", "child"} {
		s.write(topic.SegmentMembers, id, &event.SegmentMember{SegmentID: "vip", ImportID: older, UserID: id, Attributes: []event.NamedValue{{Name: "coupon", Value: event.String("stale")}}})
		s.write(topic.SegmentMembers, id, &event.SegmentMember{SegmentID: "vip", ImportID: current, UserID: id, Attributes: []event.NamedValue{{Name: "coupon", Value: event.String(id)}}})
	}
	for name, numbers := range map[string][]int64{"event-collector-0-a": {9, 5}, "event-collector-1-b": {2}, "event-collector-2-c": {40, 0}} {
		for _, n := range numbers {
			s.write(topic.Spools, name, &event.Spool{Spool: name, Records: n, UpdatedAt: time.Now()})
		}
	}
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested+ledger.ExcludedTotal(&t.RunCounters) == 4 })

	state := s.until(run, runs.Sending)
	got := s.requests(run)
	require.Len(t, got, 2)
	for _, id := range []string{"sends", "says-yes"} {
		q := got[id]
		require.Equal(t, id+"@example.test", q.Address)
		require.Equal(t, []int64{state.CampaignVersion, state.TemplateVersion}, []int64{q.CampaignVersion, q.TemplateVersion})
		require.Equal(t, []string{"greeting", "hello", "email", "bulk", definition.AtMostOnce, "1"}, []string{q.CampaignID, q.TemplateID, q.Channel, q.Lane, q.Policy, q.KeyID})
		require.Equal(t, state.ExpiresAt, q.ExpiresAt)
		require.False(t, q.RequestedAt.Before(state.AsOf))
		require.Len(t, q.Attributes, 1)
		require.Equal(t, "age", q.Attributes[0].Name)
		require.Equal(t, []event.SegmentValues{{SegmentID: "vip", Attributes: []event.NamedValue{{Name: "coupon", Value: event.String(id)}}}}, q.Segments,
			"the list that the run has pinned, and no other")
	}
	why := map[string]string{}
	for _, o := range read[event.Outcome](s, topic.Outcomes) {
		require.Equal(t, "excluded", o.Outcome)
		require.Equal(t, run, o.RunID)
		why[o.UserID] = o.Reason
	}
	require.Equal(t, map[string]string{"no-address": "no_address", "says-no": "unsubscribed"}, why)
	totals := s.view.Totals(run)
	require.Equal(t, []event.ReasonCount{{Reason: "no_address", Count: 1}, {Reason: "unsubscribed", Count: 1}}, totals.Excluded)
	require.EqualValues(t, 4, totals.Candidates)

	s.answer(got, "accepted")
	state = s.until(run, runs.Finished)
	require.True(t, state.Balanced)
	require.EqualValues(t, 4, state.Expected)
	require.EqualValues(t, 7, state.UnreadSpoolEvents, "what lies in spools is not waited for, and said")
}

// Counters are a function of the set of outcomes, whatever their order and
// however often each comes.
func TestCountersAreExactUnderRepeatedAndShuffledOutcomes(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	const people = 120
	s.people(people)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == people })

	endings := [][]string{{"rejected 0"}, {"accepted 1"}, {"failed 1"}, {"uncertain 1"}, {"deferred 1", "accepted 2"}, {"deferred 1", "failed 2"}, {"uncertain 1", "accepted 1"},
		{"expired 1"}, {"cancelled 1"}, {"parked 1"}}
	want := event.RunCounters{Rejected: 12, Accepted: 36, Failed: 24, Uncertain: 12, Expired: 12, Cancelled: 12, Parked: 12}
	var records []*kgo.Record
	for _, q := range s.requests(run) {
		var i int
		_, err := fmt.Sscanf(q.UserID, "u%03d", &i)
		require.NoError(t, err)
		for _, e := range append([]string{"rendered 0"}, endings[i%len(endings)]...) {
			var what string
			var attempt int32
			_, err := fmt.Sscanf(e, "%s %d", &what, &attempt)
			require.NoError(t, err)
			for range 1 + rand.IntN(3) {
				r, err := s.put.Record(topic.Outcomes, q.UserID, outcome(&q, what, attempt))
				require.NoError(t, err)
				records = append(records, r)
			}
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	s.Produce(t, records...)
	s.until(run, runs.Finished)
	totals := s.view.Totals(run)
	want.Requested = people
	require.Equal(t, want, totals.RunCounters)
	for p := range int32(s.put.P()) {
		c := s.view.Counters(run, p)
		require.Equal(t, c.Requested, c.Rejected+c.Accepted+c.Failed+c.Uncertain+c.Expired+c.Cancelled+c.Parked, "partition %d", p)
	}
}

// A run that has ended is not ended twice, and evidence that comes late moves a
// unit without changing the sum.
func TestEvidenceAfterTheEndMovesAUnit(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(4)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 4 })
	got := s.requests(run)
	s.answer(got, "uncertain")
	s.until(run, runs.Finished)
	s.answer(map[string]event.MessageRequest{"u000": got["u000"]}, "accepted")
	totals := s.totals(run, func(t runs.Totals) bool { return t.Accepted == 1 })
	require.EqualValues(t, 3, totals.Uncertain)
	require.Empty(t, totals.Balance())
	ended := 0
	for _, r := range read[event.Run](s, topic.Runs) {
		if r.State != nil && r.State.State == runs.Finished {
			ended++
		}
	}
	require.Equal(t, 1, ended)
}

// A candidate whose message is known is counted and not asked for again.
func TestACandidateThatComesTwiceIsARepeat(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	ids := s.people(10)
	s.person("no-address", "", "", 30)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 10 })
	s.answer(s.requests(run), "accepted")
	s.until(run, runs.Finished)
	for _, id := range append(ids, "no-address") {
		s.write(topic.Candidates, id, &event.Candidate{RunID: run, CampaignID: "greeting", UserID: id, Of: 1})
	}
	totals := s.totals(run, func(t runs.Totals) bool { return t.Repeats == 11 })
	require.EqualValues(t, 10, totals.Requested)
	require.EqualValues(t, 1, ledger.ExcludedTotal(&totals.RunCounters))
	require.Len(t, s.requests(run), 10)
	require.Len(t, read[event.Outcome](s, topic.Outcomes), 11, "no second exclusion")
}

// A shard that is asked for twice is read once: its done mark could not say how
// many candidates both came to, and the run would never balance.
func TestAShardThatIsDoneIsNotReadAgain(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(10)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 10 })
	shard := read[event.RunShard](s, topic.RunShards)[0]
	r, err := s.put.RecordAt(topic.RunShards, 0, runs.ShardKey(run, shard.Shard, shard.Of), &shard)
	require.NoError(t, err)
	s.Produce(t, r)
	s.eventually(func() bool {
		behind, err := s.put.Passed(t.Context(), topic.GroupShardLoop, map[topic.Name]map[int32]int64{topic.RunShards: {0: r.Offset + 1}})
		return err == nil && len(behind) == 0
	}, "the shard is not read again")
	s.answer(s.requests(run), "accepted")
	s.until(run, runs.Finished)
	require.Len(t, read[event.Candidate](s, topic.Candidates), 10)
	require.Zero(t, s.view.Totals(run).Repeats)
}

// I9: a run is finished when ClickHouse counts what the resolver counts, and not
// before.
func TestARunIsNotFinishedWhileClickHouseCountsOtherwise(t *testing.T) {
	s := newStage(t)
	s.sink.lose = func(o *event.Outcome) bool { return o.Outcome == "accepted" && o.UserID == "u003" }
	s.start("0")
	s.greeting()
	s.people(5)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 5 })
	s.answer(s.requests(run), "accepted")
	s.eventually(func() bool {
		_, state, _ := s.view.State(run)
		require.NotEqual(t, runs.Finished, state.State)
		return state.State == runs.Balancing && state.Note != ""
	}, "the difference is not said: %s", describe{s, run})
	_, state, _ := s.view.State(run)
	require.Contains(t, state.Note, "ClickHouse")
	require.NoError(t, s.sink.find(t.Context()))
	require.True(t, s.until(run, runs.Finished).Balanced)
}

// A campaign is sent once unless somebody says again.
func TestASecondStartIsRefusedUnlessAgain(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(3)
	s.sender()
	first := s.request("greeting", false)
	s.until(first, runs.Finished)
	second := s.request("greeting", false)
	state := s.until(second, runs.Refused)
	require.Contains(t, state.Note, first.String())
	again := s.request("greeting", true)
	s.until(again, runs.Finished)
	require.Len(t, s.requests(again), 3)
	require.Empty(t, s.requests(second))
	unknown := s.request("no-such", false)
	require.Contains(t, s.until(unknown, runs.Refused).Note, "apply it first")
}

// Two starts in one batch see each other, though neither is written yet.
func TestTwoStartsAtOnceAreOneRun(t *testing.T) {
	s := newStage(t)
	s.greeting()
	s.people(3)
	s.sender()
	a, b := s.request("greeting", false), s.request("greeting", false)
	s.start("0")
	s.until(a, runs.Finished)
	s.until(b, runs.Refused)
	require.Len(t, s.requests(a), 3)
}

func TestACancelReachesWhoStillWaitsToBeAdmitted(t *testing.T) {
	s := newStage(t)
	s.cfg.Window = 4 // one in each partition
	s.start("0")
	s.greeting()
	s.people(60)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Waiting > 0 })
	// These are written while the partitions are paused.
	var records []*kgo.Record
	for i := range 40 {
		id := fmt.Sprintf("later%02d", i)
		r, err := s.put.Record(topic.ProfileUpdates, id, personPatch(id, id+"@example.test", "", 30))
		require.NoError(t, err)
		c, err := s.put.Record(topic.Candidates, id, &event.Candidate{RunID: run, CampaignID: "greeting", UserID: id, Of: 1})
		require.NoError(t, err)
		records = append(records, r, c)
	}
	s.Produce(t, records...)
	s.cancel("greeting", run)
	// Nobody sends, and still those who wait are told.
	totals := s.totals(run, func(t runs.Totals) bool { return ledger.ExcludedTotal(&t.RunCounters)+t.Requested == 100 })
	require.LessOrEqual(t, totals.Requested, int64(60))
	require.Equal(t, []event.ReasonCount{{Reason: "run_cancelled", Count: 100 - totals.Requested}}, totals.Excluded)
}

// A run that is cancelled balances like any other, and says that it was.
func TestACancelledRunBalances(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(6)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 6 })
	s.cancel("greeting", run)
	s.eventually(func() bool { _, state, _ := s.view.State(run); return state.CancelRequested }, "not cancelled")
	s.answer(s.requests(run), "cancelled")
	state := s.until(run, runs.Cancelled)
	require.True(t, state.Balanced)
	require.EqualValues(t, 6, s.view.Totals(run).Cancelled)
}

// A start and its cancel that are read together cancel the run.
func TestACancelInTheBatchOfItsStartIsNotLost(t *testing.T) {
	s := newStage(t)
	s.greeting()
	s.people(3)
	run := s.request("greeting", false)
	s.cancel("greeting", run)
	s.start("0")
	s.until(run, runs.Cancelled)
	require.Empty(t, s.requests(run))
}

func TestAScheduledCampaignStartsByTheTick(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.people(3)
	s.sender()
	at := time.Now().UTC().Add(2 * time.Second).Truncate(time.Second)
	timed, missed := campaign("timed"), campaign("missed")
	timed.At, missed.At = definition.At{Time: at}, definition.At{Time: at.Add(-48 * time.Hour)}
	s.define(adults(), hello(), timed, missed)
	run := identity.Run(s.put.Namespace(), "timed", at.Format(time.RFC3339Nano))
	state := s.until(run, runs.Finished)
	require.False(t, state.AsOf.Before(at), "not before its time")
	require.Equal(t, at, state.RequestedAt.UTC())
	require.Len(t, s.requests(run), 3)
	late := identity.Run(s.put.Namespace(), "missed", missed.At.Time.Format(time.RFC3339Nano))
	require.Contains(t, s.until(late, runs.Refused).Note, "more than")
}

var sinkLacks = regexp.MustCompile(`group event-collector lacks \d+ records of profiles`)

// A run waits for the sink, says so, and goes on by itself.
func TestARunIsBlockedWhileTheSinkStandsStill(t *testing.T) {
	s := newStage(t)
	s.cfg.StaleAfter = 300 * time.Millisecond
	s.sender()
	s.start("0")
	s.greeting()
	s.sink.set(func() { s.sink.off = true })
	s.people(3)
	run := s.request("greeting", false)
	s.eventually(func() bool { // it may be blocked by the person loop before
		_, state, _ := s.view.State(run)
		return state.State == runs.Blocked && sinkLacks.MatchString(state.Note)
	}, "it does not wait for the sink, or does not say so: %s", describe{s, run})
	s.sink.set(func() { s.sink.off = false })
	require.Empty(t, s.until(run, runs.Finished).Note)
	require.Len(t, s.requests(run), 3)
}

// A shard with more people than a transaction should hold becomes two, and they
// again; everybody is in exactly one.
func TestALargeShardIsSplit(t *testing.T) {
	s := newStage(t)
	s.maxShard = 10
	s.start("0")
	s.greeting()
	s.people(70)
	s.sender()
	run := s.request("greeting", false)
	s.until(run, runs.Finished)
	require.Len(t, s.requests(run), 70)
	totals := s.view.Totals(run)
	require.EqualValues(t, 70, totals.Candidates)
	require.Zero(t, totals.Repeats)
	require.Greater(t, totals.ShardsDone, int32(7))
	for _, r := range read[event.Run](s, topic.Runs) {
		if r.Shard != nil {
			require.LessOrEqual(t, r.Shard.Candidates, int64(10))
		}
	}
}

// Who bounced for good is not written to again, until that is lifted or there is
// another address; and the run that they bounced from still balances.
func TestWhoBouncedIsExcludedFromTheNextRun(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	for _, id := range []string{"fine", "lifted", "bounced", "moved"} {
		s.person(id, id+"@example.test", "", 40)
	}
	first := s.request("greeting", false)
	s.totals(first, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 4 })
	got := s.requests(first)
	require.Len(t, got, 4)
	for id, q := range got {
		what := "uncertain"
		if id == "fine" {
			what = "accepted"
		}
		s.write(topic.Outcomes, id, outcome(&q, what, 1))
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	report := func(id, reason string, at time.Time) *event.ProfilePatch {
		p := &event.ProfilePatch{UserID: id, OccurredAt: at, SetAt: at, SetBy: "webhook:ses", Suppressions: []event.SuppressionPatch{{Channel: "email", Address: strings.ToUpper(id) + "@example.test", Reason: reason}}}
		s.write(topic.ProfileUpdates, id, p)
		return p
	}
	for _, id := range []string{"lifted", "bounced", "moved"} {
		q := got[id]
		report(id, "bounced", at)
		s.write(topic.Outcomes, id, outcome(&q, "bounced", 0))
	}
	totals := s.totals(first, func(t runs.Totals) bool { return t.Accepted == 4 })
	require.Equal(t, event.RunCounters{Requested: 4, Accepted: 4}, totals.RunCounters, "what bounced had been taken")
	require.True(t, s.until(first, runs.Finished).Balanced)

	report("lifted", "", at.Add(time.Second))
	report("lifted", "bounced", at) // delivered again
	moved := personPatch("moved", "new@example.test", "", 40)
	moved.OccurredAt = at.Add(time.Second)
	s.write(topic.ProfileUpdates, "moved", moved)
	second := s.request("greeting", true)
	s.totals(second, func(t runs.Totals) bool {
		return t.Resolved() && t.Requested == 3 && ledger.ExcludedTotal(&t.RunCounters) == 1
	})
	got = s.requests(second)
	require.Len(t, got, 3)
	require.NotContains(t, got, "bounced")
	s.answer(got, "accepted")
	require.True(t, s.until(second, runs.Finished).Balanced)
	require.Equal(t, []event.ReasonCount{{Reason: "suppressed", Count: 1}}, s.view.Totals(second).Excluded)
}
