package resolver

import (
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
)

var (
	imported  = "import:" + identity.Hash("first").String()
	corrected = "import:" + identity.Hash("second").String()
)

// said is what a writer says of a person, minutes after t0.
func said(id, setBy string, minute int, age int64, address, consent string) *event.ProfilePatch {
	p := personPatch(id, address, consent, age)
	p.SetBy, p.SetAt = setBy, t0.Add(time.Duration(minute)*time.Minute)
	p.OccurredAt = p.SetAt
	return p
}

func undo(id, by string) *event.ProfilePatch {
	return &event.ProfilePatch{UserID: id, SetBy: "undo:" + by[len("import:"):], Undoes: by, SetAt: t0.Add(time.Hour), OccurredAt: t0.Add(time.Hour)}
}

// What is needed is in Kafka: an undo by a resolver that has lost its store gives
// back what was there before.
func TestAnUndoneImportLeavesProfilesAsTheyWere(t *testing.T) {
	s := newStage(t)
	say := func(p *event.ProfilePatch) { s.write(topic.ProfileUpdates, p.UserID, p) }
	latest := func(id string, revision int64) event.Profile {
		var last event.Profile
		s.eventually(func() bool {
			for _, p := range read[event.Profile](s, topic.Profiles) {
				if p.UserID == id && p.Revision > last.Revision {
					last = p
				}
			}
			return last.Revision >= revision
		}, "%s has no revision %d", id, revision)
		require.Equal(t, revision, last.Revision)
		return last
	}

	stop := s.start("0")
	say(said("ann", "api:web", 1, 30, "ann@example.test", "unsubscribed"))
	say(said("bob", imported, 2, 40, "bob@example.test", ""))
	ann := latest("ann", 1)
	latest("bob", 1)
	say(said("ann", imported, 2, 31, "wrong@example.test", "subscribed"))
	first := latest("ann", 2)
	say(said("ann", corrected, 3, 31, "wrong@example.test", "subscribed"))
	require.Equal(t, corrected, latest("ann", 3).Attributes[0].SetBy)
	stop()
	require.NoError(t, os.RemoveAll(s.dir("0")))

	s.start("0")
	say(undo("ann", corrected))
	again := latest("ann", 4)
	again.Revision = first.Revision
	require.Equal(t, first, again)
	say(undo("ann", imported))
	say(undo("ann", imported))
	say(undo("bob", imported))
	say(undo("nobody", imported))
	gone := latest("bob", 2)
	require.True(t, gone.Deleted)
	require.Empty(t, gone.Addresses)
	again = latest("ann", 5)
	again.Revision = ann.Revision
	require.Equal(t, ann, again)
	for _, p := range read[event.Profile](s, topic.Profiles) {
		require.NotEqual(t, "nobody", p.UserID)
	}
	require.Empty(t, read[event.DeadLetter](s, topic.DeadLettersResolver))
}

// Somebody who is in an audience that was resolved before is, when the import was
// undone, nobody who can be sent to.
func TestADeletedPersonIsExcludedLikeAnUnknownOne(t *testing.T) {
	b := newBench(t)
	run := b.running("greeting")
	b.commit(b.record(topic.ProfileUpdates, "ann", said("ann", imported, 1, 30, "ann@example.test", "subscribed")))
	b.commit(b.record(topic.ProfileUpdates, "ann", undo("ann", imported)))
	reasons := map[string]string{}
	for _, o := range of[event.Outcome](b, topic.Outcomes, b.commit(b.candidate(run, "greeting", "ann"), b.candidate(run, "greeting", "nobody"))) {
		require.Equal(t, ledger.Excluded, o.Outcome)
		reasons[o.UserID] = o.Reason
	}
	require.Equal(t, map[string]string{"ann": "no_address", "nobody": "no_address"}, reasons)
}

// What an import replaced is kept no longer than an undo can ask for it, and for
// people whom nobody knew it is not kept at all.
func TestWhatWasReplacedIsKeptOnlyWhereAnUndoNeedsIt(t *testing.T) {
	b := newBench(t)
	replaced := func(out []*kgo.Record) (records []*kgo.Record) {
		for _, r := range out {
			if b.c.NameOf(r.Topic) == topic.PersonState {
				require.Equal(t, "ann/"+kindReplaced, string(r.Key))
				records = append(records, r)
			}
		}
		return records
	}
	ann := func(p *event.ProfilePatch) []*kgo.Record {
		return replaced(b.commit(b.record(topic.ProfileUpdates, "ann", p)))
	}
	require.Empty(t, ann(said("ann", imported, 1, 30, "ann@example.test", "")))
	require.Empty(t, ann(said("ann", "api:web", 2, 30, "", "")), "nothing an undo would bring back")
	require.Len(t, ann(said("ann", corrected, 3, 31, "", "")), 1)
	require.Empty(t, ann(undo("ann", "import:another")))
	require.Nil(t, ann(undo("ann", corrected))[0].Value, "the profile alone says what the first import did")
	require.Empty(t, ann(undo("ann", imported)))
	stored, err := b.store.Get(topic.PersonState, topic.Partition("ann", b.c.P()), []byte("ann/"+kindReplaced))
	require.NoError(t, err)
	require.Nil(t, stored)
}

// An undo that comes too late is counted and changes nothing.
func TestAnUndoThatComesTooLateIsCounted(t *testing.T) {
	b := newBench(t)
	retain, _ := topic.ByName(topic.ProfileUpdates)
	late := said("ann", corrected, 0, 31, "", "")
	late.SetAt = t0.Add(retain.Retain + 2*time.Minute)
	b.commit(b.record(topic.ProfileUpdates, "ann", said("ann", imported, 1, 30, "ann@example.test", "")), b.record(topic.ProfileUpdates, "ann", late))
	out := b.commit(b.record(topic.ProfileUpdates, "ann", undo("ann", imported)))
	require.Empty(t, out)
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.undoForgotten))
}
