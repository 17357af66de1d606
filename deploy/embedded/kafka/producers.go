package kafka

import (
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// openTransaction is a producer whose records in a partition have no marker.
type openTransaction struct {
	topic      string
	partition  int32
	producerID int64
	epoch      int16
}

// keptBatches is how many batches of a producer are known again in a partition.
const keptBatches = 5

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

// restoreProducers reads from the log what a killed broker knew of its
// producers. It is called before the broker starts, returns the transactions
// that are open, and writes kfake's file of sequences anew.
//
// A producer whose broker died before it answered sends its batch again, and
// the broker must know it: by producer id, epoch and sequence. kfake writes what
// it knows of that when it is closed, and reads it when it starts. After a kill
// there is none, or what an earlier close has left; the log itself tells, as in
// Kafka.
func restoreProducers(dir string) ([]openTransaction, error) {
	var open []openTransaction
	sequences := struct {
		Version int              `json:"version"`
		Windows []sequenceWindow `json:"windows"`
	}{Version: 1}
	err := eachPartition(dir, func(path, topic string, partition int32) error {
		bases, err := segments(path)
		if err != nil {
			return err
		}
		epochs := map[int64]int16{} // of the producers with an open transaction
		windows := map[int64]*sequenceWindow{}
		note := func(b *kmsg.RecordBatch, inTx bool) {
			id := b.ProducerID
			if b.Attributes&attrControl != 0 {
				delete(epochs, id)
				return
			}
			if inTx {
				epochs[id] = b.ProducerEpoch
			}
			switch {
			case id < 0: // it has no sequences
			case b.LastOffsetDelta != b.NumRecords-1:
				delete(windows, id) // compacted: its numbers are not those that were written
			default:
				if windows[id] == nil {
					windows[id] = &sequenceWindow{}
				}
				windows[id].push(b)
			}
		}
		for _, base := range bases {
			if err := mendSegment(path, base, note); err != nil {
				return err
			}
		}
		for id, epoch := range epochs {
			open = append(open, openTransaction{topic, partition, id, epoch})
		}
		for id, w := range windows {
			w.Producer, w.Topic, w.Partition = id, topic, partition
			sequences.Windows = append(sequences.Windows, *w)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return open, replaceJSON(filepath.Join(dir, "seq_windows.json"), sequences)
}

// push notes a batch. Sequences begin anew with each epoch and after the largest one.
func (w *sequenceWindow) push(b *kmsg.RecordBatch) {
	if !w.Seen || w.Epoch != b.ProducerEpoch {
		*w = sequenceWindow{Seen: true, Epoch: b.ProducerEpoch}
	}
	const sequences = 1<<31 - 1 // as kfake counts
	w.Next = int32((int64(b.FirstSequence) + int64(b.NumRecords)) % sequences)
	w.Entries[w.At] = sequenceEntry{b.FirstSequence, w.Next, b.FirstOffset}
	w.At = (w.At + 1) % keptBatches
	w.Count = min(w.Count+1, keptBatches)
}
