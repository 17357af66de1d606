package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
)

// Transformer decides: from records that were read, those to be written. It must
// give the same answer when asked again, because an aborted transaction's batch
// is read again.
type Transformer interface {
	// Transform gets one batch, in order within each partition, without control
	// records. The context outlives a signal by the drain time (I4). A Transient
	// error repeats the batch after a pause; any other ends the loop. Poison
	// records are the transformer's to park, with Cluster.Park.
	Transform(ctx context.Context, batch []*kgo.Record) (out []*kgo.Record, err error)
}

// Assigner is a Transformer with state per partition.
type Assigner interface {
	// Assigned runs after the offsets of these partitions were fetched, hence
	// after their former owner's last transaction, and before any of their
	// records is handed over. Partition numbers stand for the same partition of
	// every topic. It may take long: heartbeats go on. The context is cancelled
	// when the next rebalance begins. An error that is not Transient ends the
	// loop; a Transient one is repeated after a pause.
	Assigned(ctx context.Context, partitions []int32) error
	// Revoked takes them away: Transform is not running and will not see records
	// of them again before another Assigned. It also follows an Assigned that
	// failed.
	Revoked(partitions []int32)
}

// Committer is a Transformer that wants to know what became of its outputs.
type Committer interface {
	// Committed gets the last Transform's output, now durable, with Partition and
	// Offset filled in.
	Committed(out []*kgo.Record)
	// Aborted says that the last Transform never happened.
	Aborted()
}

// Pauser is a Transformer that holds some partitions back.
type Pauser interface {
	// Pause is asked after each batch, and every few seconds when there is none;
	// it returns all partitions that are not to be read from now on. It never
	// runs at the same time as Transform, Assigned or Revoked.
	Pause() map[topic.Name][]int32
}

// TransformOptions say what a Transform loop reads and who decides.
type TransformOptions struct {
	Group  topic.Group
	Topics []topic.Name // the group's, as in the catalogue, when empty
	// MaxPollRecords bounds a batch, control records included; 500 when 0. A
	// batch should be 20 ms of work, and must be far less than 2 s.
	MaxPollRecords int
	// KeepControlRecords lets the committed offset pass transaction markers: for
	// groups that the freshness barrier waits for.
	KeepControlRecords bool
	Transformer        Transformer
	// Window is how long further polls may join the first of a batch, up to
	// MaxPollRecords; 0 takes what the first poll gives.
	Window time.Duration
	// MaxOutputBytes ends a batch when what becomes of it is this large, at most 20
	// records later; 0 does not. For records that may become far larger than they
	// are: a transaction must fit into memory, and end in time. The Transformer is then given its batch in parts, and must not be a Committer.
	MaxOutputBytes int
	// Pace is the least time between the beginnings of two batches, unless the
	// first was full: a batch and its transaction cost about the same with one
	// record as with hundreds. A record that comes alone is not delayed. Where
	// transactions take long, because the machine or the broker is busy, batches
	// are further apart: see apart.
	Pace time.Duration
}

// partRecords is how many records are decided before the outputs are weighed.
const partRecords = 20

// endPatience is how long the end of a transaction may take, after its outputs are
// flushed, before the session is given up. Opening the next one aborts what is left.
const endPatience = 5 * time.Second

// errRenew ends a session that a new client can take up where it was.
var errRenew = errors.New("the transactional session must be renewed")

// RunTransform reads, decides and writes until ctx ends; then it finishes the batch
// in hand and returns nil. Outputs and offsets commit in one transaction, named
// <namespace>.<member> (with the group's suffix), or the batch is read again.
func (c *Cluster) RunTransform(ctx context.Context, o TransformOptions) error {
	if o.MaxPollRecords == 0 {
		o.MaxPollRecords = 500
	}
	if len(o.Topics) == 0 {
		o.Topics = topic.ReadBy(o.Group)
	}
	work, stop := lifecycle.Drain(ctx)
	defer stop()
	component := "loop " + string(o.Group)
	defer c.tel.Health.Rest(component)
	s := c.metrics.stage(string(o.Group))
	pause := newBackoff()
	for {
		err := c.transformSession(ctx, work, o, s, component)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errRenew):
			return err
		case ctx.Err() != nil:
			return nil
		}
		c.tel.Health.Set(component, err)
		if !pause.wait(ctx, nil) {
			return nil
		}
	}
}

// transformLoop is one session: one client, from join to close.
type transformLoop struct {
	*membership
	o         TransformOptions
	component string
	sess      *kgo.GroupTransactSession
	ctx       context.Context // ends when input is to stop
	work      context.Context // ends when the drain time is over
	pause     *backoff
	paused    map[string][]int32
	began     time.Time     // the last batch that was not full; zero for one that was
	took      time.Duration // a transaction's end, on average

	ownedMu sync.Mutex
	owned   []int32 // given to Assigned and not to Revoked since
}

func (c *Cluster) transformSession(ctx, work context.Context, o TransformOptions, s *stage, component string) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	l := &transformLoop{membership: c.newMembership(o.Group, s, end), o: o, component: component, ctx: ctx, work: work, pause: newBackoff()}
	h := l.hooks()
	h.assigned, h.fetched, h.gone = l.onAssigned, l.onFetched, l.onGone

	bounded, closer := closable(ctx)
	sess, err := kgo.NewGroupTransactSession(join(
		c.clientOptions(string(o.Group)), c.producerOptions(),
		c.groupOptions(o.Group, o.Topics, o.KeepControlRecords, h),
		c.transactionOptions(c.transactionalID(o.Group)),
		[]kgo.Opt{
			kgo.WithHooks(l.membership), bounded,
			// One batch for each partition of a transaction, not another for what was
			// said first. Flush, in commit, does not wait for it.
			kgo.ProducerLinger(time.Second),
		},
	)...)
	if err != nil {
		return fmt.Errorf("building the client of group %s: %w", o.Group, err)
	}
	l.sess = sess
	l.client.Store(sess.Client())
	defer func() {
		closer(sess.CloseAllowingRebalance)
		l.release()
	}()
	// Opening the transactional id ends what a killed former self, or a session
	// before this one, left open. The client would do it with the first batch;
	// but no batch comes before the offsets are stable, for which everybody
	// would wait until that transaction times out.
	if _, _, err := sess.Client().ProducerID(ctx); err != nil {
		if ctx.Err() != nil {
			return l.cause()
		}
		return l.sessionError("opening the transactional id", err)
	}
	crash.In(o.Group, crash.Opened)
	for {
		c.tel.Health.Beat(component, maxTurn)
		err := l.turn()
		if cause := l.cause(); cause != nil {
			return cause
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// cause is why a hook has ended the loop; nil if none has.
func (l *transformLoop) cause() error {
	if cause := context.Cause(l.ctx); !isContext(cause) {
		return cause
	}
	return nil
}

// turn is one batch, from poll to commit.
func (l *transformLoop) turn() error {
	// I3: nothing is in flight when this runs: the transaction has ended.
	defer l.letGo(l.sess.AllowRebalance)
	defer l.applyPauses()
	var batch, out []*kgo.Record
	part, patience, window := l.o.MaxPollRecords, pollTimeout, l.o.Window
	if l.pace() {
		window = max(window, afterPace)
	}
	if l.o.MaxOutputBytes > 0 {
		part = min(part, partRecords)
	}
	polled := 0
	for outBytes := 0; ; patience = time.Millisecond { // further parts are what has been fetched already
		fetches := l.gather(l.ctx, l.sess.PollRecords, min(part, l.o.MaxPollRecords-polled), 0, func() time.Duration { return window }, patience)
		if err := l.pollErrors(fetches); err != nil {
			return err
		}
		records, n := l.c.data(fetches)
		if polled == 0 && n > 0 {
			l.began = time.Now()
		}
		polled += n
		batch = append(batch, records...)
		if len(records) > 0 {
			made, err := l.decide(records)
			switch {
			case errors.Is(err, errLetGo):
				l.stage.retried.Add(float64(len(batch)))
				return l.rewind()
			case err != nil:
				return err
			}
			out = append(out, made...)
			for _, r := range made {
				outBytes += len(r.Key) + len(r.Value)
			}
		}
		if n == 0 || polled >= l.o.MaxPollRecords || outBytes >= l.o.MaxOutputBytes { // without a limit after the first
			break
		}
	}
	if polled == 0 {
		l.c.tel.Health.Set(l.component, nil) // nothing is left of what was wrong
		return nil
	}
	if polled >= l.o.MaxPollRecords {
		l.began = time.Time{}
	}
	return l.commit(batch, out)
}

// afterPace is how long a poll waits for what has come during the pace: the client
// has in hand what was there before it.
const afterPace = 2 * time.Millisecond

// pace waits until the next batch may begin, and reports whether it had to.
func (l *transformLoop) pace() bool {
	rest := apart(l.o.Pace, l.took) - time.Since(l.began)
	waitFor(l.ctx, rest, nil)
	return rest > 0
}

// apart is how far the beginnings of two batches are to be from one another: at least
// the pace, and so far that no more than a quarter of the time goes into ending
// transactions, of which the busier everything is the fewer shall be.
func apart(pace, took time.Duration) time.Duration {
	return max(pace, min(4*took, 4*pace))
}

// data returns the records to be handled, and the number of all: control records
// and what is replayed for another service are only passed.
func (c *Cluster) data(fetches kgo.Fetches) (batch []*kgo.Record, n int) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		n += len(p.Records)
	})
	batch = make([]*kgo.Record, 0, n)
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		for _, r := range p.Records {
			if !r.Attrs.IsControl() && c.addressed(r) {
				batch = append(batch, r)
			}
		}
	})
	return batch, n
}

// decide asks the transformer until it answers. What it needs may be away for long,
// but nobody else may be kept waiting: when a rebalance or a signal comes, the
// batch is given back.
func (l *transformLoop) decide(batch []*kgo.Record) ([]*kgo.Record, error) {
	pause := newBackoff()
	for failed := false; ; failed = true {
		start := time.Now()
		out, err := l.o.Transformer.Transform(l.work, batch)
		l.stage.work.Add(time.Since(start).Seconds())
		if err == nil {
			if failed {
				l.c.tel.Health.Set(l.component, nil)
			}
			return out, nil
		}
		l.aborted()
		switch {
		case l.work.Err() != nil:
			return nil, context.Cause(l.work)
		case fault.ClassOf(err) == fault.ClassTransient:
		case fault.ClassOf(err) == fault.ClassPoison:
			// Of a whole batch nobody can say which record is to be parked.
			return nil, fault.Fatal(fmt.Errorf("group %s: a batch cannot be poison, park the record: %w", l.o.Group, err))
		default:
			return nil, fmt.Errorf("group %s: %w", l.o.Group, err)
		}
		l.c.tel.Health.Set(l.component, err)
		l.c.tel.Health.Beat(l.component, maxTurn)
		if !pause.wait(l.ctx, l.rebalance()) {
			return nil, errLetGo
		}
	}
}

// rewind gives the polled batch back: the next poll begins at the committed offsets.
func (l *transformLoop) rewind() error {
	// Without a transaction begun this ends none and only moves positions back.
	_, err := l.sess.End(l.work, kgo.TryAbort)
	return l.sessionError("giving a batch back", err)
}

// commit makes outputs and offsets durable as one, or neither.
func (l *transformLoop) commit(batch, out []*kgo.Record) error {
	start := time.Now()
	defer func() {
		took := time.Since(start)
		l.took += (took - l.took) / 4
		l.stage.commit.Add(took.Seconds())
	}()

	if err := l.sess.Begin(); err != nil {
		l.aborted()
		return l.sessionError("beginning a transaction", err)
	}
	var mu sync.Mutex
	var produceErr error
	promise := func(r *kgo.Record, err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			if produceErr == nil {
				produceErr = fmt.Errorf("producing to %s/%d: %w", l.c.NameOf(r.Topic), r.Partition, err)
			}
			return
		}
		crash.In(l.o.Group, crash.Produced)
	}
	for _, r := range out {
		crash.In(l.o.Group, crash.Decided)
		l.sess.Produce(l.work, r, promise)
	}
	// Known before End, which would commit what did get through.
	flushErr := l.sess.Client().Flush(l.work)
	mu.Lock()
	failed := errors.Join(flushErr, produceErr)
	mu.Unlock()
	if failed == nil {
		known(l.work, l.sess.Client(), out)
	}

	// A member that has lost its group waits here for a heartbeat that nobody
	// sends, and readers of its outputs stand still meanwhile.
	endCtx, cancel := context.WithTimeout(l.work, endPatience)
	defer cancel()
	// I1: the offsets pass with all that their records caused, or not at all.
	committed, err := l.sess.End(endCtx, kgo.TransactionEndTry(failed == nil))
	if err = errors.Join(failed, err); err != nil || !committed {
		l.aborted()
		l.stage.retried.Add(float64(len(batch)))
		l.stage.retriedBatch.Inc()
		if err != nil {
			return l.sessionError("ending a transaction", err)
		}
		// Aborted because of a rebalance: the batch is read again, by whoever
		// owns its partitions now. Again and again would be no rebalance.
		l.pause.wait(l.ctx, nil)
		return nil
	}
	if len(out) > 0 {
		crash.In(l.o.Group, crash.Committed)
	}
	l.pause.reset()
	if c, ok := l.o.Transformer.(Committer); ok {
		c.Committed(out)
	}
	dead := 0
	deadLetters := topic.DeadLetters(l.c.service).In(l.c.cfg.Namespace)
	for _, r := range out {
		if r.Topic == deadLetters {
			dead++
		}
	}
	l.stage.okBatches.Inc()
	l.stage.deadLetters.Add(float64(dead))
	l.stage.ok.Add(float64(max(0, len(batch)-dead)))
	l.c.tel.Health.Set(l.component, nil)
	return l.c.breaker.add(dead, time.Now())
}

func (l *transformLoop) aborted() {
	if c, ok := l.o.Transformer.(Committer); ok {
		c.Aborted()
	}
}

// sessionError says what an error of the session asks for.
func (l *transformLoop) sessionError(doing string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s as %s: %w", doing, l.c.transactionalID(l.o.Group), err)
	switch {
	case errors.Is(err, kerr.FencedInstanceID):
		return l.c.fenced(err)
	case l.work.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(l.work), err)
	case !passing(err) && !isContext(err) && !renewable(err):
		return fault.Fatal(err)
	case l.wasReplaced(err):
		return l.c.fenced(err)
	}
	return fmt.Errorf("%w: %w", errRenew, err)
}

// wasReplaced tells whether another process has taken this one's name. It opens the
// transactional id a moment before it joins the group, so one that was fenced by
// a producer looks for that long; renewing its session would fence it in turn.
func (l *transformLoop) wasReplaced(err error) bool {
	looks := 1
	if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
		looks = 8
	}
	for range looks {
		if l.replaced(l.work, l.sess.Client()) {
			return true
		}
		if looks > 1 {
			waitFor(l.work, 250*time.Millisecond, l.ctx.Done())
		}
	}
	return false
}

// renewable tells errors that spoil a transactional client but not its group: what a
// pause longer than the transaction timeout, or a broker that was away, leaves
// behind. A new client begins where the last committed transaction ended.
func renewable(err error) bool {
	for _, e := range []error{
		kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidProducerIDMapping, kerr.UnknownProducerID,
		kerr.InvalidTxnState, kerr.OutOfOrderSequenceNumber, kerr.ConcurrentTransactions, kerr.TransactionAbortable,
		kerr.OperationNotAttempted, kerr.StaleMemberEpoch, kerr.GroupIDNotFound, kerr.UnknownServerError, kgo.ErrAborting,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (l *transformLoop) onAssigned(partitions map[string][]int32) {
	// The session swallows a revocation that follows another without a
	// transaction between them.
	l.release()
	l.membership.assigned(partitions)
}

// onFetched opens the partitions. It is the one moment at which the former owner's
// last transaction is known to have ended and no record has been handed over.
func (l *transformLoop) onFetched(ctx context.Context, committed []committedOffset) error {
	if err := l.membership.fetched(ctx, committed); err != nil {
		return err
	}
	a, ok := l.o.Transformer.(Assigner)
	if !ok || len(committed) == 0 {
		return nil
	}
	partitions, err := l.coPartitioned(committed)
	if err != nil {
		l.end(err)
		return err
	}
	l.ownedMu.Lock()
	l.owned = partitions
	l.ownedMu.Unlock()

	pause := newBackoff()
	for {
		l.c.tel.Health.Beat(l.component, maxTurn)
		err := a.Assigned(ctx, slices.Clone(partitions))
		switch {
		case err == nil:
			l.c.tel.Health.Set(l.component, nil)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case fault.ClassOf(err) != fault.ClassTransient:
			err = fmt.Errorf("opening partitions %v of group %s: %w", partitions, l.o.Group, err)
			l.end(err)
			return err
		}
		l.c.tel.Health.Set(l.component, err)
		if !pause.wait(ctx, l.ctx.Done()) {
			return errLetGo
		}
	}
}

// coPartitioned returns the partition numbers, which must be the same for all person
// topics: state of partition i serves all of them.
func (l *transformLoop) coPartitioned(committed []committedOffset) ([]int32, error) {
	byTopic := map[string][]int32{}
	for _, o := range committed {
		if l.c.catalogue[o.topic].Person {
			byTopic[string(o.topic)] = append(byTopic[string(o.topic)], o.partition)
		}
	}
	all := union(byTopic)
	for name, ps := range byTopic {
		slices.Sort(ps)
		if !slices.Equal(ps, all) {
			return nil, fault.Fatal(fmt.Errorf("group %s was given partitions %v of %s but %v of others: another member uses another assignor", l.o.Group, ps, name, all))
		}
	}
	return all, nil
}

func (l *transformLoop) onGone(cl *kgo.Client, partitions map[string][]int32, orderly bool) {
	l.membership.gone(cl, partitions, orderly)
	l.release()
}

// release takes from the transformer what Assigned gave it.
func (l *transformLoop) release() {
	l.ownedMu.Lock()
	owned := l.owned
	l.owned = nil
	l.ownedMu.Unlock()
	if a, ok := l.o.Transformer.(Assigner); ok && len(owned) > 0 {
		a.Revoked(owned)
	}
}

// applyPauses makes the paused partitions exactly those the transformer asks for.
func (l *transformLoop) applyPauses() {
	p, ok := l.o.Transformer.(Pauser)
	if !ok {
		return
	}
	want := map[string][]int32{}
	for name, partitions := range p.Pause() {
		want[name.In(l.c.cfg.Namespace)] = partitions
	}
	resume := map[string][]int32{}
	for t, partitions := range l.paused {
		for _, p := range partitions {
			if !slices.Contains(want[t], p) {
				resume[t] = append(resume[t], p)
			}
		}
	}
	if len(resume) > 0 {
		l.sess.Client().ResumeFetchPartitions(resume)
	}
	if len(want) > 0 {
		l.sess.Client().PauseFetchPartitions(want)
	}
	l.paused = want
}

// Each returns a Transformer that calls fn for one record after another. A Poison
// error parks the record in the same transaction; a Transient one repeats the
// whole batch, so fn must not act on the outside.
func Each(c *Cluster, fn func(ctx context.Context, r *kgo.Record) ([]*kgo.Record, error)) Transformer {
	return &each{c, fn}
}

type each struct {
	c  *Cluster
	fn func(ctx context.Context, r *kgo.Record) ([]*kgo.Record, error)
}

func (e *each) Transform(ctx context.Context, batch []*kgo.Record) ([]*kgo.Record, error) {
	out := make([]*kgo.Record, 0, 2*len(batch))
	for _, r := range batch {
		made, err := e.fn(ctx, r)
		if err != nil {
			if fault.ClassOf(err) != fault.ClassPoison {
				return nil, fmt.Errorf("transforming %s: %w", e.c.origin(r), err)
			}
			// I2: parked with its reason, in the transaction that passes it.
			out = append(out, e.c.Park(r, err)...)
			continue
		}
		out = append(out, made...)
	}
	return out, nil
}
