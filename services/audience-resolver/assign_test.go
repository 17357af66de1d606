package resolver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

// members returns the partitions of each member of the person loop's group, by
// topic.
func (s *stage) members() map[string]map[topic.Name][]int32 {
	s.t.Helper()
	groups, err := s.Admin().DescribeGroups(s.t.Context(), topic.GroupPersonLoop.In(s.put.Namespace()))
	require.NoError(s.t, err)
	out := map[string]map[topic.Name][]int32{}
	for _, g := range groups {
		for _, m := range g.Members {
			assigned, ok := m.Assigned.AsConsumer()
			if !ok || m.InstanceID == nil {
				continue
			}
			out[*m.InstanceID] = map[topic.Name][]int32{}
			for _, t := range assigned.Topics {
				slices.Sort(t.Partitions)
				out[*m.InstanceID][s.put.NameOf(t.Topic)] = t.Partitions
			}
		}
	}
	return out
}

// requireBooks checks a run's books against everything that was written, which
// shares no state with the resolvers: nobody was asked for twice, and every
// counter is what its records say.
func (s *stage) requireBooks(run string, people int) {
	s.t.Helper()
	asked, excluded, accepted := map[string]bool{}, map[string]bool{}, map[string]bool{}
	byPartition := map[int32]*event.RunCounters{}
	of := func(user string) *event.RunCounters {
		p := topic.Partition(user, s.put.P())
		if byPartition[p] == nil {
			byPartition[p] = &event.RunCounters{Partition: p}
		}
		return byPartition[p]
	}
	for _, q := range read[event.MessageRequest](s, topic.MessageRequestsBulk) {
		if q.RunID.String() != run {
			continue
		}
		require.False(s.t, asked[q.UserID], "%s was asked for twice", q.UserID)
		asked[q.UserID] = true
		of(q.UserID).Requested++
	}
	for _, o := range read[event.Outcome](s, topic.Outcomes) {
		if o.RunID.String() != run {
			continue
		}
		switch o.Outcome {
		case ledger.Excluded:
			require.False(s.t, excluded[o.UserID] || asked[o.UserID], "%s was excluded twice, or beside a request", o.UserID)
			excluded[o.UserID] = true
			ledger.CountExclusion(of(o.UserID), o.Reason)
		case ledger.Accepted:
			if !accepted[o.UserID] {
				accepted[o.UserID] = true
				of(o.UserID).Accepted++
			}
		}
	}
	require.Equal(s.t, people, len(asked)+len(excluded), "somebody is forgotten")
	written := map[int32]*event.RunCounters{}
	for _, r := range read[event.Run](s, topic.Runs) {
		if r.RunID.String() == run && r.Counters != nil {
			written[r.Counters.Partition] = r.Counters
		}
	}
	require.ElementsMatch(s.t, slices.Collect(maps.Keys(byPartition)), slices.Collect(maps.Keys(written)))
	for p, want := range byPartition {
		got := runs.CloneCounters(written[p])
		want.UpdatedAt, want.Repeats = got.UpdatedAt, got.Repeats
		require.Equal(s.t, want, got, "partition %d", p)
	}
}

// settled waits until the group has passed everything that people and outcomes
// wrote.
func (s *stage) settled() {
	s.t.Helper()
	s.eventually(func() bool {
		ends, err := s.put.HighWatermarks(s.t.Context(), topic.ProfileUpdates, topic.SegmentMembers, topic.Outcomes, topic.RunRequests, topic.Candidates)
		if err != nil {
			return false
		}
		behind, err := s.put.Passed(s.t.Context(), topic.GroupPersonLoop, ends)
		return err == nil && len(behind) == 0
	}, "the person loop does not pass what was written")
}

// Three instances share the partitions, the same numbers of every topic; when one
// dies, the others have what it knew.
func TestPartitionsMoveWithWhatIsKnownOfTheirPeople(t *testing.T) {
	s := newStage(t, kafkatest.Partitions(9), kafkatest.SessionTimeout(time.Second))
	stop := map[string]func(){}
	for _, name := range []string{"0", "1", "2"} {
		stop[name] = s.start(name)
	}
	s.eventually(func() bool {
		members := s.members()
		if len(members) != 3 {
			return false
		}
		seen := map[int32]bool{}
		for _, topics := range members {
			for _, name := range topic.ReadBy(topic.GroupPersonLoop) {
				if !slices.Equal(topics[name], topics[topic.Candidates]) || len(topics[name]) != 3 {
					return false
				}
			}
			for _, p := range topics[topic.Candidates] {
				seen[p] = true
			}
		}
		return len(seen) == 9
	}, "same-numbered partitions are not together")
	s.greeting()
	s.people(90)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 90 })
	requests := s.requests(run)

	stop["1"]() // a static member: its partitions move when its session ends
	var again []*kgo.Record
	for _, id := range slices.Sorted(maps.Keys(requests)) {
		r, err := s.put.Record(topic.Candidates, id, &event.Candidate{RunID: run, CampaignID: "greeting", UserID: id, Of: 1})
		require.NoError(t, err)
		again = append(again, r)
	}
	s.Produce(t, again...)
	s.totals(run, func(t runs.Totals) bool { return t.Repeats == 90 })
	s.answer(requests, "accepted")
	totals := s.totals(run, func(t runs.Totals) bool { return t.Accepted == 90 })
	require.Zero(t, totals.Waiting)
	s.requireBooks(run.String(), 90)
	// Among them: who is busy may just have lost its own to a session of a second.
	s.eventually(func() bool { return len(s.members()) == 2 }, "who was stopped is still a member, or somebody else is not")
}

// kill -9 of any of three instances at any instant: nobody is admitted twice or
// forgotten, and every counter stays exact.
func TestKilledAtAnyInstantTheBooksStayExact(t *testing.T) {
	s := newStage(t, kafkatest.Partitions(6), kafkatest.SessionTimeout(time.Second))
	s.cfg.Window = 60 // so that admission goes on while outcomes come
	children := map[string]*os.Process{}
	for _, name := range []string{"0", "1", "2"} {
		children[name] = s.child(name)
	}
	s.greeting()
	const people = 1500
	var records []*kgo.Record
	for i := range people {
		id, address := fmt.Sprintf("p%04d", i), fmt.Sprintf("p%04d@example.test", i)
		if i%10 == 0 {
			address = ""
		}
		r, err := s.put.Record(topic.ProfileUpdates, id, personPatch(id, address, "", 30))
		require.NoError(t, err)
		records = append(records, r)
	}
	s.Produce(t, records...)
	s.sender()
	run := s.request("greeting", false)
	accounted := func() int64 {
		totals := s.view.Totals(run)
		return totals.Requested + ledger.ExcludedTotal(&totals.RunCounters)
	}
	const kills = 6
	for i := range kills {
		before := accounted()
		s.eventually(func() bool { return accounted() > before+rand.Int64N(50) || accounted() == people }, "the run does not go on: %s", describe{s, run})
		name := fmt.Sprint(i % 3)
		p := children[name]
		if i%2 == 0 {
			require.NoError(t, p.Kill())
			_, err := p.Wait()
			require.NoError(t, err)
			children[name] = s.child(name)
			continue
		}
		// Stopped past its session: others take its partitions, and it finds out.
		require.NoError(t, p.Signal(syscall.SIGSTOP))
		gone := time.Now().Add(1500 * time.Millisecond)
		s.eventually(func() bool { return time.Now().After(gone) }, "")
		require.NoError(t, p.Signal(syscall.SIGCONT))
	}
	state := s.until(run, runs.Finished)
	require.True(t, state.Balanced)
	s.settled()
	s.requireBooks(run.String(), people)
	require.Zero(t, s.view.Totals(run).Repeats)
}

// dir is where an instance keeps its store.
func (s *stage) dir(name string) string {
	return filepath.Join(s.cfg.DataDir, topic.Resolver+"-"+name)
}

// The store is a cache: without it, everything is there again.
func TestAStoreThatIsGoneIsRebuilt(t *testing.T) {
	s := newStage(t)
	stop := s.start("0")
	s.greeting()
	s.people(20)
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 20 })
	stop()
	require.NoError(t, os.RemoveAll(s.dir("0")))
	stop = s.start("0")
	s.repeats(run, 20)
	s.answer(s.requests(run), "accepted")
	s.totals(run, func(t runs.Totals) bool { return t.Accepted == 20 })
	s.requireBooks(run.String(), 20)
	stop()
	// What was known of people is known again, too: a patch that changes nothing
	// makes no new revision, and one that does makes the next.
	before := s.profiles()
	require.NoError(t, os.RemoveAll(s.dir("0")))
	s.start("0")
	s.person("u001", "u001@example.test", "unsubscribed", 31)
	s.eventually(func() bool { return s.profiles()["u001"] == before["u001"]+1 }, "the revision does not go on from %d", before["u001"])
}

func (s *stage) profiles() map[string]int64 {
	out := map[string]int64{}
	for _, p := range read[event.Profile](s, topic.Profiles) {
		out[p.UserID] = max(out[p.UserID], p.Revision)
	}
	return out
}

// repeats sends the first n people as candidates once more and waits until they
// are recognised.
func (s *stage) repeats(run identity.ID, n int) {
	s.t.Helper()
	before := s.view.Totals(run).Repeats
	for i := range n {
		id := fmt.Sprintf("u%03d", i)
		s.write(topic.Candidates, id, &event.Candidate{RunID: run, CampaignID: "greeting", UserID: id, Of: 1})
	}
	s.totals(run, func(t runs.Totals) bool { return t.Repeats == before+int64(n) })
}

// A crash between the commit in Kafka and the write to the store: what the store
// lacks is replayed before the first record is handled.
func TestACrashBetweenCommitAndStoreIsReplayed(t *testing.T) {
	s := newStage(t)
	stop := s.start("0")
	s.greeting()
	s.people(20)
	s.settled()
	stop()
	behind := t.TempDir()
	require.NoError(t, os.CopyFS(behind, os.DirFS(s.dir("0"))))

	stop = s.start("0")
	run := s.request("greeting", false)
	s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Requested == 20 })
	s.answer(s.requests(run), "uncertain")
	s.totals(run, func(t runs.Totals) bool { return t.Uncertain == 20 })
	stop()
	require.NoError(t, os.RemoveAll(s.dir("0")))
	require.NoError(t, os.CopyFS(s.dir("0"), os.DirFS(behind)))

	s.start("0")
	s.repeats(run, 20)
	s.answer(s.requests(run), "uncertain")
	s.settled()
	totals := s.view.Totals(run)
	require.Equal(t, []int64{20, 20, 20, 0}, []int64{totals.Requested, totals.Uncertain, totals.Repeats, totals.Waiting}, "an outcome that was counted is not counted again")
	require.Len(t, s.requests(run), 20)
}

// A store that was not written for so long that a tombstone may have gone by is
// not believed.
func TestAStoreOlderThanHalfTheLifeOfATombstoneIsThrownAway(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	home := topic.Partition("ann", b.c.P())
	dead := []byte("bob") // whose tombstone is gone from the log
	put := func(writtenAt time.Time) {
		t.Helper()
		mark, err := b.store.Mark(topic.Profiles, home)
		require.NoError(t, err)
		require.NoError(t, b.store.Apply([]state.Change{{Topic: topic.Profiles, Partition: home, Offset: mark.Offset - 1, Key: dead, Value: []byte{1}}}, writtenAt))
	}
	value := func(key []byte) []byte {
		t.Helper()
		v, err := b.store.Get(topic.Profiles, home, key)
		require.NoError(t, err)
		return v
	}
	put(time.Now().Add(-topic.DeleteRetention/2 + time.Hour))
	require.NoError(t, b.Assigned(t.Context(), []int32{home}))
	require.NotNil(t, value(dead), "a store of yesterday is as good as the log")

	put(time.Now().Add(-topic.DeleteRetention/2 - time.Hour))
	require.NoError(t, b.Assigned(t.Context(), []int32{home}))
	require.Nil(t, value(dead))
	require.NotNil(t, value([]byte("ann")), "and rebuilt")
	b.commit(b.candidate(run, "greeting", "ann"))
	require.EqualValues(t, 1, b.view.Counters(run, home).Repeats)
}

// A store that is ahead of the log belongs to another cluster.
func TestAStoreOfAnotherClusterIsThrownAway(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.store.Apply([]state.Change{{Topic: topic.PersonState, Partition: 1, Offset: 700, Key: []byte("bob/messages"), Value: []byte{1}}}, time.Now()))
	require.NoError(t, b.Assigned(t.Context(), []int32{1}))
	v, err := b.store.Get(topic.PersonState, 1, []byte("bob/messages"))
	require.NoError(t, err)
	require.Nil(t, v)
}

// Requested − ended never exceeds a partition's share by more than one batch, and
// candidates go on as outcomes come.
func TestTheWindowBoundsWhatIsOnItsWay(t *testing.T) {
	s := newStage(t)
	s.cfg.Window = 40
	const share = 40 / 4
	s.start("0")
	s.greeting()
	const people = 4000
	ids := make([]string, people)
	var records []*kgo.Record
	for i := range people {
		ids[i] = fmt.Sprintf("w%04d", i)
		r, err := s.put.Record(topic.ProfileUpdates, ids[i], personPatch(ids[i], ids[i]+"@example.test", "", 30))
		require.NoError(t, err)
		records = append(records, r)
	}
	s.Produce(t, records...)
	run := s.request("greeting", false)
	totals := s.totals(run, func(t runs.Totals) bool { return t.Resolved() && t.Waiting > 4*share })
	require.Less(t, totals.Requested, int64(people), "one batch does not take them all")

	answered := map[string]bool{}
	for len(answered) < people {
		// All partitions are paused, and stay so while nothing else comes.
		s.eventually(func() bool {
			for p := range int32(s.put.P()) {
				c := s.view.Counters(run, p)
				if c == nil || c.Waiting < share && c.Requested+c.Repeats < perPartition(ids, p, s.put.P()) {
					return false
				}
			}
			return true
		}, "candidates do not go on: %s", describe{s, run})
		for p := range int32(s.put.P()) {
			require.LessOrEqual(t, s.view.Counters(run, p).Waiting, int64(share+maxPoll), "partition %d", p)
		}
		waiting := s.requests(run)
		maps.DeleteFunc(waiting, func(id string, _ event.MessageRequest) bool { return answered[id] })
		for id := range waiting {
			answered[id] = true
		}
		s.answer(waiting, "accepted")
	}
	s.until(run, runs.Finished)
}

func perPartition(ids []string, p int32, of int) (n int64) {
	for _, id := range ids {
		if topic.Partition(id, of) == p {
			n++
		}
	}
	return n
}

// Records that can never be handled are parked with their reason, and those
// behind them are handled.
func TestPoisonIsParkedAndThePersonLoopGoesOn(t *testing.T) {
	s := newStage(t)
	s.start("0")
	s.greeting()
	s.people(4)
	broken := func(name topic.Name, key string, rec event.Record) {
		t.Helper()
		r, err := s.put.Record(name, key, rec)
		require.NoError(t, err)
		r.Value = r.Value[:7]
		s.Produce(t, r)
	}
	broken(topic.Candidates, "u000", &event.Candidate{CampaignID: "greeting", UserID: "u000", Of: 1})
	broken(topic.Outcomes, "u000", &event.Outcome{UserID: "u000", Outcome: "accepted"})
	broken(topic.ProfileUpdates, "u000", personPatch("u000", "", "", 1))
	huge := personPatch("u000", "", "", 1)
	huge.Set = append(huge.Set, event.NamedValue{Name: "essay", Value: event.String(string(make([]byte, 300<<10)))})
	s.write(topic.ProfileUpdates, "u000", huge)
	s.write(topic.RunRequests, "greeting", &event.RunRequest{Action: "dance", CampaignID: "greeting", RequestedAt: time.Now()})
	s.write(topic.Candidates, "u001", &event.Candidate{RunID: identity.ID{1}, CampaignID: "greeting", UserID: "u001", Of: 1})
	s.write(topic.RunRequests, "greeting", &event.RunRequest{Action: "cancel", CampaignID: "greeting", RunID: &identity.ID{2}, RequestedAt: time.Now()})

	s.sender()
	run := s.request("greeting", false)
	s.until(run, runs.Finished)
	require.Len(t, s.requests(run), 4)
	require.EqualValues(t, 1, s.profiles()["u000"], "what is too large changes nothing")
	got := map[string]int{}
	for _, d := range read[event.DeadLetter](s, topic.DeadLettersResolver) {
		got[d.Topic]++
		require.NotEmpty(t, d.Reason)
		require.NotEmpty(t, d.Value)
	}
	require.Equal(t, map[string]int{"candidates": 2, "outcomes": 1, "profile-updates": 2, "run-requests": 2}, got)
	for _, o := range decodable(s) {
		require.False(t, o.Outcome == "parked" && o.RunID == run, "none of these is a message of the run")
	}
}

// decodable returns the outcomes that decode.
func decodable(s *stage) []event.Outcome {
	s.t.Helper()
	var out []event.Outcome
	for _, r := range s.All(s.t, topic.Outcomes) {
		var o event.Outcome
		if s.put.Decode(r, &o) == nil {
			out = append(out, o)
		}
	}
	return out
}
