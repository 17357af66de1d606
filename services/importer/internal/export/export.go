// Package export writes what is known about people to files on S3: profiles, an audience, a
// segment, a run's outcomes, engagement.
//
// The promise: a manifest lists one complete export, of one moment, whoever is killed when;
// without a manifest there is none. How: docs/decisions/20261122-exports.md.
package export

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	awshttp "github.com/aws/smithy-go/transport/http"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/exports"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Timing is what tests shorten.
type Timing struct {
	Poll     time.Duration // between two looks for exports to do
	Takeover time.Duration // an owner whose progress is older than this is gone
	Sign     time.Duration // between two records of progress, which are signs of life too
	Spread   time.Duration // within which the instances take what is new
	Settle   time.Duration // after a fence, until whoever has it has written its name
}

// DefaultTiming is how it is in earnest.
func DefaultTiming() Timing {
	return Timing{Poll: 2 * time.Second, Takeover: time.Minute, Sign: time.Second, Spread: 500 * time.Millisecond, Settle: 2 * time.Second}
}

// Options are what a Runner is given.
type Options struct {
	Cluster     *kafka.Cluster
	Definitions *definitions.Store
	ClickHouse  *clickhouse.Streamer
	S3          *s3.Client
	Bucket      string
	AtOnce      int // exports of this instance
	Log         *slog.Logger
	Metrics     *Metrics
}

// Runner does the exports that are due, or asked for.
type Runner struct {
	Options
	Timing   Timing
	progress *progress
	places   *semaphore.Weighted

	mu      sync.Mutex
	running map[identity.ID]bool
	notYet  map[identity.ID]*patience
	looked  map[string]time.Time // until which a definition's schedule has been gone through, by id@version
	refused map[string]bool      // definitions that do not decode, said once
}

// patience is how long an export is left alone after it could not go on.
type patience struct {
	until time.Time
	pause time.Duration
}

// New opens no socket.
func New(o Options) *Runner {
	return &Runner{
		Options: o, Timing: DefaultTiming(), progress: newProgress(o.Cluster, o.Log), places: semaphore.NewWeighted(int64(o.AtOnce)),
		running: map[identity.ID]bool{}, notYet: map[identity.ID]*patience{}, looked: map[string]time.Time{}, refused: map[string]bool{},
	}
}

// RunTable follows the topic of exports until ctx ends.
func (r *Runner) RunTable(ctx context.Context) error { return r.progress.table.Run(ctx) }

// Run does exports until ctx ends; one that is under way is then let go, and done again by
// whoever comes next. What is to be finished on a signal gets the longer context work.
func (r *Runner) Run(ctx, work context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if r.Definitions.CaughtUp(ctx) != nil || r.progress.table.CaughtUp(ctx) != nil {
			return nil // ctx has ended, or a table, which others hear of
		}
		ticker := time.NewTicker(r.Timing.Poll)
		defer ticker.Stop()
		for {
			for _, j := range append(r.begun(), r.due(time.Now())...) {
				if r.begin(j.id) {
					group.Go(func() error { return r.work(ctx, work, j) })
				}
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// job is an export to do, begun or asked for by somebody, or due.
type job struct {
	id    identity.ID
	begun bool
	fresh event.Export // of one that is due: its first record
}

func (r *Runner) begun() []job {
	var jobs []job
	all := r.progress.unfinished()
	slices.SortFunc(all, func(a, b *entry) int { return a.RequestedAt.Compare(b.RequestedAt) })
	for _, e := range all {
		if r.mayTake(e) {
			jobs = append(jobs, job{id: e.ExportID, begun: true})
		}
	}
	return jobs
}

// due finds the exports whose moment has come. Of the moments that nobody was there for, the
// latest is made up for.
func (r *Runner) due(now time.Time) []job {
	var jobs []job
	for _, v := range r.Definitions.All(definition.KindExport) {
		def, err := definitions.Decode[*definition.Export](v)
		name := fmt.Sprintf("%s@%d", v.ID, v.Number)
		if err != nil {
			r.refuse(name, err)
			continue
		}
		// A version has no moments before it was applied.
		from := v.AppliedAt
		r.mu.Lock()
		if t, ok := r.looked[name]; ok {
			from = t
		}
		r.mu.Unlock()
		var moment time.Time
		switch {
		case def.Schedule != nil:
			if moment, err = def.Schedule.Latest(from, now); err != nil {
				r.refuse(name, err)
				continue
			}
		case def.At.After(from) && !def.At.After(now):
			moment = def.At
		}
		if moment.IsZero() {
			continue
		}
		text := moment.UTC().Format(time.RFC3339Nano)
		id := identity.Export(r.Cluster.Namespace(), v.ID, v.Number, text)
		if r.progress.get(id) != nil {
			// It is begun, and begun finds it from now on.
			r.mu.Lock()
			r.looked[name] = moment
			r.mu.Unlock()
			continue
		}
		if r.resting(id) {
			continue
		}
		jobs = append(jobs, job{id: id, fresh: exports.New(r.Cluster.Namespace(), def, v.Number, v.Body, text, moment)})
	}
	return jobs
}

func (r *Runner) refuse(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.refused[name] {
		r.refused[name] = true
		r.Log.Error("export is not understood and left alone", "definition", name, "error", err)
	}
}

// mayTake says whether this instance may try an export now.
func (r *Runner) mayTake(e *entry) bool {
	return !r.resting(e.ExportID) && r.mayOpen(e)
}

func (r *Runner) resting(id identity.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.notYet[id]
	return r.running[id] || p != nil && time.Now().Before(p.until)
}

func (r *Runner) begin(id identity.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[id] {
		return false
	}
	r.running[id] = true
	return true
}

func (r *Runner) end(id identity.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, id)
}

// letGo says when to try again.
func (r *Runner) letGo(id identity.ID, fenced bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.notYet[id]
	if p == nil {
		p = &patience{pause: r.Timing.Poll}
		r.notYet[id] = p
	}
	if fenced {
		p.until = time.Now().Add(r.Timing.Settle)
		return
	}
	p.until = time.Now().Add(p.pause)
	p.pause = min(2*p.pause, time.Minute)
}

// Failure is why an export fails, in a sentence for who asked for it.
type Failure struct{ Reason string }

func (f *Failure) Error() string { return f.Reason }

var errStopped = errors.New("stopping")

// work does one job and sorts out how it ended.
func (r *Runner) work(ctx, work context.Context, j job) error {
	defer r.end(j.id)
	if r.places.Acquire(ctx, 1) != nil {
		return nil
	}
	defer r.places.Release(1)
	err := r.take(ctx, work, j)
	log := r.Log.With("export_id", j.id.String())
	switch {
	case err == nil:
		r.mu.Lock()
		delete(r.notYet, j.id)
		r.mu.Unlock()
		return nil
	case ctx.Err() != nil || errors.Is(err, errStopped):
		log.Info("export let go", "reason", "stopping")
		r.Metrics.lettings.WithLabelValues("stopping").Inc()
		return nil
	case kafka.Fenced(err):
		log.Warn("export let go", "reason", "fenced: another instance has opened it, or the broker has given up its transaction", "error", err)
		r.Metrics.lettings.WithLabelValues("fenced").Inc()
		r.letGo(j.id, true)
		return nil
	case fault.ClassOf(err) == fault.ClassTransient:
		log.Warn("export let go", "reason", "something is away", "error", err)
		r.Metrics.lettings.WithLabelValues("transient").Inc()
		r.letGo(j.id, false)
		return nil
	}
	return fmt.Errorf("export %s: %w", j.id, err)
}

// take waits this instance's moment, and unless another was faster, owns the export until
// its end.
func (r *Runner) take(ctx, work context.Context, j job) error {
	e := r.progress.get(j.id)
	if e == nil || e.owner != r.Cluster.Member() {
		h := identity.Hash(j.id.String(), r.Cluster.Member())
		timer := time.NewTimer(time.Duration(binary.BigEndian.Uint64(h[:8]) % uint64(max(r.Timing.Spread, 1))))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return errStopped
		}
		if err := r.progress.table.CaughtUp(ctx); err != nil {
			return errStopped
		}
		if e = r.progress.get(j.id); e != nil && (exports.Ended(e.State) || !r.mayOpen(e)) {
			return nil
		}
	}
	client, err := r.Cluster.TransactionalProducer(exports.TransactionalID(j.id))
	if err != nil {
		return err
	}
	defer client.Close()
	// Open first, then read: after this nobody else can write to the export.
	if _, _, err := client.ProducerID(work); err != nil {
		return fault.Transient(fmt.Errorf("opening export %s: %w", j.id, err))
	}
	crash.At(crash.ExportOpened)
	if err := r.progress.table.CaughtUp(work); err != nil {
		return fault.Transient(fmt.Errorf("reading the progress of export %s: %w", j.id, err))
	}
	x := &exporting{Runner: r, client: client, at: j.fresh}
	if e := r.progress.get(j.id); e != nil {
		x.at = e.Export
	}
	if exports.Ended(x.at.State) {
		return nil
	}
	x.log = r.Log.With("export_id", j.id.String(), "definition_id", x.at.DefinitionID)
	return x.run(ctx, work)
}

// mayOpen is mayTake for who has said already that it runs.
func (r *Runner) mayOpen(e *entry) bool {
	return e.owner == "" || e.owner == r.Cluster.Member() || time.Since(e.UpdatedAt) > r.Timing.Takeover
}

// exporting is an export that this instance owns.
type exporting struct {
	*Runner
	client *kgo.Client
	log    *slog.Logger
	at     event.Export // as committed
	def    *definition.Export
}

func (x *exporting) run(ctx, work context.Context) error {
	err := x.steps(ctx, work)
	var failed *Failure
	if errors.As(err, &failed) {
		x.log.Warn("export failed", "reason", failed.Reason)
		next := x.at
		next.State, next.Error, next.Files = exports.Failed, failed.Reason, nil
		// Without the right to, what was written stays; it has no manifest.
		_ = x.bucket().clear(work, x.at.Folder, nil)
		err = x.commit(work, next)
	}
	if err == nil {
		x.log.Info("export ended", "state", x.at.State, "rows", x.at.Rows, "bytes", x.at.Bytes, "files", len(x.at.Files))
		x.Metrics.ended(x.at.State)
	}
	return err
}

func (x *exporting) steps(ctx, work context.Context) error {
	d, err := definition.Decode(definition.KindExport, []byte(x.at.Definition))
	if err != nil {
		return &Failure{fmt.Sprintf("the definition is not understood: %v", err)}
	}
	x.def = d.(*definition.Export)
	if x.at.State != exports.Sealed {
		if err := x.attempt(ctx, work); err != nil {
			return err
		}
	}
	// From here on it is decided what the export is: whoever is killed, it is written.
	columns := columnsOf(x.def, &binder{params: map[string]string{}})
	text, err := manifest(&x.at, x.def, columns)
	if err != nil {
		return err
	}
	if err := x.bucket().put(work, x.at.Folder+exports.Manifest, "application/json", text); err != nil {
		return away(err)
	}
	crash.At(crash.ExportManifested)
	keep := map[string]bool{x.at.Folder + exports.Manifest: true}
	for _, f := range x.at.Files {
		keep[x.at.Folder+f.Key] = true
	}
	if err := x.bucket().clear(work, x.at.Folder, keep); err != nil {
		return away(err)
	}
	next := x.at
	next.State = exports.Done
	return x.commit(work, next)
}

func (x *exporting) bucket() bucket { return bucket{x.S3, x.at.Bucket, x.at.ExportID.String()} }

// attempt writes all files, and seals them.
func (x *exporting) attempt(ctx, work context.Context) error {
	if !x.ClickHouse.HTTP() {
		return &Failure{"exports are read by HTTP: CLICKHOUSE_URL of the importer has to begin with http or https"}
	}
	next := x.at
	next.State, next.Rows, next.Bytes, next.Files = exports.Writing, 0, 0, nil
	next.Attempt++
	if next.Bucket == "" {
		next.Bucket = x.Bucket
	}
	next.AsOf = time.Now().UTC().Truncate(time.Microsecond)
	if err := x.commit(work, next); err != nil {
		return err
	}
	crash.At(crash.ExportBegun)
	n, at, err := x.people()
	if err != nil {
		return err
	}
	q, columns, err := queryOf(x.def, n, at)
	if err != nil {
		return err
	}
	// The writer runs beside the signs of life, which also tell whether the export is owned.
	writing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	progress := &written{}
	ended := make(chan error, 1)
	go func() { ended <- x.write(writing, q, columns, progress) }()
	signs := time.NewTicker(x.Timing.Sign)
	defer signs.Stop()
	for {
		select {
		case <-signs.C:
			if err := x.commit(work, x.written(progress)); err != nil {
				stop(err)
				<-ended
				return err
			}
		case err := <-ended:
			if err != nil {
				if ctx.Err() != nil {
					return errStopped
				}
				return err
			}
			next := x.written(progress)
			next.State = exports.Sealed
			_, next.Files = progress.get()
			for _, c := range columns {
				next.Columns = append(next.Columns, c.name)
			}
			crash.At(crash.ExportWritten)
			if err := x.commit(work, next); err != nil {
				return err
			}
			crash.At(crash.ExportSealed)
			return nil
		}
	}
}

// written is the record of what is written so far, without the files: they are not the export
// yet.
func (x *exporting) written(progress *written) event.Export {
	next := x.at
	rows, files := progress.get()
	next.Rows, next.Bytes = rows, 0
	for _, f := range files {
		next.Bytes += f.Bytes
	}
	return next
}

// people is the filter of whom the export is about, and what it is evaluated against.
func (x *exporting) people() (*filter.Node, audience.Moment, error) {
	at := audience.Moment{AsOf: x.at.AsOf}
	var n *filter.Node
	switch x.def.What {
	case definition.WhatAudience:
		head, ok := x.Definitions.Head(definition.KindAudience, x.def.Audience)
		if !ok {
			return nil, at, &Failure{fmt.Sprintf("there is no audience %s", x.def.Audience)}
		}
		def, err := definitions.Decode[*definition.Audience](head)
		if err != nil {
			return nil, at, &Failure{err.Error()}
		}
		n = def.Filter
	case definition.WhatSegment:
		n = &filter.Node{Segment: x.def.Segment}
	default:
		return nil, at, nil
	}
	var err error
	if at.Segments, err = x.Definitions.Pins(n.Segments()); err != nil {
		return nil, at, &Failure{err.Error()}
	}
	return n, at, nil
}

// write does an attempt's files: while one part of the answer is sorted and written, the next ones are read.
func (x *exporting) write(ctx context.Context, q query, columns []column, progress *written) error {
	// Whatever lies there is of an attempt that sealed nothing, and never will.
	if err := x.bucket().clear(ctx, x.at.Folder, nil); err != nil {
		return away(err)
	}
	s := &splitter{ctx: ctx, export: x.def, columns: columns, bucket: x.bucket(), folder: x.at.Folder, attempt: x.at.Attempt}
	defer s.abort()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	pages := make(chan (<-chan page))
	spare := make(chan *sorter, atOnce)
	for range atOnce {
		spare <- newSorter(sortBytes)
	}
	read := make(chan error, 1)
	go func() {
		defer close(pages)
		read <- x.read(reading, q, columns, pages, spare)
	}()
	var err error
	rows := newReader(columns)
	for next := range pages {
		p := <-next
		if err == nil {
			err = p.err
		}
		if err == nil {
			err = s.page(rows, p.rows, progress)
		}
		if err != nil {
			stop() // and take what is still handed over
		}
		p.rows.close()
		spare <- p.rows
	}
	if failed := <-read; err == nil {
		err = failed
	}
	if err == nil {
		err = s.finish(progress)
	}
	x.Metrics.rows.Add(float64(s.rows))
	if (errors.Is(err, errBroken) || errors.Is(err, io.ErrUnexpectedEOF)) && x.at.Attempt < maxAttempts {
		err = fault.Transient(err)
	}
	return asked(ctx, away(err))
}

// atOnce is how many parts of an answer are in memory: one that is written, and those being read.
const atOnce = 3

// page is a part of an answer.
type page struct {
	rows *sorter
	err  error
}

// read asks for all rows, in several parts if they can be told apart by their ids, and hands the parts on in their order.
func (x *exporting) read(ctx context.Context, q query, columns []column, pages chan<- (<-chan page), spare <-chan *sorter) error {
	part := func(q query, done func(bytes int)) error {
		var rows *sorter
		select {
		case rows = <-spare:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		ready := make(chan page, 1)
		go func() {
			packed, bytes := newPacker(columns), 0
			err := x.ask(ctx, q, func(a *answer) error {
				for i := range a.rows {
					row := packed.row(a, i)
					bytes += len(row)
					if err := rows.add(a.columns[0].text(i), row); err != nil {
						return err
					}
				}
				return nil
			})
			done(bytes)
			ready <- page{rows, err}
		}()
		pages <- ready
		return nil
	}
	if !q.ranges {
		return part(q, func(int) {})
	}
	var ids []string
	if err := x.ask(ctx, boundaries, func(a *answer) error {
		for i := range a.rows {
			ids = append(ids, string(a.columns[0].text(i)))
		}
		return nil
	}); err != nil {
		return err
	}
	slices.Sort(ids)
	ids = append(slices.Compact(ids), "") // no end
	// A range has as many of the ids as fit into memory, judging by those that were read before.
	var mu sync.Mutex
	bytes, passed, some := 0, 0, 16
	for lo, at := "", 0; at < len(ids); lo = ids[at-1] {
		mu.Lock()
		if passed > 0 {
			some = min(max(1, sortBytes*2/3*passed/max(1, bytes)), 512)
		}
		mu.Unlock()
		n := min(some, len(ids)-at)
		at += n
		if err := part(q.between(lo, ids[at-1]), func(size int) {
			mu.Lock()
			defer mu.Unlock()
			bytes, passed = bytes+size, passed+n
		}); err != nil {
			return err
		}
	}
	return nil
}

// ask hands over the blocks of an answer as they come.
func (x *exporting) ask(ctx context.Context, q query, block func(*answer) error) error {
	body, err := x.ClickHouse.Stream(ctx, q.sql+answered, q.params, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	a := newAnswer(body, q.types)
	for {
		switch err := a.next(); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		if err := block(a); err != nil {
			return err
		}
	}
}

// maxAttempts of an answer that ends before its end make a failure: ClickHouse may well end it
// each time, for want of memory.
const maxAttempts = 5

// asked makes of what ClickHouse answered what becomes of the export: what waiting does not mend
// fails it, and the importer goes on.
func asked(ctx context.Context, err error) error {
	var failed *Failure
	switch {
	case err == nil || ctx.Err() != nil || errors.As(err, &failed) || fault.ClassOf(err) == fault.ClassTransient:
		return err
	}
	return &Failure{err.Error()}
}

// away makes of an error of S3 what becomes of the export: a refusal fails it, everything
// else is waited for.
func away(err error) error {
	var operation *smithy.OperationError
	if !errors.As(err, &operation) {
		return err
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		switch response.HTTPStatusCode() {
		case http.StatusForbidden, http.StatusUnauthorized:
			return &Failure{"no right to write to the bucket, or to list and remove what is under the export's folder: " + err.Error()}
		}
	}
	var bucket *types.NoSuchBucket
	if errors.As(err, &bucket) {
		return &Failure{"the bucket is not there: " + err.Error()}
	}
	return fault.Transient(err)
}

// commit writes what is known of the export.
func (x *exporting) commit(work context.Context, next event.Export) error {
	next.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
	record, err := x.Cluster.Owned(topic.Exports, next.ExportID.String(), &next)
	if err == nil {
		err = kafka.Transact(work, x.client, record)
	}
	if err != nil {
		if !kafka.Fenced(err) {
			err = fault.Transient(err)
		}
		return fmt.Errorf("writing the progress of export %s: %w", next.ExportID, err)
	}
	x.at = next
	return nil
}
