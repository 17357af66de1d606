// Package state is the resolver's local copy of what it knows of its people:
// a cache of two changelog topics (profiles and person-state), never the truth.
// The Kafka transaction commits first and the store after, with the changelog's
// offset in the same store batch; after a crash between the two the missing
// records are replayed from the changelog.
package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Store holds the records of the partitions that this instance owns or once
// owned, as the bytes that Kafka has. It is used from one goroutine at a time.
type Store struct {
	db *pebble.DB
}

// Open opens or makes the store in a directory of its own; another process using it
// is an error. Once it is open, a disk that fails leaves nothing to go on with:
// dead must end the process, and must not return. What was not stored is in Kafka.
func Open(dir string, cacheBytes int64, dead func(error)) (*Store, error) {
	if err := room(dir); err != nil {
		return nil, fmt.Errorf("opening the person store %s: %w", dir, err)
	}
	failed := func(err error) { dead(fmt.Errorf("writing the person store %s: %w", dir, err)) }
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref() // the database holds its own reference
	options := &pebble.Options{
		Cache:        cache,
		MemTableSize: memTableBytes,
		// The changelog is the log: what a kill takes from here is replayed from it.
		DisableWAL:    true,
		Logger:        quiet{failed},
		EventListener: &pebble.EventListener{BackgroundError: failed},
	}
	// Most questions are about people of whom nothing is known yet.
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, options)
	if err != nil {
		return nil, fmt.Errorf("opening the person store %s: %w", dir, err)
	}
	// What lies there in a layout of before cannot be read: it is replayed, as by a new store.
	for _, prefix := range []byte{'d', 'm'} {
		if err := db.DeleteRange([]byte{prefix}, []byte{prefix + 1}, pebble.NoSync); err != nil {
			return nil, errors.Join(fmt.Errorf("opening the person store %s: %w", dir, err), db.Close())
		}
	}
	return &Store{db: db}, nil
}

// memTableBytes is how much may gather before it is written, hence what a kill can
// make a successor replay.
const memTableBytes = 16 << 20

// room fails unless there is space for what may gather. Pebble takes a disk that is
// full while it opens for its end; whoever asks first can wait. A file system that
// cannot tell is taken to have it.
func room(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const need = 2 * memTableBytes
	usage, err := vfs.Default.GetDiskUsage(dir)
	switch {
	case errors.Is(err, vfs.ErrUnsupported):
		return nil
	case err != nil:
		return err
	case usage.AvailBytes < need:
		return fmt.Errorf("%d MiB are free of the %d that it needs: %w", usage.AvailBytes>>20, need>>20, syscall.ENOSPC)
	}
	return nil
}

// Close writes what has gathered and closes the store.
func (s *Store) Close() error { return errors.Join(s.db.Flush(), s.db.Close()) }

// Changelog names the two topics that the store mirrors by one byte in its keys.
func changelog(name topic.Name) (byte, bool) {
	switch name {
	case topic.Profiles:
		return 'p', true
	case topic.PersonState:
		return 's', true
	}
	return 0, false
}

// key puts what is kept of one person side by side, the profile first: who reads
// one of them reads the next from the same block.
func key(name topic.Name, partition int32, k []byte) []byte {
	c, ok := changelog(name)
	if !ok {
		panic("state: " + string(name) + " is no changelog of the person store")
	}
	b := make([]byte, 0, 4+len(k))
	b = append(partitionKey(b, partition), k...)
	return append(b, c)
}

func partitionKey(b []byte, partition int32) []byte {
	return binary.BigEndian.AppendUint16(append(b, 'e'), uint16(partition))
}

func markKey(name topic.Name, partition int32) []byte {
	c, _ := changelog(name)
	b := binary.BigEndian.AppendUint16([]byte{'n'}, uint16(partition))
	return append(b, c)
}

// Get returns a copy of the record under a key, nil if there is none.
func (s *Store) Get(name topic.Name, partition int32, k []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key(name, partition, k))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s/%d from the person store: %w", name, partition, err)
	}
	defer closer.Close()
	return append([]byte(nil), v...), nil
}

// Mark is how far the store has followed one partition of a changelog.
type Mark struct {
	Offset    int64     // of the next record to apply
	WrittenAt time.Time // of the last change; zero if there never was one
}

// Mark returns the mark of a partition; the zero Mark if it was never written.
func (s *Store) Mark(name topic.Name, partition int32) (Mark, error) {
	v, closer, err := s.db.Get(markKey(name, partition))
	if errors.Is(err, pebble.ErrNotFound) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, fmt.Errorf("reading the mark of %s/%d: %w", name, partition, err)
	}
	defer closer.Close()
	if len(v) != 16 {
		return Mark{}, fmt.Errorf("the mark of %s/%d has %d bytes", name, partition, len(v))
	}
	return Mark{Offset: int64(binary.BigEndian.Uint64(v)), WrittenAt: time.UnixMicro(int64(binary.BigEndian.Uint64(v[8:]))).UTC()}, nil
}

// Forget drops all records of a partition and its marks, so that it is rebuilt
// from the start: a store that may have missed a tombstone (kept for
// topic.DeleteRetention) would bring the dead back.
func (s *Store) Forget(partition int32) error {
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange(partitionKey(nil, partition), partitionKey(nil, partition+1), nil); err != nil {
		return fmt.Errorf("forgetting partition %d: %w", partition, err)
	}
	for _, name := range []topic.Name{topic.Profiles, topic.PersonState} {
		if err := b.Delete(markKey(name, partition), nil); err != nil {
			return fmt.Errorf("forgetting the mark of %s/%d: %w", name, partition, err)
		}
	}
	return b.Commit(pebble.NoSync)
}

// Change is one record of a changelog as it was committed. A nil Value removes.
type Change struct {
	Topic     topic.Name
	Partition int32
	Offset    int64
	Key       []byte
	Value     []byte
}

// Apply writes changes and moves the marks past them, all or nothing. Changes
// of one partition must come in the order of their offsets.
func (s *Store) Apply(changes []Change, now time.Time) error {
	b := s.db.NewBatch()
	defer b.Close()
	type part struct {
		name      topic.Name
		partition int32
	}
	next := map[part]int64{}
	for i := range changes {
		c := &changes[i]
		var err error
		if c.Value == nil {
			err = b.Delete(key(c.Topic, c.Partition, c.Key), nil)
		} else {
			err = b.Set(key(c.Topic, c.Partition, c.Key), c.Value, nil)
		}
		if err != nil {
			return fmt.Errorf("writing %s/%d to the person store: %w", c.Topic, c.Partition, err)
		}
		next[part{c.Topic, c.Partition}] = c.Offset + 1
	}
	for p, offset := range next {
		if err := s.setMark(b, p.name, p.partition, offset, now); err != nil {
			return err
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("committing to the person store: %w", err)
	}
	return nil
}

// Advance moves a mark without a record: past transaction markers, at the end
// of a replay.
func (s *Store) Advance(name topic.Name, partition int32, offset int64, now time.Time) error {
	b := s.db.NewBatch()
	defer b.Close()
	if err := s.setMark(b, name, partition, offset, now); err != nil {
		return err
	}
	return b.Commit(pebble.NoSync)
}

func (s *Store) setMark(b *pebble.Batch, name topic.Name, partition int32, offset int64, now time.Time) error {
	v := binary.BigEndian.AppendUint64(nil, uint64(offset))
	v = binary.BigEndian.AppendUint64(v, uint64(now.UnixMicro()))
	if err := b.Set(markKey(name, partition), v, nil); err != nil {
		return fmt.Errorf("marking %s/%d: %w", name, partition, err)
	}
	return nil
}

// quiet drops Pebble's own log; what goes wrong comes back as an error.
type quiet struct{ dead func(error) }

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (q quiet) Fatalf(format string, a ...any) {
	q.dead(fmt.Errorf(format, a...))
}
