package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// importing is an import that this instance owns.
type importing struct {
	*Service
	client *kgo.Client
	spec   *definition.ImportSpec
	log    *slog.Logger
	at     event.Import // as committed
	pace   *pace
}

// failure is a reason for which an import fails, in a sentence for the file's
// owner.
type failure struct{ reason string }

func (f *failure) Error() string { return f.reason }

// run goes through the states. Each step can be repeated: what it does is the
// same, or finds itself done.
func (i *importing) run(ctx, work context.Context, readingDone func()) error {
	for {
		var err error
		switch i.at.State {
		case importfile.StateAnnounced, importfile.StateReading:
			if i.at.Undoes == "" {
				err = i.read(ctx, work)
			} else {
				err = i.undo(ctx, work)
			}
			readingDone()
		case importfile.StatePublished:
			if err = i.awaitLoaded(ctx, work, i.at.Published); err == nil {
				crash.At(crash.ImporterArrived)
				// Before it is loaded: from then on it counts.
				if err = i.tooManyImports(work); err == nil {
					err = i.move(work, importfile.StateLoaded)
				}
			}
		case importfile.StateLoaded:
			if i.at.Undoes == "" {
				err = i.finish(work)
			} else {
				err = i.finishUndo(ctx, work)
			}
			if err == nil {
				err = i.move(work, importfile.StateDone)
			}
		default:
			return nil
		}
		var failed *failure
		if errors.As(err, &failed) {
			err = i.fail(work, failed)
		}
		if err != nil {
			return err
		}
		i.log.Info("import moved on", "state", i.at.State, "rows", i.at.Rows, "rejected", i.at.Rejected)
		if ctx.Err() != nil && !importfile.Ended(i.at.State) {
			return errStopped
		}
	}
}

// batch is what is committed together.
type batch struct {
	records []*kgo.Record
	memory  kafka.Memory
	bytes   int
	after   event.Import // progress once it is committed; Published is filled in by the commit
}

// read maps the object's rows and commits them, one batch being read while the
// one before is committed: S3 is never waited for with a transaction open. While
// nothing comes it gives signs of life.
func (i *importing) read(ctx, work context.Context) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	batches := make(chan *batch, 1)
	ended := make(chan error, 1)
	at := i.at // it goes ahead of what is committed
	go func() {
		defer close(batches)
		ended <- i.produce(reading, at, batches)
	}()
	signs := time.NewTicker(i.timing.heartbeat / 2)
	defer signs.Stop()
	var failed error
	for open := true; open; {
		var b *batch
		select {
		case b, open = <-batches:
		case <-signs.C:
			if time.Since(i.at.UpdatedAt) > i.timing.heartbeat/2 {
				b = &batch{after: i.at}
			}
		}
		if b != nil && failed == nil {
			if failed = i.pace.keep(ctx, work, i); failed == nil {
				failed = i.commit(work, b)
			}
			if failed != nil {
				stop() // and take what the reader still hands over, so that it can end
			}
		}
	}
	if err := <-ended; failed == nil {
		failed = err
	}
	return failed
}

// produce reads rows from where the progress is and sends batches of what they
// make; the last of them is of state published. On a signal it sends what it
// has and says errStopped.
func (i *importing) produce(ctx context.Context, at event.Import, batches chan<- *batch) error {
	src := i.open(ctx, objectOf(&at))
	defer src.Close()
	f, err := importfile.Open(i.liquid, i.spec, src, importfile.Position{Offset: at.OffsetBytes, Line: at.Line, Rows: at.Rows, Header: at.Header})
	if err != nil {
		return stopped(ctx, err)
	}
	defer f.Close()
	if at.Header == nil {
		at.Header = f.Header()
	}
	at.State = importfile.StateReading
	moved := func() {
		p := f.Position()
		at.Line = p.Line
		at.OffsetBytes = max(at.OffsetBytes, p.Offset) // where layers read ahead, not always as far as before
	}
	mapper, err := importfile.Compile(i.liquid, i.spec, at.Header, mapping.Import{ID: at.ImportID, StartedAt: at.StartedAt, LastModified: at.LastModified})
	if err != nil {
		return &failure{err.Error()}
	}
	b := &batch{}
	began, reads := time.Now(), src.reads
	send := func() {
		b.after = at
		batches <- b
		b = &batch{records: make([]*kgo.Record, 0, len(b.records))}
		began = time.Now()
	}
	for n := 0; ; n++ {
		// The clock is looked at where time passes, not for every row.
		if n%256 == 0 || src.reads != reads {
			reads = src.reads
			if len(b.records) > 0 && time.Since(began) > i.timing.batch {
				send()
			}
			if ctx.Err() != nil {
				break
			}
		}
		if err := i.tooManyRejects(&at, false); err != nil {
			send()
			return err
		}
		row, err := f.Next()
		if err == io.EOF {
			err = src.end() // it may have ended because it was changed
		}
		if err == io.EOF {
			moved()
			tooMany := i.tooManyRejects(&at, true)
			if tooMany == nil {
				at.State = importfile.StatePublished
			}
			send()
			return tooMany
		}
		if err != nil {
			if len(b.records) > 0 {
				send()
			}
			return stopped(ctx, err)
		}
		if len(b.records) == 0 {
			began = time.Now()
		}
		at.Rows++
		if err := i.mapRow(mapper, row, &at, b); err != nil {
			return err
		}
		moved()
		if b.bytes >= i.cfg.TransactionBytes || int64(len(b.records)) >= i.pace.atOnce.Load() {
			send()
		}
	}
	if len(b.records) > 0 {
		send()
	}
	return errStopped
}

// tooManyRejects is the failure of an import of which too many rows were rejected;
// nil if they were not. The spec may judge only when all rows are known.
func (i *importing) tooManyRejects(at *event.Import, all bool) error {
	if !i.spec.MaxRejects.Exceeded(at.Rejected, at.Rows, all) {
		return nil
	}
	return &failure{i.spec.MaxRejects.Failure(at.Rejected, at.Rows)}
}

// stopped makes of the reader's errors what run expects.
func stopped(ctx context.Context, err error) error {
	var invalid *rows.Invalid
	switch {
	case errors.As(err, &invalid):
		return &failure{invalid.Reason}
	case errors.Is(err, errChanged), errors.Is(err, errGone):
		return &failure{err.Error()}
	case ctx.Err() != nil:
		return errStopped
	}
	return err
}

// mapRow adds to the batch what a row makes, all of it or its reject.
func (i *importing) mapRow(mapper importfile.Mapper, row rows.Row, at *event.Import, b *batch) error {
	had, hadBytes := len(b.records), b.bytes
	reject := func(r mapping.Reject) error {
		// What of the row was already made, is taken back.
		clear(b.records[had:])
		b.records, b.bytes = b.records[:had], hadBytes
		at.Rejected++
		return i.add(b, topic.ImportRejects, at.ImportID.String(), &event.ImportReject{
			ImportID: at.ImportID, Line: row.Line, Column: r.Column, Reason: r.Reason, Row: rawText(row.Raw), RejectedAt: at.StartedAt,
		})
	}
	if m := row.Malformed; m != nil {
		return reject(mapping.Reject{Column: m.Column(at.Header), Reason: m.Reason})
	}
	made, rej := mapper.Row(row.Fields, row.Line, at.Rows)
	if rej != nil {
		return reject(*rej)
	}
	var err error
	if made.Patch != nil {
		err = i.add(b, topic.ProfileUpdates, made.UserID, made.Patch)
	}
	if made.Member != nil && err == nil {
		err = i.add(b, topic.SegmentMembers, made.UserID, made.Member)
	}
	if made.Event != nil && err == nil {
		err = i.add(b, topic.Events, made.UserID, made.Event)
	}
	if errors.Is(err, kafka.ErrTooLarge) {
		return reject(mapping.Reject{Reason: "the row makes a record that is too large"})
	}
	if err != nil {
		return err
	}
	if made.Patch != nil {
		at.ProfileUpdates++
	}
	if made.Member != nil {
		at.SegmentMembers++
	}
	if made.Event != nil {
		at.Events++
	}
	return nil
}

// recordBytes is about what a record costs in memory beside its content.
const recordBytes = 128

func (i *importing) add(b *batch, name topic.Name, key string, rec event.Record) error {
	r, err := i.cluster.RecordIn(&b.memory, name, key, rec)
	if err != nil {
		return err
	}
	b.records = append(b.records, r)
	b.bytes += len(r.Key) + len(r.Value) + recordBytes
	return nil
}

// maxRawBytes is how much of a rejected row is kept.
const maxRawBytes = 64 << 10

// rawText is a rejected row as text.
func rawText(raw []byte) string {
	s := strings.ToValidUTF8(string(raw[:min(len(raw), maxRawBytes)]), string(utf8.RuneError))
	if len(s) > maxRawBytes {
		s = strings.ToValidUTF8(s[:maxRawBytes], "") // the cut may go through a rune
	}
	return s
}

// awaitLoaded waits until all that an import published has arrived: the
// resolver has passed it, and then the sink has passed it and the profiles
// that the resolver made of it.
func (i *importing) awaitLoaded(ctx, work context.Context, written []event.Written) error {
	published := markOf(written)
	resolved := false
	return i.await(ctx, work, func() (behind bool, err error) { return i.passed(ctx, &resolved, published) })
}

func markOf(written []event.Written) kafka.Mark {
	m := kafka.Mark{}
	for _, w := range written {
		m.Merge(kafka.Mark{topic.Name(w.Topic): {w.Partition: w.Offset}})
	}
	return m
}

// await looks until nothing is behind any more. Meanwhile it gives signs of life, which
// also tell whether the import is still owned.
func (i *importing) await(ctx, work context.Context, look func() (behind bool, err error)) error {
	for {
		behind, err := look()
		if err == nil && !behind {
			return nil
		}
		if err := i.sign(work); err != nil {
			return err
		}
		if !sleep(ctx, i.timing.barrier) {
			return errStopped
		}
	}
}

// passed looks at the barrier once. When the resolver has passed, the end of
// the profiles at that moment belongs to what the sink must pass.
func (i *importing) passed(ctx context.Context, resolved *bool, published kafka.Mark) (behind bool, err error) {
	if !*resolved {
		left, err := i.cluster.Passed(ctx, topic.GroupPersonLoop, published)
		if err != nil || len(left) > 0 {
			return true, err
		}
		profiles, err := i.cluster.HighWatermarks(ctx, topic.Profiles)
		if err != nil {
			return true, err
		}
		published.Merge(profiles)
		*resolved = true
	}
	left, err := i.cluster.Passed(ctx, topic.GroupSink, published)
	return len(left) > 0, err
}

// finish makes the import count in its segment and writes what its owner reads.
func (i *importing) finish(work context.Context) error {
	superseded, err := i.endSegment(work)
	if err != nil {
		return err
	}
	crash.At(crash.ImporterPointed)
	return i.writeFiles(work, importfile.StateDone, "", superseded)
}

// fail ends the import. What it has committed stays; a segment does not point
// at it.
func (i *importing) fail(work context.Context, f *failure) error {
	i.log.Warn("import failed", "reason", f.reason)
	// Beside an object that is no longer there, nothing of it is written: the
	// place belongs to the one that replaced it. An undo has no rows of its own.
	if i.at.Undoes == "" && f.reason != errChanged.Error() && f.reason != errGone.Error() {
		if err := i.writeFiles(work, importfile.StateFailed, f.reason, false); err != nil {
			return err
		}
	}
	b := &batch{after: i.at}
	b.after.State, b.after.Error = importfile.StateFailed, f.reason
	if err := i.commit(work, b); err != nil {
		return err
	}
	return nil
}

// sign says that the import is worked on, if it has not been said for a while.
func (i *importing) sign(work context.Context) error {
	if time.Since(i.at.UpdatedAt) <= i.timing.heartbeat {
		return nil
	}
	return i.move(work, i.at.State)
}

// move commits another state, or the same as a sign of life.
func (i *importing) move(work context.Context, state string) error {
	b := &batch{after: i.at}
	b.after.State = state
	return i.commit(work, b)
}

// written adds what was acknowledged to the offsets after the last row.
func written(before []event.Written, c *kafka.Cluster, records []*kgo.Record) []event.Written {
	type ends struct {
		kafkaTopic string
		after      []int64 // by partition; 0 where nothing was written
	}
	// They are four at most, and records of one topic share its name's string: to find
	// it costs less than a map would.
	var topics []ends
	for _, r := range records {
		at := 0
		for at < len(topics) && topics[at].kafkaTopic != r.Topic {
			at++
		}
		if at == len(topics) {
			topics = append(topics, ends{kafkaTopic: r.Topic})
		}
		t := &topics[at]
		if short := int(r.Partition) + 1 - len(t.after); short > 0 {
			t.after = append(t.after, make([]int64, short)...)
		}
		t.after[r.Partition] = max(t.after[r.Partition], r.Offset+1)
	}
	out := slices.Clone(before)
	for _, t := range topics {
		name := string(c.NameOf(t.kafkaTopic))
		for p, offset := range t.after {
			at := slices.IndexFunc(out, func(w event.Written) bool { return w.Topic == name && w.Partition == int32(p) })
			switch {
			case offset == 0:
			case at < 0:
				out = append(out, event.Written{Topic: name, Partition: int32(p), Offset: offset})
			default:
				out[at].Offset = max(out[at].Offset, offset)
			}
		}
	}
	slices.SortFunc(out, func(a, b event.Written) int {
		if a.Topic != b.Topic {
			return strings.Compare(a.Topic, b.Topic)
		}
		return int(a.Partition - b.Partition)
	})
	return out
}

// commit writes a batch and the progress after it in one transaction, or
// neither (I1). After an error the import is let go: whoever opens it next finds the
// progress of the last commit.
func (i *importing) commit(work context.Context, b *batch) error {
	if err := i.transact(work, b); err != nil {
		if !kafka.Fenced(err) {
			err = fault.Transient(err)
		}
		return fmt.Errorf("committing import %s up to byte %d: %w", i.at.ImportID, b.after.OffsetBytes, err)
	}
	i.metrics.rows.Add(float64(b.after.Rows - i.at.Rows))
	i.metrics.rejects.Add(float64(b.after.Rejected - i.at.Rejected))
	i.metrics.bytes.Add(float64(b.after.OffsetBytes - i.at.OffsetBytes))
	i.metrics.records.WithLabelValues(string(topic.ProfileUpdates)).Add(float64(b.after.ProfileUpdates - i.at.ProfileUpdates))
	i.metrics.records.WithLabelValues(string(topic.SegmentMembers)).Add(float64(b.after.SegmentMembers - i.at.SegmentMembers))
	i.metrics.records.WithLabelValues(string(topic.Events)).Add(float64(b.after.Events - i.at.Events))
	i.at = b.after
	return nil
}
