package console

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// parked is a message that was to be sent, and its dead letter; its offset tells it
// from others.
func (s *stage) parked(user string, offset int64, why string) *kgo.Record {
	s.t.Helper()
	r, err := s.cluster.Record(topic.MessageRequestsBulk, user, &event.MessageRequest{MessageID: identity.Hash("message", user), RunID: identity.Hash("run"), CampaignID: "hello-all",
		UserID: user, Lane: "bulk", Channel: "email", RequestedAt: time.Now()})
	require.NoError(s.t, err)
	r.Offset = offset
	s.Produce(s.t, s.cluster.DeadLetter(r, errors.New(why)))
	return r
}

// A dead letter is replayed once: the record, what is said of its message, and the
// mark that says so come together.
func TestADeadLetterIsReplayedOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.parked("ann", 7, "definition Template/hello@9 does not exist")
	s.parked("ann", 7, "definition Template/hello@9 does not exist") // by a service that was killed
	require.Regexp(t, `(?m)^audience-resolver +1 +definition`, s.ok("dead-letters").out, "one dead letter, however often it was parked")

	dry := s.ok("dead-letters", "replay", "audience-resolver/0", "--dry-run")
	require.Equal(t, "1 would be replayed\n", dry.out)
	require.Empty(t, records[event.MessageRequest](s, topic.MessageRequestsBulk))

	a := s.ok("dead-letters", "replay", "audience-resolver/1", "--json").one(t)
	require.Equal(t, []any{"audience-resolver/0"}, a["letters"])
	again := s.hikyaku("dead-letters", "replay", "audience-resolver/0")
	require.Equal(t, exitUsage, again.code)
	require.Regexp(t, `audience-resolver/0 was replayed at .* by .*; --again`, again.err)
	require.Contains(t, s.ok("dead-letters", "replay", "--all").out, "no dead letter is open")

	require.Len(t, records[event.MessageRequest](s, topic.MessageRequestsBulk), 1)
	said := records[event.Outcome](s, topic.Outcomes)
	require.Len(t, said, 1)
	require.Equal(t, []any{"replayed", int32(0), identity.Hash("message", "ann")}, []any{said[0].Outcome, said[0].Attempt, said[0].MessageID})
	require.Contains(t, s.ok("dead-letters").out, "none of 1 dead letters")
	require.Regexp(t, `(?m)^audience-resolver/0 +replayed `, s.ok("dead-letters", "--state", "replayed").out)
	require.Regexp(t, `state +replayed at .* by `, s.ok("dead-letters", "show", "audience-resolver/0").out)

	s.ok("dead-letters", "replay", "audience-resolver/0", "--again")
	require.Len(t, records[event.MessageRequest](s, topic.MessageRequestsBulk), 2)
}

// What is still poison is parked again, under a new ID that names the old one.
func TestWhatIsParkedAgainIsShownAsThat(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.parked("ann", 7, "it does not decode")
	s.ok("dead-letters", "replay", "--all")
	var back *kgo.Record
	ends, err := s.cluster.HighWatermarks(t.Context(), topic.MessageRequestsBulk)
	require.NoError(t, err)
	for p, end := range ends[topic.MessageRequestsBulk] {
		require.NoError(t, s.cluster.ReadPartition(t.Context(), topic.MessageRequestsBulk, p, 0, end, kgo.ReadCommitted(), func(r *kgo.Record) error {
			back = r
			return nil
		}))
	}
	s.Produce(t, s.cluster.DeadLetter(back, errors.New("it does not decode")))
	origin := fmt.Sprintf("message-requests.bulk/%d@7", back.Partition)
	require.Contains(t, s.ok("dead-letters").out, "(again, though "+origin+" was replayed) it does not decode")
	require.Contains(t, s.ok("dead-letters", "show", "audience-resolver/0").out, "parked again as audience-resolver/1")
}

// Dropped is given up with a reason, and nothing else changes.
func TestADroppedDeadLetterIsGivenUpWithAReason(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.parked("ann", 7, "it does not decode")
	a := s.hikyaku("dead-letters", "drop", "audience-resolver/0")
	require.Equal(t, exitUsage, a.code)
	require.Contains(t, a.err, "--because")
	s.ok("dead-letters", "drop", "audience-resolver/0", "--because", "a test of ours")
	require.Empty(t, records[event.Outcome](s, topic.Outcomes))
	require.Contains(t, s.ok("dead-letters").out, "none of 1")
	require.Regexp(t, `state +dropped at .* by .*: a test of ours`, s.ok("dead-letters", "show", "audience-resolver/0").out)
	require.Equal(t, exitUsage, s.hikyaku("dead-letters", "replay", "audience-resolver/0").code)
	s.ok("dead-letters", "replay", "audience-resolver/0", "--again")
	require.Regexp(t, `(?m)^audience-resolver/0 +replayed `, s.ok("dead-letters", "--state", "all").out, "the latest mark speaks")
}

// Several are chosen by what they have in common; more than one asks.
func TestDeadLettersAreChosenAndAskedFor(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for i := range 450 { // more than a transaction holds
		s.parked(fmt.Sprint("u", i), int64(i), fmt.Sprintf("reason %d", i%2))
	}
	no := s.say("n\n", "dead-letters", "replay", "--reason", "reason 1")
	require.Equal(t, exitUsage, no.code)
	require.Contains(t, no.err, "Replay 225 dead letters? [y/N]")
	require.Empty(t, records[event.MessageRequest](s, topic.MessageRequestsBulk))
	yes := s.say("y\n", "dead-letters", "replay", "--reason", "reason 1", "--service", "audience-resolver", "--topic", "message-requests.bulk", "--run", identity.Hash("run").String())
	require.Equal(t, exitDone, yes.code, yes.err)
	require.Contains(t, yes.out, "225 dead letters are replayed")
	require.Contains(t, yes.err, "replayed 200 of 225")
	require.Len(t, records[event.MessageRequest](s, topic.MessageRequestsBulk), 225)
	s.ok("dead-letters", "drop", "--all", "--yes", "--because", "enough")
	require.Contains(t, s.ok("dead-letters").out, "none of 450")
	require.Len(t, records[event.Outcome](s, topic.Outcomes), 225)

	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"replay"}, "name dead letters"}, {[]string{"replay", "audience-resolver/0", "--all"}, "either IDs or"}, {[]string{"replay", "--service", "rendere"}, `did you mean "renderer"?`},
		{[]string{"replay", "--topic", "event"}, `did you mean "events"?`}, {[]string{"replay", "audience-resolver/900"}, "there is no dead letter"}, {[]string{"list", "--state", "closed"}, "--state is"},
	} {
		a := s.hikyaku(append([]string{"dead-letters"}, c.args...)...)
		require.Equal(t, exitUsage, a.code, c.args)
		require.Contains(t, a.err, c.says)
	}
}

func TestWhatCannotBeReplayedSaysWhy(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tick, err := s.cluster.RecordAt(topic.Ticks, 0, "0", &event.Tick{At: time.Now()})
	require.NoError(t, err)
	s.Produce(t, s.cluster.DeadLetter(tick, errors.New("it does not decode")))
	s.parked("ann", 7, "it does not decode")
	a := s.hikyaku("dead-letters", "replay", "--all", "--yes")
	require.Equal(t, exitBroken, a.code)
	require.Contains(t, a.out, "audience-resolver/0 cannot be replayed: it is a tick: time has gone on")
	require.Contains(t, a.out, "audience-resolver/1 is replayed")
	require.Contains(t, s.ok("dead-letters", "show", "audience-resolver/0").out, "cannot be: it is a tick")
	require.Contains(t, s.ok("dead-letters").out, "audience-resolver/0", "it is open still")
	s.ok("dead-letters", "drop", "audience-resolver/0", "--because", "it is late")

	r, err := s.cluster.Record(topic.DeadLetters(topic.Collector), "ann", &event.DeadLetter{Service: topic.Collector, Topic: kafka.OriginHTTP, Offset: 5, Key: []byte("ann"), UserID: "ann",
		Value: []byte(`{"type":"track","userId":"ann"}`), Headers: []event.Header{{Key: "source", Value: []byte("api:web")}}, Reason: "event: missing: the name of the event is missing"})
	require.NoError(t, err)
	s.Produce(t, r)
	require.Regexp(t, `(?m)^event-collector +1 +event: missing`, s.ok("dead-letters").out)
	shown := s.ok("dead-letters", "show", "event-collector/0").out
	for _, part := range []string{"HTTP, api:web", `"type": "track"`, "cannot be: it came over HTTP"} {
		require.Contains(t, shown, part)
	}
	a = s.hikyaku("dead-letters", "replay", "event-collector/0", "--yes")
	require.Equal(t, exitBroken, a.code)
	require.Contains(t, a.out, "was never in Kafka: whoever sent it has to mend it and send it again")
	s.ok("dead-letters", "drop", "event-collector/0", "--because", "a test of theirs")

	r, err = s.cluster.Record(topic.DeadLetters(topic.Collector), "", &event.DeadLetter{Service: topic.Collector, Topic: kafka.OriginHTTP, Offset: 6,
		Value: []byte(`{"eventType":"Bou`), Headers: []event.Header{{Key: "source", Value: []byte("webhook:ses")}}, Reason: "the event of SES cannot be read: it ends early"})
	require.NoError(t, err)
	s.Produce(t, r)
	shown = s.ok("dead-letters", "show", "event-collector/1").out
	require.Contains(t, shown, "HTTP, webhook:ses")
	require.Contains(t, shown, base64.StdEncoding.EncodeToString([]byte(`{"eventType":"Bou`)))
	require.Contains(t, s.ok("dead-letters", "show", "event-collector/1", "--json").out, `"error":"it is not JSON"`)
}

// Of two who replay at once, one does; and what one leaves open who is killed before
// its end is nobody's, so that the next one replays it.
func TestTwoReplaysAtOnceAreOne(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.parked("ann", 7, "it does not decode")

	killed, err := s.cluster.TransactionalProducer(deadLettersID)
	require.NoError(t, err)
	defer killed.Close()
	require.NoError(t, killed.BeginTransaction())
	half, err := s.cluster.Record(topic.MessageRequestsBulk, "ann", &event.MessageRequest{UserID: "ann"})
	require.NoError(t, err)
	require.NoError(t, killed.ProduceSync(t.Context(), half).FirstErr())

	var wg sync.WaitGroup
	answers := make([]answer, 4)
	for i := range answers {
		wg.Go(func() { answers[i] = s.hikyaku("dead-letters", "replay", "audience-resolver/0") })
	}
	wg.Wait()
	done := 0
	for _, a := range answers {
		if a.code == exitDone {
			done++
			continue
		}
		require.True(t, strings.Contains(a.err, "somebody else") || strings.Contains(a.err, "was replayed at"), a.err)
	}
	if done == 0 { // each was overtaken by the next but the last, which may have been overtaken before it wrote
		s.ok("dead-letters", "replay", "audience-resolver/0")
	}
	require.LessOrEqual(t, done, 1)
	require.Len(t, records[event.MessageRequest](s, topic.MessageRequestsBulk), 1)
	require.Len(t, records[event.Outcome](s, topic.Outcomes), 1)
	require.Len(t, records[event.DeadLetterMark](s, topic.DeadLetterMarks), 1)
}

// What the status counts is what nobody has dealt with.
func TestOpenDeadLettersAreCounted(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for i := range int64(3) {
		s.parked(fmt.Sprint("u", i), i, "it does not decode")
	}
	s.ok("dead-letters", "replay", "audience-resolver/0")
	s.ok("dead-letters", "drop", "audience-resolver/1", "--because", "enough")
	var status struct {
		DeadLetters map[string]int64 `json:"dead_letters"`
	}
	a := s.hikyaku("status", "--json")
	require.NoError(t, json.Unmarshal([]byte(a.out), &status), a.out)
	require.Equal(t, map[string]int64{"audience-resolver": 1}, status.DeadLetters)
}
