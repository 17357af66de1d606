package console

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
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

func (s *stage) event(user, id string) *kgo.Record {
	s.t.Helper()
	return s.produce(topic.Events, user, &event.Event{EventID: id, UserID: user, Name: "visit", OccurredAt: time.Now(), ReceivedAt: time.Now(), Source: "test",
		Properties: []event.NamedValue{{Name: "price", Value: event.Float(1.5)}}})
}

func TestTopicReadDecodes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	require.Empty(t, s.ok("topic", "read", "events").out, "an empty topic ends at once")
	first := s.event("ann", "1")
	s.event("bob", "2")
	s.event("ann", "3")
	lines := s.ok("topic", "read", "events").lines(t)
	require.Len(t, lines, 3)
	for _, l := range lines {
		require.Equal(t, "events", l["topic"])
		require.Contains(t, l, "headers")
		at, err := time.Parse(time.RFC3339, l["at"].(string))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), at, time.Minute)
	}
	ann := s.ok("topic", "read", s.namespace+".events", "--key", "ann", "--json").lines(t)
	require.Len(t, ann, 2)
	require.Equal(t, []any{float64(first.Partition), 0.0, "ann"}, []any{ann[0]["partition"], ann[0]["offset"], ann[0]["key"]})
	value := ann[1]["value"].(map[string]any)
	require.Equal(t, "3", value["event_id"])
	require.Equal(t, []any{map[string]any{"name": "price", "value": 1.5}}, value["properties"])
	require.Len(t, s.ok("topic", "read", "events", "--limit", "2").lines(t), 2)
	require.Len(t, s.ok("topic", "read", "events", "--partition", fmt.Sprint(first.Partition), "--key", "ann").lines(t), 2)
	require.Empty(t, s.ok("topic", "read", "events", "--partition", fmt.Sprint((first.Partition+1)%4), "--key", "ann").out)
	require.Len(t, s.ok("topic", "read", "events", "--from", time.Now().Add(-time.Hour).Format(time.RFC3339)).lines(t), 3)
	require.Empty(t, s.ok("topic", "read", "events", "--from", time.Now().Add(time.Hour).Format(time.RFC3339)).out)

	// A record about a message, a mail, and what does not decode.
	s.produce(topic.MessagesEmailBulk, "ann", &event.Message{MessageID: identity.Hash("m"), UserID: "ann", Email: &event.Email{To: "ann@example.test", MIME: []byte("From: x\r\n")}})
	mail := s.ok("topic", "read", "messages.email.bulk").lines(t)[0]
	require.Equal(t, "From: x\r\n", mail["value"].(map[string]any)["email"].(map[string]any)["mime"])
	require.Equal(t, identity.Hash("m").String(), mail["headers"].(map[string]any)["message_id"])
	s.Produce(t, &kgo.Record{Topic: topic.Outcomes.In(s.namespace), Key: []byte("ann"), Value: []byte("not avro")},
		&kgo.Record{Topic: topic.Outcomes.In(s.namespace), Key: []byte("ann")})
	broken := s.ok("topic", "read", "outcomes").lines(t)
	require.Contains(t, broken[0]["error"], "decoding outcomes/0@0")
	require.Equal(t, base64.StdEncoding.EncodeToString([]byte("not avro")), broken[0]["base64"])
	require.Nil(t, broken[1]["value"])
	require.NotContains(t, broken[1], "error")

	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"evnts"}, `did you mean "events"?`},
		{[]string{"something"}, "hikyaku topic list names them"},
		{[]string{"events", "--from", "yesterday"}, "neither start nor end nor a time"},
		{[]string{"events", "--partition", "4"}, "partitions 0 to 3"},
		{[]string{"events", "--limit", "-1"}, "--limit"},
	} {
		a := s.hikyaku(append([]string{"topic", "read"}, c.args...)...)
		require.Equal(t, exitUsage, a.code, c.args)
		require.Contains(t, a.err, c.says)
	}
}

func TestTopicReadFollows(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.event("ann", "before")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out, errs locked
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"topic", "read", "events", "--follow"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &errs)
	}()
	kafkatest.Eventually(t, func() bool { return strings.Contains(out.String(), `"before"`) }, "what was there is not shown: %s", &errs)
	s.event("ann", "after")
	kafkatest.Eventually(t, func() bool { return strings.Contains(out.String(), `"after"`) }, "what comes is not shown")
	interrupt()
	select {
	case code := <-done:
		require.Equal(t, exitDone, code, "Ctrl-C is how following ends")
	case <-time.After(kafkatest.Patience):
		t.Fatal("Ctrl-C does nothing")
	}
}

func TestTopicReadFromTheEndShowsOnlyWhatComes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.event("ann", "before")
	s.event("bob", "before")
	done := make(chan answer, 1)
	go func() { done <- s.hikyaku("topic", "read", "events", "--from", "end", "--limit", "1") }()
	// It may begin at any moment: events come until one has been seen.
	deadline := time.After(kafkatest.Patience)
	for i := 0; ; i++ {
		select {
		case a := <-done:
			require.Equal(t, exitDone, a.code, a.err)
			require.Contains(t, a.out, `"after`)
			require.NotContains(t, a.out, `"before"`)
			return
		case <-deadline:
			t.Fatal("it sees nothing")
		case <-time.After(50 * time.Millisecond):
			s.event("ann", fmt.Sprintf("after %d", i))
		}
	}
}

func TestTopicListIsTheCatalogue(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.event("ann", "1")
	a := s.ok("topic", "list")
	for _, row := range topic.Catalogue() {
		require.Contains(t, a.out, string(row.Name))
	}
	require.Regexp(t, `(?m)^events +Event +user_id +4 +1 +importer, event-collector +event-collector$`, a.out)
	d := s.hikyaku("topic", "list", "--json")
	require.Equal(t, exitDone, d.code)
	require.Contains(t, d.out, `{"topic":"definitions","record":"Definition","key":"kind/id@version, kind/id","partitions":1,"records":0,"writers":["console","importer"]`)
}

func TestDeadLettersAreCountedListedAndShown(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	require.Equal(t, "no dead letters\n", s.ok("dead-letters").out)
	good := s.event("ann", "1")
	park := func(r *kgo.Record, why string) {
		s.Produce(t, s.cluster.DeadLetter(r, fmt.Errorf("handling %s/%d@%d: %w", s.cluster.NameOf(r.Topic), r.Partition, r.Offset, errors.New(why))))
	}
	park(good, "a rule was wrong")
	bad := &kgo.Record{Topic: topic.Outcomes.In(s.namespace), Partition: 2, Offset: 7, Key: []byte("bob"), Value: []byte("not avro"),
		Headers: []kgo.RecordHeader{{Key: "message_id", Value: []byte(identity.Hash("m").String())}, {Key: "user_id", Value: []byte("bob")}}}
	park(bad, "it does not decode")
	bad.Offset++
	park(bad, "it does not decode")

	a := s.ok("dead-letters", "list")
	require.Regexp(t, `(?m)^audience-resolver +2 +handling outcomes: it does not decode$`, a.out)
	require.Regexp(t, `(?m)^audience-resolver +1 +handling events: a rule was wrong$`, a.out)
	require.Regexp(t, `(?m)^audience-resolver/2 .*outcomes/2@8 +handling outcomes/2@8: it does not decode$`, a.out)
	all := s.ok("dead-letters", "--json").one(t)
	require.Len(t, all["letters"], 3)
	require.Equal(t, map[string]any{"service": "audience-resolver", "reason": "handling outcomes: it does not decode", "count": 2.0}, all["counts"].([]any)[0])
	few := s.ok("dead-letters", "--limit", "1", "--json").one(t)
	require.Len(t, few["letters"], 1)
	require.Equal(t, "audience-resolver/2", few["letters"].([]any)[0].(map[string]any)["id"], "the newest")
	require.Len(t, few["counts"], 2, "all are counted")

	first := s.ok("dead-letters", "show", "audience-resolver/0", "--json").one(t)
	require.Equal(t, "1", first["value"].(map[string]any)["event_id"])
	require.Equal(t, "events", first["topic"])
	require.Contains(t, s.ok("dead-letters", "show", "audience-resolver/0").out, `"event_id": "1"`)
	second := s.ok("dead-letters", "show", "audience-resolver/1", "--json").one(t)
	require.Equal(t, identity.Hash("m").String(), second["message_id"])
	require.Equal(t, "bob", second["headers"].(map[string]any)["user_id"])
	require.Contains(t, second["error"], "decoding outcomes/2@7")
	require.Contains(t, s.ok("dead-letters", "show", "audience-resolver/1").out, base64.StdEncoding.EncodeToString([]byte("not avro")))

	for _, c := range []struct{ id, says string }{
		{"audience-resolver/3", "there is no dead letter audience-resolver/3"}, {"audience-resolver", "service/offset"}, {"rendere/0", `did you mean "renderer"?`}, {"renderer/-1", "service/offset"},
	} {
		a := s.hikyaku("dead-letters", "show", c.id)
		require.Equal(t, exitUsage, a.code, c.id)
		require.Contains(t, a.err, c.says)
	}
}
