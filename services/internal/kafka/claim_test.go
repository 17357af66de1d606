package kafka_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// provider is whom the calls of a test go to. It remembers who was asked how often.
type provider struct {
	mu    sync.Mutex
	calls map[string]int // by user
	order []string
	now   int
	most  int
	// answer decides; nil accepts. It may block.
	answer func(ctx context.Context, m *event.Message, call int) (string, error)
	// spare is asked before each claim; an outcome or an error spares the call.
	spare func(m *event.Message) (string, error)
}

func (p *provider) ask(ctx context.Context, m *event.Message) (string, error) {
	p.mu.Lock()
	if p.calls == nil {
		p.calls = map[string]int{}
	}
	p.calls[m.UserID]++
	n := p.calls[m.UserID]
	p.order = append(p.order, m.UserID)
	p.now++
	p.most = max(p.most, p.now)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.now--
		p.mu.Unlock()
	}()
	if p.answer == nil {
		return "accepted", nil
	}
	return p.answer(ctx, m, n)
}

func (p *provider) asked() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.calls)
}

func (p *provider) total() (n int) {
	for _, c := range p.asked() {
		n += c
	}
	return n
}

func (p *provider) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// claimer is a handler with the sender's policies and nothing else of it.
type claimer struct {
	c        *kafka.Cluster
	provider *provider
}

func (h *claimer) read(r *kgo.Record) (*event.Message, error) {
	var m event.Message
	return &m, h.c.Decode(r, &m)
}

func (h *claimer) Prepare(_ context.Context, r *kgo.Record) (kafka.Call, kafka.Outputs, error) {
	m, err := h.read(r)
	if err != nil {
		return nil, nil, err
	}
	if m.NotBefore != nil && m.NotBefore.After(time.Now()) {
		return nil, nil, fault.NotBefore(*m.NotBefore)
	}
	if m.Variant == "cancel" {
		return nil, h.outcome(r, m, "cancelled"), nil
	}
	if h.provider.spare != nil {
		if what, err := h.provider.spare(m); err != nil {
			return nil, nil, err
		} else if what != "" {
			return nil, h.outcome(r, m, what), nil
		}
	}
	return &claimCall{h, r, m}, nil, nil
}

func (h *claimer) Unresolved(_ context.Context, r *kgo.Record) (kafka.Outputs, error) {
	m, err := h.read(r)
	if err != nil {
		return nil, err
	}
	if m.Policy == "at_least_once" {
		return h.outcome(r, m, "deferred"), nil
	}
	return h.outcome(r, m, "uncertain"), nil
}

func (h *claimer) outcome(r *kgo.Record, m *event.Message, what string) kafka.Outputs {
	name := h.c.NameOf(r.Topic)
	out := kafka.Outputs{}
	if what == "deferred" {
		again := *m
		again.Attempt++
		at := time.Now().Add(50 * time.Millisecond)
		again.NotBefore = &at
		retry, err := h.c.Record(topic.RetriesEmail, m.UserID, &again)
		if err != nil {
			panic(err)
		}
		out = append(out, []*kgo.Record{retry})
	}
	o, err := h.c.Record(topic.Outcomes, m.UserID, &event.Outcome{
		OutcomeID: identity.Outcome(m.MessageID, what, m.Attempt, ""), MessageID: m.MessageID, UserID: m.UserID, Outcome: what, Attempt: m.Attempt,
		OccurredAt: time.Now(), Source: &event.Source{Topic: string(name), Partition: r.Partition, Offset: r.Offset},
	})
	if err != nil {
		panic(err)
	}
	return append(out, []*kgo.Record{o})
}

type claimCall struct {
	h *claimer
	r *kgo.Record
	m *event.Message
}

func (c *claimCall) Do(ctx context.Context) (kafka.Outputs, error) {
	what, err := c.h.provider.ask(ctx, c.m)
	if err != nil {
		return nil, err
	}
	return c.h.outcome(c.r, c.m, what), nil
}

// sending is a claim loop that runs until it is stopped or ends.
type sending struct {
	t      testing.TB
	stop   context.CancelFunc
	done   chan struct{}
	err    error
	tel    *kafka.Cluster
	caller *provider
}

type sendOption func(*kafka.Config, *kafka.ClaimOptions)

func asInstance(name string) sendOption {
	return func(c *kafka.Config, _ *kafka.ClaimOptions) { c.Instance = name }
}
func session(d time.Duration) sendOption {
	return func(c *kafka.Config, _ *kafka.ClaimOptions) { c.SessionTimeout = d }
}
func connections(n int) sendOption {
	return func(_ *kafka.Config, o *kafka.ClaimOptions) { o.Connections = n }
}
func hook(f func(point string, r *kgo.Record) bool) sendOption {
	return func(_ *kafka.Config, o *kafka.ClaimOptions) { *o = kafka.HookClaims(*o, f) }
}

func send(t testing.TB, k *kafkatest.Kafka, p *provider, opts ...sendOption) *sending {
	t.Helper()
	cfg := k.Config()
	o := kafka.ClaimOptions{Group: topic.GroupSender, Topics: topic.ReadBy(topic.GroupSender), Provider: "provider",
		Connections: 8, CallTimeout: 10 * time.Second}
	for _, opt := range opts {
		opt(&cfg, &o)
	}
	c := k.ClusterWith(t, "sender", cfg)
	o.Handler = &claimer{c, p}
	ctx, cancel := context.WithCancel(context.Background())
	s := &sending{t: t, stop: cancel, done: make(chan struct{}), tel: c, caller: p}
	go func() {
		defer close(s.done)
		s.err = c.RunClaims(ctx, o)
	}()
	t.Cleanup(func() { cancel(); <-s.done })
	return s
}

// end stops the loop as a signal would and returns its error.
func (s *sending) end() error {
	s.t.Helper()
	s.stop()
	return s.wait()
}

func (s *sending) wait() error {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(kafkatest.Patience):
		s.t.Fatal("the loop does not end")
	}
	return s.err
}

// put produces one message per user and returns the users.
func put(t testing.TB, k *kafkatest.Kafka, n int, change func(i int, m *event.Message)) []string {
	t.Helper()
	c := k.Cluster(t, "renderer")
	var users []string
	var recs []*kgo.Record
	for i := range n {
		m := &event.Message{UserID: fmt.Sprintf("user-%d", i), Policy: "at_most_once", Attempt: 1}
		if change != nil {
			change(i, m)
		}
		m.MessageID = identity.Message("test", "campaign", "run", m.UserID, fmt.Sprint(i))
		name := topic.MessagesEmailBulk
		if m.NotBefore != nil {
			name = topic.RetriesEmail
		}
		r, err := c.Record(name, m.UserID, m)
		require.NoError(t, err)
		recs, users = append(recs, r), append(users, m.UserID)
	}
	k.Produce(t, recs...)
	return users
}

// outcomes returns, by user, what was recorded, in order and without repetitions
// of the same outcome.
func outcomes(t testing.TB, k *kafkatest.Kafka) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	seen := map[identity.ID]bool{}
	for _, r := range k.All(t, topic.Outcomes) {
		var o event.Outcome
		k.Decode(t, r, &o)
		if !seen[o.OutcomeID] {
			seen[o.OutcomeID] = true
			out[o.UserID] = append(out[o.UserID], o.Outcome)
		}
	}
	return out
}

type claimMeta struct {
	To   *int64
	Scan int64
	Open []int64
}

// committed returns offset and metadata of each partition that the sender reads.
func committed(t testing.TB, k *kafkatest.Kafka) map[string]struct {
	at   int64
	meta string
} {
	t.Helper()
	offsets, err := k.Admin().FetchOffsets(t.Context(), topic.GroupSender.In(k.Config().Namespace))
	require.NoError(t, err)
	out := map[string]struct {
		at   int64
		meta string
	}{}
	for _, partitions := range offsets {
		for _, o := range partitions {
			out[fmt.Sprintf("%s/%d", o.Topic, o.Partition)] = struct {
				at   int64
				meta string
			}{o.At, o.Metadata}
		}
	}
	return out
}

// claimed counts, over all partitions, the records that a kill would leave unresolved
// if none had an outcome.
func claimed(t testing.TB, k *kafkatest.Kafka) int {
	n := 0
	for _, o := range committed(t, k) {
		if o.meta == "" {
			continue
		}
		var m claimMeta
		require.NoError(t, json.Unmarshal([]byte(o.meta), &m))
		n += int(*m.To-o.at) + 1 - len(m.Open)
	}
	return n
}

// requireAtRest waits until the group has committed the ends of its topics, with
// nothing claimed.
func requireAtRest(t testing.TB, k *kafkatest.Kafka) {
	t.Helper()
	var wrong string
	kafkatest.Eventually(t, func() bool {
		wrong = ""
		ends, err := k.Admin().ListEndOffsets(t.Context(), topic.MessagesEmailBulk.In(k.Config().Namespace), topic.RetriesEmail.In(k.Config().Namespace))
		require.NoError(t, err)
		at := committed(t, k)
		for name, partitions := range ends {
			for p, end := range partitions {
				if o := at[fmt.Sprintf("%s/%d", name, p)]; o.at != end.Offset || o.meta != "" {
					wrong += fmt.Sprintf("%s/%d at %d of %d %s\n", name, p, o.at, end.Offset, o.meta)
				}
			}
		}
		return wrong == ""
	}, "not at rest")
}

func TestEachMessageIsCalledOnceAndTheOffsetsReachTheEnd(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	p := &provider{}
	s := send(t, k, p)
	users := put(t, k, 500, func(i int, m *event.Message) {
		if i%7 == 0 {
			m.Variant = "cancel"
		}
	})
	requireAtRest(t, k)
	require.NoError(t, s.end())
	got := outcomes(t, k)
	for i, u := range users {
		want, calls := "accepted", 1
		if i%7 == 0 {
			want, calls = "cancelled", 0
		}
		require.Equal(t, []string{want}, got[u])
		require.Equal(t, calls, p.asked()[u])
	}
	require.LessOrEqual(t, p.most, 8)
}

// A message is parked with its reason and the others go on.
func TestPoisonIsParkedBeforeItsOffsetMoves(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 3, nil)
	c := k.Cluster(t, "renderer")
	bad, err := c.Record(topic.MessagesEmailBulk, "user-bad", &event.Message{UserID: "user-bad", Attempt: 1, MessageID: identity.Hash("bad")})
	require.NoError(t, err)
	bad.Value = bad.Value[:9]
	k.Produce(t, bad)
	users = append(users, put(t, k, 9, nil)[3:]...)
	p := &provider{}
	send(t, k, p)
	requireAtRest(t, k)
	k.RequireDeadLetter(t, "sender", "decoding")
	got := outcomes(t, k)
	require.Equal(t, []string{"parked"}, got["user-bad"])
	for _, u := range users {
		require.Contains(t, got[u], "accepted")
	}
	require.Zero(t, p.asked()["user-bad"])
}

// The failure table: the loop is killed at each point, twenty times over, and
// started again under the same name.
func TestKilledAnywhereNobodyIsCalledTwiceOrForgotten(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"at_most_once", "at_least_once"} {
		for _, point := range []string{"claiming", "claimed", "called", "acked"} {
			t.Run(policy+"/"+point, func(t *testing.T) {
				t.Parallel()
				k := kafkatest.Start(t, kafkatest.AnyBroker())
				const n, kills = 200, 6
				users := put(t, k, n, func(i int, m *event.Message) {
					m.Policy = policy
					if i%11 == 0 {
						m.Variant = "cancel"
					}
				})
				p := &provider{}
				for round := range kills {
					left := round
					s := send(t, k, p, connections(3), hook(func(at string, r *kgo.Record) bool {
						if at != point {
							return false
						}
						left--
						return left < 0
					}))
					err := s.wait()
					require.ErrorIs(t, err, kafka.ErrKilled)
				}
				s := send(t, k, p, connections(3))
				requireAtRest(t, k)
				require.NoError(t, s.end())
				got := outcomes(t, k)
				uncertain := 0
				for i, u := range users {
					calls := p.asked()[u]
					switch {
					case i%11 == 0:
						require.Equal(t, []string{"cancelled"}, got[u])
						require.Zero(t, calls)
					case policy == "at_most_once":
						require.LessOrEqual(t, calls, 1)
						require.Len(t, got[u], 1, "one ending")
						if got[u][0] == "uncertain" {
							uncertain++
						} else {
							require.Equal(t, "accepted", got[u][0])
							require.Equal(t, 1, calls)
						}
					default:
						require.Contains(t, got[u], "accepted")
						require.GreaterOrEqual(t, calls, 1)
					}
				}
				require.LessOrEqual(t, uncertain, kills*6, "at most the window for each kill")
				switch {
				case policy == "at_most_once" && point == "claiming":
					// Others may have been called when the next claim was begun.
				case policy == "at_most_once" && (point == "claimed" || point == "called"):
					require.Positive(t, uncertain, "the test has hit its point")
				}
			})
		}
	}
}

// An outcome that was acknowledged is found again although another writer holds a
// transaction open on the partition: a committed read would be blind behind it.
func TestRecoverySeesBehindAnotherWritersTransaction(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, "resolver")
	txn := hanging(t, k)
	for part := range int32(4) {
		r, err := c.RecordAt(topic.Outcomes, part, "x", &event.Outcome{UserID: "x", Outcome: "rendered"})
		require.NoError(t, err)
		require.NoError(t, txn.ProduceSync(t.Context(), r).FirstErr())
	}
	users := put(t, k, 20, func(_ int, m *event.Message) { m.Policy = "at_least_once" })
	p := &provider{}
	acked := 0
	s := send(t, k, p, connections(20), hook(func(at string, _ *kgo.Record) bool {
		if at == "acked" {
			acked++
		}
		return acked == 20
	}))
	require.ErrorIs(t, s.wait(), kafka.ErrKilled)
	require.Equal(t, 20, p.total())

	send(t, k, p, connections(20))
	requireAtRest(t, k)
	require.Equal(t, 20, p.total(), "nobody is sent it again")
	require.NoError(t, txn.EndTransaction(t.Context(), kgo.TryCommit))
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, outcomes(t, k)[u])
	}
}

// holdHeartbeats keeps an instance from the coordinator, as a pause of its process
// does, until it is let go.
func holdHeartbeats(k *kafkatest.Kafka, member string) (letGo func()) {
	var free atomic.Bool
	hold := func(id *string) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		if !free.Load() && id != nil && *id == member {
			return nil, errors.New("paused"), true
		}
		return nil, nil, false
	}
	k.Fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return hold(req.(*kmsg.HeartbeatRequest).InstanceID)
	})
	k.Fake.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return hold(req.(*kmsg.JoinGroupRequest).InstanceID)
	})
	return func() { free.Store(true) }
}

// A sender that is paused past its session, before or after its claim, calls nobody
// when it wakes up: another has taken over.
func TestZombieNeitherClaimsNorCalls(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"claiming", "claimed"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t)
			users := put(t, k, 40, nil)
			paused, resume := make(chan struct{}), make(chan struct{})
			var once sync.Once
			zombie := &provider{}
			a := send(t, k, zombie, asInstance("a"), session(time.Second), hook(func(at string, _ *kgo.Record) bool {
				if at == point {
					once.Do(func() { close(paused); <-resume })
				}
				return false
			}))
			<-paused
			holdHeartbeats(k, "sender-a")
			heir := &provider{}
			b := send(t, k, heir, asInstance("b")) // whose own session must not end
			requireAtRest(t, k)
			require.Zero(t, zombie.total())
			before := committed(t, k)
			close(resume)
			// It has come to know that it was thrown out when its claim is refused.
			kafkatest.Eventually(t, func() bool { return refusals(t, a.tel) > 0 || point == "claimed" && stale(t, a.tel) > 0 }, "no refusal")
			require.NoError(t, b.end())
			a.stop()
			<-a.done
			require.Zero(t, zombie.total(), "the zombie called")
			require.Equal(t, before, committed(t, k), "the zombie committed")
			got := outcomes(t, k)
			for _, u := range users {
				require.Len(t, got[u], 1)
				if point == "claiming" {
					require.Equal(t, "accepted", got[u][0])
					require.Equal(t, 1, heir.asked()[u])
				} else if got[u][0] == "uncertain" {
					require.Zero(t, heir.asked()[u])
				}
			}
		})
	}
}

func refusals(t testing.TB, c *kafka.Cluster) float64 {
	return metric(t, c, "claim_commits_total", "fenced")
}
func stale(t testing.TB, c *kafka.Cluster) float64 { return metric(t, c, "claim_stale_total", "") }

func metric(t testing.TB, c *kafka.Cluster, name, result string) float64 {
	t.Helper()
	families, err := kafka.TelemetryOf(c).Registry.Gather()
	require.NoError(t, err)
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if result == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == result {
				total += m.GetCounter().GetValue()
			}
		}
	}
	return total
}

// At most twice the connections are claimed and unsettled, whatever the load.
func TestWindowBoundsWhatAKillCanLeaveUncertain(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	put(t, k, 100, nil)
	release := make(chan struct{})
	p := &provider{answer: func(ctx context.Context, _ *event.Message, _ int) (string, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return "accepted", nil
	}}
	send(t, k, p, connections(5))
	kafkatest.Eventually(t, func() bool { return p.inFlight() == 5 && claimed(t, k) == 10 }, "window not filled")
	require.Equal(t, 5, p.total())
	close(release)
	requireAtRest(t, k)
	require.Equal(t, 100, p.total())
	require.Equal(t, 5, p.most)
}

// A retry waits for its time, and the other partitions, and the messages in the
// partition of the same number, do not wait with it.
func TestRetriesWaitForTheirTimeAndBlockNobody(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	var due atomic.Bool // no clock decides: before, it is always a moment too early
	p := &provider{spare: func(m *event.Message) (string, error) {
		if m.Attempt == 2 && !due.Load() {
			return "", fault.NotBefore(time.Now().Add(50 * time.Millisecond))
		}
		return "", nil
	}}
	send(t, k, p)
	past := time.Now().Add(-time.Hour) // it puts them in the topic of the retries
	retries := put(t, k, 8, func(i int, m *event.Message) {
		m.UserID = fmt.Sprintf("later-%d", i)
		m.NotBefore = &past
		m.Attempt = 2
	})
	users := put(t, k, 40, nil)
	kafkatest.Eventually(t, func() bool {
		for _, u := range users {
			if p.asked()[u] != 1 {
				return false
			}
		}
		return true
	}, "the others")
	for _, u := range retries {
		require.Zero(t, p.asked()[u], "it is not its time yet")
	}
	due.Store(true)
	requireAtRest(t, k)
	for _, u := range retries {
		require.Equal(t, 1, p.asked()[u])
	}
}

// A partition is not fetched while it waits; whoever has it after a rebalance reads
// it again.
func TestAPartitionThatWaitedIsReadAgainAfterARebalance(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	var early atomic.Bool
	early.Store(true)
	asked := make(chan struct{})
	var once sync.Once
	p := &provider{spare: func(*event.Message) (string, error) {
		if early.Load() {
			once.Do(func() { close(asked) })
			return "", fault.NotBefore(time.Now().Add(time.Hour))
		}
		return "", nil
	}}
	send(t, k, p, asInstance("a"), session(2*time.Second))
	put(t, k, 1, func(_ int, m *event.Message) { m.UserID = userOf(0, 0) })
	select {
	case <-asked:
	case <-time.After(kafkatest.Patience):
		t.Fatal("the sender is not at work")
	}
	early.Store(false)
	send(t, k, &provider{}, asInstance("b"), session(2*time.Second))
	requireAtRest(t, k)
	require.Equal(t, 1, p.total(), "it has moved")
}

// A claim that is on its way when the signal comes is taken back: nobody is called
// under it.
func TestACleanStopTakesBackTheClaimUnderWay(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 20, nil)
	claiming, stopped := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := &provider{}
	s := send(t, k, first, hook(func(at string, _ *kgo.Record) bool {
		if at == "claiming" {
			once.Do(func() { close(claiming); <-stopped })
		}
		return false
	}))
	<-claiming
	s.stop()
	close(stopped)
	require.NoError(t, s.wait())
	for part, o := range committed(t, k) {
		require.Empty(t, o.meta, part)
	}
	second := &provider{}
	send(t, k, second)
	requireAtRest(t, k)
	got := outcomes(t, k)
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, got[u])
		require.Equal(t, 1, first.asked()[u]+second.asked()[u])
	}
}

// An error that ends the loop leaves nobody uncertain who was not called.
func TestAFatalErrorLeavesNoClaimBehind(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 4, func(i int, m *event.Message) { m.UserID = userOf(0, i) })
	first := &provider{spare: func(m *event.Message) (string, error) {
		if m.UserID == users[3] {
			return "", errors.New("nobody has classified this")
		}
		return "", nil
	}}
	s := send(t, k, first)
	require.ErrorContains(t, s.wait(), "nobody has classified this")
	send(t, k, &provider{})
	requireAtRest(t, k)
	got := outcomes(t, k)
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, got[u], u)
	}
}

// A clean stop lets the calls in flight end, begins none, and leaves the exact prefix
// with an empty claim.
func TestCleanStopLeavesNothingUnresolved(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 60, nil)
	release := make(chan struct{})
	p := &provider{answer: func(context.Context, *event.Message, int) (string, error) {
		<-release
		return "accepted", nil
	}}
	s := send(t, k, p, connections(5))
	kafkatest.Eventually(t, func() bool { return p.inFlight() == 5 }, "no calls")
	s.stop()
	close(release)
	require.NoError(t, s.wait())
	require.Equal(t, 5, p.total(), "none was begun after the signal")
	sum := int64(0)
	for part, o := range committed(t, k) {
		require.Empty(t, o.meta, part)
		sum += o.at
	}
	require.EqualValues(t, 5, sum)
	again := &provider{}
	send(t, k, again)
	requireAtRest(t, k)
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, outcomes(t, k)[u])
	}
	require.Equal(t, 55, again.total())
}

// What could not be called because the provider is away is given back: neither a
// stop nor a kill leaves it uncertain, and nobody is called twice.
func TestProviderAwayUsesUpNobodysAttempt(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill %v", kill), func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker())
			users := put(t, k, 60, nil)
			var away atomic.Bool
			p := &provider{answer: func(_ context.Context, m *event.Message, call int) (string, error) {
				if away.Load() {
					return "", fault.Transient(errors.New("connection refused"))
				}
				return "accepted", nil
			}}
			var reached atomic.Int64
			reachable := &provider{answer: func(ctx context.Context, m *event.Message, call int) (string, error) {
				if n := reached.Add(1); n > 20 {
					away.Store(true)
				}
				return p.answer(ctx, m, call)
			}}
			var dead atomic.Bool
			s := send(t, k, reachable, connections(5), hook(func(string, *kgo.Record) bool { return dead.Load() }))
			kafkatest.Eventually(t, func() bool { return away.Load() && claimed(t, k) <= 1 }, "claims are not given back")
			require.NotEmpty(t, kafka.TelemetryOf(s.tel).Health.NotReady(), "Health says so")
			if kill {
				dead.Store(true)
				require.ErrorIs(t, s.wait(), kafka.ErrKilled)
			} else {
				require.NoError(t, s.end())
			}
			back := &provider{}
			send(t, k, back)
			requireAtRest(t, k)
			got := outcomes(t, k)
			uncertain := 0
			for _, u := range users {
				require.Len(t, got[u], 1)
				if got[u][0] == "uncertain" {
					uncertain++
				}
			}
			if kill {
				require.LessOrEqual(t, uncertain, 1, "at most the one that was tried with")
			} else {
				require.Zero(t, uncertain)
			}
		})
	}
}

// The first call that gets through opens the lane for all others.
func TestProviderComesBackAndTheLaneOpens(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	var away atomic.Bool
	away.Store(true)
	var accepted atomic.Int64
	release := make(chan struct{})
	p := &provider{answer: func(ctx context.Context, _ *event.Message, _ int) (string, error) {
		if away.Load() {
			return "", fault.Transient(errors.New("connection refused"))
		}
		if accepted.Add(1) > 1 {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return "accepted", nil
	}}
	s := send(t, k, p, connections(8))
	users := put(t, k, 1, func(_ int, m *event.Message) { m.UserID = "first" })
	requireNotReady(t, s.tel, "connection refused")
	users = append(users, put(t, k, 60, nil)...)
	away.Store(false)
	kafkatest.Eventually(t, func() bool { return p.inFlight() == 8 }, "the lane stays closed")
	require.Empty(t, kafka.TelemetryOf(s.tel).Health.NotReady())
	close(release)
	requireAtRest(t, k)
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, outcomes(t, k)[u])
	}
}

// When another member joins, the calls in flight end and are committed before it
// gets their partitions; none is begun meanwhile, and nobody is called twice.
func TestRebalanceWaitsForTheCallsInFlight(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	users := put(t, k, 80, nil)
	release := make(chan struct{})
	first := &provider{answer: func(context.Context, *event.Message, int) (string, error) {
		<-release
		return "accepted", nil
	}}
	var told atomic.Int64 // heartbeats of a, answered while others wait for it
	rebalancing := func() bool {
		groups, err := k.Admin().DescribeGroups(t.Context(), topic.GroupSender.In(k.Config().Namespace))
		require.NoError(t, err)
		return groups[topic.GroupSender.In(k.Config().Namespace)].State == "PreparingRebalance"
	}
	k.Fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		if id := req.(*kmsg.HeartbeatRequest).InstanceID; id != nil && *id == "sender-a" {
			told.Add(1)
		}
		return nil, nil, false
	})
	a := send(t, k, first, asInstance("a"), session(2*time.Second), connections(4))
	kafkatest.Eventually(t, func() bool { return first.inFlight() == 4 }, "no calls")
	second := &provider{}
	b := send(t, k, second, asInstance("b"), session(2*time.Second), connections(4))
	kafkatest.Eventually(t, rebalancing, "no rebalance")
	before := told.Load()
	kafkatest.Eventually(t, func() bool { return told.Load() >= before+2 }, "no heartbeats during the wait")
	require.True(t, rebalancing(), "it did not wait")
	require.Zero(t, second.total())
	require.Equal(t, 4, first.total())
	close(release)
	requireAtRest(t, k)
	require.NoError(t, a.end())
	require.NoError(t, b.end())
	got := outcomes(t, k)
	for _, u := range users {
		require.Equal(t, 1, first.asked()[u]+second.asked()[u])
		require.Equal(t, []string{"accepted"}, got[u])
	}
	require.Positive(t, second.total())
}

// I6: two messages to one person keep their order.
func TestMessagesToOnePersonKeepTheirOrder(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	var mu sync.Mutex
	var order []string
	var together atomic.Int64
	put(t, k, 30, func(i int, m *event.Message) { m.UserID = fmt.Sprintf("user-%d", i%3); m.Step = fmt.Sprint(i) })
	busy := map[string]bool{}
	p := &provider{answer: func(_ context.Context, m *event.Message, _ int) (string, error) {
		mu.Lock()
		if busy[m.UserID] {
			together.Add(1)
		}
		busy[m.UserID] = true
		order = append(order, m.UserID+" "+fmt.Sprintf("%02s", m.Step))
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		busy[m.UserID] = false
		mu.Unlock()
		return "accepted", nil
	}}
	send(t, k, p)
	requireAtRest(t, k)
	require.Zero(t, together.Load())
	for u := range 3 {
		var mine []string
		for _, o := range order {
			if strings.HasPrefix(o, fmt.Sprintf("user-%d ", u)) {
				mine = append(mine, o)
			}
		}
		require.Len(t, mine, 10)
		require.True(t, slices.IsSorted(mine), mine)
	}
}

// A deferred message comes back through retries.
func TestDeferredMessageIsTriedAgain(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 20, nil)
	p := &provider{answer: func(_ context.Context, m *event.Message, call int) (string, error) {
		if m.Attempt < 3 {
			return "deferred", nil
		}
		return "accepted", nil
	}}
	send(t, k, p)
	kafkatest.Eventually(t, func() bool { return p.total() == 60 }, "three attempts each")
	requireAtRest(t, k)
	for _, u := range users {
		require.Equal(t, []string{"deferred", "deferred", "accepted"}, outcomes(t, k)[u])
	}
}

// refuseCommits answers commits for which refuse is true that they cannot be made now.
func refuseCommits(k *kafkatest.Kafka, refuse func(*kmsg.OffsetCommitRequest) bool) {
	k.Fake.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		in := req.(*kmsg.OffsetCommitRequest)
		if !refuse(in) {
			return nil, nil, false
		}
		resp := in.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range in.Topics {
			out := kmsg.NewOffsetCommitResponseTopic()
			out.Topic, out.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				out.Partitions = append(out.Partitions, kmsg.OffsetCommitResponseTopicPartition{Partition: p.Partition, ErrorCode: kerr.RebalanceInProgress.Code})
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp, nil, true
	})
}

// While the coordinator refuses claims for now, nobody is called; afterwards all are.
func TestWithoutAClaimNoCall(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	var refuse atomic.Bool
	refuse.Store(true)
	refuseCommits(k, func(*kmsg.OffsetCommitRequest) bool { return refuse.Load() })
	put(t, k, 20, nil)
	p := &provider{}
	s := send(t, k, p)
	kafkatest.Eventually(t, func() bool { return metric(t, s.tel, "claim_commits_total", "failed") >= 2 }, "no refusal")
	require.Zero(t, p.total())
	refuse.Store(false)
	requireAtRest(t, k)
	require.Equal(t, 20, p.total())
}

// A coordinator that writes a claim down and does not live to answer, and a session
// that ends before anybody could say more: whoever claimed is assigned the partitions
// again and knows that it called nobody. All are called once.
func TestAClaimWithoutAnAnswerLeavesNobodyUncertain(t *testing.T) {
	t.Parallel()
	const witness = 8 // the version of the request that this test sends itself
	k := kafkatest.Start(t)
	claims := make(chan *kmsg.OffsetCommitRequest, 1)
	var present atomic.Bool // commits are answered
	k.Fake.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		if present.Load() || req.GetVersion() == witness {
			return nil, nil, false
		}
		select {
		case claims <- req.(*kmsg.OffsetCommitRequest):
		default:
		}
		return nil, errors.New("killed"), true
	})
	users := put(t, k, 40, nil)
	p := &provider{}
	s := send(t, k, p, connections(4))
	var claim kmsg.OffsetCommitRequest
	select {
	case c := <-claims:
		claim = *c
	case <-time.After(kafkatest.Patience):
		t.Fatal("no claim")
	}
	versions := kversion.Tip()
	versions.SetMaxKeyVersion(int16(kmsg.OffsetCommit), witness)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Fake.ListenAddrs()...), kgo.MaxVersions(versions))
	require.NoError(t, err)
	defer cl.Close()
	resp, err := claim.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	for _, t1 := range resp.Topics {
		for _, part := range t1.Partitions {
			require.Zero(t, part.ErrorCode)
		}
	}
	require.Positive(t, claimed(t, k))
	k.Fake.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		present.Store(true)
		return nil, nil, false
	})
	k.Fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp, nil, true
	})
	requireAtRest(t, k)
	got := outcomes(t, k)
	for _, u := range users {
		require.Equal(t, []string{"accepted"}, got[u], u)
		require.Equal(t, 1, p.asked()[u], u)
	}
	require.Zero(t, metric(t, s.tel, "claim_unresolved_total", ""))
}

// What a sender remembers of partitions that it has lost says nothing about the claims
// of whoever had them since: whom that one called is not called again, nor whoever has
// an ending by it.
func TestWhoLostAPartitionKnowsNothingOfItsHeirsCalls(t *testing.T) {
	t.Parallel()
	for name, dies := range map[string]func(t *testing.T, k *kafkatest.Kafka, heir *sending, at string) bool{
		"it has called": func(_ *testing.T, _ *kafkatest.Kafka, heir *sending, at string) bool {
			return at == "called" && heir.caller.total() >= 5
		},
		"it has settled, and not committed": func(t *testing.T, k *kafkatest.Kafka, heir *sending, at string) bool {
			t.Helper()
			settled := int(metric(t, heir.tel, "claim_unresolved_total", ""))
			if at != "claiming" || settled == 0 {
				return false
			}
			// All of it is written down: what came later than its successor looks would be overruled.
			kafkatest.Eventually(t, func() bool {
				return strings.Count(fmt.Sprint(outcomes(t, k)), "uncertain") == settled
			}, "the heir does not write down what it settles")
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t)
			users := put(t, k, 60, nil)
			hold := make(chan struct{})
			first := &provider{answer: func(context.Context, *event.Message, int) (string, error) { <-hold; return "accepted", nil }}
			send(t, k, first, asInstance("a"), session(time.Second), connections(8))
			kafkatest.Eventually(t, func() bool { return first.inFlight() == 8 }, "no calls")
			letGo := holdHeartbeats(k, "sender-a")
			kafkatest.Eventually(t, func() bool {
				groups, err := k.Admin().DescribeGroups(t.Context(), topic.GroupSender.In(k.Config().Namespace))
				return err == nil && len(groups[topic.GroupSender.In(k.Config().Namespace)].Members) == 0
			}, "its session does not end")
			close(hold)
			// On record before its heir looks: an answer that comes later would stand beside the uncertain that it overrules.
			kafkatest.Eventually(t, func() bool { return len(outcomes(t, k)) == 8 }, "what it called is not written down")
			second := &provider{}
			var b *sending
			known := make(chan struct{})
			b = send(t, k, second, asInstance("b"), session(time.Second), connections(8), hook(func(at string, _ *kgo.Record) bool {
				<-known
				return dies(t, k, b, at)
			}))
			close(known)
			require.ErrorIs(t, b.wait(), kafka.ErrKilled)
			letGo()
			requireAtRest(t, k)
			got := outcomes(t, k)
			for _, u := range users {
				require.LessOrEqual(t, first.asked()[u]+second.asked()[u], 1, u)
				require.Len(t, got[u], 1, u)
			}
			require.Greater(t, first.total(), 8, "it is at work again")
		})
	}
}

// A second process of the same name takes over at once; the first finds itself
// fenced and ends, saying why. Nobody is called twice.
func TestSecondProcessOfTheSameNameEndsTheFirst(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	users := put(t, k, 300, nil)
	called := make(chan struct{}) // by the second
	var once sync.Once
	first, second := &provider{}, &provider{answer: func(context.Context, *event.Message, int) (string, error) {
		once.Do(func() { close(called) })
		return "accepted", nil
	}}
	// Else it might be done with all of them before the second has come.
	first.answer = func(ctx context.Context, _ *event.Message, _ int) (string, error) {
		if first.total() > 20 {
			select {
			case <-called:
			case <-ctx.Done():
			}
		}
		return "accepted", nil
	}
	a := send(t, k, first, connections(2))
	kafkatest.Eventually(t, func() bool { return first.total() > 20 }, "no calls")
	send(t, k, second, connections(2))
	require.ErrorContains(t, a.wait(), "fenced by its own name")
	require.Equal(t, fault.ClassFatal, fault.ClassOf(a.err))
	requireAtRest(t, k)
	got := outcomes(t, k)
	for _, u := range users {
		require.LessOrEqual(t, first.asked()[u]+second.asked()[u], 1)
		require.NotEmpty(t, got[u])
	}
	require.Positive(t, second.total())
}
