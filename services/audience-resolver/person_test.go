package resolver

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

var t0 = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

// bench is a person loop whose batches the test makes, and commits or aborts.
type bench struct {
	*personLoop
	t *testing.T
	k *kafkatest.Kafka
	c *kafka.Cluster
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Resolver)
	tel := kafkatest.Telemetry(t, topic.Resolver)
	l := newPersonLoop(c, Config{Window: 20000, TrackingKeyID: "1"}, tel.Log, newMetrics(tel.Registry))
	var err error
	l.store, err = state.Open(t.TempDir(), 1<<20, func(err error) { panic(err) })
	require.NoError(t, err)
	l.defs, l.view = definitions.NewStore(c), runs.NewView()
	table := c.Table([]topic.Name{topic.Runs}, func(r *kgo.Record) error { return applyRun(c, l.view, tel.Log, r) })
	l.caught = table.CaughtUp
	ctx, stop := context.WithCancel(context.Background())
	l.driver = schedule.NewDriver(ctx, l.view, nil, waiter{c, &spools{caught: func(context.Context) error { return nil }}}, time.Minute)
	ended := make(chan error, 2)
	go func() { ended <- l.defs.Run(ctx) }()
	go func() { ended <- table.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
		l.driver.Wait()
		require.NoError(t, l.store.Close())
	})
	return &bench{l, t, k, c}
}

func (b *bench) record(name topic.Name, key string, rec event.Record) *kgo.Record {
	b.t.Helper()
	r, err := b.c.Record(name, key, rec)
	require.NoError(b.t, err)
	r.Timestamp = t0
	return r
}

func (b *bench) tick(campaign string, at time.Time) *kgo.Record {
	b.t.Helper()
	p := topic.Partition(campaign, b.c.P())
	r, err := b.c.RecordAt(topic.Ticks, p, fmt.Sprint(p), &event.Tick{Partition: p, At: at})
	require.NoError(b.t, err)
	return r
}

func (b *bench) decide(batch ...*kgo.Record) []*kgo.Record {
	b.t.Helper()
	out, err := b.Transform(b.t.Context(), batch)
	require.NoError(b.t, err)
	return out
}

// commit decides, and makes the decision durable and seen.
func (b *bench) commit(batch ...*kgo.Record) []*kgo.Record {
	b.t.Helper()
	out := b.decide(batch...)
	if len(out) > 0 {
		b.k.Produce(b.t, out...)
	}
	b.Committed(out)
	require.NoError(b.t, b.caught(b.t.Context()))
	return out
}

// of decodes the records of one topic.
func of[T any, P interface {
	*T
	event.Record
}](b *bench, name topic.Name, records []*kgo.Record) []T {
	b.t.Helper()
	var out []T
	for _, r := range records {
		if b.c.NameOf(r.Topic) == name {
			var v T
			require.NoError(b.t, b.c.Decode(r, P(&v)))
			out = append(out, v)
		}
	}
	return out
}

// define puts definitions in force, read by the loop.
func (b *bench) define(changes ...definitions.Change) {
	b.t.Helper()
	_, err := definitions.Write(b.t.Context(), b.c, "test", changes)
	require.NoError(b.t, err)
	require.NoError(b.t, b.defs.CaughtUp(b.t.Context()))
}

func change(t *testing.T, d definition.Definition) definitions.Change {
	t.Helper()
	body, err := definition.Encode(d)
	require.NoError(t, err)
	return definitions.Change{Kind: d.Ref().Kind, ID: d.Ref().ID, Body: body}
}

// running makes a run that is sending, as its driver has written it.
func (b *bench) running(campaign string) identity.ID {
	b.t.Helper()
	run := identity.Run("test", campaign, "1")
	s := schedule.New(schedule.Versions{Campaign: &definition.Campaign{ID: campaign}, Channel: "email"}, nil, t0, t0)
	s.State, s.Shards = runs.Sending, 1
	b.wrote(run, campaign, s)
	return run
}

func (b *bench) wrote(run identity.ID, campaign string, s *event.RunState) {
	b.t.Helper()
	b.k.Produce(b.t, b.record(topic.Runs, runs.StateKey(run), &event.Run{RunID: run, CampaignID: campaign, State: s}))
	require.NoError(b.t, b.caught(b.t.Context()))
}

func (b *bench) candidate(run identity.ID, campaign, id string) *kgo.Record {
	return b.record(topic.Candidates, id, &event.Candidate{RunID: run, CampaignID: campaign, UserID: id, Of: 1})
}

func (b *bench) patch(id string) *kgo.Record {
	return b.record(topic.ProfileUpdates, id, personPatch(id, id+"@example.test", "", 30))
}

func (b *bench) outcome(run identity.ID, campaign, id, what string) *kgo.Record {
	q := event.MessageRequest{MessageID: identity.Message("test", campaign, run.String(), id, ""), RunID: run, CampaignID: campaign, UserID: id}
	return b.record(topic.Outcomes, id, outcome(&q, what, 1))
}

// An aborted transaction never happened: the batch that is read again is decided
// as if for the first time, its time included.
func TestAnAbortedBatchIsDecidedAnew(t *testing.T) {
	b := newBench(t)
	timed := campaign("timed")
	timed.At = definition.At{Time: t0}
	b.define(change(t, adults()), change(t, hello()), change(t, timed))
	run := b.running("greeting")
	batch := []*kgo.Record{b.tick("timed", t0.Add(time.Second)), b.patch("ann"), b.candidate(run, "greeting", "ann")}

	first := b.decide(batch...)
	b.Aborted()
	again := b.decide(batch...)
	require.Len(t, again, len(first))
	require.ElementsMatch(t, of[event.Run](b, topic.Runs, first), of[event.Run](b, topic.Runs, again))
	require.Len(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, again), 1, "not a repeat of what never happened")
	require.Len(t, of[event.Run](b, topic.Runs, again), 2, "the scheduled run is begun, and the counters of the other")
	b.Aborted()

	person := []*kgo.Record{b.patch("ann"), b.candidate(run, "greeting", "ann")}
	before := of[event.MessageRequest](b, topic.MessageRequestsBulk, b.decide(person...))
	b.Aborted()
	b.decide(b.tick("ann", t0.Add(time.Hour)))
	b.Aborted()
	require.Equal(t, before, of[event.MessageRequest](b, topic.MessageRequestsBulk, b.decide(person...)), "time is where it was")
}

// The second record of a person sees what the first one did.
func TestABatchSeesItsOwnChanges(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	out := b.commit(b.candidate(run, "greeting", "ann"), b.candidate(run, "greeting", "ann"), b.patch("ann"))
	require.Len(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, out), 1, "what is known of people is read before candidates")
	out = b.commit(b.outcome(run, "greeting", "ann", "accepted"), b.outcome(run, "greeting", "ann", "accepted"), b.candidate(run, "greeting", "ann"))
	c := of[event.Run](b, topic.Runs, out)[0].Counters
	require.Equal(t, []int64{2, 1, 0, 1}, []int64{c.Repeats, c.Requested, c.Waiting, c.Accepted})
}

// I6: what is said of a person later stands, within a batch and between two.
func TestPatchesOfOnePersonKeepTheirOrder(t *testing.T) {
	b := newBench(t)
	var batch []*kgo.Record
	for age := range int64(20) {
		p := personPatch("ann", "", "", age)
		p.SetAt, p.OccurredAt = t0, t0 // no time tells them apart
		batch = append(batch, b.record(topic.ProfileUpdates, "ann", p), b.tick("other", t0.Add(time.Duration(age)*time.Second)))
	}
	out := of[event.Profile](b, topic.Profiles, b.commit(batch...))
	require.Len(t, out, 1)
	require.EqualValues(t, 19, out[0].Attributes[0].Value.Int())
	out = of[event.Profile](b, topic.Profiles, b.commit(b.record(topic.ProfileUpdates, "ann", personPatch("ann", "", "", 7))))
	require.EqualValues(t, 7, out[0].Attributes[0].Value.Int())
	require.EqualValues(t, 2, out[0].Revision)
}

// Two drivers of one run would overwrite each other: a cancel goes to the driver
// of the run's own campaign or nowhere.
func TestACancelThatNamesAnotherCampaignIsParked(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	for _, other := range []string{"a", "b", "c", "d"} {
		out := b.commit(b.record(topic.RunRequests, other, &event.RunRequest{Action: "cancel", RequestID: identity.Hash(other), CampaignID: other, RunID: &run, RequestedAt: t0, RequestedBy: "test"}))
		require.Empty(t, of[event.Run](b, topic.Runs, out))
		require.Len(t, of[event.DeadLetter](b, topic.DeadLettersResolver, out), 1)
	}
}

// What lies on a partition where the person does not live would be kept where
// nobody looks for it.
func TestARecordOnAnotherPartitionIsParked(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	requested := b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	require.Len(t, of[event.MessageRequest](b, topic.MessageRequestsBulk, requested), 1)
	member := b.record(topic.SegmentMembers, "ann", &event.SegmentMember{SegmentID: "s", ImportID: run, UserID: "ann"})
	request := b.record(topic.RunRequests, "greeting", &event.RunRequest{Action: "start", RequestID: run, CampaignID: "greeting", RequestedAt: t0})
	for _, r := range []*kgo.Record{b.patch("ann"), member, b.outcome(run, "greeting", "ann", "accepted"), b.candidate(run, "greeting", "ann"), request} {
		r.Partition = (r.Partition + 1) % int32(b.c.P())
		out := b.commit(r)
		parked := of[event.Outcome](b, topic.Outcomes, out) // of what is on a message's way
		require.Len(t, out, 1+len(parked), "%s", r.Topic)
		require.Contains(t, of[event.DeadLetter](b, topic.DeadLettersResolver, out)[0].Reason, "partition")
	}
}

// Nothing that is written has no time, or the sink could not store it: a
// restarted resolver handles outcomes before its first tick.
func TestWhatIsWrittenBeforeTheFirstTickHasATime(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	out := b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	require.Equal(t, t0, of[event.Run](b, topic.Runs, out)[0].Counters.UpdatedAt.UTC())
	require.Equal(t, t0, of[event.MessageRequest](b, topic.MessageRequestsBulk, out)[0].RequestedAt.UTC())
}

// The books of runs that are over are not kept in memory for ever, and evidence
// that comes later still finds them.
func TestTheBooksOfEndedRunsAreForgotten(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	b.commit(b.outcome(run, "greeting", "ann", "uncertain"))
	_, s, _ := b.view.State(run)
	s.State = runs.Finished
	b.wrote(run, "greeting", &s)
	b.commit(b.tick("greeting", t0.Add(time.Second)))
	require.Empty(t, b.counters)
	require.Empty(t, b.driven)
	out := b.commit(b.outcome(run, "greeting", "ann", "accepted"))
	c := of[event.Run](b, topic.Runs, out)[0].Counters
	require.Equal(t, []int64{1, 0, 1}, []int64{c.Requested, c.Uncertain, c.Accepted})
}

// However many messages a person gets, what is remembered of them fits into a
// record; those that wait are never forgotten.
func TestRememberedMessagesAreBounded(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.patch("ann"), b.candidate(run, "greeting", "ann"))
	waiting := identity.Message("test", "greeting", run.String(), "ann", "")
	batch := b.newBatch()
	cell, err := batch.state("ann", kindMessages, topic.Partition("ann", b.c.P()))
	require.NoError(t, err)
	for i := range 12_000 {
		cell.rec.Messages = append(cell.rec.Messages, event.MessageState{MessageID: identity.Hash(fmt.Sprint(i)), RunID: run, CampaignID: "a-campaign-with-a-rather-long-identifier", Class: ledger.Accepted, At: t0})
	}
	kept := recent(cell.rec.Messages, t0)
	require.Equal(t, rememberAtMost, len(kept))
	require.Equal(t, waiting, kept[0].MessageID)
	require.Equal(t, identity.Hash("11999"), kept[len(kept)-1].MessageID, "the latest are kept")
}

// A definition that this version cannot read is its own campaign's misfortune.
func TestADefinitionThatDoesNotDecodeStopsNobodyElse(t *testing.T) {
	b := newBench(t)
	timed := campaign("timed")
	timed.At = definition.At{Time: t0}
	b.define(definitions.Change{Kind: definition.KindCampaign, ID: "broken", Body: []byte(`{"id":"broken","kind":"Campaign","from":7}`)}, change(t, adults()), change(t, hello()), change(t, timed))
	out := b.commit(b.tick("timed", t0.Add(time.Second)), b.tick("broken", t0.Add(time.Second)),
		b.record(topic.RunRequests, "broken", &event.RunRequest{Action: "start", RequestID: identity.Hash("q"), CampaignID: "broken", RequestedAt: t0}))
	states := map[string]string{}
	for _, r := range of[event.Run](b, topic.Runs, out) {
		states[r.CampaignID] = r.State.State
	}
	require.Equal(t, map[string]string{"timed": runs.Preparing, "broken": runs.Refused}, states)
}

// A patch that is refused, or whose batch is aborted, has changed nothing: what it is
// applied to shares no list with what is kept.
func TestAProfileIsChangedInACopy(t *testing.T) {
	t.Parallel()
	kept := &event.Profile{Attributes: make([]event.Attribute, 1), Addresses: make([]event.Address, 1), Consents: make([]event.Consent, 1), Suppressions: make([]event.Suppression, 1)}
	clone, was := reflect.ValueOf(cloneProfile(kept)).Elem(), reflect.ValueOf(kept).Elem()
	for i := range was.NumField() {
		if f := was.Field(i); f.Kind() == reflect.Slice {
			name := was.Type().Field(i).Name
			require.Equal(t, 1, f.Len(), "the test fills %s", name)
			require.NotEqual(t, f.Index(0).Addr().Pointer(), clone.Field(i).Index(0).Addr().Pointer(), "%s is shared", name)
		}
	}
}
