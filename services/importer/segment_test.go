package importer

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// members takes the imports of a segment at their word, one after the other: who is in
// it after them. What segmentOf leaves out changes nothing about that.
func members(imports []*event.Import, lists map[identity.ID][]string) map[string]bool {
	in := map[string]bool{}
	for _, e := range imports {
		if e.SegmentMode == definition.SegmentReplace {
			clear(in)
		}
		for _, user := range lists[e.ImportID] {
			in[user] = e.SegmentMode != definition.SegmentRemove
		}
	}
	for user, is := range in {
		if !is {
			delete(in, user)
		}
	}
	return in
}

// Imports end and are undone in any order: the segment depends on which have, and on
// the order of their announcement, alone. So undoing all that came since an earlier
// moment, in any order, returns to what it was then.
func TestASegmentIsWhatTheImportsMakeItInWhateverOrderTheyEndAndAreUndone(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		lists := map[identity.ID][]string{}
		imports := make([]*event.Import, rapid.IntRange(1, 8).Draw(t, "imports"))
		for n := range imports {
			e := &event.Import{
				ImportID: identity.Hash(strconv.Itoa(n)), SegmentID: "tasters", State: importfile.StatePublished,
				SegmentMode: rapid.SampledFrom(definition.SegmentModes()).Draw(t, "mode"),
				// Some are of the same moment.
				LastModified: start.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "modified"))), AnnouncedAt: start.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "announced"))),
			}
			lists[e.ImportID] = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.ID).Draw(t, "list")
			imports[n] = e
		}
		now := func() definitions.Segment { return segmentOf(rapid.Permutation(imports).Draw(t, "as read")) }
		check := func() {
			s := now()
			var counting, all []*event.Import
			for _, e := range imports {
				if e.State == importfile.StateDone || e.State == importfile.StateLoaded {
					all = append(all, e)
				}
				if slices.Contains(s.Imports, e.ImportID) {
					counting = append(counting, e)
				}
			}
			for _, list := range [][]*event.Import{counting, all} {
				slices.SortFunc(list, func(a, b *event.Import) int {
					return slices.Index([]bool{true, false}, later(b, a))*2 - 1
				})
			}
			require.Len(t, s.Imports, len(counting), "one that has not ended, has failed or was undone does not count")
			for i, e := range counting {
				require.Equal(t, e.ImportID, s.Imports[i])
				require.Equal(t, e.SegmentMode == definition.SegmentRemove, slices.Contains(s.Removes, e.ImportID))
			}
			require.Equal(t, members(all, lists), members(counting, lists))
		}
		var ended []*event.Import
		var was []definitions.Segment // after as many
		was = append(was, now())
		for _, e := range rapid.Permutation(imports).Draw(t, "order of ends") {
			e.State = rapid.SampledFrom([]string{importfile.StateLoaded, importfile.StateDone, importfile.StateDone, importfile.StateFailed}).Draw(t, "end")
			check()
			ended = append(ended, e)
			was = append(was, now())
		}
		kept := rapid.IntRange(0, len(ended)).Draw(t, "kept")
		for _, e := range rapid.Permutation(ended[kept:]).Draw(t, "order of undos") {
			e.State = "undone"
			check()
		}
		require.Equal(t, was[kept], now())
	})
}

// tasters reads the segment as it is in force, and how often it was written.
func (s *stage) tasters(svc *Service) (definitions.Segment, int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	require.NoError(s.t, svc.definitions.CaughtUp(ctx))
	head, _ := svc.definitions.Head(definitions.KindSegment, "tasters")
	seg, err := definitions.DecodeSegment(head)
	require.NoError(s.t, err)
	return seg, head.Number
}

func TestFilesAddToASegmentAndRemoveFromIt(t *testing.T) {
	s := newStage(t)
	s.downstream()
	for _, mode := range definition.SegmentModes() {
		spec := s.people(mode)
		spec.Source.Prefix += mode + "/"
		spec.Segment.Mode = mode
		s.define(spec)
	}
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	import1 := func(name string) identity.ID {
		s.put(name, file(3))
		imp := s.until(svc, name, importfile.StateDone)
		require.Equal(t, name[:strings.IndexByte(name, '/')], imp.SegmentMode)
		return imp.ImportID
	}
	ids := func(ids ...identity.ID) []identity.ID { return ids }

	first := import1("add/1.csv")
	removes := import1("remove/2.csv")
	now, _ := s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: ids(first, removes), Removes: ids(removes), Ended: removes}, now)
	replaces := import1("replace/3.csv")
	now, _ = s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: ids(replaces), Ended: replaces}, now)
	adds := import1("add/4.csv")
	now, versions := s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: ids(replaces, adds), Ended: adds}, now)

	// What is undone is left out, and what it had replaced is back.
	undo := func(id identity.ID) {
		e := svc.progress.get(id).Import
		e.State = "undone"
		r, err := s.cluster.Record(topic.Imports, id.String(), &e)
		require.NoError(t, err)
		s.kafka.Produce(t, r)
		ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
		defer cancel()
		for range 2 { // after a kill it is repeated
			_, err = svc.pointSegment(ctx, "tasters", identity.ID{}, id)
			require.NoError(t, err)
		}
	}
	undo(replaces)
	now, after := s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: ids(first, removes, adds), Removes: ids(removes), Undone: replaces}, now)
	require.Equal(t, versions+1, after, "once")
	undo(removes)
	undo(adds)
	undo(first)
	now, _ = s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: []identity.ID{}, Undone: first}, now)
}

// Two that end at the same moment do not leave each other out; and whoever waits for
// the end of one finds a version that names it.
func TestASegmentNamesEachImportThatEnds(t *testing.T) {
	s := newStage(t)
	s.downstream()
	spec := s.people("add")
	spec.Segment.Mode = definition.SegmentAdd
	s.define(spec)
	svc := s.importer("0", func(_ *Config, times *timing) { times.takeover = time.Hour })
	s.run(svc, time.Second)
	s.put("a.csv", file(3))
	a := s.until(svc, "a.csv", importfile.StateDone)

	// Another instance, which has b, is about to point the segment at it; this one at a, again.
	cfg := s.kafka.Config()
	cfg.Instance = "1"
	other := s.kafka.ClusterWith(t, topic.Importer, cfg)
	b := a
	b.ImportID, b.Key, b.State, b.AnnouncedAt = identity.Hash("b"), s.prefix+"b.csv", importfile.StateLoaded, a.AnnouncedAt.Add(time.Second)
	r, err := other.Owned(topic.Imports, b.ImportID.String(), &b)
	require.NoError(t, err)
	s.kafka.Produce(t, r)
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	both := []identity.ID{a.ImportID, b.ImportID}
	_, err = svc.pointSegment(ctx, "tasters", a.ImportID, identity.ID{})
	require.NoError(t, err)
	now, _ := s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: both, Ended: a.ImportID}, now)
	for range 2 {
		_, err = svc.pointSegment(ctx, "tasters", b.ImportID, identity.ID{})
		require.NoError(t, err)
	}
	now, versions := s.tasters(svc)
	require.Equal(t, definitions.Segment{Imports: both, Ended: b.ImportID}, now)
	require.EqualValues(t, 3, versions)
	_, err = svc.pointSegment(ctx, "tasters", a.ImportID, identity.ID{})
	require.NoError(t, err)
	_, versions = s.tasters(svc)
	require.EqualValues(t, 3, versions, "one version names it, however often it is repeated")
}

// A segment is made up of so many imports at most: one more fails and says what to do,
// one that replaces them all does not.
func TestASegmentOfTooManyImportsTakesNoFurther(t *testing.T) {
	s := newStage(t)
	s.downstream()
	svc := s.importer("0", nil)
	var records []*event.Import
	for n := range maxSegmentImports {
		records = append(records, &event.Import{ImportID: identity.Hash("import", strconv.Itoa(n)), SpecID: "earlier", Key: s.prefix + "earlier", State: importfile.StateDone, SegmentID: "tasters", SegmentMode: definition.SegmentAdd})
	}
	for _, e := range records {
		r, err := s.cluster.Record(topic.Imports, e.ImportID.String(), e)
		require.NoError(t, err)
		s.kafka.Produce(t, r)
	}
	for _, mode := range []string{definition.SegmentAdd, definition.SegmentReplace} {
		spec := s.people(mode)
		spec.Source.Prefix += mode + "/"
		spec.Segment.Mode = mode
		s.define(spec)
	}
	s.run(svc, time.Second)
	s.put("add/a.csv", file(3))
	failed := s.until(svc, "add/a.csv", importfile.StateFailed)
	require.Equal(t, "segment tasters is made up of 1000 imports, the most there can be; upload the whole list with mode replace, after which others can add to it and remove from it again", failed.Error)
	s.put("replace/b.csv", file(3))
	whole := s.until(svc, "replace/b.csv", importfile.StateDone)
	require.Equal(t, []identity.ID{whole.ImportID}, s.segment())
}
