package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"testing"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// codecBar is what encoding and decoding together may take.
const codecBar = 1200 * time.Nanosecond

// codec measures the hot record of the pipeline. Its ceiling is the bar it is
// held to, not a machine's: there is no faster way of our own to compare with.
func codec(context.Context, string, []string) (*result, error) {
	req := sampleRequest()
	encoded := req.AppendAvro(nil)
	var into event.MessageRequest
	if err := into.DecodeAvro(encoded); err != nil {
		return nil, fmt.Errorf("decoding what was encoded: %w", err)
	}
	buf := make([]byte, 0, 2*len(encoded))
	// The best of several: whatever else the machine does can only slow it down.
	const rounds = 5
	var both testing.BenchmarkResult
	perOp := math.Inf(1)
	for range rounds {
		r := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				buf = req.AppendAvro(buf[:0])
				var m event.MessageRequest
				if err := m.DecodeAvro(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		if ns := float64(r.T.Nanoseconds()) / float64(r.N); ns < perOp {
			both, perOp = r, ns
		}
	}
	fmt.Fprintf(os.Stderr, "%-28s %10s\n", "record", fmt.Sprintf("%d bytes", len(encoded)))
	fmt.Fprintf(os.Stderr, "%-28s %7.0f ns  %d allocations  %d bytes\n", "encode + decode, best of 5", perOp, both.AllocsPerOp(), both.AllocedBytesPerOp())
	r := &result{Rate: 1e9 / perOp, Unit: "records/s"}
	r.against(float64(time.Second)/float64(codecBar), "the bar: 1.2 µs for both")
	return r, nil
}

func sampleRequest() *event.MessageRequest {
	at := time.Date(2026, 11, 21, 9, 30, 0, 0, time.UTC)
	m := &event.MessageRequest{MessageID: identity.Hash("m"), RunID: identity.Hash("r"), CampaignID: "thanks-2011", CampaignVersion: 3, TemplateID: "thanks", TemplateVersion: 7,
		Lane: "bulk", UserID: "12347", Channel: "email", Address: "c12347@example.test", Policy: "at_most_once", RequestedAt: at, ExpiresAt: at.Add(72 * time.Hour),
		Locale: "ja-JP", TimeZone: "Asia/Tokyo", KeyID: "1"}
	for i := range 12 {
		v := event.NamedValue{Name: fmt.Sprintf("attribute_%02d", i)}
		switch i % 4 {
		case 0:
			v.Value = event.String("a value")
		case 1:
			v.Value = event.Int(int64(1000 * i))
		case 2:
			v.Value = event.Float(4.15)
		default:
			v.Value = event.Bool(true)
		}
		m.Attributes = append(m.Attributes, v)
	}
	return m
}
