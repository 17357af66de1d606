package kafka

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// This file reads and writes kfake's own files: partitions/<topic>-<n>/ with
// <base>.dat (record batches as on the wire), <base>.idx (15 bytes per batch)
// and snapshot.json. The version of kfake is pinned; the tests of this package
// fail when the format changes.

func partitionsDir(dir string) string { return filepath.Join(dir, "partitions") }

func partitionDir(dir, topic string, partition int32) string {
	return filepath.Join(partitionsDir(dir), url.PathEscape(topic)+"-"+strconv.Itoa(int(partition)))
}

// eachPartition calls fn for every partition directory.
func eachPartition(dir string, fn func(path, topic string, partition int32) error) error {
	root := partitionsDir(dir)
	entries, err := os.ReadDir(root)
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

// Places in a record batch (version 2) and in an index entry: a version, a
// checksum's last byte, the leader's epoch, a time that is not read, flags.
const (
	batchLengthAt    = 8 // counts what follows it
	batchBeforeCount = 12
	batchSumAt       = 17
	batchAttrsAt     = 21 // its checksum is over this and what follows
	attrTransaction  = 0x10
	attrControl      = 0x20

	indexVersion    = 1
	indexSumAt      = 1
	indexEpochAt    = 2
	indexFlagsAt    = 14
	indexFlagInTx   = 1
	indexEntryBytes = 15
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mendSegment calls fn for the batches of a segment file, and says which of them
// its index has as part of a transaction. It cuts off a torn or damaged end, as the
// broker would, and writes what the index lacks: the broker writes a batch first and
// takes one that is not in the index for committed. A batch's records are gone
// after fn.
func mendSegment(path string, base int64, fn func(b *kmsg.RecordBatch, inTx bool)) error {
	index, err := os.ReadFile(segmentPath(path, base, ".idx"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, batches := len(index)/indexEntryBytes, 0
	var missing []byte
	size, err := eachBatch(segmentPath(path, base, ".dat"), func(b *kmsg.RecordBatch) {
		inTx := b.Attributes&attrTransaction != 0 && b.Attributes&attrControl == 0
		if batches < entries {
			inTx = index[batches*indexEntryBytes+indexFlagsAt]&indexFlagInTx != 0
		} else {
			missing = append(missing, indexEntry(b.PartitionLeaderEpoch, inTx)...)
		}
		batches++
		fn(b, inTx)
	})
	if err != nil {
		return err
	}
	if err := cutTo(segmentPath(path, base, ".dat"), size); err != nil {
		return err
	}
	if whole := int64(min(entries, batches) * indexEntryBytes); whole < int64(len(index)) {
		if err := os.Truncate(segmentPath(path, base, ".idx"), whole); err != nil {
			return err
		}
	}
	return appendTo(segmentPath(path, base, ".idx"), missing)
}

// eachBatch calls fn for the whole batches of a file and returns their size.
func eachBatch(path string, fn func(b *kmsg.RecordBatch)) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(f, 64<<10)
	raw, done := []byte{}, int64(0)
	for info.Size()-done >= batchBeforeCount {
		head, err := r.Peek(batchBeforeCount)
		if err != nil {
			return 0, err
		}
		size := batchBeforeCount + int64(binary.BigEndian.Uint32(head[batchLengthAt:]))
		if size > info.Size()-done {
			break
		}
		raw = slices.Grow(raw[:0], int(size))[:size]
		if _, err := io.ReadFull(r, raw); err != nil {
			return 0, err
		}
		var b kmsg.RecordBatch
		if b.UnsafeReadFrom(raw) != nil || crc32.Checksum(raw[batchAttrsAt:], castagnoli) != uint32(b.CRC) {
			break
		}
		fn(&b)
		done += size
	}
	return done, nil
}

func indexEntry(epoch int32, inTx bool) []byte {
	e := make([]byte, indexEntryBytes)
	e[0] = indexVersion
	binary.LittleEndian.PutUint32(e[indexEpochAt:], uint32(epoch))
	if inTx {
		e[indexFlagsAt] = indexFlagInTx
	}
	e[indexSumAt] = byte(crc32.Checksum(e[indexEpochAt:], castagnoli))
	return e
}

// cutTo shortens a file that is longer.
func cutTo(path string, size int64) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() <= size {
		return err
	}
	return os.Truncate(path, size)
}

func appendTo(path string, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// The broker's compaction removes the segments of a partition before it writes
// them anew: killed in between, it would lose what it has acknowledged. So the
// partitions are kept, by hard links, while it runs; segments are only removed
// and made meanwhile, never written to.
func keptPartitions(dir string) string { return partitionsDir(dir) + ".kept" }

// keepPartitions fails, and keeps nothing, where the file system has no hard
// links, or no room for all of the log once more.
func keepPartitions(dir string) (err error) {
	root, unfinished := partitionsDir(dir), keptPartitions(dir)+".tmp"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(unfinished))
		}
	}()
	size := int64(0)
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(unfinished, strings.TrimPrefix(path, root))
		if e.IsDir() {
			return os.Mkdir(to, 0o755)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return os.Link(path, to)
	})
	if err != nil {
		return err
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("asking for free space: %w", err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < uint64(size) {
		return fmt.Errorf("%d bytes are free, and %d may be written", free, size)
	}
	return os.Rename(unfinished, keptPartitions(dir))
}

// forgetKept is for when compaction is done.
func forgetKept(dir string) error {
	unfinished := keptPartitions(dir) + ".tmp"
	if err := os.Rename(keptPartitions(dir), unfinished); err != nil {
		return err
	}
	return os.RemoveAll(unfinished)
}

// restoreKept takes back a compaction that a kill has cut short.
func restoreKept(dir string) error {
	_, err := os.Stat(keptPartitions(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(partitionsDir(dir)); err != nil {
		return err
	}
	return os.Rename(keptPartitions(dir), partitionsDir(dir))
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
	if err := replaceJSON(filepath.Join(path, "snapshot.json"), struct {
		Version          int           `json:"version"`
		HighWatermark    int64         `json:"high_watermark"`
		LastStableOffset int64         `json:"last_stable_offset"`
		LogStartOffset   int64         `json:"log_start_offset"`
		Epoch            int32         `json:"epoch"`
		MaxTimestamp     int64         `json:"max_timestamp"`
		CreatedAt        time.Time     `json:"created_at"`
		Segments         []segmentInfo `json:"segments"`
	}{1, end, end, end, 0, -1, time.Now(), []segmentInfo{{end, 0}}}); err != nil {
		return err
	}
	segment, err := os.OpenFile(segmentPath(path, end, ".dat"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return segment.Close()
}

// replaceJSON writes a file that is at no time half a one.
func replaceJSON(path string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
