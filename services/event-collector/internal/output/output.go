// Package output makes durable what came in over HTTP. While Kafka acknowledges in time it goes
// there; when it does not, it goes into a spool on the local disk, from which a drainer
// brings it to Kafka in order. Nothing overtakes what is in the spool.
package output

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/drain"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Entry is a record on its way to a topic. What it points to must not be changed any more.
type Entry = spool.Entry

var (
	// ErrAway says that neither Kafka nor the spool has everything. What they were given
	// may still arrive: repeating the request must be harmless.
	ErrAway = errors.New("it could not be stored")
	// ErrFull says that Kafka is away and the spool is full.
	ErrFull = spool.ErrFull
)

// Options are what a writer needs.
type Options struct {
	Cluster *kafka.Cluster
	Spool   spool.Options
	// AckTimeout is how long Kafka may take to acknowledge before the spool takes over.
	AckTimeout time.Duration
	Tel        *telemetry.Telemetry
}

// Writer writes entries: to Kafka (direct), or into the spool.
type Writer struct {
	Options
	log      *slog.Logger
	metrics  *metrics
	memories sync.Pool // of *kafka.Memory

	// Set by Open, and by Start.
	spool    *spool.Spool
	producer *kgo.Client

	mu       sync.Mutex
	direct   atomic.Bool   // changed under mu
	flying   list          // given to Kafka in direct, oldest first, not answered by it
	refused  bool          // one of them was, in this outage
	head     *spool.Ticket // of the last of them in the spool
	landed   chan struct{} // a value when flying has become empty
	spooling chan struct{} // a value when direct has ended
	emptied  chan struct{} // a value when direct has begun
	gate     chan struct{} // closed when Write may go on; nil if it may
	why      error         // direct has ended, or has not begun
	stopped  bool

	stop  context.CancelFunc // of what Open and Start have started
	ctx   context.Context    // of the same
	tasks sync.WaitGroup
}

// Component is what Health calls the spool.
const Component = "spool"

// New returns a writer that opens nothing.
func New(o Options) *Writer {
	w := &Writer{Options: o, log: o.Tel.Log, landed: make(chan struct{}, 1), spooling: make(chan struct{}, 1), emptied: make(chan struct{}, 1)}
	w.memories.New = func() any { return new(kafka.Memory) }
	w.Spool.Log, w.Spool.Owner = w.log, o.Cluster.Member()
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.metrics = newMetrics(o.Tel.Registry, w)
	return w
}

// What may wait for Kafka. Beyond it the spool takes over at once.
const (
	maxBufferedRecords = 200_000
	maxBufferedBytes   = 128 << 20
)

// Open opens the spool, from when on Write takes entries.
func (w *Writer) Open() error {
	s, err := spool.Open(w.Spool)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spool = s
	if st := s.Stats(); st.Records > 0 {
		w.log.Info("the spool holds what Kafka does not have yet", "dir", s.Dir(), "records", st.Records, "oldest", st.Oldest)
	}
	w.tasks.Go(func() { w.watch(w.ctx) })
	return nil
}

// Start opens the producer and begins to drain. The cluster has been started.
func (w *Writer) Start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil
	}
	producer, err := w.Cluster.Producer(kgo.MaxBufferedRecords(maxBufferedRecords), kgo.MaxBufferedBytes(maxBufferedBytes))
	if err != nil {
		return err
	}
	w.producer = producer
	first := w.spool.Stats() // before any of it is drained
	w.tasks.Go(func() { w.tell(w.ctx, first) })
	w.tasks.Go(func() { w.drain(w.ctx) })
	return nil
}

// Stop waits until Kafka has answered for what it was given, or ctx ends, and closes producer and
// spool. What is in the spool stays there for the next start. Nobody writes any more.
func (w *Writer) Stop(ctx context.Context) error {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return nil
	}
	w.stopped = true
	producer, s := w.producer, w.spool
	w.mu.Unlock()
	var err error
	if producer != nil {
		if w.direct.Load() {
			if ferr := producer.Flush(ctx); ferr != nil {
				err = fmt.Errorf("flushing what came in over HTTP: %w", ferr)
			}
		}
	}
	w.stop()
	w.tasks.Wait()
	if producer != nil {
		producer.Close()
	}
	if s != nil {
		err = errors.Join(err, s.Close())
	}
	return err
}

// Direct reports whether Kafka gets what is written, and the spool is empty.
func (w *Writer) Direct() bool { return w.direct.Load() }

// Write returns nil when every in-sync replica has all entries, or the local disk has (I1). Errors:
// ErrFull; ErrAway when the spool's disk fails, or ctx ends first; anything else is about the
// entries.
func (w *Writer) Write(ctx context.Context, entries ...Entry) error {
	if w.direct.Load() {
		done, err := w.produce(entries)
		if err != nil {
			return err
		}
		if done != nil {
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ErrAway
			}
		}
	}
	b, err := spool.Encode(nil, entries)
	if err != nil {
		return fmt.Errorf("making records: %w", err)
	}
	w.mu.Lock()
	if w.direct.Load() || w.spool == nil || w.gate != nil {
		ready, gate := w.spool != nil, w.gate
		w.mu.Unlock()
		if !ready {
			return fmt.Errorf("%w: the spool is not open", ErrAway)
		}
		if gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
				return ErrAway
			}
		}
		return w.Write(ctx, entries...)
	}
	// Under the lock that ends direct: nothing gets in front of what was given to Kafka before.
	ticket, err := w.spool.Add(entries, b)
	w.mu.Unlock()
	return w.spooled(ctx, ticket, err, len(entries))
}

// spooled waits until the spool has what was added to it.
func (w *Writer) spooled(ctx context.Context, ticket *spool.Ticket, err error, records int) error {
	if err == nil {
		err = ticket.Wait(ctx)
	}
	switch {
	case errors.Is(err, ErrFull):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	w.metrics.spooled.Add(float64(records))
	crash.At(crash.SpoolAppended)
	return nil
}

// group is what one call of Write gave to Kafka.
type group struct {
	entries    []Entry
	at         time.Time
	left       atomic.Int64
	failed     atomic.Bool
	answered   atomic.Bool
	done       chan error
	prev, next *group // in flying
}

// answer tells who waits, once: the spool and Kafka may both come to have it.
func (g *group) answer(err error) {
	if g.answered.CompareAndSwap(false, true) {
		g.done <- err
	}
}

// produce gives entries to Kafka. Its answer is nil if direct has ended.
func (w *Writer) produce(entries []Entry) (<-chan error, error) {
	memory := w.memories.Get().(*kafka.Memory)
	defer w.memories.Put(memory)
	records := make([]*kgo.Record, len(entries))
	for i, e := range entries {
		var err error
		if records[i], err = w.Cluster.RecordIn(memory, e.Topic, e.Key, e.Record); err != nil {
			return nil, fmt.Errorf("making a record for %s: %w", e.Topic, err)
		}
	}
	g := &group{entries: entries, at: time.Now(), done: make(chan error, 1)}
	g.left.Store(int64(len(records)))
	w.mu.Lock()
	if !w.direct.Load() {
		w.mu.Unlock()
		return nil, nil
	}
	w.flying.push(g)
	w.mu.Unlock()
	// Direct may end before the last of them is produced: the drainer waits for each of them
	// before it produces anything.
	for _, r := range records {
		// The request's end does not take a record back: the client may have to
		// drop others with it to keep its sequence whole.
		w.producer.TryProduce(context.Background(), r, func(r *kgo.Record, err error) {
			if err != nil {
				g.failed.Store(true)
				if !errors.Is(err, kgo.ErrMaxBuffered) && !errors.Is(err, kgo.ErrClientClosed) {
					// Away is waited for without an end: this is Kafka saying no.
					w.log.Error("Kafka refuses a record", "topic", string(w.Cluster.NameOf(r.Topic)), "error", err)
				}
			} else {
				crash.At(crash.IntakePartly)
			}
			if g.left.Add(-1) == 0 {
				w.land(g, err)
			}
		})
	}
	return g.done, nil
}

// land is the end of a group's flight.
func (w *Writer) land(g *group, err error) {
	failed := g.failed.Load()
	w.mu.Lock()
	if failed {
		if w.direct.Load() {
			if err == nil {
				err = errors.New("one of its records was refused")
			}
			w.toSpool(fmt.Errorf("Kafka has not taken a record: %w", err))
		}
		w.refused = true
	}
	w.flying.remove(g)
	if w.flying.first == nil {
		notify(w.landed)
	}
	w.mu.Unlock()
	if !failed {
		g.answer(nil)
	}
}

// toSpool ends direct. What Kafka has not acknowledged goes into the spool, in its order and in front of
// what comes; whoever waits for it is answered when it is there. w.mu is held.
func (w *Writer) toSpool(why error) {
	w.direct.Store(false)
	w.refused, w.head = false, nil
	w.why = why
	w.say()
	w.metrics.outages.Inc()
	for g := w.flying.first; g != nil; g = g.next {
		b, err := spool.Encode(nil, g.entries)
		var ticket *spool.Ticket
		if err == nil {
			ticket, err = w.spool.Add(g.entries, b)
		}
		if err == nil {
			w.head = ticket
		} else {
			w.refused = true // what the spool does not have it cannot skip
		}
		go func() { g.answer(w.spooled(context.Background(), ticket, err, len(g.entries))) }()
	}
	w.spool.Seal()
	notify(w.spooling)
}

// say says in Health how much waits in the spool, and why. w.mu is held.
func (w *Writer) say() {
	if w.direct.Load() {
		w.Tel.Health.Set(Component, nil)
		return
	}
	st := w.spool.Stats()
	if w.why == nil && st.Records == 0 {
		return // a start is no news
	}
	err := w.why
	if err == nil {
		err = errors.New("Kafka has not been found yet")
	}
	if st.Records > 0 {
		err = fmt.Errorf("%w; the oldest is of %s", err, st.Oldest.Format(time.RFC3339))
	}
	w.Tel.Health.Set(Component, fmt.Errorf("what comes in goes into the spool %s, where %d records wait: %w", w.spool.Dir(), st.Records, err))
}

// watch ends direct when Kafka is slow.
func (w *Writer) watch(ctx context.Context) {
	t := time.NewTicker(max(w.AckTimeout/10, time.Millisecond))
	defer t.Stop()
	said := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			w.mu.Lock()
			if !w.direct.Load() && now.Sub(said) > time.Second {
				said = now
				w.say()
			}
			if g := w.flying.first; w.direct.Load() && g != nil && now.Sub(g.at) > w.AckTimeout {
				w.toSpool(fmt.Errorf("Kafka has not acknowledged within %s", w.AckTimeout))
			}
			w.mu.Unlock()
		}
	}
}

// drain brings what is in the spool to Kafka and lets Kafka have what comes when the spool is empty,
// again and again.
func (w *Writer) drain(ctx context.Context) {
	for ctx.Err() == nil {
		if !w.drained(ctx) {
			return
		}
		select {
		case <-w.spooling:
		case <-ctx.Done():
			return
		}
		if !w.awaitLanding(ctx) {
			return
		}
	}
}

// awaitLanding waits until Kafka has answered for all it was given in direct. They go first: one producer
// keeps its order. If it has them after all, the spool need not repeat them.
func (w *Writer) awaitLanding(ctx context.Context) bool {
	for {
		w.mu.Lock()
		landed, refused, head := w.flying.first == nil, w.refused, w.head
		w.mu.Unlock()
		if !landed {
			select {
			case <-w.landed:
				continue
			case <-ctx.Done():
				return false
			}
		}
		if refused || head == nil || head.Wait(ctx) != nil {
			return ctx.Err() == nil
		}
		n, err := w.spool.Skip(head)
		if err == nil {
			w.metrics.skipped.Add(float64(n))
		} else {
			w.log.Warn("what Kafka has meanwhile is produced again", "error", err)
			w.spool.Rewind()
		}
		return true
	}
}

// drained returns when the spool is empty and direct has begun; false if ctx ends first.
func (w *Writer) drained(ctx context.Context) bool {
	pause := time.Duration(0)
	for {
		err := w.pass(ctx)
		if err == nil && w.handOver(ctx) {
			return true
		}
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			pause = 0
			continue
		}
		w.mu.Lock()
		w.why = fmt.Errorf("it does not get into Kafka: %w", err)
		w.say()
		w.mu.Unlock()
		pause = min(max(2*pause, 100*time.Millisecond), 5*time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
		}
	}
}

// pass drains what is in the spool now.
func (w *Writer) pass(ctx context.Context) error {
	return drain.Run(ctx, w.spool, w.Cluster, w.producer, func(n int) {
		w.metrics.drained.Add(float64(n))
		w.metrics.drainedAt.Store(time.Now().UnixNano())
	})
}

// handOver begins direct. What came while the last of the spool was on its way is a few milliseconds'
// worth: nothing more is let in until it is drained too, or under load the spool would never be empty.
// If Kafka goes away just then, it goes on into the spool.
func (w *Writer) handOver(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, max(w.AckTimeout, time.Second))
	defer cancel()
	gate := make(chan struct{})
	w.mu.Lock()
	w.gate = gate
	w.mu.Unlock()
	var err error
	for err == nil && !w.spool.Empty() {
		if err = w.pass(ctx); err != nil || w.spool.Empty() {
			break
		}
		select { // something is just being written
		case <-w.spool.Committed():
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	w.mu.Lock()
	if err == nil {
		w.direct.Store(true)
		w.why = nil
		w.say()
		notify(w.emptied)
		w.log.Info("what comes in goes to Kafka")
	}
	w.gate = nil
	w.mu.Unlock()
	close(gate)
	return err == nil
}

// tellEvery is how often Kafka is told what the spool holds, while that changes.
const tellEvery = time.Second

// tell tells Kafka what the spool holds, which nobody else can see: a run does not wait for it, and says
// how much it was. What was told lies there for ever, so a spool that was used before begins by telling
// how it stands now, whatever its last process came to say; one that was never used tells nothing. While
// Kafka is away the record under way waits with the others, and the next follows at once.
func (w *Writer) tell(ctx context.Context, now spool.Stats) {
	said, failed := int64(0), false
	due := w.spool.Used()
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for {
		if due || now.Records != said {
			err := w.told(ctx, now)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				said, due = now.Records, false
			} else if !failed && !errors.Is(err, kgo.ErrMaxBuffered) {
				w.log.Warn("Kafka is not told how much is in the spool; it is tried again", "error", err)
			}
			failed = err != nil
		}
		select {
		case <-t.C:
		case <-w.emptied:
		case <-ctx.Done():
			return
		}
		now = w.spool.Stats()
	}
}

// told returns when Kafka has been told.
func (w *Writer) told(ctx context.Context, st spool.Stats) error {
	r, err := w.Cluster.Record(topic.Spools, w.spool.Name(), drain.Told(w.spool.Name(), st))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	w.producer.TryProduce(context.Background(), r, func(_ *kgo.Record, err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// list is groups in the order in which they were given to Kafka.
type list struct{ first, last *group }

func (l *list) push(g *group) {
	g.prev = l.last
	if l.last == nil {
		l.first = g
	} else {
		l.last.next = g
	}
	l.last = g
}

func (l *list) remove(g *group) {
	if g.prev == nil {
		l.first = g.next
	} else {
		g.prev.next = g.next
	}
	if g.next == nil {
		l.last = g.prev
	} else {
		g.next.prev = g.prev
	}
	g.prev, g.next = nil, nil
}

// metrics are about the spool.
type metrics struct {
	outages          prometheus.Counter
	spooled          prometheus.Counter
	drained, skipped prometheus.Counter
	drainedAt        atomic.Int64 // Unix nanoseconds
}

func newMetrics(r prometheus.Registerer, w *Writer) *metrics {
	m := &metrics{
		outages: prometheus.NewCounter(prometheus.CounterOpts{Name: "intake_spool_outages_total", Help: "How often Kafka has not acknowledged in time, so that the spool took over."}),
		spooled: prometheus.NewCounter(prometheus.CounterOpts{Name: "intake_spooled_total", Help: "Records that went into the spool."}),
		drained: prometheus.NewCounter(prometheus.CounterOpts{Name: "intake_drained_total", Help: "Records of the spool that Kafka has acknowledged since."}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{Name: "intake_skipped_total", Help: "Records of the spool that Kafka had after all, when it was slow, so that they were not produced again."}),
	}
	stat := func(name, help string, value func(spool.Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			w.mu.Lock()
			s := w.spool
			w.mu.Unlock()
			if s == nil {
				return 0
			}
			return value(s.Stats())
		})
	}
	state := func(name string, is func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "intake_state", Help: "1 for the state in which intake is: direct to Kafka, draining the spool, or spooling while Kafka is away.",
			ConstLabels: prometheus.Labels{"state": name}}, func() float64 {
			if is() {
				return 1
			}
			return 0
		})
	}
	r.MustRegister(m.outages, m.spooled, m.drained, m.skipped,
		stat("intake_spool_bytes", "What the spool holds that is not in Kafka, in bytes.", func(s spool.Stats) float64 { return float64(s.Bytes) }),
		stat("intake_spool_max_bytes", "How large the spool may grow; then intake answers 503.", func(s spool.Stats) float64 { return float64(s.MaxBytes) }),
		stat("intake_spool_records", "Records in the spool that are not in Kafka.", func(s spool.Stats) float64 { return float64(s.Records) }),
		stat("intake_spool_oldest_seconds", "Age of the oldest of them, in seconds.", func(s spool.Stats) float64 {
			if s.Oldest.IsZero() {
				return 0
			}
			return time.Since(s.Oldest).Seconds()
		}),
		state("direct", w.direct.Load),
		state("draining", func() bool { return !w.direct.Load() && m.draining() }),
		state("spooling", func() bool { return !w.direct.Load() && !m.draining() }))
	return m
}

// draining reports whether the drainer has got on lately.
func (m *metrics) draining() bool {
	return time.Since(time.Unix(0, m.drainedAt.Load())) < 2*time.Second
}
