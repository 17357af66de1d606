package resolver

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

// BenchmarkImportAgain imports a list of 40,000 people again and again, as every
// night: ten attributes and an address each, and of one in five people one that is
// another than the night before. It is the person loop without Kafka: records are
// decoded, decided, encoded, and written to the store.
func BenchmarkImportAgain(b *testing.B) {
	const people, perBatch = 40_000, 2_000
	for b.Loop() {
		k := kafkatest.Start(b)
		c := k.Cluster(b, topic.Resolver)
		tel := kafkatest.Telemetry(b, topic.Resolver)
		l := newPersonLoop(c, Config{Window: 20000, TrackingKeyID: "1"}, tel.Log, newMetrics(tel.Registry))
		var err error
		l.store, err = state.Open(b.TempDir(), 64<<20, func(err error) { panic(err) })
		require.NoError(b, err)
		for n := range 6 {
			setBy := "import:" + identity.Hash("bench", fmt.Sprint(n)).String()
			at := t0.Add(time.Duration(n) * 24 * time.Hour)
			batches := make([][]*kgo.Record, 0, people/perBatch)
			for i := range people {
				id := fmt.Sprintf("user-%07d", (i*7919)%people)
				p := &event.ProfilePatch{UserID: id, SetBy: setBy, SetAt: at, OccurredAt: at, Addresses: []event.AddressPatch{{Channel: "email", Address: id + "@example.test"}}}
				for f := range 10 {
					v := fmt.Sprint("value ", i, " ", f)
					if f == 0 && (i+n)%10 == 0 {
						v = fmt.Sprint("value of night ", n)
					}
					p.Set = append(p.Set, event.NamedValue{Name: fmt.Sprint("attribute_", f), Value: event.String(v)})
				}
				r, err := c.Record(topic.ProfileUpdates, id, p)
				require.NoError(b, err)
				if i%perBatch == 0 {
					batches = append(batches, nil)
				}
				batches[len(batches)-1] = append(batches[len(batches)-1], r)
			}
			bytes, records := 0, 0
			runtime.GC()
			var before, after syscall.Rusage
			require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
			start := time.Now()
			for _, batch := range batches {
				out, err := l.Transform(context.Background(), batch)
				require.NoError(b, err)
				for i, r := range out {
					r.Offset = int64(records + i)
					bytes += len(r.Key) + len(r.Value)
				}
				records += len(out)
				l.Committed(out)
			}
			took := time.Since(start)
			require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
			b.Logf("import %d: %6.0f people/s, %5.1f us user CPU each, %4d bytes, %.2f records each", n+1, people/took.Seconds(),
				float64(after.Utime.Nano()-before.Utime.Nano())/1e3/people, bytes/people, float64(records)/people)
		}
		require.NoError(b, l.store.Close())
	}
}
