package renderer

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

// output makes the records that follow from a request.
type output struct {
	cluster *kafka.Cluster
	now     func() time.Time
}

// rendered is the message for the sender and the outcome that says what it is.
func (out *output) rendered(j *job, mail *render.Rendered) ([]*kgo.Record, error) {
	req := &j.request
	msg, err := out.cluster.Record(topic.MessagesEmailBulk, req.UserID, &event.Message{
		MessageID: req.MessageID, RunID: req.RunID, CampaignID: req.CampaignID, Variant: req.Variant, Step: req.Step, Lane: req.Lane,
		UserID: req.UserID, Channel: req.Channel, Policy: req.Policy, Attempt: max(1, j.attempt), RequestedAt: req.RequestedAt, ExpiresAt: req.ExpiresAt,
		ContentHash: mail.Hash[:], RendererVersion: render.Version,
		Email: &event.Email{EnvelopeFrom: mail.EnvelopeFrom, To: mail.To, MIME: mail.MIME},
	})
	if err != nil {
		return nil, fmt.Errorf("writing message %s: %w", req.MessageID, err)
	}
	o := out.outcome(j, "rendered")
	o.ContentHash = mail.Hash[:]
	rec, err := out.cluster.Record(topic.Outcomes, req.UserID, o)
	if err != nil {
		return nil, fmt.Errorf("writing the outcome of message %s: %w", req.MessageID, err)
	}
	return []*kgo.Record{msg, rec}, nil
}

// rejected is the ending of a message that cannot be rendered.
func (out *output) rejected(j *job, why *render.Rejection) ([]*kgo.Record, error) {
	req := &j.request
	o := out.outcome(j, "rejected")
	o.Reason, o.Detail = why.Reason, why.Detail
	rec, err := out.cluster.Record(topic.Outcomes, req.UserID, o)
	if err != nil {
		return nil, fmt.Errorf("writing the rejection of message %s: %w", req.MessageID, err)
	}
	return []*kgo.Record{rec}, nil
}

func (out *output) outcome(j *job, what string) *event.Outcome {
	req := &j.request
	// I5: the same step of the same message has the same id, whoever writes it.
	return &event.Outcome{OutcomeID: identity.Outcome(req.MessageID, what, j.attempt, ""), MessageID: req.MessageID, RunID: req.RunID, CampaignID: req.CampaignID,
		Variant: req.Variant, Step: req.Step, Lane: req.Lane, UserID: req.UserID, Channel: req.Channel,
		Outcome: what, Attempt: j.attempt, OccurredAt: out.now(), RendererVersion: render.Version}
}
