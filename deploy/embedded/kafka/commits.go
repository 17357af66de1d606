package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The end of a transaction is many writes: a marker in each of its partitions, then
// an offset for each partition of its groups. A kill between two of them would leave
// it in part. So a commit is written down first, in one write, and the start after a
// kill writes what is missing.

// commitFile holds the commit that is under way, as JSON; it is empty if none is.
const commitFile = "commit.json"

type commit struct {
	Producer int64          `json:"producer"`
	Epoch    int16          `json:"epoch"`
	Offsets  []commitOffset `json:"offsets"`
}

type commitOffset struct {
	Group     string  `json:"group"`
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Offset    int64   `json:"offset"`
	Epoch     int32   `json:"epoch"` // of the partition's leader
	Metadata  *string `json:"metadata,omitempty"`
}

// commits watches the requests of which transactions are made.
type commits struct {
	cluster *kfake.Cluster
	log     *slog.Logger
	file    *os.File
	written bool               // file holds a commit
	staged  map[string]*commit // by transactional id: what its end will commit
}

// watchCommits begins to write down what is committed; the file is the caller's to close.
func watchCommits(cluster *kfake.Cluster, dir string, log *slog.Logger) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, commitFile), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	c := &commits{cluster: cluster, log: log, file: file, staged: map[string]*commit{}}
	for _, key := range []kmsg.Key{kmsg.InitProducerID, kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.TxnOffsetCommit, kmsg.EndTxn} {
		cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			if err := c.see(req); err != nil {
				c.log.Error("a kill in the middle of this commit could leave it in part", "error", err)
			}
			return nil, nil, false
		})
	}
	return file, nil
}

// see is called before the broker does what is asked, one request after another.
func (c *commits) see(req kmsg.Request) error {
	if c.written { // and done, since the next request is here
		if err := c.file.Truncate(0); err != nil {
			return err
		}
		c.written = false
	}
	switch req := req.(type) {
	case *kmsg.InitProducerIDRequest:
		if req.TransactionalID != nil {
			delete(c.staged, *req.TransactionalID)
		}
	case *kmsg.TxnOffsetCommitRequest:
		c.stage(req)
	case *kmsg.EndTxnRequest:
		end := c.of(req.TransactionalID, req.ProducerID, req.ProducerEpoch)
		delete(c.staged, req.TransactionalID)
		if !req.Commit {
			return nil
		}
		text, err := json.Marshal(end)
		if err != nil {
			return err
		}
		c.written = true
		_, err = c.file.WriteAt(text, 0)
		return err
	}
	return nil
}

// of returns what is staged for the transaction of a producer.
func (c *commits) of(id string, producer int64, epoch int16) *commit {
	s := c.staged[id]
	if s == nil || s.Producer != producer || s.Epoch != epoch {
		s = &commit{Producer: producer, Epoch: epoch}
		c.staged[id] = s
	}
	return s
}

func (c *commits) stage(req *kmsg.TxnOffsetCommitRequest) {
	s := c.of(req.TransactionalID, req.ProducerID, req.ProducerEpoch)
	for _, t := range req.Topics {
		name := t.Topic
		if name == "" {
			info := c.cluster.TopicIDInfo(t.TopicID)
			if info == nil {
				continue // deleted: the broker refuses it
			}
			name = info.Topic
		}
		for _, p := range t.Partitions {
			s.Offsets = append(s.Offsets, commitOffset{req.Group, name, p.Partition, p.Offset, p.LeaderEpoch, p.Metadata})
		}
	}
}

// finishCommit writes what a kill has left out of a commit, and returns the open
// transactions that are not part of it. It is called before the broker starts, and
// writes what is missing only, so that it may be killed too.
func finishCommit(dir string, open []openTransaction) ([]openTransaction, error) {
	text, err := os.ReadFile(filepath.Join(dir, commitFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var c commit
	if json.Unmarshal(text, &c) != nil {
		return open, nil // none, or the kill came before the broker had begun
	}
	epoch, err := currentEpoch(dir, c.Producer)
	if err != nil {
		return nil, err
	}
	if epoch != c.Epoch {
		return open, nil // refused: the producer had a successor
	}
	var others []openTransaction
	for _, o := range open {
		if o.producerID != c.Producer || o.epoch != c.Epoch {
			others = append(others, o)
			continue
		}
		if err := appendCommitMarker(partitionDir(dir, o.topic, o.partition), c.Producer, c.Epoch); err != nil {
			return nil, fmt.Errorf("finishing a commit on %s/%d: %w", o.topic, o.partition, err)
		}
	}
	return others, appendOffsets(dir, c.Offsets)
}

// currentEpoch is the last epoch that a producer was given; -1 if there is none.
func currentEpoch(dir string, producer int64) (int16, error) {
	epoch := int16(-1)
	err := eachEntry(filepath.Join(dir, "pids.log"), func(raw []byte) {
		var e struct {
			Producer int64 `json:"pid"`
			Epoch    int16 `json:"epoch"`
		}
		if json.Unmarshal(raw, &e) == nil && e.Producer == producer {
			epoch = e.Epoch
		}
	})
	return epoch, err
}

// groupEntry is kfake's form of a committed offset in groups.log.
type groupEntry struct {
	Type      string  `json:"type"` // commit or delete
	Group     string  `json:"g"`
	Topic     string  `json:"t"`
	Partition int32   `json:"p,omitempty"`
	Offset    int64   `json:"o,omitempty"`
	Epoch     int32   `json:"e,omitempty"`
	Metadata  *string `json:"m,omitempty"`
	At        int64   `json:"lc"` // Unix milliseconds
}

// appendOffsets commits offsets where a later one is not committed already.
func appendOffsets(dir string, offsets []commitOffset) error {
	type place struct {
		group, topic string
		partition    int32
	}
	path := filepath.Join(dir, "groups.log")
	at := map[place]int64{}
	if err := eachEntry(path, func(raw []byte) {
		var e groupEntry
		if json.Unmarshal(raw, &e) != nil {
			return
		}
		switch p := (place{e.Group, e.Topic, e.Partition}); e.Type {
		case "commit":
			at[p] = e.Offset
		case "delete":
			delete(at, p)
		}
	}); err != nil {
		return err
	}
	var missing []byte
	for _, o := range offsets {
		p := place{o.Group, o.Topic, o.Partition}
		if have, ok := at[p]; ok && have >= o.Offset {
			continue
		}
		at[p] = o.Offset
		raw, err := json.Marshal(groupEntry{"commit", o.Group, o.Topic, o.Partition, o.Offset, o.Epoch, o.Metadata, time.Now().UnixMilli()})
		if err != nil {
			return err
		}
		missing = appendEntry(missing, raw)
	}
	return appendTo(path, missing)
}

// appendCommitMarker ends a producer's transaction in a partition.
func appendCommitMarker(path string, producer int64, epoch int16) error {
	bases, err := segments(path)
	if err != nil {
		return err
	}
	base := bases[len(bases)-1] // there is one: it has the transaction
	next, leader, stamp := base, int32(0), int64(0)
	if err := mendSegment(path, base, func(b *kmsg.RecordBatch, _ bool) {
		next, leader, stamp = b.FirstOffset+int64(b.LastOffsetDelta)+1, b.PartitionLeaderEpoch, max(stamp, b.MaxTimestamp)
	}); err != nil {
		return err
	}
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyTypeCommit}
	value := kmsg.EndTxnMarker{}
	record := kmsg.Record{Key: key.AppendTo(nil), Value: value.AppendTo(nil)}
	record.Length = int32(len(record.AppendTo(nil)) - 1) // one byte of its own
	b := kmsg.RecordBatch{
		FirstOffset: next, PartitionLeaderEpoch: leader, Magic: 2, Attributes: attrControl | attrTransaction,
		FirstTimestamp: stamp, MaxTimestamp: stamp, ProducerID: producer, ProducerEpoch: epoch, FirstSequence: -1,
		NumRecords: 1, Records: record.AppendTo(nil),
	}
	b.Length = int32(len(b.AppendTo(nil)) - batchBeforeCount)
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[batchSumAt:], crc32.Checksum(raw[batchAttrsAt:], castagnoli))
	if err := appendTo(segmentPath(path, base, ".dat"), raw); err != nil {
		return err
	}
	return appendTo(segmentPath(path, base, ".idx"), indexEntry(leader, false))
}

// kfake's logs are entries of a length, a checksum (of what follows it), a version
// and JSON, in the order of little-endian machines.
const (
	entryBeforeCount = 4
	entrySumAt       = 4
	entryVersionAt   = 8
	entryJSONAt      = 10
	entryVersion     = 1
)

// eachEntry calls fn for the entries of a log, and cuts off a torn end, as the broker
// would. A log that does not exist is empty.
func eachEntry(path string, fn func(json []byte)) error {
	log, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	done := int64(0)
	for rest := log; len(rest) >= entryJSONAt; rest = log[done:] {
		size := entryVersionAt + int64(binary.LittleEndian.Uint32(rest))
		if size < entryJSONAt || size > int64(len(rest)) ||
			crc32.Checksum(rest[entryVersionAt:size], castagnoli) != binary.LittleEndian.Uint32(rest[entrySumAt:]) {
			break
		}
		fn(rest[entryJSONAt:size])
		done += size
	}
	return cutTo(path, done)
}

func appendEntry(b, raw []byte) []byte {
	at := len(b)
	b = append(slices.Grow(b, entryJSONAt+len(raw)), make([]byte, entryJSONAt)...)
	b = append(b, raw...)
	e := b[at:]
	binary.LittleEndian.PutUint32(e, uint32(len(e)-entryVersionAt))
	binary.LittleEndian.PutUint16(e[entryVersionAt:], entryVersion)
	binary.LittleEndian.PutUint32(e[entrySumAt:], crc32.Checksum(e[entryVersionAt:], castagnoli))
	return b
}
