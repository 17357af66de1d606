package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
)

// Handler acts on the outside world.
type Handler interface {
	// Handle gets one batch, grouped by topic and partition, in order within each,
	// and returns how many records from its beginning are done for good: the
	// durable prefix. The error is about record n, the first that is not done:
	// Transient repeats from there after a pause, Poison parks it and goes on
	// behind it, fault.NotBefore sets its partition aside until then, anything
	// else ends the loop. n < len(recs) without an error asks to be called
	// again with the rest. The context outlives a signal by the drain time (I4).
	Handle(ctx context.Context, recs []*kgo.Record) (n int, err error)
}

// EffectOptions say what an Effect loop reads and who acts.
type EffectOptions struct {
	Group  topic.Group
	Topics []topic.Name // the group's, as in the catalogue, when empty
	// MaxPollRecords bounds a batch, control records included; 500 when 0. Batches
	// begin small and grow up to it as long as one does not take long: see sized.
	MaxPollRecords int
	// BatchTime is how long a batch of the right size takes to handle; a second when 0. A
	// rebalance waits for the batch in hand, and whoever was restarted for the rebalance.
	BatchTime time.Duration
	// MaxPollBytes ends the gathering of a batch; 0 is no limit. A batch may
	// exceed it by one poll.
	MaxPollBytes int
	// Linger is how long further polls may join the first of a batch, up to
	// MaxPollRecords, where one member has all partitions (see linger); 0 takes what
	// the first poll gives, as the first batch after an assignment does.
	Linger time.Duration
	// Quiet ends Linger early when nothing has come for this long; 0 does not.
	Quiet time.Duration
	// Pace is the least time between two of those polls, a part of Quiet: a fetch
	// costs about the same with one record as with hundreds.
	Pace time.Duration
	// KeepControlRecords lets the committed offset pass transaction markers: for
	// groups that the freshness barrier waits for.
	KeepControlRecords bool
	// Assigned is told which partitions this member has, by topic without namespace:
	// none when they are gone. It is called by the client's goroutine, and must not wait.
	Assigned func(partitions map[topic.Name][]int32)
	Handler  Handler
}

// RunEffect reads and acts until ctx ends; then it finishes the batch in hand,
// commits and returns nil. Offsets move last: what was done and not committed
// when the process dies is done again.
func (c *Cluster) RunEffect(ctx context.Context, o EffectOptions) error {
	if o.MaxPollRecords == 0 {
		o.MaxPollRecords = 500
	}
	if o.BatchTime == 0 {
		o.BatchTime = batchTime
	}
	if len(o.Topics) == 0 {
		o.Topics = topic.ReadBy(o.Group)
	}
	work, stop := lifecycle.Drain(ctx)
	defer stop()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	component := "loop " + string(o.Group)
	defer c.tel.Health.Rest(component)

	producer, err := c.Producer()
	if err != nil {
		return err
	}
	defer producer.Close()
	l := &effectLoop{
		membership: c.newMembership(o.Group, c.metrics.stage(string(o.Group)), end),
		o:          o, component: component, ctx: ctx, work: work, producer: producer, wait: pollTimeout, size: min(firstBatch, o.MaxPollRecords),
		done: map[string]map[int32]kgo.EpochOffset{}, later: map[string]map[int32]time.Time{},
	}
	l.quiet, l.between = o.Quiet, o.Pace
	h := l.hooks()
	h.assigned, h.gone = l.onAssigned, l.onGone
	bounded, closer := closable(ctx)
	cl, err := kgo.NewClient(join(
		c.clientOptions(string(o.Group)),
		c.groupOptions(o.Group, o.Topics, o.KeepControlRecords, h),
		[]kgo.Opt{kgo.WithHooks(l.membership), bounded},
	)...)
	if err != nil {
		return fmt.Errorf("building the client of group %s: %w", o.Group, err)
	}
	l.cl = cl
	l.client.Store(cl)
	defer closer(cl.CloseAllowingRebalance)
	for {
		c.tel.Health.Beat(component, maxTurn)
		err := l.turn()
		if cause := context.Cause(ctx); cause != nil && !isContext(cause) {
			return cause // a hook has ended the loop
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

type effectLoop struct {
	*membership
	o         EffectOptions
	component string
	cl        *kgo.Client
	producer  *kgo.Client
	ctx       context.Context // ends when input is to stop
	work      context.Context // ends when the drain time is over

	// done holds the offsets that may be committed and are not yet; later the
	// partitions set aside, until when; atWork tells that a batch has been handled
	// since the last assignment. The loop touches them only while it
	// has polled and not let go, onGone runs only while it has not.
	done   map[string]map[int32]kgo.EpochOffset
	later  map[string]map[int32]time.Time
	atWork bool
	wait   time.Duration // how long the next poll may wait
	size   int           // bounds the next batch
}

const (
	// firstBatch bounds a loop's first batch, and is the least that it goes back to.
	firstBatch = 1000
	// growth is how many times as large as the batch before one may be: what is done with
	// many at once costs less for each, so the few say too much rather than too little.
	growth = 8
	// batchTime is EffectOptions.BatchTime where nothing else is asked for.
	batchTime = time.Second
)

// sized bounds the next batch by how long one of n records took, of at most size, and
// how long one should take. A
// rebalance waits for the batch in hand, and whoever was restarted waits for the
// rebalance; after an outage, and on a busy machine, the largest takes many times as
// long as usual.
func sized(size, most, n int, took, should time.Duration) int {
	if took > should || n >= size {
		size = int(min(float64(n)*should.Seconds()/took.Seconds(), growth*float64(size)))
	}
	return min(max(size, firstBatch), most)
}

// lingerMost is the longest that sharing makes a member linger.
const lingerMost = 5 * time.Second

// linger is how long the batch whose first records have come is gathered: longer where
// this member has a part of the partitions. What is done outside costs about the same
// for one record as for a thousand, so all members together shall do it about as often
// as one would. Whoever has just taken over is behind, and is waited for.
func (l *effectLoop) linger() time.Duration {
	if !l.atWork {
		return 0
	}
	shared := l.o.Linger * time.Duration(l.c.P()) / time.Duration(max(l.own(), 1))
	return max(l.o.Linger, min(shared, lingerMost))
}

// effectRecord is a record with the last of those that are done with it: itself and
// the control records that follow it.
type effectRecord struct {
	r, last *kgo.Record
}

// turn is one batch, from poll to commit.
func (l *effectLoop) turn() error {
	fetches := l.gather(l.ctx, l.cl.PollRecords, l.size, l.o.MaxPollBytes, l.linger, l.wait)
	// I3: nothing is in flight when this runs: every commit has been answered.
	defer l.letGo(l.cl.AllowRebalance)
	defer l.resume()
	if err := l.pollErrors(fetches); err != nil {
		return err
	}
	recs := l.flatten(fetches)
	if len(recs)+len(l.done) == 0 {
		l.c.tel.Health.Set(l.component, nil) // nothing is left of what was wrong
	}
	start := time.Now()
	err := l.handle(recs)
	l.size = sized(l.size, l.o.MaxPollRecords, fetches.NumRecords(), time.Since(start), l.o.BatchTime)
	l.atWork = l.atWork || len(recs) > 0
	return errors.Join(err, l.commit(l.work))
}

// flatten lines the records up by partition. Control records, and what is replayed
// for another service, are done at once before the first of a partition: nothing
// has to happen for them.
func (l *effectLoop) flatten(fetches kgo.Fetches) []effectRecord {
	type key struct {
		topic     string
		partition int32
	}
	var order []key
	byPartition := map[key][]*kgo.Record{}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		k := key{p.Topic, p.Partition}
		if byPartition[k] == nil {
			order = append(order, k)
		}
		byPartition[k] = append(byPartition[k], p.Records...)
	})
	var recs []effectRecord
	for _, k := range order {
		first := len(recs)
		for _, r := range byPartition[k] {
			switch {
			case !r.Attrs.IsControl() && l.c.addressed(r):
				recs = append(recs, effectRecord{r, r})
			case len(recs) > first:
				recs[len(recs)-1].last = r
			default:
				l.mark(r)
			}
		}
	}
	return recs
}

// mark lets the offset pass everything up to r. The epoch must be that of r: of a
// broker that was away between a record and its transaction's marker, the epoch of
// the former ends before the latter, and a client that is told otherwise finds
// records lost.
func (l *effectLoop) mark(r *kgo.Record) {
	if l.done[r.Topic] == nil {
		l.done[r.Topic] = map[int32]kgo.EpochOffset{}
	}
	l.done[r.Topic][r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
}

// handle works through the batch; what it does not finish is read again later.
func (l *effectLoop) handle(recs []effectRecord) error {
	pause := newBackoff()
	failed := false
	for len(recs) > 0 {
		plain := make([]*kgo.Record, len(recs))
		for i := range recs {
			plain[i] = recs[i].r
		}
		start := time.Now()
		n, err := l.o.Handler.Handle(l.work, plain)
		l.stage.work.Add(time.Since(start).Seconds())
		if n < 0 || n > len(recs) || (n == 0 && err == nil) {
			return fault.Fatal(fmt.Errorf("group %s: the handler answered %d of %d records done, without an error", l.o.Group, n, len(recs)))
		}
		for _, d := range recs[:n] {
			l.mark(d.last) // I1: the handler vouches for it
		}
		l.stage.ok.Add(float64(n))
		recs = recs[n:]
		if err == nil || len(recs) == 0 {
			if err != nil {
				return fmt.Errorf("group %s: %w", l.o.Group, err)
			}
			if failed {
				l.c.tel.Health.Set(l.component, nil)
				failed = false
			}
			pause.reset()
			continue
		}
		if l.work.Err() != nil {
			return context.Cause(l.work)
		}
		if t, ok := fault.AsNotBefore(err); ok {
			recs = l.setAside(recs, t)
			continue
		}
		switch fault.ClassOf(err) {
		case fault.ClassPoison:
			if err := l.park(recs[0].r, err); err != nil {
				return err
			}
			crash.In(l.o.Group, crash.Parked)
			l.mark(recs[0].last) // I2: parked, acknowledged
			recs = recs[1:]
		case fault.ClassTransient:
			failed = true
			l.c.tel.Health.Set(l.component, err)
			l.c.tel.Health.Beat(l.component, maxTurn)
			l.stage.retried.Inc()
			// The finished prefix must not wait for the end of the outage.
			if err := l.commit(l.work); err != nil {
				return err
			}
			crash.In(l.o.Group, crash.Retrying)
			if !pause.wait(l.ctx, l.rebalance()) {
				// A rebalance reads them again anyway; but the announcement may be
				// a late one, of a rebalance that is over.
				l.giveBack(recs)
				return nil
			}
		default:
			return fmt.Errorf("group %s, handling %s: %w", l.o.Group, l.c.origin(recs[0].r), err)
		}
	}
	return nil
}

// park writes the dead letter and waits until it is acknowledged. Whoever keeps
// copies ends nobody's wait: a message whose record is parked here is not parked.
func (l *effectLoop) park(r *kgo.Record, reason error) error {
	if err := l.producer.ProduceSync(l.work, l.c.DeadLetter(r, reason)).FirstErr(); err != nil {
		return fmt.Errorf("parking %s: %w", l.c.origin(r), err)
	}
	l.stage.deadLetters.Inc()
	return l.c.breaker.add(1, time.Now())
}

// giveBack moves the positions back to the first record of each partition in recs.
func (l *effectLoop) giveBack(recs []effectRecord) {
	back := map[string]map[int32]kgo.EpochOffset{}
	for _, d := range recs {
		if back[d.r.Topic] == nil {
			back[d.r.Topic] = map[int32]kgo.EpochOffset{}
		}
		if _, ok := back[d.r.Topic][d.r.Partition]; !ok {
			back[d.r.Topic][d.r.Partition] = kgo.EpochOffset{Epoch: d.r.LeaderEpoch, Offset: d.r.Offset}
		}
	}
	l.cl.SetOffsets(back)
}

// setAside gives the first record's partition back and pauses it until t; it returns
// the records of the other partitions.
func (l *effectLoop) setAside(recs []effectRecord, t time.Time) []effectRecord {
	kafkaTopic, partition := recs[0].r.Topic, recs[0].r.Partition
	l.giveBack(recs[:1])
	l.cl.PauseFetchPartitions(map[string][]int32{kafkaTopic: {partition}})
	if l.later[kafkaTopic] == nil {
		l.later[kafkaTopic] = map[int32]time.Time{}
	}
	l.later[kafkaTopic][partition] = t
	var rest []effectRecord
	for _, d := range recs {
		if d.r.Topic != kafkaTopic || d.r.Partition != partition {
			rest = append(rest, d)
		}
	}
	return rest
}

// resume lets partitions whose time has come be read again.
func (l *effectLoop) resume() {
	l.wait = pollTimeout
	now := time.Now()
	for t, partitions := range l.later {
		for p, at := range partitions {
			if d := at.Sub(now); d > 0 {
				l.wait = min(l.wait, d)
				continue
			}
			l.cl.ResumeFetchPartitions(map[string][]int32{t: {p}})
			delete(partitions, p)
		}
	}
}

// commit commits what is done and waits for the answer. A commit that fails is not
// lost: its records are done, and the next one covers them. Only being fenced
// ends the loop.
func (l *effectLoop) commit(ctx context.Context) error {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for t, partitions := range l.done {
		if len(partitions) > 0 {
			offsets[t] = partitions
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	crash.In(l.o.Group, crash.Done)
	start := time.Now()
	defer func() { l.stage.commit.Add(time.Since(start).Seconds()) }()
	var failed error
	l.cl.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if failed = err; err != nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && failed == nil {
					failed = fmt.Errorf("%s/%d: %w", l.c.NameOf(t.Topic), p.Partition, err)
				}
			}
		}
	})
	switch {
	case failed == nil:
		crash.In(l.o.Group, crash.Passed)
		l.done = map[string]map[int32]kgo.EpochOffset{}
		l.stage.okBatches.Inc()
		l.c.tel.Health.Set(l.component, nil)
		return nil
	case errors.Is(failed, kerr.FencedInstanceID):
		return l.c.fenced(failed)
	case passing(failed) || isContext(failed):
		l.stage.retriedBatch.Inc()
		l.c.tel.Health.Set(l.component, fmt.Errorf("committing: %w", failed))
		return nil
	}
	return fault.Fatal(fmt.Errorf("committing the offsets of group %s: %w", l.o.Group, failed))
}

func (l *effectLoop) onAssigned(partitions map[string][]int32) {
	l.assigned(partitions)
	if l.o.Assigned == nil {
		return
	}
	named := make(map[topic.Name][]int32, len(partitions))
	for t, ps := range partitions {
		named[l.c.NameOf(t)] = ps
	}
	l.o.Assigned(named)
}

// onGone commits what an earlier commit could not, if that can still succeed, and
// forgets it: the next owner begins at what is committed.
func (l *effectLoop) onGone(cl *kgo.Client, partitions map[string][]int32, orderly bool) {
	l.membership.gone(cl, partitions, orderly)
	if l.o.Assigned != nil {
		l.o.Assigned(nil)
	}
	if orderly {
		ctx, cancel := context.WithTimeout(l.work, 5*time.Second)
		defer cancel()
		if err := l.commit(ctx); err != nil {
			l.end(err)
		}
	}
	l.done = map[string]map[int32]kgo.EpochOffset{}
	for t, later := range l.later {
		for p := range later {
			cl.ResumeFetchPartitions(map[string][]int32{t: {p}})
		}
	}
	l.later = map[string]map[int32]time.Time{}
	l.atWork = false
}
