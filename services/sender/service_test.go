package sender_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/sender"
	"github.com/hikyaku/hikyaku/services/sender/internal/smtp/fake"
)

var run = identity.Run("test", "campaign", "now")

// stage is one sender between a broker and a mail server.
type stage struct {
	t      *testing.T
	k      *kafkatest.Kafka
	server *fake.Server
	put    *kafka.Cluster // writes what other services would
	cfg    sender.Config
	tel    *telemetry.Telemetry
	stop   context.CancelFunc
	done   chan error
}

func newStage(t *testing.T, script fake.Script) *stage {
	t.Helper()
	t.Parallel()
	k := kafkatest.Start(t)
	s := &stage{t: t, k: k, put: k.Cluster(t, "others")}
	s.server = fake.Start(t, "", script)
	cfg, err := config.Load[sender.Config](t.Context(), envconfig.MapLookuper(map[string]string{
		"SMTP_ADDR": s.server.Addr, "RETRY_BACKOFF": "50ms", "SMTP_CONNECTIONS": "8",
	}))
	require.NoError(t, err)
	cfg.Kafka = k.Config()
	s.cfg = cfg
	return s
}

func (s *stage) start() {
	s.t.Helper()
	s.tel = kafkatest.Telemetry(s.t, topic.Sender)
	svc, err := sender.New(s.cfg, s.tel)
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ctx = lifecycle.WithDrain(ctx, time.Second)
	s.stop, s.done = cancel, make(chan error, 1)
	done := s.done
	go func() { done <- svc.Run(ctx); close(done) }()
	s.t.Cleanup(func() { cancel(); <-done })
}

// write produces messages of one run, to <who>@example.test.
func (s *stage) write(change func(*event.Message), who ...string) {
	s.t.Helper()
	for _, w := range who {
		m := &event.Message{
			MessageID: identity.Message("test", "campaign", run.String(), w, ""), RunID: run, CampaignID: "campaign", Lane: "bulk", UserID: w,
			Channel: "email", Policy: "at_most_once", Attempt: 1, RequestedAt: time.Now().Add(-time.Minute), ExpiresAt: time.Now().Add(time.Hour),
			ContentHash: make([]byte, 32), RendererVersion: "1",
			Email: &event.Email{EnvelopeFrom: "us@example.test", To: w + "@example.test", MIME: []byte("Subject: to " + w + "\r\n\r\nhello\r\n")},
		}
		if change != nil {
			change(m)
		}
		r, err := s.put.Record(topic.MessagesEmailBulk, w, m)
		require.NoError(s.t, err)
		s.k.Produce(s.t, r)
	}
}

// outcomes waits until the group has passed everything and returns each person's
// outcomes as "outcome attempt reason".
func (s *stage) outcomes() map[string][]string {
	s.t.Helper()
	s.atRest()
	return s.recorded()
}

// recorded is outcomes, as far as they have come. They are in the order of the
// attempts: a retry is written before the outcome that it follows from, and what
// comes of it may be too.
func (s *stage) recorded() map[string][]string {
	s.t.Helper()
	var all []event.Outcome
	for _, r := range s.k.All(s.t, topic.Outcomes) {
		var o event.Outcome
		s.k.Decode(s.t, r, &o)
		require.Equal(s.t, run, o.RunID)
		require.NotNil(s.t, o.Source)
		require.Equal(s.t, "smtp", o.Provider)
		require.Equal(s.t, identity.Outcome(o.MessageID, o.Outcome, o.Attempt, ""), o.OutcomeID)
		all = append(all, o)
	}
	slices.SortStableFunc(all, func(a, b event.Outcome) int { return cmp.Compare(a.Attempt, b.Attempt) })
	out := map[string][]string{}
	for _, o := range all {
		out[o.UserID] = append(out[o.UserID], fmt.Sprintf("%s %d %s", o.Outcome, o.Attempt, o.Reason))
	}
	return out
}

func (s *stage) atRest() {
	s.t.Helper()
	kafkatest.Eventually(s.t, func() bool {
		// The ends second: a retry that was written before its message was passed is among them.
		offsets, err := s.k.Admin().FetchOffsets(s.t.Context(), topic.GroupSender.In("test"))
		require.NoError(s.t, err)
		ends, err := s.k.Admin().ListEndOffsets(s.t.Context(), topic.MessagesEmailBulk.In("test"), topic.RetriesEmail.In("test"))
		require.NoError(s.t, err)
		for name, partitions := range ends {
			for p, end := range partitions {
				if o, ok := offsets.Lookup(name, p); !ok || o.At != end.Offset || o.Metadata != "" {
					return false
				}
			}
		}
		return true
	}, "the sender does not come to rest")
}

// awaitStop waits until the sender knows a reason to send somebody nothing: they are
// written to until they are not sent to.
func (s *stage) awaitStop(who, reason string) {
	s.t.Helper()
	kafkatest.Eventually(s.t, func() bool {
		s.write(nil, who)
		return slices.Contains(s.recorded()[who], "cancelled 1 "+reason)
	}, "%s is not %s", who, reason)
}

func (s *stage) delivered() []string {
	var to []string
	for _, m := range s.server.Mails() {
		if m.Answered {
			to = append(to, strings.TrimSuffix(m.To, "@example.test"))
		}
	}
	slices.Sort(to)
	return to
}

func only(prefix, reply string) func(string, int) string {
	return func(to string, _ int) string {
		if strings.HasPrefix(to, prefix) {
			return reply
		}
		return fake.Accept
	}
}

func TestAcceptedIsRecordedWithTheServersWords(t *testing.T) {
	s := newStage(t, fake.Script{})
	s.start()
	var who []string
	for i := range 60 {
		who = append(who, fmt.Sprintf("p%02d", i))
	}
	s.write(nil, who...)
	got := s.outcomes()
	for _, w := range who {
		require.Equal(t, []string{"accepted 1 "}, got[w])
	}
	require.Equal(t, who, s.delivered())
	require.LessOrEqual(t, s.server.Connections(), 8, "connections are reused")
	for _, m := range s.server.Mails() {
		require.Equal(t, "us@example.test", m.From)
		require.Equal(t, "Subject: to "+strings.TrimSuffix(m.To, "@example.test")+"\r\n\r\nhello\r\n", string(m.Bytes))
	}
	o := kafkatest.Consume[event.Outcome](t, s.k, topic.Outcomes, 1)[0]
	require.Regexp(t, `^Q\d+$`, o.ProviderID)
	require.Regexp(t, `^250 2.0.0 Ok: queued as Q\d+$`, o.Detail)
}

func TestRefusedForGood(t *testing.T) {
	s := newStage(t, fake.Script{Rcpt: only("no", "550 5.1.1 no such user")})
	s.start()
	s.write(nil, "no1", "yes1", "no2")
	require.Equal(t, map[string][]string{"no1": {"failed 1 5.1.1"}, "no2": {"failed 1 5.1.1"}, "yes1": {"accepted 1 "}}, s.outcomes())
	require.Equal(t, 1, s.server.Tries("no1@example.test"), "not tried again")
}

func TestRefusedForNowIsTriedAgain(t *testing.T) {
	s := newStage(t, fake.Script{Rcpt: func(to string, try int) string {
		if strings.HasPrefix(to, "later") && try < 3 || strings.HasPrefix(to, "never") {
			return "451 4.7.1 come back"
		}
		return fake.Accept
	}})
	s.cfg.RetryAttempts = 4
	s.start()
	s.write(nil, "later", "never", "now")
	kafkatest.Eventually(t, func() bool { return s.server.Tries("never@example.test") == 4 }, "four attempts")
	got := s.outcomes()
	require.Equal(t, []string{"deferred 1 4.7.1", "deferred 2 4.7.1", "accepted 3 "}, got["later"])
	require.Equal(t, []string{"deferred 1 4.7.1", "deferred 2 4.7.1", "deferred 3 4.7.1", "failed 4 retries_exhausted"}, got["never"])
	require.Equal(t, []string{"accepted 1 "}, got["now"])
	var gaps []time.Duration
	for _, m := range kafkatest.Consume[event.Message](t, s.k, topic.RetriesEmail, 5) {
		require.NotNil(t, m.NotBefore)
		gaps = append(gaps, time.Until(*m.NotBefore))
		require.NotNil(t, m.Email)
	}
	require.Len(t, gaps, 5)
}

func TestNoAnswerIsUncertainAndSaidSo(t *testing.T) {
	s := newStage(t, fake.Script{End: func(to string, _ int) string {
		switch {
		case strings.HasPrefix(to, "hang"):
			return fake.Hang
		case strings.HasPrefix(to, "drop"):
			return fake.Drop
		}
		return fake.Accept
	}})
	s.cfg.DataTimeout = 2 * time.Second // passes for who hangs, and for nobody else
	s.start()
	s.write(nil, "hang", "drop", "fine")
	require.Equal(t, map[string][]string{"hang": {"uncertain 1 no_answer"}, "drop": {"uncertain 1 no_answer"}, "fine": {"accepted 1 "}}, s.outcomes())
	require.Len(t, s.server.Mails(), 3, "nobody got a second copy")
}

func TestAtLeastOnceAsksAgainWhenNoAnswerCame(t *testing.T) {
	s := newStage(t, fake.Script{End: func(to string, try int) string {
		if strings.HasPrefix(to, "once") && try == 1 || strings.HasPrefix(to, "mute") {
			return fake.Drop
		}
		return fake.Accept
	}})
	s.cfg.RetryAttempts = 3
	s.start()
	s.write(func(m *event.Message) { m.Policy = "at_least_once" }, "once", "mute")
	kafkatest.Eventually(t, func() bool {
		return s.server.Tries("mute@example.test") == 3 && s.server.Tries("once@example.test") == 2
	}, "no further attempts")
	require.Equal(t, map[string][]string{
		"once": {"deferred 1 no_answer", "accepted 2 "},
		"mute": {"deferred 1 no_answer", "deferred 2 no_answer", "uncertain 3 no_answer"},
	}, s.outcomes())
}

// Whoever was asked for once without an answer may have a copy, whatever is decided
// afterwards: what was not sent again is not known not to have been sent.
func TestWhatWasNeverAnsweredStaysUncertain(t *testing.T) {
	known := make(chan struct{}) // the sender knows who is gone
	s := newStage(t, fake.Script{End: func(to string, try int) string {
		switch who, _, _ := strings.Cut(to, "@"); {
		case !slices.Contains([]string{"gone", "refused", "later"}, who):
			return fake.Accept
		case try == 1:
			<-known
			return fake.Drop
		case who == "later":
			return "451 4.7.1 come back"
		}
		return "550 5.1.1 no such user"
	}})
	s.cfg.RetryAttempts = 3
	s.cfg.DataTimeout = s.cfg.CallTimeout // the server answers when the sender knows
	s.start()
	s.write(func(m *event.Message) { m.Policy = "at_least_once" }, "gone", "refused", "later")
	kafkatest.Eventually(t, func() bool { return s.server.Tries("gone@example.test") == 1 }, "nobody asks for gone")
	// The engagements of one partition are read in order: who knows of the second knows
	// of the first.
	after := ""
	for i := 0; after == "" || topic.Partition(after, 4) != topic.Partition("gone", 4); i++ {
		after = fmt.Sprintf("after%d", i)
	}
	for _, who := range []string{"gone", after} {
		r, err := s.put.Record(topic.Engagements, who, &event.Engagement{UserID: who, Channel: "email", Kind: "unsubscribed", OccurredAt: time.Now().Add(time.Hour)})
		require.NoError(t, err)
		s.k.Produce(t, r)
	}
	s.awaitStop(after, "unsubscribed")
	close(known)
	got := s.outcomes()
	delete(got, after)
	require.Equal(t, map[string][]string{
		"gone":    {"deferred 1 no_answer", "uncertain 2 unsubscribed"},
		"refused": {"deferred 1 no_answer", "failed 2 5.1.1"}, // for good, so the first was not accepted
		"later":   {"deferred 1 no_answer", "deferred 2 4.7.1", "uncertain 3 retries_exhausted"},
	}, got)
	require.Equal(t, 1, s.server.Tries("gone@example.test"))
}

// A connection that the server ends with 421, or without a word, costs nobody anything.
func TestServerEndsConnectionsAsItLikes(t *testing.T) {
	s := newStage(t, fake.Script{Mail: func(try int) string {
		switch {
		case try%10 == 0:
			return "421 4.7.0 that was enough"
		case try%17 == 0:
			return fake.Drop
		}
		return fake.Accept
	}})
	s.cfg.SMTPConnections = 2
	var who []string
	for i := range 80 {
		who = append(who, fmt.Sprintf("p%02d", i))
	}
	s.write(nil, who...)
	s.start()
	got := s.outcomes()
	accepted := 0
	for _, w := range who {
		last := got[w][len(got[w])-1]
		require.Contains(t, last, "accepted", w)
		if last == "accepted 1 " {
			accepted++
		}
	}
	require.Equal(t, who, s.delivered())
	require.Greater(t, accepted, 70)
}

// While the server is away everything waits, Health says so, and no attempt is used up.
func TestServerAwayHoldsUpTheLaneAndNobodyFails(t *testing.T) {
	s := newStage(t, fake.Script{})
	addr := s.server.Addr
	s.server.Stop()
	s.start()
	s.write(nil, "a", "b", "c")
	kafkatest.Eventually(t, func() bool {
		return slices.ContainsFunc(s.tel.Health.NotReady(), func(p string) bool { return strings.HasPrefix(p, "smtp: ") })
	}, "Health does not say so")
	require.Empty(t, s.k.All(t, topic.Outcomes))
	s.server = fake.Start(t, addr, fake.Script{})
	require.Equal(t, map[string][]string{"a": {"accepted 1 "}, "b": {"accepted 1 "}, "c": {"accepted 1 "}}, s.outcomes())
	require.Empty(t, s.tel.Health.NotReady())
}

func TestThrottlingUsesUpNoAttempt(t *testing.T) {
	var n atomic.Int64
	s := newStage(t, fake.Script{End: func(string, int) string {
		if n.Add(1)%5 == 0 {
			return "454 4.7.0 Throttling failure: Maximum sending rate exceeded"
		}
		return fake.Accept
	}})
	s.write(nil, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")
	s.start()
	for w, o := range s.outcomes() {
		require.Equal(t, []string{"accepted 1 "}, o, w)
	}
	require.Len(t, s.delivered(), 12)
}

func TestCancelledUnsubscribedAndExpiredAreNotSent(t *testing.T) {
	s := newStage(t, fake.Script{})
	other := identity.Run("test", "other", "now")
	r, err := s.put.Record(topic.Runs, other.String(), &event.Run{RunID: other, CampaignID: "other", State: &event.RunState{State: "sending", CancelRequested: true}})
	require.NoError(t, err)
	s.k.Produce(t, r)
	for who, at := range map[string]time.Time{"gone": time.Now(), "back": time.Now().Add(-2 * time.Hour)} {
		r, err := s.put.Record(topic.Engagements, who, &event.Engagement{UserID: who, Channel: "email", Kind: "unsubscribed", OccurredAt: at})
		require.NoError(t, err)
		s.k.Produce(t, r)
	}
	s.write(nil, "gone", "back", "fine")
	s.write(func(m *event.Message) { m.ExpiresAt = time.Now().Add(-time.Second) }, "late")
	s.start()
	require.Equal(t, map[string][]string{
		"gone": {"cancelled 1 unsubscribed"}, "late": {"expired 1 expired"}, "fine": {"accepted 1 "},
		"back": {"accepted 1 "}, // unsubscribed before the request: admission has judged it
	}, s.outcomes())
	require.Equal(t, []string{"back", "fine"}, s.delivered())

	// A run cancelled while the sender runs; the table follows.
	r, err = s.put.Record(topic.Runs, run.String(), &event.Run{RunID: run, CampaignID: "campaign", State: &event.RunState{State: "cancelled"}})
	require.NoError(t, err)
	s.k.Produce(t, r)
	n := 0
	kafkatest.Eventually(t, func() bool {
		n++
		who := fmt.Sprintf("more%d", n)
		s.write(nil, who)
		return slices.Contains(s.outcomes()[who], "cancelled 1 run_cancelled")
	}, "the run is not cancelled")
}

// A cancelled run's retries end as soon as they come up, not when they are due.
func TestCancelReachesRetries(t *testing.T) {
	known := make(chan struct{}) // the sender knows that the run is cancelled
	s := newStage(t, fake.Script{Rcpt: func(to string, _ int) string {
		if strings.HasPrefix(to, "later") {
			<-known
			return "451 4.7.1 come back"
		}
		return fake.Accept
	}})
	s.cfg.RetryBackoff = time.Hour
	s.cfg.ReplyTimeout = s.cfg.CallTimeout // the server answers when the sender knows
	s.start()
	s.write(nil, "later")
	kafkatest.Eventually(t, func() bool { return s.server.Tries("later@example.test") == 1 }, "nobody asks for later")
	r, err := s.put.Record(topic.Runs, run.String(), &event.Run{RunID: run, State: &event.RunState{CancelRequested: true}})
	require.NoError(t, err)
	s.k.Produce(t, r)
	s.awaitStop("another", "run_cancelled")
	close(known)
	require.Equal(t, []string{"deferred 1 4.7.1", "cancelled 2 run_cancelled"}, s.outcomes()["later"])
	require.Equal(t, 1, s.server.Tries("later@example.test"))
}

func TestPoisonIsParkedAndOthersGoOn(t *testing.T) {
	s := newStage(t, fake.Script{})
	s.write(func(m *event.Message) { m.Email = nil }, "empty")
	s.write(nil, "fine")
	s.start()
	s.k.RequireDeadLetter(t, topic.Sender, "no e-mail")
	s.atRest()
	byUser := map[string]event.Outcome{}
	for _, o := range kafkatest.Consume[event.Outcome](t, s.k, topic.Outcomes, 2) {
		byUser[o.UserID] = o
	}
	require.Equal(t, "parked", byUser["empty"].Outcome)
	require.Equal(t, "accepted", byUser["fine"].Outcome)
	require.EqualValues(t, 1, byUser["empty"].Attempt)
}

// A signal ends a call that hangs when the drain time is over, and what is not known
// then is said.
func TestStopRecordsWhatIsNotKnown(t *testing.T) {
	s := newStage(t, fake.Script{End: only("hang", fake.Hang)})
	s.cfg.DataTimeout, s.cfg.CallTimeout = 30*time.Second, 40*time.Second
	s.start()
	s.write(nil, "hang")
	kafkatest.Eventually(t, func() bool { return len(s.server.Mails()) == 1 }, "no call")
	s.stop()
	require.NoError(t, <-s.done)
	require.Equal(t, map[string][]string{"hang": {"uncertain 1 no_answer"}}, s.outcomes())
}

// What a claim says can be read by anybody who asks the group.
func TestClaimIsReadable(t *testing.T) {
	s := newStage(t, fake.Script{End: only("hang", fake.Hang)})
	s.cfg.DataTimeout = 20 * time.Second
	s.start()
	s.write(nil, "hang")
	kafkatest.Eventually(t, func() bool { return len(s.server.Mails()) == 1 }, "no call")
	offsets, err := s.k.Admin().FetchOffsets(t.Context(), topic.GroupSender.In("test"))
	require.NoError(t, err)
	o, ok := offsets.Lookup(topic.MessagesEmailBulk.In("test"), topic.Partition("hang", 4))
	require.True(t, ok)
	var claim map[string]any
	require.NoError(t, json.Unmarshal([]byte(o.Metadata), &claim))
	require.NotEmpty(t, claim["by"])
	delete(claim, "by")
	require.Equal(t, map[string]any{"to": 0.0, "scan": 0.0}, claim)
	require.Zero(t, o.At)
	s.server.Stop() // the call ends
	require.Equal(t, []string{"uncertain 1 no_answer"}, s.outcomes()["hang"])
}
