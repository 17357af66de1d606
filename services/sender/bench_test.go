package sender_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/sender"
	"github.com/hikyaku/hikyaku/services/sender/internal/smtp/fake"
)

// BenchmarkSender is one full stage: b.N messages of 10 KB from the broker to a mail
// server and their outcomes back, broker and server in the same process.
func BenchmarkSender(b *testing.B) {
	k := kafkatest.Start(b, kafkatest.Partitions(16))
	server := fake.Start(b, "", fake.Script{})
	c := k.Cluster(b, "others")
	mime := []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 140))
	var recs []*kgo.Record
	for i := range b.N {
		who := fmt.Sprintf("p%07d", i)
		m := &event.Message{MessageID: identity.Hash(who), RunID: run, CampaignID: "campaign", Lane: "bulk", UserID: who, Channel: "email", Policy: "at_most_once",
			Attempt: 1, ContentHash: make([]byte, 32), Email: &event.Email{EnvelopeFrom: "us@example.test", To: who + "@example.test", MIME: mime}}
		r, err := c.Record(topic.MessagesEmailBulk, who, m)
		require.NoError(b, err)
		if recs = append(recs, r); len(recs) == 1000 || i == b.N-1 {
			k.Produce(b, recs...)
			recs = recs[:0]
		}
	}
	cfg, err := config.Load[sender.Config](b.Context(), envconfig.MapLookuper(map[string]string{"SMTP_ADDR": server.Addr}))
	require.NoError(b, err)
	cfg.Kafka = k.Config()
	svc, err := sender.New(cfg, kafkatest.Telemetry(b, topic.Sender))
	require.NoError(b, err)
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	b.ResetTimer()
	go func() { done <- svc.Run(ctx) }()
	for server.Accepted() < b.N {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	b.StopTimer()
	stop()
	require.NoError(b, <-done)
}
