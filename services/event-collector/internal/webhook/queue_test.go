package webhook

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/sqstest"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Whatever is in the queue is stored, then deleted: not one of the two before the
// other.
func TestTheQueueIsWorkedOffOnceKafkaHasIt(t *testing.T) {
	t.Parallel()
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		testQueue(t, sqstest.Start(t).URL)
	})
	t.Run("fauxqs", func(t *testing.T) {
		t.Parallel()
		testQueue(t, sqstest.Fauxqs(t, filepath.Join("..", "..", "..", "importer", "testdata", "fauxqs")))
	})
}

func testQueue(t *testing.T, endpoint string) {
	client := sqs.New(sqs.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("x", "x", "")})
	made, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("ses")})
	require.NoError(t, err)
	d := newDesk(t, func(o *Options) { o.Queue = &Queue{Client: client, URL: aws.ToString(made.QueueUrl)} })
	send := func(body []byte) {
		_, err := client.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: made.QueueUrl, MessageBody: aws.String(string(body))})
		require.NoError(t, err)
	}
	left := func() int {
		out, err := client.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: made.QueueUrl, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll}})
		require.NoError(t, err)
		n := 0
		for _, name := range []string{"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"} {
			v, err := strconv.Atoi(out.Attributes[name])
			require.NoError(t, err)
			n += v
		}
		return n
	}
	send(d.notification(d.sample("ses-bounce"), nil)) // as SNS writes it
	send(d.sample("ses-complaint"))                   // raw
	send(d.sample("ses-eventbridge"))
	send(d.sample("ses-others"))
	send([]byte(`{"eventType":"Bounce","mail":{"tags":`))

	// While Kafka is away nothing is deleted: it comes again.
	out, err := client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: made.QueueUrl, MaxNumberOfMessages: 10, VisibilityTimeout: 600})
	require.NoError(t, err)
	require.NotEmpty(t, out.Messages)
	d.away = output.ErrAway
	require.Error(t, d.receive(t.Context(), out.Messages))
	require.Equal(t, 5, left())
	d.away = nil

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); d.Receive(ctx) }()
	kafkatest.Eventually(t, func() bool { return left() == 0 }, "messages are left in the queue")
	stop()
	<-ended
	var lines []string
	for _, e := range d.take() {
		if o, ok := e.Record.(*event.Outcome); ok {
			lines = append(lines, o.Outcome)
		}
		if _, ok := e.Record.(*event.DeadLetter); ok {
			lines = append(lines, "dead letter")
		}
	}
	slices.Sort(lines)
	require.Equal(t, []string{"bounced", "complained", "dead letter", "delivered"}, lines)
	require.EqualValues(t, 1, testutil.ToFloat64(d.results.WithLabelValues("ses", resultIgnored)))
	require.EqualValues(t, 1, testutil.ToFloat64(d.results.WithLabelValues("ses", resultParked)))
}
