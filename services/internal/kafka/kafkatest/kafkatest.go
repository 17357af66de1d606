// Package kafkatest runs a real client against a broker in this process: kfake with
// every topic of the catalogue, offset 0 committed for every group, and a Schema
// Registry in memory.
package kafkatest

import (
	"context"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Patience is how long the kit waits for anything before it fails the test: long,
// because the machine may be busy, and never waited for when things work.
const Patience = time.Minute

// Kafka is a broker and a registry that live as long as the test.
type Kafka struct {
	Fake     *kfake.Cluster   // for ControlKey and the like
	Registry *srfake.Registry // for Intercept and the like

	opts   []kfake.Opt
	cfg    kafka.Config
	client *kgo.Client
	adm    *kadm.Client
}

// Option changes what Start makes.
type Option func(*options)

type options struct {
	partitions int
	fake       []kfake.Opt
	bare       bool
	session    time.Duration
}

// Partitions sets P; 4 unless given.
func Partitions(p int) Option { return func(o *options) { o.partitions = p } }

// Bare makes no topics, offsets and schemas.
func Bare() Option { return func(o *options) { o.bare = true } }

// SessionTimeout sets how long a silent member keeps its partitions; 15 s unless given.
func SessionTimeout(d time.Duration) Option { return func(o *options) { o.session = d } }

// Fake adds options of the broker.
func Fake(opts ...kfake.Opt) Option {
	return func(o *options) { o.fake = append(o.fake, opts...) }
}

// Start runs a provisioned broker on a port of its own.
func Start(t testing.TB, opts ...Option) *Kafka {
	t.Helper()
	o := options{partitions: 4, session: 15 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	o.fake = append([]kfake.Opt{
		kfake.NumBrokers(1),
		// Sessions shorter than Kafka's minimum, for tests that wait for their end.
		kfake.GroupMinSessionTimeout(100 * time.Millisecond),
		// A joining group waits this long for more members before it begins; real
		// Kafka's default of 3 s would be added to every test.
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}),
	}, o.fake...)
	fake, err := kfake.NewCluster(o.fake...)
	require.NoError(t, err)
	registry := srfake.New()
	t.Cleanup(registry.Close)

	k := &Kafka{Fake: fake, Registry: registry, opts: o.fake, cfg: kafka.Config{
		Brokers: fake.ListenAddrs(), RegistryURL: registry.URL(), RegisterSchemas: true,
		Namespace: "test", Instance: "0", SessionTimeout: o.session, Compression: "none", DeadLettersPerMinute: 100,
	}}
	t.Cleanup(func() { k.Fake.Close() })
	k.client, err = kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(k.client.Close)
	k.adm = kadm.NewClient(k.client)
	if !o.bare {
		k.Provision(t, o.partitions)
	}
	return k
}

// Provision runs provision with P = p.
func (k *Kafka) Provision(t testing.TB, p int) provision.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	report, err := provision.Run(ctx, provision.Options{Kafka: k.cfg, Config: provision.Config{
		Partitions: p, ReplicationFactor: 1, Patience: Patience,
	}})
	require.NoError(t, err)
	return report
}

// Config is that of a service's instance 0; change Instance for another.
func (k *Kafka) Config() kafka.Config { return k.cfg }

// Away stops the broker. It comes back at the same address, with what it held only
// if it has a kfake.DataDir.
func (k *Kafka) Away(t testing.TB) (back func()) {
	t.Helper()
	_, port, err := net.SplitHostPort(k.Fake.ListenAddrs()[0])
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	k.Fake.Close()
	return func() {
		t.Helper()
		fake, err := kfake.NewCluster(append(slices.Clone(k.opts), kfake.Ports(n))...)
		require.NoError(t, err)
		k.Fake = fake
	}
}

// Admin asks the broker about groups, topics and offsets.
func (k *Kafka) Admin() *kadm.Client { return k.adm }

// Telemetry is one that nobody listens to; the log goes to the test's when verbose.
func Telemetry(t testing.TB, service string) *telemetry.Telemetry {
	out := io.Discard
	if testing.Verbose() {
		out = testWriter{t}
	}
	return telemetry.New(service, telemetry.Config{LogFormat: "text"}, out)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	// A client may log while it closes, after the test has ended.
	defer func() { _ = recover() }()
	w.t.Logf("%s", p)
	return len(p), nil
}

// Cluster is a started cluster of the service's instance 0, closed with the test.
func (k *Kafka) Cluster(t testing.TB, service string) *kafka.Cluster {
	t.Helper()
	return k.ClusterWith(t, service, k.cfg)
}

// ClusterWith is Cluster with other settings.
func (k *Kafka) ClusterWith(t testing.TB, service string, cfg kafka.Config) *kafka.Cluster {
	t.Helper()
	c, err := kafka.New(cfg, service, Telemetry(t, service))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	t.Cleanup(c.Close)
	return c
}

// Produce writes records as they are, outside transactions, and waits until they are
// acknowledged. Partition and Offset are filled in.
func (k *Kafka) Produce(t testing.TB, recs ...*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	require.NoError(t, k.client.ProduceSync(ctx, recs...).FirstErr())
}

// Records reads the topic from its start, read committed, until it has n records,
// and fails the test when they do not come.
func (k *Kafka) Records(t testing.TB, name topic.Name, n int) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(k.Fake.ListenAddrs()...), kgo.ConsumeTopics(name.In(k.cfg.Namespace)),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(50*time.Millisecond),
	)
	require.NoError(t, err)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var recs []*kgo.Record
	for len(recs) < n {
		fetches := cl.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%s has %d records, want %d", name, len(recs), n)
		recs = append(recs, fetches.Records()...)
	}
	return recs
}

// All reads what is in the topic now, read committed.
func (k *Kafka) All(t testing.TB, name topic.Name) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cluster := k.ClusterWith(t, "kafkatest", k.cfg)
	ends, err := cluster.HighWatermarks(ctx, name)
	require.NoError(t, err)
	var ranges []kafka.Range
	for p, end := range ends[name] {
		ranges = append(ranges, kafka.Range{Topic: name, Partition: p, To: end})
	}
	var recs []*kgo.Record
	require.NoError(t, cluster.Read(ctx, ranges, kgo.ReadCommitted(), func(r *kgo.Record) error {
		recs = append(recs, r)
		return nil
	}))
	return recs
}

// Consume reads n records of the topic from its start, read committed, and decodes
// them: Consume[event.Outcome](t, k, topic.Outcomes, 3).
func Consume[T any, P interface {
	*T
	event.Record
}](t testing.TB, k *Kafka, name topic.Name, n int) []T {
	t.Helper()
	var out []T
	for _, r := range k.Records(t, name, n) {
		var v T
		k.Decode(t, r, P(&v))
		out = append(out, v)
	}
	return out
}

// Decode decodes a record written with the newest schema.
func (k *Kafka) Decode(t testing.TB, r *kgo.Record, into event.Record) {
	t.Helper()
	_, payload, err := event.SplitHeader(r.Value)
	require.NoError(t, err)
	require.NoError(t, into.DecodeAvro(payload))
}

// Committed returns the group's committed offsets.
func (k *Kafka) Committed(t testing.TB, group topic.Group) map[topic.Name]map[int32]int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	offsets, err := k.adm.FetchOffsets(ctx, group.In(k.cfg.Namespace))
	require.NoError(t, err)
	out := map[topic.Name]map[int32]int64{}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.At < 0 {
			return
		}
		name := topic.Name(o.Topic[len(k.cfg.Namespace)+1:])
		if out[name] == nil {
			out[name] = map[int32]int64{}
		}
		out[name][o.Partition] = o.At
	})
	return out
}

// RequireDeadLetter waits for a dead letter of the service whose reason contains the
// text, and returns it.
func (k *Kafka) RequireDeadLetter(t testing.TB, service, reasonSubstring string) event.DeadLetter {
	t.Helper()
	var letters []event.DeadLetter
	for n := 1; ; n++ {
		letters = Consume[event.DeadLetter](t, k, topic.DeadLetters(service), n)
		for _, d := range letters {
			if reasonSubstring == "" || strings.Contains(d.Reason, reasonSubstring) {
				return d
			}
		}
		n = len(letters)
	}
}

// Eventually waits until done answers true and fails the test when it does not.
func Eventually(t testing.TB, done func() bool, format string, args ...any) {
	t.Helper()
	require.Eventuallyf(t, done, Patience, 10*time.Millisecond, format, args...)
}
