package importer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/importfile/csv"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

const benchRows = 100_000

// wide is a row of a person with eight attributes, and a spec that makes a
// patch and a member of it: the shape of DESIGN §14.
func wide(prefix string) (*definition.ImportSpec, string) {
	spec := &definition.ImportSpec{
		ID: "wide", Source: definition.Source{Prefix: prefix, Format: definition.FormatCSV, Delimiter: ","},
		UserID: column("id"), Profile: &definition.Profile{Attributes: map[string]definition.Value{}}, Segment: &definition.Segment{ID: "s"},
	}
	var b strings.Builder
	b.WriteString("id")
	for c := range 8 {
		name := fmt.Sprintf("attribute%d", c)
		spec.Profile.Attributes[name] = column(name)
		b.WriteString("," + name)
	}
	b.WriteByte('\n')
	for i := range benchRows {
		fmt.Fprintf(&b, "user-%d,Tokyo,gold,%d,Chocolate,2025-01-02,en-GB,9,yes\n", i, i%97)
	}
	return spec, b.String()
}

// BenchmarkMap is everything but S3 and the broker: read, map, encode.
func BenchmarkMap(b *testing.B) {
	k := kafkatest.Start(b)
	spec, text := wide("p/")
	i := &importing{Service: &Service{cluster: k.Cluster(b, topic.Importer), cfg: Config{TransactionBytes: 8 << 20}}, spec: spec}
	b.ReportAllocs()
	for b.Loop() {
		at := event.Import{ImportID: identity.Hash("x"), Line: 1}
		file := csv.NewReader(rows.NewText(strings.NewReader(text), "", 0, 1), ',')
		header, err := file.Header()
		if err != nil {
			b.Fatal(err)
		}
		mapper, err := mapping.Compile(liquid.New(liquid.Options{}), spec, header, mapping.Import{ID: at.ImportID, StartedAt: time.Now()})
		if err != nil {
			b.Fatal(err)
		}
		batch := &batch{}
		for {
			row, err := file.Next()
			if err != nil {
				break
			}
			at.Rows++
			if err := i.mapRow(mapper, row, &at, batch); err != nil {
				b.Fatal(err)
			}
			if batch.bytes > i.cfg.TransactionBytes {
				batch.records, batch.bytes = batch.records[:0], 0
			}
		}
		if at.Rows != benchRows || at.Rejected != 0 {
			b.Fatalf("%d rows, %d rejected", at.Rows, at.Rejected)
		}
	}
	b.ReportMetric(float64(benchRows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
