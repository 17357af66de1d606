package importer

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	embedded "github.com/hikyaku/hikyaku/deploy/embedded/s3"
	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
)

// The gateway is one per process, so the tests share it, each under a prefix of
// its own.
var gateway *embedded.Server

// These are absolute, since the gateway changes the working directory.
var here, examples string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "importer-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if here, err = os.Getwd(); err != nil {
			panic(err)
		}
		examples = filepath.Join(here, "..", "..", "examples")
		// ClickHouse's engine is looked for from the working directory, too.
		if found, _ := filepath.Glob(filepath.Join(here, "../../deploy/embedded/chdb/node_modules/@chdb/lib-*/libchdb.so")); len(found) > 0 && os.Getenv("LIBCHDB_PATH") == "" {
			os.Setenv("LIBCHDB_PATH", found[0])
		}
		versions := filepath.Join(dir, "versions")
		if err := os.Mkdir(versions, 0o700); err != nil {
			panic(err)
		}
		if gateway, err = embedded.Open(embedded.Options{Dir: filepath.Join(dir, "objects"), VersionsDir: versions, Addr: "127.0.0.1:0"}); err != nil {
			panic(err)
		}
		// It is not closed: that would wait for connections that are kept alive,
		// and the process ends anyway.
		return clickhousetest.Main(m)
	}())
}

var stages atomic.Int32

// stage is a broker, a folder and importers.
type stage struct {
	t       *testing.T
	kafka   *kafkatest.Kafka
	cluster *kafka.Cluster
	prefix  string
}

func newStage(t *testing.T) *stage {
	t.Parallel()
	k := kafkatest.Start(t)
	return &stage{t: t, kafka: k, cluster: k.Cluster(t, topic.Console), prefix: fmt.Sprintf("%s-%d/", strings.ToLower(t.Name()), stages.Add(1))}
}

func (s *stage) config(instance string) Config {
	cfg := Config{
		Kafka: s.kafka.Config(),
		S3: S3Config{
			Bucket: embedded.DefaultBucket, Endpoint: gateway.Endpoint(), Region: embedded.DefaultRegion,
			AccessKeyID: embedded.DefaultAccessKeyID, SecretAccessKey: config.Secret(embedded.DefaultSecretAccessKey),
		},
		ClickHouse:   clickhouse.DefaultConfig("http://127.0.0.1:1"),
		PollInterval: 20 * time.Millisecond, ImportsAtOnce: 2, ExportsAtOnce: 1, TransactionBytes: 64 << 10,
	}
	cfg.Kafka.Instance = instance
	return cfg
}

// importer builds one; change makes it differ from what the stage's others are.
func (s *stage) importer(instance string, change func(*Config, *timing)) *Service {
	s.t.Helper()
	cfg, times := s.config(instance), defaultTiming
	times.spread, times.barrier = 20*time.Millisecond, 10*time.Millisecond
	if change != nil {
		change(&cfg, &times)
	}
	svc, err := New(cfg, kafkatest.Telemetry(s.t, topic.Importer+"-"+instance))
	require.NoError(s.t, err)
	svc.timing = times
	return svc
}

// run runs an importer until the returned function is called, which waits for
// its end; it is called at the test's end at the latest.
func (s *stage) run(svc *Service, drain time.Duration) (stop func()) {
	cancellable, cancel := context.WithCancel(context.Background())
	ctx := lifecycle.WithDrain(cancellable, drain)
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(s.t, err)
		case <-time.After(kafkatest.Patience):
			require.FailNow(s.t, "the importer did not stop")
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// downstream plays resolver and sink: groups that have passed everything.
func (s *stage) downstream() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			s.pass(ctx, topic.GroupPersonLoop)
			s.pass(ctx, topic.GroupSink)
			sleep(ctx, 10*time.Millisecond)
		}
	}()
	s.t.Cleanup(func() { cancel(); <-ended })
}

func (s *stage) pass(ctx context.Context, group topic.Group) {
	marks, err := s.cluster.HighWatermarks(ctx, topic.ReadBy(group)...)
	if err != nil {
		return
	}
	offsets := kadm.Offsets{}
	for name, partitions := range marks {
		for p, at := range partitions {
			offsets.AddOffset(name.In(s.cluster.Namespace()), p, at, -1)
		}
	}
	_ = s.kafka.Admin().CommitAllOffsets(ctx, group.In(s.cluster.Namespace()), offsets)
}

// define puts an import spec in force.
func (s *stage) define(spec *definition.ImportSpec) {
	s.t.Helper()
	body, err := definition.Encode(spec)
	require.NoError(s.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	var replaces int64
	for {
		_, err = definitions.Write(ctx, s.cluster, "test", []definitions.Change{{Kind: definition.KindImportSpec, ID: spec.ID, Body: body, ReplacesVersion: replaces}})
		if err == nil {
			return
		}
		require.Less(s.t, replaces, int64(5), "%v", err)
		replaces++
	}
}

func column(name string) definition.Value {
	return definition.Value{Column: name, Type: definition.TypeString}
}

// people is a spec that makes all three kinds of records.
func (s *stage) people(id string) *definition.ImportSpec {
	return &definition.ImportSpec{
		ID: id, Source: definition.Source{Prefix: s.prefix, Format: definition.FormatCSV, Delimiter: ","},
		UserID:  column("id"),
		Profile: &definition.Profile{Attributes: map[string]definition.Value{"city": column("city")}},
		Segment: &definition.Segment{ID: "tasters"},
		Event: &definition.Event{
			Name:       definition.Value{Liquid: "seen", Type: definition.TypeString},
			OccurredAt: definition.Value{Column: "at", Type: definition.TypeTime, Layout: "2006-01-02", Zone: "UTC"},
		},
	}
}

// file makes n rows of which every tenth has a broken date. Row i is on line i+1.
func file(n int) string {
	var b strings.Builder
	b.WriteString("id,city,at\n")
	for i := 1; i <= n; i++ {
		at := "2025-01-02"
		if i%10 == 0 {
			at = "2025-13-02"
		}
		fmt.Fprintf(&b, "u%d,city %d,%s\n", i, i, at)
	}
	return b.String()
}

func (s *stage) s3() *s3.Client {
	cl, err := s.config("x").S3.client()
	require.NoError(s.t, err)
	return cl
}

func (s *stage) put(name, body string) {
	s.t.Helper()
	_, err := s.s3().PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: aws.String(embedded.DefaultBucket), Key: aws.String(s.prefix + name), Body: strings.NewReader(body),
	})
	require.NoError(s.t, err)
}

func (s *stage) read(name string) string {
	s.t.Helper()
	out, err := s.s3().GetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String(embedded.DefaultBucket), Key: aws.String(s.prefix + name)})
	require.NoError(s.t, err)
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	require.NoError(s.t, err)
	return string(body)
}

func (s *stage) report(name string) report {
	s.t.Helper()
	var r report
	require.NoError(s.t, json.Unmarshal([]byte(s.read(name+importfile.ReportSuffix)), &r))
	return r
}

// latest reads the last record of each import, by object.
func (s *stage) latest() map[string]event.Import {
	out := map[string]event.Import{}
	for _, r := range s.kafka.All(s.t, topic.Imports) {
		var i event.Import
		s.kafka.Decode(s.t, r, &i)
		name := strings.TrimPrefix(i.Key, s.prefix)
		if i.SpecVersion > out[name].SpecVersion || i.ImportID == out[name].ImportID {
			out[name] = i
		}
	}
	return out
}

// until waits until the object's import is in the state.
func (s *stage) until(svc *Service, name, state string) event.Import {
	s.t.Helper()
	var found event.Import
	kafkatest.Eventually(s.t, func() bool {
		svc.progress.mu.RLock()
		defer svc.progress.mu.RUnlock()
		for _, e := range svc.progress.byID {
			if e.Key == s.prefix+name && e.State == state {
				found = e.Import
				return true
			}
		}
		return false
	}, "%s is not %s", name, state)
	return found
}

// requireOnce asserts that every row of file(n) is there once, and is what an
// undisturbed import would have made.
func (s *stage) requireOnce(name string, n int) {
	s.t.Helper()
	s.requireRows(name, n, 2)
}

// requireRows is requireOnce for a file whose first row is on line first.
func (s *stage) requireRows(name string, n, first int) {
	s.t.Helper()
	imp := s.latest()[name]
	bad := n / 10
	require.EqualValues(s.t, n, imp.Rows)
	require.EqualValues(s.t, bad, imp.Rejected)
	require.EqualValues(s.t, n-bad, imp.ProfileUpdates)
	require.EqualValues(s.t, n-bad, imp.SegmentMembers)
	require.EqualValues(s.t, n-bad, imp.Events)
	want := map[string]bool{}
	var lines []int64
	for i := 1; i <= n; i++ {
		if i%10 == 0 {
			lines = append(lines, int64(i+first-1))
			continue
		}
		want["u"+strconv.Itoa(i)] = true
	}
	setBy := "import:" + imp.ImportID.String()
	patches, members, ids := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, r := range s.kafka.All(s.t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		s.kafka.Decode(s.t, r, &p)
		if p.SetBy != setBy {
			continue
		}
		require.False(s.t, patches[p.UserID], "%s twice", p.UserID)
		require.Equal(s.t, imp.StartedAt, p.SetAt)
		require.Equal(s.t, topic.Partition(p.UserID, 4), r.Partition)
		patches[p.UserID] = true
	}
	for _, r := range s.kafka.All(s.t, topic.SegmentMembers) {
		var m event.SegmentMember
		s.kafka.Decode(s.t, r, &m)
		if m.ImportID != imp.ImportID {
			continue
		}
		require.False(s.t, members[m.UserID], "%s twice", m.UserID)
		require.Equal(s.t, "u"+strconv.FormatInt(m.Line-int64(first)+1, 10), m.UserID)
		members[m.UserID] = true
	}
	for _, r := range s.kafka.All(s.t, topic.Events) {
		var e event.Event
		s.kafka.Decode(s.t, r, &e)
		if e.Source != setBy {
			continue
		}
		record, err := strconv.ParseInt(e.UserID[1:], 10, 64)
		require.NoError(s.t, err)
		require.Equal(s.t, identity.ImportedEvent(imp.ImportID, record), e.EventID)
		require.Equal(s.t, imp.StartedAt, e.ReceivedAt)
		require.False(s.t, ids[e.UserID], "%s twice", e.UserID)
		ids[e.UserID] = true
	}
	require.Equal(s.t, want, patches)
	require.Equal(s.t, want, members)
	require.Equal(s.t, want, ids)
	var rejected []int64
	for _, r := range s.kafka.All(s.t, topic.ImportRejects) {
		var rej event.ImportReject
		s.kafka.Decode(s.t, r, &rej)
		if rej.ImportID == imp.ImportID {
			rejected = append(rejected, rej.Line)
		}
	}
	require.Equal(s.t, lines, rejected)
}

func (s *stage) segment() []identity.ID {
	s.t.Helper()
	store := definitions.NewStore(s.cluster)
	var out []identity.ID
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	defer cancel()
	running, end := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- store.Run(running) }()
	require.NoError(s.t, store.CaughtUp(ctx))
	if v, ok := store.Head(definitions.KindSegment, "tasters"); ok {
		seg, err := definitions.DecodeSegment(v)
		require.NoError(s.t, err)
		out = seg.Imports
	}
	end()
	require.NoError(s.t, <-ran)
	return out
}

func TestAFileIsImportedToTheEnd(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	s.put("a.csv", file(100))
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	imp := s.until(svc, "a.csv", importfile.StateDone)
	s.requireOnce("a.csv", 100)
	require.Equal(t, []identity.ID{imp.ImportID}, s.segment())

	r := s.report("a.csv")
	require.Equal(t, importfile.StateDone, r.State)
	require.EqualValues(t, 100, r.Rows)
	require.EqualValues(t, 10, r.Rejected)
	require.Equal(t, []reasonCount{{"at", "not a time written as 2006-01-02", 10}}, r.RejectedBy)
	require.Len(t, r.FirstRejects, 10)
	require.False(t, r.Superseded)
	rows, err := csv.NewReader(strings.NewReader(s.read("a.csv" + importfile.RejectsSuffix))).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 11)
	require.Equal(t, []string{"line", "column", "reason", "row"}, rows[0])
	require.Equal(t, []string{"11", "at", "not a time written as 2006-01-02", "u10,city 10,2025-13-02"}, rows[1])

	require.EqualValues(t, 100, testutil.ToFloat64(svc.metrics.rows))
	require.EqualValues(t, 10, testutil.ToFloat64(svc.metrics.rejects))
	require.EqualValues(t, len(file(100)), testutil.ToFloat64(svc.metrics.bytes))
	require.EqualValues(t, 1, testutil.ToFloat64(svc.metrics.imports.WithLabelValues(importfile.StateDone)))

	// What it wrote beside the object lies under the prefix, and is no import;
	// nor is a copy that somebody put back.
	s.put("a2.csv"+importfile.RejectsSuffix, file(3))
	s.put("a2.csv"+importfile.ReportSuffix, "{}")
	s.put("b.csv", file(10))
	s.until(svc, "b.csv", importfile.StateDone)
	require.Len(t, s.latest(), 2)
}

// Published says where the rows end, for every partition written, so that it
// can be known when they have arrived.
func TestAnImportIsLoadedWhenResolverAndSinkHavePassedIt(t *testing.T) {
	s := newStage(t)
	s.define(s.people("people"))
	s.put("a.csv", file(100))
	svc := s.importer("0", func(_ *Config, times *timing) { times.heartbeat = time.Millisecond })
	s.run(svc, time.Second)
	imp := s.until(svc, "a.csv", importfile.StatePublished)
	ends := map[string]map[int32]int64{}
	for _, name := range []topic.Name{topic.ProfileUpdates, topic.SegmentMembers, topic.Events, topic.ImportRejects} {
		ends[string(name)] = map[int32]int64{}
		for _, r := range s.kafka.All(t, name) {
			ends[string(name)][r.Partition] = max(ends[string(name)][r.Partition], r.Offset+1)
		}
	}
	got := map[string]map[int32]int64{}
	for _, w := range imp.Published {
		if got[w.Topic] == nil {
			got[w.Topic] = map[int32]int64{}
		}
		got[w.Topic][w.Partition] = w.Offset
	}
	require.Equal(t, ends, got)

	ctx := context.Background()
	sign := s.latest()["a.csv"].UpdatedAt
	s.pass(ctx, topic.GroupSink) // not enough: the resolver has not
	kafkatest.Eventually(t, func() bool { return s.latest()["a.csv"].UpdatedAt.After(sign) }, "no sign of life")
	require.Equal(t, importfile.StatePublished, s.latest()["a.csv"].State)

	// What the resolver makes of it, the sink must pass too.
	profile, err := s.cluster.Record(topic.Profiles, "u1", &event.Profile{UserID: "u1"})
	require.NoError(t, err)
	s.kafka.Produce(t, profile)
	s.pass(ctx, topic.GroupPersonLoop)
	sign = s.latest()["a.csv"].UpdatedAt
	kafkatest.Eventually(t, func() bool { return s.latest()["a.csv"].UpdatedAt.After(sign) }, "no sign of life")
	require.Equal(t, importfile.StatePublished, s.latest()["a.csv"].State)
	require.Empty(t, s.segment())

	s.pass(ctx, topic.GroupSink)
	imp = s.until(svc, "a.csv", importfile.StateDone)
	require.Equal(t, []identity.ID{imp.ImportID}, s.segment())
}

func TestARejectSaysLineColumnAndReason(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	s.put("a.csv", "\xef\xbb\xbfid,city,at\r\n"+
		"u1,\"two\r\nlines\",2025-01-02\r\n"+ // 2 and 3
		",x,2025-01-02\r\n"+ // 4: no id
		"u3,x,yesterday\r\n"+ // 5
		"\r\n"+ // 6
		"u4,x,2025-01-02,y\r\n"+ // 7
		"u5,x\r\n"+ // 8
		"u6,a\xffb,2025-01-02\r\n"+ // 9
		"u7,\"x\"y,2025-01-02\r\n"+ // 10
		"u8,\"never closed,2025-01-02\r\n"+ // 11
		"u9,x,1999-01-01\r\n"+ // 12
		"u10,x,2100-01-01\r\n"+ // 13
		"u11,x,2025-01-02") // 14
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	imp := s.until(svc, "a.csv", importfile.StateDone)
	rows, err := csv.NewReader(strings.NewReader(s.read("a.csv" + importfile.RejectsSuffix))).ReadAll()
	require.NoError(t, err)
	var got []string
	for _, r := range rows[1:] {
		got = append(got, strings.Join(r[:3], "|"))
	}
	require.Equal(t, []string{
		"4|id|the row has no user_id",
		"5|at|not a time written as 2006-01-02",
		"7||the row has 4 columns, the header has 3",
		"8||the row has 2 columns, the header has 3",
		"9|city|invalid UTF-8",
		"10||text follows a closing quote",
		"11||a quote is opened and not closed",
		"12|at|the time is before 2000-01-01",
		"13|at|the time is more than a day after receipt",
	}, got)
	require.Equal(t, "u6,a\uFFFDb,2025-01-02", rows[5][3])
	require.EqualValues(t, 11, imp.Rows)
	require.EqualValues(t, 2, imp.Events)
	members := kafkatest.Consume[event.SegmentMember](t, s.kafka, topic.SegmentMembers, 2)
	lines := map[string]int64{}
	for _, m := range members {
		lines[m.UserID] = m.Line
	}
	require.Equal(t, map[string]int64{"u1": 2, "u11": 14}, lines)
}

func TestAFileThatIsNotCSVFailsWithOneClearError(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	for name, c := range map[string]struct{ body, reason string }{
		"empty.csv":  {"", "the file is empty"},
		"blank.csv":  {"\n\r\n", "the file is empty"},
		"nul.csv":    {"id,city,at\nu1,\x00,2025-01-02\n", "not a CSV file, or in another encoding than was said: there is a NUL at byte 14"},
		"header.csv": {"id,at\nu1,2025-01-02\n", `the header lacks the column "city" that the spec names`},
		"semi.csv":   {"id;city;at\n", `the header lacks the column "id" that the spec names; the header lacks the column "city" that the spec names; the header lacks the column "at" that the spec names`},
		"quote.csv":  {"\"id\"x,city,at\n", "the header, line 1: text follows a closing quote"},
	} {
		s.put(name, c.body)
	}
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	for name, reason := range map[string]string{
		"empty.csv": "the file is empty", "blank.csv": "the file is empty",
		"nul.csv":    "not a CSV file, or in another encoding than was said: there is a NUL at byte 14",
		"header.csv": `the header lacks the column "city" that the spec names`,
		"semi.csv":   `the header lacks the column "id" that the spec names; the header lacks the column "city" that the spec names; the header lacks the column "at" that the spec names`,
		"quote.csv":  "the header, line 1: text follows a closing quote",
	} {
		imp := s.until(svc, name, importfile.StateFailed)
		require.Equal(t, reason, imp.Error)
		require.Equal(t, reason, s.report(name).Error)
		require.Equal(t, importfile.StateFailed, s.report(name).State)
	}
	require.Empty(t, s.kafka.All(t, topic.ProfileUpdates))
	require.Empty(t, s.segment())

	// Under a mended spec what failed is imported again, and only that.
	s.put("good.csv", file(10))
	s.until(svc, "good.csv", importfile.StateDone)
	spec := s.people("people")
	spec.Profile = nil
	s.define(spec)
	s.until(svc, "header.csv", importfile.StateDone)
	good := 0
	for _, r := range s.kafka.All(t, topic.Imports) {
		var i event.Import
		s.kafka.Decode(t, r, &i)
		if strings.HasSuffix(i.Key, "good.csv") && i.SpecVersion != 1 {
			good++
		}
	}
	require.Zero(t, good)
}

// A signal ends the batch in hand with a commit, not in the middle.
func TestASignalLosesNothing(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	const rows = 20000
	s.put("a.csv", file(rows))
	svc := s.importer("0", nil)
	stop := s.run(svc, 10*time.Second)
	kafkatest.Eventually(t, func() bool { return testutil.ToFloat64(svc.metrics.rows) > 0 }, "no rows")
	stop()
	committed := s.latest()["a.csv"]
	require.EqualValues(t, testutil.ToFloat64(svc.metrics.rows), committed.Rows)
	svc = s.importer("0", nil)
	s.run(svc, time.Second)
	s.until(svc, "a.csv", importfile.StateDone)
	s.requireOnce("a.csv", rows)
}

func TestThreeImportersImportEachObjectOnce(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	var all []*Service
	for _, instance := range []string{"0", "1", "2"} {
		// No spreading: they all try at the same moment, which is the worst case.
		// A takeover must be longer than an owner is ever silent, or they take
		// the file from each other for ever.
		svc := s.importer(instance, func(_ *Config, times *timing) {
			times.spread, times.heartbeat, times.takeover = 0, time.Second, 10*time.Second
		})
		s.run(svc, time.Second)
		all = append(all, svc)
	}
	for n := range 6 {
		s.put(fmt.Sprintf("f%d.csv", n), file(500+n))
	}
	for n := range 6 {
		s.until(all[n%3], fmt.Sprintf("f%d.csv", n), importfile.StateDone)
	}
	for n := range 6 {
		s.requireOnce(fmt.Sprintf("f%d.csv", n), 500+n)
	}
}

// slow is an S3 server that stops in the middle of a body until it is told to
// go on, or breaks it off, or both.
type slow struct {
	*httptest.Server
	after  int64         // bytes that are let through at once: of the object if it waits, else of each body
	gate   chan struct{} // closed: no more waiting
	waits  bool          // for the gate
	cuts   bool          // breaks off
	bodies atomic.Int32
}

func newSlow(t *testing.T, after int64, waits, cuts bool) *slow {
	target, err := url.Parse(gateway.Endpoint())
	require.NoError(t, err)
	s := &slow{after: after, gate: make(chan struct{}), waits: waits, cuts: cuts}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodGet && r.StatusCode == http.StatusPartialContent {
			s.bodies.Add(1)
			body := &slowBody{ReadCloser: r.Body, s: s, left: s.after}
			if waits { // whoever is tired of waiting and asks again gets no more
				var first int64
				if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-", &first); err != nil {
					return err
				}
				body.left -= first
			}
			r.Body = body
		}
		return nil
	}
	s.Server = httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	t.Cleanup(s.open)
	return s
}

func (s *slow) open() {
	defer func() { _ = recover() }() // twice is fine
	close(s.gate)
}

type slowBody struct {
	io.ReadCloser
	s    *slow
	left int64
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if b.s.waits {
			<-b.s.gate
		}
		if b.s.cuts {
			return 0, io.ErrUnexpectedEOF
		}
		return b.ReadCloser.Read(p)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func TestABrokenBodyIsReadOnWhereItBroke(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	const rows = 5000
	s.put("a.csv", file(rows))
	proxy := newSlow(t, 33333, false, true)
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.S3.Endpoint = proxy.URL })
	s.run(svc, time.Second)
	s.until(svc, "a.csv", importfile.StateDone)
	s.requireOnce("a.csv", rows)
	require.Greater(t, proxy.bodies.Load(), int32(3))
}

// The owner hangs in the middle; another takes over, and the first, when it
// comes to, finds itself fenced and lets go for good.
func TestAFencedImporterLetsGo(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	const rows = 5000
	s.put("a.csv", file(rows))
	proxy := newSlow(t, 100000, true, false)
	first := s.importer("0", func(cfg *Config, times *timing) { cfg.S3.Endpoint = proxy.URL; times.batch = time.Millisecond })
	s.run(first, time.Second)
	// It has committed something and holds more that it has not.
	kafkatest.Eventually(t, func() bool { return testutil.ToFloat64(first.metrics.rows) > 0 }, "no rows")
	second := s.importer("1", func(_ *Config, times *timing) { times.takeover = 300 * time.Millisecond })
	s.run(second, time.Second)
	s.until(second, "a.csv", importfile.StateDone)
	proxy.open()
	kafkatest.Eventually(t, func() bool {
		return testutil.ToFloat64(first.metrics.lettings.WithLabelValues("fenced")) == 1
	}, "the first was not fenced")
	s.requireOnce("a.csv", rows)
	require.Zero(t, testutil.ToFloat64(second.metrics.lettings.WithLabelValues("fenced")))
}

// The broker gives up a transaction whose owner it has not heard of, and from
// outside that looks like a fence. Nobody else has the import then: its owner
// goes on within seconds, not after the minute that another would be given.
func TestAnImportWhoseTransactionWasGivenUpGoesOnAtOnce(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	const rows = 5000
	s.put("a.csv", file(rows))
	proxy := newSlow(t, 100000, true, false)
	svc := s.importer("0", func(cfg *Config, times *timing) {
		cfg.S3.Endpoint = proxy.URL
		times.batch, times.takeover = time.Millisecond, time.Hour
	})
	s.run(svc, time.Second)
	kafkatest.Eventually(t, func() bool { return testutil.ToFloat64(svc.metrics.rows) > 0 }, "no rows")
	// What the broker does when a transaction times out: the id's epoch moves on.
	raise, err := s.cluster.TransactionalProducer("import." + s.latest()["a.csv"].ImportID.String())
	require.NoError(t, err)
	_, _, err = raise.ProducerID(t.Context())
	require.NoError(t, err)
	raise.Close()
	proxy.open()
	s.until(svc, "a.csv", importfile.StateDone)
	require.EqualValues(t, 1, testutil.ToFloat64(svc.metrics.lettings.WithLabelValues("fenced")))
	s.requireOnce("a.csv", rows)
}

func TestAnObjectThatChangesWhileItIsReadFails(t *testing.T) {
	for name, drop := range map[string]bool{"Uploaded": false, "Dropped": true} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.downstream()
			s.define(s.people("people"))
			write := s.put
			if drop {
				write = s.drop
			}
			write("a.csv", file(5000))
			proxy := newSlow(t, 100000, true, true)
			svc := s.importer("0", func(cfg *Config, times *timing) { cfg.S3.Endpoint, times.batch = proxy.URL, time.Millisecond })
			s.run(svc, time.Second)
			kafkatest.Eventually(t, func() bool { return testutil.ToFloat64(svc.metrics.rows) > 0 }, "no rows")
			write("a.csv", file(700))
			proxy.open()
			imp := s.until(svc, "a.csv", importfile.StateFailed)
			require.Equal(t, errChanged.Error(), imp.Error)
			done := s.until(svc, "a.csv", importfile.StateDone)
			require.EqualValues(t, 700, done.Rows)
			require.Equal(t, []identity.ID{done.ImportID}, s.segment())
			require.Equal(t, done.ImportID.String(), s.report("a.csv").ImportID)
		})
	}
}

// drop puts a file into the gateway's folder, as a person would.
func (s *stage) drop(name, body string) {
	s.t.Helper()
	s.dropOf(time.Now(), name, body)
}

// dropOf drops a file that was written at a time. It is there at once, whole: whoever
// looks all the time must not take it while it has another size or time.
func (s *stage) dropOf(at time.Time, name, body string) {
	s.t.Helper()
	path := filepath.Join(gateway.Folder(), filepath.FromSlash(s.prefix), name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	written := filepath.Join(s.t.TempDir(), "dropped")
	require.NoError(s.t, os.WriteFile(written, []byte(body), 0o644))
	require.NoError(s.t, os.Chtimes(written, at, at))
	require.NoError(s.t, os.Rename(written, path))
}

// A file being copied into the folder is not taken before it is whole, and a
// file that comes again with other content is another import.
func TestADroppedFileIsTakenWhenItHasStoppedGrowing(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	svc := s.importer("0", nil)
	require.NoError(t, svc.cluster.Start(context.Background()))
	defer svc.cluster.Close()
	store := definitionsOf(t, svc)
	defer store()

	text := file(50)
	s.drop("a.csv", text[:100])
	jobs, err := svc.fresh(context.Background())
	require.NoError(t, err)
	require.Empty(t, jobs, "seen once")
	s.drop("a.csv", text[:200])
	jobs, err = svc.fresh(context.Background())
	require.NoError(t, err)
	require.Empty(t, jobs, "it has grown")
	s.drop("a.csv", text)
	jobs, err = svc.fresh(context.Background())
	require.NoError(t, err)
	require.Empty(t, jobs, "it has grown again")
	jobs, err = svc.fresh(context.Background())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	require.EqualValues(t, len(text), jobs[0].object.sizeBytes)

	s.put("b.csv", text)
	jobs, err = svc.fresh(context.Background())
	require.NoError(t, err)
	require.Len(t, jobs, 2, "an upload is whole when it is seen")
}

func definitionsOf(t *testing.T, svc *Service) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- svc.definitions.Run(ctx) }()
	require.NoError(t, svc.definitions.CaughtUp(ctx))
	return func() { cancel(); require.NoError(t, <-ran) }
}

func TestALaterFileMakesUpTheSegmentWhicheverIsReadLast(t *testing.T) {
	s := newStage(t)
	s.define(s.people("people"))
	at := time.Now().Add(-time.Hour)
	s.dropOf(at, "old.csv", file(10))
	s.drop("new.csv", file(20))
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	s.until(svc, "old.csv", importfile.StatePublished)
	s.until(svc, "new.csv", importfile.StatePublished)
	s.downstream()
	s.until(svc, "old.csv", importfile.StateDone)
	later := s.until(svc, "new.csv", importfile.StateDone)
	require.Equal(t, []identity.ID{later.ImportID}, s.segment())

	// One that was announced earlier and comes later is superseded.
	s.dropOf(at.Add(time.Minute), "late.csv", file(30))
	kafkatest.Eventually(t, func() bool {
		imp, ok := s.latest()["late.csv"]
		return ok && importfile.Ended(imp.State)
	}, "late.csv has not ended")
	require.Equal(t, []identity.ID{later.ImportID}, s.segment())
	require.True(t, s.report("late.csv").Superseded)

	s.put("newest.csv", file(5))
	newest := s.until(svc, "newest.csv", importfile.StateDone)
	require.Equal(t, []identity.ID{newest.ImportID}, s.segment())
}

func TestS3AwayIsSaidAndWaitedFor(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	s.put("a.csv", file(10))
	var away atomic.Bool
	away.Store(true)
	target, err := url.Parse(gateway.Endpoint())
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.S3.Endpoint = server.URL })
	stop := s.run(svc, time.Second)
	defer stop()
	kafkatest.Eventually(t, func() bool {
		return slices.ContainsFunc(svc.tel.Health.NotReady(), func(c string) bool { return strings.Contains(c, "s3") })
	}, "S3's absence is not said")
	away.Store(false)
	s.until(svc, "a.csv", importfile.StateDone)
	kafkatest.Eventually(t, func() bool { return len(svc.tel.Health.NotReady()) == 0 }, "S3's return is not said")
}

// The retail data of the acceptance test, when HIKYAKU_SAMPLE names the file.
func TestTheRetailSample(t *testing.T) {
	path := os.Getenv("HIKYAKU_SAMPLE")
	if path == "" {
		t.Skip("HIKYAKU_SAMPLE is not set")
	}
	body, err := os.ReadFile(path)
	require.NoError(t, err)
	loaded, err := definition.Load(filepath.Join(examples, "online-retail"), definition.Options{})
	require.NoError(t, err)
	s := newStage(t)
	s.downstream()
	for _, d := range loaded {
		if spec, ok := any(d.Definition).(*definition.ImportSpec); ok {
			spec.Source.Prefix = s.prefix
			s.define(spec)
		}
	}
	s.put("orders.csv", string(body))
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.TransactionBytes = 8 << 20 })
	began := time.Now()
	s.run(svc, time.Second)
	imp := s.until(svc, "orders.csv", importfile.StateDone)
	t.Logf("%.1f s", time.Since(began).Seconds())
	require.EqualValues(t, 30000, imp.Rows)
	require.EqualValues(t, 2000, imp.Rejected)
	require.EqualValues(t, 28000, imp.Events)
	people := map[string]bool{}
	for _, r := range s.kafka.All(t, topic.ProfileUpdates) {
		people[string(r.Key)] = true
	}
	require.Len(t, people, 3569)
	lines := bytes.Split(body, []byte("\n"))
	rows, err := csv.NewReader(strings.NewReader(s.read("orders.csv" + importfile.RejectsSuffix))).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 2001)
	for _, r := range rows[1:] {
		n, err := strconv.Atoi(r[0])
		require.NoError(t, err)
		require.Equal(t, strings.TrimRight(string(lines[n-1]), "\r"), r[3])
	}
}
