package kafka_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
)

// The files of a broker that was killed in a commit are some from before it and some
// from after it. A marker for one partition and none for another would send some of a
// batch twice; markers and no offsets all of it.
func TestAKillInTheMiddleOfACommitLeavesItWhole(t *testing.T) {
	t.Parallel()
	live := t.TempDir()
	b := open(t, kafka.Options{Dir: live})
	for _, topic := range []string{"shop.in", "shop.a", "shop.b"} {
		createTopic(t, b.Addr(), topic, nil)
	}
	adm := kadm.NewClient(client(t, b.Addr()))
	commitOffset := func(at int64) {
		var offsets kadm.Offsets
		offsets.AddOffset("shop.in", 0, at, -1)
		require.NoError(t, adm.CommitAllOffsets(within(t), "shop.renderer", offsets))
	}
	commitOffset(3)
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4) // as the services do
	tx := client(t, b.Addr(), kgo.TransactionalID("shop.renderer-0"), kgo.MaxVersions(versions))
	require.NoError(t, tx.BeginTransaction())
	produce(t, tx, "shop.a", "k=1")
	produce(t, tx, "shop.b", "k=2")
	require.NoError(t, stageOffset(t, tx, "shop.renderer-0", "shop.renderer", "shop.in", 7))

	copyOf := func(from string) string {
		dir := filepath.Join(t.TempDir(), "kafka")
		require.NoError(t, os.CopyFS(dir, os.DirFS(from)))
		return dir
	}
	before := copyOf(live)
	require.NoError(t, tx.EndTransaction(within(t), kgo.TryCommit))
	after := copyOf(live)
	commitOffset(9)
	later := copyOf(live)

	const note, group, a0, b0 = "commit.json", "groups.log", "partitions/shop.a-0", "partitions/shop.b-0"
	all := []string{"k=1"}
	for name, c := range map[string]struct {
		from   string
		of     []string // of them what is from after the commit
		torn   string
		a      []string
		offset int64
	}{
		"not begun":                           {before, nil, "", []string{}, 3},
		"not begun, a batch not in the index": {before, nil, a0 + "/0.idx", []string{}, 3},
		"begun":                               {before, []string{note}, "", all, 7},
		"a marker written":                    {before, []string{note, a0}, "", all, 7},
		"half a marker written":               {before, []string{note, a0}, a0 + "/0.dat", all, 7},
		"a marker not in the index":           {before, []string{note, a0}, a0 + "/0.idx", all, 7},
		"all markers written":                 {before, []string{note, a0, b0}, "", all, 7},
		"all but the broker's own note":       {before, []string{note, a0, b0, group}, "", all, 7},
		"half an offset written":              {before, []string{note, a0, b0, group}, group, all, 7},
		"done":                                {after, nil, "", all, 7},
		"done, and somebody is past it":       {later, nil, "", all, 9},
		"half the note of it is written":      {before, []string{note}, note, []string{}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyOf(c.from)
			for _, file := range c.of {
				require.NoError(t, os.RemoveAll(filepath.Join(dir, file)))
				if info, err := os.Stat(filepath.Join(after, file)); err == nil && info.IsDir() {
					require.NoError(t, os.CopyFS(filepath.Join(dir, file), os.DirFS(filepath.Join(after, file))))
					continue
				}
				content, err := os.ReadFile(filepath.Join(after, file))
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), content, 0o644))
			}
			if c.torn != "" {
				tear(t, filepath.Join(dir, c.torn), 11)
			}
			for range 2 { // killed once more, it is the same
				addr, kill := startChild(t, dir)
				assert.Equal(t, c.a, committed(t, addr, "shop.a"))
				assert.Len(t, committed(t, addr, "shop.b"), len(c.a))
				offsets, err := kadm.NewClient(client(t, addr)).FetchOffsets(within(t), "shop.renderer")
				require.NoError(t, err)
				at, _ := offsets.Lookup("shop.in", 0)
				assert.Equal(t, c.offset, at.At)
				kill()
			}
		})
	}
}

// A producer that was replaced is refused, and what it asked for is not finished.
func TestACommitThatWasRefusedIsNotFinished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, kill := startChild(t, dir)
	for _, topic := range []string{"shop.in", "shop.a"} {
		createTopic(t, addr, topic, nil)
	}
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4)
	former := client(t, addr, kgo.TransactionalID("shop.renderer-0"), kgo.MaxVersions(versions))
	require.NoError(t, former.BeginTransaction())
	produce(t, former, "shop.a", "k=1")

	present := client(t, addr, kgo.TransactionalID("shop.renderer-0"), kgo.MaxVersions(versions))
	require.NoError(t, present.BeginTransaction())
	produce(t, present, "shop.a", "k=2")
	require.Error(t, stageOffset(t, former, "shop.renderer-0", "shop.renderer", "shop.in", 7))
	require.Error(t, former.EndTransaction(within(t), kgo.TryCommit))
	kill()

	addr, _ = startChild(t, dir)
	assert.Empty(t, committed(t, addr, "shop.a"))
	offsets, err := kadm.NewClient(client(t, addr)).FetchOffsets(within(t), "shop.renderer")
	if err == nil {
		_, found := offsets.Lookup("shop.in", 0)
		assert.False(t, found)
	} else {
		require.ErrorIs(t, err, kerr.GroupIDNotFound)
	}
}

// stageOffset adds a group's offset to the transaction of a client.
func stageOffset(t *testing.T, tx *kgo.Client, id, group, topic string, at int64) error {
	t.Helper()
	producer, epoch, err := tx.ProducerID(within(t))
	require.NoError(t, err)
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = id, producer, epoch, group
	added, err := add.RequestWith(within(t), tx)
	require.NoError(t, err)
	if err := kerr.ErrorForCode(added.ErrorCode); err != nil {
		t.Log("adding the group: ", err)
	}
	p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	p.Offset = at
	topics, err := kadm.NewClient(tx).ListTopics(within(t), topic)
	require.NoError(t, err)
	of := kmsg.NewTxnOffsetCommitRequestTopic()
	of.TopicID, of.Partitions = topics[topic].ID, append(of.Partitions, p)
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = id, producer, epoch, group
	req.Topics = append(req.Topics, of)
	resp, err := req.RequestWith(within(t), tx)
	require.NoError(t, err)
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}
