package console

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
)

// asking is how an import is asked for.
type asking struct{ yes, detach bool }

func (q *asking) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&q.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&q.detach, "detach", false, "return once it is asked for; hikyaku imports follows it")
}

func (a *app) undoCommand() *cobra.Command {
	var q asking
	cmd := &cobra.Command{
		Use: "undo IMPORT", Short: "Take back what an import has changed",
		Long: fmt.Sprintf(`undo takes back an import that is done or has failed: values of profiles are again what they were before, unless somebody has changed
them since; its segment is made up of the other imports; its events are removed. Imports may be undone in any order. The undo is
itself an import: hikyaku imports lists it, an importer works on it, and it goes on wherever it was killed.

An import can be undone for %d days. IMPORT is an id or the beginning of one, or an object's key or the last parts of it: then the
newest import of that object. Exit code 1 if the undo has failed.`, int(importfile.Undoable().Hours()/24)),
		Example: "  hikyaku import undo people-2026.csv\n  hikyaku import undo 3f9a01c2 --yes --json", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.undo(cmd.Context(), args[0], &q) },
	}
	q.flags(cmd)
	return cmd
}

func (a *app) againCommand() *cobra.Command {
	var q asking
	cmd := &cobra.Command{
		Use: "again IMPORT", Short: "Import the same object once more",
		Long: `again imports the object of an import once more, under the version of its spec that is in force now. An object is imported once by
itself, and once more only if its import has failed and the spec was mended since. What the earlier import made stays: its events are
there twice, unless the spec names their ids or the earlier import was undone.

IMPORT is as with undo. Exit code 1 if the import has failed.`,
		Example: "  hikyaku import undo people-2026.csv && hikyaku import again people-2026.csv", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.again(cmd.Context(), args[0], &q) },
	}
	q.flags(cmd)
	return cmd
}

func (a *app) undo(ctx context.Context, arg string, q *asking) error {
	return a.ask(ctx, arg, q, func(t *importTable, of *shownImport) (*event.Import, error) {
		short := shortID(of.ImportID)
		switch {
		case of.Undoes != "":
			return nil, usage("%s is itself an undo; hikyaku import again imports the object once more", short)
		case of.State == importfile.StateUndone:
			return nil, usage("import %s of %s is undone already", short, of.Key)
		case !importfile.Ended(of.State):
			return nil, usage("import %s of %s has not ended: it is %s. hikyaku imports show %s --follow waits for its end", short, of.Key, of.State, short)
		case time.Since(of.StartedAt) > importfile.Undoable():
			return nil, usage("import %s of %s began more than %d days ago: whom it changed is not known any more", short, of.Key, int(importfile.Undoable().Hours()/24))
		}
		e := t.last(of.ImportID)
		e.ImportID, e.Undoes, e.Again = identity.Undo(of.ImportID), of.ImportID.String(), 0
		if known := t.last(e.ImportID); known != nil && known.State != importfile.StateFailed {
			return nil, usage("the undo of import %s is %s: hikyaku imports show %s", short, known.State, shortID(e.ImportID))
		}
		return e, nil
	}, "Take back import %s of %s (%s)?", "nothing was taken back")
}

func (a *app) again(ctx context.Context, arg string, q *asking) error {
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	return a.ask(ctx, arg, q, func(t *importTable, of *shownImport) (*event.Import, error) {
		if !importfile.Ended(of.State) {
			return nil, usage("import %s of %s has not ended: it is %s", shortID(of.ImportID), of.Key, of.State)
		}
		spec, version, err := specAgain(store, of)
		if err != nil {
			return nil, err
		}
		e := t.last(of.ImportID)
		e.SpecVersion, e.Undoes, e.Again, e.SegmentID, e.SegmentMode = version, "", 0, "", definition.SegmentReplace
		if spec.Segment != nil {
			e.SegmentID, e.SegmentMode = spec.Segment.ID, spec.Segment.ModeOrReplace()
		}
		// As often as the object was imported under this version of the spec.
		for e.ImportID = importfile.ID(e); t.last(e.ImportID) != nil; e.ImportID = importfile.ID(e) {
			e.Again++
		}
		return e, nil
	}, "Import %s of %s (%s) once more?", "nothing is imported")
}

// specAgain is an import's spec as it is in force now.
func specAgain(store *definitions.Store, of *shownImport) (spec *definition.ImportSpec, version int64, err error) {
	if of.Spec == pinpoint.SpecID {
		return pinpoint.Spec(of.Segment), pinpoint.Version, nil
	}
	head, ok := store.Head(definition.KindImportSpec, of.Spec)
	if !ok {
		return nil, 0, usage("there is no import spec %s any more", of.Spec)
	}
	spec, err = definitions.Decode[*definition.ImportSpec](head)
	return spec, head.Number, err
}

// ask finds an import, lets make say what is asked for because of it, asks whether that is
// meant, writes it for the importers to find, and follows it.
func (a *app) ask(ctx context.Context, arg string, q *asking, make func(*importTable, *shownImport) (*event.Import, error), question, otherwise string) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	var w wholeImport
	if err := a.withImports(ctx, func(ctx context.Context, t *importTable) error {
		of, err := findImport(arg, t.list())
		if err != nil {
			return err
		}
		e, err := make(t, of)
		if err != nil {
			return err
		}
		if !q.yes {
			made := fmt.Sprintf("%s profile updates, %s segment members, %s events", thousands(of.ProfileUpdates), thousands(of.SegmentMembers), thousands(of.Events))
			if err := a.agree(ctx, fmt.Sprintf(question, shortID(of.ImportID), printable(of.Key), made), otherwise); err != nil {
				return err
			}
		}
		patient, cancel := context.WithTimeout(ctx, a.patience)
		defer cancel()
		err = c.WriteOnce(patient, importfile.TransactionalID(e.ImportID), func(ctx context.Context) ([]*kgo.Record, error) {
			// Another may have asked for the same meanwhile.
			if err := t.caughtUp(ctx); err != nil {
				return nil, fault.Transient(err)
			}
			if known := t.last(e.ImportID); known != nil && known.State != importfile.StateFailed {
				return nil, nil
			}
			now := now()
			e.AnnouncedAt, e.StartedAt, e.UpdatedAt, e.State, e.Error = now, now, now, importfile.StateAnnounced, ""
			e.OffsetBytes, e.Line, e.Rows, e.Rejected, e.ProfileUpdates, e.SegmentMembers, e.Events, e.Header, e.Published, e.FilesPrefix = 0, 1, 0, 0, 0, 0, 0, nil, nil, ""
			r, err := c.Record(topic.Imports, e.ImportID.String(), e)
			return []*kgo.Record{r}, err
		})
		if err == nil {
			err = t.caughtUp(patient)
		}
		if err != nil {
			return overtaken(err)
		}
		only := &importFilter{only: &e.ImportID}
		list := t.list()
		if !q.detach {
			show, done := a.importViewer(false) // the answer is one value, at the end
			defer done()
			if list, err = followImports(ctx, t, only, show); err != nil {
				return err
			}
		}
		for _, i := range list {
			if only.matches(&i) {
				w.shownImport = i
			}
		}
		return nil
	}); err != nil {
		return err
	}
	w.Next = w.next()
	if a.asJSON {
		if err := a.printJSON(w); err != nil {
			return err
		}
	} else {
		a.printImport(&w)
	}
	return failedImports([]shownImport{w.shownImport})
}

// title is what an import is of, for lists.
func (i *shownImport) title() string {
	switch {
	case i.Undoes != "":
		return "undo of " + i.Undoes[:12] + ", " + i.Key
	case i.Again > 0:
		return i.Key + " again"
	}
	return i.Key
}
