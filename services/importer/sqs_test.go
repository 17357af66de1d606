package importer

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
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
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

// eachSQS runs a test with the queue below and with fauxqs, where that is installed.
func eachSQS(t *testing.T, test func(*testing.T, *sqsQueue)) {
	t.Run("queue", func(t *testing.T) {
		test(t, newQueue(t, newFakeSQS(t).URL))
	})
	t.Run("fauxqs", func(t *testing.T) {
		test(t, newQueue(t, startFauxqs(t)))
	})
}

// startFauxqs returns the address of a fauxqs of this test's own.
func startFauxqs(t *testing.T) string {
	dir := filepath.Join(here, "testdata", "fauxqs")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "fauxqs")); err != nil {
		t.Skip("fauxqs is not installed: npm ci --prefix services/importer/testdata/fauxqs")
	}
	node := filepath.Join(dir, "node_modules", "node-linux-"+map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH], "bin", "node")
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

// fakeSQS is one queue with the protocol of SQS. What it can and fauxqs cannot is to
// fall silent and to tell what was asked of it.
type fakeSQS struct {
	*httptest.Server
	mu       sync.Mutex
	messages []*fakeMessage
	away     bool
	delays   []int64 // of ChangeMessageVisibility, in seconds
}

type fakeMessage struct {
	body     string
	receives int
	handle   string // of the last time it was received
	visible  time.Time
}

func newFakeSQS(t *testing.T) *fakeSQS {
	f := &fakeSQS{}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeSQS) setAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// changes returns the delays that were asked for.
func (f *fakeSQS) changes() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.delays)
}

// receives returns how often the messages that are still there were received.
func (f *fakeSQS) receives() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []int
	for _, m := range f.messages {
		out = append(out, m.receives)
	}
	return out
}

func (f *fakeSQS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		MessageBody, ReceiptHandle         string
		MaxNumberOfMessages                int
		VisibilityTimeout, WaitTimeSeconds int64
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		f.mu.Lock()
		code, out := f.do(action, in.MessageBody, in.ReceiptHandle, in.MaxNumberOfMessages, in.VisibilityTimeout)
		f.mu.Unlock()
		if action != "ReceiveMessage" || code != http.StatusOK || out["Messages"] != nil || time.Now().After(deadline) {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(out)
			return
		}
		if !sleep(r.Context(), 5*time.Millisecond) {
			return
		}
	}
}

func (f *fakeSQS) do(action, body, handle string, maximum int, visibility int64) (int, map[string]any) {
	if f.away {
		return http.StatusServiceUnavailable, map[string]any{"__type": "com.amazonaws.sqs#ServiceUnavailable"}
	}
	at := slices.IndexFunc(f.messages, func(m *fakeMessage) bool { return handle != "" && m.handle == handle })
	now := time.Now()
	hash := func(s string) string {
		sum := md5.Sum([]byte(s)) //nolint:gosec // as above
		return hex.EncodeToString(sum[:])
	}
	switch action {
	case "CreateQueue":
		return http.StatusOK, map[string]any{"QueueUrl": f.URL + "/123456789012/inbox"}
	case "SendMessage":
		f.messages = append(f.messages, &fakeMessage{body: body})
		return http.StatusOK, map[string]any{"MessageId": "m", "MD5OfMessageBody": hash(body)}
	case "ReceiveMessage":
		var out []any
		for n, m := range f.messages {
			if m.visible.After(now) || len(out) == maximum {
				continue
			}
			m.receives++
			m.handle, m.visible = fmt.Sprintf("%d.%d.%d", n, m.receives, now.UnixNano()), now.Add(time.Duration(visibility)*time.Second)
			out = append(out, map[string]any{
				"MessageId": "m", "ReceiptHandle": m.handle, "Body": m.body, "MD5OfBody": hash(m.body),
				"Attributes": map[string]any{"ApproximateReceiveCount": strconv.Itoa(m.receives)},
			})
		}
		if out == nil {
			return http.StatusOK, map[string]any{}
		}
		return http.StatusOK, map[string]any{"Messages": out}
	case "GetQueueAttributes":
		visible := 0
		for _, m := range f.messages {
			if !m.visible.After(now) {
				visible++
			}
		}
		return http.StatusOK, map[string]any{"Attributes": map[string]any{
			"ApproximateNumberOfMessages":           strconv.Itoa(visible),
			"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(len(f.messages) - visible),
		}}
	case "DeleteMessage":
		if at >= 0 {
			f.messages = slices.Delete(f.messages, at, at+1)
		}
		return http.StatusOK, map[string]any{}
	case "ChangeMessageVisibility":
		if at < 0 {
			return http.StatusBadRequest, map[string]any{"__type": "com.amazonaws.sqs#ReceiptHandleIsInvalid"}
		}
		f.delays = append(f.delays, visibility)
		f.messages[at].visible = now.Add(time.Duration(visibility) * time.Second)
		return http.StatusOK, map[string]any{}
	}
	return http.StatusBadRequest, map[string]any{"__type": "com.amazonaws.sqs#UnsupportedOperation"}
}
