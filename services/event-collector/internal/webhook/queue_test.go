package webhook

import (
	"bufio"
	"context"
	"crypto/md5" //nolint:gosec // SQS answers with it
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Whatever is in the queue is stored, then deleted: not one of the two before the
// other.
func TestTheQueueIsWorkedOffOnceKafkaHasIt(t *testing.T) {
	t.Parallel()
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		fake := newFakeSQS(t)
		testQueue(t, fake.URL)
	})
	t.Run("fauxqs", func(t *testing.T) {
		t.Parallel()
		testQueue(t, startFauxqs(t))
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

// startFauxqs returns the address of a fauxqs of this test's own, where it is
// installed.
func startFauxqs(t *testing.T) string {
	dir := filepath.Join("..", "..", "..", "importer", "testdata", "fauxqs")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "fauxqs")); err != nil {
		t.Skip("fauxqs is not installed: npm ci --prefix services/importer/testdata/fauxqs")
	}
	node, err := filepath.Abs(filepath.Join(dir, "node_modules", "node-linux-"+map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH], "bin", "node"))
	require.NoError(t, err)
	if _, err := os.Stat(node); err != nil {
		if node, err = exec.LookPath("node"); err != nil {
			t.Skip("node is not installed; fauxqs needs 22.5 or later")
		}
	}
	cmd := exec.Command(node, "--no-warnings", "serve.js")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	life, err := cmd.StdinPipe() // it ends when this is closed, also if this process is killed
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		life.Close()
		_ = cmd.Wait()
	})
	port, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "fauxqs does not start")
	return "http://127.0.0.1:" + strings.TrimSpace(port)
}

// fakeSQS is one queue with the protocol of SQS.
type fakeSQS struct {
	*httptest.Server
	mu       sync.Mutex
	messages []*fakeMessage
}

type fakeMessage struct {
	body, handle string // handle: of the last time it was received
	visible      time.Time
}

func newFakeSQS(t *testing.T) *fakeSQS {
	f := &fakeSQS{}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeSQS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		MessageBody       string
		VisibilityTimeout int64
		Entries           []struct{ ReceiptHandle string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	hash := func(s string) string {
		sum := md5.Sum([]byte(s)) //nolint:gosec // as above
		return hex.EncodeToString(sum[:])
	}
	out := map[string]any{}
	switch strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.") {
	case "CreateQueue":
		out["QueueUrl"] = f.URL + "/123456789012/ses"
	case "SendMessage":
		f.messages = append(f.messages, &fakeMessage{body: in.MessageBody})
		out["MessageId"], out["MD5OfMessageBody"] = "m", hash(in.MessageBody)
	case "ReceiveMessage":
		var found []any
		for n, m := range f.messages {
			if m.visible.After(now) {
				continue
			}
			m.handle, m.visible = fmt.Sprintf("%d.%d", n, now.UnixNano()), now.Add(time.Duration(in.VisibilityTimeout)*time.Second)
			found = append(found, map[string]any{"MessageId": "m", "ReceiptHandle": m.handle, "Body": m.body, "MD5OfBody": hash(m.body)})
		}
		if found != nil {
			out["Messages"] = found
		}
	case "DeleteMessageBatch":
		for _, e := range in.Entries {
			f.messages = slices.DeleteFunc(f.messages, func(m *fakeMessage) bool { return m.handle == e.ReceiptHandle })
		}
		out["Successful"], out["Failed"] = []any{}, []any{}
	case "ChangeMessageVisibilityBatch":
		for _, e := range in.Entries {
			for _, m := range f.messages {
				if m.handle == e.ReceiptHandle {
					m.visible = now // sooner than it is told: nobody needs to wait
				}
			}
		}
		out["Successful"], out["Failed"] = []any{}, []any{}
	case "GetQueueAttributes":
		out["Attributes"] = map[string]any{"ApproximateNumberOfMessages": strconv.Itoa(len(f.messages)), "ApproximateNumberOfMessagesNotVisible": "0"}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(w).Encode(out)
}
