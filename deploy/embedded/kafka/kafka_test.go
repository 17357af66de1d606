package kafka_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
)

// With childDir set the test binary is a broker that waits to be killed.
const childDir = "EMBEDDED_KAFKA_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		b, err := kafka.Open(context.Background(), kafka.Options{Dir: dir, Addr: "127.0.0.1:0"})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(b.Addr())
		select {}
	}
	os.Exit(m.Run())
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// startChild returns the address of a broker in a process of its own, and what kills it.
func startChild(t *testing.T, dir string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line), kill
}

func open(t *testing.T, o kafka.Options) *kafka.Broker {
	t.Helper()
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	b, err := kafka.Open(within(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

func client(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t *testing.T, addr, topic string, configs map[string]string) {
	t.Helper()
	m := map[string]*string{}
	for k, v := range configs {
		m[k] = &v
	}
	cl := client(t, addr)
	defer cl.Close() // now: a client outlives its broker by seconds of retries
	_, err := kadm.NewClient(cl).CreateTopic(within(t), 1, -1, m, topic)
	require.NoError(t, err)
}

// produce writes key=value records, each acknowledged before the next.
func produce(t *testing.T, cl *kgo.Client, topic string, keyValues ...string) {
	t.Helper()
	for _, kv := range keyValues {
		k, v, _ := strings.Cut(kv, "=")
		r := &kgo.Record{Topic: topic, Key: []byte(k), Value: []byte(v)}
		require.NoError(t, cl.ProduceSync(within(t), r).FirstErr())
	}
}

func produceTo(t *testing.T, addr, topic string, keyValues ...string) {
	t.Helper()
	cl := client(t, addr)
	defer cl.Close()
	produce(t, cl, topic, keyValues...)
}

// committed reads a partition to its end as a read_committed consumer sees it.
func committed(t *testing.T, addr, topic string) []string {
	t.Helper()
	cl := client(t, addr)
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(within(t), topic)
	require.NoError(t, err)
	end, ok := ends.Lookup(topic, 0)
	require.True(t, ok)
	reader := client(t, addr, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	defer reader.Close()
	got := []string{}
	for at := int64(0); at < end.Offset; {
		fetches := reader.PollFetches(within(t))
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			at = r.Offset + 1
			if !r.Attrs.IsControl() {
				got = append(got, string(r.Key)+"="+string(r.Value))
			}
		})
	}
	return got
}

func endOffset(t *testing.T, addr, topic string) int64 {
	t.Helper()
	cl := client(t, addr)
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(within(t), topic)
	require.NoError(t, err)
	end, ok := ends.Lookup(topic, 0)
	require.True(t, ok)
	require.NoError(t, end.Err)
	return end.Offset
}

func TestKilledBrokerKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	createTopic(t, addr, "shop.events", nil)
	produceTo(t, addr, "shop.events", "a=1", "b=2")

	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "shop.events", Partition: 0, At: 2, LeaderEpoch: -1, Metadata: "claimed to 7"})
	require.NoError(t, kadm.NewClient(client(t, addr)).CommitAllOffsets(within(t), "shop.sender", offsets))

	tx := client(t, addr, kgo.TransactionalID("shop.renderer-0"))
	require.NoError(t, tx.BeginTransaction())
	produce(t, tx, "shop.events", "c=3")
	require.NoError(t, tx.EndTransaction(within(t), kgo.TryCommit))
	require.NoError(t, tx.BeginTransaction())
	produce(t, tx, "shop.events", "never=committed")
	kill()

	addr, kill = startChild(t, dir)
	assert.Equal(t, []string{"a=1", "b=2", "c=3"}, committed(t, addr, "shop.events"))
	got, err := kadm.NewClient(client(t, addr)).FetchOffsets(within(t), "shop.sender")
	require.NoError(t, err)
	at, ok := got.Lookup("shop.events", 0)
	require.True(t, ok)
	assert.EqualValues(t, 2, at.At)
	assert.Equal(t, "claimed to 7", at.Metadata)

	// The same producer commits its next transaction; after one more kill the
	// marker of that one must not cover what the first kill left open.
	tx = client(t, addr, kgo.TransactionalID("shop.renderer-0"))
	require.NoError(t, tx.BeginTransaction())
	produce(t, tx, "shop.events", "d=4")
	require.NoError(t, tx.EndTransaction(within(t), kgo.TryCommit))
	kill()

	addr, _ = startChild(t, dir)
	assert.Equal(t, []string{"a=1", "b=2", "c=3", "d=4"}, committed(t, addr, "shop.events"))
}

func TestCleanStopKeepsAnOpenTransactionOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := kafka.Open(within(t), kafka.Options{Dir: dir, Addr: "127.0.0.1:0"})
	require.NoError(t, err)
	port := first.Addr()
	createTopic(t, port, "shop.profiles", map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"})
	produceTo(t, port, "shop.profiles", "alice=old", "alice=committed")
	tx := client(t, port, kgo.TransactionalID("shop.resolver-0"))
	require.NoError(t, tx.BeginTransaction())
	produce(t, tx, "shop.profiles", "alice=uncommitted", "bob=uncommitted")
	require.NoError(t, first.Close())

	// Compaction inside the transaction would drop alice=committed for ever.
	second, err := kafka.Open(within(t), kafka.Options{Dir: dir, Addr: port})
	require.NoError(t, err)
	require.NoError(t, tx.EndTransaction(within(t), kgo.TryAbort))
	assert.Equal(t, []string{"alice=old", "alice=committed"}, committed(t, port, "shop.profiles"))
	require.NoError(t, second.Close())

	third := open(t, kafka.Options{Dir: dir})
	assert.Equal(t, []string{"alice=committed"}, committed(t, third.Addr(), "shop.profiles"), "compacted at the next start")
}

func TestEmptiedPartitionKeepsItsEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, kafka.Options{Dir: dir, Housekeeping: 20 * time.Millisecond})
	createTopic(t, b.Addr(), "shop.ticks", map[string]string{"retention.ms": "1"})
	produceTo(t, b.Addr(), "shop.ticks", "0=a", "0=b", "0=c")
	partition := filepath.Join(dir, "partitions", "shop.ticks-0")
	require.Eventually(t, func() bool {
		info, err := os.Stat(filepath.Join(partition, "3.dat")) // where the next record will go
		return err == nil && info.Size() == 0
	}, 20*time.Second, 5*time.Millisecond)

	var killed string
	require.Eventually(t, func() bool { // until no file was removed meanwhile
		killed = filepath.Join(t.TempDir(), "killed")
		return os.CopyFS(killed, os.DirFS(dir)) == nil // as kill -9 leaves it
	}, 20*time.Second, 5*time.Millisecond)
	require.NoError(t, b.Close())

	for name, dir := range map[string]string{"stopped": dir, "killed": killed} {
		t.Run(name, func(t *testing.T) {
			b := open(t, kafka.Options{Dir: dir, Housekeeping: time.Hour})
			assert.EqualValues(t, 3, endOffset(t, b.Addr(), "shop.ticks"))
			produceTo(t, b.Addr(), "shop.ticks", "0=d")
			assert.EqualValues(t, 4, endOffset(t, b.Addr(), "shop.ticks"))
			assert.Equal(t, []string{"0=d"}, committed(t, b.Addr(), "shop.ticks"))
		})
	}
}

// The broker removes what it compacts and then writes it anew. It is killed as
// soon as the segment is another file, or none; now and then that is too late to
// find anything.
func TestABrokerKilledWhileItCompactsLosesNothing(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{false, true} {
		t.Run(fmt.Sprintf("clean=%t", clean), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var addr string
			var stop func()
			if clean {
				b := open(t, kafka.Options{Dir: dir})
				addr, stop = b.Addr(), func() { require.NoError(t, b.Close()) }
			} else {
				addr, stop = startChild(t, dir)
			}
			createTopic(t, addr, "shop.profiles", map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"})
			const people = 4000
			writer := client(t, addr, kgo.DefaultProduceTopic("shop.profiles"), kgo.ProducerBatchCompression(kgo.NoCompression()))
			want := make([]string, people)
			for i := range 2 * people {
				key, value := strconv.Itoa(i%people), strings.Repeat("x", 2000)+strconv.Itoa(i)
				want[i%people] = key + "=" + value
				writer.Produce(within(t), &kgo.Record{Key: []byte(key), Value: []byte(value)}, func(_ *kgo.Record, err error) { assert.NoError(t, err) })
			}
			require.NoError(t, writer.Flush(within(t)))
			writer.Close()
			stop()

			segment := filepath.Join(dir, "partitions", "shop.profiles-0", "0.dat")
			before, err := os.Stat(segment)
			require.NoError(t, err)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childDir+"="+dir)
			require.NoError(t, cmd.Start())
			for ctx := within(t); ctx.Err() == nil; runtime.Gosched() {
				if now, err := os.Stat(segment); err != nil || !os.SameFile(before, now) {
					break
				}
			}
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())

			addr, kill := startChild(t, dir)
			have := map[string]bool{}
			for _, keyValue := range committed(t, addr, "shop.profiles") {
				have[keyValue] = true
			}
			lost := slices.DeleteFunc(want, func(keyValue string) bool { return have[keyValue] })
			assert.Zero(t, len(lost), "people lost") // the values are too long to print
			produceTo(t, addr, "shop.profiles", "later=1")
			kill()
			addr, _ = startChild(t, dir)
			assert.Contains(t, committed(t, addr, "shop.profiles"), "later=1", "what was kept is forgotten")
		})
	}
}

func TestMessagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := open(t, kafka.Options{Dir: t.TempDir(), BoundedBytes: 4096})
	bytesOf := func(topic string) string {
		configs, err := kadm.NewClient(client(t, b.Addr())).DescribeTopicConfigs(within(t), topic)
		require.NoError(t, err)
		for _, c := range configs[0].Configs {
			if c.Key == "retention.bytes" {
				return c.MaybeValue()
			}
		}
		return ""
	}
	createTopic(t, b.Addr(), "shop.messages.email.bulk", map[string]string{"retention.ms": "1209600000"})
	createTopic(t, b.Addr(), "shop.retries.email", map[string]string{"retention.bytes": "8192"})
	createTopic(t, b.Addr(), "shop.message-requests.bulk", nil)
	assert.Equal(t, "4096", bytesOf("shop.messages.email.bulk"))
	assert.Equal(t, "8192", bytesOf("shop.retries.email"), "the creator's own limit stands")
	assert.Equal(t, "-1", bytesOf("shop.message-requests.bulk"))
}

func TestTopicsAreNotMadeByNamingThem(t *testing.T) {
	t.Parallel()
	b := open(t, kafka.Options{Dir: t.TempDir()})
	cl := client(t, b.Addr(), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
	err := cl.ProduceSync(within(t), &kgo.Record{Topic: "shop.typo", Value: []byte("x")}).FirstErr()
	assert.True(t, errors.Is(err, kerr.UnknownTopicOrPartition), "got %v", err)
}

func TestTakenPortIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = kafka.Open(within(t), kafka.Options{Dir: t.TempDir(), Addr: l.Addr().String()})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	assert.ErrorContains(t, err, l.Addr().String())
}

// What was aborted is not read as committed, however little of the log a fetch may
// carry.
func TestAnAbortedTransactionIsHiddenFromSmallFetches(t *testing.T) {
	b := open(t, kafka.Options{Dir: t.TempDir()})
	createTopic(t, b.Addr(), "t", nil)
	cl := client(t, b.Addr(), kgo.TransactionalID("x"), kgo.DefaultProduceTopic("t"))
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		require.NoError(t, cl.BeginTransaction())
		for i := range 3 { // batches
			require.NoError(t, cl.ProduceSync(within(t), kgo.StringRecord(fmt.Sprintf("%t%d", end, i))).FirstErr())
		}
		require.NoError(t, cl.EndTransaction(within(t), end))
	}
	for _, bytes := range []int32{1, 100, 1 << 20} {
		reader := client(t, b.Addr(), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxBytes(bytes), kgo.FetchMaxPartitionBytes(bytes))
		var got []string
		for len(got) < 3 {
			fetches := reader.PollFetches(within(t))
			require.NoError(t, fetches.Err())
			fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
		}
		require.Equal(t, []string{"true0", "true1", "true2"}, got, "%d bytes", bytes)
	}
}
