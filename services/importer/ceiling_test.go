package importer

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// The two halves of an import, each alone, for scripts/bench import: it starts the
// servers, and says where they are by the importer's own settings, and by
// BENCH_SPEC the file of the import spec. One object of BENCH_ROWS rows lies under its prefix.

// BenchmarkCeilingParse reads, maps and encodes the object as an import does.
// Nothing is published.
func BenchmarkCeilingParse(b *testing.B) {
	i := ceiling(b)
	before := used()
	for b.Loop() {
		rows := int64(0)
		i.each(b, func(n *batch) bool { rows = n.after.Rows; return true })
		told(b, rows, before)
	}
}

// publishedBytes is how much of the object BenchmarkCeilingPublish keeps in memory.
const publishedBytes = 64 << 20

// BenchmarkCeilingPublish writes as many rows as the object has, in the transactions
// of an import. They are encoded before: what fits into memory, again and again.
func BenchmarkCeilingPublish(b *testing.B) {
	i := ceiling(b)
	var kept []*batch
	bytes := 0
	i.each(b, func(n *batch) bool {
		kept = append(kept, n)
		bytes += n.bytes
		return bytes < publishedBytes
	})
	all, err := strconv.ParseInt(os.Getenv("BENCH_ROWS"), 10, 64)
	require.NoError(b, err)
	b.ResetTimer()
	before := used()
	for b.Loop() {
		rows := int64(0)
		for rows < all {
			last := int64(0)
			for _, n := range kept {
				require.NoError(b, i.transact(b.Context(), n))
				i.at.Published = n.after.Published
				rows += n.after.Rows - last
				last = n.after.Rows
			}
		}
		told(b, rows, before)
	}
}

// used is the CPU that this process has used.
func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func told(b *testing.B, rows int64, before time.Duration) {
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((used()-before).Nanoseconds())/1e3/float64(rows), "cpu-µs/row")
}

// ceiling is an import of the object, as its owner has it before the first row.
func ceiling(b *testing.B) *importing {
	path := os.Getenv("BENCH_SPEC")
	if path == "" {
		b.Skip("BENCH_SPEC is not set: scripts/bench import runs this")
	}
	ctx := b.Context()
	docs, err := definition.Load(path, definition.Options{})
	require.NoError(b, err)
	cfg, err := config.Load[Config](ctx, envconfig.OsLookuper())
	require.NoError(b, err)
	cfg.MaxAhead = 0 // nobody reads what is written
	s, err := New(cfg, kafkatest.Telemetry(b, topic.Importer))
	require.NoError(b, err)
	require.NoError(b, s.cluster.Start(ctx))
	b.Cleanup(s.cluster.Close)
	i := &importing{Service: s, spec: docs[0].Definition.(*definition.ImportSpec), log: slog.New(slog.DiscardHandler)}
	require.NoError(b, s.list(ctx, i.spec.Source.Prefix, func(o object) {
		i.at = event.Import{
			ImportID: identity.Hash(o.key, b.Name()), Bucket: o.bucket, Key: o.key, ETag: o.etag, SizeBytes: o.sizeBytes,
			LastModified: o.lastModified, StartedAt: o.lastModified, Line: 1,
		}
	}))
	require.NotEmpty(b, i.at.Key)
	i.pace = s.newPace(i.at.SizeBytes)
	i.client, err = s.cluster.TransactionalProducer("import." + i.at.ImportID.String())
	require.NoError(b, err)
	b.Cleanup(i.client.Close)
	return i
}

// each hands over the batches of the object until it is read or yield says stop.
func (i *importing) each(b *testing.B, yield func(*batch) bool) {
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	batches, ended := make(chan *batch, 1), make(chan error, 1)
	go func() {
		defer close(batches)
		ended <- i.produce(ctx, i.at, batches)
	}()
	wanted := true
	for n := range batches {
		if wanted && len(n.records) > 0 && !yield(n) {
			wanted = false
			stop()
		}
	}
	if err := <-ended; wanted {
		require.NoError(b, err)
	}
}
