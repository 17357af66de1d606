package importer

import (
	"context"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/sqstest"
)

// sqsQueue is one queue on any server.
type sqsQueue struct {
	t             *testing.T
	endpoint, url string
	client        *sqs.Client
}

func newQueue(t *testing.T, endpoint string) *sqsQueue {
	q := &sqsQueue{t: t, endpoint: endpoint, client: sqs.New(sqs.Options{
		Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})}
	out, err := q.client.CreateQueue(context.Background(), &sqs.CreateQueueInput{QueueName: aws.String("inbox")})
	require.NoError(t, err)
	q.url = aws.ToString(out.QueueUrl)
	return q
}

// use makes an importer read the queue.
func (q *sqsQueue) use(cfg *Config) {
	cfg.Announce.QueueURL, cfg.Announce.Endpoint = q.url, q.endpoint
}

func (q *sqsQueue) send(body string) {
	q.t.Helper()
	_, err := q.client.SendMessage(context.Background(), &sqs.SendMessageInput{QueueUrl: &q.url, MessageBody: &body})
	require.NoError(q.t, err)
}

// until waits until so many messages are there to be taken, and so many are taken.
func (q *sqsQueue) until(visible, inHand int) {
	q.t.Helper()
	var last map[string]string
	require.Eventuallyf(q.t, func() bool {
		out, err := q.client.GetQueueAttributes(context.Background(), &sqs.GetQueueAttributesInput{
			QueueUrl: &q.url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll},
		})
		require.NoError(q.t, err)
		last = out.Attributes
		return last["ApproximateNumberOfMessages"] == strconv.Itoa(visible) && last["ApproximateNumberOfMessagesNotVisible"] == strconv.Itoa(inHand)
	}, kafkatest.Patience, 10*time.Millisecond, "not %d messages and %d in hand", visible, inHand)
}

// eachSQS runs a test with a queue in this process and with fauxqs, where that is installed.
func eachSQS(t *testing.T, test func(*testing.T, *sqsQueue)) {
	t.Run("queue", func(t *testing.T) {
		test(t, newQueue(t, sqstest.Start(t).URL))
	})
	t.Run("fauxqs", func(t *testing.T) {
		test(t, newQueue(t, sqstest.Fauxqs(t, filepath.Join(here, "testdata", "fauxqs"))))
	})
}
