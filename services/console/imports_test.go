package console

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// imported writes what an importer would say of an object now, having begun two
// seconds ago.
func (s *stage) imported(key, state string, more func(*event.Import)) identity.ID {
	s.t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	e := event.Import{ImportID: identity.Hash(key), SpecID: "people", SpecVersion: 3, Bucket: "files", Key: key, SizeBytes: 2_000_000, LastModified: now,
		AnnouncedAt: now.Add(-2 * time.Second), StartedAt: now.Add(-2 * time.Second), UpdatedAt: now, State: state, Line: 1}
	if more != nil {
		more(&e)
	}
	s.produce(topic.Imports, e.ImportID.String(), &e)
	return e.ImportID
}

// keys are the objects of the imports that a call listed as JSON.
func (a answer) keys(t *testing.T) []string {
	t.Helper()
	var list []shownImport
	require.NoError(t, json.Unmarshal([]byte(a.out), &list), a.out)
	out := []string{}
	for _, i := range list {
		out = append(out, i.Key)
	}
	return out
}

func TestImportsListsWhatGoesOnAndTheLastThatHaveEnded(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	require.Contains(t, s.ok("imports").out, "nothing has been imported yet")
	require.Empty(t, s.ok("imports", "--json").keys(t))

	at := func(minutesAgo int, more func(*event.Import)) func(*event.Import) {
		return func(e *event.Import) {
			e.AnnouncedAt = e.AnnouncedAt.Add(-time.Duration(minutesAgo) * time.Minute)
			if more != nil {
				more(e)
			}
		}
	}
	s.imported("a.csv", "done", at(5, nil))
	going := s.imported("b.csv", "reading", at(4, func(e *event.Import) {
		e.StartedAt = e.UpdatedAt.Add(-2000 * time.Second)
		e.Rows, e.Rejected, e.OffsetBytes = 5_000_000, 12, 500_000
	}))
	s.imported("c.csv", "reading", at(3, nil))
	s.imported("c.csv", "failed", at(3, func(e *event.Import) { e.Error = "no column named id" }))
	s.imported("d.csv", "done", at(2, func(e *event.Import) { e.SpecID, e.Rows = "orders", 3000 }))
	garbage := &kgo.Record{Topic: topic.Imports.In(s.namespace), Key: []byte("x"), Value: []byte("what is this")}
	s.Produce(t, garbage)

	list := s.ok("imports", "--json")
	require.Equal(t, []string{"a.csv", "b.csv", "c.csv", "d.csv"}, list.keys(t), "the last record is the truth, the newest import the last")
	require.Contains(t, list.err, "cannot be read and is passed over")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--limit 1", []string{"b.csv", "d.csv"}},
		{"--limit 0", []string{"b.csv"}},
		{"--limit 1 --all", []string{"a.csv", "b.csv", "c.csv", "d.csv"}},
		{"--state failed", []string{"c.csv"}},
		{"--state done --limit 1", []string{"d.csv"}},
		{"--spec people", []string{"a.csv", "b.csv", "c.csv"}},
		{"--spec people --state loaded", []string{}},
	} {
		require.Equal(t, c.want, s.ok(append([]string{"imports", "list", "--json"}, strings.Fields(c.args)...)...).keys(t), c.args)
	}
	people := s.ok("imports")
	require.Regexp(t, going.String()[:12]+` +reading +people +b\.csv +5,000,000 +12 +25% of 2\.0 MB +2,500 +1h(39m\S+|40m0s) left`, people.out)
	require.Regexp(t, `done +orders +d\.csv +3,000 +0 +0% of 2\.0 MB +1,500 +took 2s`, people.out)
	require.Contains(t, people.err, "4 of 4")
	for _, wrong := range []string{"--limit -1", "--state walking", "--state done --follow", "b.csv"} {
		require.Equal(t, exitUsage, s.hikyaku(append([]string{"imports"}, strings.Fields(wrong)...)...).code, wrong)
	}
}

func TestRateAndTimeLeftAreOfTheLastHalfMinuteOfReading(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	number := func(n float64) *float64 { return &n }
	type sign struct {
		after time.Duration
		state string
		rows  int64
		bytes int64
	}
	for name, c := range map[string]struct {
		signs      []sign
		now        time.Duration
		rate, left *float64
		seconds    float64
		time       string
	}{
		"just begun": {[]sign{{0, importfile.StateAnnounced, 0, 0}, {500 * time.Millisecond, importfile.StateReading, 100, 1000}}, time.Second, nil, nil, 1, "for 1s"},
		"the only record that was not compacted away": {
			[]sign{{10 * time.Second, importfile.StateReading, 1000, 20_000}}, 12 * time.Second, number(100), number(38), 12, "38s left"},
		"slower than it was": {
			[]sign{{10 * time.Second, importfile.StateReading, 90_000, 50_000}, {100 * time.Second, importfile.StateReading, 100_000, 60_000}, {120 * time.Second, importfile.StateReading, 100_200, 70_000}},
			120 * time.Second, number(10), number(60), 120, "1m0s left"},
		"gone on after a pause, by its new owner": {
			[]sign{{5 * time.Second, importfile.StateReading, 1000, 40_000}, {time.Hour, importfile.StateReading, 1000, 40_000}, {time.Hour + 10*time.Second, importfile.StateReading, 2000, 70_000}},
			time.Hour + 10*time.Second, number(100), number(10), 3610, "10s left"},
		"nothing comes from S3": {
			[]sign{{5 * time.Second, importfile.StateReading, 1000, 40_000}, {40 * time.Second, importfile.StateReading, 1000, 40_000}, {50 * time.Second, importfile.StateReading, 1000, 40_000}},
			50 * time.Second, number(0), nil, 50, "for 50s"},
		"all is read of a compressed file, but not unpacked": {
			[]sign{{5 * time.Second, importfile.StateReading, 1000, 90_000}, {15 * time.Second, importfile.StateReading, 1500, 100_000}}, 15 * time.Second, number(50), nil, 15, "for 15s"},
		"later than it seemed": {
			[]sign{{10 * time.Second, importfile.StateReading, 1000, 90_000}}, 30 * time.Second, number(100), nil, 30, "for 30s"},
		"its owner is gone": {
			[]sign{{10 * time.Second, importfile.StateReading, 1000, 20_000}}, 100 * time.Second, nil, nil, 100, "no sign for 1m30s"},
		"waits to be loaded": {
			[]sign{{10 * time.Second, importfile.StateReading, 1000, 20_000}, {20 * time.Second, importfile.StatePublished, 2000, 100_000}}, 25 * time.Second, nil, nil, 25, "for 25s"},
		"done": {
			[]sign{{10 * time.Second, importfile.StateReading, 1000, 20_000}, {20 * time.Second, importfile.StateDone, 2000, 100_000}}, time.Hour, number(100), nil, 20, "took 20s"},
		"failed before anything": {[]sign{{0, importfile.StateFailed, 0, 0}}, time.Hour, nil, nil, 0, "took 0s"},
	} {
		p := &importPicture{}
		for _, s := range c.signs {
			p.apply(&event.Import{State: s.state, StartedAt: start, UpdatedAt: start.Add(s.after), Rows: s.rows, OffsetBytes: s.bytes, SizeBytes: 100_000})
		}
		got := p.at(start.Add(c.now))
		require.Equal(t, c.rate, got.RowsPerSecond, name)
		require.Equal(t, c.left, got.SecondsLeft, name)
		require.Equal(t, c.seconds, got.Seconds, name)
		require.Equal(t, c.time, got.time(), name)
	}
}

func TestShowSaysWhyAnImportFailedAndWhatToDo(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	failed := s.imported("imports/people/2026.csv", "failed", func(e *event.Import) {
		e.Error, e.SegmentID, e.Rows, e.Rejected, e.ProfileUpdates = "3 of 10 rows were rejected; max_rejects in the import spec allows 1", "vip", 10, 3, 7
	})
	older := s.imported("imports/people/before.csv", "failed", nil)
	newer := s.imported("imports/people/before.csv", "done", func(e *event.Import) {
		e.ImportID, e.AnnouncedAt, e.SegmentID, e.Rows = identity.Hash("newer"), e.AnnouncedAt.Add(time.Second), "vip", 10
	})
	s.imported("imports/orders/2026.csv", "published", nil)

	for _, arg := range []string{failed.String(), failed.UUID(), failed.String()[:8], "imports/people/2026.csv", "s3://files/imports/people/2026.csv", "people/2026.csv"} {
		require.Equal(t, failed.String(), s.ok("imports", "show", arg, "--json").one(t)["import_id"], arg)
	}
	require.Equal(t, newer.String(), s.ok("imports", "show", "before.csv", "--json").one(t)["import_id"], "the newest of the object")
	require.Equal(t, older.String(), s.ok("imports", "show", older.String(), "--json").one(t)["import_id"])
	for arg, says := range map[string]string{"2026.csv": "the end of more than one key", "0.csv": "there is no import 0.csv", "2026": "there is no import"} {
		wrong := s.hikyaku("imports", "show", arg)
		require.Equal(t, exitUsage, wrong.code, arg)
		require.Contains(t, wrong.err, says)
	}

	people := s.ok("imports", "show", failed.String()).out
	for _, says := range []string{`failed: 3 of 10 rows were rejected`, `10, of which 3 were rejected`, `7 profile updates`, `imports/people/2026\.csv\.rejects\.csv`, `imports/people/2026\.csv\.report\.json`,
		`7 records, stays`, `segment vip is as it was before`, `mend it and hikyaku apply it: the object is imported again by itself`, `topic read import-rejects --key ` + failed.String()} {
		require.Regexp(t, says, people)
	}
	require.Contains(t, s.ok("imports", "show", "orders/2026.csv").out, "hikyaku status says what they have still to read")

	// Whether the segment is made up of it is in its definition.
	point := func(id identity.ID, replaces int64) {
		body, err := definitions.Segment{Imports: []identity.ID{id}}.Encode()
		require.NoError(t, err)
		_, err = definitions.Write(t.Context(), s.cluster, "test", []definitions.Change{{Kind: definitions.KindSegment, ID: "vip", Body: body, ReplacesVersion: replaces}})
		require.NoError(t, err)
	}
	point(newer, 0)
	require.Equal(t, true, s.ok("imports", "show", newer.String(), "--json").one(t)["segment_current"])
	point(failed, 1)
	require.Equal(t, false, s.ok("imports", "show", newer.String(), "--json").one(t)["segment_current"])
	require.Contains(t, s.ok("imports", "show", newer.String()).out, "made up of another import now")

	for mode, says := range map[string]string{"replace": "replace, made up of this import", "add": "add, to which it adds", "remove": "remove, from which it removes"} {
		id := s.imported("imports/"+mode+".csv", "done", func(e *event.Import) {
			e.SegmentID, e.SegmentMode, e.SegmentMembers, e.Rejected = "list-"+mode, mode, 9, 1
		})
		s.point("list-"+mode, definitions.Segment{Imports: []identity.ID{id}})
		shown := s.ok("imports", "show", id.String()).out
		require.Contains(t, shown, "list-"+says)
		require.Equal(t, mode == "remove", strings.Contains(shown, "9 removals from the segment"))
		require.Equal(t, mode == "replace", strings.Contains(shown, "one with only these rows would become the whole segment"), "a file of its own adds or removes the others")
	}
}

// answered waits for a call that was begun beside the test.
func answered(t *testing.T, done <-chan answer) answer {
	t.Helper()
	select {
	case a := <-done:
		return a
	case <-time.After(kafkatest.Patience):
		t.Fatal("it does not end")
		return answer{}
	}
}

func TestFollowingEndsWithTheLastImportAndSaysWhichFailed(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.imported("before.csv", "failed", func(e *event.Import) { e.Error = "long ago" })
	none := s.ok("imports", "--follow")
	require.Contains(t, none.err, "nothing is being imported", "and it does not wait for something to come")

	s.imported("a.csv", "reading", nil)
	var out, errs locked
	done := make(chan answer, 2)
	go func() {
		code := run(t.Context(), []string{"imports", "--follow", "--json"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &errs)
		done <- answer{code, out.String(), errs.String()}
	}()
	kafkatest.Eventually(t, func() bool { return strings.Contains(out.String(), `"key":"a.csv"`) }, "it does not show what goes on")
	s.imported("b.csv", "announced", nil)
	kafkatest.Eventually(t, func() bool { return strings.Contains(out.String(), `"key":"b.csv"`) }, "it does not notice what began meanwhile")
	s.imported("a.csv", "failed", func(e *event.Import) { e.Error = "no column named id" })
	kafkatest.Eventually(t, func() bool { return strings.Contains(out.String(), "no column named id") }, "it does not notice the end of one")
	require.Empty(t, done, "another goes on")
	s.imported("b.csv", "done", func(e *event.Import) { e.Rows = 7 })
	a := answered(t, done)
	require.Equal(t, exitBroken, a.code)
	require.Contains(t, a.err, "of a.csv has failed: no column named id")
	require.NotContains(t, a.err+a.out, "long ago", "it did not follow that one")
	lines := a.lines(t)
	require.Len(t, lines, 4)
	require.Equal(t, 7.0, lines[3]["rows"])

	// One alone; for people it tells the states.
	one := s.imported("c.csv", "reading", nil)
	other := s.imported("d.csv", "reading", nil)
	var said locked
	go func() {
		code := run(t.Context(), []string{"imports", "show", one.String(), "--follow"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &said, &said)
		done <- answer{code, said.String(), ""}
	}()
	kafkatest.Eventually(t, func() bool { return strings.Contains(said.String(), "c.csv: reading") }, "it says nothing")
	s.imported("c.csv", "published", nil)
	kafkatest.Eventually(t, func() bool { return strings.Contains(said.String(), "c.csv: published") }, "it does not tell the next state")
	s.imported("c.csv", "done", nil)
	a = answered(t, done)
	require.Equal(t, exitDone, a.code, a.out)
	require.Contains(t, a.out, "profile updates")
	require.NotContains(t, a.out, "d.csv")
	require.Equal(t, exitBroken, func() int {
		go func() { done <- s.hikyaku("imports", "show", other.String(), "--follow") }()
		s.imported("d.csv", "failed", nil)
		return answered(t, done).code
	}())
}

func TestABarIsDrawnForEachImportUntilItsEnd(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.imported("imports/people/with-a-long-name-that-nobody-reads.csv", "reading", func(e *event.Import) {
		e.StartedAt = e.UpdatedAt.Add(-2000 * time.Second)
		e.Rows, e.OffsetBytes = 1_234_000, 500_000
	})
	s.imported("orders.csv", "announced", nil)
	var screen locked
	a := &app{env: envconfig.MapLookuper(s.env), err: &screen, patience: 10 * time.Second}
	defer a.close()
	done := make(chan error, 1)
	go func() {
		done <- a.withImports(t.Context(), func(ctx context.Context, table *importTable) error {
			bars := a.newImportBars(100)
			defer bars.done()
			_, err := followImports(ctx, table, &importFilter{}, bars.show)
			return err
		})
	}()
	drawn := func(what string) {
		t.Helper()
		kafkatest.Eventually(t, func() bool { return strings.Contains(screen.String(), what) }, "%s is not drawn: %s", what, &screen)
	}
	drawn("that-nobody-reads.csv")
	drawn("=>-")
	drawn("25% 1,234,000 rows")
	drawn("617/s, 1h39m")
	drawn("orders.csv")
	s.imported("orders.csv", "failed", func(e *event.Import) { e.Rows, e.Rejected, e.OffsetBytes = 10, 10, 1_000_000 })
	drawn("failed")
	drawn("50% 10 rows, 10 rejected")
	s.imported("imports/people/with-a-long-name-that-nobody-reads.csv", "published", func(e *event.Import) { e.Rows, e.OffsetBytes = 2000, 2_000_000 })
	drawn("published")
	s.imported("imports/people/with-a-long-name-that-nobody-reads.csv", "done", func(e *event.Import) { e.Rows, e.OffsetBytes = 2000, 2_000_000 })
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(kafkatest.Patience):
		t.Fatal("it does not end")
	}
	require.Contains(t, screen.String(), "100% 2,000 rows")
}

// Of one that was imported by the spec that is built in, another copy of it is asked for.
func TestAPinpointImportIsShownAndAskedForAgain(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	failed := s.imported("imports/pinpoint/vip/a.csv", "failed", func(e *event.Import) {
		e.SpecID, e.SpecVersion, e.SegmentID, e.SegmentMode, e.FilesPrefix = pinpoint.SpecID, pinpoint.Version, "vip", definition.SegmentAdd, "rejects/"
	})
	shown := s.ok("imports", "show", failed.String()).out
	for _, says := range []string{"rejects/imports/pinpoint/vip/a.csv.rejects.csv", "rejects/imports/pinpoint/vip/a.csv.report.json", "lie under rejects/", "The import spec is built in"} {
		require.Contains(t, shown, says)
	}
	require.NotContains(t, shown, "hikyaku apply")
	require.Equal(t, "rejects/", s.ok("imports", "show", failed.String(), "--json").one(t)["files_prefix"])
	again := s.ok("import", "again", failed.String(), "--yes", "--detach", "--json").one(t)
	require.Equal(t, map[string]any{"spec": pinpoint.SpecID, "spec_version": 1.0, "segment": "vip", "state": "announced", "files_prefix": ""},
		map[string]any{"spec": again["spec"], "spec_version": again["spec_version"], "segment": again["segment"], "state": again["state"], "files_prefix": again["files_prefix"]})
	require.Contains(t, s.ok("imports", "--spec", pinpoint.SpecID).out, pinpoint.SpecID)
}
