package webhook

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Queue is an SQS queue with the events of SES.
type Queue struct {
	Client *sqs.Client
	URL    string
}

// ReceiveWait is how long SQS is asked to wait for a message.
const ReceiveWait = 20 * time.Second

// A message that was received is nobody else's for so long. Whoever is killed with
// it has not deleted it: it comes back.
const visibility = 60 * time.Second

// answerWithin is how long SQS may take to answer anything else.
const answerWithin = 10 * time.Second

// How long to wait after SQS, or Kafka, was away.
const (
	minPause = time.Second
	maxPause = 30 * time.Second
)

// Receive reads the queue until ctx ends, if there is one. A message is deleted
// once what became of it is durable, and not before: that it comes twice is
// harmless.
func (h *Handler) Receive(ctx context.Context) {
	if h.Queue == nil {
		return
	}
	q := h.Queue
	for pause := minPause; ctx.Err() == nil; {
		out, err := q.Client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &q.URL, MaxNumberOfMessages: 10,
			WaitTimeSeconds: int32(ReceiveWait / time.Second), VisibilityTimeout: int32(visibility / time.Second)})
		if err == nil {
			// On the way out what is in hand is still finished: it takes a moment, or comes back.
			err = h.receive(context.WithoutCancel(ctx), out.Messages)
		}
		if err == nil {
			pause = minPause
			continue
		}
		if ctx.Err() != nil {
			return
		}
		h.Log.Warn("the queue of SES cannot be worked off now", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// receive makes the messages durable as one, and deletes them.
func (h *Handler) receive(ctx context.Context, messages []types.Message) error {
	if len(messages) == 0 {
		return nil
	}
	now := h.now().UTC().Truncate(time.Microsecond)
	var all verdict
	results := make([]string, len(messages))
	done := make([]types.DeleteMessageBatchRequestEntry, len(messages))
	for i := range messages {
		m := &messages[i]
		v := h.decideQueued([]byte(aws.ToString(m.Body)), now)
		if v.note != "" {
			h.Log.Warn("what a provider delivered needs a look", "source", sourceSES, "sqs_message_id", aws.ToString(m.MessageId), "result", v.result, "note", v.note)
		}
		all.entries, results[i] = append(all.entries, v.entries...), v.result
		done[i] = types.DeleteMessageBatchRequestEntry{Id: nameOf(i), ReceiptHandle: m.ReceiptHandle}
	}
	storing, cancel := context.WithTimeout(ctx, h.AckTimeout)
	defer cancel()
	if err := h.take(storing, sourceSES, all); err != nil {
		for range messages {
			h.results.WithLabelValues(sourceSES, resultAway).Inc()
		}
		h.giveBack(ctx, messages)
		return err
	}
	for _, result := range results {
		h.results.WithLabelValues(sourceSES, result).Inc()
	}
	// What is not deleted comes once more, and changes nothing.
	ctx, cancel = context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := h.Queue.Client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &h.Queue.URL, Entries: done})
	return err
}

// giveBack lets messages come again soon; if it fails, they come a little later.
func (h *Handler) giveBack(ctx context.Context, messages []types.Message) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	back := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(messages))
	for i := range messages {
		back[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: nameOf(i), ReceiptHandle: messages[i].ReceiptHandle, VisibilityTimeout: int32(minPause / time.Second)}
	}
	_, _ = h.Queue.Client.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &h.Queue.URL, Entries: back})
}

// nameOf names one of at most ten messages within a request.
func nameOf(i int) *string { return aws.String(string(rune('a' + i))) }
