package kafka

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
)

// release asks the loop to let go of all partitions.
type release struct {
	orderly  bool // a commit can still succeed
	deadline time.Time
	done     chan struct{}
}

type claimLoop struct {
	*membership
	o       ClaimOptions
	name    string // its own, and of no other loop ever
	window  int
	valid   time.Duration // from claim to the beginning of the call
	metrics *claimMetrics

	consumer, producer *kgo.Client
	opened             chan struct{} // closed when consumer is set
	ended              chan struct{} // closed when the loop has ended

	mu     sync.Mutex
	posted []func()
	wake   chan struct{}

	// All below belongs to run.
	memberID   string
	generation int32
	denied     bool // the membership is over, and the callback that says so is on its way
	held       map[string]map[int32]*claimPartition
	order      []*claimPartition
	untouched  map[event.Source]map[int64]bool // of each partition that was let go, without offset: offsets nobody was called for
	turn       int
	ends       map[int32]int64 // known ends of the partitions of outcomes
	reserve    []*claimItem    // claimed, waiting for a free connection
	inHand     int             // claiming, claimed, calling or answered
	calling    int
	unacked    int // records produced and not acknowledged
	committing bool
	commitFrom time.Time // no commit before: the last one failed
	commitWait backoff
	tidyAt     time.Time
	polling    bool
	lane       struct {
		closed bool
		until  time.Time
		pause  backoff
	}
	releases []*release
	stopping bool
	err      error
	dead     bool

	calls   chan *claimItem
	poll    chan struct{}
	callCtx context.Context
}

type claimMetrics struct {
	commits    *prometheus.CounterVec
	unresolved prometheus.Counter
	inHand     prometheus.Gauge
	stale      prometheus.Counter
}

func newClaimLoop(c *Cluster, o ClaimOptions) *claimLoop {
	r := c.tel.Registry
	l := &claimLoop{
		o: o, name: strconv.FormatUint(rand.Uint64(), 36),
		window: 2 * o.Connections, valid: c.cfg.SessionTimeout / 2,
		metrics: &claimMetrics{
			commits: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "claim_commits_total", Help: "Offset commits of the claim loop by result: ok, fenced, failed.",
			}, []string{"result"})),
			unresolved: register(r, prometheus.NewCounter(prometheus.CounterOpts{
				Name: "claim_unresolved_total", Help: "Records found claimed and without an answer on assignment.",
			})),
			inHand: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
				Name: "claim_in_hand_records", Help: "Records claimed and not settled.",
			})),
			stale: register(r, prometheus.NewCounter(prometheus.CounterOpts{
				Name: "claim_stale_total", Help: "Claims that were too old when their turn came and were made again.",
			})),
		},
		opened: make(chan struct{}), ended: make(chan struct{}),
		wake: make(chan struct{}, 1), held: map[string]map[int32]*claimPartition{}, ends: map[int32]int64{},
		untouched: map[event.Source]map[int64]bool{},
		calls:     make(chan *claimItem, o.Connections), poll: make(chan struct{}, 1),
		commitWait: *newBackoff(),
	}
	l.membership = c.newMembership(o.Group, c.metrics.stage(string(o.Group)), func(err error) {
		l.post(func() { l.fail(err) })
	})
	return l
}

// post runs f in the loop's goroutine, soon. It never blocks.
func (l *claimLoop) post(f func()) {
	l.mu.Lock()
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ask is post, and waits until f has run; false when the loop has ended.
func (l *claimLoop) ask(f func()) bool {
	done := make(chan struct{})
	l.post(func() { f(); close(done) })
	select {
	case <-done:
		return true
	case <-l.ended:
		return false
	}
}

func (l *claimLoop) run(ctx context.Context) error {
	var err error
	l.producer, err = l.c.Producer(
		// An outcome may wait this long for company: it holds up nothing but its
		// own place in the window.
		kgo.ProducerLinger(6 * time.Millisecond))
	if err != nil {
		return err
	}
	defer l.producer.Close()
	h := l.hooks()
	h.assigned, h.fetched, h.gone = l.onAssigned, l.onFetched, l.onGone
	versions := kversion.Tip()
	// Version 10 names topics by id, which the client keeps to itself; by name the
	// claim also reads well in a broker's log.
	versions.SetMaxKeyVersion(int16(kmsg.OffsetCommit), 9)
	l.consumer, err = kgo.NewClient(join(
		l.c.clientOptions(string(l.o.Group)),
		// Control records are kept so that the committed offset reaches the end
		// of what transactions wrote, and lag 0 means nothing is left.
		l.c.groupOptions(l.o.Group, l.o.Topics, true, h),
		[]kgo.Opt{
			kgo.WithHooks(l.membership), kgo.MaxVersions(versions),
			// A fetch waits, unpacked, until the calls have caught up with it. Mails
			// that differ in a name shrink to a twentieth: 16 MiB were 400.
			kgo.FetchMaxBytes(2 << 20), kgo.FetchMaxPartitionBytes(128 << 10),
		},
	)...)
	if err != nil {
		return fmt.Errorf("building the client of group %s: %w", l.o.Group, err)
	}
	l.client.Store(l.consumer)
	close(l.opened)

	work, stopWork := lifecycle.Drain(ctx)
	callCtx, stopCalls := context.WithCancel(work)
	l.callCtx = callCtx
	polls, stopPolls := context.WithCancel(ctx)
	var others sync.WaitGroup
	for range l.o.Connections {
		others.Go(l.worker)
	}
	others.Go(func() { l.poller(polls) })

	err = l.loop(ctx, work)
	close(l.ended) // whoever waits for the loop, callbacks included, goes on
	stopPolls()
	stopCalls()
	stopWork()
	close(l.calls)
	// A static member keeps its place in the group when its client closes.
	l.consumer.CloseAllowingRebalance()
	if l.dead {
		return err // as a kill: nobody is waited for
	}
	others.Wait()
	return err
}

func (l *claimLoop) loop(ctx, work context.Context) error {
	component := "loop " + string(l.o.Group)
	defer l.c.tel.Health.Rest(component)
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop, drained := ctx.Done(), work.Done()
	var hard <-chan time.Time
	for {
		l.c.tel.Health.Beat(component, maxTurn)
		select {
		case <-l.wake:
		case <-timer.C:
		case <-stop:
			stop, l.stopping = nil, true
		case <-drained:
			// The calls in flight end now, with what is known of them; what they
			// still have to say gets a moment to be acknowledged.
			drained, l.stopping, hard = nil, true, time.After(500*time.Millisecond)
		case <-hard:
			return l.err // the last claim stands; the next owner resolves it
		}
		l.mu.Lock()
		posted := l.posted
		l.posted = nil
		l.mu.Unlock()
		for _, f := range posted {
			f()
		}
		if l.dead {
			return l.err
		}
		now := time.Now()
		if l.step(now) || l.dead {
			return l.err
		}
		if l.err != nil && !l.stopping {
			// What is in flight is not the error's fault: its answers are written
			// before the process ends, or people would be left uncertain.
			l.stopping, hard = true, time.After(lastWords)
			now = time.Time{}
		}
		timer.Reset(time.Until(l.nextLook(now)))
	}
}

// fail ends the loop.
func (l *claimLoop) fail(err error) {
	if l.err == nil && err != nil {
		l.err = err
	}
}

func (l *claimLoop) killed(point claimPoint, r *kgo.Record) bool {
	if l.dead || l.o.hook != nil && l.o.hook(point, r) {
		l.dead = true
		l.fail(errKilled)
	}
	return l.dead
}

// step does everything that can be done now.
func (l *claimLoop) step(now time.Time) (done bool) {
	if len(l.releases) > 0 || l.stopping {
		return l.letGo(now)
	}
	if l.denied {
		l.giveBack() // the callback that ends the membership is on its way
		return false
	}
	proposal := l.plan(now)
	if l.err != nil {
		// Nobody is called for these any more, and letting go would commit them as
		// claimed.
		for _, item := range proposal {
			l.unclaim(item)
		}
		return false
	}
	if l.lane.closed && l.inHand == 0 && now.After(l.lane.until.Add(pollTimeout)) {
		// Nobody is left here to try with, say because another member has them.
		l.openLane()
	}
	l.maybeCommit(now, proposal)
	l.dispatch()
	l.fetchControl(now)
	l.metrics.inHand.Set(float64(l.inHand))
	return false
}

// allowance is how many records may be claimed and unsettled now: one to try with
// when a pause for who was away is over.
func (l *claimLoop) allowance(now time.Time) int {
	switch {
	case !l.lane.closed:
		return l.window
	case now.Before(l.lane.until):
		return 0
	}
	return 1
}

// plan settles what needs no call and returns the records to claim next. Partitions
// take turns, so that none waits for the backlog of another.
func (l *claimLoop) plan(now time.Time) []*claimItem {
	if len(l.order) == 0 {
		return nil
	}
	free := l.allowance(now) - l.inHand
	idle := l.o.Connections - l.calling - len(l.reserve)
	if l.committing || now.Before(l.commitFrom) ||
		// While connections have work, claims wait until a quarter of the window
		// is free: one commit for many records.
		(idle <= 0 && free < (l.window+3)/4) {
		free = 0
	}
	var proposal []*claimItem
	for waiting := 0; waiting < len(l.order) && l.err == nil; l.turn++ {
		p := l.order[l.turn%len(l.order)]
		item := l.advance(p, now, len(proposal) < free)
		if item == nil {
			waiting++
			continue
		}
		waiting = 0
		item.state, item.scan = itemClaiming, l.ends[p.number]
		p.dirty, p.claiming = true, true
		if len(item.r.Key) > 0 {
			p.keys[string(item.r.Key)] = struct{}{}
		}
		l.inHand++
		proposal = append(proposal, item)
	}
	return proposal
}

// advance moves a partition's cursor to its next record that needs a call and, if
// that may be claimed, returns it. What needs no call is settled on the way.
func (l *claimLoop) advance(p *claimPartition, now time.Time, mayClaim bool) *claimItem {
	p.stuck = false
	for p.recovered == nil && p.cursor < p.end() && !now.Before(p.notBefore) && l.err == nil {
		item := p.at(p.cursor)
		if item.state == itemUnresolved && item.left == nil && item.waiting == 0 {
			outputs, err := l.o.Handler.Unresolved(l.callCtx, item.r)
			crash.In(l.o.Group, crash.Unresolved)
			if !l.answered(p, item, now, outputs, err, itemUnresolved) {
				return nil
			}
			l.metrics.unresolved.Inc()
			p.cursor++
			continue
		}
		if item.state != itemFresh {
			p.cursor++
			continue
		}
		// The outcomes of what needs no call may not outgrow the metadata, nor
		// settled records the memory.
		_, before := p.keys[string(item.r.Key)] // I6: her earlier message first
		if before || p.spared >= maxOpen || len(p.items) > maxSpan && p.cursor > p.popped {
			p.stuck = true
			return nil
		}
		if !mayClaim {
			return nil
		}
		call, outputs, err := l.o.Handler.Prepare(l.callCtx, item.r)
		if err == nil && call != nil {
			item.call = call
			p.cursor++
			return item
		}
		if !l.answered(p, item, now, outputs, err, itemSpared) {
			return nil
		}
		p.cursor++
	}
	return nil
}

// answered takes what the handler said about a record that needs no call; false
// when its partition has to wait.
func (l *claimLoop) answered(p *claimPartition, item *claimItem, now time.Time, outputs Outputs, err error, state itemState) bool {
	if err != nil {
		if t, ok := fault.AsNotBefore(err); ok {
			p.notBefore = t
			return false
		}
		switch fault.ClassOf(err) {
		case fault.ClassPoison:
			outputs = l.park(item, err)
		case fault.ClassTransient:
			p.notBefore = now.Add(p.pause.next)
			p.pause.grow()
			l.c.tel.Health.Set("reading "+string(p.name), err)
			return false
		default:
			l.fail(fmt.Errorf("preparing %s: %w", l.c.origin(item.r), err))
			return false
		}
	}
	if p.pause.next > newBackoff().next {
		p.pause.reset()
		l.c.tel.Health.Set("reading "+string(p.name), nil)
	}
	if state == itemSpared {
		p.spared++
		item.scan = l.ends[p.number]
	}
	item.state, p.dirty = state, true
	l.settleBy(item, outputs)
	return l.err == nil
}

func (l *claimLoop) park(item *claimItem, reason error) Outputs {
	l.fail(l.c.breaker.add(1, time.Now()))
	item.parked = true
	return Outputs{l.c.Park(item.r, reason)}
}

// settleBy produces the first group of outputs; the others follow its
// acknowledgement.
func (l *claimLoop) settleBy(item *claimItem, outputs Outputs) {
	for len(outputs) > 0 && len(outputs[0]) == 0 {
		outputs = outputs[1:]
	}
	if len(outputs) == 0 {
		// A record without an outcome would be taken for unresolved.
		l.fail(fault.Fatal(fmt.Errorf("settling %s: the handler gave no output", l.c.origin(item.r))))
		return
	}
	group := outputs[0]
	item.left, item.waiting = outputs[1:], len(group)
	l.unacked += len(group)
	outcomes := topic.Outcomes.In(l.c.cfg.Namespace)
	for _, r := range group {
		// (One that is parked because it lies where it should not is parked again
		// by a recovery.)
		if r.Topic == outcomes && r.Partition != item.p.number && !item.parked {
			l.fail(fault.Fatal(fmt.Errorf("settling %s: its outcome is for partition %d, where a recovery would not find it",
				l.c.origin(item.r), r.Partition)))
			return
		}
		// Not l.callCtx: an outcome is worth more than the drain time, and the
		// producer's Close ends it.
		l.producer.Produce(context.Background(), r, func(r *kgo.Record, err error) {
			l.post(func() { l.acked(item, r, err) })
		})
	}
}

func (l *claimLoop) acked(item *claimItem, r *kgo.Record, err error) {
	l.unacked--
	if err != nil {
		l.fail(fmt.Errorf("writing %s for %s/%d@%d: %w", l.c.NameOf(r.Topic), item.p.name, item.p.number, item.offset, err))
		return
	}
	if r.Topic == topic.Outcomes.In(l.c.cfg.Namespace) {
		l.ends[r.Partition] = max(l.ends[r.Partition], r.Offset+1)
	}
	item.waiting--
	if item.waiting > 0 {
		crash.In(l.o.Group, crash.Parking)
		return
	}
	if len(item.left) > 0 {
		crash.In(l.o.Group, crash.Retried)
		l.settleBy(item, item.left)
		return
	}
	if l.killed(pointAcked, item.r) {
		return
	}
	crash.In(l.o.Group, crash.Settled)
	switch item.state {
	case itemAnswered:
		l.inHand--
	case itemSpared:
		item.p.spared--
	}
	if item.parked {
		crash.In(l.o.Group, crash.Buried)
		l.stage.deadLetters.Inc()
	} else {
		l.stage.ok.Inc()
	}
	// I1: from here on the offset may pass it.
	item.state, item.r, item.call, item.left = itemSettled, nil, nil, nil
	item.p.dirty = true
}

// dispatch hands claimed records to free connections.
func (l *claimLoop) dispatch() {
	for l.calling < l.o.Connections && len(l.reserve) > 0 && l.err == nil {
		item := l.reserve[0]
		if l.killed(pointClaimed, item.r) {
			return
		}
		crash.In(l.o.Group, crash.Claimed)
		l.reserve = l.reserve[1:]
		item.state = itemCalling
		l.calling++
		l.calls <- item // never blocks: it has room for every connection
	}
}

func (l *claimLoop) worker() {
	for item := range l.calls {
		if !l.fresh(item.claimedAt, time.Now()) || l.callCtx.Err() != nil {
			l.post(func() { l.tooOld(item) })
			continue
		}
		ctx, cancel := context.WithTimeout(l.callCtx, l.o.CallTimeout)
		outputs, err := item.call.Do(ctx) // I8: the claim is durable and young
		cancel()
		l.post(func() { l.called(item, outputs, err) })
	}
}

// fresh reports whether a call may begin under a claim. Both clocks are asked: the
// monotonic one stands still while a machine sleeps.
func (l *claimLoop) fresh(claimedAt, now time.Time) bool {
	return now.Sub(claimedAt) < l.valid && now.Round(0).Sub(claimedAt.Round(0)) < l.valid
}

// tooOld takes back a record whose claim had expired before its call began: the
// group may have been given to somebody else meanwhile. Only another commit tells.
func (l *claimLoop) tooOld(item *claimItem) {
	l.calling--
	l.metrics.stale.Inc()
	l.unclaim(item)
}

func (l *claimLoop) called(item *claimItem, outputs Outputs, err error) {
	l.calling--
	if l.killed(pointCalled, item.r) {
		return
	}
	crash.In(l.o.Group, crash.Answered)
	now := time.Now()
	if err != nil {
		switch fault.ClassOf(err) {
		case fault.ClassTransient:
			l.closeLane(item, now, err)
			return
		case fault.ClassPoison:
			outputs = l.park(item, err)
		default:
			l.fail(fmt.Errorf("calling for %s: %w", l.c.origin(item.r), err))
			return
		}
	} else if l.lane.closed {
		l.openLane()
	}
	delete(item.p.keys, string(item.r.Key))
	item.state = itemAnswered
	l.settleBy(item, outputs)
}

func (l *claimLoop) openLane() {
	l.lane.closed = false
	l.c.tel.Health.Set(l.o.Provider, nil)
}

// closeLane gives back the record, and all that is claimed and not begun, because
// whoever is asked is away: nobody's attempt is used up, and a kill meanwhile
// leaves nobody uncertain.
func (l *claimLoop) closeLane(item *claimItem, now time.Time, err error) {
	l.unclaim(item)
	if l.callCtx.Err() != nil {
		return // it was our own end that interrupted the call
	}
	l.c.tel.Health.Set(l.o.Provider, err)
	if !l.lane.closed {
		l.lane.closed, l.lane.pause = true, *newBackoff()
	} else if now.Before(l.lane.until) {
		return // a call from before the pause, with the same news
	}
	l.lane.until = now.Add(min(l.lane.pause.next, probeMax))
	l.lane.pause.grow()
	l.giveBack()
	l.stage.retried.Inc()
}

// giveBack makes every claim whose call has not begun undone; the next commit
// lists these records as open.
func (l *claimLoop) giveBack() {
	for _, item := range l.reserve {
		l.unclaim(item)
	}
	l.reserve = nil
}

func (l *claimLoop) unclaim(item *claimItem) {
	p := item.p
	delete(p.keys, string(item.r.Key))
	item.state, item.call = itemFresh, nil
	l.inHand--
	p.dirty = true
	for i := p.popped; i < p.cursor; i++ {
		if p.at(i) == item {
			p.cursor = i
		}
	}
}

// letGo brings everything in hand to its end and then gives up the partitions.
func (l *claimLoop) letGo(now time.Time) (done bool) {
	l.giveBack()
	orderly := true
	overdue := false
	for _, r := range l.releases {
		orderly = orderly && r.orderly
		overdue = overdue || now.After(r.deadline)
	}
	// What is let go of has no claim under way, however late it is: a commit ends by
	// itself when its claims have grown old.
	if l.committing || (l.calling > 0 || l.unacked > 0) && !overdue {
		return false
	}
	if orderly && !l.denied && !overdue && now.Before(l.commitFrom) {
		return false
	}
	if orderly && !l.denied && !overdue && l.commit(now, nil) {
		return false // its answer brings us back here, with nothing left to commit
	}
	l.drop()
	for _, r := range l.releases {
		close(r.done)
	}
	l.releases = nil
	return l.stopping
}

// drop forgets all partitions: the assignor is eager, so all go at once.
func (l *claimLoop) drop() {
	paused := map[string][]int32{}
	l.c.tel.Health.Set("claims", nil) // what was wrong with them is behind us
	for _, p := range l.order {
		if p.paused {
			paused[p.topic] = append(paused[p.topic], p.number)
		}
		l.c.tel.Health.Set("reading "+string(p.name), nil)
		l.remember(p)
	}
	if len(paused) > 0 {
		l.consumer.ResumeFetchPartitions(paused) // the client would remember it
	}
	// Calls that outlived the release stay in hand: they still end and write what
	// came of them, without a commit.
	l.held, l.order = map[string]map[int32]*claimPartition{}, nil
}

// remember keeps which records of a partition nobody was called for, though a claim
// of theirs may stand: one that was given back when no commit could say so any more,
// or that was written by a coordinator which did not live to answer.
func (l *claimLoop) remember(p *claimPartition) {
	if p.recovered != nil {
		return // nothing was called since it was last remembered
	}
	untouched := map[int64]bool{}
	for _, item := range p.items {
		if item.state == itemFresh {
			untouched[item.offset] = true
		}
	}
	l.untouched[p.source()] = untouched
}

// nextLook is when something becomes due by itself.
func (l *claimLoop) nextLook(now time.Time) time.Time {
	next := now.Add(time.Second)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	if l.lane.closed {
		sooner(l.lane.until)
	}
	sooner(l.tidyAt)
	sooner(l.commitFrom)
	for _, r := range l.releases {
		sooner(r.deadline)
	}
	for _, p := range l.order {
		sooner(p.notBefore)
	}
	return next.Add(time.Millisecond)
}

// fetchControl asks for records when few are left, and stops fetching where they
// would only pile up.
func (l *claimLoop) fetchControl(now time.Time) {
	pause, resume := map[string][]int32{}, map[string][]int32{}
	usable := 0
	for _, p := range l.order {
		queued := p.end() - p.cursor
		// The records of a partition that waits stay in memory, at most a poll's
		// worth, and only fetching stops: seeking back would fetch them again
		// for each of its records that is not yet due.
		waits := p.recovered == nil && (p.notBefore.Sub(now) > pauseFrom || queued > 4*l.window)
		switch {
		case waits && !p.paused:
			pause[p.topic] = append(pause[p.topic], p.number)
		case !waits && p.paused:
			resume[p.topic] = append(resume[p.topic], p.number)
		}
		p.paused = waits
		if !waits && !p.stuck && p.recovered == nil {
			usable += queued
		}
	}
	if len(pause) > 0 {
		l.consumer.PauseFetchPartitions(pause)
	}
	if len(resume) > 0 {
		l.consumer.ResumeFetchPartitions(resume)
	}
	if !l.polling && usable < l.window {
		l.polling = true
		l.poll <- struct{}{}
	}
}

func (l *claimLoop) poller(ctx context.Context) {
	for {
		select {
		case <-l.poll:
		case <-ctx.Done():
			return
		}
		fetches := l.consumer.PollRecords(ctx, max(2*l.window, 100))
		alive := l.ask(func() { l.polling = false; l.ingest(fetches) })
		// No rebalance between poll and ingest, so that every record ingested
		// belongs to the present assignment.
		l.consumer.AllowRebalance()
		if !alive {
			return
		}
	}
}

func (l *claimLoop) ingest(fetches kgo.Fetches) {
	now := time.Now()
	l.stage.read(fetches, now)
	l.fail(l.pollErrors(fetches))
	fetches.EachRecord(func(r *kgo.Record) {
		p := l.held[r.Topic][r.Partition]
		if p == nil || r.Offset < p.next {
			return
		}
		p.next = r.Offset + 1
		item := &claimItem{p: p, r: r, offset: r.Offset, scan: -1}
		if r.Attrs.IsControl() {
			item.state, item.r = itemSettled, nil
		}
		if rec := p.recovered; rec != nil {
			if r.Offset <= rec.claim.To && item.state == itemFresh {
				item.state, item.scan = rec.stateOf(r.Offset), rec.claim.Scan
				if item.state == itemSettled {
					item.r = nil
				}
			}
			if p.next > rec.claim.To {
				p.recovered, p.dirty = nil, true
			}
		}
		p.items = append(p.items, item)
		p.dirty = true
	})
}

// The callbacks run in the client's goroutine.

func (l *claimLoop) onAssigned(partitions map[string][]int32) {
	<-l.opened
	l.assigned(partitions)
	member, generation := l.consumer.GroupMetadata()
	l.ask(func() { l.memberID, l.generation, l.denied = member, generation, false })
}

func (l *claimLoop) onGone(cl *kgo.Client, partitions map[string][]int32, orderly bool) {
	<-l.opened
	r := &release{orderly: orderly, done: make(chan struct{}),
		// Later the coordinator has thrown us out anyway.
		deadline: time.Now().Add(rebalanceTimeout - 5*time.Second)}
	defer l.gone(cl, partitions, orderly)
	if len(partitions) == 0 || !l.ask(func() { l.releases = append(l.releases, r) }) {
		return
	}
	select {
	case <-r.done:
	case <-l.ended:
	}
}

func (l *claimLoop) onFetched(ctx context.Context, committed []committedOffset) error {
	<-l.opened
	if err := l.fetched(ctx, committed); err != nil {
		return err
	}
	partitions, ends, err := l.recover(ctx, committed)
	if err != nil {
		return err
	}
	crash.In(l.o.Group, crash.Recovered)
	l.ask(func() {
		for n, end := range ends {
			l.ends[n] = max(l.ends[n], end)
		}
		for _, p := range partitions {
			if rec := p.recovered; rec != nil && rec.claim.By == l.name {
				for offset := range l.untouched[p.source()] {
					if !rec.answered[offset] { // by an heir that lived no longer than that
						rec.open[offset] = true
					}
				}
			}
			if l.held[p.topic] == nil {
				l.held[p.topic] = map[int32]*claimPartition{}
			}
			l.held[p.topic][p.number] = p
			l.order = append(l.order, p)
		}
	})
	return nil
}
