package kafka_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

func contextOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func tick(t testing.TB, c *kafka.Cluster, partition int32, second int) *kgo.Record {
	r, err := c.RecordAt(topic.Ticks, partition, "k", &event.Tick{Partition: partition, At: time.Unix(int64(second), 0).UTC()})
	require.NoError(t, err)
	return r
}

func request(userID string) *event.MessageRequest {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &event.MessageRequest{
		MessageID: identity.Hash("m", userID), RunID: identity.Hash("r"), CampaignID: "c", UserID: userID,
		Lane: "bulk", Channel: "email", Address: userID + "@example.test", RequestedAt: at, ExpiresAt: at.Add(time.Hour),
	}
}

func TestARecordComesBackAsItWent(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	require.Equal(t, 4, c.P())
	require.Equal(t, "renderer-0", c.Member())

	sent := request("ユーザー")
	r, err := c.Record(topic.MessageRequestsBulk, sent.UserID, sent)
	require.NoError(t, err)
	require.Equal(t, topic.Partition(sent.UserID, 4), r.Partition)
	require.Equal(t, []kgo.RecordHeader{
		{Key: "message_id", Value: []byte(sent.MessageID.String())},
		{Key: "run_id", Value: []byte(sent.RunID.String())},
		{Key: "campaign_id", Value: []byte(sent.CampaignID)},
		{Key: "user_id", Value: []byte(sent.UserID)},
	}, r.Headers)
	k.Produce(t, r)

	got := k.Records(t, topic.MessageRequestsBulk, 1)[0]
	var back event.MessageRequest
	require.NoError(t, c.Decode(got, &back))
	require.Equal(t, *sent, back)
	require.Equal(t, []event.MessageRequest{*sent}, kafkatest.Consume[event.MessageRequest](t, k, topic.MessageRequestsBulk, 1))
}

func TestARecordTooLargeIsNeverMade(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	large := request("u")
	large.Address = strings.Repeat("x", topic.MaxRecordBytes)
	_, err := c.Record(topic.MessageRequestsBulk, "u", large)
	require.ErrorIs(t, err, kafka.ErrTooLarge)

	// The largest that is made goes through, headers and key included.
	large.Address = strings.Repeat("x", topic.MaxRecordBytes-200)
	r, err := c.Record(topic.MessageRequestsBulk, "u", large)
	require.NoError(t, err)
	p, err := c.Producer()
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.ProduceSync(contextOf(t), r).FirstErr())
}

func TestARecordOfTheWrongTopicIsNeverMade(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	_, err := c.Record(topic.Outcomes, "u", request("u"))
	require.ErrorContains(t, err, "holds Outcome")
	_, err = c.Record("no-such-topic", "u", request("u"))
	require.ErrorContains(t, err, "not in the catalogue")
	_, err = c.RecordAt(topic.Ticks, 4, "", &event.Tick{})
	require.ErrorContains(t, err, "partition 4 of 4")
}

func TestDecodeTellsPoisonFromARegistryThatIsAway(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	var into event.MessageRequest
	r := &kgo.Record{Topic: topic.MessageRequestsBulk.In(k.Config().Namespace), Value: []byte("not Avro")}
	require.Equal(t, fault.ClassPoison, fault.ClassOf(c.Decode(r, &into)))

	good, err := c.Record(topic.MessageRequestsBulk, "u", request("u"))
	require.NoError(t, err)
	cut := *good
	cut.Value = good.Value[:len(good.Value)-3]
	require.Equal(t, fault.ClassPoison, fault.ClassOf(c.Decode(&cut, &into)))

	// An id that the registry does not know yet says nothing about the record.
	_, payload, err := event.SplitHeader(good.Value)
	require.NoError(t, err)
	unknown := *good
	unknown.Value = append(event.AppendHeader(nil, 4711), payload...)
	require.Equal(t, fault.ClassTransient, fault.ClassOf(c.Decode(&unknown, &into)))
	k.Registry.Close()
	require.Equal(t, fault.ClassTransient, fault.ClassOf(c.Decode(&unknown, &into)))
	require.NoError(t, c.Decode(good, &into), "schemas that are known need no registry")
}

func TestStartRefusesPartitionCountsThatDiffer(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	for _, row := range topic.Catalogue() {
		n := row.PartitionCount(4)
		if row.Name == topic.Outcomes {
			n = 3
		}
		require.NoError(t, k.Fake.CreateTopic(row.Name.In("test"), int32(n), nil))
	}
	c, err := kafka.New(k.Config(), topic.Renderer, kafkatest.Telemetry(t, topic.Renderer))
	require.NoError(t, err)
	defer c.Close()
	err = c.Start(contextOf(t))
	require.ErrorContains(t, err, "topic test.outcomes has 3 partitions, the catalogue wants 4")
	require.ErrorContains(t, err, "provision another NAMESPACE")
	require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
}

func TestStartWaitsForTopics(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	tel := kafkatest.Telemetry(t, topic.Renderer)
	c, err := kafka.New(k.Config(), topic.Renderer, tel)
	require.NoError(t, err)
	defer c.Close()
	started := make(chan error, 1)
	go func() { started <- c.Start(contextOf(t)) }()
	kafkatest.Eventually(t, func() bool { return len(tel.Health.NotReady()) > 0 }, "Start did not say that it waits")
	require.Contains(t, tel.Health.NotReady()[0], "provision makes them")
	k.Provision(t, 4)
	require.NoError(t, <-started)
	require.Empty(t, tel.Health.NotReady())
}

func TestATableFollowsItsTopic(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	k.Produce(t, tick(t, c, 0, 1), tick(t, c, 1, 2), tick(t, c, 0, 3))
	// An aborted transaction leaves a tail that holds no data; its marker must not
	// keep CaughtUp waiting.
	txn, err := c.TransactionalProducer("aborter")
	require.NoError(t, err)
	defer txn.Close()
	ctx := contextOf(t)
	require.NoError(t, txn.BeginTransaction())
	require.NoError(t, txn.ProduceSync(ctx, tick(t, c, 1, 99)).FirstErr())
	require.NoError(t, txn.EndTransaction(ctx, kgo.TryAbort))

	seen := map[int32][]int64{}
	table := c.Table([]topic.Name{topic.Ticks}, func(r *kgo.Record) error {
		var at event.Tick
		if err := c.Decode(r, &at); err != nil {
			return err
		}
		seen[r.Partition] = append(seen[r.Partition], at.At.Unix())
		return nil
	})
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- table.Run(runCtx) }()
	require.NoError(t, table.CaughtUp(ctx))
	k.Produce(t, tick(t, c, 2, 4))
	require.NoError(t, table.CaughtUp(ctx))
	stop()
	require.NoError(t, <-ended)
	require.Equal(t, map[int32][]int64{0: {1, 3}, 1: {2}, 2: {4}}, seen)
	k.Produce(t, tick(t, c, 2, 5))
	require.ErrorContains(t, table.CaughtUp(ctx), "has ended", "nobody will ever apply it")
}

// hanging is a producer that has begun a transaction, which the broker does not end for as
// long as a test may take.
func hanging(t testing.TB, k *kafkatest.Kafka) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Config().Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.TransactionalID(k.Config().Namespace+".hanging"), kgo.TransactionTimeout(10*time.Minute))
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	require.NoError(t, cl.BeginTransaction())
	return cl
}

// A service that starts does not wait for another's transaction, whose owner may hang.
func TestATableIsCaughtUpBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	ctx := contextOf(t)
	k.Produce(t, tick(t, c, 0, 1))
	txn := hanging(t, k)
	require.NoError(t, txn.ProduceSync(ctx, tick(t, c, 0, 2)).FirstErr())

	seen := 0
	table := c.Table([]topic.Name{topic.Ticks}, func(*kgo.Record) error { seen++; return nil })
	runCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- table.Run(runCtx) }()
	require.NoError(t, table.CaughtUpStable(ctx))
	require.NoError(t, txn.EndTransaction(ctx, kgo.TryCommit))
	require.NoError(t, table.CaughtUp(ctx))
	stop()
	require.NoError(t, <-ended)
	require.Equal(t, 2, seen)
}

func TestReadPartitionReadsARangeOnce(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Renderer)
	for i := range 5 {
		k.Produce(t, tick(t, c, 0, i))
	}
	var offsets []int64
	read := func(from, to int64) error {
		offsets = nil
		return c.ReadPartition(contextOf(t), topic.Ticks, 0, from, to, kgo.ReadUncommitted(), func(r *kgo.Record) error {
			offsets = append(offsets, r.Offset)
			return nil
		})
	}
	require.NoError(t, read(1, 4))
	require.Equal(t, []int64{1, 2, 3}, offsets)
	require.NoError(t, read(5, 5))
	require.Empty(t, offsets)
	require.ErrorContains(t, read(0, 6), "the log ends at 5")
}

// A partition whose transaction was aborted, and one that nobody has written to,
// must not keep the freshness barrier shut.
func TestIdleAndAbortedPartitionsPassTheBarrier(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker())
	c := k.Cluster(t, topic.Collector)
	ctx := contextOf(t)
	txn, err := c.TransactionalProducer("writer")
	require.NoError(t, err)
	defer txn.Close()
	write := func(userID string, end kgo.TransactionEndTry) {
		r, err := c.Record(topic.Profiles, userID, &event.Profile{UserID: userID})
		require.NoError(t, err)
		require.NoError(t, txn.BeginTransaction())
		require.NoError(t, txn.ProduceSync(ctx, r).FirstErr())
		require.NoError(t, txn.EndTransaction(ctx, end))
	}
	write("a", kgo.TryCommit)
	write("b", kgo.TryAbort)

	var mark kafka.Mark
	// Kafka answers the end of a transaction before its marker is written.
	kafkatest.Eventually(t, func() bool {
		mark, err = c.HighWatermarks(ctx, topic.Profiles, topic.Candidates)
		require.NoError(t, err)
		behind, err := c.Passed(ctx, topic.GroupSink, mark)
		require.NoError(t, err)
		return slices.Equal(behind, []kafka.Behind{{Group: topic.GroupSink, Topic: topic.Profiles, Records: 4}})
	}, "two records and two markers; candidates are not the sink's")

	handled := 0
	stop := run(t, func(ctx context.Context) error {
		return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupSink, KeepControlRecords: true, Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
			handled += len(recs)
			return len(recs), nil
		})})
	})
	kafkatest.Eventually(t, func() bool {
		behind, err := c.Passed(ctx, topic.GroupSink, mark)
		return err == nil && len(behind) == 0
	}, "the barrier never opened")
	require.NoError(t, stop())
	require.Equal(t, 1, handled, "the aborted record was handed over")
}

// Whoever is told to end does, though a batch is on its way to a broker that has not answered.
func TestATransactionEndsWithItsContextWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Collector)
	r, err := c.Record(topic.Profiles, "a", &event.Profile{UserID: "a"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(contextOf(t))
	k.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		cancel()
		return nil, errors.New("the connection is cut"), true
	})
	err = c.WriteOnce(ctx, "writer", func(context.Context) ([]*kgo.Record, error) { return []*kgo.Record{r}, nil })
	require.Equal(t, fault.ClassTransient, fault.ClassOf(err), "%v", err)
}

// Whoever is told that something is committed finds it there: also by a client that has
// never heard of the topic before, whose record is acknowledged before it has stored what it
// learnt. A second record, whose partition is not chosen yet, holds it up in between.
func TestTheFirstTransactionOfAClientIsCommitted(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Collector)
	ctx := contextOf(t)
	first, err := c.Record(topic.Profiles, "first", &event.Profile{UserID: "first"})
	require.NoError(t, err)
	partition := first.Partition // read here: the client writes it
	second := &kgo.Record{Topic: first.Topic, Key: []byte("second")}
	held := make(chan struct{})
	choose := kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
		return func(r *kgo.Record, _ int) int {
			if r != second {
				return int(partition)
			}
			<-held
			return -1 // it is not produced
		}
	})
	versions := kversion.Tip()
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4) // as all our transactions
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Fake.ListenAddrs()...), kgo.MaxVersions(versions), kgo.TransactionalID("writer"), kgo.RecordPartitioner(choose))
	require.NoError(t, err)
	defer cl.Close()
	_, _, err = cl.ProducerID(ctx)
	require.NoError(t, err)
	both := make(chan struct{})
	k.Fake.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.SleepControl(func() { <-both })
		return nil, nil, false
	})
	require.NoError(t, cl.BeginTransaction())
	ended := make(chan error, 1)
	go func() {
		err := kafka.ProduceSync(ctx, cl, first)
		if err == nil {
			err = cl.EndTransaction(ctx, kgo.TryCommit)
		}
		ended <- err
	}()
	kafkatest.Eventually(t, func() bool { return cl.BufferedProduceRecords() == 1 }, "the first record is not buffered")
	cl.Produce(ctx, second, nil)
	kafkatest.Eventually(t, func() bool { return cl.BufferedProduceRecords() == 2 }, "the second record is not buffered")
	close(both)
	kafkatest.Eventually(t, func() bool {
		ends, err := c.HighWatermarks(ctx, topic.Profiles)
		return err == nil && ends[topic.Profiles][partition] == 1
	}, "the first record is not acknowledged")
	select {
	case err := <-ended: // it did not wait
		ended <- err
	case <-time.After(100 * time.Millisecond):
	}
	close(held)
	require.NoError(t, <-ended)
	require.Len(t, k.All(t, topic.Profiles), 1)
}

// A broker that was away between a record and the marker of its transaction writes
// the marker as leader of another epoch. Who has passed both must be able to begin
// there again: no record has been lost.
func TestALeaderThatChangesBeforeTheMarkerLosesNothing(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Collector)
	ctx := contextOf(t)
	txn, err := c.TransactionalProducer("writer")
	require.NoError(t, err)
	defer txn.Close()
	var name string
	var partition int32
	write := func(between func()) {
		r, err := c.Record(topic.Profiles, "a", &event.Profile{UserID: "a"})
		require.NoError(t, err)
		name, partition = r.Topic, r.Partition
		require.NoError(t, txn.BeginTransaction())
		require.NoError(t, kafka.ProduceSync(ctx, txn, r))
		between()
		require.NoError(t, txn.EndTransaction(ctx, kgo.TryCommit))
	}
	write(func() { require.NoError(t, k.Fake.MoveTopicPartition(name, partition, 0)) })
	for range 2 {
		stop := run(t, func(ctx context.Context) error {
			return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupSink, KeepControlRecords: true, Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
				return len(recs), nil
			})})
		})
		mark, err := c.HighWatermarks(ctx, topic.Profiles)
		require.NoError(t, err)
		kafkatest.Eventually(t, func() bool {
			behind, err := c.Passed(ctx, topic.GroupSink, mark)
			return err == nil && len(behind) == 0
		}, "the group has not passed what was written")
		require.NoError(t, stop())
		write(func() {})
	}
}

type handle func(context.Context, []*kgo.Record) (int, error)

func (h handle) Handle(ctx context.Context, recs []*kgo.Record) (int, error) { return h(ctx, recs) }

// run runs a loop until stop, which returns what the loop returned.
func run(t testing.TB, loop func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop(ctx) }()
	stopped := false
	stop = func() error {
		cancel()
		stopped = true
		select {
		case err := <-ended:
			return err
		case <-time.After(kafkatest.Patience):
			t.Error("the loop did not end")
			return nil
		}
	}
	t.Cleanup(func() {
		if !stopped {
			_ = stop()
		}
	})
	return stop
}
