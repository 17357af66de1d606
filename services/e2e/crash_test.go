package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

// situation makes somebody die at a point, restarts them, and checks what
// docs/architecture.md says of it.
type situation struct {
	name string // beside the point's; empty for its only one
	do   func(l *lane, rng *rand.Rand)
}

// inARun is a service that dies while a campaign runs.
func inARun(d death) situation {
	return situation{do: func(l *lane, rng *rand.Rand) { l.dieInARun(d, rng) }}
}

func (s situation) called(name string) situation {
	s.name = name
	return s
}

// most is what a kill of the sender may leave uncertain.
const most = 2 * crashConnections

// situations are those of every point of the failure table.
func situations() map[crash.Point][]situation {
	transform := func(service string, g topic.Group, often int) map[crash.Point][]situation {
		return map[crash.Point][]situation{
			// Whoever has just died in a transaction dies again when it has ended that.
			crash.Opened.Of(g):    {inARun(death{victim: service, points: []crash.Point{crash.Produced.Of(g), crash.Opened.Of(g)}, most: often})},
			crash.Decided.Of(g):   {inARun(death{victim: service, points: []crash.Point{crash.Decided.Of(g)}, most: 2 * often})},
			crash.Produced.Of(g):  {inARun(death{victim: service, points: []crash.Point{crash.Produced.Of(g)}, most: 4 * often})},
			crash.Committed.Of(g): {inARun(death{victim: service, points: []crash.Point{crash.Committed.Of(g)}, most: min(often, 6)})},
		}
	}
	resolver := func(p crash.Point, often int, first ...crash.Point) []situation {
		return []situation{inARun(death{victim: topic.Resolver, points: append(first, p), most: often})}
	}
	sink := func(p crash.Point) []situation {
		return []situation{inARun(death{victim: topic.Collector, points: []crash.Point{p}, most: 5})}
	}
	// The sender dies under either policy.
	sender := func(p crash.Point, often int, uncertain [2]int64, first ...crash.Point) []situation {
		d := death{victim: topic.Sender, points: append(first, p), most: often, uncertain: uncertain}
		surely := d
		surely.surely = true
		return []situation{inARun(d).called("at_most_once"), inARun(surely).called("at_least_once")}
	}
	g := topic.GroupSender
	claimed := crash.Claimed.Of(g)
	// Somebody had a call begun, or about to begin, without an answer on record.
	somebody := [2]int64{1, most}
	// Others may have had.
	others := [2]int64{0, most}

	all := map[crash.Point][]situation{
		crash.ImporterOpened:    {importing(death{points: []crash.Point{crash.ImporterProduced, crash.ImporterOpened}, most: 3})},
		crash.ImporterProduced:  {importing(death{points: []crash.Point{crash.ImporterProduced}, most: 3})},
		crash.ImporterMarked:    {importing(death{points: []crash.Point{crash.ImporterMarked}, most: 6})},
		crash.ImporterCommitted: {importing(death{points: []crash.Point{crash.ImporterCommitted}, most: 6})},
		crash.ImporterArrived:   {importing(death{points: []crash.Point{crash.ImporterArrived}})},
		crash.ImporterPointed:   {importing(death{points: []crash.Point{crash.ImporterPointed}})},
		crash.ImporterRejects:   {importing(death{points: []crash.Point{crash.ImporterRejects}})},
		crash.ImporterReported: {importing(death{points: []crash.Point{crash.ImporterReported}}).called("done"),
			{name: "failed", do: failingImport}},
		crash.ImporterUndone: {undoing(crash.ImporterUndone), undoing(crash.ImporterCommitted).called("sending what takes back")},

		crash.ExportOpened:     {exporting(crash.ExportOpened)},
		crash.ExportBegun:      {exporting(crash.ExportBegun)},
		crash.ExportWritten:    {exporting(crash.ExportWritten)},
		crash.ExportSealed:     {exporting(crash.ExportSealed)},
		crash.ExportManifested: {exporting(crash.ExportManifested)},

		crash.DefinitionsOpened:    {applying(crash.DefinitionsOpened), importing(death{points: []crash.Point{crash.DefinitionsOpened}}).called("segment")},
		crash.DefinitionsProduced:  {applying(crash.DefinitionsProduced), importing(death{points: []crash.Point{crash.DefinitionsProduced}}).called("segment")},
		crash.DefinitionsCommitted: {applying(crash.DefinitionsCommitted), importing(death{points: []crash.Point{crash.DefinitionsCommitted}}).called("segment")},
		crash.StartRequested:       {{do: starting}},
		crash.EraseAsked:           {{do: erasing(crash.EraseAsked)}},
		crash.EraseNamed:           {{do: erasing(crash.EraseNamed)}},
		crash.EraseTable:           {{do: erasing(crash.EraseTable, "event_rows", "profile_rows", "segment_member_rows", "outcome_rows", "engagement_rows", "message_input_rows", "message_rows")}},

		crash.PersonStored:    resolver(crash.PersonStored, 6),
		crash.PersonForgotten: {{do: anotherClustersStore}},
		crash.PersonRestoring: resolver(crash.PersonRestoring, 4, crash.Committed.Of(topic.GroupPersonLoop)),
		crash.PersonRestored:  resolver(crash.PersonRestored, 4, crash.Committed.Of(topic.GroupPersonLoop)),
		crash.DriverCounted:   resolver(crash.DriverCounted, 1),
		crash.DriverCompared:  resolver(crash.DriverCompared, 1),
		crash.TicksWritten:    resolver(crash.TicksWritten, 12),

		crash.Recovered.Of(g):  sender(crash.Recovered.Of(g), 40, somebody, claimed),
		crash.Unresolved.Of(g): sender(crash.Unresolved.Of(g), 40, somebody, claimed),
		crash.Claiming.Of(g):   sender(crash.Claiming.Of(g), 6, others),
		crash.Claimed.Of(g):    sender(claimed, 45, somebody),
		crash.SenderInvited:    sender(crash.SenderInvited, 40, somebody),
		crash.SenderAsked:      sender(crash.SenderAsked, 40, somebody),
		crash.Answered.Of(g):   sender(crash.Answered.Of(g), 45, somebody),
		crash.Retried.Of(g):    temporarily(sender(crash.Retried.Of(g), 3, others)),
		// Of those who are settled at the recovery, too.
		crash.Settled.Of(g): append(sender(crash.Settled.Of(g), 45, others),
			sender(crash.Settled.Of(g), 40, others, claimed)[0].called("of who was unresolved")),
		crash.Tidied.Of(g):  sender(crash.Tidied.Of(g), 2, others),
		crash.Parking.Of(g): {{do: unreadableMessage(crash.Parking.Of(g))}},
		crash.Buried.Of(g):  {{do: unreadableMessage(crash.Buried.Of(g))}},

		crash.SinkGathered:                 sink(crash.SinkGathered),
		crash.SinkBetween:                  sink(crash.SinkBetween),
		crash.Done.Of(topic.GroupSink):     sink(crash.Done.Of(topic.GroupSink)),
		crash.Passed.Of(topic.GroupSink):   sink(crash.Passed.Of(topic.GroupSink)),
		crash.Parked.Of(topic.GroupSink):   {{do: unreadableEvent}},
		crash.Retrying.Of(topic.GroupSink): {{do: whileClickHouseIsAway}},
		crash.IntakeDecided:                {{do: takingIn(crash.IntakeDecided, 1)}},
		crash.IntakePartly:                 {{do: takingIn(crash.IntakePartly, eventsPerRequest-1)}},
		crash.IntakeAcknowledged:           {{do: takingIn(crash.IntakeAcknowledged, 1)}},
		crash.TrackingAcknowledged:         {{do: following(crash.TrackingAcknowledged, token.Open)}},
		crash.UnsubscribeAcknowledged:      {{do: following(crash.UnsubscribeAcknowledged, token.Unsubscribe)}},
		crash.SpoolAppended:                {{do: whileKafkaIsAway(crash.SpoolAppended)}},
		crash.SpoolDrained:                 {{do: whileKafkaIsAway(crash.SpoolDrained)}},
		crash.ProvisionCreated:             {{do: provisioning(crash.ProvisionCreated, 12)}},
		crash.ProvisionCommitted:           {{do: provisioning(crash.ProvisionCommitted, 5)}},
		crash.ProvisionMigrated:            {{do: provisioning(crash.ProvisionMigrated, 20)}},
	}
	for _, loop := range []map[crash.Point][]situation{
		transform(topic.Resolver, topic.GroupPersonLoop, 12), transform(topic.Resolver, topic.GroupShardLoop, 1), transform(topic.Renderer, topic.GroupRenderer, 2),
	} {
		for p, s := range loop {
			all[p] = s
		}
	}
	return all
}

// Whoever dies between two durable steps leaves behind what the failure table says:
// nobody is lost, nobody is sent to twice, and every count balances.
//
//	HIKYAKU_CRASH_TIMES   how often each point is died at (1)
//	HIKYAKU_CRASH_POINTS  which points: a regular expression (all)
//	HIKYAKU_CRASH_SEED    draws at which occurrence, to repeat a run that failed
//	HIKYAKU_CRASH_LANES   how many namespaces are worked in at once (4)
func TestDyingAt(t *testing.T) {
	t.Parallel()
	s, root := startStack(t), t
	times, seed, lanes := 1, rand.Uint64(), 4
	for name, into := range map[string]*int{"HIKYAKU_CRASH_TIMES": &times, "HIKYAKU_CRASH_LANES": &lanes} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			require.NoError(t, err, name)
			*into = n
		}
	}
	if text := os.Getenv("HIKYAKU_CRASH_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		seed = n
	}
	t.Logf("HIKYAKU_CRASH_SEED=%d", seed)
	chosen, err := regexp.Compile(os.Getenv("HIKYAKU_CRASH_POINTS"))
	require.NoError(t, err)
	_, err = mortal()
	require.NoError(t, err)

	cases := make(chan crash.Point)
	var working sync.WaitGroup
	for range lanes {
		var l *lane // made when it has its first case
		working.Go(func() {
			for p := range cases {
				// Cases wait for ticks, not for a processor: so they run side by side, but
				// not in the number that t.Parallel would allow.
				root.Run(string(p), func(t *testing.T) {
					if l == nil {
						made := newLane(root, t, s)
						made.populate(1)
						l = made
					}
					l.t = t
					defer l.explain(t)
					for _, c := range situations()[p] {
						for k := range times {
							if c.name != "" {
								t.Logf("%s, %d of %d", c.name, k+1, times)
							}
							c.do(l, rand.New(rand.NewPCG(seed, fnv(fmt.Sprint(p, c.name, k)))))
						}
					}
				})
			}
		})
	}
	for _, p := range crash.Points() {
		if chosen.MatchString(string(p)) {
			cases <- p
		}
	}
	close(cases)
	working.Wait()
}

// Each point is passed at one place of the code, has a line in the failure table
// and a case above; no other name is used for one.
func TestEveryPointIsOneLineOneTestAndOnePlace(t *testing.T) {
	services := ".."
	constants := regexp.MustCompile(`(?m)^\t(\w+)\s+(Point|Step)\s+= "([^"]+)"`)
	source, err := os.ReadFile(filepath.Join(services, "internal", "crash", "points.go"))
	require.NoError(t, err)
	used := map[string]int{}
	for _, m := range constants.FindAllStringSubmatch(string(source), -1) {
		used[m[1]] = 0
	}
	require.NotEmpty(t, used)
	use := regexp.MustCompile(`\bcrash\.(At\(crash\.(\w+)\)|In\([\w.]+, crash\.(\w+)\))`)
	every := regexp.MustCompile(`\bcrash\.(At|In)\(`)
	require.NoError(t, filepath.WalkDir(services, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found := use.FindAllStringSubmatch(string(text), -1)
		require.Len(t, every.FindAllString(string(text), -1), len(found), "%s: a point is named by its constant", path)
		for _, m := range found {
			used[m[2]+m[3]]++
		}
		return nil
	}))
	for name, n := range used {
		require.Equal(t, 1, n, "crash.%s is passed at one place", name)
	}

	page, err := os.ReadFile(filepath.Join(services, "..", "docs", "architecture.md"))
	require.NoError(t, err)
	lines := map[string]int{}
	for _, m := range regexp.MustCompile("(?m)^\\| [^|]+ \\| `([a-z_.]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		lines[m[1]]++
	}
	all := situations()
	for _, p := range crash.Points() {
		require.Equal(t, 1, lines[string(p)], "%s has one line in docs/architecture.md", p)
		require.NotEmpty(t, all[p], "%s has a case", p)
		delete(lines, string(p))
		delete(all, p)
	}
	require.Empty(t, lines, "the failure table names no other point")
	require.Empty(t, all, "there is no other case")
}

// temporarily lets some people be refused for the moment: their addresses, new to
// the mail server, ask for it.
func temporarily(situations []situation) []situation {
	for i, s := range situations {
		situations[i].do = func(l *lane, rng *rand.Rand) {
			var body struct {
				Batch []any `json:"batch"`
			}
			for i := 17; i < crashPeople; i += 20 {
				body.Batch = append(body.Batch, map[string]any{"type": "identify", "userId": fmt.Sprintf("u%03d", i),
					"context": map[string]any{"hikyaku": map[string]any{"addresses": map[string]any{"email": l.address(fmt.Sprintf("n%d", l.next()), "451")}}}})
			}
			text, err := json.Marshal(body)
			require.NoError(l.t, err)
			l.eventually("the addresses are taken in", func() bool {
				status, err := l.post("/v1/batch", string(text))
				return err == nil && status == http.StatusOK
			})
			s.do(l, rng)
		}
	}
	return situations
}

const (
	listRows    = 400 // some transactions' worth
	listRejects = 12
)

// importing is an importer that dies while it has a list in hand.
func importing(d death) situation {
	return situation{do: func(l *lane, rng *rand.Rand) {
		victim := l.children[topic.Importer]
		victim.stop()
		order := at(d.points[0], 1+rng.IntN(max(1, d.most)))
		victim.launch(order)
		deaths := 0
		for round := 1; deaths < len(d.points); round++ {
			require.Less(l.t, round, maxRounds, "the importer lives: it has not passed %s", order)
			list := l.next()
			var rows [][]string
			for i := range listRows {
				row := []string{fmt.Sprintf("l%d-%03d", list, i), l.address(fmt.Sprintf("l%d-%03d", list, i), ""), strconv.Itoa(i)}
				if i%(listRows/listRejects) == 5 && i/(listRows/listRejects) < listRejects {
					row[2] = "many"
				}
				rows = append(rows, row)
			}
			name := fmt.Sprintf("%d.csv", list)
			dir := filepath.Join(l.folder, "imports", l.prefixOf("list"))
			require.NoError(l.t, os.MkdirAll(dir, 0o755))
			require.NoError(l.t, os.WriteFile(filepath.Join(dir, name), []byte(asCSV([]string{"id", "email", "score"}, rows)), 0o644))
			var report struct {
				ImportID       string `json:"import_id"`
				State          string
				Rows, Rejected int64
			}
			var back time.Time
			l.eventually("the import is done", func() bool {
				if victim.dead() && deaths < len(d.points) {
					victim.requireDiedAt(order)
					deaths++
					order = ""
					if deaths < len(d.points) {
						order = at(d.points[deaths], 1)
					}
					back = time.Now()
					victim.launch(order)
					return false
				}
				text, err := os.ReadFile(filepath.Join(dir, name+".report.json"))
				if err != nil || json.Unmarshal(text, &report) != nil {
					return false
				}
				// The report comes before the state that says so.
				return l.importState(report.ImportID) == "done" && (deaths == 0 || deaths == len(d.points))
			})
			if !back.IsZero() {
				l.t.Logf("done %s after the restart", time.Since(back).Round(10*time.Millisecond))
			}
			require.Equal(l.t, "done", report.State)
			require.EqualValues(l.t, listRows, report.Rows)
			require.EqualValues(l.t, listRejects, report.Rejected)
			l.requireImported(list, report.ImportID, filepath.Join(dir, name+".rejects.csv"))
		}
	}}
}

// importState is an import's last committed state.
func (l *lane) importState(id string) string {
	l.t.Helper()
	var last event.Import
	l.records(topic.Imports, func(r *kgo.Record) {
		if string(r.Key) == id {
			_, payload, err := event.SplitHeader(r.Value)
			require.NoError(l.t, err)
			require.NoError(l.t, last.DecodeAvro(payload))
		}
	})
	return last.State
}

// requireImported checks that every row of a list became its records once, or a
// reject once, and that the segment consists of it.
func (l *lane) requireImported(list int, importID, rejects string) {
	l.t.Helper()
	prefix := fmt.Sprintf("l%d-", list)
	for _, name := range []topic.Name{topic.ProfileUpdates, topic.SegmentMembers} {
		times := map[string]int{}
		l.records(name, func(r *kgo.Record) {
			if strings.HasPrefix(string(r.Key), prefix) {
				times[string(r.Key)]++
			}
		})
		require.Len(l.t, times, listRows-listRejects, "rows in %s", name)
		for key, n := range times {
			require.Equal(l.t, 1, n, "records of %s in %s", key, name)
		}
	}
	text, err := os.ReadFile(rejects)
	require.NoError(l.t, err)
	require.Equal(l.t, 1+listRejects, strings.Count(string(text), "\n"), "lines of the reject file")
	inProfiles := func() int {
		return l.count("SELECT count() FROM profiles WHERE startsWith(user_id, ?)", prefix)
	}
	require.Equal(l.t, listRows-listRejects, inProfiles(), "profiles in ClickHouse, once the import is done")
	require.Equal(l.t, listRows-listRejects, l.count("SELECT count() FROM segment_members WHERE startsWith(user_id, ?)", prefix))
	var segment struct{ Body struct{ Imports []string } }
	l.hikyaku(&segment, "get", "segment", "listed")
	require.Equal(l.t, []string{importID}, segment.Body.Imports)
}

// undoing is an importer that dies while it takes an import back.
func undoing(p crash.Point) situation {
	return situation{do: func(l *lane, rng *rand.Rand) {
		victim := l.children[topic.Importer]
		list := l.next()
		var rows [][]string
		for i := range listRows {
			id := fmt.Sprintf("l%d-%03d", list, i)
			rows = append(rows, []string{id, l.address(id, ""), strconv.Itoa(i)})
		}
		name := fmt.Sprintf("%d.csv", list)
		dir := filepath.Join(l.folder, "imports", l.prefixOf("list"))
		require.NoError(l.t, os.MkdirAll(dir, 0o755))
		require.NoError(l.t, os.WriteFile(filepath.Join(dir, name), []byte(asCSV([]string{"id", "email", "score"}, rows)), 0o644))
		var report struct {
			ImportID string `json:"import_id"`
		}
		l.eventually("the import is done", func() bool {
			text, err := os.ReadFile(filepath.Join(dir, name+".report.json"))
			return err == nil && json.Unmarshal(text, &report) == nil && l.importState(report.ImportID) == "done"
		})
		victim.stop()
		order := at(p, 1)
		if p != crash.ImporterUndone {
			order = at(p, 1+rng.IntN(3))
		}
		victim.launch(order)
		var undo struct {
			ImportID string `json:"import_id"`
		}
		l.hikyaku(&undo, "import", "undo", report.ImportID, "--yes", "--detach")
		victim.wait()
		victim.requireDiedAt(order)
		victim.launch("")
		l.eventually("the import is undone", func() bool { return l.importState(undo.ImportID) == "done" })
		require.Equal(l.t, "undone", l.importState(report.ImportID))
		prefix := fmt.Sprintf("l%d-", list)
		times := map[string]int{}
		l.records(topic.ProfileUpdates, func(r *kgo.Record) {
			if strings.HasPrefix(string(r.Key), prefix) {
				times[string(r.Key)]++
			}
		})
		require.Len(l.t, times, listRows)
		for key, n := range times {
			require.Equal(l.t, 2, n, "the patches of %s: one that set, one that takes back", key)
		}
		require.Zero(l.t, l.count("SELECT count() FROM profiles WHERE startsWith(user_id, ?)", prefix))
		var segment struct{ Body struct{ Imports []string } }
		l.hikyaku(&segment, "get", "segment", "listed")
		require.NotContains(l.t, segment.Body.Imports, report.ImportID)
	}}
}

// exporting is an importer that dies in an export of all profiles. Once it is back there is one export,
// complete, with everybody in it.
func exporting(p crash.Point) situation {
	return situation{do: func(l *lane, _ *rand.Rand) {
		victim := l.children[topic.Importer]
		victim.stop()
		order := at(p, 1)
		victim.launch(order)
		type export struct {
			ExportID string `json:"export_id"`
			State    string `json:"state"`
			Rows     int64  `json:"rows"`
			Manifest string `json:"manifest"`
		}
		var asked export
		l.hikyaku(&asked, "export", "--what", "profiles", "--format", "csv", "--to", "exports/"+l.namespace, "--detach")
		victim.wait()
		victim.requireDiedAt(order)
		victim.launch("")
		var done export
		l.eventually("the export is done", func() bool {
			var all []export
			l.hikyaku(&all, "exports")
			for _, e := range all {
				if e.ExportID == asked.ExportID {
					done = e
				}
			}
			return done.State == "done"
		})
		require.EqualValues(l.t, l.count("SELECT count() FROM profiles"), done.Rows)
		_, key, _ := strings.Cut(strings.TrimPrefix(done.Manifest, "s3://"), "/")
		text, err := os.ReadFile(filepath.Join(l.folder, key))
		require.NoError(l.t, err)
		var manifest struct {
			Rows  int64
			Files []struct{ Key string }
		}
		require.NoError(l.t, json.Unmarshal(text, &manifest))
		require.Equal(l.t, done.Rows, manifest.Rows)
		there, err := os.ReadDir(filepath.Dir(filepath.Join(l.folder, key)))
		require.NoError(l.t, err)
		require.Len(l.t, there, len(manifest.Files)+1, "the files that the manifest lists, and the manifest")
	}}
}

// failingImport is an importer that dies when it has reported why an import failed.
func failingImport(l *lane, _ *rand.Rand) {
	victim := l.children[topic.Importer]
	victim.stop()
	order := at(crash.ImporterReported, 1)
	victim.launch(order)
	name := fmt.Sprintf("%d.csv", l.next())
	dir := filepath.Join(l.folder, "imports", l.prefixOf("list"))
	require.NoError(l.t, os.MkdirAll(dir, 0o755))
	require.NoError(l.t, os.WriteFile(filepath.Join(dir, name), []byte("\x00is no list"), 0o644))
	victim.wait()
	victim.requireDiedAt(order)
	victim.launch("")
	var report struct {
		ImportID string `json:"import_id"`
		State    string
	}
	l.eventually("the import has failed", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, name+".report.json"))
		return err == nil && json.Unmarshal(text, &report) == nil && l.importState(report.ImportID) == "failed"
	})
	require.Equal(l.t, "failed", report.State)
}

// applying is hikyaku apply, which dies and is called once more.
func applying(p crash.Point) situation {
	return situation{do: func(l *lane, _ *rand.Rand) {
		id := fmt.Sprintf("audience-%d", l.next())
		file := filepath.Join(l.t.TempDir(), id+".yaml")
		require.NoError(l.t, os.WriteFile(file, fmt.Appendf(nil, "kind: Audience\nid: %s\nfilter:\n  attribute: {name: age, gte: 18}\n", id), 0o644))
		apply := l.child(programConsole, "apply", "-f", file)
		apply.launch(at(p, 1))
		apply.wait()
		apply.requireDiedAt(at(p, 1))
		began := time.Now()
		apply.launch("")
		apply.wait()
		require.True(l.t, apply.cmd.ProcessState.Success(), apply.log())
		l.t.Logf("applied %s after the second call", time.Since(began).Round(10*time.Millisecond))
		var inForce []struct {
			ID      string
			Version int64
		}
		l.hikyaku(&inForce, "get", "audience")
		n := 0
		for _, d := range inForce {
			if d.ID == id {
				n++
				require.EqualValues(l.t, 1, d.Version, "what was given up is no version")
			}
		}
		require.Equal(l.t, 1, n)
	}}
}

// starting is hikyaku start, which dies when the request is written. The run goes
// its way, and the same call does not send it twice.
func starting(l *lane, _ *rand.Rand) {
	campaign := fmt.Sprintf("campaign-%d", l.next())
	file := filepath.Join(l.t.TempDir(), campaign+".yaml")
	require.NoError(l.t, os.WriteFile(file, fmt.Appendf(nil, "kind: Campaign\nid: %s\naudience: adults\ntemplate: hello\nfrom: {name: Hikyaku, address: hello@example.test}\n", campaign), 0o644))
	l.hikyaku(nil, "apply", "-f", file)
	mailbox := l.mailbox()
	start := l.child(programConsole, "start", campaign)
	start.launch(at(crash.StartRequested, 1))
	start.wait()
	start.requireDiedAt(at(crash.StartRequested, 1))
	start.launch("")
	start.wait()
	require.Equal(l.t, 1, start.cmd.ProcessState.ExitCode(), start.log())
	run := regexp.MustCompile(`as run ([0-9a-f]{32})`).FindStringSubmatch(start.log())
	require.NotNil(l.t, run, "the second call names the run of the first: %s", start.log())
	l.eventually("the run has ended", func() bool { return over(l.stateOf(run[1])) })
	l.requireAccounted(death{}, run[1], 0, mailbox)
	l.requireAllCommitted()
}

// erasing is hikyaku erase, which dies and is called again: of one person, or, where the
// point is passed once for each table, of one person for each. They got a message, opened
// it and did what its campaign is for; so did somebody who is not erased.
func erasing(p crash.Point, tables ...string) func(*lane, *rand.Rand) {
	return func(l *lane, _ *rand.Rand) {
		list, erased := l.next(), max(1, len(tables))
		person := func(i int) string { return fmt.Sprintf("gone%d-%d", list, i) }
		var rows [][]string
		for i := range erased + 1 {
			rows = append(rows, []string{person(i), l.address(person(i), ""), "1"})
		}
		l.upload(l.prefixOf("list"), fmt.Sprintf("%d.csv", list), asCSV([]string{"id", "email", "score"}, rows))
		campaign := fmt.Sprintf("campaign-%d", list)
		file := filepath.Join(l.t.TempDir(), campaign+".yaml")
		require.NoError(l.t, os.WriteFile(file, fmt.Appendf(nil, `kind: Audience
id: listed
filter: {segment: listed}
---
kind: Template
id: score
channel: email
subject: "{{ score }}"
text: "{{ score }}"
---
kind: Campaign
id: %s
audience: listed
template: score
goal: {event: bought, within: 1h}
from: {name: Hikyaku, address: hello@example.test}
`, campaign), 0o644))
		l.hikyaku(nil, "apply", "-f", file)
		run := l.run(campaign).RunID
		keys, err := render.Config{Secret: render.InsecureSecret, KeyID: "1"}.Keys()
		require.NoError(l.t, err)
		for i := range erased + 1 {
			status, err := l.post("/v1/track", fmt.Sprintf(`{"event":"bought","userId":%q,"messageId":%q}`, person(i), person(i)))
			require.NoError(l.t, err)
			require.Equal(l.t, http.StatusOK, status)
			of, err := identity.Parse(run)
			require.NoError(l.t, err)
			link, err := keys.Append(nil, keys.Current(), &token.Token{Purpose: token.Open, MessageID: identity.Message(l.namespace, campaign, run, person(i), ""), RunID: of,
				Channel: "email", CampaignID: campaign, UserID: person(i)})
			require.NoError(l.t, err)
			require.Equal(l.t, http.StatusOK, request(l.t, http.MethodGet, fmt.Sprintf("%s/%c/%s", l.env["TRACKING_URL"], token.Open, link), ""))
		}
		l.requireAllCommitted()
		converted := func() int {
			return l.count("SELECT sum(converted) FROM funnel WHERE run_id = toUUID(?)", uuid(run))
		}
		numbers := func() (all []any) {
			for _, query := range []string{"SELECT * EXCEPT (complete_until, converted) FROM funnel", "SELECT * EXCEPT (note, complete_until) FROM run_balance",
				"SELECT class, count() AS messages, uniqExact(user_id) AS people, countIf(opened_raw_at IS NULL) AS unread FROM messages"} {
				query += fmt.Sprintf(" WHERE run_id = toUUID('%s')", uuid(run))
				if strings.HasPrefix(query, "SELECT class") {
					query += " GROUP BY class"
				}
				all = append(all, l.rows(query))
			}
			return all
		}
		before := numbers()
		require.Equal(l.t, erased+1, converted())

		// All at once: each waits for the resolver and the sink.
		calls := make([]*child, erased)
		for i := range calls {
			calls[i] = l.child(programConsole, "erase", person(i), "--yes", "--json")
			calls[i].launch(at(p, i+1))
		}
		for i, call := range calls {
			call.wait()
			call.requireDiedAt(at(p, i+1))
		}
		kept := identity.Hash("kept", l.namespace, run)
		require.NoError(l.t, l.db.Exec(l.t.Context(), "INSERT INTO funnel_rows (run_id, classifier_version, complete_until) VALUES (?, 1, now64(3))", kept.UUID()))
		for _, call := range calls {
			call.launch("")
		}
		for i, call := range calls {
			call.wait()
			require.True(l.t, call.cmd.ProcessState.Success(), call.log())
			var said struct {
				Before                  *time.Time `json:"erased_before"`
				Removed, Unlinked, Left map[string]uint64
			}
			require.NoError(l.t, json.Unmarshal(call.stdout.Bytes(), &said), call.stdout.String())
			require.Equal(l.t, p != crash.EraseAsked, said.Before != nil, "the second call says whether the first had told the sinks")
			for k, table := range tables {
				require.Equal(l.t, k > i, said.Removed[table]+said.Unlinked[table] > 0, "what the second call of %d says of %s: %s", i, table, call.stdout.String())
			}
			require.Empty(l.t, said.Left)
		}
		require.Empty(l.t, l.naming(fmt.Sprintf("gone%d-[0-%d]", list, erased-1)))
		require.Len(l.t, l.naming(person(erased)), 7, "who was not erased is where she was")
		require.Equal(l.t, before, numbers())
		require.Equal(l.t, 1, converted())
		require.Zero(l.t, l.count("SELECT count() FROM funnel_rows WHERE run_id = ?", kept.UUID()), "no funnel is kept that counted her events")
	}
}

// anotherClustersStore is a resolver that finds a store which is ahead of the
// cluster, and dies when it has emptied it.
func anotherClustersStore(l *lane, _ *rand.Rand) {
	l.children[topic.Resolver].stop()
	store := filepath.Join(l.env["HIKYAKU_DATA"], topic.Resolver+"-0")
	young := newLane(l.t, l.t, l.stack)
	require.NoError(l.t, os.CopyFS(filepath.Join(young.env["HIKYAKU_DATA"], topic.Resolver+"-0"), os.DirFS(store)))
	l.children[topic.Resolver].launch("")
	young.provision()
	order := at(crash.PersonForgotten, 1)
	victim := young.child(topic.Resolver)
	victim.launch(order)
	victim.wait()
	victim.requireDiedAt(order)
	young.populate(1)
	answer := <-young.begin("greeting")
	require.NoError(l.t, answer.err)
	young.eventually("the run has ended", func() bool { return over(young.stateOf(answer.run)) })
	young.requireAccounted(death{}, answer.run, 0, 0)
	young.requireAllCommitted()
}

// deadLetters counts those of a service.
func (l *lane) deadLetters(service string) int {
	l.t.Helper()
	n := 0
	l.records(topic.DeadLetters(service), func(*kgo.Record) { n++ })
	return n
}

// produce writes a record that is no record of ours.
func (l *lane) produce(r *kgo.Record) {
	l.t.Helper()
	require.NoError(l.t, l.kafka.ProduceSync(l.t.Context(), r).FirstErr())
}

// unreadableMessage is a sender that dies while it parks what it cannot read.
func unreadableMessage(p crash.Point) func(*lane, *rand.Rand) {
	return func(l *lane, rng *rand.Rand) {
		victim := l.children[topic.Sender]
		before := l.deadLetters(topic.Sender)
		victim.stop()
		order := at(p, 1)
		victim.launch(order)
		message := identity.Hash("unreadable", l.namespace, strconv.Itoa(l.next()))
		user := "u000"
		l.produce(&kgo.Record{Topic: topic.MessagesEmailBulk.In(l.namespace), Partition: topic.Partition(user, 4), Key: []byte(user), Value: []byte("unreadable"),
			Headers: []kgo.RecordHeader{{Key: kafka.HeaderMessageID, Value: []byte(message.String())}, {Key: kafka.HeaderRunID, Value: []byte(message.String())}, {Key: kafka.HeaderUserID, Value: []byte(user)}}})
		victim.wait()
		victim.requireDiedAt(order)
		victim.launch("")
		l.requireAllCommitted()
		after := l.deadLetters(topic.Sender)
		require.GreaterOrEqual(l.t, after, before+1, "parked")
		require.LessOrEqual(l.t, after, before+2, "and once more after the restart")
		l.eventually("it is counted once", func() bool {
			return l.count("SELECT count() FROM outcomes WHERE message_id = toUUID(?) AND outcome = 'parked'", uuid(message.String())) == 1
		})
		require.EqualValues(l.t, 1, l.count("SELECT count() FROM outcomes WHERE message_id = toUUID(?)", uuid(message.String())))
	}
}

// unreadableEvent is a sink that dies when it has parked what it cannot read.
func unreadableEvent(l *lane, _ *rand.Rand) {
	victim := l.children[topic.Collector]
	before := l.deadLetters(topic.Collector)
	victim.stop()
	order := at(crash.Parked.Of(topic.GroupSink), 1)
	victim.launch(order)
	l.produce(&kgo.Record{Topic: topic.Events.In(l.namespace), Partition: 0, Key: []byte("u000"), Value: []byte("unreadable")})
	victim.wait()
	victim.requireDiedAt(order)
	victim.launch("")
	l.requireAllCommitted()
	after := l.deadLetters(topic.Collector)
	require.GreaterOrEqual(l.t, after, before+1, "parked")
	require.LessOrEqual(l.t, after, before+2, "and once more after the restart")
}

// whileClickHouseIsAway is a sink that dies while it waits for ClickHouse.
func whileClickHouseIsAway(l *lane, rng *rand.Rand) {
	target, err := url.Parse(l.env["CLICKHOUSE_URL"])
	require.NoError(l.t, err)
	var away atomic.Bool
	proxy := httputil.NewSingleHostReverseProxy(target)
	listener, err := net.Listen("tcp", free)
	require.NoError(l.t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler) // as a database whose machine is gone
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()

	victim := l.children[topic.Collector]
	victim.env["CLICKHOUSE_URL"] = "http://" + listener.Addr().String()
	away.Store(true)
	victim.stop()
	order := at(crash.Retrying.Of(topic.GroupSink), 1+rng.IntN(3))
	victim.launch(order)
	mailbox := l.mailbox()
	answer := l.begin("greeting")
	victim.wait()
	victim.requireDiedAt(order)
	delete(victim.env, "CLICKHOUSE_URL")
	victim.launch("")
	started := <-answer
	require.NoError(l.t, started.err)
	l.eventually("the run has ended", func() bool { return over(l.stateOf(started.run)) })
	l.requireAccounted(death{}, started.run, 0, mailbox)
	l.requireAllCommitted()
}

const eventsPerRequest = 5

// takingIn is a collector that dies with a request in hand; the client gets no
// answer and sends it again.
func takingIn(p crash.Point, often int) func(*lane, *rand.Rand) {
	return func(l *lane, rng *rand.Rand) {
		victim := l.children[topic.Collector]
		victim.stop()
		order := at(p, 1+rng.IntN(often))
		victim.launch(order)
		victim.awaitDirect()
		request, text := l.request()
		l.eventually("the collector dies", func() bool {
			status, err := l.post("/v1/batch", string(text))
			require.False(l.t, err == nil && status == http.StatusOK, "the collector lives: it has not passed %s", order)
			return victim.dead()
		})
		victim.requireDiedAt(order)
		back := time.Now()
		victim.launch("")
		victim.awaitDirect()
		l.eventually("the client is answered", func() bool {
			status, err := l.post("/v1/batch", string(text))
			return err == nil && status == http.StatusOK
		})
		l.t.Logf("answered %s after the restart", time.Since(back).Round(10*time.Millisecond))
		l.requireAllCommitted()
		require.Equal(l.t, eventsPerRequest, l.count("SELECT count() FROM events WHERE startsWith(event_id, ?)", fmt.Sprintf("%d-", request)))
	}
}

// request is one of the lane's, with a number of its own.
func (l *lane) request() (number int, text []byte) {
	l.t.Helper()
	number = l.next()
	var body struct {
		Batch []any `json:"batch"`
	}
	for i := range eventsPerRequest {
		body.Batch = append(body.Batch, map[string]any{"type": "track", "event": "bought", "userId": fmt.Sprintf("u%03d", i), "messageId": fmt.Sprintf("%d-%d", number, i)})
	}
	text, err := json.Marshal(body)
	require.NoError(l.t, err)
	return number, text
}

// awaitDirect returns when the collector writes to Kafka: until it has found it everything goes
// into the spool.
func (c *child) awaitDirect() {
	c.l.eventually("the collector writes to Kafka", func() bool { return c.dead() || strings.Contains(c.log(), "what comes in goes to Kafka") })
}

// whileKafkaIsAway is a collector that takes in what it cannot hand on, and dies; its successor
// finds Kafka again.
func whileKafkaIsAway(p crash.Point) func(*lane, *rand.Rand) {
	return func(l *lane, _ *rand.Rand) {
		victim := l.children[topic.Collector]
		victim.stop()
		order := at(p, 1)
		victim.env["KAFKA_BROKERS"] = "127.0.0.1:9"
		first := ""
		if p == crash.SpoolAppended {
			first = order
		}
		victim.launch(first)
		request, text := l.request()
		l.eventually("the collector has the events in its spool", func() bool {
			status, err := l.post("/v1/batch", string(text))
			return victim.dead() || err == nil && status == http.StatusOK
		})
		delete(victim.env, "KAFKA_BROKERS")
		if p == crash.SpoolDrained {
			require.NoError(l.t, victim.cmd.Process.Kill())
			victim.wait()
			victim.launch(order)
		}
		victim.wait()
		victim.requireDiedAt(order)
		victim.launch("")
		victim.awaitDirect()
		// Nobody was answered at spool.appended, and everything is there all the same.
		l.requireAllCommitted()
		require.Equal(l.t, eventsPerRequest, l.count("SELECT count() FROM events WHERE startsWith(event_id, ?)", fmt.Sprintf("%d-", request)))
	}
}

// following is a collector that dies when it has recorded what a reader did; the
// reader gets no answer and tries again.
func following(p crash.Point, purpose token.Purpose) func(*lane, *rand.Rand) {
	return func(l *lane, _ *rand.Rand) {
		victim := l.children[topic.Collector]
		victim.stop()
		order := at(p, 1)
		victim.launch(order)
		victim.awaitDirect()
		keys, err := render.Config{Secret: render.InsecureSecret, KeyID: "1"}.Keys()
		require.NoError(l.t, err)
		n := l.next()
		var message identity.ID
		binary.BigEndian.PutUint64(message[8:], uint64(n))
		user := fmt.Sprintf("reader-%d", n)
		link, err := keys.Append(nil, keys.Current(), &token.Token{Purpose: purpose, MessageID: message, RunID: message, Channel: "email", CampaignID: "greeting", UserID: user})
		require.NoError(l.t, err)
		method, kind := http.MethodGet, "opened"
		if purpose == token.Unsubscribe {
			method, kind = http.MethodPost, "unsubscribed"
		}
		follow := func() (int, error) {
			req, err := http.NewRequestWithContext(l.t.Context(), method, fmt.Sprintf("%s/%c/%s", l.env["TRACKING_URL"], purpose, link), nil)
			require.NoError(l.t, err)
			return answered(req)
		}
		// An open is answered with or without Kafka, and so it is asked for until
		// Kafka has one.
		l.eventually("the collector dies", func() bool {
			_, _ = follow()
			return victim.dead()
		})
		victim.requireDiedAt(order)
		victim.launch("")
		victim.awaitDirect()
		l.eventually("the reader is answered", func() bool {
			status, err := follow()
			return err == nil && status == http.StatusOK
		})
		l.requireAllCommitted()
		recorded := func() int {
			return l.count("SELECT count() FROM engagements WHERE message_id = toUUID(?) AND kind = ?", uuid(message.String()), kind)
		}
		if purpose == token.Unsubscribe {
			require.Equal(l.t, 1, recorded(), "asked for twice, done once")
			require.Equal(l.t, 1, l.count("SELECT count() FROM profiles WHERE user_id = ? AND consents['email'] = 'unsubscribed'", user))
			return
		}
		l.eventually("what was acknowledged is there", func() bool { return recorded() >= 1 })
	}
}

// provisioning is provision, which dies in the middle and is called again.
func provisioning(p crash.Point, often int) func(*lane, *rand.Rand) {
	return func(l *lane, rng *rand.Rand) {
		young := newLane(l.t, l.t, l.stack)
		program := young.child(programProvision)
		order := at(p, 1+rng.IntN(often))
		program.launch(order)
		program.wait()
		program.requireDiedAt(order)
		program.launch("")
		program.wait()
		require.True(l.t, program.cmd.ProcessState.Success(), program.log())
		program.launch("")
		program.wait()
		require.True(l.t, program.cmd.ProcessState.Success(), program.log())
		require.Contains(l.t, program.log(), "nothing was changed", "the second call has done all that the first had left")
	}
}
