package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Table reads topics whole, read committed, without a group: from the start, and
// then follows them. Build it with Cluster.Table, run it beside the loops.
type Table struct {
	c     *Cluster
	names []topic.Name
	apply func(*kgo.Record) error
	from  time.Time
	pace  time.Duration

	mu      sync.Mutex
	at      map[string]map[int32]int64 // next offset to apply; nil until Run knows where it starts
	moved   chan struct{}              // closed and replaced whenever at moves
	stopped error                      // why Run ended
}

// TableOption changes where a table starts, and how often it reads.
type TableOption func(*Table)

// TableFrom starts at the first records produced at or after t instead of the
// beginning.
func TableFrom(t time.Time) TableOption { return func(table *Table) { table.from = t } }

// TablePace sets the least time between two polls; none unless given. Each instance of
// a service reads all of a table: what each of them writes all the time would be a
// fetch, each time, for each of them.
func TablePace(d time.Duration) TableOption { return func(table *Table) { table.pace = d } }

// Table returns a table of these topics. Apply is called for one record at a time,
// in order within each partition, from the goroutine of Run; a nil Value is a
// tombstone. An error of apply ends Run unless it is Transient, which repeats the
// record after a pause.
func (c *Cluster) Table(names []topic.Name, apply func(*kgo.Record) error, opts ...TableOption) *Table {
	t := &Table{c: c, names: names, apply: apply, moved: make(chan struct{})}
	for _, o := range opts {
		o(t)
	}
	return t
}

// Run reads until ctx ends, and then returns nil. Whatever else it returns ends the
// table, and with it every CaughtUp.
func (t *Table) Run(ctx context.Context) (err error) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.stopped = err
		if err == nil {
			t.stopped = context.Canceled
		}
		t.wake()
	}()
	start, err := t.starts(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	at := map[string]map[int32]int64{}
	assign := map[string]map[int32]kgo.Offset{}
	start.Each(func(o kadm.ListedOffset) {
		if at[o.Topic] == nil {
			at[o.Topic], assign[o.Topic] = map[int32]int64{}, map[int32]kgo.Offset{}
		}
		at[o.Topic][o.Partition] = o.Offset
		assign[o.Topic][o.Partition] = kgo.NewOffset().At(o.Offset)
	})
	t.mu.Lock()
	t.at = at
	t.wake()
	t.mu.Unlock()

	cl, err := kgo.NewClient(join(t.c.clientOptions("table"), t.c.readerOptions(kgo.ReadCommitted()), []kgo.Opt{
		kgo.ConsumePartitions(assign),
		// Reading a part again is harmless to a table; missing one is not.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	})...)
	if err != nil {
		return fmt.Errorf("building the client of the table of %v: %w", t.names, err)
	}
	defer cl.Close()

	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		if err := readErrors(fetches, t.c); err != nil {
			return fmt.Errorf("reading the table of %v: %w", t.names, err)
		}
		var applyErr error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if applyErr != nil {
					return
				}
				// Control records only move the position past what is not data.
				if !r.Attrs.IsControl() {
					if applyErr = t.applyOne(ctx, r); applyErr != nil {
						return
					}
				}
			}
			if n := len(p.Records); n > 0 {
				t.advance(p.Topic, p.Partition, p.Records[n-1].Offset+1)
			}
		})
		if applyErr != nil && ctx.Err() == nil {
			return applyErr
		}
		waitFor(ctx, t.pace, nil)
	}
	return nil
}

func (t *Table) applyOne(ctx context.Context, r *kgo.Record) error {
	pause := newBackoff()
	component := "table " + string(t.c.NameOf(r.Topic))
	for failed := false; ; failed = true {
		err := t.apply(r)
		if err == nil {
			if failed {
				t.c.tel.Health.Set(component, nil)
			}
			return nil
		}
		if fault.ClassOf(err) != fault.ClassTransient {
			return fmt.Errorf("applying %s: %w", t.c.origin(r), err)
		}
		t.c.tel.Health.Set(component, err)
		if !pause.wait(ctx, nil) {
			return ctx.Err()
		}
	}
}

// starts waits until the topics' first offsets are known.
func (t *Table) starts(ctx context.Context) (kadm.ListedOffsets, error) {
	var listed kadm.ListedOffsets
	err := t.c.await(ctx, fmt.Sprintf("table %v", t.names), func(ctx context.Context) (err error) {
		names := t.c.kafkaNames(t.names)
		if t.from.IsZero() {
			listed, err = t.c.adm.ListStartOffsets(ctx, names...)
		} else {
			listed, err = t.c.adm.ListOffsetsAfterMilli(ctx, t.from.UnixMilli(), names...)
		}
		if err == nil {
			err = listed.Error()
		}
		return fault.Transient(err)
	})
	return listed, err
}

// CaughtUp blocks until all that was in the topics at the moment of the call has
// been applied. It returns ctx's error, or why Run ended.
func (t *Table) CaughtUp(ctx context.Context) error {
	return t.caughtUp(ctx, t.c.HighWatermarks)
}

// CaughtUpStable is CaughtUp for who knows as much as somebody who has read all along:
// it does not wait for transactions that were open at the moment of the call, nor for
// what lies behind them, which their owner's standstill may keep back until they
// time out.
func (t *Table) CaughtUpStable(ctx context.Context) error {
	return t.caughtUp(ctx, t.c.LastStable)
}

func (t *Table) caughtUp(ctx context.Context, ends func(context.Context, ...topic.Name) (Mark, error)) error {
	mark, err := ends(ctx, t.names...)
	for pause := newBackoff(); err != nil; mark, err = ends(ctx, t.names...) {
		if !pause.wait(ctx, nil) {
			return ctx.Err()
		}
	}
	for {
		t.mu.Lock()
		done, moved, stopped := t.passed(mark), t.moved, t.stopped
		t.mu.Unlock()
		switch {
		case done:
			return nil
		case stopped != nil:
			return fmt.Errorf("the table of %v has ended: %w", t.names, stopped)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *Table) passed(m Mark) bool {
	if t.at == nil {
		return false
	}
	for name, partitions := range m {
		for p, end := range partitions {
			if t.at[name.In(t.c.cfg.Namespace)][p] < end {
				return false
			}
		}
	}
	return true
}

func (t *Table) advance(kafkaTopic string, partition int32, next int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[kafkaTopic][partition] = next
	t.wake()
}

func (t *Table) wake() {
	close(t.moved)
	t.moved = make(chan struct{})
}

// readerOptions are those of clients that read without a group.
func (c *Cluster) readerOptions(isolation kgo.IsolationLevel) []kgo.Opt {
	return []kgo.Opt{
		kgo.FetchIsolationLevel(isolation),
		// The position must pass transaction markers and aborted tails, or a
		// reader never arrives at the end it noted.
		kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(16 << 20),
		kgo.FetchMaxPartitionBytes(4 << 20),
		kgo.FetchMaxWait(time.Second),
	}
}

// readErrors returns what a poll without a group reports and does not mend itself.
func readErrors(fetches kgo.Fetches, c *Cluster) error {
	var fatal error
	fetches.EachError(func(kafkaTopic string, partition int32, err error) {
		var lost *kgo.ErrDataLoss
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kgo.ErrClientClosed):
		case errors.As(err, &lost), passing(err):
			// The client goes on by itself.
		default:
			fatal = fault.Fatal(fmt.Errorf("reading %s/%d: %w", c.NameOf(kafkaTopic), partition, err))
		}
	})
	return fatal
}

// Range is a part of one partition: From inclusive, To exclusive.
type Range struct {
	Topic     topic.Name
	Partition int32
	From, To  int64
}

// ReadPartition hands the records of one partition from (inclusive) to (exclusive) to
// fn, in order, once: for restoring a changelog or the outcomes of claims. See
// Read.
func (c *Cluster) ReadPartition(ctx context.Context, name topic.Name, partition int32, from, to int64, isolation kgo.IsolationLevel, fn func(*kgo.Record) error) error {
	return c.Read(ctx, []Range{{name, partition, from, to}}, isolation, fn)
}

// Read hands the records of all ranges to fn, in order within each partition, from
// the calling goroutine, and returns when the last is done; read committed, it
// waits for transactions that are open in a range. Control records are left out. A
// range that begins before the log does begins where the log does; one that ends
// after it is an error, for then the broker has lost something. While Kafka is
// away it waits, until ctx ends.
func (c *Cluster) Read(ctx context.Context, ranges []Range, isolation kgo.IsolationLevel, fn func(*kgo.Record) error) error {
	assign := map[string]map[int32]kgo.Offset{}
	until := map[string]map[int32]int64{}
	names := map[topic.Name]bool{}
	var ask []string
	for _, r := range ranges {
		if !names[r.Topic] {
			names[r.Topic] = true
			ask = append(ask, r.Topic.In(c.cfg.Namespace))
		}
	}
	var starts, ends kadm.ListedOffsets
	pause := newBackoff()
	for {
		var err error
		if starts, err = c.adm.ListStartOffsets(ctx, ask...); err == nil {
			if ends, err = c.adm.ListEndOffsets(ctx, ask...); err == nil {
				err = errors.Join(starts.Error(), ends.Error())
			}
		}
		if err == nil {
			break
		}
		if !pause.wait(ctx, nil) {
			return fmt.Errorf("reading the bounds of %v: %w", ask, errors.Join(ctx.Err(), err))
		}
	}
	left := 0
	for _, r := range ranges {
		t := r.Topic.In(c.cfg.Namespace)
		first, _ := starts.Lookup(t, r.Partition)
		last, _ := ends.Lookup(t, r.Partition)
		from := max(r.From, first.Offset)
		if r.To > last.Offset {
			return fault.Fatal(fmt.Errorf("reading %s/%d up to offset %d: the log ends at %d", r.Topic, r.Partition, r.To, last.Offset))
		}
		if from >= r.To {
			continue
		}
		if assign[t] == nil {
			assign[t], until[t] = map[int32]kgo.Offset{}, map[int32]int64{}
		}
		assign[t][r.Partition], until[t][r.Partition] = kgo.NewOffset().At(from), r.To
		left++
	}
	if left == 0 {
		return nil
	}
	cl, err := kgo.NewClient(join(c.clientOptions("read"), c.readerOptions(isolation), []kgo.Opt{
		kgo.ConsumePartitions(assign),
		// The bounds were looked at; if the log moves away now, it is lost.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	})...)
	if err != nil {
		return fmt.Errorf("building the client that reads %v: %w", ask, err)
	}
	defer cl.Close()
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := readErrors(fetches, c); err != nil {
			return err
		}
		var failed error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			to, open := until[p.Topic][p.Partition]
			for _, r := range p.Records {
				if !open || failed != nil {
					return
				}
				if r.Offset < to && !r.Attrs.IsControl() {
					if failed = fn(r); failed != nil {
						return
					}
				}
				if r.Offset+1 >= to {
					open = false
					delete(until[p.Topic], p.Partition)
					left--
					cl.PauseFetchPartitions(map[string][]int32{p.Topic: {p.Partition}})
				}
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}
