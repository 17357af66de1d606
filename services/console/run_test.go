package console

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// resolve takes up run requests as resolver and sink would, until the test ends.
func (s *stage) resolve(state, note string) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	table := s.cluster.Table([]topic.Name{topic.RunRequests}, func(r *kgo.Record) error {
		var q event.RunRequest
		if err := s.cluster.Decode(r, &q); err != nil || q.Action != "start" {
			return err
		}
		s.run(identity.Run(s.namespace, q.CampaignID, q.RequestID.String()), state, row{"note": note})
		return nil
	})
	go func() {
		defer close(ended) // also if writing a row has failed the test, which ends this goroutine
		ended <- table.Run(ctx)
	}()
	s.t.Cleanup(func() { stop(); require.NoError(s.t, <-ended) })
}

func TestStartAsksForARunAndPrintsIt(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.resolve("preparing", "")

	a := s.ok("start", "hello-all")
	requests := records[event.RunRequest](s, topic.RunRequests)
	require.Len(t, requests, 1)
	q := requests[0]
	require.Equal(t, "start", q.Action)
	require.Equal(t, "hello-all", q.CampaignID)
	require.False(t, q.Again)
	require.NotEmpty(t, q.RequestedBy)
	require.WithinDuration(t, time.Now(), q.RequestedAt, time.Minute)
	run := identity.Run(s.namespace, "hello-all", q.RequestID.String())
	require.Equal(t, run.String()+"\n", a.out, "only the run is on stdout")
	require.Contains(t, a.err, "hikyaku status "+run.String())

	asJSON := s.ok("start", "hello-all", "--json").one(t)
	require.Equal(t, "hello-all", asJSON["campaign_id"])
	require.Equal(t, "preparing", asJSON["state"])
	require.Len(t, asJSON["run_id"], 32)

	wrong := s.hikyaku("start", "hello-al")
	require.Equal(t, exitUsage, wrong.code)
	require.Contains(t, wrong.err, `did you mean "hello-all"?`)
	require.Len(t, records[event.RunRequest](s, topic.RunRequests), 2)
}

func TestAgainAsksWithTheNumberOfPeople(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.resolve("preparing", "")
	s.visitor("u1", "Ann", 30)
	s.visitor("u2", "Bob", 17)

	for _, no := range []string{"n\n", "\n", ""} {
		a := s.say(no, "start", "hello-all", "--again")
		require.Equal(t, exitUsage, a.code)
		require.Contains(t, a.err, "Send hello-all again to about 1 people?")
		require.Contains(t, a.err, "not started")
	}
	require.Empty(t, records[event.RunRequest](s, topic.RunRequests))
	require.Equal(t, exitDone, s.say("y\n", "start", "hello-all", "--again").code)
	s.ok("start", "hello-all", "--again", "--yes")
	requests := records[event.RunRequest](s, topic.RunRequests)
	require.Len(t, requests, 2)
	require.True(t, requests[0].Again && requests[1].Again)
}

func TestARefusedRunIsABrokenPromise(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.resolve("refused", "campaign hello-all has run before")
	a := s.hikyaku("start", "hello-all", "--json")
	require.Equal(t, exitBroken, a.code)
	require.Equal(t, "refused", a.one(t)["state"])
	require.Contains(t, a.err, "refused: campaign hello-all has run before")
}

func (s *stage) counters(run identity.ID, more row) {
	r := row{"run_id": run, "campaign_id": "hello-all", "partition": int32(0), "kafka_offset": time.Now().UnixNano()}
	for k, v := range more {
		r[k] = v
	}
	s.insert("run_counter_rows", r)
}

func (s *stage) shard(run identity.ID, candidates int64) {
	s.insert("run_shard_rows", row{"run_id": run, "campaign_id": "hello-all", "shard": int32(0), "shard_count": int32(1), "candidates": candidates})
}

func TestStatusShowsARunAndWaitsForItsEnd(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	run := identity.Run(s.namespace, "hello-all", "one")
	other := identity.Run(s.namespace, "hello-all", "other")
	s.run(run, "sending", row{"expected": int64(12), "unread_spool_events": int64(1204)})
	s.run(other, "sending", nil)
	s.shard(run, 11)
	s.shard(other, 1000)
	s.insert("run_shard_rows", row{"run_id": run, "campaign_id": "hello-all", "shard": int32(0), "shard_count": int32(2), "candidates": int64(99), "children": int32(2)}) // cut again: its children count
	s.counters(run, row{"repeats": int64(1), "excluded": map[string]int64{"no_address": 2, "unsubscribed": 1}, "requested": int64(7), "waiting": int64(2), "accepted": int64(4), "uncertain": int64(1)})

	status := s.ok("status", run.String(), "--json").one(t)
	for name, want := range map[string]any{"run_id": run.String(), "campaign_id": "hello-all", "state": "sending", "note": "", "expected": 12.0, "audience": 10.0, "excluded": 3.0,
		"requested": 7.0, "waiting": 2.0, "accepted": 4.0, "uncertain": 1.0, "rejected": 0.0, "failed": 0.0, "expired": 0.0, "cancelled": 0.0, "parked": 0.0,
		"balanced": false, "started_at": nil, "finished_at": nil, "unread_spool_events": 1204.0} {
		require.Contains(t, status, name)
		require.Equal(t, want, status[name], name)
	}
	people := s.ok("status", run.UUID())
	require.Contains(t, people.out, "hello-all: sending; 10 people: 3 excluded, 7 requested, of which 4 accepted, 2 waiting")
	require.Contains(t, people.out, "1 uncertain: the provider was asked and never answered")
	require.Contains(t, people.out, run.UUID())
	require.Contains(t, people.out, "1,204 events still lay in collectors' spools when the audience was read, and were not counted in it")
	require.NotContains(t, s.ok("status", other.UUID()).out, "spools")
	require.Contains(t, s.ok("status", run.String(), "--sql").err, "FROM run_counters")

	// It waits while the run goes on, and not longer.
	done := make(chan answer, 1)
	go func() { done <- s.hikyaku("status", run.String(), "--wait", "--json") }()
	select {
	case a := <-done:
		t.Fatalf("it did not wait: %+v", a)
	case <-time.After(600 * time.Millisecond):
	}
	s.run(run, "finished", row{"expected": int64(12), "balanced": true, "finished_at": time.Now()})
	select {
	case a := <-done:
		require.Equal(t, exitDone, a.code, a.err)
		require.Equal(t, "finished", a.one(t)["state"])
		require.Equal(t, true, a.one(t)["balanced"])
	case <-time.After(kafkatest.Patience):
		t.Fatal("it does not notice the end")
	}

	require.Equal(t, exitUsage, s.hikyaku("status", "yesterday").code)
	unknown := s.hikyaku("status", identity.Hash("none").String())
	require.Equal(t, exitUsage, unknown.code)
	require.Contains(t, unknown.err, "there is no run")
}

func TestTheLiveBarIsDrawnUntilTheEnd(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	run := identity.Run(s.namespace, "hello-all", "one")
	s.run(run, "preparing", nil) // nobody has been counted
	var screen locked
	a := &app{env: envconfig.MapLookuper(s.env), err: &screen, patience: 10 * time.Second}
	defer a.close()
	first, err := a.runState(t.Context(), run)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := a.follow(t.Context(), run, first, 100, true)
		done <- err
	}()
	kafkatest.Eventually(t, func() bool { return strings.Contains(screen.String(), "hello-all preparing") }, "nothing is drawn")
	s.shard(run, 1234)
	s.counters(run, row{"requested": int64(1234), "waiting": int64(600), "accepted": int64(634)})
	s.run(run, "sending", row{"expected": int64(1200)})
	kafkatest.Eventually(t, func() bool { return strings.Contains(screen.String(), "634 / 1,234") }, "no progress: %s", &screen)
	s.counters(run, row{"requested": int64(1234), "accepted": int64(1234)})
	s.run(run, "finished", row{"expected": int64(1200)})
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(kafkatest.Patience):
		t.Fatal("it does not end")
	}
	require.Contains(t, screen.String(), "1,234 / 1,234")
	require.NotContains(t, screen.String(), "/ 1 ")
	require.Contains(t, screen.String(), "hello-all finished")
}

func TestCtrlCStopsWaiting(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	run0 := identity.Run(s.namespace, "hello-all", "one")
	s.run(run0, "sending", nil)
	ctx, interrupt := context.WithCancel(t.Context())
	var out, errs locked
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"status", run0.String(), "--wait"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &errs)
	}()
	time.AfterFunc(300*time.Millisecond, interrupt)
	select {
	case code := <-done:
		require.Equal(t, exitCancelled, code)
		require.Contains(t, errs.String(), "stopped")
	case <-time.After(kafkatest.Patience):
		t.Fatal("Ctrl-C does nothing")
	}
}

func TestCancelAsksOnceAndOnlyForWhatGoesOn(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	going, ended := identity.Run(s.namespace, "hello-all", "going"), identity.Run(s.namespace, "hello-all", "ended")
	s.run(going, "sending", nil)
	s.run(ended, "finished", nil)
	require.Contains(t, s.ok("cancel", going.String()).out, "cancelling "+going.String())
	requests := records[event.RunRequest](s, topic.RunRequests)
	require.Len(t, requests, 1)
	require.Equal(t, "cancel", requests[0].Action)
	require.Equal(t, going, *requests[0].RunID)
	require.Equal(t, "hello-all", requests[0].CampaignID)

	a := s.ok("cancel", ended.String(), "--json")
	require.Equal(t, false, a.one(t)["requested"])
	require.Contains(t, a.err, "already ended")
	require.Len(t, records[event.RunRequest](s, topic.RunRequests), 1)
	require.Equal(t, exitUsage, s.hikyaku("cancel", identity.Hash("none").String()).code)
}
