package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// fastTick replaces the second between ticks.
const fastTick = 50 * time.Millisecond

// stage is resolvers between a broker and the real ClickHouse engine. The test
// is all the others: importer, renderer, sender and sink.
type stage struct {
	*kafkatest.Kafka
	t        *testing.T
	put      *kafka.Cluster
	conn     *clickhouse.Conn
	sink     *testSink
	cfg      Config
	view     *runs.View // of what the resolvers have written
	maxShard int
}

func newStage(t *testing.T, opts ...kafkatest.Option) *stage {
	t.Helper()
	t.Parallel()
	k := kafkatest.Start(t, opts...)
	s := &stage{Kafka: k, t: t, put: k.Cluster(t, topic.Console), conn: clickhousetest.Open(t), view: runs.NewView()}
	cfg, err := config.Load[Config](t.Context(), envconfig.MapLookuper(map[string]string{"HIKYAKU_DATA": t.TempDir(), "CLICKHOUSE_URL": clickhousetest.Config(t).URL}))
	require.NoError(t, err)
	cfg.Kafka = k.Config()
	s.cfg = cfg
	s.sink = &testSink{s: s, at: kafka.Mark{}}
	s.beside(s.put.Table([]topic.Name{topic.Runs}, func(r *kgo.Record) error { return applyRun(s.put, s.view, slog.New(slog.DiscardHandler), r) }).Run)
	s.beside(s.sink.run)
	return s
}

// beside runs something until the test ends.
func (s *stage) beside(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		require.NoError(s.t, <-done)
	})
}

// start runs a resolver in this process and returns what stops it in good
// order; the end of the test does, too.
func (s *stage) start(name string) (stop func()) {
	s.t.Helper()
	cfg := s.cfg
	cfg.Kafka.Instance = name
	svc, err := New(cfg, kafkatest.Telemetry(s.t, topic.Resolver))
	require.NoError(s.t, err)
	require.NoError(s.t, smaller(svc, s.conn.Database(), s.maxShard))
	ctx, cancel := context.WithCancel(lifecycle.WithDrain(context.Background(), 10*time.Second))
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		// One that is told to while it waits for Kafka says so; the process ends well.
		if err := <-done; !errors.Is(err, context.Canceled) {
			require.NoError(s.t, err, "a resolver that is told to stop stops in good order")
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// smaller makes of a service one that tests have the time for, on a database of
// their own.
func smaller(svc *Service, database string, maxShard int) error {
	conn, err := clickhouse.Open(svc.cfg.ClickHouse, database)
	if err != nil {
		return err
	}
	svc.conn.Close()
	svc.conn, svc.tickEvery = conn, fastTick
	if maxShard > 0 {
		svc.maxShard = maxShard
	}
	return nil
}

// The test binary is the resolver too, so that it can be killed.
func TestMain(m *testing.M) {
	if database := os.Getenv("TEST_BE_THE_RESOLVER"); database != "" {
		lifecycle.Main(topic.Resolver, func(cfg Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			svc, err := New(cfg, tel)
			if err != nil {
				return nil, err
			}
			return svc, smaller(svc, database, 0)
		})
	}
	os.Exit(clickhousetest.Main(m))
}

// child runs a resolver as a process of its own, to be killed or stopped.
func (s *stage) child(name string) *os.Process {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_BE_THE_RESOLVER="+s.conn.Database(), "INSTANCE="+name, "KAFKA_BROKERS="+strings.Join(s.cfg.Kafka.Brokers, ","),
		"SCHEMA_REGISTRY_URL="+s.cfg.Kafka.RegistryURL, "NAMESPACE="+s.cfg.Kafka.Namespace, "KAFKA_SESSION_TIMEOUT=1s", "HIKYAKU_DATA="+s.cfg.DataDir,
		"CLICKHOUSE_URL="+s.cfg.ClickHouse.URL, fmt.Sprintf("WINDOW=%d", s.cfg.Window))
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process
}

func (s *stage) eventually(done func() bool, format string, args ...any) {
	s.t.Helper()
	require.Eventuallyf(s.t, done, kafkatest.Patience, 10*time.Millisecond, format, args...)
}

// read returns what is in a topic now.
func read[T any, P interface {
	*T
	event.Record
}](s *stage, name topic.Name) []T {
	s.t.Helper()
	var out []T
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	ends, err := s.put.HighWatermarks(ctx, name)
	require.NoError(s.t, err)
	require.NoError(s.t, s.put.Read(ctx, ranges(kafka.Mark{}, ends), kgo.ReadCommitted(), func(r *kgo.Record) error {
		var v T
		if err := s.put.Decode(r, P(&v)); err != nil {
			return err
		}
		out = append(out, v)
		return nil
	}))
	return out
}

func ranges(from, to kafka.Mark) []kafka.Range {
	var out []kafka.Range
	for name, partitions := range to {
		for p, end := range partitions {
			if from[name][p] < end {
				out = append(out, kafka.Range{Topic: name, Partition: p, From: from[name][p], To: end})
			}
		}
	}
	return out
}

// write produces a record as another service would.
func (s *stage) write(name topic.Name, key string, rec event.Record) *kgo.Record {
	s.t.Helper()
	r, err := s.put.Record(name, key, rec)
	require.NoError(s.t, err)
	s.Produce(s.t, r)
	return r
}

// person writes the patch that an import of a list would.
func (s *stage) person(id, address, consent string, age int64) {
	s.t.Helper()
	s.write(topic.ProfileUpdates, id, personPatch(id, address, consent, age))
}

func personPatch(id, address, consent string, age int64) *event.ProfilePatch {
	now := time.Now().UTC().Truncate(time.Microsecond)
	p := &event.ProfilePatch{UserID: id, SetAt: now, OccurredAt: now, SetBy: "test", Set: []event.NamedValue{{Name: "age", Value: event.Int(age)}}}
	if address != "" {
		p.Addresses = []event.AddressPatch{{Channel: "email", Address: address}}
	}
	if consent != "" {
		p.Consents = []event.ConsentPatch{{Channel: "email", Consent: consent}}
	}
	return p
}

// people writes n people in the audience who may all be sent to.
func (s *stage) people(n int) []string {
	s.t.Helper()
	var ids []string
	var records []*kgo.Record
	for i := range n {
		id := fmt.Sprintf("u%03d", i)
		r, err := s.put.Record(topic.ProfileUpdates, id, personPatch(id, id+"@example.test", "", 30))
		require.NoError(s.t, err)
		ids, records = append(ids, id), append(records, r)
	}
	s.Produce(s.t, records...)
	return ids
}

// define puts definitions in force.
func (s *stage) define(defs ...definition.Definition) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	var changes []definitions.Change
	for _, d := range defs {
		body, err := definition.Encode(d)
		require.NoError(s.t, err)
		changes = append(changes, definitions.Change{Kind: d.Ref().Kind, ID: d.Ref().ID, Body: body})
	}
	_, err := definitions.Write(ctx, s.put, "test", changes)
	require.NoError(s.t, err)
}

// campaign is one to all adults.
func campaign(id string) *definition.Campaign {
	return &definition.Campaign{ID: id, Audience: "adults", Template: "hello", From: definition.Sender{Address: "hello@example.test"},
		Policy: definition.AtMostOnce, Consent: definition.NotUnsubscribed, ExpiresAfter: definition.Duration(72 * time.Hour)}
}

func adults() *definition.Audience {
	age := filter.IntValue(18)
	return &definition.Audience{ID: "adults", Filter: &filter.Node{Attribute: &filter.Attribute{Name: "age", Ops: filter.Ops{Gte: &age}}}}
}

func hello() *definition.Template {
	return &definition.Template{ID: "hello", Channel: "email", Subject: "Hello", Text: "Hello {{ age }}", Strict: true}
}

// greeting defines a campaign to all adults.
func (s *stage) greeting() {
	s.t.Helper()
	s.define(adults(), hello(), campaign("greeting"))
}

// request asks for a run and returns its id.
func (s *stage) request(campaign string, again bool) identity.ID {
	s.t.Helper()
	q := identity.Hash(s.t.Name(), campaign, fmt.Sprint(time.Now().UnixNano()))
	s.write(topic.RunRequests, campaign, &event.RunRequest{Action: "start", RequestID: q, CampaignID: campaign, Again: again, RequestedAt: time.Now().UTC().Truncate(time.Microsecond), RequestedBy: "test"})
	return identity.Run(s.put.Namespace(), campaign, q.String())
}

func (s *stage) cancel(campaign string, run identity.ID) {
	s.t.Helper()
	s.write(topic.RunRequests, campaign, &event.RunRequest{Action: "cancel", RequestID: identity.Hash("cancel", run.String()), CampaignID: campaign, RunID: &run,
		RequestedAt: time.Now().UTC().Truncate(time.Microsecond), RequestedBy: "test"})
}

// until waits for a run to be in a state and returns it.
func (s *stage) until(run identity.ID, state string) event.RunState {
	s.t.Helper()
	var last event.RunState
	s.eventually(func() bool {
		_, got, ok := s.view.State(run)
		last = got
		return ok && got.State == state
	}, "the run is not %s: %s", state, describe{s, run})
	return last
}

// describe says how a run is, when it is asked.
type describe struct {
	s   *stage
	run identity.ID
}

func (d describe) String() string {
	_, got, _ := d.s.view.State(d.run)
	totals := d.s.view.Totals(d.run)
	return fmt.Sprintf("it is %q (%s); %s; %+v", got.State, got.Note, totals.Balance(), totals)
}

// totals waits until a run's counters are as they should be.
func (s *stage) totals(run identity.ID, want func(runs.Totals) bool) runs.Totals {
	s.t.Helper()
	s.eventually(func() bool { return want(s.view.Totals(run)) }, "the counters are not as they should be: %s", describe{s, run})
	return s.view.Totals(run)
}

// requests returns the message requests of a run, by person; nobody has two.
func (s *stage) requests(run identity.ID) map[string]event.MessageRequest {
	s.t.Helper()
	out := map[string]event.MessageRequest{}
	for _, q := range read[event.MessageRequest](s, topic.MessageRequestsBulk) {
		if q.RunID != run {
			continue
		}
		require.NotContains(s.t, out, q.UserID, "requested twice")
		require.Equal(s.t, identity.Message(s.put.Namespace(), q.CampaignID, run.String(), q.UserID, ""), q.MessageID)
		out[q.UserID] = q
	}
	return out
}

// outcome is one as renderer and sender write it.
func outcome(q *event.MessageRequest, what string, attempt int32) *event.Outcome {
	return &event.Outcome{OutcomeID: identity.Outcome(q.MessageID, what, attempt, ""), MessageID: q.MessageID, RunID: q.RunID, CampaignID: q.CampaignID, Lane: "bulk",
		UserID: q.UserID, Channel: "email", Outcome: what, Attempt: attempt, OccurredAt: time.Now().UTC().Truncate(time.Microsecond)}
}

// answer writes an outcome for each of the requests.
func (s *stage) answer(requests map[string]event.MessageRequest, what string) {
	s.t.Helper()
	var records []*kgo.Record
	for _, id := range slices.Sorted(maps.Keys(requests)) {
		q := requests[id]
		r, err := s.put.Record(topic.Outcomes, id, outcome(&q, what, 1))
		require.NoError(s.t, err)
		records = append(records, r)
	}
	if len(records) > 0 {
		s.Produce(s.t, records...)
	}
}

// sender accepts whatever is requested until the test ends.
func (s *stage) sender() {
	answered := map[string]bool{}
	s.beside(func(ctx context.Context) error {
		for ctx.Err() == nil {
			var records []*kgo.Record
			ends, err := s.put.HighWatermarks(ctx, topic.MessageRequestsBulk)
			if err == nil {
				err = s.put.Read(ctx, ranges(kafka.Mark{}, ends), kgo.ReadCommitted(), func(r *kgo.Record) error {
					var q event.MessageRequest
					if err := s.put.Decode(r, &q); err != nil {
						return err
					}
					if answered[q.MessageID.String()] {
						return nil
					}
					answered[q.MessageID.String()] = true
					rec, err := s.put.Record(topic.Outcomes, q.UserID, outcome(&q, "accepted", 1))
					records = append(records, rec)
					return err
				})
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
			if len(records) > 0 {
				s.Produce(s.t, records...)
			}
			pause(ctx, 20*time.Millisecond)
		}
		return nil
	})
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// testSink stores what the resolver asks ClickHouse for, and commits for the
// sink's group what it has read.
type testSink struct {
	s  *stage
	at kafka.Mark

	mu   sync.Mutex
	off  bool
	lose func(*event.Outcome) bool // what is not stored
	lost []event.Outcome
}

// set changes how the sink behaves.
func (k *testSink) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *testSink) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
	return nil
}

func (k *testSink) step(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.off {
		return nil
	}
	ends, err := k.s.put.HighWatermarks(ctx, topic.ReadBy(topic.GroupSink)...)
	if err != nil {
		return err
	}
	var outcomes []event.Outcome
	var inputs []event.MessageRequest
	var profiles []event.Profile
	var members []event.SegmentMember
	err = k.s.put.Read(ctx, ranges(k.at, ends), kgo.ReadCommitted(), func(r *kgo.Record) error {
		var err error
		switch k.s.put.NameOf(r.Topic) {
		case topic.Profiles:
			var v event.Profile
			err = k.s.put.Decode(r, &v)
			profiles = append(profiles, v)
		case topic.SegmentMembers:
			var v event.SegmentMember
			err = k.s.put.Decode(r, &v)
			members = append(members, v)
		case topic.MessageRequestsBulk:
			var v event.MessageRequest
			err = k.s.put.Decode(r, &v)
			inputs = append(inputs, v)
		case topic.Outcomes:
			var v event.Outcome
			if k.s.put.Decode(r, &v) != nil {
				return nil // poison of a test
			}
			if k.lose != nil && k.lose(&v) {
				k.lost = append(k.lost, v)
				return nil
			}
			outcomes = append(outcomes, v)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := k.store(ctx, profiles, members, inputs, outcomes); err != nil {
		return err
	}
	var offsets kadm.Offsets
	for _, r := range ranges(k.at, ends) {
		offsets.AddOffset(r.Topic.In(k.s.put.Namespace()), r.Partition, r.To, -1)
	}
	if len(offsets) > 0 {
		if err := k.s.Admin().CommitAllOffsets(ctx, topic.GroupSink.In(k.s.put.Namespace()), offsets); err != nil {
			return err
		}
	}
	k.at = ends
	return nil
}

func (k *testSink) store(ctx context.Context, profiles []event.Profile, members []event.SegmentMember, inputs []event.MessageRequest, outcomes []event.Outcome) error {
	now := time.Now()
	if len(profiles) > 0 {
		if err := k.s.conn.Insert(ctx, "profile_rows", []string{"user_id", "revision", "attr_int", "ingested_at"}, len(profiles), func(b driver.Batch) error {
			for _, p := range profiles {
				ints := map[string]int64{}
				for _, a := range p.Attributes {
					if a.Value.Kind() == event.KindInt {
						ints[a.Name] = a.Value.Int()
					}
				}
				if err := b.Append(p.UserID, p.Revision, ints, now); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if len(members) > 0 {
		if err := k.s.conn.Insert(ctx, "segment_member_rows", []string{"segment_id", "import_id", "user_id", "ingested_at"}, len(members), func(b driver.Batch) error {
			for _, m := range members {
				if err := b.Append(m.SegmentID, m.ImportID.UUID(), m.UserID, now); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if len(inputs) > 0 {
		if err := k.s.conn.Insert(ctx, "message_input_rows", []string{"message_id", "run_id", "user_id", "requested_at", "expires_at", "ingested_at"}, len(inputs), func(b driver.Batch) error {
			for _, m := range inputs {
				if err := b.Append(m.MessageID.UUID(), m.RunID.UUID(), m.UserID, m.RequestedAt, m.ExpiresAt, now); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if len(outcomes) == 0 {
		return nil
	}
	return k.s.conn.Insert(ctx, "outcome_rows", []string{"outcome_id", "message_id", "run_id", "user_id", "outcome", "attempt", "reason", "occurred_at", "ingested_at"}, len(outcomes), func(b driver.Batch) error {
		for _, o := range outcomes {
			if err := b.Append(o.OutcomeID.UUID(), o.MessageID.UUID(), o.RunID.UUID(), o.UserID, o.Outcome, o.Attempt, o.Reason, o.OccurredAt, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// find stores what was lost.
func (k *testSink) find(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lose = nil
	return k.store(ctx, nil, nil, nil, k.lost)
}
