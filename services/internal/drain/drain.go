// Package drain moves what lies in a spool to Kafka.
package drain

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/spool"
)

// At most about this much of a spool is on its way to Kafka, and this long goes by between two
// marks: that much is repeated when whoever drains is killed.
const (
	windowRecords = 10_000
	markEvery     = 200 * time.Millisecond
)

// BufferedRecords is what a producer's buffer must hold (kgo.MaxBufferedRecords): a window, and the batch
// that goes beyond it.
const BufferedRecords = 200_000

// flight is a batch on its way.
type flight struct {
	batch  spool.Batch
	left   atomic.Int64
	failed atomic.Pointer[error]
	done   chan struct{}
}

// Run produces the spool's records in their order and returns nil when all that it found, up to an end
// of the spool, are acknowledged by every in-sync replica. passed, if not nil, hears of how many, as the mark moves. After an
// error the spool is as it was at the last mark; what was produced since is produced again by
// the next call. The producer's buffer must hold BufferedRecords.
func Run(ctx context.Context, s *spool.Spool, c *kafka.Cluster, producer *kgo.Client, passed func(records int)) error {
	defer s.Rewind()
	var flights []*flight
	// Nothing of this call may come after what the next one produces.
	defer func() {
		for _, f := range flights {
			select {
			case <-f.done:
			case <-ctx.Done():
				return
			}
		}
	}()
	held, acknowledged, marked, end := 0, 0, time.Now(), false
	for {
		for held < windowRecords && !end {
			b, err := s.Next()
			if errors.Is(err, spool.ErrEmpty) {
				end = true // what still comes is for the next call: this one ends
				break
			}
			if err != nil {
				return err
			}
			f, err := send(c, producer, b)
			if err != nil {
				return err
			}
			flights = append(flights, f)
			held += len(b.Entries)
		}
		if len(flights) == 0 {
			return nil
		}
		f := flights[0]
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if failed := f.failed.Load(); failed != nil {
			return fmt.Errorf("Kafka has not taken what is in the spool: %w", *failed)
		}
		flights = flights[1:]
		held -= len(f.batch.Entries)
		acknowledged += len(f.batch.Entries)
		// A batch is passed when Kafka has all of it, and those before (I1).
		if len(flights) == 0 || time.Since(marked) > markEvery {
			crash.At(crash.SpoolDrained)
			if err := s.Advance(f.batch); err != nil {
				return err
			}
			if passed != nil {
				passed(acknowledged)
			}
			acknowledged, marked = 0, time.Now()
		}
	}
}

// send produces a batch. A record that cannot be made stops the line: nothing is passed over.
func send(c *kafka.Cluster, producer *kgo.Client, b spool.Batch) (*flight, error) {
	records := make([]*kgo.Record, len(b.Entries))
	var memory kafka.Memory
	for i, e := range b.Entries {
		var err error
		if records[i], err = c.RecordIn(&memory, e.Topic, e.Key, e.Record); err != nil {
			return nil, fmt.Errorf("making a record for %s of what is in the spool: %w", e.Topic, err)
		}
	}
	f := &flight{batch: b, done: make(chan struct{})}
	f.left.Store(int64(len(records)))
	for _, r := range records {
		producer.TryProduce(context.Background(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				f.failed.CompareAndSwap(nil, &err)
			}
			if f.left.Add(-1) == 0 {
				close(f.done)
			}
		})
	}
	return f, nil
}

// Told is what the topic spools is told of a spool, by its name, that holds so much.
func Told(name string, st spool.Stats) *event.Spool {
	rec := &event.Spool{Spool: name, Records: st.Records, Bytes: st.Bytes, UpdatedAt: time.Now()}
	if !st.Oldest.IsZero() {
		rec.OldestAt = &st.Oldest
	}
	return rec
}
