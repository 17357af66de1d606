package importer

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
)

// An undo is an import whose rows are the profile updates of another: for each of
// them the resolver is told to take back what that import changed about the person.
// Segment and events need no rows: they follow from the state undone. See
// docs/decisions/20261122-undo.md.

// undo sends the patches that take back the profiles.
func (i *importing) undo(ctx, work context.Context) error {
	of, err := i.undone(work)
	if err != nil {
		return err
	}
	// What it wrote before it failed may still be on its way.
	if err := i.awaitLoaded(ctx, work, of.Published); err != nil {
		return err
	}
	if err := i.takeBack(ctx, work, of); err != nil {
		return stopped(ctx, err)
	}
	b := &batch{after: i.at}
	b.after.State = importfile.StatePublished
	return i.commit(work, b)
}

// undone reads the import that is to be taken back, whole.
func (i *importing) undone(work context.Context) (*event.Import, error) {
	id, err := identity.Parse(i.at.Undoes)
	if err != nil {
		return nil, &failure{"it is to undo what is no import: " + err.Error()}
	}
	var of *event.Import
	table := i.cluster.Table([]topic.Name{topic.Imports}, func(r *kgo.Record) error {
		if string(r.Key) != id.String() || r.Value == nil {
			return nil
		}
		of = &event.Import{}
		return i.cluster.Decode(r, of)
	})
	if err := follow(work, table, table.CaughtUp); err != nil {
		return nil, fault.Transient(fmt.Errorf("reading import %s: %w", id, err))
	}
	switch {
	case of == nil:
		return nil, &failure{fmt.Sprintf("there is no import %s", id)}
	case !importfile.Ended(of.State):
		return nil, &failure{fmt.Sprintf("import %s has not ended", id)}
	case of.State != importfile.StateUndone && time.Since(of.StartedAt) > importfile.Undoable():
		return nil, &failure{fmt.Sprintf("import %s began more than %d days ago: whom it changed is not known any more", id, int(importfile.Undoable().Hours()/24))}
	}
	return of, nil
}

// takeBack reads what the import wrote about profiles, one partition after the other, and sends for
// each a patch that undoes it. So an owner after this one leaves out as many as are
// committed.
func (i *importing) takeBack(ctx, work context.Context, of *event.Import) error {
	began := of.StartedAt.Add(-clockMargin)
	from, err := i.cluster.Since(ctx, began, topic.ProfileUpdates)
	if err != nil {
		return err
	}
	by := "import:" + of.ImportID.String()
	committed, found := i.at.Rows, int64(0)
	at := i.at
	at.State = importfile.StateReading
	b := &batch{}
	send := func() error {
		if err := i.pace.keep(ctx, work, i); err != nil {
			return err
		}
		b.after = at
		err := i.commit(work, b)
		b = &batch{}
		return err
	}
	written := markOf(of.Published)[topic.ProfileUpdates]
	for p := range int32(i.cluster.P()) {
		err := i.cluster.ReadPartition(ctx, topic.ProfileUpdates, p, from[topic.ProfileUpdates][p], written[p], kgo.ReadCommitted(), func(r *kgo.Record) error {
			var patch event.ProfilePatch
			if err := i.cluster.Decode(r, &patch); err != nil {
				if fault.ClassOf(err) == fault.ClassPoison {
					return nil // not this import's
				}
				return err
			}
			if patch.SetBy == by {
				if found++; found <= committed {
					return nil
				}
				at.Rows++
				at.ProfileUpdates++
				at.OffsetBytes = at.SizeBytes * at.Rows / max(of.ProfileUpdates, 1) // the share that is done
				if err := i.add(b, topic.ProfileUpdates, patch.UserID, &event.ProfilePatch{
					UserID: patch.UserID, OccurredAt: i.at.StartedAt, SetAt: i.at.StartedAt, SetBy: "undo:" + i.at.ImportID.String(), Undoes: by,
				}); err != nil {
					return err
				}
			}
			if b.bytes >= i.cfg.TransactionBytes || int64(len(b.records)) >= i.pace.atOnce.Load() || time.Since(i.at.UpdatedAt) > i.timing.heartbeat/2 {
				return send()
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(b.records) > 0 {
		if err := send(); err != nil {
			return err
		}
	}
	if found < of.ProfileUpdates {
		return &failure{fmt.Sprintf("of %d profile updates of the import only %d are still kept: those were taken back, the others stay as they are",
			of.ProfileUpdates, found)}
	}
	return nil
}

// finishUndo says that the import is undone, which takes its events out of
// ClickHouse, and computes its segment without it.
func (i *importing) finishUndo(ctx, work context.Context) error {
	of, err := i.undone(work)
	if err != nil {
		return err
	}
	if of.State != importfile.StateUndone {
		of.State, of.UpdatedAt = importfile.StateUndone, micros(time.Now())
		r, err := i.record(of)
		if err != nil {
			return err
		}
		// It has ended: nobody but this undo writes it.
		if err := i.cluster.WriteOnce(work, importfile.TransactionalID(of.ImportID), func(context.Context) ([]*kgo.Record, error) { return []*kgo.Record{r}, nil }); err != nil {
			return err
		}
	}
	crash.At(crash.ImporterUndone)
	if of.SegmentID != "" {
		if _, err := i.pointSegment(work, of.SegmentID, identity.ID{}, of.ImportID); err != nil {
			return err
		}
	}
	end, err := i.cluster.HighWatermarks(work, topic.Imports)
	if err != nil {
		return err
	}
	return i.await(ctx, work, func() (bool, error) {
		left, err := i.cluster.Passed(ctx, topic.GroupSink, end)
		return len(left) > 0, err
	})
}
