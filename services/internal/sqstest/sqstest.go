// Package sqstest is SQS for tests: a queue in this process, and fauxqs where it is
// installed.
package sqstest

import (
	"bufio"
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

	"github.com/stretchr/testify/require"
)

// Fauxqs returns the address of a fauxqs of this test's own, which npm ci has put into
// dir; the test is skipped where it has not.
func Fauxqs(t testing.TB, dir string) string {
	t.Helper()
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

// Server is one queue with the protocol of SQS. What it can and fauxqs cannot is to
// fall silent and to tell what was asked of it.
type Server struct {
	*httptest.Server
	mu       sync.Mutex
	messages []*message
	away     bool
	delays   []time.Duration
}

type message struct {
	body     string
	receives int
	handle   string // of the last time it was received
	visible  time.Time
}

// Start starts a Server for as long as the test runs.
func Start(t testing.TB) *Server {
	s := &Server{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// SetAway makes it fall silent, or answer again.
func (s *Server) SetAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// Delays returns those that ChangeMessageVisibility asked for.
func (s *Server) Delays() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.delays)
}

// Receives returns how often the messages that are still there were received.
func (s *Server) Receives() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []int
	for _, m := range s.messages {
		out = append(out, m.receives)
	}
	return out
}

// asked are the parameters of all actions, and those of one entry of a batch.
type asked struct {
	MessageBody, ReceiptHandle         string
	MaxNumberOfMessages                int
	VisibilityTimeout, WaitTimeSeconds int64
}

// ServeHTTP answers a request of the JSON protocol.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		asked
		Entries []asked
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	action, batch := strings.CutSuffix(strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS."), "Batch")
	if !batch {
		in.Entries = []asked{in.asked}
	}
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		code, out := http.StatusOK, map[string]any{}
		s.mu.Lock()
		for _, e := range in.Entries {
			if code == http.StatusOK {
				code, out = s.do(action, e)
			}
		}
		s.mu.Unlock()
		if action != "ReceiveMessage" || code != http.StatusOK || out["Messages"] != nil || time.Now().After(deadline) {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(out)
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) do(action string, in asked) (int, map[string]any) {
	if s.away {
		return http.StatusServiceUnavailable, map[string]any{"__type": "com.amazonaws.sqs#ServiceUnavailable"}
	}
	at := slices.IndexFunc(s.messages, func(m *message) bool { return in.ReceiptHandle != "" && m.handle == in.ReceiptHandle })
	now := time.Now()
	hash := func(text string) string {
		sum := md5.Sum([]byte(text)) //nolint:gosec // as above
		return hex.EncodeToString(sum[:])
	}
	switch action {
	case "CreateQueue":
		return http.StatusOK, map[string]any{"QueueUrl": s.URL + "/123456789012/queue"}
	case "SendMessage":
		s.messages = append(s.messages, &message{body: in.MessageBody})
		return http.StatusOK, map[string]any{"MessageId": "m", "MD5OfMessageBody": hash(in.MessageBody)}
	case "ReceiveMessage":
		var out []any
		for n, m := range s.messages {
			if m.visible.After(now) || len(out) == in.MaxNumberOfMessages {
				continue
			}
			m.receives++
			m.handle, m.visible = fmt.Sprintf("%d.%d.%d", n, m.receives, now.UnixNano()), now.Add(time.Duration(in.VisibilityTimeout)*time.Second)
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
		for _, m := range s.messages {
			if !m.visible.After(now) {
				visible++
			}
		}
		return http.StatusOK, map[string]any{"Attributes": map[string]any{
			"ApproximateNumberOfMessages":           strconv.Itoa(visible),
			"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(len(s.messages) - visible),
		}}
	case "DeleteMessage":
		if at >= 0 {
			s.messages = slices.Delete(s.messages, at, at+1)
		}
		return http.StatusOK, map[string]any{}
	case "ChangeMessageVisibility":
		if at < 0 {
			return http.StatusBadRequest, map[string]any{"__type": "com.amazonaws.sqs#ReceiptHandleIsInvalid"}
		}
		s.delays = append(s.delays, time.Duration(in.VisibilityTimeout)*time.Second)
		s.messages[at].visible = now.Add(s.delays[len(s.delays)-1])
		return http.StatusOK, map[string]any{}
	}
	return http.StatusBadRequest, map[string]any{"__type": "com.amazonaws.sqs#UnsupportedOperation"}
}
