package kafka

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/plugin/kprom"
	"github.com/twmb/franz-go/plugin/kslog"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// TransactionTimeout is after how long the broker aborts a transaction whose
// owner is silent. Until then readers of committed records stand still behind
// it, so it is no longer than a dead member keeps its partitions.
const TransactionTimeout = 15 * time.Second

// rebalanceTimeout is how long a member may finish its batch in hand when others
// want to rebalance. Every batch must be shorter.
const rebalanceTimeout = 60 * time.Second

var compressions = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(),
	"lz4":  kgo.Lz4Compression(),
	"zstd": kgo.ZstdCompression(),
}

// clientOptions are those of every client: what it is called and where it tells
// about itself.
func (c *Cluster) clientOptions(purpose string) []kgo.Opt {
	id := c.cfg.Namespace + "." + c.member
	if purpose != "" {
		id += "." + purpose
	}
	return []kgo.Opt{
		kgo.SeedBrokers(c.cfg.Brokers...),
		// In the broker's logs and quotas a client is who it is.
		kgo.ClientID(id),
		// The client's own log repeats itself for as long as a broker is away;
		// what an operator must know is said once per change through Health.
		kgo.WithLogger(quietLogger{c.log}),
		kgo.WithHooks(c.watch, kprom.NewMetrics("kafka", kprom.Registerer(shared{c.tel.Registry}), kprom.WithClientLabel())),
		// A broker that comes back must be found within a second or two, not
		// after a minute of backoff.
		kgo.RetryBackoffFn(func(fails int) time.Duration {
			return min(time.Duration(fails)*100*time.Millisecond, time.Second)
		}),
		// Topics are made by provision only; one that is missing is waited for,
		// never created with the broker's defaults. (AllowAutoTopicCreation is
		// off unless asked for.) A new topic must be seen soon.
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.MetadataMaxAge(30 * time.Second),
		// Usage metrics of ours are Prometheus's, not the broker's.
		kgo.DisableClientMetrics(),
	}
}

// producerOptions are those of every client that writes.
func (c *Cluster) producerOptions() []kgo.Opt {
	return []kgo.Opt{
		// Acknowledged means it survives (I1): every in-sync replica has it.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		// Where a person lives is decided by topic.Partition, in Record, so that
		// nothing else can disagree with it.
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(compressions[c.cfg.Compression]),
		// The client refuses batches above this before compressing. Record keeps
		// values under half of it, so a refusal cannot happen.
		kgo.ProducerBatchMaxBytes(topic.MaxMessageBytes),
		// Room for one transaction's worth of small records; Produce blocks
		// beyond either, which bounds memory.
		kgo.MaxBufferedRecords(50_000),
		kgo.MaxBufferedBytes(64 << 20),
		// Whoever waits for each acknowledgement would wait for a linger too; batches
		// form anyway while the broker answers the one before.
		kgo.ProducerLinger(0),
	}
}

// groupHooks is what a loop wants to know about its group. All are called from
// the client's goroutine while the loop holds no batch, never two at a time.
type groupHooks struct {
	// fetched sees each partition's committed offset and metadata before any of
	// its records. It may take long: heartbeats go on meanwhile, and ctx is
	// cancelled when the next rebalance begins. An error makes the member join
	// again; it must not be, or wrap, context.Canceled while ctx is alive,
	// which the client takes for leaving.
	fetched func(ctx context.Context, committed []committedOffset) error
	// assigned opens a membership, before offsets are fetched.
	assigned func(partitions map[string][]int32)
	// gone ends the membership of these partitions; orderly tells whether a
	// commit can still succeed.
	gone func(cl *kgo.Client, partitions map[string][]int32, orderly bool)
	// wanted says that a rebalance waits for the loop to let go of its batch.
	wanted func()
}

// committedOffset is one partition's entry in the group.
type committedOffset struct {
	topic     topic.Name
	partition int32
	offset    int64 // -1: the group has none
	metadata  string
}

// groupOptions are those of every client that reads as a member of a group:
// the loops of this package.
func (c *Cluster) groupOptions(group topic.Group, topics []topic.Name, keepControlRecords bool, h groupHooks) []kgo.Opt {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.In(c.cfg.Namespace)
	}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(group.In(c.cfg.Namespace)),
		kgo.ConsumeTopics(names...),
		// Static membership: a restart of the same name takes its partitions
		// back at once instead of waiting for its former self to time out, and
		// a former self that still runs is fenced.
		kgo.InstanceID(c.member),
		kgo.SessionTimeout(c.cfg.SessionTimeout),
		// Five lost heartbeats are a death, two are not. That the group is rebalanced a member
		// learns from its next one, so whoever has just restarted waits for that.
		kgo.HeartbeatInterval(min(c.cfg.SessionTimeout/5, time.Second)),
		kgo.RebalanceTimeout(rebalanceTimeout),
		// Range puts partition i of all topics on one member. The defaults,
		// cooperative-sticky and KIP-848, do not, and then a person's candidate
		// meets an instance that has never heard of her.
		kgo.Balancers(kgo.RangeBalancer()),
		// No reset policy: a group without an offset would otherwise silently
		// start at the beginning (everything is sent again) or at the end
		// (people are dropped). Both are Fatal instead.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtCommitted()),
		// (Offsets are fetched "require stable", always: whoever is given a
		// partition waits for its former owner's transaction to end.)
		// What an aborted transaction wrote never happened.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Offsets move when a loop says so (I1), never by a timer.
		kgo.DisableAutoCommit(),
		// I3: a rebalance waits until the loop has let go of its batch.
		kgo.BlockRebalanceOnPoll(),
		// Bounds what is buffered ahead of the loop, per broker.
		kgo.FetchMaxBytes(16 << 20),
		kgo.FetchMaxPartitionBytes(4 << 20),
		// Longer only saves idle requests; a wake-up comes with the first byte.
		kgo.FetchMaxWait(time.Second),

		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			h.assigned(partitions)
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, cl *kgo.Client, partitions map[string][]int32) {
			h.gone(cl, partitions, true)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, cl *kgo.Client, partitions map[string][]int32) {
			h.gone(cl, partitions, false)
		}),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { h.wanted() }),
		kgo.OnOffsetsFetched(c.offsetsFetched(h)),
	}
	if keepControlRecords {
		// Without them a committed offset never passes a transaction's marker
		// or an aborted tail, and the freshness barrier never opens.
		opts = append(opts, kgo.KeepControlRecords())
	}
	return opts
}

// closePatience is how long the end of a group client may take.
const closePatience = 2 * time.Second

// closable makes a group client that does not keep its process from ending. A
// client that is waiting for a rebalance of others waits until they are all
// there, which can be a session timeout; but a static member has nothing left
// to say then: it has committed, and does not leave.
func closable(ctx context.Context) (option kgo.Opt, closer func(closeClient func())) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return kgo.WithContext(ctx), func(closeClient func()) {
		defer cancel()
		defer time.AfterFunc(closePatience, cancel).Stop()
		closeClient()
	}
}

// transactionOptions make a client transactional under <ns>.<id>.
func (c *Cluster) transactionOptions(id string) []kgo.Opt {
	// Transactions of version 2 (KIP-890) need no request to add a partition. Apache
	// Kafka 4.3, killed before all of a commit's markers were written, then took the
	// next transaction's records in front of a marker, refused the marker, and
	// aborted in one partition what was committed in others.
	versions := kversion.Tip()
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4)
	return []kgo.Opt{
		kgo.MaxVersions(versions),
		// The name is stable: whoever opens it fences its former self.
		kgo.TransactionalID(c.cfg.Namespace + "." + id),
		kgo.TransactionTimeout(TransactionTimeout),
		// The broker needs some milliseconds to write markers before the next
		// transaction may begin; asking again soon shortens that bubble.
		kgo.ConcurrentTransactionsBackoff(2 * time.Millisecond),
	}
}

// transactionalID names a loop's transactions after its member and group:
// "<member>" for the group named after its service, "<member>.shards" for
// "<service>.shards".
func (c *Cluster) transactionalID(group topic.Group) string {
	if suffix, ok := strings.CutPrefix(string(group), c.service); ok {
		return c.member + suffix
	}
	return c.member + "." + string(group)
}

// quietLogger passes the client's log on as debug records.
type quietLogger struct{ log *slog.Logger }

func (l quietLogger) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelInfo
	}
	return kgo.LogLevelNone
}

func (l quietLogger) Log(_ kgo.LogLevel, msg string, keyvals ...any) {
	kslog.New(l.log).Log(kgo.LogLevelDebug, msg, keyvals...)
}

// shared lets clients of the same id share their collectors: the newest reports.
type shared struct{ *prometheus.Registry }

func (r shared) MustRegister(collectors ...prometheus.Collector) {
	for _, c := range collectors {
		_ = r.Registry.Register(c)
	}
}
