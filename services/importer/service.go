// Package importer turns files on S3 into records: profile updates, segment
// members and events.
//
// The promise: each row is in Kafka exactly once, or in the reject file with
// its line and reason, whoever is killed when; and it is known when all of it
// has been loaded.
//
// Rows, rejects and progress commit together, in transactions of the import's
// own transactional id. Whoever opens that id fences its former owner and only
// then reads the progress, so however many instances try, one writes. That
// makes the spreading of work a matter of thrift, not of safety: each instance
// waits its own moment, derived from the object and its name, before it takes
// an object, and leaves alone what another has made progress with lately.
package importer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/importer/internal/export"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// maxOpen bounds the imports that an instance owns at once, those included that
// only wait to be loaded: each holds a Kafka client.
const maxOpen = 32

// timing is what tests shorten.
type timing struct {
	takeover  time.Duration // an owner whose progress is older than this is gone
	heartbeat time.Duration // between two signs of life while waiting
	settle    time.Duration // after a fence, until whoever has the import now has written its name
	spread    time.Duration // within which the instances take a new object
	barrier   time.Duration // between two looks at the groups' offsets
	batch     time.Duration // after which rows are committed even if they are few

	receive    time.Duration // that the queue may wait for a message; whole seconds, at most 20
	visibility time.Duration // after which a message comes back whose holder is gone; whole seconds
	answer     time.Duration // after which whoever announces is told to come again
	look       time.Duration // first pause between two looks at an object that is announced; it grows
}

var defaultTiming = timing{
	takeover: time.Minute, heartbeat: 20 * time.Second, settle: 2 * time.Second, spread: 500 * time.Millisecond,
	barrier: 250 * time.Millisecond, batch: time.Second,
	receive: 20 * time.Second, visibility: 30 * time.Second, answer: 10 * time.Second, look: time.Second,
}

// Service is an importer.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	log     *slog.Logger
	metrics *metrics
	timing  timing

	s3          *s3.Client
	sqs         *sqs.Client // nil without a queue
	cluster     *kafka.Cluster
	definitions *definitions.Store
	progress    *progress
	liquid      *liquid.Engine
	reading     *semaphore.Weighted // places for large objects
	readingFew  *semaphore.Weighted // and as many for small ones, who never wait for large ones
	pointing    *semaphore.Weighted
	exports     *export.Runner

	mu      sync.Mutex
	running map[source]bool      // being worked on by this instance
	notYet  map[source]*patience // let go of, and when to try again
	looks   map[source]bool      // objects without ETag, as the last look showed them
	refused map[string]bool      // versions of specs that do not decode, said once
}

// patience is how long an import is left alone after it could not go on.
type patience struct {
	until  time.Time
	pause  time.Duration
	fenced bool // somebody else may have it now
}

// New checks the settings and opens no socket.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	cluster, err := kafka.New(cfg.Kafka, topic.Importer, tel)
	if err != nil {
		return nil, err
	}
	client, err := cfg.S3.client()
	if err != nil {
		return nil, err
	}
	queue, err := cfg.queue(defaultTiming.receive)
	if err != nil {
		return nil, err
	}
	streamer, err := clickhouse.NewStreamer(cfg.ClickHouse, cfg.Kafka.Namespace)
	if err != nil {
		return nil, err
	}
	m, store := newMetrics(tel.Registry), definitions.NewStore(cluster)
	return &Service{
		cfg: cfg, tel: tel, log: tel.Log, metrics: m, timing: defaultTiming,
		s3: client, sqs: queue, cluster: cluster, definitions: store, progress: newProgress(cluster, m, tel.Log),
		liquid: liquid.New(liquid.Options{}), reading: semaphore.NewWeighted(int64(cfg.ImportsAtOnce)), readingFew: semaphore.NewWeighted(int64(cfg.ImportsAtOnce)), pointing: semaphore.NewWeighted(1),
		running: map[source]bool{}, notYet: map[source]*patience{}, looks: map[source]bool{}, refused: map[string]bool{},
		exports: export.New(export.Options{
			Cluster: cluster, Definitions: store, ClickHouse: streamer, S3: client, Bucket: cfg.S3.Bucket, AtOnce: cfg.ExportsAtOnce,
			Log: tel.Log, Metrics: export.NewMetrics(tel.Registry),
		}),
	}, nil
}

// Run polls and imports until ctx ends; then each import commits the rows it
// has in hand and is let go.
func (s *Service) Run(ctx context.Context) error {
	if err := s.cluster.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer s.cluster.Close()
	work, stop := lifecycle.Drain(ctx)
	defer stop()

	// The tables outlive the signal, because finishing a batch needs them.
	tables, endTables := context.WithCancel(work)
	defer endTables()
	group, tables := errgroup.WithContext(tables)
	group.Go(func() error { return s.definitions.Run(tables) })
	group.Go(func() error { return s.progress.table.Run(tables) })
	group.Go(func() error { return s.exports.RunTable(tables) })

	// A table that fails ends everything; the restart is the retry.
	input, endInput := context.WithCancel(ctx)
	defer endInput()
	defer context.AfterFunc(tables, endInput)()
	both, input := errgroup.WithContext(input)
	both.Go(func() error { return s.poll(input, work) })
	both.Go(func() error { return s.exports.Run(input, work) })
	err := both.Wait()
	endTables()
	return errors.Join(err, group.Wait())
}

// poll looks for work until ctx ends, or an import fails for a reason that
// nobody foresaw.
func (s *Service) poll(ctx, work context.Context) error {
	imports, ctx := errgroup.WithContext(ctx)
	imports.SetLimit(maxOpen + 1 + announcers)
	// start says whether there was room.
	start := func(j job) bool {
		if !s.begin(j.source) {
			return true
		}
		if imports.TryGo(func() error { return s.work(ctx, work, j) }) {
			return true
		}
		s.end(j.source)
		return false
	}
	// What is new can be told only from what is known to the end. What was
	// begun need not wait for that: if this member was killed in a transaction,
	// the end cannot be read before the import is opened again, or 15 s are over.
	known := make(chan struct{})
	imports.Go(func() error {
		if s.definitions.CaughtUp(ctx) == nil && s.progress.table.CaughtUp(ctx) == nil {
			close(known)
		}
		return nil // ctx has ended, or a table, which Run hears of
	})
	s.listen(ctx, imports, known, start)
	var listed time.Time
	ticker := time.NewTicker(s.cfg.PollInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.tel.Health.Beat("importer", 10*s.cfg.PollInterval+2*time.Minute)
		jobs := s.begun()
		select {
		case <-known:
			if time.Since(listed) < s.cfg.listInterval() {
				break
			}
			fresh, err := s.fresh(ctx)
			if ctx.Err() == nil {
				s.tel.Health.Set("s3", err)
			}
			if err == nil {
				listed = time.Now()
			}
			jobs = append(jobs, fresh...)
		default:
		}
		for _, j := range jobs {
			if !start(j) {
				listed = time.Time{} // the next look finds them again
				break
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	return imports.Wait()
}

// job is an object to import, new or begun.
type job struct {
	source      source
	object      object
	specID      string
	specVersion int64
	begun       *entry // nil if nobody has
}

// begun finds the imports that somebody has begun and this instance may go on
// with now, the oldest objects first.
func (s *Service) begun() []job {
	var jobs []job
	for _, e := range s.progress.unfinished() {
		o := objectOf(&e.Import)
		j := job{source: sourceOf(o, e.SpecID), object: o, specID: e.SpecID, specVersion: e.SpecVersion, begun: e}
		if s.mayTake(j) {
			jobs = append(jobs, j)
		}
	}
	oldestFirst(jobs)
	return jobs
}

// fresh lists the prefixes and finds the objects that nobody has begun to
// import, the oldest first.
func (s *Service) fresh(ctx context.Context) ([]job, error) {
	var jobs []job
	looks := map[source]bool{}
	var failed error // one prefix may be refused, the others are listed
	for _, spec := range s.specs() {
		err := s.list(ctx, spec.prefix, func(o object) {
			j := job{source: sourceOf(o, spec.id), object: o, specID: spec.id, specVersion: spec.version}
			if !spec.takes(o.key) || !s.progress.wanted(o, spec.id, spec.version) || !s.mayTake(j) {
				return
			}
			// What has no ETag may still be being written: it is taken when
			// size and time were the same at two looks.
			looks[j.source] = true
			if o.etag == "" && !s.looks[j.source] {
				return
			}
			jobs = append(jobs, j)
		})
		if err != nil {
			failed = err
		}
	}
	s.looks = looks
	oldestFirst(jobs)
	return jobs, failed
}

func oldestFirst(jobs []job) {
	sort.Slice(jobs, func(a, b int) bool {
		if x, y := jobs[a].source.lastMicro, jobs[b].source.lastMicro; x != y {
			return x < y
		}
		return jobs[a].object.key < jobs[b].object.key
	})
}

// mayTake says whether this instance may try an import now.
func (s *Service) mayTake(j job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[j.source] {
		return false
	}
	let := s.notYet[j.source]
	if let != nil && time.Now().Before(let.until) {
		return false
	}
	if j.begun == nil {
		return true
	}
	// One that this member left behind when it was killed is its own still,
	// unless it was let go of since: then somebody else may have it. One that was asked
	// for is nobody's yet.
	if j.begun.owner == s.cluster.Member() || j.begun.owner == "" {
		return true
	}
	return time.Since(j.begun.UpdatedAt) > s.timing.takeover
}

// begin and end keep an import from being worked on twice in one process.
func (s *Service) begin(src source) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[src] {
		return false
	}
	s.running[src] = true
	return true
}

func (s *Service) end(src source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, src)
}

// letGo says when to try again. Being fenced does not tell by whom: by another
// instance, which writes its name into the progress at once, or by the broker,
// which gave up a transaction of ours while it could not be reached. So a
// little later the progress says whose it is. Else with growing pauses.
func (s *Service) letGo(src source, fenced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	let := s.notYet[src]
	if let == nil {
		let = &patience{pause: s.cfg.PollInterval}
		s.notYet[src] = let
	}
	if let.fenced = fenced; fenced {
		let.until = time.Now().Add(s.timing.settle)
		return
	}
	let.until = time.Now().Add(let.pause)
	let.pause = min(2*let.pause, time.Minute)
}

// errStopped says that the process ends; the import goes on elsewhere or later.
var errStopped = errors.New("stopping")

// work does one job and sorts out how it ended.
func (s *Service) work(ctx, work context.Context, j job) error {
	defer s.end(j.source)
	err := s.take(ctx, work, j)
	log := s.log.With("spec_id", j.specID, "spec_version", j.specVersion, "key", j.object.key)
	switch {
	case err == nil:
		s.mu.Lock()
		delete(s.notYet, j.source)
		s.mu.Unlock()
		return nil
	case errors.Is(err, errStopped) || ctx.Err() != nil:
		log.Info("import let go", "reason", "stopping")
		s.metrics.lettings.WithLabelValues("stopping").Inc()
		return nil
	case kafka.Fenced(err):
		log.Warn("import let go", "reason", "fenced: another instance has opened it, or the broker has given up its transaction", "error", err)
		s.metrics.lettings.WithLabelValues("fenced").Inc()
		s.letGo(j.source, true)
		return nil
	case fault.ClassOf(err) == fault.ClassTransient:
		log.Warn("import let go", "reason", "something is away", "error", err)
		s.metrics.lettings.WithLabelValues("transient").Inc()
		s.letGo(j.source, false)
		return nil
	}
	return fmt.Errorf("importing %s: %w", j.object, err)
}

// take waits this instance's moment, and unless another was faster, owns the
// import until its end.
func (s *Service) take(ctx, work context.Context, j job) error {
	if s.wasFenced(j.source) {
		if err := s.progress.table.CaughtUp(ctx); err != nil {
			return errStopped
		}
		if j.begun != nil {
			e := s.progress.get(j.begun.ImportID)
			if importfile.Ended(e.State) || e.owner != s.cluster.Member() && time.Since(e.UpdatedAt) <= s.timing.takeover {
				return nil
			}
			j.begun = e
		}
	}
	if unowned := j.begun == nil || j.begun.owner == ""; unowned && !sleep(ctx, s.moment(j)) {
		return errStopped
	}
	switch {
	case j.begun == nil:
		if !s.progress.wanted(j.object, j.specID, j.specVersion) {
			return nil
		}
	case j.begun.owner == "" && s.progress.get(j.begun.ImportID).owner != "":
		return nil
	}
	state := importfile.StateAnnounced
	if j.begun != nil {
		state = j.begun.State
	}
	if state == importfile.StateAnnounced || state == importfile.StateReading {
		// Before the import is owned: an owner who waits for a place looks
		// like one that is gone.
		places := s.reading
		if s.small(j.object.sizeBytes) {
			places = s.readingFew
		}
		if places.Acquire(ctx, 1) != nil {
			return errStopped
		}
		release := sync.OnceFunc(func() { places.Release(1) })
		defer release()
		return s.own(ctx, work, j, release)
	}
	return s.own(ctx, work, j, func() {})
}

// small says whether an object has a place among the small ones, who wait for nobody.
func (s *Service) small(sizeBytes int64) bool { return sizeBytes <= int64(s.cfg.TransactionBytes) }

func (s *Service) wasFenced(src source) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	let := s.notYet[src]
	return let != nil && let.fenced
}

// moment spreads the instances over a little time, each object in another
// order.
func (s *Service) moment(j job) time.Duration {
	if s.timing.spread <= 0 {
		return 0
	}
	h := identity.Hash(j.source.String(), s.cluster.Member())
	return time.Duration(binary.BigEndian.Uint64(h[:8]) % uint64(s.timing.spread))
}

// own opens the import and goes from the state it is in to the end.
func (s *Service) own(ctx, work context.Context, j job, readingDone func()) error {
	o := j.object
	if j.begun == nil {
		if ok, err := s.head(ctx, &o); err != nil || !ok {
			return err
		}
		// Only now is its version known. Opening it would fence who has it.
		if !s.progress.wanted(o, j.specID, j.specVersion) {
			s.progress.alias(j.source, o)
			return nil
		}
	}
	spec, err := s.specOf(ctx, j)
	if err != nil {
		return err
	}
	first := event.Import{
		SpecID: j.specID, SpecVersion: j.specVersion,
		Bucket: o.bucket, Key: o.key, VersionID: o.versionID, ETag: o.etag, SizeBytes: o.sizeBytes, LastModified: o.lastModified,
		Line: 1,
	}
	id := importfile.ID(&first)
	if j.begun != nil {
		id = j.begun.ImportID
	}
	client, err := s.cluster.TransactionalProducer(importfile.TransactionalID(id))
	if err != nil {
		return err
	}
	defer client.Close()
	i := &importing{Service: s, client: client, spec: spec, pace: s.newPace(o.sizeBytes), log: s.log.With("import_id", id.String(), "spec_id", j.specID, "spec_version", j.specVersion, "key", o.key)}
	// Open first, then read: after this nobody else can add to the progress,
	// so what is read now is where to go on.
	if _, _, err := client.ProducerID(work); err != nil {
		return fault.Transient(fmt.Errorf("opening import %s: %w", id, err))
	}
	crash.At(crash.ImporterOpened)
	if err := s.progress.table.CaughtUp(work); err != nil {
		return fault.Transient(fmt.Errorf("reading the progress of import %s: %w", id, err))
	}
	if e := s.progress.get(id); e != nil {
		i.at = e.Import
		if e.owner != s.cluster.Member() {
			// Whoever had it looks here for who has it now.
			if err := i.move(work, i.at.State); err != nil {
				return err
			}
		}
	} else if !s.progress.wanted(o, j.specID, j.specVersion) {
		return nil // imported under another version meanwhile
	} else {
		now := micros(time.Now())
		first.ImportID, first.AnnouncedAt, first.StartedAt = id, now, now
		i.at = first
		if spec.Segment != nil {
			i.at.SegmentID, i.at.SegmentMode = spec.Segment.ID, spec.Segment.ModeOrReplace()
		}
		if err := i.move(work, importfile.StateAnnounced); err != nil {
			return err
		}
	}
	return i.run(ctx, work, readingDone)
}

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
