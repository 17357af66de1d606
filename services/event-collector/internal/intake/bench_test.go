package intake

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkCeilingParse decodes and checks batches of events, and publishes nothing. The batches are
// the lines of the file that BENCH_BATCHES names, as scripts/bench intake sends them.
func BenchmarkCeilingParse(b *testing.B) {
	var bodies []string
	events := make([]string, 100)
	for i := range events {
		events[i] = fmt.Sprintf(`{"type":"track","messageId":"m-%06d-0123456789","userId":"user-%06d","event":"Product Viewed","timestamp":"2026-05-17T11:59:30.123Z","properties":{"sku":"SKU-%06d","price":1234.5,"quantity":%d,"currency":"JPY","category":"tea and everything that goes with it"},"context":{"library":{"name":"x"}}}`, i, i, i, i)
	}
	bodies = append(bodies, `{"batch":[`+strings.Join(events, ",")+`],"sentAt":"2026-05-17T12:00:00.000Z","writeKey":"k"}`)
	if path := os.Getenv("BENCH_BATCHES"); path != "" {
		text, err := os.ReadFile(path)
		require.NoError(b, err)
		bodies = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	h := &Handler{}
	at := time.Now().UTC()
	b.ReportAllocs()
	b.SetBytes(int64(len(bodies[0])))
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			req := requestsKept.Get().(*request)
			req.readBatch(bodies[i%len(bodies)])
			if req.problem != nil {
				b.Fatal(req.problem.Reason)
			}
			if _, a := h.decide(req, batch, &receipt{at: at, source: "api:web", scopes: allScopes, sentAt: req.sentAt, newID: newID}); a.Accepted != 100 {
				b.Fatal(a)
			}
			req.release()
		}
	})
	b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkValue is a property that holds an array of objects, as those of orders do.
func BenchmarkValue(b *testing.B) {
	const text = `[{"sku":"tea","name":"Green tea, 100 g","price":12.5,"quantity":2},{"sku":"cup","name":"Cup & saucer","price":30,"quantity":1}]`
	b.ReportAllocs()
	for b.Loop() {
		p := scanner{s: text}
		if v, _, _ := p.value(); v.Text() == "" {
			b.Fatal("nothing was read")
		}
	}
}
