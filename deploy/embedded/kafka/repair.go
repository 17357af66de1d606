package kafka

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file reads and writes kfake's own files: partitions/<topic>-<n>/ with
// <base>.dat (record batches as on the wire), <base>.idx (15 bytes per batch)
// and snapshot.json. The version of kfake is pinned; the tests of this package
// fail when the format changes.

func partitionDir(dir, topic string, partition int32) string {
	return filepath.Join(dir, "partitions", url.PathEscape(topic)+"-"+strconv.Itoa(int(partition)))
}

// eachPartition calls fn for every partition directory.
func eachPartition(dir string, fn func(path, topic string, partition int32) error) error {
	root := filepath.Join(dir, "partitions")
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		cut := strings.LastIndexByte(e.Name(), '-')
		if !e.IsDir() || cut < 0 {
			continue
		}
		topic, err := url.PathUnescape(e.Name()[:cut])
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(e.Name()[cut+1:], 10, 32)
		if err != nil {
			continue
		}
		if err := fn(filepath.Join(root, e.Name()), topic, int32(n)); err != nil {
			return fmt.Errorf("partition %s: %w", e.Name(), err)
		}
	}
	return nil
}

// segments lists the base offsets of a partition's segment files, in order.
func segments(path string) ([]int64, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var bases []int64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".dat")
		if !ok {
			continue
		}
		if base, err := strconv.ParseInt(name, 10, 64); err == nil {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, nil
}

func segmentPath(path string, base int64, suffix string) string {
	return filepath.Join(path, strconv.FormatInt(base, 10)+suffix)
}

// openTransaction is a producer whose records in a partition have no marker.
type openTransaction struct {
	topic      string
	partition  int32
	producerID int64
	epoch      int16
}

// openTransactions reads the batch headers of every partition. It is called
// after a kill, before the broker starts.
func openTransactions(dir string) ([]openTransaction, error) {
	var out []openTransaction
	err := eachPartition(dir, func(path, topic string, partition int32) error {
		bases, err := segments(path)
		if err != nil {
			return err
		}
		open := map[int64]int16{} // producer id to epoch
		for _, base := range bases {
			if err := scanSegment(path, base, open); err != nil {
				return err
			}
		}
		for id, epoch := range open {
			out = append(out, openTransaction{topic, partition, id, epoch})
		}
		return nil
	})
	return out, err
}

// Places in a record batch (version 2) and in an index entry.
const (
	batchHeaderBytes = 61
	batchLengthAt    = 8 // counts what follows it
	batchAttrsAt     = 21
	batchProducerAt  = 43
	batchEpochAt     = 51
	batchBeforeCount = 12
	attrControl      = 0x20
	indexEntryBytes  = 15
	indexFlagsAt     = 14
	indexFlagInTx    = 1
)

func scanSegment(path string, base int64, open map[int64]int16) error {
	f, err := os.Open(segmentPath(path, base, ".dat"))
	if err != nil {
		return err
	}
	defer f.Close()
	index, err := os.ReadFile(segmentPath(path, base, ".idx"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var head [batchHeaderBytes]byte
	for at := int64(0); ; {
		if _, err := f.ReadAt(head[:], at); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the end, or a torn batch that the broker cuts off
			}
			return err
		}
		attrs := binary.BigEndian.Uint16(head[batchAttrsAt:])
		id := int64(binary.BigEndian.Uint64(head[batchProducerAt:]))
		switch {
		case attrs&attrControl != 0:
			delete(open, id)
		case len(index) >= indexEntryBytes && index[indexFlagsAt]&indexFlagInTx != 0:
			open[id] = int16(binary.BigEndian.Uint16(head[batchEpochAt:]))
		}
		if len(index) >= indexEntryBytes {
			index = index[indexEntryBytes:]
		}
		at += batchBeforeCount + int64(binary.BigEndian.Uint32(head[batchLengthAt:]))
	}
}

// rememberEmptied is the form for a stopped broker: it takes the end from the
// snapshots that Close has written.
func rememberEmptied(dir string) error {
	return eachPartition(dir, func(path, _ string, _ int32) error {
		raw, err := os.ReadFile(filepath.Join(path, "snapshot.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var s struct {
			HighWatermark int64 `json:"high_watermark"`
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("reading its snapshot: %w", err)
		}
		if s.HighWatermark == 0 {
			return nil
		}
		return plantEnd(path, s.HighWatermark)
	})
}

// plantEnd leaves, in a partition without records, an empty segment that
// begins at end and a snapshot that agrees with it: that is a form from which
// the broker restores the end. The next record is written to that segment, as
// it is the file that begins at its offset.
func plantEnd(path string, end int64) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	bases, err := segments(path)
	if err != nil {
		return err
	}
	for _, base := range bases {
		info, err := os.Stat(segmentPath(path, base, ".dat"))
		if err != nil {
			return err
		}
		if info.Size() > 0 {
			return nil // records came meanwhile
		}
		if base != end {
			if err := os.Remove(segmentPath(path, base, ".dat")); err != nil {
				return err
			}
		}
	}
	type segmentInfo struct {
		BaseOffset int64 `json:"base_offset"`
		Size       int64 `json:"size"`
	}
	snapshot, err := json.Marshal(struct {
		Version          int           `json:"version"`
		HighWatermark    int64         `json:"high_watermark"`
		LastStableOffset int64         `json:"last_stable_offset"`
		LogStartOffset   int64         `json:"log_start_offset"`
		Epoch            int32         `json:"epoch"`
		MaxTimestamp     int64         `json:"max_timestamp"`
		CreatedAt        time.Time     `json:"created_at"`
		Segments         []segmentInfo `json:"segments"`
	}{1, end, end, end, 0, -1, time.Now(), []segmentInfo{{end, 0}}})
	if err != nil {
		return err
	}
	temporary := filepath.Join(path, "snapshot.json.tmp")
	if err := os.WriteFile(temporary, snapshot, 0o644); err != nil {
		return err
	}
	if err := os.Rename(temporary, filepath.Join(path, "snapshot.json")); err != nil {
		return err
	}
	segment, err := os.OpenFile(segmentPath(path, end, ".dat"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return segment.Close()
}
