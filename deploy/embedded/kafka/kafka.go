// Package kafka is a Kafka broker in this process: kfake with a data
// directory, one broker, the real protocol (transactions, groups, compaction).
//
// What it promises. An acknowledged record, a committed offset and a finished
// transaction are there again after a restart, kill -9 included (with Sync
// also after a power cut), for topics that were created explicitly; there is
// no automatic creation. A transaction that was open when the process was
// killed is aborted at the next start, and finished if its commit had begun.
// What it does not promise: a power cut in the middle of a commit may leave that
// one transaction in part.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// DefaultAddr is where clients expect the broker.
	DefaultAddr = "127.0.0.1:9092"

	// DefaultBoundedBytes limits each partition of a bounded topic. The run
	// window (20,000 people) of 10 KB mails is 12 MiB per partition, so
	// consumers stay inside it.
	DefaultBoundedBytes = 64 << 20

	defaultHousekeeping = time.Minute

	// maxMessageBytes is the topic catalogue's limit; Kafka's own default is half.
	maxMessageBytes = 2 << 20

	// segmentBytes is smaller than Kafka's so that retention frees disk soon,
	// and so that a start, which reads whole segments, has small pieces.
	segmentBytes = 16 << 20

	// leastShare of a fetch is what each partition may take, however many there
	// are: what does not fit waits until its partition is the fetch's first.
	leastShare = 128 << 10

	year = 365 * 24 * time.Hour
)

// bounded names the topics that are limited in bytes here and nowhere else:
// after kill -9 the broker reads its log into memory, and rendered mail is
// most of it. Names are <namespace>.messages.email.bulk and the like.
var bounded = regexp.MustCompile(`(^|\.)(messages|retries)\.`)

// Options says where the broker lives. Only Dir is required.
type Options struct {
	Dir      string       // data directory; made if missing; one process at a time
	Addr     string       // DefaultAddr if empty; port 0 takes a free one
	Listener net.Listener // used instead of Addr; closed by Close
	Sync     bool         // fsync every batch before it is acknowledged

	BoundedBytes int64         // per partition of messages.* and retries.*; DefaultBoundedBytes if 0
	Housekeeping time.Duration // how often retention is applied; a minute if 0

	Logger *slog.Logger // nothing is logged if nil
}

// Broker is a running broker.
type Broker struct {
	cluster *kfake.Cluster
	client  *kgo.Client // through the gate, so that it works before the port opens
	dir     string
	addr    string
	log     *kfakeLog
	commits *os.File

	stop   context.CancelFunc
	done   chan struct{}
	closed sync.Once
	err    error
}

// Open starts the broker. The port is bound at once (so that a taken one is
// an early error that wraps syscall.EADDRINUSE), but nobody is served until
// the log is loaded, ended transactions are marked and compaction is done;
// connections made before that wait.
func Open(ctx context.Context, o Options) (_ *Broker, err error) {
	if o.Dir == "" {
		return nil, errors.New("opening kafka: no data directory")
	}
	if o.BoundedBytes == 0 {
		o.BoundedBytes = DefaultBoundedBytes
	}
	if o.Housekeeping == 0 {
		o.Housekeeping = defaultHousekeeping
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Listener == nil {
		if o.Addr == "" {
			o.Addr = DefaultAddr
		}
		if o.Listener, err = net.Listen("tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("opening kafka: %w", err)
		}
	}
	g := newGate(o.Listener)
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	if err := os.MkdirAll(partitionsDir(o.Dir), 0o755); err != nil {
		return nil, fmt.Errorf("opening kafka: %w", err)
	}

	if err := restoreKept(o.Dir); err != nil {
		return nil, fmt.Errorf("opening kafka: taking back a compaction cut short: %w", err)
	}

	// What was left open by a kill has to be read from the files: the broker
	// aborts it in memory only, and the next kill would bring it back under
	// the commit marker of a later transaction.
	var orphans []openTransaction
	clean, err := takeCleanMark(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	if !clean {
		if orphans, err = restoreProducers(o.Dir); err != nil {
			return nil, fmt.Errorf("opening kafka: reading what the killed broker knew of its producers: %w", err)
		}
		found := len(orphans)
		if orphans, err = finishCommit(o.Dir, orphans); err != nil {
			return nil, fmt.Errorf("opening kafka: finishing what the killed broker was committing: %w", err)
		}
		if err := restoreMembers(o.Dir); err != nil {
			return nil, fmt.Errorf("opening kafka: reading who was a member of the killed broker's groups: %w", err)
		}
		if n := found - len(orphans); n > 0 {
			o.Logger.Info("commit of the killed broker finished", "partitions", n)
		}
	}

	b := &Broker{dir: o.Dir, addr: g.Addr().String(), log: &kfakeLog{log: o.Logger}, done: make(chan struct{})}
	b.cluster, err = kfake.NewCluster(b.kfakeOptions(o, g)...)
	if err != nil {
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	b.boundTopics(o.BoundedBytes)
	b.boundFetches()
	if b.commits, err = watchCommits(b.cluster, o.Dir, o.Logger); err != nil {
		b.cluster.Close()
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	if err = watchMembers(b.cluster, o.Dir, o.Logger); err != nil {
		b.shut()
		return nil, fmt.Errorf("opening kafka: %w", err)
	}
	b.client, err = kgo.NewClient(
		kgo.SeedBrokers(b.addr),
		kgo.Dialer(g.dial), // in this process: the port is still shut
		kgo.ClientID("embedded-housekeeping"),
	)
	if err == nil {
		err = b.prepare(ctx, orphans)
	}
	if err != nil {
		b.shut()
		return nil, fmt.Errorf("opening kafka: %w", err)
	}

	// Loading has read every segment; give that memory back before the first
	// client comes (2.5 GB were kept after 2.4 GB of messages otherwise).
	debug.FreeOSMemory()

	keepCtx, stop := context.WithCancel(context.Background())
	b.stop = stop
	go b.keepHouse(keepCtx, o.Housekeeping)
	g.open()
	return b, nil
}

// Addr is the broker's address, host:port.
func (b *Broker) Addr() string { return b.addr }

// Close stops serving and writes what lets the next start skip its repairs:
// open transactions, group members, snapshots. It is safe to skip (kill -9).
func (b *Broker) Close() error {
	b.closed.Do(func() {
		b.stop()
		<-b.done
		b.shut()
		if b.err = b.log.failure(); b.err != nil {
			b.err = fmt.Errorf("closing kafka: %w", b.err)
			return
		}
		if err := rememberEmptied(b.dir); err != nil {
			b.err = fmt.Errorf("closing kafka: %w", err)
			return
		}
		if err := setCleanMark(b.dir); err != nil {
			b.err = fmt.Errorf("closing kafka: %w", err)
		}
	})
	return b.err
}

func (b *Broker) shut() {
	if b.client != nil {
		b.client.Close()
	}
	b.cluster.Close()
	_ = b.commits.Close() // nothing in it is wanted after a clean stop
}

func (b *Broker) kfakeOptions(o Options, g *gate) []kfake.Opt {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("hikyaku-embedded"),
		kfake.DataDir(o.Dir),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return g, nil }),
		kfake.WithLogger(b.log),
		kfake.BrokerConfigs(map[string]string{
			// The cleaner does not stop at the last stable offset (it removed a
			// committed value that an aborted transaction would have replaced)
			// and holds up every request, so it never runs by itself.
			"log.cleaner.backoff.ms": strconv.FormatInt(year.Milliseconds(), 10),
			"message.max.bytes":      strconv.Itoa(maxMessageBytes),
			"log.segment.bytes":      strconv.Itoa(segmentBytes),
			// A stack that was off for a week (Kafka's default) must find its
			// groups where it left them: there is no reset policy.
			"offsets.retention.minutes": strconv.Itoa(int(10 * year / time.Minute)),
		}),
	}
	if o.Sync {
		opts = append(opts, kfake.SyncWrites())
	}
	return opts
}

// boundTopics gives bounded topics a limit in bytes when they are created,
// unless their creator set one.
func (b *Broker) boundTopics(limit int64) {
	value := strconv.FormatInt(limit, 10)
	b.cluster.ControlKey(int16(kmsg.CreateTopics), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req := kreq.(*kmsg.CreateTopicsRequest)
	topics:
		for i := range req.Topics {
			t := &req.Topics[i]
			if !bounded.MatchString(t.Topic) {
				continue
			}
			for _, c := range t.Configs {
				if c.Name == "retention.bytes" {
					continue topics
				}
			}
			c := kmsg.NewCreateTopicsRequestTopicConfig()
			c.Name, c.Value = "retention.bytes", &value
			t.Configs = append(t.Configs, c)
		}
		return nil, nil, false // not handled: the broker goes on with the request
	})
}

// boundFetches bounds a fetch by a share for each partition instead of all together.
// The broker, when it comes to a fetch's end within a partition, leaves out which of
// that one's transactions were aborted, and their records are read as committed. A
// share is known only where every fetch names all its partitions, which it does
// outside a fetch session.
func (b *Broker) boundFetches() {
	b.cluster.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req := kreq.(*kmsg.FetchRequest)
		partitions := 0
		for _, t := range req.Topics {
			partitions += len(t.Partitions)
		}
		if partitions == 0 {
			return nil, nil, false
		}
		share := max(req.MaxBytes/int32(partitions), leastShare)
		for _, t := range req.Topics {
			for i := range t.Partitions {
				t.Partitions[i].PartitionMaxBytes = min(t.Partitions[i].PartitionMaxBytes, share)
			}
		}
		req.MaxBytes = math.MaxInt32
		req.SessionID, req.SessionEpoch = 0, -1
		return nil, nil, false
	})
}

// prepare does what must happen before any client is served.
func (b *Broker) prepare(ctx context.Context, orphans []openTransaction) error {
	if err := b.abort(ctx, orphans); err != nil {
		return err
	}
	// A clean stop restores open transactions, and compaction inside one loses
	// committed values: then it waits for the next start.
	adm := kadm.NewClient(b.client)
	open, err := adm.ListTransactions(ctx, nil, []string{"Ongoing"})
	if err != nil {
		return fmt.Errorf("listing open transactions: %w", err)
	}
	if len(open) > 0 {
		b.log.log.Info("compaction skipped", "open_transactions", len(open))
		return nil
	}
	b.cluster.ApplyRetention() // first: what is kept takes room
	if err := b.compact(); err != nil {
		return fmt.Errorf("compacting: %w", err)
	}
	return b.rememberEmptied(ctx)
}

// compact leaves what the next start takes back if it fails or is killed.
func (b *Broker) compact() error {
	if err := keepPartitions(b.dir); err != nil {
		b.log.log.Warn("compaction skipped", "error", err)
		return nil
	}
	b.cluster.Compact()
	if err := b.log.failure(); err != nil {
		return err
	}
	return forgetKept(b.dir)
}

// abort writes the abort markers that a killed broker could not.
func (b *Broker) abort(ctx context.Context, orphans []openTransaction) error {
	for _, o := range orphans {
		t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
		t.Topic, t.Partitions = o.topic, []int32{o.partition}
		m := kmsg.NewWriteTxnMarkersRequestMarker()
		m.ProducerID, m.ProducerEpoch, m.Topics = o.producerID, o.epoch, append(m.Topics, t)
		req := kmsg.NewPtrWriteTxnMarkersRequest()
		req.Markers = append(req.Markers, m)
		resp, err := req.RequestWith(ctx, b.client.Broker(0))
		if err != nil {
			return fmt.Errorf("aborting a transaction on %s/%d: %w", o.topic, o.partition, err)
		}
		for _, m := range resp.Markers {
			for _, t := range m.Topics {
				for _, p := range t.Partitions {
					err := kerr.ErrorForCode(p.ErrorCode)
					if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) { // deleted since: nothing left to abort
						return fmt.Errorf("aborting a transaction on %s/%d: %w", o.topic, o.partition, err)
					}
				}
			}
		}
	}
	if len(orphans) > 0 {
		b.log.log.Info("transactions of the killed broker aborted", "partitions", len(orphans))
	}
	return nil
}

func (b *Broker) keepHouse(ctx context.Context, every time.Duration) {
	defer close(b.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.cluster.ApplyRetention()
			if err := b.rememberEmptied(ctx); err != nil && ctx.Err() == nil {
				b.log.log.Warn("noting emptied partitions", "error", err)
			}
		}
	}
}

// rememberEmptied notes where partitions end that retention has emptied: the
// broker forgets that at its next start, and would begin again at offset 0,
// below what groups have committed.
func (b *Broker) rememberEmptied(ctx context.Context) error {
	adm := kadm.NewClient(b.client)
	starts, err := adm.ListStartOffsets(ctx)
	if err != nil {
		return fmt.Errorf("listing start offsets: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx)
	if err != nil {
		return fmt.Errorf("listing end offsets: %w", err)
	}
	var errs []error
	starts.Each(func(s kadm.ListedOffset) {
		e, ok := ends.Lookup(s.Topic, s.Partition)
		if !ok || s.Err != nil || e.Err != nil || e.Offset == 0 || s.Offset < e.Offset {
			return
		}
		errs = append(errs, plantEnd(partitionDir(b.dir, s.Topic, s.Partition), e.Offset))
	})
	return errors.Join(errs...)
}

// kfakeLog passes on what kfake complains about, and keeps the first error so
// that Close can return it: kfake itself only logs a failed save.
type kfakeLog struct {
	log *slog.Logger

	mu  sync.Mutex
	err error
}

func (l *kfakeLog) Logf(level kfake.LogLevel, format string, args ...any) {
	// What compaction could not write is gone, and kfake only warns of it.
	failed := level == kfake.LogLevelError || level == kfake.LogLevelWarn && strings.HasPrefix(format, "rebuildSegments ")
	switch {
	case failed:
		msg := fmt.Sprintf(format, args...)
		l.mu.Lock()
		if l.err == nil {
			l.err = errors.New(msg)
		}
		l.mu.Unlock()
		l.log.Error("kafka broker", "detail", msg)
	case level == kfake.LogLevelWarn:
		l.log.Warn("kafka broker", "detail", fmt.Sprintf(format, args...))
	}
}

func (l *kfakeLog) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// The clean mark says that the last process closed the broker properly.
func cleanMark(dir string) string { return filepath.Join(dir, "clean") }

func setCleanMark(dir string) error { return os.WriteFile(cleanMark(dir), nil, 0o644) }

func takeCleanMark(dir string) (bool, error) {
	err := os.Remove(cleanMark(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
