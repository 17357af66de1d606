package console

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Whoever is called at night asks one question and is told what is away, for
// whom, and who stands still because of it.
func TestStatusSaysWhatIsWrongNow(t *testing.T) {
	s := newStage(t)
	tel := telemetry.New(topic.Sender, telemetry.Config{}, testWriter{t})
	tel.SetMember("sender-0")
	tel.Health.Set("smtp", nil)
	sender := httptest.NewServer(tel.Handler())
	defer sender.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	s.env["STATUS_ADDRS"] = strings.TrimPrefix(sender.URL, "http://") + "," + strings.TrimPrefix(gone.URL, "http://")

	run := identity.Run(s.namespace, "greeting", "now")
	asked := time.Now().UTC().Truncate(time.Microsecond)
	state := event.RunState{State: "blocked", Note: "group event-collector lacks 3 records of profiles", UnreadSpoolEvents: 1204, RequestedAt: asked, AsOf: asked, ExpiresAt: asked, UpdatedAt: asked}
	s.produce(topic.Runs, run.String(), &event.Run{RunID: run, CampaignID: "greeting", State: &state})
	ended := identity.Run(s.namespace, "greeting", "before")
	over := state
	over.State = "finished"
	s.produce(topic.Runs, ended.String(), &event.Run{RunID: ended, CampaignID: "greeting", State: &over})
	s.produce(topic.Engagements, "ada", &event.Engagement{UserID: "ada", Kind: "opened", Channel: "email", OccurredAt: asked})
	s.produce(topic.DeadLetters(topic.Sender), "ada", &event.DeadLetter{Service: topic.Sender, Reason: "poison", ParkedAt: asked, ProducedAt: asked})

	tel.Health.Set("smtp", errors.New("421 busy"))
	// A service has two seconds to answer; a busy machine may take longer.
	status := func(args ...string) (a answer) {
		kafkatest.Eventually(t, func() bool {
			a = s.hikyaku(append([]string{"status"}, args...)...)
			return strings.Contains(a.out, "421 busy")
		}, "what the sender says is not shown")
		return a
	}
	answer := status("--json")
	require.Equal(t, exitMissing, answer.code, answer.err)
	var o overview
	require.NoError(t, json.Unmarshal([]byte(answer.out), &o), answer.out)
	require.False(t, o.Well)
	said := strings.Join(o.Wrong, "\n")
	require.Regexp(t, `sender-0, smtp, since \d{4}.*: 421 busy`, said)
	require.Contains(t, said, "no service answers on "+strings.TrimPrefix(gone.URL, "http://"))
	require.Contains(t, said, "group sender has no members")
	require.Contains(t, said, "run "+run.String()+" of greeting is blocked: group event-collector lacks 3 records of profiles")
	require.Len(t, o.Runs, 1, "what has ended waits for nothing")
	require.EqualValues(t, 1204, o.Runs[0].Unread)
	require.Equal(t, map[string]int64{topic.Sender: 1}, o.DeadLetters)
	for _, g := range o.Groups {
		if g.Group == topic.GroupSink {
			require.EqualValues(t, 1, g.Lacks[topic.Engagements])
			require.EqualValues(t, 3, g.Lag, "two records of runs, one engagement")
		}
	}

	text := status()
	require.Equal(t, exitMissing, text.code)
	require.Contains(t, text.out, "What is wrong now:")
	require.Regexp(t, `sender-0 +127\.0\.0\.1:\d+ +NO`, text.out)
	require.Contains(t, text.out, run.String()+": 1,204 events still lay in collectors' spools")
	require.Contains(t, text.out, "Dead letters: 1 of the sender")

	s.Fake.Close()
	answer = status("--json", "--timeout", "1s")
	require.Equal(t, exitMissing, answer.code)
	require.NoError(t, json.Unmarshal([]byte(answer.out), &o), answer.out)
	require.Contains(t, strings.Join(o.Wrong, "\n"), "Kafka at", "what else answers is shown all the same")
	require.Contains(t, strings.Join(o.Wrong, "\n"), "421 busy")
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) { w.t.Log(string(p)); return len(p), nil }

// A run that is on its way says who stands between it and its end.
func TestARunSaysWhatItWaitsFor(t *testing.T) {
	groups := []groupStatus{
		{Group: topic.GroupPersonLoop, Lacks: map[topic.Name]int64{topic.Candidates: 1200}},
		{Group: topic.GroupSender, Lacks: map[topic.Name]int64{topic.MessagesEmailBulk: 5, topic.RetriesEmail: 1}},
		{Group: topic.GroupSink, Lacks: map[topic.Name]int64{topic.Outcomes: 7}},
	}
	picture := func(state string) *runPicture {
		return &runPicture{campaign: "greeting", state: &event.RunState{State: state, Shards: 2}, done: 1, shards: 1,
			counters: map[int32]*event.RunCounters{0: {Requested: 10, Waiting: 4}, 1: {Requested: 10, Waiting: 2}}}
	}
	for state, want := range map[string]string{
		"preparing": "group audience-resolver lacks 1,200 of candidates; group event-collector lacks 7 of outcomes",
		"resolving": "1 of 3 parts of the audience are read; group audience-resolver lacks 1,200 of candidates",
		"sending":   "6 messages have no ending yet; group audience-resolver lacks 1,200 of candidates; group sender lacks 5 of messages.email.bulk, 1 of retries.email",
		"balancing": "group audience-resolver lacks 1,200 of candidates; group event-collector lacks 7 of outcomes",
	} {
		s, open := picture(state).status(identity.ID{}, groups)
		require.True(t, open)
		require.Equal(t, want, s.WaitsFor, state)
	}
	_, open := picture("finished").status(identity.ID{}, groups)
	require.False(t, open)
}
