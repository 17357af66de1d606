package sender

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// maxBackoff is the longest pause between two attempts.
const maxBackoff = time.Hour

// output makes the records that follow from a decision.
type output struct {
	cluster  *kafka.Cluster
	now      func() time.Time
	backoff  time.Duration
	attempts int32
	metrics  *metrics
}

// settle returns the outcome and, before it, the retry that the decision asks for:
// in the other order a crash between them would lose the message.
func (out *output) settle(r *kgo.Record, m *event.Message, d decision) (kafka.Outputs, error) {
	now := out.now()
	unanswered := m.Unanswered || d.unanswered
	var groups kafka.Outputs
	if d.retry {
		again := *m
		again.Attempt++
		again.Unanswered = unanswered
		at := now.Add(pause(out.backoff, m.MessageID, m.Attempt))
		if !m.ExpiresAt.IsZero() && at.After(m.ExpiresAt) {
			at = m.ExpiresAt // nobody waits for what will only be found expired
		}
		again.NotBefore = &at
		retry, err := out.cluster.Record(topic.RetriesEmail, m.UserID, &again)
		switch {
		case errors.Is(err, kafka.ErrTooLarge):
			d = decision{outcome: "failed", reason: "too_large_to_retry", detail: d.detail}
		case err != nil:
			return nil, fmt.Errorf("writing the retry of message %s: %w", m.MessageID, err)
		default:
			groups = append(groups, []*kgo.Record{retry})
		}
	}
	if unanswered {
		d = sinceUnanswered(d)
	}
	o, err := out.cluster.Record(topic.Outcomes, m.UserID, &event.Outcome{
		OutcomeID: identity.Outcome(m.MessageID, d.outcome, m.Attempt, ""),
		MessageID: m.MessageID, RunID: m.RunID, CampaignID: m.CampaignID, Variant: m.Variant, Step: m.Step, Lane: m.Lane,
		UserID: m.UserID, Channel: m.Channel,
		Outcome: d.outcome, Attempt: m.Attempt, Reason: d.reason, Detail: d.detail, OccurredAt: now,
		Source:   &event.Source{Topic: string(out.cluster.NameOf(r.Topic)), Partition: r.Partition, Offset: r.Offset},
		Provider: "smtp", ProviderID: d.id,
	})
	if err != nil {
		return nil, fmt.Errorf("writing the outcome of message %s: %w", m.MessageID, err)
	}
	out.metrics.outcomes.WithLabelValues(d.outcome).Inc()
	return append(groups, []*kgo.Record{o}), nil
}

// pause is how long to wait after the attempt: doubling, give or take a quarter, so
// that what was refused together does not come back together. It derives from the
// message (I5).
func pause(first time.Duration, message identity.ID, attempt int32) time.Duration {
	d := first
	for range attempt - 1 {
		if d = 2 * d; d >= maxBackoff {
			d = maxBackoff
			break
		}
	}
	h := identity.Hash(string(message[:]), strconv.Itoa(int(attempt)))
	share := float64(binary.BigEndian.Uint32(h[:4])) / (1 << 32) // [0, 1)
	return time.Duration(float64(d) * (0.75 + share/2))
}
