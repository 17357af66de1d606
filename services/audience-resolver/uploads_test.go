package resolver

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
)

// uploading is a bench with a campaign that starts with each upload to vip.
type uploading struct {
	*bench
	at time.Time // of the next tick
}

// forever waits for parts of the pipeline that are not there.
type forever struct{}

func (forever) Fresh(ctx context.Context, _ func(string)) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
func (forever) Sunk(ctx context.Context, _ func(string)) error { <-ctx.Done(); return ctx.Err() }

func newUploading(t *testing.T) *uploading {
	u := &uploading{newBench(t), time.Now().UTC().Truncate(time.Second)}
	ctx, stop := context.WithCancel(context.Background())
	u.driver = schedule.NewDriver(ctx, u.view, nil, forever{}, time.Hour)
	driver := u.driver
	t.Cleanup(func() { stop(); driver.Wait() })
	u.define(change(t, vips()), change(t, hello()))
	return u
}

// apply puts the next version of the campaign in force.
func (u *uploading) apply(at definition.At, replyTo string) {
	u.t.Helper()
	c := campaign("greeting")
	c.At, c.ReplyTo = at, replyTo
	next := change(u.t, c)
	head, _ := u.defs.Head(definition.KindCampaign, c.ID)
	next.ReplacesVersion = head.Number
	u.define(next)
}

// ended makes the segment be made up of imports, the last of which has ended.
func (u *uploading) ended(imports ...identity.ID) {
	u.point("vip", definitions.Segment{Imports: imports, Ended: imports[len(imports)-1]})
}

// started ticks, and returns the runs that begin by their import.
func (u *uploading) started(of ...identity.ID) map[identity.ID]event.RunState {
	u.t.Helper()
	u.at = u.at.Add(time.Second)
	return u.begun(u.commit(u.tick("greeting", u.at)), of...)
}

func (u *uploading) begun(out []*kgo.Record, imports ...identity.ID) map[identity.ID]event.RunState {
	u.t.Helper()
	byRun := map[identity.ID]event.RunState{}
	for _, r := range of[event.Run](u.bench, topic.Runs, out) {
		if r.State != nil && (r.State.State == runs.Preparing || r.State.State == runs.Refused) {
			byRun[r.RunID] = *r.State
		}
	}
	got := map[identity.ID]event.RunState{}
	for _, id := range imports {
		if s, ok := byRun[identity.Run("test", "greeting", id.String())]; ok {
			got[id] = s
		}
	}
	require.Len(u.t, got, len(byRun), "no run but of these imports")
	return got
}

// anew forgets what the loop knows of its own, as a process does that was killed.
func (u *uploading) anew() {
	fresh := newPersonLoop(u.c, u.cfg, u.log, u.metrics)
	fresh.store, fresh.defs, fresh.view, fresh.caught, fresh.driver = u.store, u.defs, u.view, u.personLoop.caught, u.driver
	u.personLoop = fresh
}

var each = definition.At{Segment: "vip"}

func hashesOf(names ...string) (ids []identity.ID) {
	for _, n := range names {
		ids = append(ids, identity.Hash(n))
	}
	return ids
}

// One upload is one send: of what is in force later, each starts one run, ever, which sees the segment as it
// left it.
func TestEachUploadToASegmentStartsItsCampaignOnce(t *testing.T) {
	u := newUploading(t)
	ids := hashesOf("before", "a", "b", "c", "d")
	before, a, b, c, d := ids[0], ids[1], ids[2], ids[3], ids[4]
	u.ended(before)
	u.apply(each, "")
	require.Empty(t, u.started(before), "it was in force before the campaign")

	u.ended(a)
	out := u.decide(u.tick("greeting", u.at))
	require.Len(t, u.begun(out, a), 1)
	u.Aborted()
	got := u.started(a)
	require.Len(t, got, 1, "an aborted transaction started nothing")
	require.Equal(t, runs.Preparing, got[a].State)
	require.Equal(t, []event.SegmentPin{{SegmentID: "vip", ImportIDs: []identity.ID{a}}}, got[a].Segments)
	require.Empty(t, u.started(a))

	// While nobody looks: one replaces, another adds, and the campaign is edited.
	u.ended(b)
	u.apply(each, "reply@example.test")
	u.ended(b, c)
	u.anew()
	got = u.started(a, b, c)
	require.Len(t, got, 2)
	require.Equal(t, []identity.ID{b}, got[b].Segments[0].ImportIDs, "the list of its own")
	require.Equal(t, []identity.ID{b, c}, got[c].Segments[0].ImportIDs)
	u.anew()
	require.Empty(t, u.started(a, b, c), "after a kill")

	// An undo starts nothing, whatever comes back; nor does what was undone meanwhile.
	u.point("vip", definitions.Segment{Imports: []identity.ID{a}, Undone: b})
	require.Empty(t, u.started(a, b, c))
	u.ended(a, d)
	u.point("vip", definitions.Segment{Imports: []identity.ID{a}, Undone: d})
	require.Empty(t, u.started(a, b, c, d))
	u.anew()
	require.Empty(t, u.started(a, b, c, d))
}

// Whom a file removes, or what a later one has replaced, is nothing to send to.
func TestRemovalsAndSupersededUploadsStartNothing(t *testing.T) {
	u := newUploading(t)
	ids := hashesOf("a", "removes", "superseded")
	u.apply(each, "")
	u.ended(ids[0])
	require.Len(t, u.started(ids...), 1)
	u.point("vip", definitions.Segment{Imports: ids[:2], Removes: ids[1:2], Ended: ids[1]})
	u.point("vip", definitions.Segment{Imports: ids[:2], Removes: ids[1:2], Ended: ids[2]})
	require.Empty(t, u.started(ids...))
	u.point("vip", definitions.Segment{Imports: ids[2:], Undone: ids[0]})
	require.Empty(t, u.started(ids...), "it comes to be in force by an undo")
}

// A campaign that was at something else meanwhile does not make up for what it missed.
func TestAnUploadStartsTheCampaignsThatWereAtItsSegmentThen(t *testing.T) {
	u := newUploading(t)
	ids := hashesOf("a", "b", "c")
	u.apply(each, "")
	u.apply(definition.At{Now: true}, "")
	u.ended(ids[0])
	require.Empty(t, u.started(ids...))
	u.apply(definition.At{Segment: "other"}, "")
	u.ended(ids[1])
	u.apply(each, "")
	require.Empty(t, u.started(ids...))
	u.ended(ids[2])
	require.Contains(t, u.started(ids...), ids[2])
}

// Nobody gets today what was meant for the day before yesterday.
func TestAnUploadThatWasSeenTooLateIsRefused(t *testing.T) {
	u := newUploading(t)
	a := identity.Hash("a")
	u.apply(each, "")
	u.ended(a)
	u.at = u.at.Add(25 * time.Hour)
	got := u.started(a)
	require.Equal(t, runs.Refused, got[a].State)
	require.Contains(t, got[a].Note, "more than 24h0m0s ago")
	require.Empty(t, u.started(a))
}

// A person who starts such a campaign is asked to mean it, as ever; uploads go on.
func TestAStartByHandOfACampaignThatUploadsStartNeedsAgain(t *testing.T) {
	u := newUploading(t)
	ids := hashesOf("a", "b")
	u.apply(each, "")
	u.ended(ids[0])
	require.Len(t, u.started(ids...), 1)
	byHand := func(again bool) event.RunState {
		request := &event.RunRequest{Action: "start", RequestID: identity.Hash("r", u.at.String()), CampaignID: "greeting", Again: again, RequestedAt: u.at}
		u.at = u.at.Add(time.Second)
		states := of[event.Run](u.bench, topic.Runs, u.commit(u.record(topic.RunRequests, "greeting", request)))
		require.Len(t, states, 1)
		return *states[0].State
	}
	refused := byHand(false)
	require.Equal(t, runs.Refused, refused.State)
	require.Contains(t, refused.Note, "has run before")
	require.Equal(t, runs.Preparing, byHand(true).State)
	u.ended(ids[1])
	require.Contains(t, u.started(ids...), ids[1])
}
