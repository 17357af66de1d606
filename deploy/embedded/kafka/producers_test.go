package kafka_test

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
)

// producer writes single batches under sequences of its own choice, as a client
// does that never heard an answer.
type producer struct {
	t     *testing.T
	id    int64
	epoch int16
}

func newProducer(t *testing.T, addr string) *producer {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(within(t), client(t, addr))
	require.NoError(t, err)
	require.NoError(t, kerr.ErrorForCode(resp.ErrorCode))
	return &producer{t, resp.ProducerID, resp.ProducerEpoch}
}

// write returns the offset that the broker says the batch has.
func (p *producer) write(addr, topic string, sequence int32, value string) (int64, error) {
	p.t.Helper()
	record := kmsg.Record{Value: []byte(value)}
	record.Length = int32(len(record.AppendTo(nil)) - 1)
	batch := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, ProducerID: p.id, ProducerEpoch: p.epoch, FirstSequence: sequence, NumRecords: 1, Records: record.AppendTo(nil)}
	batch.Length = int32(len(batch.AppendTo(nil)) - 12)
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))

	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.Produce), 9) // topics by name
	cl := client(p.t, addr, kgo.MaxVersions(versions))
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = raw
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, part)
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = -1, 5000, append(req.Topics, t)
	resp, err := cl.Broker(0).Request(within(p.t), req)
	require.NoError(p.t, err)
	said := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	return said.BaseOffset, kerr.ErrorForCode(said.ErrorCode)
}

// A broker that dies before it answers has the batch, and its producer sends it
// again. Twice in the log it would be twice in somebody's mailbox.
func TestABatchThatIsSentAgainAfterAKillIsInTheLogOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// What a clean stop has noted is out of date after a kill.
	clean, err := kafka.Open(within(t), kafka.Options{Dir: dir, Addr: "127.0.0.1:0"})
	require.NoError(t, err)
	createTopic(t, clean.Addr(), "shop.retries.email", nil)
	p := newProducer(t, clean.Addr())
	at, err := p.write(clean.Addr(), "shop.retries.email", 0, "one")
	require.NoError(t, err)
	require.Zero(t, at)
	require.NoError(t, clean.Close())

	addr, kill := startChild(t, dir)
	_, err = p.write(addr, "shop.retries.email", 1, "two")
	require.NoError(t, err)
	kill()

	addr, kill = startChild(t, dir)
	at, err = p.write(addr, "shop.retries.email", 1, "two")
	require.NoError(t, err)
	assert.EqualValues(t, 1, at, "it has it already")
	at, err = p.write(addr, "shop.retries.email", 2, "three")
	require.NoError(t, err, "and goes on after it")
	assert.EqualValues(t, 2, at)
	_, err = p.write(addr, "shop.retries.email", 7, "a gap")
	require.ErrorIs(t, err, kerr.OutOfOrderSequenceNumber)
	kill()

	addr, _ = startChild(t, dir)
	assert.EqualValues(t, 3, endOffset(t, addr, "shop.retries.email"))
}

// tear takes the last bytes from a file, as a kill does that comes while it is written.
func tear(t *testing.T, path string, bytes int64) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, info.Size()-bytes))
}

// A batch of which only a part was written is not in the log, so it is taken again.
func TestATornBatchIsTakenAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	createTopic(t, addr, "shop.events", nil)
	p := newProducer(t, addr)
	for sequence := range int32(2) {
		_, err := p.write(addr, "shop.events", sequence, "a value of some length")
		require.NoError(t, err)
	}
	kill()
	tear(t, filepath.Join(dir, "partitions", "shop.events-0", "0.dat"), 5)

	addr, _ = startChild(t, dir)
	at, err := p.write(addr, "shop.events", 1, "a value of some length")
	require.NoError(t, err)
	assert.EqualValues(t, 1, at)
	assert.EqualValues(t, 2, endOffset(t, addr, "shop.events"))
}

// The broker cuts off a marker of which only a part was written. What it was to
// end is open then, and the marker of the next transaction must not cover it.
func TestATransactionWithATornMarkerIsAborted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	createTopic(t, addr, "shop.events", nil)
	commit := func(keyValue string) {
		tx := client(t, addr, kgo.TransactionalID("shop.renderer-0"))
		require.NoError(t, tx.BeginTransaction())
		produce(t, tx, "shop.events", keyValue)
		require.NoError(t, tx.EndTransaction(within(t), kgo.TryCommit))
	}
	commit("a=torn")
	kill()
	tear(t, filepath.Join(dir, "partitions", "shop.events-0", "0.dat"), 5)

	addr, kill = startChild(t, dir)
	commit("b=2")
	kill()
	addr, _ = startChild(t, dir)
	assert.Equal(t, []string{"b=2"}, committed(t, addr, "shop.events"))
}

// The broker writes a batch and then, to another file, whether it belongs to a
// transaction. A kill in between must not let an uncommitted record be read, nor
// one of a later transaction that was aborted.
func TestABatchWithoutItsIndexEntryStaysInItsTransaction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	createTopic(t, addr, "shop.events", nil)
	produceTo(t, addr, "shop.events", "a=1")
	begin := func(keyValue string) *kgo.Client {
		tx := client(t, addr, kgo.TransactionalID("shop.renderer-0"))
		require.NoError(t, tx.BeginTransaction())
		produce(t, tx, "shop.events", keyValue)
		return tx
	}
	begin("b=open")
	kill()
	index := filepath.Join(dir, "partitions", "shop.events-0", "0.idx")
	info, err := os.Stat(index)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(index, info.Size()/2))

	addr, kill = startChild(t, dir)
	assert.Equal(t, []string{"a=1"}, committed(t, addr, "shop.events"))
	require.NoError(t, begin("c=aborted").EndTransaction(within(t), kgo.TryAbort))
	kill()
	addr, _ = startChild(t, dir)
	assert.Equal(t, []string{"a=1"}, committed(t, addr, "shop.events"))
}
