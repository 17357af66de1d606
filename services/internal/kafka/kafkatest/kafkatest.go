// Package kafkatest runs a real client against a broker in this process: kfake with
// every topic of the catalogue, offset 0 committed for every group, and a Schema
// Registry in memory. Tests that ask for AnyBroker run on a real Kafka too.
package kafkatest

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
const Patience = 2 * time.Minute

// Kafka is a broker and a registry that live as long as the test.
type Kafka struct {
	Fake     *kfake.Cluster   // for ControlKey and the like; nil where AnyBroker found another
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
	any        bool
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

// AnyBroker is for tests that do not steer the broker and name nothing but by the
// namespace of Config. Where KAFKA_BROKERS is set they run there, such as on the
// Apache Kafka of scripts/kafka, each in a namespace of its own.
func AnyBroker() Option { return func(o *options) { o.any = true } }

// Start runs a provisioned broker on a port of its own.
func Start(t testing.TB, opts ...Option) *Kafka {
	t.Helper()
	o := options{partitions: 4, session: 15 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	if brokers := os.Getenv("KAFKA_BROKERS"); brokers != "" && o.any {
		return startOn(t, strings.Split(brokers, ","), o)
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
	k := &Kafka{Fake: fake, opts: o.fake}
	t.Cleanup(func() { k.Fake.Close() })
	k.prepare(t, fake.ListenAddrs(), "test", o)
	return k
}

// startOn takes a namespace on brokers that run already.
func startOn(t testing.TB, brokers []string, o options) *Kafka {
	t.Helper()
	namespace := "test-" + strings.ToLower(rand.Text()[:10])
	// Kafka takes no session shorter than its setting.
	if o.session < time.Second {
		o.session = time.Second
	}
	t.Cleanup(func() { Remove(t, brokers, namespace) })
	k := &Kafka{}
	k.prepare(t, brokers, namespace, o)
	return k
}

// prepare connects to the brokers and provisions the namespace.
func (k *Kafka) prepare(t testing.TB, brokers []string, namespace string, o options) {
	t.Helper()
	k.Registry = srfake.New()
	t.Cleanup(k.Registry.Close)
	k.cfg = kafka.Config{
		Brokers: brokers, RegistryURL: k.Registry.URL(), RegisterSchemas: true,
		Namespace: namespace, Instance: "0", SessionTimeout: o.session, Compression: "none", DeadLettersPerMinute: 100,
	}
	var err error
	k.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(k.client.Close)
	k.adm = kadm.NewClient(k.client)
	if !o.bare {
		k.Provision(t, o.partitions)
	}
}

// Remove frees what a test leaves on brokers that go on: the topics of its namespace,
// and its groups with the static members that have gone and not left. What cannot be
// removed is said, not failed.
func Remove(t testing.TB, brokers []string, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	var topics, groups []string
	for _, row := range topic.Catalogue() {
		topics = append(topics, row.Name.In(namespace))
		for _, g := range row.Readers {
			groups = append(groups, g.In(namespace))
		}
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	described, err := adm.DescribeGroups(ctx, groups...)
	for _, g := range described {
		var members []string
		for _, m := range g.Members {
			if m.InstanceID != nil {
				members = append(members, *m.InstanceID)
			}
		}
		if len(members) > 0 {
			_, leaveErr := adm.LeaveGroup(ctx, kadm.LeaveGroup(g.Group).InstanceIDs(members...))
			err = errors.Join(err, leaveErr)
		}
	}
	_, groupsErr := adm.DeleteGroups(ctx, groups...)
	_, topicsErr := adm.DeleteTopics(ctx, topics...)
	if err := errors.Join(err, groupsErr, topicsErr); err != nil {
		t.Logf("something of namespace %s stays: %v", namespace, err)
	}
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

// Away stops the broker. It comes back at the same address, which nobody else gets
// meanwhile, with what it held only if it has a kfake.DataDir.
func (k *Kafka) Away(t testing.TB) (back func()) {
	t.Helper()
	_, port, err := net.SplitHostPort(k.Fake.ListenAddrs()[0])
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	k.Fake.Close()
	free := hold(t, n)
	return func() {
		t.Helper()
		free()
		Eventually(t, func() bool {
			fake, err := kfake.NewCluster(append(slices.Clone(k.opts), kfake.Ports(n))...)
			if err == nil {
				k.Fake = fake
			}
			return err == nil
		}, "the broker does not come back at port %d: has somebody taken it?", n)
	}
}

// hold has a port of this machine and does not listen, so that whoever calls is refused
// and the system gives the port to nobody who asks for any.
func hold(t testing.TB, port int) (free func()) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	syscall.CloseOnExec(socket)
	free = sync.OnceFunc(func() { _ = syscall.Close(socket) })
	t.Cleanup(free)
	// Connections of the broker that has ended are not quite gone.
	require.NoError(t, syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	require.NoError(t, syscall.Bind(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	return free
}

// AwaitMembers waits until the group is stable with n members, and returns their ids.
func (k *Kafka) AwaitMembers(t testing.TB, group topic.Group, n int) []string {
	t.Helper()
	var ids []string
	Eventually(t, func() bool {
		groups, err := k.adm.DescribeGroups(context.Background(), group.In(k.cfg.Namespace))
		if err != nil {
			return false
		}
		g := groups[group.In(k.cfg.Namespace)]
		ids = nil
		for _, m := range g.Members {
			ids = append(ids, m.MemberID)
		}
		return g.State == "Stable" && len(ids) == n
	}, "group %s is not stable with %d members", group, n)
	slices.Sort(ids)
	return ids
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
		kgo.SeedBrokers(k.cfg.Brokers...), kgo.ConsumeTopics(name.In(k.cfg.Namespace)),
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
