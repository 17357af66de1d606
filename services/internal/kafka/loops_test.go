package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// recorder is a Transformer with state per partition that tells what happens to it.
type recorder struct {
	mu       sync.Mutex
	owned    map[int32]bool
	batch    []*kgo.Record
	seen     []*kgo.Record // in committed transactions
	foreign  int           // records of partitions that were not assigned
	assigned int
	aborts   int

	restore func(ctx context.Context, partitions []int32) error
	make    func(batch []*kgo.Record) ([]*kgo.Record, error)
	pause   map[topic.Name][]int32
}

func newRecorder() *recorder { return &recorder{owned: map[int32]bool{}} }

func (r *recorder) Assigned(ctx context.Context, partitions []int32) error {
	if r.restore != nil {
		if err := r.restore(ctx, partitions); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.assigned++
	for _, p := range partitions {
		r.owned[p] = true
	}
	return nil
}

func (r *recorder) Revoked(partitions []int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range partitions {
		delete(r.owned, p)
	}
}

func (r *recorder) Transform(_ context.Context, batch []*kgo.Record) ([]*kgo.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range batch {
		if !r.owned[rec.Partition] {
			r.foreign++
		}
	}
	r.batch = batch
	if r.make != nil {
		return r.make(batch)
	}
	return nil, nil
}

func (r *recorder) Committed([]*kgo.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, r.batch...)
}

func (r *recorder) Aborted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.aborts++
}

func (r *recorder) Pause() map[topic.Name][]int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pause
}

func (r *recorder) partitions() []int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ps []int32
	for p := range r.owned {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func personLoop(c *kafka.Cluster, tr kafka.Transformer) func(context.Context) error {
	return func(ctx context.Context) error {
		return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupPersonLoop, KeepControlRecords: true, Transformer: tr})
	}
}

func instance(k *kafkatest.Kafka, name string) kafka.Config {
	cfg := k.Config()
	cfg.Instance = name
	return cfg
}

// A person's profile, candidates and outcomes must meet in one place.
func TestSameNumberedPartitionsOfAllTopicsLandOnOneMember(t *testing.T) {
	t.Parallel()
	const p = 8
	k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.Partitions(p), kafkatest.SessionTimeout(3*time.Second))
	members := map[string]*recorder{}
	for _, name := range []string{"0", "1", "2"} {
		members[name] = newRecorder()
		run(t, personLoop(k.ClusterWith(t, topic.Resolver, instance(k, name)), members[name]))
	}
	kafkatest.Eventually(t, func() bool {
		n := 0
		for _, m := range members {
			if len(m.partitions()) == 0 {
				return false
			}
			n += len(m.partitions())
		}
		return n == p
	}, "three members do not share the partitions")

	k.AwaitMembers(t, topic.GroupPersonLoop, 3)
	described, err := k.Admin().DescribeGroups(contextOf(t), topic.GroupPersonLoop.In(k.Config().Namespace))
	require.NoError(t, err)
	for _, g := range described {
		for _, m := range g.Members {
			assigned, ok := m.Assigned.AsConsumer()
			require.True(t, ok)
			require.Len(t, assigned.Topics, len(topic.ReadBy(topic.GroupPersonLoop)))
			for _, at := range assigned.Topics {
				slices.Sort(at.Partitions)
				require.Equal(t, members[(*m.InstanceID)[len(topic.Resolver)+1:]].partitions(), at.Partitions, at.Topic)
			}
		}
	}

	c := k.Cluster(t, topic.Resolver)
	for i := range int32(p) {
		k.Produce(t, tick(t, c, i, 1))
	}
	kafkatest.Eventually(t, func() bool {
		return members["0"].count()+members["1"].count()+members["2"].count() == p
	}, "not every tick was read")
	for _, m := range members {
		require.Zero(t, m.foreign, "a record came before its partition was assigned")
	}
}

func TestAGroupWithoutAnOffsetDoesNotStart(t *testing.T) {
	t.Parallel()
	for name, loop := range bothLoops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker())
			gone := kadm.TopicsSet{}
			gone.Add(topic.MessageRequestsBulk.In(k.Config().Namespace), 2)
			_, err := k.Admin().DeleteOffsets(contextOf(t), topic.GroupRenderer.In(k.Config().Namespace), gone)
			require.NoError(t, err)
			err = loop(k.Cluster(t, topic.Renderer))(contextOf(t))
			require.ErrorContains(t, err, fmt.Sprintf("group %[1]s.renderer has lost its place in topic %[1]s.message-requests.bulk, partition 2: no offset is committed", k.Config().Namespace))
			require.ErrorContains(t, err, "runbook OffsetLost")
			require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
		})
	}
}

func TestAGroupWhoseOffsetTheLogHasPassedDoesNotGoOn(t *testing.T) {
	t.Parallel()
	for name, loop := range bothLoops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker())
			c := k.Cluster(t, topic.Renderer)
			r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
			require.NoError(t, err)
			k.Produce(t, r)
			passed := kadm.Offsets{}
			passed.AddOffset(r.Topic, r.Partition, 1, -1)
			_, err = k.Admin().DeleteRecords(contextOf(t), passed)
			require.NoError(t, err)
			err = loop(c)(contextOf(t))
			require.ErrorContains(t, err, fmt.Sprintf("group %[1]s.renderer has lost its place in topic %[1]s.message-requests.bulk, partition %[2]d: its committed offset is not in the log any more", k.Config().Namespace, r.Partition))
			require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
		})
	}
}

// bothLoops run as the renderer's group and do nothing with what they read.
func bothLoops() map[string]func(*kafka.Cluster) func(context.Context) error {
	return map[string]func(*kafka.Cluster) func(context.Context) error{
		"transform": func(c *kafka.Cluster) func(context.Context) error {
			return func(ctx context.Context) error {
				return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: newRecorder()})
			}
		},
		"effect": func(c *kafka.Cluster) func(context.Context) error {
			return func(ctx context.Context) error {
				return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupRenderer, Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
					return len(recs), nil
				})})
			}
		},
	}
}

// Without static membership the first record came 42 s after a kill.
func TestARestartContinuesAtOnce(t *testing.T) {
	t.Parallel()
	for name, loop := range bothLoops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const session = time.Minute
			k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.SessionTimeout(session))
			c := k.Cluster(t, topic.Renderer)
			passed := func(n int) {
				t.Helper()
				kafkatest.Eventually(t, func() bool {
					sum := int64(0)
					for _, at := range k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk] {
						sum += at
					}
					return sum == int64(n)
				}, "not %d records are committed", n)
			}
			write := func(userID string) {
				r, err := c.Record(topic.MessageRequestsBulk, userID, request(userID))
				require.NoError(t, err)
				k.Produce(t, r)
			}
			stop := run(t, loop(c))
			write("a")
			passed(1)
			require.NoError(t, stop())
			write("b")
			begin := time.Now()
			run(t, loop(k.Cluster(t, topic.Renderer)))
			passed(2)
			// Its last heartbeat was up to a second before.
			require.Less(t, time.Since(begin), session-5*time.Second, "it waited for its former self")
		})
	}
}

func TestOneThatIsFencedByItsOwnNameStops(t *testing.T) {
	t.Parallel()
	for name, loop := range bothLoops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.SessionTimeout(2*time.Second))
			first := make(chan error, 1)
			go func() { first <- loop(k.Cluster(t, topic.Renderer))(context.Background()) }()
			before := k.AwaitMembers(t, topic.GroupRenderer, 1)

			second := k.Cluster(t, topic.Renderer)
			stop := run(t, loop(second))
			select {
			case err := <-first:
				require.ErrorContains(t, err, "fenced by its own name: another process runs as renderer-0")
				require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
			case <-time.After(kafkatest.Patience):
				t.Fatal("the one that was fenced runs on")
			}
			// It must not have fenced its successor in turn.
			r, err := second.Record(topic.MessageRequestsBulk, "u", request("u"))
			require.NoError(t, err)
			k.Produce(t, r)
			kafkatest.Eventually(t, func() bool {
				return k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition] == 1
			}, "the successor does not work")
			require.NotEqual(t, before, k.AwaitMembers(t, topic.GroupRenderer, 1))
			require.NoError(t, stop())
		})
	}
}

// The same while the first is deciding: its transaction must fail, and it must not
// open another under the name it has lost.
func TestOneThatIsFencedInTheMiddleOfABatchStops(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.SessionTimeout(3*time.Second))
	c := k.Cluster(t, topic.Renderer)
	r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	k.Produce(t, r)
	loop := func(c *kafka.Cluster, before func() error) func(context.Context) error {
		return func(ctx context.Context) error {
			o := &observed{before: before, committed: func([]*kgo.Record) {}, Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
				out, err := rendered(c, r)
				return []*kgo.Record{out}, err
			})}
			return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: o})
		}
	}
	inBatch, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		var once sync.Once
		first <- loop(c, func() error {
			once.Do(func() { close(inBatch); <-release })
			return nil
		})(context.Background())
	}()
	<-inBatch
	stop := run(t, loop(k.Cluster(t, topic.Renderer), func() error { return nil }))
	kafkatest.Eventually(t, func() bool {
		return k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition] == 1
	}, "the successor does not take over")
	close(release)
	select {
	case err := <-first:
		require.ErrorContains(t, err, "fenced by its own name")
	case <-time.After(kafkatest.Patience):
		t.Fatal("the one that was fenced runs on")
	}
	require.NoError(t, stop(), "it has fenced its successor in turn")
	require.Len(t, k.All(t, topic.Outcomes), 1)
}

func TestTransactionsTimeOutWithTheSession(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	var timeout atomic.Int32
	k.Fake.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		if r := req.(*kmsg.InitProducerIDRequest); r.TransactionalID != nil && *r.TransactionalID == "test.audience-resolver-0" {
			timeout.Store(r.TransactionTimeoutMillis)
		}
		return nil, nil, false
	})
	c := k.Cluster(t, topic.Resolver)
	tr := newRecorder()
	run(t, personLoop(c, tr))
	k.Produce(t, tick(t, c, 0, 1))
	kafkatest.Eventually(t, func() bool { return timeout.Load() != 0 }, "no transactional producer was opened")
	require.EqualValues(t, 15_000, timeout.Load())
}

// A member that was paused past its session, and wakes in the middle of its batch,
// must not write what the new owner of its partitions writes too.
func TestATransformZombieCannotCommit(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.SessionTimeout(time.Second))
	c := k.Cluster(t, topic.Resolver)

	// The zombie's heartbeats are not answered from the moment it has its batch,
	// which is what a paused process looks like to the coordinator.
	var dead atomic.Bool
	k.Fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		r := req.(*kmsg.HeartbeatRequest)
		if dead.Load() && r.InstanceID != nil && *r.InstanceID == "audience-resolver-0" {
			// Refused without having been seen by the group.
			resp := r.ResponseKind().(*kmsg.HeartbeatResponse)
			resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
			return resp, nil, true
		}
		return nil, nil, false
	})
	inBatch, wake := make(chan struct{}), make(chan struct{})
	zombie := newRecorder()
	var once sync.Once
	answer := func(by string) func(batch []*kgo.Record) ([]*kgo.Record, error) {
		return func(batch []*kgo.Record) ([]*kgo.Record, error) {
			var out []*kgo.Record
			for _, r := range batch {
				if c.NameOf(r.Topic) != topic.Ticks {
					continue
				}
				o, err := c.RecordAt(topic.Candidates, r.Partition, by, &event.Candidate{CampaignID: by})
				if err != nil {
					return nil, err
				}
				out = append(out, o)
			}
			return out, nil
		}
	}
	zombie.make = func(batch []*kgo.Record) ([]*kgo.Record, error) {
		once.Do(func() { close(inBatch) })
		<-wake
		return answer("zombie")(batch)
	}
	zombieEnded := make(chan error, 1)
	zombieCtx, stopZombie := context.WithCancel(context.Background())
	defer stopZombie()
	go func() { zombieEnded <- personLoop(c, zombie)(zombieCtx) }()
	k.Produce(t, tick(t, c, 0, 1))
	<-inBatch
	dead.Store(true)

	heir := newRecorder()
	heir.make = answer("heir")
	run(t, personLoop(k.ClusterWith(t, topic.Resolver, instance(k, "1")), heir))
	kafkatest.Eventually(t, func() bool {
		return k.Committed(t, topic.GroupPersonLoop)[topic.Ticks][0] >= 1
	}, "nobody took over")
	close(wake)
	// The zombie's transaction must end, one way or the other, before we look.
	kafkatest.Eventually(t, func() bool {
		zombie.mu.Lock()
		defer zombie.mu.Unlock()
		return zombie.aborts > 0
	}, "the zombie's transaction did not abort")
	kafkatest.Eventually(t, func() bool {
		txns, err := k.Admin().ListTransactions(contextOf(t), nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort"})
		return err == nil && len(txns) == 0
	}, "a transaction stays open")
	stopZombie()
	<-zombieEnded
	candidates := kafkatest.Consume[event.Candidate](t, k, topic.Candidates, 1)
	for _, r := range k.All(t, topic.Candidates) {
		require.Equal(t, "heir", string(r.Key))
	}
	require.Equal(t, "heir", candidates[0].CampaignID)
}

// Restoring state may take longer than the session: heartbeats must go on, records
// must wait.
func TestRestoringIsFinishedBeforeTheFirstRecordAndKeepsTheMembership(t *testing.T) {
	t.Parallel()
	// Not so short that a machine that is busy loses it.
	k := kafkatest.Start(t, kafkatest.SessionTimeout(5*time.Second))
	c := k.Cluster(t, topic.Resolver)
	for p := range int32(4) {
		k.Produce(t, tick(t, c, p, 1))
	}
	var heartbeats atomic.Int32
	enough := make(chan struct{})
	var restoring, restored atomic.Bool
	k.Fake.ControlKey(int16(kmsg.Heartbeat), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		// Whoever sends one more while it restores sends as many as it takes.
		if restoring.Load() && heartbeats.Add(1) == 3 {
			close(enough)
		}
		return nil, nil, false
	})
	tr := newRecorder()
	tr.restore = func(ctx context.Context, partitions []int32) error {
		if restored.Load() {
			return nil
		}
		restoring.Store(true)
		select {
		case <-enough:
		case <-ctx.Done():
			return ctx.Err()
		}
		assert.Zero(t, tr.count(), "a record came while state was restored")
		restored.Store(true)
		return nil
	}
	run(t, personLoop(c, tr))
	kafkatest.Eventually(t, func() bool { return tr.count() == 4 }, "nothing comes after restoring")
	tr.mu.Lock()
	defer tr.mu.Unlock()
	require.Equal(t, 1, tr.assigned, "the membership was lost while state was restored")
	require.Zero(t, tr.foreign)
}

func TestRestoringIsCutShortByARebalanceAndRepeatedAfterwards(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.SessionTimeout(2*time.Second))
	c := k.Cluster(t, topic.Resolver)
	tr := newRecorder()
	began := make(chan struct{})
	var calls atomic.Int32
	tr.restore = func(ctx context.Context, _ []int32) error {
		if calls.Add(1) == 1 {
			close(began)
			<-ctx.Done() // without a rebalance, for ever
			return ctx.Err()
		}
		return nil
	}
	run(t, personLoop(c, tr))
	<-began
	other := newRecorder()
	run(t, personLoop(k.ClusterWith(t, topic.Resolver, instance(k, "1")), other))
	kafkatest.Eventually(t, func() bool { return len(tr.partitions()) == 2 && len(other.partitions()) == 2 }, "the rebalance waits for a restoration")
	for p := range int32(4) {
		k.Produce(t, tick(t, c, p, 1))
	}
	kafkatest.Eventually(t, func() bool { return tr.count()+other.count() == 4 }, "not every tick was read")
	require.Zero(t, tr.foreign+other.foreign)
}

func TestARestorationThatFailsTransientlyIsRepeatedAndAFatalOneEndsTheLoop(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Resolver)
	tr := newRecorder()
	var calls atomic.Int32
	tr.restore = func(context.Context, []int32) error {
		if calls.Add(1) < 3 {
			return fault.Transient(errors.New("the store is busy"))
		}
		return errors.New("the store is broken")
	}
	err := personLoop(c, tr)(contextOf(t))
	require.ErrorContains(t, err, "the store is broken")
	require.EqualValues(t, 3, calls.Load())
}

func TestPausedPartitionsWaitAndOthersDoNot(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Resolver)
	tr := newRecorder()
	tr.pause = map[topic.Name][]int32{topic.Candidates: {0, 1, 2, 3}}
	run(t, personLoop(c, tr))
	k.Produce(t, tick(t, c, 0, 1))
	kafkatest.Eventually(t, func() bool { return tr.count() == 1 }, "no tick")
	candidate, err := c.RecordAt(topic.Candidates, 0, "u", &event.Candidate{UserID: "u"})
	require.NoError(t, err)
	// Once the loop has taken another tick it has asked for pauses.
	k.Produce(t, tick(t, c, 0, 2))
	kafkatest.Eventually(t, func() bool { return k.Committed(t, topic.GroupPersonLoop)[topic.Ticks][0] == 2 }, "no second tick")
	k.Produce(t, candidate)
	k.Produce(t, tick(t, c, 0, 3), tick(t, c, 0, 4))
	kafkatest.Eventually(t, func() bool { return tr.count() == 4 }, "ticks wait for a paused topic")
	require.Zero(t, k.Committed(t, topic.GroupPersonLoop)[topic.Candidates][0])
	tr.mu.Lock()
	tr.pause = nil
	tr.mu.Unlock()
	k.Produce(t, tick(t, c, 0, 5))
	kafkatest.Eventually(t, func() bool { return tr.count() == 6 }, "the candidate is still paused")
}

// "Not before t" sets one partition aside and keeps the others going.
func TestNotBeforeSetsItsPartitionAside(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	k.Produce(t, tick(t, c, 0, 1), tick(t, c, 0, 2), tick(t, c, 1, 3))
	var mu sync.Mutex
	var open bool
	var done []string
	asked := 0
	h := handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		for i, r := range recs {
			if r.Partition == 0 && r.Offset == 1 && !open {
				asked++
				return i, fault.NotBefore(time.Now().Add(50 * time.Millisecond))
			}
			done = append(done, fmt.Sprintf("%d@%d", r.Partition, r.Offset))
		}
		return len(recs), nil
	})
	run(t, func(ctx context.Context) error {
		return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupPersonLoop, Topics: []topic.Name{topic.Ticks}, Handler: h})
	})
	kafkatest.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		at := k.Committed(t, topic.GroupPersonLoop)[topic.Ticks]
		return asked > 2 && at[0] == 1 && at[1] == 1
	}, "the others wait, or the record is not asked about again")
	mu.Lock()
	open = true
	mu.Unlock()
	kafkatest.Eventually(t, func() bool { return k.Committed(t, topic.GroupPersonLoop)[topic.Ticks][0] == 2 }, "it never comes back")
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(done)
	require.Equal(t, []string{"0@0", "0@1", "1@0"}, done, "once each")
}

func TestLingerGathersABatch(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	batches := make(chan int, 10)
	run(t, func(ctx context.Context) error {
		return c.RunEffect(ctx, kafka.EffectOptions{
			Group: topic.GroupPersonLoop, Topics: []topic.Name{topic.Ticks}, MaxPollRecords: 3, Linger: time.Minute,
			Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
				batches <- len(recs)
				return len(recs), nil
			}),
		})
	})
	next := func(wanted int, otherwise string) {
		t.Helper()
		select {
		case n := <-batches:
			require.Equal(t, wanted, n)
		case <-time.After(kafkatest.Patience):
			t.Fatal(otherwise)
		}
	}
	k.Produce(t, tick(t, c, 3, 0))
	next(1, "the first batch after an assignment lingers")
	for i := range 3 {
		k.Produce(t, tick(t, c, int32(i), i)) // three writes, one batch
	}
	next(3, "a full batch still lingers")
}

func TestTooManyDeadLettersStopTheLoop(t *testing.T) {
	t.Parallel()
	for name, loop := range map[string]func(*kafka.Cluster) func(context.Context) error{
		"transform": func(c *kafka.Cluster) func(context.Context) error {
			return func(ctx context.Context) error {
				return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: kafka.Each(c, func(context.Context, *kgo.Record) ([]*kgo.Record, error) {
					return nil, fault.Poison(errors.New("always"))
				})})
			}
		},
		"effect": func(c *kafka.Cluster) func(context.Context) error {
			return func(ctx context.Context) error {
				return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupRenderer, Handler: handle(func(context.Context, []*kgo.Record) (int, error) {
					return 0, fault.Poison(errors.New("always"))
				})})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker())
			cfg := k.Config()
			cfg.DeadLettersPerMinute = 3
			c := k.ClusterWith(t, topic.Renderer, cfg)
			for i := range 5 {
				r, err := c.Record(topic.MessageRequestsBulk, fmt.Sprint(i), request(fmt.Sprint(i)))
				require.NoError(t, err)
				k.Produce(t, r)
			}
			err := loop(c)(contextOf(t))
			require.ErrorContains(t, err, "more than 3 dead letters within a minute")
		})
	}
}

// While Kafka is away a loop waits, says so once, and goes on by itself.
func TestLoopsOutliveTheBroker(t *testing.T) {
	t.Parallel()
	for name, loop := range bothLoops() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.Fake(kfake.DataDir(t.TempDir()), kfake.SyncWrites()), kafkatest.SessionTimeout(3*time.Second))
			tel := kafkatest.Telemetry(t, topic.Renderer)
			c, err := kafka.New(k.Config(), topic.Renderer, tel)
			require.NoError(t, err)
			require.NoError(t, c.Start(contextOf(t)))
			defer c.Close()
			stop := run(t, loop(c))
			write := func(userID string) *kgo.Record {
				r, err := c.Record(topic.MessageRequestsBulk, userID, request(userID))
				require.NoError(t, err)
				k.Produce(t, r)
				return r
			}
			r := write("u")
			done := func(n int64) func() bool {
				return func() bool {
					return k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition] == n
				}
			}
			kafkatest.Eventually(t, done(1), "nothing is read")

			restart := k.Away(t)
			kafkatest.Eventually(t, func() bool {
				return slices.ContainsFunc(tel.Health.NotReady(), func(s string) bool { return len(s) > 5 && s[:5] == "kafka" })
			}, "nobody says that Kafka is away: %v", tel.Health.NotReady())
			restart()
			kafkatest.Eventually(t, func() bool { return len(tel.Health.NotReady()) == 0 }, "not ready again: %v", tel.Health.NotReady())
			write("u")
			kafkatest.Eventually(t, done(2), "it does not go on")
			require.NoError(t, stop())
		})
	}
}

// A pause longer than the transaction timeout, or a broker that was away, spoils the
// transactional client. Nobody has taken its name, so it goes on with a new one.
func TestASpoiledTransactionIsRenewedAndNothingIsDoneTwice(t *testing.T) {
	t.Parallel()
	for _, spoil := range []*kerr.Error{kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping} {
		t.Run(spoil.Message, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t)
			c := k.Cluster(t, topic.Renderer)
			r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
			require.NoError(t, err)
			k.Produce(t, r)
			k.Fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
				resp := req.(*kmsg.EndTxnRequest).ResponseKind().(*kmsg.EndTxnResponse)
				resp.ErrorCode = spoil.Code
				return resp, nil, true
			})
			o := &observed{before: func() error { return nil }, committed: func([]*kgo.Record) {}, Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
				out, err := rendered(c, r)
				return []*kgo.Record{out}, err
			})}
			stop := run(t, func(ctx context.Context) error {
				return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: o})
			})
			kafkatest.Eventually(t, func() bool {
				return k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition] == 1
			}, "it does not go on")
			require.NoError(t, stop())
			require.Len(t, k.All(t, topic.Outcomes), 1)
			require.Zero(t, o.open)
		})
	}
}

// I3: as long as a batch is in hand, its partitions are nobody else's, however long it
// takes and whoever asks.
func TestNothingIsInFlightWhenPartitionsMove(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"transform", "effect"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.SessionTimeout(5*time.Second))
			var joined atomic.Bool
			var heartbeats atomic.Int32
			asked := make(chan struct{})
			k.Fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
				k.Fake.KeepControl()
				// From the second on, the first member has been told of the rebalance.
				if id := req.(*kmsg.HeartbeatRequest).InstanceID; joined.Load() && id != nil && *id == "renderer-0" && heartbeats.Add(1) == 3 {
					close(asked)
				}
				return nil, nil, false
			})
			var held atomic.Bool // the first member has its batch
			var early atomic.Int32
			inBatch, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			loop := func(c *kafka.Cluster, first bool) func(context.Context) error {
				act := func() {
					if !first && held.Load() {
						early.Add(1)
					}
					if first {
						once.Do(func() {
							held.Store(true)
							close(inBatch)
							<-release
							held.Store(false)
						})
					}
				}
				return func(ctx context.Context) error {
					if name == "effect" {
						return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupRenderer, Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
							act()
							return len(recs), nil
						})})
					}
					tr := newRecorder()
					tr.make = func([]*kgo.Record) ([]*kgo.Record, error) {
						act()
						return nil, nil
					}
					return c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: tr})
				}
			}
			c := k.Cluster(t, topic.Renderer)
			var ends int64
			for i := range 20 {
				r, err := c.Record(topic.MessageRequestsBulk, fmt.Sprint(i), request(fmt.Sprint(i)))
				require.NoError(t, err)
				k.Produce(t, r)
				ends++
			}
			run(t, loop(c, true))
			<-inBatch
			run(t, loop(k.ClusterWith(t, topic.Renderer, instance(k, "1")), false))
			_, err := k.Fake.WaitGroupInfo(contextOf(t), topic.GroupRenderer.In("test"), func(g *kfake.GroupInfo) bool { return len(g.Members) == 2 })
			require.NoError(t, err)
			joined.Store(true)
			select {
			case <-asked:
			case <-time.After(kafkatest.Patience):
				t.Fatal("heartbeats stop while a batch is in hand")
			}
			require.Zero(t, early.Load(), "another member reads what the first has in hand")
			close(release)
			kafkatest.Eventually(t, func() bool {
				var sum int64
				for _, at := range k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk] {
					sum += at
				}
				return sum == ends
			}, "not everything is committed in the end")
			_, err = k.Fake.WaitGroupStable(contextOf(t), topic.GroupRenderer.In("test"), 2)
			require.NoError(t, err)
		})
	}
}

// refuseProduce makes the broker refuse what is written to a topic.
func refuseProduce(k *kafkatest.Kafka, name topic.Name) {
	kafkaTopic := name.In("test")
	info := k.Fake.TopicInfo(kafkaTopic)
	k.Fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		r := req.(*kmsg.ProduceRequest)
		if !slices.ContainsFunc(r.Topics, func(t kmsg.ProduceRequestTopic) bool { return t.Topic == kafkaTopic || t.TopicID == info.TopicID }) {
			return nil, nil, false
		}
		resp := r.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range r.Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, kerr.InvalidRecord.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
}

// I1: what could not be written must not be passed.
func TestAnOutputThatIsRefusedStopsTheTransformAndNothingIsCommitted(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Renderer)
	r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	k.Produce(t, r)
	refuseProduce(k, topic.Outcomes)
	err = c.RunTransform(contextOf(t), kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
		out, err := rendered(c, r)
		return []*kgo.Record{out}, err
	})})
	require.ErrorContains(t, err, "producing to outcomes/")
	require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
	require.Zero(t, k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition])
}

// I2: a record whose dead letter was not acknowledged is not parked.
func TestADeadLetterThatIsRefusedHoldsTheOffset(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Renderer)
	r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	k.Produce(t, r)
	refuseProduce(k, topic.DeadLettersRenderer)
	err = c.RunEffect(contextOf(t), kafka.EffectOptions{Group: topic.GroupRenderer, Handler: handle(func(context.Context, []*kgo.Record) (int, error) {
		return 0, fault.Poison(errors.New("bad"))
	})})
	require.ErrorContains(t, err, "parking message-requests.bulk/")
	require.Zero(t, k.Committed(t, topic.GroupRenderer)[topic.MessageRequestsBulk][r.Partition])
}

// A message that does not decode still ends its wait: its headers say whose it was,
// and which attempt will not be made.
func TestAMessageThatDoesNotDecodeIsStillCounted(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Sender)
	m := &event.Message{MessageID: request("u").MessageID, RunID: request("u").RunID, UserID: "u", Channel: "email", Attempt: 3}
	r, err := c.Record(topic.RetriesEmail, "u", m)
	require.NoError(t, err)
	r.Value = []byte("not Avro")
	r.Timestamp = time.UnixMilli(1_700_000_000_000)
	parked, ok := c.Parked(r, errors.New("why"))
	require.True(t, ok)
	var o event.Outcome
	require.NoError(t, c.Decode(parked, &o))
	require.Equal(t, "parked", o.Outcome)
	require.Equal(t, m.MessageID, o.MessageID)
	require.EqualValues(t, 3, o.Attempt)
	require.Equal(t, "email", o.Channel)
	again, _ := c.Parked(r, errors.New("why"))
	require.Equal(t, parked.Value, again.Value, "I5: the same record, the same outcome")

	// Of what is not about a waiting message, nothing is said.
	_, ok = c.Parked(tick(t, c, 0, 1), errors.New("why"))
	require.False(t, ok)
}

// A candidate that does not decode is the message that was to be requested; an
// outcome that does not decode may have ended one, and anything that can be read
// speaks over it.
func TestACandidateAndAnOutcomeThatDoNotDecodeAreCounted(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Resolver)
	run := identity.Hash("run")
	message := identity.Message(c.Namespace(), "c", run.String(), "u", "")
	for _, of := range []struct {
		name    topic.Name
		rec     event.Record
		attempt int32
		reason  string
	}{
		{topic.Candidates, &event.Candidate{RunID: run, CampaignID: "c", UserID: "u"}, 0, kafka.ReasonCandidate},
		{topic.Outcomes, &event.Outcome{MessageID: message, RunID: run, CampaignID: "c", UserID: "u", Outcome: "accepted", Attempt: 2}, -1, kafka.ReasonPoison},
	} {
		r, err := c.Record(of.name, "u", of.rec)
		require.NoError(t, err)
		r.Value = []byte("not Avro")
		parked, ok := c.Parked(r, errors.New("why"))
		require.True(t, ok, of.name)
		var o event.Outcome
		require.NoError(t, c.Decode(parked, &o))
		require.Equal(t, []any{message, run, "c", "u", "parked", of.attempt, of.reason}, []any{o.MessageID, o.RunID, o.CampaignID, o.UserID, o.Outcome, o.Attempt, o.Reason})
		_, ok = c.Parked(parked, errors.New("why"))
		require.False(t, ok, "what says that a message is parked parks none, or it would go on for ever")
	}
}

// deadLetter parks a record and returns what lies in the dead letters.
func deadLetter(t *testing.T, c *kafka.Cluster, r *kgo.Record) *event.DeadLetter {
	t.Helper()
	var d event.DeadLetter
	require.NoError(t, c.Decode(c.DeadLetter(r, errors.New("why")), &d))
	return &d
}

// What is put back is the record as it was, for whoever parked it, as the next
// attempt; and again, when it is parked again.
func TestAReplayIsTheNextAttempt(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Sender)
	m := &event.Message{MessageID: request("u").MessageID, RunID: request("u").RunID, CampaignID: "c", UserID: "u", Channel: "email", Attempt: 3}
	r, err := c.Record(topic.RetriesEmail, "u", m)
	require.NoError(t, err)
	home := r.Partition
	r.Partition, r.Offset = (home+1)%4, 17
	for attempt := int32(3); attempt < 6; attempt++ {
		out, err := c.Replay(deadLetter(t, c, r), time.Now())
		require.NoError(t, err)
		require.Len(t, out, 2)
		var o event.Outcome
		require.NoError(t, c.Decode(out[1], &o))
		require.Equal(t, []any{"replayed", attempt, m.MessageID, "c"}, []any{o.Outcome, o.Attempt, o.MessageID, o.CampaignID})
		back := out[0]
		require.Equal(t, r.Value, back.Value)
		require.Equal(t, home, back.Partition, "on the partition of its key, wherever it lay")
		require.Equal(t, attempt+1, kafka.Attempt(back))
		headers := map[string]string{}
		for _, h := range back.Headers {
			require.NotContains(t, headers, h.Key)
			headers[h.Key] = string(h.Value)
		}
		require.Equal(t, "sender", headers[kafka.HeaderReplayFor])
		require.Equal(t, fmt.Sprintf("retries.email/%d@%d", r.Partition, r.Offset), headers[kafka.HeaderReplayOf])
		r = back
	}
}

func TestWhatCannotBeReplayedIsRefusedInWords(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Collector)
	refused := func(r *kgo.Record, why string) {
		t.Helper()
		_, err := c.Replay(deadLetter(t, c, r), time.Now())
		require.ErrorContains(t, err, why)
	}
	refused(tick(t, c, 0, 1), "time has gone on")
	r, err := c.Record(topic.Profiles, "u", &event.Profile{UserID: "u"})
	require.NoError(t, err)
	refused(r, "profiles is a table")
	r, err = c.Record(topic.Events, "u", &event.Event{UserID: "u"})
	require.NoError(t, err)
	r.Value = make([]byte, topic.MaxMessageBytes)
	refused(r, "too large to be kept whole")
	refused(&kgo.Record{Topic: c.Namespace() + ".gone"}, "not in the catalogue")
	refused(&kgo.Record{Topic: c.Namespace() + "." + kafka.OriginHTTP}, "came over HTTP")

	// The sink's copy is replayed for the sink, and says nothing about the message.
	r, err = c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	out, err := c.Replay(deadLetter(t, c, r), time.Now())
	require.NoError(t, err)
	require.Len(t, out, 1)
}

// A topic has several readers: what one of them could not handle is put back for
// that one, and the others pass it.
func TestAReplayIsForWhoeverParked(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	renderer, sink := k.Cluster(t, topic.Renderer), k.Cluster(t, topic.Collector)
	var letters []*event.DeadLetter
	for i, c := range []*kafka.Cluster{renderer, sink} {
		r, err := c.Record(topic.MessageRequestsBulk, fmt.Sprint("u", i), request(fmt.Sprint("u", i)))
		require.NoError(t, err)
		letters = append(letters, deadLetter(t, c, r))
	}
	for _, d := range letters {
		out, err := renderer.Replay(d, time.Now())
		require.NoError(t, err)
		k.Produce(t, out...)
	}
	handled := func(c *kafka.Cluster, run func(ctx context.Context, seen func(*kgo.Record)) error, group topic.Group) []string {
		ctx, stop := context.WithCancel(contextOf(t))
		defer stop()
		var mu sync.Mutex
		var users []string
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, func(r *kgo.Record) {
				mu.Lock()
				defer mu.Unlock()
				users = append(users, string(r.Key))
			})
		}()
		ends, err := c.HighWatermarks(ctx, topic.MessageRequestsBulk)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			behind, err := c.Passed(ctx, group, kafka.Mark{topic.MessageRequestsBulk: ends[topic.MessageRequestsBulk]})
			return err == nil && len(behind) == 0
		}, kafkatest.Patience, 10*time.Millisecond, "what is for others is passed")
		stop()
		require.NoError(t, <-ended)
		return users
	}
	require.Equal(t, []string{"u0"}, handled(renderer, func(ctx context.Context, seen func(*kgo.Record)) error {
		return renderer.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, KeepControlRecords: true, Transformer: kafka.Each(renderer, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
			seen(r)
			return nil, nil
		})})
	}, topic.GroupRenderer))
	require.Equal(t, []string{"u1"}, handled(sink, func(ctx context.Context, seen func(*kgo.Record)) error {
		return sink.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupSink, Handler: handlerFunc(func(rs []*kgo.Record) (int, error) {
			for _, r := range rs {
				if c := sink.NameOf(r.Topic); c == topic.MessageRequestsBulk {
					seen(r)
				}
			}
			return len(rs), nil
		})})
	}, topic.GroupSink))
}

type handlerFunc func([]*kgo.Record) (int, error)

func (f handlerFunc) Handle(_ context.Context, rs []*kgo.Record) (int, error) { return f(rs) }

func TestSchemasAreOnlyLookedUpWhenRegisteringIsOff(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	cfg := k.Config()
	cfg.RegisterSchemas = false
	c := k.ClusterWith(t, topic.Renderer, cfg)
	r, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	require.NoError(t, c.Decode(r, new(event.MessageRequest)))

	k.Registry.Reset()
	tel := kafkatest.Telemetry(t, topic.Renderer)
	other, err := kafka.New(cfg, topic.Renderer, tel)
	require.NoError(t, err)
	defer other.Close()
	started := make(chan error, 1)
	go func() { started <- other.Start(contextOf(t)) }()
	kafkatest.Eventually(t, func() bool { return len(tel.Health.NotReady()) > 0 }, "it does not say that it waits")
	require.Contains(t, tel.Health.NotReady()[0], "provision registers it")
	require.False(t, k.Registry.SubjectExists(topic.Outcomes.Subject("test")))
	k.Provision(t, 4)
	require.NoError(t, <-started)
}
