package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
)

// maxSegmentImports is how many imports make up a segment at most: every query for
// its members names them all.
const maxSegmentImports = 1000

// segmentOf returns what a segment is made up of: of its imports that are loaded or
// done, in the order of their announcement, the last that replaces and all after it.
// It depends on nothing else, so it is the same however they came to these states.
//
// One that is loaded counts: nothing keeps it from being done, and were it left out,
// two that end at the same moment would leave each other out.
func segmentOf(imports []*event.Import) definitions.Segment {
	counting := slices.DeleteFunc(slices.Clone(imports), func(e *event.Import) bool {
		return e.State != importfile.StateLoaded && e.State != importfile.StateDone || e.Undoes != ""
	})
	slices.SortFunc(counting, func(a, b *event.Import) int {
		if later(a, b) {
			return 1
		}
		return -1
	})
	var s definitions.Segment
	for _, e := range counting {
		switch e.SegmentMode {
		case definition.SegmentAdd:
		case definition.SegmentRemove:
			s.Removes = append(s.Removes, e.ImportID)
		default:
			s = definitions.Segment{}
		}
		s.Imports = append(s.Imports, e.ImportID)
	}
	return s
}

// pointSegment puts in force what a segment is made up of now. Either ended or undone
// is the import because of which it is, and some version names it, even one with the
// same members as before: whoever waits for the end of an import learns of it so.
func (s *Service) pointSegment(work context.Context, segmentID string, ended, undone identity.ID) (definitions.Segment, error) {
	// One import of this process at a time, so that they do not overtake each other.
	if s.pointing.Acquire(work, 1) != nil {
		return definitions.Segment{}, errStopped
	}
	defer s.pointing.Release(1)
	for {
		// What the store does not know yet is a conflict below.
		head, inForce := s.definitions.Head(definitions.KindSegment, segmentID)
		// After the head: whoever wrote it had read no more than is read now.
		if err := s.progress.table.CaughtUp(work); err != nil {
			return definitions.Segment{}, fault.Transient(fmt.Errorf("reading the imports of segment %s: %w", segmentID, err))
		}
		next := segmentOf(s.progress.ofSegment(segmentID))
		next.Ended, next.Undone = ended, undone
		if inForce {
			now, err := definitions.DecodeSegment(head)
			if err != nil {
				return next, err
			}
			superseded := undone.IsZero() && !slices.Contains(next.Imports, ended)
			if now.Same(next) && (superseded || s.named(head, next)) {
				return next, nil
			}
		}
		body, err := next.Encode()
		if err != nil {
			return next, err
		}
		by := ended
		if by.IsZero() {
			by = undone
		}
		_, err = definitions.Write(work, s.cluster, "import:"+by.String(), []definitions.Change{{
			Kind: definitions.KindSegment, ID: segmentID, Body: body, ReplacesVersion: head.Number,
		}})
		var conflict *definitions.Conflict
		if err == nil {
			return next, nil
		}
		// Another has changed the segment: look again.
		if !errors.As(err, &conflict) {
			return next, err
		}
		if err := s.definitions.CaughtUp(work); err != nil {
			return next, fault.Transient(fmt.Errorf("reading segment %s: %w", segmentID, err))
		}
	}
}

// named says whether a version up to head was written because of the same import.
func (s *Service) named(head definitions.Version, because definitions.Segment) bool {
	for n := head.Number; n > 0; n-- {
		v, ok := s.definitions.Get(head.Kind, head.ID, n)
		if !ok {
			continue
		}
		if was, err := definitions.DecodeSegment(v); err == nil && was.Ended == because.Ended && was.Undone == because.Undone {
			return true
		}
	}
	return false
}

// tooManyImports is the failure of an import that would make its segment one of more
// imports than can be asked for; nil if it does not.
func (i *importing) tooManyImports(work context.Context) error {
	if i.at.SegmentID == "" {
		return nil
	}
	if err := i.progress.table.CaughtUp(work); err != nil {
		return fault.Transient(fmt.Errorf("reading the imports of segment %s: %w", i.at.SegmentID, err))
	}
	imports := slices.DeleteFunc(i.progress.ofSegment(i.at.SegmentID), func(e *event.Import) bool { return e.ImportID == i.at.ImportID })
	self := i.at
	self.State = importfile.StateLoaded
	made := segmentOf(append(imports, &self))
	if len(made.Imports) <= maxSegmentImports || !slices.Contains(made.Imports, self.ImportID) {
		return nil
	}
	return &failure{fmt.Sprintf("segment %s is made up of %d imports, the most there can be; upload the whole list with mode replace, after which others can add to it and remove from it again",
		i.at.SegmentID, maxSegmentImports)}
}

// endSegment makes the import count in its segment, unless one announced later
// replaces it: then this one is superseded, and says so.
func (i *importing) endSegment(work context.Context) (superseded bool, err error) {
	if i.at.SegmentID == "" {
		return false, nil
	}
	now, err := i.pointSegment(work, i.at.SegmentID, i.at.ImportID, identity.ID{})
	if err != nil {
		return false, err
	}
	if superseded = !slices.Contains(now.Imports, i.at.ImportID); superseded {
		i.log.Info("import is superseded: a later one replaces the segment", "segment_id", i.at.SegmentID)
	}
	return superseded, nil
}

// ofSegment returns the imports of a segment, in any order.
func (p *progress) ofSegment(id string) []*event.Import {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*event.Import
	for _, e := range p.byID {
		if e.SegmentID == id {
			out = append(out, &e.Import)
		}
	}
	return out
}
