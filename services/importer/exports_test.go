package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/parquet-go/parquet-go"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	embedded "github.com/hikyaku/hikyaku/deploy/embedded/s3"
	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/importer/internal/export"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/exports"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// exporting is a stage with the real engine beside it.
type exportStage struct {
	*stage
	cfg  clickhouse.Config
	conn *clickhouse.Conn
	s3   *s3.Client
}

// They are not parallel: the namespace, which names the database, is the same on every fake broker.
func newExportStage(t *testing.T) *exportStage {
	k := kafkatest.Start(t)
	s := &stage{t: t, kafka: k, cluster: k.Cluster(t, topic.Console), prefix: fmt.Sprintf("%s-%d/", strings.ToLower(t.Name()), stages.Add(1))}
	e := &exportStage{stage: s, cfg: clickhousetest.Config(t)}
	var err error
	e.conn, err = clickhouse.Open(e.cfg, s.cluster.Namespace())
	require.NoError(t, err)
	_, err = e.conn.Migrate(context.Background(), migrations.FS)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, e.conn.Exec(context.Background(), "DROP DATABASE "+e.conn.Database()+" SYNC"))
		e.conn.Close()
	})
	e.s3, err = s.config("0").S3.client()
	require.NoError(t, err)
	return e
}

// exporter is an importer that does exports, and looks often for them.
func (s *exportStage) exporter(instance string, change func(*Config, *export.Timing)) *Service {
	var times export.Timing
	svc := s.importer(instance, func(cfg *Config, _ *timing) {
		cfg.ClickHouse = s.cfg
		times = export.DefaultTiming()
		times.Poll, times.Spread, times.Settle = 20*time.Millisecond, 20*time.Millisecond, 50*time.Millisecond
		if change != nil {
			change(cfg, &times)
		}
	})
	svc.exports.Timing = times
	return svc
}

func (s *exportStage) exec(sql string) {
	s.t.Helper()
	require.NoError(s.t, s.conn.Exec(context.Background(), sql))
}

// people inserts so many profiles, of the revision.
func (s *exportStage) profiles(from, n, revision int) {
	s.exec(fmt.Sprintf(`INSERT INTO profile_rows (user_id, revision, attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json, addresses, consents, locale, created_at, updated_at, ingested_at, kafka_offset)
SELECT concat('user-', leftPad(toString(number), 7, '0')), %d, map('plan', if(number %% 2 = 0, 'gold', '=free'), 'city', 'Köln'), map('points', toInt64(number)), map('score', number / 4), map('news', number %% 3 = 0),
map('since', toInt64(1600000000000000 + number)), map('likes', '["tea"]'), map('email', concat(toString(number), '@example.test')), map('email', 'subscribed'), 'de', now64(6), now64(6), now64(3), number
FROM numbers(%d, %d)`, revision, from, n))
}

// ask writes the first record of an export, as the command does.
func (s *exportStage) ask(def *definition.Export) identity.ID {
	s.t.Helper()
	if def.ID == "" {
		def.ID = "test"
	}
	def.To = s.prefix + "out/"
	if def.MaxFileBytes == 0 {
		def.MaxFileBytes = definition.DefaultMaxFileBytes
	}
	if def.Compression == "" {
		def.Compression = definition.CompressionNone
	}
	body, err := definition.Encode(def)
	require.NoError(s.t, err)
	moment := fmt.Sprintf("%032x", stages.Add(1))
	first := exports.New(s.cluster.Namespace(), def, 0, body, moment, time.Now())
	r, err := s.cluster.Record(topic.Exports, first.ExportID.String(), &first)
	require.NoError(s.t, err)
	s.kafka.Produce(s.t, r)
	return first.ExportID
}

// state is the latest record of an export, and how many say that it is sealed or done.
func (s *exportStage) state(id identity.ID) (last event.Export, sealed, done int) {
	for _, r := range s.kafka.All(s.t, topic.Exports) {
		if string(r.Key) != id.String() {
			continue
		}
		last = event.Export{}
		s.kafka.Decode(s.t, r, &last)
		switch last.State {
		case exports.Sealed:
			sealed++
		case exports.Done:
			done++
		}
	}
	return last, sealed, done
}

func (s *exportStage) until(id identity.ID, state string) event.Export {
	s.t.Helper()
	var e event.Export
	kafkatest.Eventually(s.t, func() bool { e, _, _ = s.state(id); return e.State == state }, "the export is not %s", state)
	return e
}

type manifest struct {
	ExportID string                        `json:"export_id"`
	Rows     int64                         `json:"rows"`
	Bytes    int64                         `json:"bytes"`
	Columns  []struct{ Name, Type string } `json:"columns"`
	Files    []struct {
		Key    string `json:"key"`
		Rows   int64  `json:"rows"`
		Bytes  int64  `json:"bytes"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
}

func (s *exportStage) object(key string) []byte {
	s.t.Helper()
	out, err := s.s3.GetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String(embedded.DefaultBucket), Key: &key})
	require.NoError(s.t, err, key)
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	require.NoError(s.t, err)
	return b
}

// complete reads an export as its readers do: by the manifest. All it lists is there, is what it
// says, and nothing else lies in the folder, no unfinished upload either.
func (s *exportStage) complete(e event.Export) (m manifest, files [][]byte) {
	s.t.Helper()
	m, files = s.listed(e)
	keys := []string{e.Folder + "manifest.json"}
	for _, f := range m.Files {
		keys = append(keys, f.Key)
	}
	require.ElementsMatch(s.t, keys, s.keys(e.Folder))
	require.Empty(s.t, s.uploads(e.Folder))
	return m, files
}

// listed is complete where other things may lie in the folder.
func (s *exportStage) listed(e event.Export) (m manifest, files [][]byte) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal(s.object(e.Folder+"manifest.json"), &m))
	require.Equal(s.t, e.ExportID.String(), m.ExportID)
	var rows, size int64
	for _, f := range m.Files {
		b := s.object(f.Key)
		sum := sha256.Sum256(b)
		require.Equal(s.t, hex.EncodeToString(sum[:]), f.SHA256)
		require.EqualValues(s.t, len(b), f.Bytes)
		rows, size = rows+f.Rows, size+f.Bytes
		files = append(files, b)
	}
	require.Equal(s.t, m.Rows, rows)
	require.Equal(s.t, m.Bytes, size)
	return m, files
}

func (s *exportStage) keys(folder string) (keys []string) {
	s.t.Helper()
	out, err := s.s3.ListObjectsV2(context.Background(), &s3.ListObjectsV2Input{Bucket: aws.String(embedded.DefaultBucket), Prefix: &folder})
	require.NoError(s.t, err)
	for _, o := range out.Contents {
		keys = append(keys, *o.Key)
	}
	return keys
}

func (s *exportStage) uploads(folder string) (keys []string) {
	s.t.Helper()
	out, err := s.s3.ListMultipartUploads(context.Background(), &s3.ListMultipartUploadsInput{Bucket: aws.String(embedded.DefaultBucket), Prefix: &folder})
	require.NoError(s.t, err)
	for _, u := range out.Uploads {
		keys = append(keys, *u.Key)
	}
	return keys
}

// users are the ids of a JSON Lines export, in order.
func users(t *testing.T, files [][]byte) (ids []string) {
	t.Helper()
	for _, f := range files {
		lines := bufio.NewScanner(bytes.NewReader(f))
		for lines.Scan() {
			var row struct {
				UserID string `json:"user_id"`
			}
			require.NoError(t, json.Unmarshal(lines.Bytes(), &row))
			ids = append(ids, row.UserID)
		}
	}
	return ids
}

func expectedUsers(from, n int, keep func(int) bool) (ids []string) {
	for i := from; i < from+n; i++ {
		if keep == nil || keep(i) {
			ids = append(ids, fmt.Sprintf("user-%07d", i))
		}
	}
	return ids
}

func TestAnExportHasEveryoneOnceInOrderInFilesOfTheSizeAskedFor(t *testing.T) {
	s := newExportStage(t)
	for part := range 3 { // interleaved, so that their merge has to bring the order
		s.exec(fmt.Sprintf("SYSTEM STOP MERGES %s.profile_rows", s.conn.Database()))
		s.profiles(part*3000, 5000, part+1)
	}
	s.run(s.exporter("0", nil), time.Second)
	id := s.ask(&definition.Export{What: definition.WhatProfiles, Format: definition.FormatJSONL, MaxFileBytes: 1 << 20})
	e := s.until(id, exports.Done)
	require.EqualValues(t, 11000, e.Rows)
	m, files := s.complete(e)
	require.Equal(t, expectedUsers(0, 11000, nil), users(t, files))
	require.Greater(t, len(files), 2)
	for i, f := range files {
		require.Less(t, len(f), 1<<20+128<<10)
		require.True(t, i == len(files)-1 || len(f) >= 1<<20)
		require.EqualValues(t, bytes.Count(f, []byte("\n")), m.Files[i].Rows)
	}
	first, _, _ := bytes.Cut(files[0], []byte("\n"))
	require.JSONEq(t, `{"user_id":"user-0000000","attributes":{"plan":"gold","city":"Köln","points":0,"score":0.0,"news":true,"since":"2020-09-13T12:26:40Z","likes":["tea"]},
		"addresses":{"email":"0@example.test"},"consents":{"email":"subscribed"},"locale":"de"}`, string(first))
}

// A file of some megabytes goes in parts.
func TestALargeFileIsUploadedInParts(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 60000, 1)
	s.run(s.exporter("0", nil), time.Second)
	e := s.until(s.ask(&definition.Export{What: definition.WhatProfiles, Format: definition.FormatJSONL}), exports.Done)
	_, files := s.complete(e)
	require.Len(t, files, 1)
	require.Greater(t, len(files[0]), 8<<20)
	require.Equal(t, expectedUsers(0, 60000, nil), users(t, files))
}

func TestAnExportIsTheSameBytesForTheSameData(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 4000, 1)
	s.run(s.exporter("0", nil), time.Second)
	def := func(format, compression string) *definition.Export {
		return &definition.Export{What: definition.WhatProfiles, Format: format, Compression: compression, MaxFileBytes: 100 << 10}
	}
	formats := []string{definition.FormatCSV, definition.FormatJSONL, definition.FormatAvro, definition.FormatParquet}
	before := map[string][][]byte{}
	for _, format := range formats {
		_, before[format] = s.complete(s.until(s.ask(def(format, definition.CompressionZstd)), exports.Done))
	}
	// Changed and changed back, in other parts.
	s.exec("INSERT INTO profile_rows SELECT * REPLACE (revision + 1 AS revision, mapConcat(attr_string, map('plan', 'new')) AS attr_string) FROM profile_rows WHERE user_id < 'user-0002000'")
	_, changed := s.complete(s.until(s.ask(def(definition.FormatCSV, definition.CompressionZstd)), exports.Done))
	require.NotEqual(t, before[definition.FormatCSV], changed)
	s.profiles(0, 2000, 9)
	s.exec("OPTIMIZE TABLE profile_rows FINAL")
	for _, format := range formats {
		_, after := s.complete(s.until(s.ask(def(format, definition.CompressionZstd)), exports.Done))
		require.Equal(t, before[format], after, format)
	}
}

func TestAnAudienceIsExportedWithTheAttributesAskedFor(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 1000, 1)
	gold := &definition.Audience{ID: "gold", Filter: &filter.Node{Attribute: &filter.Attribute{Name: "plan", Ops: filter.Ops{In: []filter.Value{{Kind: filter.String, Str: "gold"}}}}}}
	s.write(gold)
	s.run(s.exporter("0", nil), time.Second)
	e := s.until(s.ask(&definition.Export{What: definition.WhatAudience, Audience: "gold", Format: definition.FormatParquet, Compression: definition.CompressionZstd,
		Attributes: map[string]string{"points": "int", "score": "decimal", "plan": "string", "news": "bool", "since": "time", "likes": "json", "none": "string"}}), exports.Done)
	require.EqualValues(t, 500, e.Rows)
	_, files := s.complete(e)
	require.Len(t, files, 1)
	type row struct {
		UserID string   `parquet:"user_id"`
		Likes  *string  `parquet:"likes"`
		News   *bool    `parquet:"news"`
		None   *string  `parquet:"none"`
		Plan   *string  `parquet:"plan"`
		Points *int64   `parquet:"points"`
		Score  *float64 `parquet:"score"`
		Since  *int64   `parquet:"since"`
	}
	rows, err := parquet.Read[row](bytes.NewReader(files[0]), int64(len(files[0])))
	require.NoError(t, err)
	require.Len(t, rows, 500)
	for i, r := range rows {
		n := int64(2 * i)
		likes, plan, news, score, since := `["tea"]`, "gold", n%3 == 0, float64(n)/4, 1600000000000000+n
		require.Equal(t, row{fmt.Sprintf("user-%07d", n), &likes, &news, nil, &plan, &n, &score, &since}, r)
	}
}

func TestAnExportThatCannotBeSaysWhy(t *testing.T) {
	s := newExportStage(t)
	s.run(s.exporter("0", nil), time.Second)
	e := s.until(s.ask(&definition.Export{What: definition.WhatAudience, Audience: "nobody", Format: definition.FormatCSV}), exports.Failed)
	require.Equal(t, "there is no audience nobody", e.Error)
	require.Empty(t, s.keys(e.Folder))
}

func TestAnEmptyExportIsOneFileWithoutRows(t *testing.T) {
	s := newExportStage(t)
	s.run(s.exporter("0", nil), time.Second)
	for _, what := range []string{definition.WhatProfiles, definition.WhatOutcomes, definition.WhatEngagement} {
		e := s.until(s.ask(&definition.Export{What: what, Run: map[string]string{definition.WhatOutcomes: strings.Repeat("0", 32)}[what], Format: definition.FormatCSV}), exports.Done)
		m, files := s.complete(e)
		require.Len(t, files, 1)
		require.EqualValues(t, 1, bytes.Count(files[0], []byte("\n")))
		require.Equal(t, len(m.Columns), bytes.Count(files[0], []byte(","))+1)
	}
}

// What an export writes under the prefix of an import spec is not imported.
func TestAnExportIsNotImported(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 10, 1)
	s.downstream()
	svc := s.exporter("0", nil)
	s.run(svc, time.Second)
	e := s.until(s.ask(&definition.Export{What: definition.WhatProfiles, Format: definition.FormatCSV}), exports.Done)
	s.define(s.people("people"))
	s.put("z.csv", file(1))
	s.stage.until(svc, "z.csv", importfile.StateDone) // it was listed after the others
	for _, r := range s.kafka.All(t, topic.Imports) {
		var i event.Import
		s.kafka.Decode(t, r, &i)
		require.NotContains(t, i.Key, e.Folder)
	}
}

// A schedule's moment is one export, however many instances see it. Nobody was there when it
// came, so all of them find it at once.
func TestAMomentOfAScheduleIsOneExport(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 10, 1)
	now := time.Now().UTC().Truncate(time.Microsecond)
	def := &definition.Export{ID: "once", What: definition.WhatProfiles, To: s.prefix + "out/", Format: definition.FormatCSV, Compression: definition.CompressionNone,
		MaxFileBytes: 1 << 20, At: now.Add(-time.Second)}
	body, err := definition.Encode(def)
	require.NoError(t, err)
	// As definitions.Write would have written it an hour ago.
	applied := event.Definition{Kind: definition.KindExport, ID: def.ID, Version: 1, Body: string(body), AppliedAt: now.Add(-time.Hour), AppliedBy: "test"}
	for _, key := range []string{definition.KindExport + "/once@1", definition.KindExport + "/once"} {
		r, err := s.cluster.Record(topic.Definitions, key, &applied)
		require.NoError(t, err)
		s.kafka.Produce(t, r)
		applied.Body = ""
	}
	id := identity.Export(s.cluster.Namespace(), def.ID, 1, def.At.Format(time.RFC3339Nano))
	// Nobody opens it before all of them want to.
	instances := []string{"0", "1", "2"}
	var wanted atomic.Int32
	all := make(chan struct{})
	s.kafka.Fake.ControlKey(int16(kmsg.InitProducerID), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		s.kafka.Fake.KeepControl()
		if strings.Contains(aws.ToString(kreq.(*kmsg.InitProducerIDRequest).TransactionalID), exports.TransactionalID(id)) {
			if wanted.Add(1) == int32(len(instances)) {
				close(all)
			}
			s.kafka.Fake.SleepControl(func() { <-all })
		}
		return nil, nil, false
	})
	var running []*Service
	for _, instance := range instances {
		svc := s.exporter(instance, func(_ *Config, times *export.Timing) { times.Spread, times.Settle = 0, export.DefaultTiming().Settle })
		s.run(svc, time.Second)
		running = append(running, svc)
	}
	kafkatest.Eventually(t, func() bool {
		fenced := 0
		for _, svc := range running {
			n, err := testutil.GatherAndCount(svc.tel.Registry, "importer_exports_let_go_total")
			require.NoError(t, err)
			fenced += n
		}
		return fenced == len(instances)-1
	}, "whoever opened it before another goes on")
	s.listed(s.until(id, exports.Done)) // one that was fenced may have left a file beside these
	_, sealed, done := s.state(id)
	require.Equal(t, []int{1, 1}, []int{sealed, done})
	for _, r := range s.kafka.All(t, topic.Exports) {
		require.Equal(t, id.String(), string(r.Key))
	}
}

// write puts a definition in force.
func (s *exportStage) write(d definition.Definition) {
	s.t.Helper()
	body, err := definition.Encode(d)
	require.NoError(s.t, err)
	_, err = definitions.Write(context.Background(), s.cluster, "test", []definitions.Change{{Kind: d.Ref().Kind, ID: d.Ref().ID, Body: body}})
	require.NoError(s.t, err)
}

// Killed at any request that changes the bucket, before it or after it: whoever comes next leaves
// one complete export, and until then there is none.
func TestAnExportThatIsKilledAnywhereIsThereWholeInTheEnd(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 60000, 1) // a file in parts, and one without
	target, err := url.Parse(gateway.Endpoint())
	require.NoError(t, err)
	for at := int64(0); ; at++ {
		var requests atomic.Int64
		killed := make(chan struct{})
		proxy := httputil.NewSingleHostReverseProxy(target)
		before := at%2 == 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				proxy.ServeHTTP(w, r)
				return
			}
			switch n := requests.Add(1); {
			case n == at/2+1:
				if !before {
					proxy.ServeHTTP(httptest.NewRecorder(), r)
				}
				close(killed)
				panic(http.ErrAbortHandler)
			case n > at/2+1:
				panic(http.ErrAbortHandler) // the dead do nothing more
			}
			proxy.ServeHTTP(w, r)
		}))
		stop := s.run(s.exporter("0", func(cfg *Config, _ *export.Timing) { cfg.S3.Endpoint = server.URL }), 0)
		id := s.ask(&definition.Export{What: definition.WhatProfiles, Format: definition.FormatJSONL, MaxFileBytes: 9 << 20})
		var e event.Export
		done := false
		kafkatest.Eventually(t, func() bool {
			select {
			case <-killed:
				return true
			default:
			}
			e, _, _ = s.state(id)
			done = e.State == exports.Done
			return done
		}, "neither killed nor done")
		stop()
		server.Close()
		if done && requests.Load() <= at/2 {
			require.Greater(t, at, int64(8), "killed too seldom to tell anything")
			return
		}
		e, sealed, _ := s.state(id)
		if sealed == 0 {
			require.NotContains(t, s.keys(e.Folder), e.Folder+"manifest.json", "a manifest of what is not sealed, killed at %d", at)
		}
		stop = s.run(s.exporter("0", nil), time.Second)
		e = s.until(id, exports.Done)
		_, files := s.complete(e)
		require.Equal(t, expectedUsers(0, 60000, nil), users(t, files), "killed at %d", at)
		_, sealed, _ = s.state(id)
		require.Equal(t, 1, sealed, "killed at %d", at)
		stop()
	}
}

// One that is not dead but slow, and comes to itself when another has done its work, changes
// nothing.
func TestAnOwnerThatIsReplacedChangesNothing(t *testing.T) {
	s := newExportStage(t)
	s.profiles(0, 60000, 1)
	target, err := url.Parse(gateway.Endpoint())
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	waiting, goOn := make(chan struct{}, 1), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") { // the file is about to be there
			select {
			case waiting <- struct{}{}:
				<-goOn
			default:
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	never := func(cfg *Config, times *export.Timing) { times.Sign = time.Hour }
	slow := s.exporter("slow", func(cfg *Config, times *export.Timing) { never(cfg, times); cfg.S3.Endpoint = server.URL })
	s.run(slow, time.Second)
	id := s.ask(&definition.Export{What: definition.WhatProfiles, Format: definition.FormatJSONL})
	select {
	case <-waiting:
	case <-time.After(kafkatest.Patience):
		require.FailNow(t, "the file is never finished")
	}
	s.run(s.exporter("1", func(_ *Config, times *export.Timing) { times.Takeover = time.Millisecond }), time.Second)
	e := s.until(id, exports.Done)
	m, _ := s.complete(e)
	release()
	kafkatest.Eventually(t, func() bool { return lettings(t, slow) > 0 }, "the slow one did not let go")
	var after manifest
	require.NoError(t, json.Unmarshal(s.object(e.Folder+"manifest.json"), &after))
	require.Equal(t, m, after)
	_, sealed, done := s.state(id)
	require.Equal(t, []int{1, 1}, []int{sealed, done})
	for _, f := range m.Files {
		sum := sha256.Sum256(s.object(f.Key))
		require.Equal(t, f.SHA256, hex.EncodeToString(sum[:]))
	}
}

// lettings is how many exports an importer has let go of.
func lettings(t *testing.T, svc *Service) (n float64) {
	families, err := svc.tel.Registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "importer_exports_let_go_total" {
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}
