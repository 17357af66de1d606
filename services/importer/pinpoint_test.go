package importer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/importer/internal/announce"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/sqstest"
)

// endpoints are n people as Pinpoint exported them.
func endpoints(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, `{"ChannelType":"EMAIL","Address":"u%d@example.test","OptOut":"NONE","Id":"e%d","User":{"UserId":"u%d","UserAttributes":{"Number":["%d"]}}}`+"\n", i, i, i, i)
	}
	return b.String()
}

// endpointsCSV are the same people.
func endpointsCSV(n int) string {
	var b strings.Builder
	b.WriteString("ChannelType,Address,OptOut,Id,User.UserId,User.UserAttributes.Number\n")
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "EMAIL,u%d@example.test,NONE,e%d,u%d,%d\n", i, i, i, i)
	}
	return b.String()
}

func (s *stage) pinpoint(cfg *Config, _ *timing) { cfg.PinpointPrefix = s.prefix + "pinpoint/" }

// patches returns what an import said of each person, each once.
func (s *stage) patches(id identity.ID) map[string]event.ProfilePatch {
	s.t.Helper()
	out := map[string]event.ProfilePatch{}
	for _, r := range s.kafka.All(s.t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		s.kafka.Decode(s.t, r, &p)
		if p.SetBy != "import:"+id.String() {
			continue
		}
		require.NotContains(s.t, out, p.UserID, "twice")
		out[p.UserID] = p
	}
	return out
}

func TestPinpointFilesAreImportedWithoutASpec(t *testing.T) {
	s := newStage(t)
	s.downstream()
	own := s.people("own")
	own.Source.Prefix, own.Segment = s.prefix+"pinpoint/own/", nil
	s.define(own)
	s.put("pinpoint/tasters/part-0.csv", endpointsCSV(20))
	s.put("pinpoint/tasters/2026/part-1.gz", string(gzipped(t, []byte(endpoints(30)+"{}\n"))))
	s.put("pinpoint/all", endpoints(10))
	s.put("pinpoint/VIP/a.csv", endpointsCSV(5))
	s.put("pinpoint/own/a.csv", file(10))
	svc := s.importer("0", s.pinpoint)
	s.run(svc, time.Second)

	csv := s.until(svc, "pinpoint/tasters/part-0.csv", importfile.StateDone)
	json := s.until(svc, "pinpoint/tasters/2026/part-1.gz", importfile.StateDone)
	for imp, n := range map[*event.Import]int{&csv: 20, &json: 30} {
		require.Equal(t, pinpoint.SpecID, imp.SpecID)
		require.EqualValues(t, n, imp.ProfileUpdates)
		require.EqualValues(t, n, imp.SegmentMembers)
		patches := s.patches(imp.ImportID)
		require.Len(t, patches, n)
		require.Equal(t, []event.AddressPatch{{Channel: definition.ChannelEmail, Address: "u7@example.test"}}, patches["u7"].Addresses)
		require.Equal(t, []event.NamedValue{{Name: "Number", Value: event.String("7")}}, patches["u7"].Set)
	}
	require.ElementsMatch(t, []identity.ID{csv.ImportID, json.ImportID}, s.segment(), "the parts of a segment are all of it")
	r := s.report("pinpoint/tasters/2026/part-1.gz")
	require.Equal(t, pinpoint.NotTaken(), r.NotTaken)
	require.Equal(t, []rejectLine{{31, "User.UserId", "the row has none of User.UserId, Id and Address"}}, r.FirstRejects)

	all := s.until(svc, "pinpoint/all", importfile.StateDone)
	require.Zero(t, all.SegmentMembers)
	require.Empty(t, all.SegmentID)
	require.Contains(t, s.until(svc, "pinpoint/VIP/a.csv", importfile.StateFailed).Error, `the folder "VIP" cannot name a segment`)

	// A spec of one's own for a folder below has it for itself.
	require.Equal(t, "own", s.until(svc, "pinpoint/own/a.csv", importfile.StateDone).SpecID)
	require.Len(t, s.imports()["pinpoint/own/a.csv"], 1)
	jobs, err := svc.look(t.Context(), announce.Object{Bucket: svc.cfg.S3.Bucket, Key: s.prefix + "pinpoint/own/a.csv"})
	require.NoError(t, err)
	require.Empty(t, jobs)
}

func TestAPinpointFileThatIsAnnouncedIsImported(t *testing.T) {
	s := newPeople(t)
	queue := newQueue(t, sqstest.Start(t).URL)
	s.put("pinpoint/tasters/a.json", endpoints(10))
	svc := s.importer("0", func(cfg *Config, times *timing) {
		listening(queue, s.unlisted().URL)(cfg, times)
		s.pinpoint(cfg, times)
	})
	s.run(svc, time.Second)
	queue.send(s.announcement("pinpoint/tasters/a.json", "", 1))
	kafkatest.Eventually(t, func() bool { return len(s.imports()["pinpoint/tasters/a.json"]) == 2 }, "not under both specs: people has the prefix above")
	kafkatest.Eventually(t, func() bool {
		for _, r := range s.kafka.All(t, topic.Imports) {
			var i event.Import
			s.kafka.Decode(t, r, &i)
			if i.SpecID == pinpoint.SpecID && i.State == importfile.StateDone {
				return i.SegmentMembers == 10
			}
		}
		return false
	}, "it is not done")
	queue.until(0, 0)
}

func TestWithoutAPrefixPinpointFilesNeedASpec(t *testing.T) {
	s := newStage(t)
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.PinpointPrefix = pinpointOff })
	require.Empty(t, svc.specs())
	for prefix, valid := range map[string]bool{"off": true, "": true, "imports/pinpoint/": true, "imports/pinpoint": false, "/imports/": false, "/": false} {
		cfg := s.config("0")
		cfg.PinpointPrefix = prefix
		require.Equal(t, valid, cfg.Validate() == nil, "%q", prefix)
	}
}

func TestAPinpointImportThatIsKilledGoesOnWhereItWas(t *testing.T) {
	for name, body := range map[string]string{"a.csv": endpointsCSV(2000), "a.json": endpoints(2000), "a.json.gz": string(gzipped(t, []byte(endpoints(2000))))} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.downstream()
			s.put("pinpoint/tasters/"+name, body)
			cut := newCut(s.kafka.Fake)
			var last event.Import
			life := 0
			// As in TestAnImportThatIsKilledGoesOnWhereItWasAndRepeatsNothing.
			for ; last.State != importfile.StateDone; life++ {
				cut.after(life%4, life%2 == 1)
				// A life whose prefix is another one goes on with what was begun; the first
				// leaves nothing of which anybody knows.
				svc := s.importer("0", func(cfg *Config, times *timing) {
					if life <= 1 {
						s.pinpoint(cfg, times)
					}
				})
				stop := s.run(svc, 0)
				kafkatest.Eventually(t, func() bool {
					svc.progress.mu.RLock()
					defer svc.progress.mu.RUnlock()
					for _, e := range svc.progress.byID {
						last = e.Import
					}
					return last.State == importfile.StateDone || cut.made.Load()
				}, "life %d makes no progress", life)
				stop()
			}
			require.GreaterOrEqual(t, life, 4)
			require.EqualValues(t, 2000, last.ProfileUpdates)
			patches := s.patches(last.ImportID)
			require.Len(t, patches, 2000)
			for user, p := range patches {
				require.Equal(t, "u"+p.Set[0].Value.Text(), user)
			}
			require.Equal(t, []identity.ID{last.ImportID}, s.segment())
			for _, r := range s.kafka.All(t, topic.SegmentMembers) {
				var m event.SegmentMember
				s.kafka.Decode(t, r, &m)
				require.Equal(t, "tasters", m.SegmentID)
			}
		})
	}
}

// The files of ours are no imports, wherever they lie.
func TestRejectFilesLieUnderTheirPrefix(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	s.put("in/a.csv", file(20))
	s.put("in/"+strings.Repeat("long", 60)+".csv", file(20))
	prefix := s.prefix + strings.Repeat("ours/", 150)
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.RejectsPrefix = prefix })
	s.run(svc, time.Second)
	imp := s.until(svc, "in/a.csv", importfile.StateDone)
	require.Equal(t, prefix, imp.FilesPrefix)
	under := strings.TrimPrefix(prefix, s.prefix) + s.prefix + "in/a.csv"
	require.EqualValues(t, 2, s.report(under).Rejected)
	require.Contains(t, s.read(under+importfile.RejectsSuffix), "u10,city 10,2025-13-02")
	s.until(svc, "in/"+strings.Repeat("long", 60)+".csv", importfile.StateDone)

	s.put("in/b.csv", file(10))
	s.until(svc, "in/b.csv", importfile.StateDone)
	require.Len(t, s.imports(), 3)
	cfg := s.config("0")
	cfg.RejectsPrefix = "/rejects/"
	require.Error(t, cfg.Validate())
}
