package resolver

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// point puts in force what a segment is made up of.
func (b *bench) point(segment string, to definitions.Segment) {
	b.t.Helper()
	body, err := to.Encode()
	require.NoError(b.t, err)
	head, _ := b.defs.Head(definitions.KindSegment, segment)
	b.define(definitions.Change{Kind: definitions.KindSegment, ID: segment, Body: body, ReplacesVersion: head.Number})
}

func (b *bench) member(segment string, importID identity.ID, user string) *kgo.Record {
	return b.record(topic.SegmentMembers, user, &event.SegmentMember{SegmentID: segment, ImportID: importID, UserID: user,
		Attributes: []event.NamedValue{{Name: "list", Value: event.String(importID.String())}}})
}

// values returns the lists whose values the message to a person has.
func values(requests []event.MessageRequest) map[string]string {
	out := map[string]string{}
	for _, q := range requests {
		for _, s := range q.Segments {
			out[q.UserID] += s.SegmentID + " " + s.Attributes[0].Value.Text()
		}
	}
	return out
}

// vips is an audience of a segment.
func vips() *definition.Audience {
	return &definition.Audience{ID: "adults", Filter: &filter.Node{Any: []*filter.Node{adults().Filter, {Segment: "vip"}}}}
}

// What a list says about a person goes into her message if it is the last that names
// her, and does not remove her.
func TestAMessageHasTheValuesOfTheLastListThatNamesThePerson(t *testing.T) {
	b := newBench(t)
	whole, removed, back, other := identity.Hash("whole"), identity.Hash("removed"), identity.Hash("back"), identity.Hash("other")
	b.define(change(t, vips()), change(t, hello()), change(t, campaign("greeting")))
	b.point("vip", definitions.Segment{Imports: []identity.ID{whole, removed, back}, Removes: []identity.ID{removed}})
	request := b.record(topic.RunRequests, "greeting", &event.RunRequest{Action: "start", RequestID: identity.Hash("r"), CampaignID: "greeting", RequestedAt: t0})
	states := of[event.Run](b, topic.Runs, b.commit(request))
	require.Len(t, states, 1)
	require.Equal(t, []event.SegmentPin{{SegmentID: "vip", ImportIDs: []identity.ID{whole, removed, back}, Removes: []identity.ID{removed}}}, states[0].State.Segments, "a run keeps what it saw")
	require.Equal(t, runs.Preparing, states[0].State.State)

	var batch []*kgo.Record
	for user, lists := range map[string][]identity.ID{"stays": {whole}, "goes": {whole, removed}, "returns": {back, other, removed, whole}, "elsewhere": {other}} {
		batch = append(batch, b.patch(user))
		for _, id := range lists { // in whatever order they are read
			batch = append(batch, b.member("vip", id, user))
		}
		batch = append(batch, b.candidate(states[0].RunID, "greeting", user))
	}
	requests := of[event.MessageRequest](b, topic.MessageRequestsBulk, b.commit(batch...))
	require.Len(t, requests, 4)
	require.Equal(t, map[string]string{"stays": "vip " + whole.String(), "returns": "vip " + back.String()}, values(requests))
}

// A person's state keeps so many lists of a segment; the one in force is among them,
// however many that do not count, or count for less, are read after it.
func TestTheListInForceIsNotForgotten(t *testing.T) {
	b := newBench(t)
	first := identity.Hash("first")
	b.point("vip", definitions.Segment{Imports: []identity.ID{first}})
	batch := []*kgo.Record{b.member("other", first, "u"), b.member("vip", first, "u")}
	var last identity.ID
	for n := range 2 * rememberImports {
		last = identity.Hash("failed", fmt.Sprint(n))
		batch = append(batch, b.member("vip", last, "u"))
	}
	b.commit(batch...)
	lists := func() (ids []identity.ID) {
		c, err := b.newBatch().state("u", kindMemberships, topic.Partition("u", b.c.P()))
		require.NoError(t, err)
		for _, m := range c.rec.Memberships {
			if m.SegmentID == "vip" {
				ids = append(ids, m.ImportID)
			}
		}
		return ids
	}
	require.Len(t, lists(), rememberImports)
	require.Contains(t, lists(), first)
	require.Contains(t, lists(), last)

	b.point("vip", definitions.Segment{Imports: []identity.ID{last}})
	b.commit(b.member("vip", identity.Hash("one more"), "u"))
	require.NotContains(t, lists(), first, "the oldest that is not in force")
	require.Contains(t, lists(), last)
}
