package event_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

func request() *event.MessageRequest {
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456000, time.UTC)
	return &event.MessageRequest{
		MessageID: identity.Hash("message"), RunID: identity.Hash("run"),
		CampaignID: "spring-sale", CampaignVersion: 3, TemplateID: "spring-sale-mail", TemplateVersion: 12, Lane: "bulk",
		UserID: "c12347", Channel: "email", Address: "c12347@example.test", Policy: "at_most_once",
		RequestedAt: at, ExpiresAt: at.Add(24 * time.Hour), Locale: "ja-JP", TimeZone: "Asia/Tokyo", KeyID: "k1",
		Attributes: event.Sorted([]event.NamedValue{
			{Name: "first_name", Value: event.String("千代")}, {Name: "last_name", Value: event.String("飛脚")},
			{Name: "age", Value: event.Int(42)}, {Name: "plan", Value: event.String("gold")},
			{Name: "country", Value: event.String("Japan")}, {Name: "points", Value: event.Int(1_234_567)},
			{Name: "lifetime_value", Value: event.Float(1843.25)}, {Name: "vip", Value: event.Bool(true)},
			{Name: "joined_at", Value: event.Time(at.AddDate(-3, 0, 0))}, {Name: "referrer", Value: event.Null()},
			{Name: "city", Value: event.String("Kyoto")}, {Name: "favourites", Value: event.JSON(`["tea","ink"]`)},
		}),
		Segments: []event.SegmentValues{{SegmentID: "vip-list", Attributes: []event.NamedValue{{Name: "coupon", Value: event.String("HK-2026-77")}}}},
	}
}

func TestWhatIsEncodedDecodes(t *testing.T) {
	t.Parallel()
	want := request()
	b := want.AppendAvro([]byte("before"))
	require.Equal(t, "before", string(b[:6]))
	var got event.MessageRequest
	require.NoError(t, got.DecodeAvro(b[6:]))
	require.Equal(t, want, &got)
	require.ErrorContains(t, got.DecodeAvro(b[6:len(b)-1]), "decoding MessageRequest at byte")
	require.ErrorContains(t, got.DecodeAvro(append(b[6:], 0)), "the record ends here")
}

func BenchmarkMessageRequest(b *testing.B) {
	m := request()
	buf := m.AppendAvro(nil)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	var got event.MessageRequest
	for b.Loop() {
		buf = m.AppendAvro(buf[:0])
		if err := got.DecodeAvro(buf); err != nil {
			b.Fatal(err)
		}
	}
}
