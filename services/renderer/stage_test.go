package renderer_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/renderer"
)

var run = identity.Run("test", "greeting", "1")

// stage is a renderer between the resolver and the sender, which the test is.
type stage struct {
	*kafkatest.Kafka
	t   *testing.T
	put *kafka.Cluster
}

func newStage(t *testing.T) *stage {
	t.Helper()
	t.Parallel()
	k := kafkatest.Start(t)
	return &stage{k, t, k.Cluster(t, topic.Console)}
}

func (s *stage) start() {
	s.t.Helper()
	cfg, err := config.Load[renderer.Config](s.t.Context(), envconfig.MapLookuper(map[string]string{"TRACKING_SECRET": "a secret for tests only", "TRACKING_URL": "https://t.example.test"}))
	require.NoError(s.t, err)
	cfg.Kafka = s.Config()
	svc, err := renderer.New(cfg, kafkatest.Telemetry(s.t, topic.Renderer))
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(lifecycle.WithDrain(context.Background(), 5*time.Second))
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		require.NoError(s.t, <-done)
	})
}

func changes(t *testing.T, text string) []definitions.Change {
	t.Helper()
	var out []definitions.Change
	for _, d := range []definition.Definition{
		&definition.Campaign{ID: "greeting", Audience: "all", Template: "hello", From: definition.Sender{Address: "hello@example.test"}, Policy: definition.AtMostOnce, Consent: definition.NotUnsubscribed, ExpiresAfter: definition.Duration(72 * time.Hour)},
		&definition.Template{ID: "hello", Channel: "email", Subject: "Hello {{ name }}", Text: text, Strict: true},
	} {
		body, err := definition.Encode(d)
		require.NoError(t, err)
		out = append(out, definitions.Change{Kind: d.Ref().Kind, ID: d.Ref().ID, Body: body})
	}
	return out
}

func (s *stage) define(text string) {
	s.t.Helper()
	_, err := definitions.Write(s.t.Context(), s.put, "test", changes(s.t, text))
	require.NoError(s.t, err)
}

func request(user, name string) *event.MessageRequest {
	q := &event.MessageRequest{MessageID: identity.Message("test", "greeting", run.String(), user, ""), RunID: run, CampaignID: "greeting", CampaignVersion: 1, TemplateID: "hello", TemplateVersion: 1,
		Lane: "bulk", UserID: user, Channel: "email", Address: user + "@example.test", Policy: "at_most_once", KeyID: "1", RequestedAt: time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC), ExpiresAt: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)}
	if name != "" {
		q.Attributes = []event.NamedValue{{Name: "name", Value: event.String(name)}}
	}
	return q
}

func (s *stage) ask(requests ...*event.MessageRequest) {
	s.t.Helper()
	producer, err := s.put.Producer() // takes records as large as services may make
	require.NoError(s.t, err)
	defer producer.Close()
	for _, q := range requests {
		r, err := s.put.Record(topic.MessageRequestsBulk, q.UserID, q)
		require.NoError(s.t, err)
		require.NoError(s.t, producer.ProduceSync(s.t.Context(), r).FirstErr())
	}
}

// passed waits until the renderer's offsets have passed all requests.
func (s *stage) passed(n int) {
	s.t.Helper()
	kafkatest.Eventually(s.t, func() bool {
		var sum int64
		for _, at := range s.Committed(s.t, topic.GroupRenderer)[topic.MessageRequestsBulk] {
			sum += at
		}
		return sum == int64(n)
	}, "the renderer does not pass %d requests", n)
}

func all[T any, P interface {
	*T
	event.Record
}](s *stage, name topic.Name) map[string][]T {
	s.t.Helper()
	out := map[string][]T{}
	for _, r := range s.All(s.t, name) {
		var v T
		s.Decode(s.t, r, P(&v))
		out[string(r.Key)] = append(out[string(r.Key)], v)
	}
	return out
}

// A request becomes a message for the sender and the outcome that says which.
func TestARequestBecomesAMessageAndItsOutcome(t *testing.T) {
	s := newStage(t)
	s.start()
	s.define("Hello {{ name }}")
	q := request("ann", "Ann")
	s.ask(q)
	s.passed(1)
	m := all[event.Message](s, topic.MessagesEmailBulk)["ann"]
	o := all[event.Outcome](s, topic.Outcomes)["ann"]
	require.Len(t, m, 1)
	require.Len(t, o, 1)
	hash := sha256.Sum256(m[0].Email.MIME)
	require.Contains(t, string(m[0].Email.MIME), "Hello Ann")
	require.Equal(t, []string{"ann@example.test", "hello@example.test"}, []string{m[0].Email.To, m[0].Email.EnvelopeFrom})
	require.Equal(t, event.Message{MessageID: q.MessageID, RunID: run, CampaignID: "greeting", Lane: "bulk", UserID: "ann", Channel: "email", Policy: "at_most_once", Attempt: 1,
		RequestedAt: q.RequestedAt, ExpiresAt: q.ExpiresAt, ContentHash: hash[:], RendererVersion: render.Version, Email: m[0].Email}, m[0])
	require.Equal(t, []any{"rendered", int32(0), q.MessageID, run, hash[:], render.Version, identity.Outcome(q.MessageID, "rendered", 0, "")},
		[]any{o[0].Outcome, o[0].Attempt, o[0].MessageID, o[0].RunID, o[0].ContentHash, o[0].RendererVersion, o[0].OutcomeID})
}

// What cannot be rendered for one person is that person's rejection, whatever it
// is; the line goes on.
func TestOnePersonsFaultHoldsNobodyUp(t *testing.T) {
	s := newStage(t)
	s.start()
	s.define("Hello {{ name }} {{ essay | default: '' }}")
	strange := request("strange", "Bob")
	strange.Address = "no address"
	// A message that is just not too large, and an id that fills more than the room
	// left for the rest of the record.
	long := strings.Repeat("u", 12<<10)
	large := request(long, "Lou")
	large.Attributes = event.Sorted(append(large.Attributes, event.NamedValue{Name: "essay", Value: event.String(strings.Repeat(strings.Repeat("x", 499)+"\n", 2030))}))
	large.Address = "large@example.test"
	s.ask(request("nameless", ""), strange, large, request("cem", "Cem"))
	s.passed(4)
	require.Len(t, all[event.Message](s, topic.MessagesEmailBulk), 1)
	why := map[string]string{}
	for user, o := range all[event.Outcome](s, topic.Outcomes) {
		require.Len(t, o, 1)
		why[user] = o[0].Outcome + " " + o[0].Reason
	}
	require.Equal(t, map[string]string{"nameless": "rejected template_error", "strange": "rejected invalid_address", long: "rejected too_large", "cem": "rendered "}, why)
	require.Empty(t, s.All(t, topic.DeadLettersRenderer))
}

// A request may be ahead of the definitions that it names: the renderer waits.
func TestAVersionThatIsNotReadYetIsWaitedFor(t *testing.T) {
	s := newStage(t)
	s.start()
	// The definitions are being written: their transaction is open.
	writer, err := s.put.TransactionalProducer("definitions")
	require.NoError(t, err)
	defer writer.Close()
	require.NoError(t, writer.BeginTransaction())
	for _, c := range changes(t, "Hello {{ name }}") {
		d := &event.Definition{Kind: c.Kind, ID: c.ID, Version: 1, Body: string(c.Body), AppliedAt: time.Now(), AppliedBy: "test"}
		r, err := s.put.Record(topic.Definitions, c.Kind+"/"+c.ID+"@1", d)
		require.NoError(t, err)
		require.NoError(t, kafka.ProduceSync(t.Context(), writer, r))
	}
	// Who waits has asked how far the topic goes.
	var asked, sent atomic.Bool
	s.Fake.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		for _, t := range req.(*kmsg.ListOffsetsRequest).Topics {
			if t.Topic == topic.Definitions.In("test") && sent.Load() {
				asked.Store(true)
			}
		}
		return nil, nil, false
	})
	sent.Store(true)
	s.ask(request("ann", "Ann"))
	kafkatest.Eventually(t, asked.Load, "the renderer does not wait")
	require.Empty(t, s.All(t, topic.Outcomes))
	require.Empty(t, s.All(t, topic.DeadLettersRenderer))
	require.NoError(t, writer.EndTransaction(t.Context(), kgo.TryCommit))
	s.passed(1)
	require.Len(t, all[event.Message](s, topic.MessagesEmailBulk)["ann"], 1)
	require.Empty(t, s.All(t, topic.DeadLettersRenderer))
}

// What can never be rendered is parked, counted as parked, and passed.
func TestPoisonIsParkedAndCounted(t *testing.T) {
	s := newStage(t)
	s.start()
	s.define("Hello {{ name }}")
	broken, err := s.put.Record(topic.MessageRequestsBulk, "broken", request("broken", "Bob"))
	require.NoError(t, err)
	broken.Value = broken.Value[:9]
	s.Produce(t, broken)
	nowhere := request("nowhere", "Ned")
	nowhere.TemplateVersion = 7
	s.ask(nowhere, request("ann", "Ann"))
	s.passed(3)
	outcomes := all[event.Outcome](s, topic.Outcomes)
	for _, user := range []string{"broken", "nowhere"} {
		require.Len(t, outcomes[user], 1)
		o := outcomes[user][0]
		require.Equal(t, []any{"parked", "poison", request(user, "").MessageID, run}, []any{o.Outcome, o.Reason, o.MessageID, o.RunID})
	}
	require.Equal(t, "rendered", outcomes["ann"][0].Outcome)
	require.Contains(t, s.RequireDeadLetter(t, topic.Renderer, "hello@7").Reason, "does not exist")
	require.Len(t, all[event.DeadLetter](s, topic.DeadLettersRenderer), 2)
}

// The same request renders to the same bytes, whenever and by whomever.
func TestTheSameRequestRendersToTheSameBytes(t *testing.T) {
	s := newStage(t)
	s.start()
	s.define("Hello {{ name }}: https://example.test")
	q := request("ann", "Ann")
	s.ask(q, q)
	s.passed(2)
	m := all[event.Message](s, topic.MessagesEmailBulk)["ann"]
	require.Len(t, m, 2)
	require.Equal(t, string(m[0].Email.MIME), string(m[1].Email.MIME))
	o := all[event.Outcome](s, topic.Outcomes)["ann"]
	require.Equal(t, o[0].OutcomeID, o[1].OutcomeID)
}

// I1: message, outcome and offset commit as one: three attempts whose offsets were
// refused leave nothing that anybody reads.
func TestThreeAbortedTransactionsLeaveOneMessage(t *testing.T) {
	s := newStage(t)
	var refused atomic.Int32
	s.Fake.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		r := req.(*kmsg.TxnOffsetCommitRequest)
		if refused.Load() == 3 {
			return nil, nil, false
		}
		refused.Add(1)
		resp := r.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
		for _, t := range r.Topics {
			rt := kmsg.NewTxnOffsetCommitResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewTxnOffsetCommitResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, kerr.IllegalGeneration.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	s.define("Hello {{ name }}")
	s.ask(request("ann", "Ann"))
	s.start()
	s.passed(1)
	require.EqualValues(t, 3, refused.Load())
	require.Len(t, all[event.Message](s, topic.MessagesEmailBulk)["ann"], 1)
	require.Len(t, all[event.Outcome](s, topic.Outcomes)["ann"], 1)
}

// Sixty of the largest messages are not one transaction: neither memory nor the time
// that a transaction may take has room for a thousand.
func TestLargeMessagesFillSeveralTransactions(t *testing.T) {
	s := newStage(t)
	var text strings.Builder
	for r := rand.NewChaCha8([32]byte{}); text.Len() < 900<<10; { // does not compress
		fmt.Fprintf(&text, "%x\n", r.Uint64())
	}
	s.define(text.String())
	var requests []*event.MessageRequest
	for i := range 60 {
		requests = append(requests, request(fmt.Sprint("user", i), "Ann"))
	}
	s.ask(requests...)
	var written, largest atomic.Int64
	s.Fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		for _, t := range req.(*kmsg.ProduceRequest).Topics {
			for _, p := range t.Partitions {
				written.Add(int64(len(p.Records)))
			}
		}
		return nil, nil, false
	})
	s.Fake.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		largest.Store(max(largest.Load(), written.Swap(0)))
		return nil, nil, false
	})
	s.start()
	s.passed(len(requests))
	require.Len(t, all[event.Message](s, topic.MessagesEmailBulk), len(requests))
	require.Less(t, largest.Load(), int64(40<<20))
}
