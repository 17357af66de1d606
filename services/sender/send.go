package sender

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"

	"github.com/hikyaku/hikyaku/services/sender/internal/smtp"
)

// atLeastOnce is the policy that prefers a second copy to none. Every other word
// means at most once.
const atLeastOnce = "at_least_once"

// handler is what the claim loop asks.
type handler struct {
	input   input
	output  output
	stops   *stops
	server  *smtp.Pool
	now     func() time.Time
	metrics *metrics
}

var _ kafka.ClaimHandler = (*handler)(nil)

// Prepare is asked directly before a message is claimed.
func (h *handler) Prepare(_ context.Context, r *kgo.Record) (kafka.Call, kafka.Outputs, error) {
	m, err := h.input.read(r)
	if err != nil {
		return nil, nil, err
	}
	d := beforeCall(m, h.stops.reason(m), h.now())
	switch {
	case d.wait:
		return nil, nil, fault.NotBefore(*m.NotBefore)
	case d.outcome != "":
		out, err := h.output.settle(r, m, d)
		return nil, out, err
	}
	return &call{h, r, m}, nil, nil
}

// Unresolved is asked about a message that a former owner claimed and left without
// an answer: it may have been sent.
func (h *handler) Unresolved(_ context.Context, r *kgo.Record) (kafka.Outputs, error) {
	m, err := h.input.read(r)
	if err != nil {
		return nil, err
	}
	return h.output.settle(r, m, h.output.unknown(m, "sender_lost", "the sender ended between asking the server and hearing its answer"))
}

type call struct {
	h *handler
	r *kgo.Record
	m *event.Message
}

// Do hands the message to the server.
func (c *call) Do(ctx context.Context) (kafka.Outputs, error) {
	start := time.Now()
	reply, err := c.h.server.Send(ctx, c.m.Email.EnvelopeFrom, c.m.Email.To, c.m.Email.MIME)
	c.h.metrics.seconds.Observe(time.Since(start).Seconds())
	if err != nil && interrupted(ctx, err) {
		return nil, fault.Transient(err)
	}
	d := c.h.output.afterCall(c.m, reply, err)
	if d.away {
		return nil, fault.Transient(err)
	}
	return c.h.output.settle(c.r, c.m, d)
}

// interrupted tells whether our own end cut a call short that cannot have had an
// effect.
func interrupted(ctx context.Context, err error) bool {
	var e *smtp.Error
	return errors.Is(ctx.Err(), context.Canceled) && errors.As(err, &e) && e.Err != nil && !e.MayBeAccepted
}

// decision is what becomes of a message now. Either wait, or away, or an outcome.
type decision struct {
	wait  bool
	away  bool
	retry bool // a retry record goes before the outcome
	// unanswered: the attempt may have succeeded; refused: it did not, nor will another.
	unanswered, refused bool

	outcome string
	reason  string
	detail  string
	id      string // the server's
}

// beforeCall decides what no call is needed for.
func beforeCall(m *event.Message, stop string, now time.Time) decision {
	switch {
	case stop != "":
		return decision{outcome: "cancelled", reason: stop}
	case !m.ExpiresAt.IsZero() && !now.Before(m.ExpiresAt):
		return decision{outcome: "expired", reason: "expired"}
	case m.NotBefore != nil && now.Before(*m.NotBefore):
		return decision{wait: true}
	}
	return decision{}
}

// afterCall decides what the server's answer, or its absence, means.
func (out *output) afterCall(m *event.Message, reply smtp.Reply, err error) decision {
	if err == nil {
		return decision{outcome: "accepted", detail: reply.String(), id: reply.ID()}
	}
	var e *smtp.Error
	if !errors.As(err, &e) {
		return decision{away: true}
	}
	status, detail := e.Reply.Status(), e.Reply.String()
	if e.Reply.Code == 0 {
		status, detail = "connection_lost", e.Error()
	}
	switch smtp.Judge(err) {
	case smtp.Unknown:
		return out.unknown(m, "no_answer", e.Error())
	case smtp.Final:
		return decision{outcome: "failed", reason: status, detail: detail, refused: true}
	case smtp.Temporary:
		if m.Attempt < out.attempts {
			return decision{outcome: "deferred", reason: status, detail: detail, retry: true}
		}
		return decision{outcome: "failed", reason: "retries_exhausted", detail: detail}
	}
	return decision{away: true}
}

// unknown decides about an attempt that may have succeeded. A second one is made
// only where a second copy is the lesser evil.
func (out *output) unknown(m *event.Message, reason, detail string) decision {
	if m.Policy == atLeastOnce && m.Attempt < out.attempts {
		return decision{outcome: "deferred", reason: reason, detail: detail, retry: true, unanswered: true}
	}
	return decision{outcome: "uncertain", reason: reason, detail: detail}
}

// sinceUnanswered is the decision about a message of which an earlier attempt may
// have succeeded: that no other was made, or did not succeed for now, says nothing
// of that. Who is refused for good now was not accepted a moment ago.
func sinceUnanswered(d decision) decision {
	switch d.outcome {
	case "failed", "cancelled", "expired":
		if !d.refused {
			d.outcome = "uncertain"
		}
	}
	return d
}
