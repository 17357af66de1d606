package importer

import (
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/klauspost/compress/zstd"
	"github.com/linkedin/goavro/v2"
	"github.com/parquet-go/parquet-go"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/unicode"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// shape is a way to write file(n).
type shape struct {
	source definition.Source
	first  int    // line of the first row
	id     string // the column of the id, if not that
	write  func(t testing.TB, text string) []byte
}

func plain(_ testing.TB, text string) []byte { return []byte(text) }

func gzipped(t testing.TB, text []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(text)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

func encoded(e encoding.Encoding) func(testing.TB, string) []byte {
	return func(t testing.TB, text string) []byte {
		b, err := e.NewEncoder().Bytes([]byte(text))
		require.NoError(t, err)
		return b
	}
}

// jsonLines writes a CSV text so.
func jsonLines(t testing.TB, text string) []byte {
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	require.NoError(t, err)
	var b bytes.Buffer
	for _, r := range records[1:] {
		fmt.Fprintf(&b, "{\"id\": %q, \"at\": %q, \"more\": [1], \"city\": %q}\n", r[0], r[2], r[1])
	}
	return b.Bytes()
}

// avroFile writes a CSV text as an Avro object container file.
func avroFile(t testing.TB, text string) []byte {
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	require.NoError(t, err)
	var b bytes.Buffer
	w, err := goavro.NewOCFWriter(goavro.OCFConfig{W: &b, CompressionName: goavro.CompressionSnappyLabel, Schema: `{"type": "record", "name": "r", "fields": [
		{"name": "at", "type": "string"}, {"name": "who", "type": {"type": "record", "name": "w", "fields": [{"name": "id", "type": ["null", "string"]}]}}, {"name": "city", "type": "string"}]}`})
	require.NoError(t, err)
	for len(records) > 1 { // in blocks of 500
		var block []map[string]any
		for _, r := range records[1:min(len(records), 501)] {
			block = append(block, map[string]any{"at": r[2], "city": r[1], "who": map[string]any{"id": goavro.Union("string", r[0])}})
		}
		require.NoError(t, w.Append(block))
		records = records[len(block):]
	}
	return b.Bytes()
}

// parquetFile writes a CSV text as Parquet, in row groups of 3,000.
func parquetFile(t testing.TB, text string) []byte {
	type row struct {
		Who  struct{ ID *string } `parquet:"who"`
		City string               `parquet:"city,dict"`
		At   string               `parquet:"at"`
	}
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	require.NoError(t, err)
	var b bytes.Buffer
	w := parquet.NewGenericWriter[row](&b, parquet.MaxRowsPerRowGroup(3000), parquet.Compression(&parquet.Snappy))
	for _, r := range records[1:] {
		one := row{City: r[1], At: r[2]}
		one.Who.ID = &r[0]
		_, err := w.Write([]row{one})
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

var shapes = map[string]shape{
	"CSV":           {definition.Source{Format: definition.FormatCSV, Delimiter: ","}, 2, "", plain},
	"TSV":           {definition.Source{Format: definition.FormatTSV, Delimiter: "\t"}, 2, "", func(_ testing.TB, text string) []byte { return []byte(strings.ReplaceAll(text, ",", "\t")) }},
	"CSV,gzip":      {definition.Source{Format: definition.FormatCSV, Delimiter: ","}, 2, "", func(t testing.TB, text string) []byte { return gzipped(t, []byte(text)) }},
	"CSV,UTF-16":    {definition.Source{Format: definition.FormatCSV, Delimiter: ","}, 2, "", encoded(unicode.UTF16(unicode.LittleEndian, unicode.UseBOM))},
	"CSV,Shift_JIS": {definition.Source{Format: definition.FormatCSV, Delimiter: ",", Encoding: "shift_jis"}, 2, "", encoded(japanese.ShiftJIS)},
	"CSV,EUC-JP,zstd": {definition.Source{Format: definition.FormatCSV, Delimiter: ",", Encoding: "euc-jp"}, 2, "", func(t testing.TB, text string) []byte {
		z, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		return z.EncodeAll(encoded(japanese.EUCJP)(t, text), nil)
	}},
	"JSONLines":      {definition.Source{Format: definition.FormatJSONL}, 1, "", jsonLines},
	"JSONLines,gzip": {definition.Source{Format: definition.FormatJSONL}, 1, "", func(t testing.TB, text string) []byte { return gzipped(t, jsonLines(t, text)) }},
	"Avro":           {definition.Source{Format: definition.FormatAvro}, 1, "who.id", avroFile},
	"Avro,gzip":      {definition.Source{Format: definition.FormatAvro}, 1, "who.id", func(t testing.TB, text string) []byte { return gzipped(t, avroFile(t, text)) }},
	"Parquet":        {definition.Source{Format: definition.FormatParquet}, 1, "who.ID", parquetFile},
}

// cut is made in the transactions of imports.
type cut struct {
	left   atomic.Int64 // commits until then
	marked atomic.Bool  // the next one has its rows and progress, and does not reach the broker; else they do not
	made   atomic.Bool
}

func newCut(fake *kfake.Cluster) *cut {
	c := &cut{}
	look := func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		var id string
		commit := false
		switch req := kreq.(type) {
		case *kmsg.EndTxnRequest:
			id, commit = req.TransactionalID, true
		case *kmsg.ProduceRequest:
			id = aws.ToString(req.TransactionID)
		}
		if !strings.Contains(id, ".import.") {
			return nil, nil, false
		}
		if c.left.Load() > 0 {
			if commit {
				c.left.Add(-1)
			}
			return nil, nil, false
		}
		if !commit && c.marked.Load() {
			return nil, nil, false
		}
		c.made.Store(true)
		return nil, errors.New("cut"), true
	}
	fake.ControlKey(int16(kmsg.EndTxn), look)
	fake.ControlKey(int16(kmsg.Produce), look)
	return c
}

func (c *cut) after(commits int, marked bool) {
	c.left.Store(int64(commits))
	c.marked.Store(marked)
	c.made.Store(false)
}

// In every format: killed again and again, between its commits and in the middle of
// transactions.
func TestAnImportThatIsKilledGoesOnWhereItWasAndRepeatsNothing(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.downstream()
			spec := s.people("people")
			shape.source.Prefix = s.prefix
			spec.Source = shape.source
			if shape.id != "" {
				spec.UserID = column(shape.id)
			}
			s.define(spec)
			const n = 3000
			s.put("a", string(shape.write(t, strings.ReplaceAll(file(n), "city ", "市"))))
			cut := newCut(s.kafka.Fake)
			life := 0
			// Each life ends after life%4 more commits, before the next or in the middle of
			// it, but the first, of which nobody knows while its transaction is open. There
			// are at least four commits: announced, published, loaded and done.
			for done := false; !done; life++ {
				cut.after(life%4, life%2 == 1)
				svc := s.importer("0", nil)
				stop := s.run(svc, 0) // the work in hand is cut off, too
				kafkatest.Eventually(t, func() bool {
					svc.progress.mu.RLock()
					defer svc.progress.mu.RUnlock()
					for _, e := range svc.progress.byID {
						done = e.State == importfile.StateDone
					}
					return done || cut.made.Load()
				}, "life %d makes no progress", life)
				stop()
			}
			require.GreaterOrEqual(t, life, 4)
			s.requireRows("a", n, shape.first)
			require.Len(t, s.segment(), 1)
			var cities int
			for _, r := range s.kafka.All(t, topic.ProfileUpdates) {
				var p event.ProfilePatch
				s.kafka.Decode(t, r, &p)
				require.Equal(t, "市"+p.UserID[1:], p.Set[0].Value.Text())
				cities++
			}
			require.Equal(t, n-n/10, cities)
		})
	}
}

// What is wrong with a file fails its import with one clear sentence, and no other.
func TestAHostileFileFailsAlone(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	bomb := strings.Repeat("u1,"+strings.Repeat("Tokyo", 200)+",2025-01-02\n", 3000)
	half := gzipped(t, []byte(file(5000)))
	for name, c := range map[string]struct{ body, reason string }{
		"bomb.csv.gz":    {string(gzipped(t, []byte("id,city,at\n"+bomb))), "max_decompressed_bytes"},
		"half.csv.gz":    {string(half[:len(half)/2]), "the gzip data are cut off after"},
		"columns.csv":    {"id,city,at" + strings.Repeat(",", 1_000_000) + "\n", "the file has 1000003 columns, at most 10000 can be read"},
		"names.csv":      {"id,city,at," + strings.Repeat("x", 300<<10) + "\n", "the names of the columns are"},
		"header.csv":     {strings.Repeat("id,city,at", 200_000), "the row is longer than 1 MiB"},
		"mac.csv":        {"id,city,at\ru1,Tokyo,2025-01-02\r", "carriage returns alone"},
		"sjis.csv":       {"id,city,at\n\x96\xbc,x,2025-01-02\n", ""}, // its rows are rejected
		"a b+ü%20\n.csv": {file(10), ""},
	} {
		s.put(name, c.body)
	}
	svc := s.importer("0", nil)
	s.run(svc, time.Second)
	for name, reason := range map[string]string{
		"bomb.csv.gz": "max_decompressed_bytes", "half.csv.gz": "the gzip data are cut off after", "columns.csv": "at most 10000", "names.csv": "names of the columns",
		"header.csv": "longer than 1 MiB", "mac.csv": "carriage returns alone",
	} {
		imp := s.until(svc, name, importfile.StateFailed)
		require.Contains(t, imp.Error, reason, name)
		require.Equal(t, imp.Error, s.report(name).Error)
	}
	s.until(svc, "a b+ü%20\n.csv", importfile.StateDone)
	s.requireOnce("a b+ü%20\n.csv", 10)
	require.EqualValues(t, 1, s.until(svc, "sjis.csv", importfile.StateDone).Rejected)
	require.Equal(t, "invalid UTF-8", s.report("sjis.csv").FirstRejects[0].Reason)
}

// Too many rejects fail an import: soon where a number is meant, at the end where a
// share is; what it made the segment of does not become the segment.
func TestTooManyRejectsFailAnImport(t *testing.T) {
	for most, want := range map[definition.MaxRejects]string{
		"1000": "", "10%": "", "100": "101 of 1010 rows were rejected; max_rejects in the import spec allows 100", "9.9%": "1000 of 10000 rows were rejected; max_rejects in the import spec allows 9.9%",
	} {
		t.Run(strings.TrimSuffix(string(most), "%"), func(t *testing.T) {
			s := newStage(t)
			s.downstream()
			spec := s.people("people")
			spec.MaxRejects = most
			s.define(spec)
			s.put("a.csv", file(10_000))
			svc := s.importer("0", nil)
			s.run(svc, time.Second)
			if want == "" {
				s.until(svc, "a.csv", importfile.StateDone)
				return
			}
			imp := s.until(svc, "a.csv", importfile.StateFailed)
			require.Equal(t, want, imp.Error)
			require.Empty(t, s.segment())
			rejects, err := csv.NewReader(strings.NewReader(s.read("a.csv" + importfile.RejectsSuffix))).ReadAll()
			require.NoError(t, err)
			require.Equal(t, imp.Rejected, int64(len(rejects)-1))
			require.Equal(t, strconv.FormatInt(imp.Rows, 10), strings.Fields(want)[2])
		})
	}
}

// While an object is slow its owner gives signs of life, and keeps it.
func TestAnOwnerWhoWaitsForTheObjectIsNotTakenForGone(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	s.put("a.csv", file(5000))
	proxy := newSlow(t, 100, true, false)
	// A machine that is busy must not keep an owner silent for so long.
	const takeover = 6 * time.Second
	times := func(times *timing) { times.heartbeat, times.takeover = 100*time.Millisecond, takeover }
	first := s.importer("0", func(cfg *Config, t *timing) { cfg.S3.Endpoint = proxy.URL; times(t) })
	s.run(first, time.Second)
	kafkatest.Eventually(t, func() bool { return len(s.kafka.All(t, topic.Imports)) > 0 }, "nobody has begun")
	second := s.importer("1", func(_ *Config, t *timing) { times(t) })
	s.run(second, time.Second)
	kafkatest.Eventually(t, func() bool {
		return slices.ContainsFunc(second.progress.unfinished(), func(e *entry) bool { return e.UpdatedAt.Sub(e.StartedAt) > takeover })
	}, "no signs of life for longer than a takeover takes")
	proxy.open()
	s.until(first, "a.csv", importfile.StateDone)
	s.requireOnce("a.csv", 5000)
	for _, svc := range []*Service{first, second} {
		require.Zero(t, testutil.ToFloat64(svc.metrics.lettings.WithLabelValues("fenced")))
	}
}

// However many large files are being read, a small one does not wait for them.
func TestASmallFileIsDoneBesideLargeOnes(t *testing.T) {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	proxy := newSlow(t, 70_000, true, false)
	for n := range 3 {
		s.put(fmt.Sprintf("large%d.csv", n), file(5000))
	}
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.S3.Endpoint = proxy.URL })
	s.run(svc, time.Second)
	kafkatest.Eventually(t, func() bool {
		return testutil.ToFloat64(svc.metrics.imports.WithLabelValues(importfile.StateReading)) == 2
	}, "the large files do not take all places")
	s.put("small.csv", file(100))
	s.until(svc, "small.csv", importfile.StateDone)
	s.requireOnce("small.csv", 100)
	require.EqualValues(t, 2, testutil.ToFloat64(svc.metrics.imports.WithLabelValues(importfile.StateReading)))
	proxy.open()
	for n := range 3 {
		s.until(svc, fmt.Sprintf("large%d.csv", n), importfile.StateDone)
	}
}
