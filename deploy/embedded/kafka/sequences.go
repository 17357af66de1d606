package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// A producer whose broker died before it answered sends its batch again, and the
// broker must know it: by producer id, epoch and sequence. kfake writes what it
// knows of that when it is closed, and reads it when it starts. After a kill there is
// none, or what an earlier close has left; the log itself tells, as in Kafka.

// More places in a record batch.
const (
	batchCRCAt       = 17 // Castagnoli, over what follows it
	batchLastDeltaAt = 23
	batchSequenceAt  = 53
	batchCountAt     = 57
	// keptBatches is how many batches of a producer are known again in a partition.
	keptBatches = 5
)

// sequenceWindow is kfake's form of what it knows of one producer in one partition.
type sequenceWindow struct {
	Producer  int64                      `json:"pid"`
	Topic     string                     `json:"topic"`
	Partition int32                      `json:"partition"`
	Entries   [keptBatches]sequenceEntry `json:"entries"`
	Count     uint8                      `json:"count"`
	At        uint8                      `json:"at"`
	Epoch     int16                      `json:"epoch"`
	Seen      bool                       `json:"seen"`
	Next      int32                      `json:"next_seq"`
}

type sequenceEntry struct {
	First  int32 `json:"first_seq"`
	Next   int32 `json:"next_seq"`
	Offset int64 `json:"offset"`
}

// restoreSequences writes kfake's file of sequences anew from the log. It is
// called after a kill, before the broker starts.
func restoreSequences(dir string) error {
	all := struct {
		Version int              `json:"version"`
		Windows []sequenceWindow `json:"windows"`
	}{Version: 1}
	err := eachPartition(dir, func(path, topic string, partition int32) error {
		bases, err := segments(path)
		if err != nil {
			return err
		}
		windows := map[int64]*sequenceWindow{}
		for _, base := range bases {
			if err := scanSequences(segmentPath(path, base, ".dat"), windows); err != nil {
				return err
			}
		}
		for id, w := range windows {
			w.Producer, w.Topic, w.Partition = id, topic, partition
			all.Windows = append(all.Windows, *w)
		}
		return nil
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "seq_windows.json")
	if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func scanSequences(path string, windows map[int64]*sequenceWindow) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var head [batchHeaderBytes]byte
	for at := int64(0); ; {
		if _, err := f.ReadAt(head[:], at); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		end := at + batchBeforeCount + int64(binary.BigEndian.Uint32(head[batchLengthAt:]))
		if end > info.Size() {
			return nil // torn: the broker cuts it off, and its producer must write it again
		}
		if end == info.Size() {
			if whole, err := intact(f, at, end); err != nil || !whole {
				return err
			}
		}
		id := int64(binary.BigEndian.Uint64(head[batchProducerAt:]))
		if id >= 0 && binary.BigEndian.Uint16(head[batchAttrsAt:])&attrControl == 0 {
			count := int32(binary.BigEndian.Uint32(head[batchCountAt:]))
			if int32(binary.BigEndian.Uint32(head[batchLastDeltaAt:])) != count-1 {
				delete(windows, id) // compacted: its numbers are not those that were written
			} else {
				if windows[id] == nil {
					windows[id] = &sequenceWindow{}
				}
				windows[id].push(int16(binary.BigEndian.Uint16(head[batchEpochAt:])), int32(binary.BigEndian.Uint32(head[batchSequenceAt:])), count,
					int64(binary.BigEndian.Uint64(head[:])))
			}
		}
		at = end
	}
}

// intact tells whether a batch is what was written.
func intact(f *os.File, at, end int64) (bool, error) {
	if end-at <= batchAttrsAt {
		return false, nil
	}
	batch := make([]byte, end-at)
	if _, err := f.ReadAt(batch, at); err != nil {
		return false, fmt.Errorf("reading the last batch of %s: %w", f.Name(), err)
	}
	return crc32.Checksum(batch[batchAttrsAt:], crc32.MakeTable(crc32.Castagnoli)) == binary.BigEndian.Uint32(batch[batchCRCAt:]), nil
}

// push notes a batch. Sequences begin anew with each epoch and after the largest one.
func (w *sequenceWindow) push(epoch int16, first, count int32, offset int64) {
	if !w.Seen || w.Epoch != epoch {
		*w = sequenceWindow{Seen: true, Epoch: epoch}
	}
	const sequences = 1<<31 - 1 // as kfake counts
	w.Next = int32((int64(first) + int64(count)) % sequences)
	w.Entries[w.At] = sequenceEntry{first, w.Next, offset}
	w.At = (w.At + 1) % keptBatches
	w.Count = min(w.Count+1, keptBatches)
}
