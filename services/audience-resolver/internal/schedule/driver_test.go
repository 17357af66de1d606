package schedule_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
)

var (
	t0  = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	run = identity.Hash("run")
)

// pipeline is a ClickHouse and a Kafka that answer when told to.
type pipeline struct {
	fresh    chan struct{}
	unread   int64
	sunk     chan struct{} // nil: at once
	expected int64
	err      error
	classes  map[string]int64
}

func (p *pipeline) Expected(context.Context, identity.ID, *event.RunState) (int64, error) {
	return p.expected, p.err
}
func (p *pipeline) Classes(context.Context, identity.ID) (map[string]int64, error) {
	return p.classes, nil
}
func (p *pipeline) Fresh(ctx context.Context, report func(string)) (int64, error) {
	report("group sink lacks 5 records of events")
	select {
	case <-p.fresh:
		return p.unread, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
func (p *pipeline) Sunk(ctx context.Context, report func(string)) error {
	if p.sunk == nil {
		return nil
	}
	report("group sink lacks 7 records of outcomes")
	select {
	case <-p.sunk:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type fixture struct {
	*pipeline
	t      *testing.T
	view   *runs.View
	driver *schedule.Driver
	state  event.RunState
	now    time.Time
}

func start(t *testing.T, p *pipeline) *fixture {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	view := runs.NewView()
	f := &fixture{pipeline: p, t: t, view: view, driver: schedule.NewDriver(ctx, view, p, p, time.Minute), now: t0}
	t.Cleanup(func() { stop(); f.driver.Wait() })
	v := schedule.Versions{Campaign: &definition.Campaign{ID: "c", Audience: "a", Template: "t", Policy: "at_most_once", ExpiresAfter: definition.Duration(72 * time.Hour)}, CampaignVersion: 1, Channel: "email"}
	f.write(schedule.New(v, nil, t0, t0))
	return f
}

func (f *fixture) write(s *event.RunState) {
	f.state = *s
	f.view.Apply(runs.StateKey(run), &event.Run{RunID: run, CampaignID: "c", State: s})
}

// tick moves the clock by a second and applies what the driver decides.
func (f *fixture) tick() schedule.Step {
	f.now = f.now.Add(time.Second)
	step := f.driver.Tick(run, f.state, f.now)
	if step.State != nil {
		f.write(step.State)
	}
	return step
}

// until ticks until the run is in a state; the driver's work is beside it.
func (f *fixture) until(state string) schedule.Step {
	f.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if step := f.tick(); step.State != nil && step.State.State == state {
			return step
		}
	}
	f.t.Fatalf("the run is %s (%s), not %s", f.state.State, f.state.Note, state)
	return schedule.Step{}
}

func (f *fixture) done(candidates int64, c event.RunCounters) {
	f.view.Apply(runs.ShardKey(run, 0, 1), &event.Run{RunID: run, CampaignID: "c", Shard: &event.ShardDone{Shard: 0, Of: 1, Candidates: candidates}})
	f.view.Apply(runs.CountersKey(run, 0), &event.Run{RunID: run, CampaignID: "c", Counters: &c})
}

func TestRunGoesThroughItsStates(t *testing.T) {
	t.Parallel()
	f := start(t, &pipeline{fresh: make(chan struct{}), unread: 7, expected: 31_000, classes: map[string]int64{"accepted": 2}})
	require.Nil(t, f.tick().State, "nothing moves before ClickHouse is fresh")
	close(f.fresh)
	step := f.until(runs.Resolving)
	require.EqualValues(t, 3, step.Shards)
	require.EqualValues(t, 31_000, step.State.Expected)
	require.EqualValues(t, 7, step.State.UnreadSpoolEvents, "they are not waited for, and it is said")
	require.NotNil(t, step.State.StartedAt)

	for shard := range int32(2) {
		f.view.Apply(runs.ShardKey(run, shard, 3), &event.Run{RunID: run, CampaignID: "c", Shard: &event.ShardDone{Shard: shard, Of: 3, Candidates: 1}})
	}
	require.Nil(t, f.tick().State, "two of three shards are done")
	// The third was too large and was split.
	f.view.Apply(runs.ShardKey(run, 2, 3), &event.Run{RunID: run, CampaignID: "c", Shard: &event.ShardDone{Shard: 2, Of: 3, Children: 2}})
	require.Nil(t, f.tick().State, "its children are not")
	for _, shard := range []int32{2, 5} {
		f.view.Apply(runs.ShardKey(run, shard, 6), &event.Run{RunID: run, CampaignID: "c", Shard: &event.ShardDone{Shard: shard, Of: 6, Candidates: 1}})
	}
	f.until(runs.Sending)
	counters := event.RunCounters{Partition: 1, Repeats: 1, Excluded: []event.ReasonCount{{Reason: "no_address", Count: 1}}, Requested: 2, Waiting: 1, Accepted: 1}
	f.view.Apply(runs.CountersKey(run, 1), &event.Run{RunID: run, CampaignID: "c", Counters: &counters})
	require.Nil(t, f.tick().State, "one message waits")

	counters.Waiting, counters.Accepted = 0, 2
	step = f.until(runs.Balancing)
	require.EqualValues(t, 7, step.State.UnreadSpoolEvents)
	require.False(t, step.State.Balanced, "ClickHouse has not been asked yet")
}

func TestRunIsFinishedOnlyWhenBothCountsAgree(t *testing.T) {
	t.Parallel()
	p := &pipeline{fresh: make(chan struct{}), expected: 3, classes: map[string]int64{"accepted": 1, "excluded": 1}}
	close(p.fresh)
	f := start(t, p)
	f.until(runs.Resolving)
	f.done(3, event.RunCounters{Excluded: []event.ReasonCount{{Reason: "no_address", Count: 1}}, Requested: 2, Accepted: 2})
	for f.state.Note == "" {
		f.tick()
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, runs.Balancing, f.state.State)
	require.Equal(t, "accepted: the resolver counts 2, ClickHouse 1", f.state.Note)
}

func TestRunBalances(t *testing.T) {
	t.Parallel()
	p := &pipeline{fresh: make(chan struct{}), expected: 3, classes: map[string]int64{"accepted": 2, "excluded": 1}}
	close(p.fresh)
	f := start(t, p)
	f.until(runs.Resolving)
	f.done(3, event.RunCounters{Excluded: []event.ReasonCount{{Reason: "no_address", Count: 1}}, Requested: 2, Accepted: 2})
	step := f.until(runs.Finished)
	require.True(t, step.State.Balanced)
	require.NotNil(t, step.State.FinishedAt)
	require.Empty(t, step.State.Note)
}

func TestACandidateWithoutATraceKeepsTheRunOpen(t *testing.T) {
	t.Parallel()
	p := &pipeline{fresh: make(chan struct{}), expected: 3, classes: map[string]int64{"accepted": 2}}
	close(p.fresh)
	f := start(t, p)
	f.until(runs.Resolving)
	f.done(3, event.RunCounters{Requested: 2, Accepted: 2})
	f.until(runs.Sending)
	for range 50 {
		f.tick()
	}
	require.Equal(t, runs.Sending, f.state.State)
	totals := f.view.Totals(run)
	require.Equal(t, "2 of 3 candidates are accounted for", totals.Balance())
}

func TestStaleDataBlocksVisiblyAndGoesOnByItself(t *testing.T) {
	t.Parallel()
	f := start(t, &pipeline{fresh: make(chan struct{}), expected: 1})
	f.tick()
	f.now = f.now.Add(2 * time.Minute)
	step := f.until(runs.Blocked)
	for step.State == nil || step.State.Note == "" { // the work beside it may not have begun to report
		step = f.tick()
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, "group sink lacks 5 records of events", step.State.Note)
	close(f.fresh)
	step = f.until(runs.Resolving)
	require.Empty(t, step.State.Note)
}

func TestABalanceThatWaitsLongSaysForWhat(t *testing.T) {
	t.Parallel()
	p := &pipeline{fresh: make(chan struct{}), sunk: make(chan struct{}), expected: 1, classes: map[string]int64{"accepted": 1}}
	close(p.fresh)
	f := start(t, p)
	f.until(runs.Resolving)
	f.done(1, event.RunCounters{Requested: 1, Accepted: 1})
	require.Empty(t, f.until(runs.Balancing).State.Note)
	f.now = f.now.Add(2 * time.Minute)
	for f.state.Note == "" {
		f.tick()
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, "group sink lacks 7 records of outcomes", f.state.Note)
	require.Equal(t, runs.Balancing, f.state.State)
	close(p.sunk)
	require.Empty(t, f.until(runs.Finished).State.Note)
}

func TestAQuestionClickHouseRefusesFailsTheRun(t *testing.T) {
	t.Parallel()
	p := &pipeline{fresh: make(chan struct{}), err: errors.New("Code: 47. Unknown column")}
	close(p.fresh)
	f := start(t, p)
	step := f.until(runs.Failed)
	require.Contains(t, step.State.Note, "Unknown column")
}

func TestCancelBeforeAnythingWasAskedEndsAtOnce(t *testing.T) {
	t.Parallel()
	f := start(t, &pipeline{fresh: make(chan struct{})})
	f.tick()
	f.state.CancelRequested = true
	step := f.until(runs.Cancelled)
	require.True(t, step.State.Balanced)
}

func TestWhenAScheduledCampaignIsDue(t *testing.T) {
	t.Parallel()
	at := definition.At{Time: t0}
	for _, c := range []struct {
		at   definition.At
		now  time.Time
		due  bool
		late bool
	}{
		{definition.At{}, t0, false, false}, {definition.At{Now: true}, t0, false, false},
		{at, t0.Add(-time.Microsecond), false, false}, {at, t0, true, false}, {at, t0.Add(23 * time.Hour), true, false}, {at, t0.Add(25 * time.Hour), true, true},
	} {
		due, why := schedule.Due(c.at, c.now)
		require.Equal(t, c.due, due)
		require.Equal(t, c.late, why != "")
	}
}

// What counts as success is fixed when the run starts, as everything else of it is.
func TestARunCarriesItsCampaignsGoal(t *testing.T) {
	t.Parallel()
	campaign := &definition.Campaign{ID: "c", Goal: &definition.Goal{Event: "purchase", Within: definition.Duration(90 * time.Minute), Revenue: "price"}}
	s := schedule.New(schedule.Versions{Campaign: campaign}, nil, t0, t0)
	require.Equal(t, []any{"purchase", int64(5_400_000), "price"}, []any{s.GoalEvent, s.GoalWithinMs, s.GoalRevenue})
	campaign.Goal = nil
	s = schedule.New(schedule.Versions{Campaign: campaign}, nil, t0, t0)
	require.Empty(t, s.GoalEvent)
}
